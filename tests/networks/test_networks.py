import hashlib
import http.server
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from pipeline import networks
from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.networks import resnet
from pipeline.networks.params import Model
from tests import samples


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_networks_are_stock_with_a_new_last_layer(architecture):
    before = torch.get_rng_state()
    network = networks.build(Model(architecture=architecture, weights=None), 7, seed=0)
    assert (before == torch.get_rng_state()).all()
    assert network.fc.out_features == 7
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    again = networks.build(Model(architecture=architecture, weights=None), 7, seed=0)
    assert (network.conv1.weight == again.conv1.weight).all()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves one file; `cut` drops the second half of it after promising the whole."""

    content, cut, requests = b"", False, 0

    def do_HEAD(self):
        self.send_response(200 if self.content else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self):
        type(self).requests += 1
        self.do_HEAD()
        self.wfile.write(self.content[: len(self.content) // 2] if self.cut else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def official():
    """A file of weights for the stock ResNet-18."""
    return samples.state_dict_bytes("resnet18")


@pytest.fixture
def hub(official, tmp_path, monkeypatch):
    """torchvision's ResNet-18 weights, replaced by a stand-in of the right shape.

    A server on this machine serves it.
    """
    served = type("Served", (Handler,), {"content": official})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.file = samples.replace_weights(
        monkeypatch,
        tmp_path / "home",
        "resnet18",
        served.content,
        f"127.0.0.1:{server.server_port}",
    )
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


IMAGENET = Model(architecture="resnet18", weights="IMAGENET1K_V1")


def test_pretrained_weights_are_downloaded_once(hub):
    pretrained = networks.pretrained_weights(IMAGENET)
    assert pretrained.sha256 == hashlib.sha256(hub.content).hexdigest()
    network = networks.build(IMAGENET, 10, 0, pretrained)
    assert (network.layer4[1].conv2.weight == pretrained.state_dict["layer4.1.conv2.weight"]).all()
    assert (network.bn1.running_var == pretrained.state_dict["bn1.running_var"]).all()
    assert network.fc.out_features == 10
    networks.pretrained_weights(IMAGENET)
    assert hub.requests == 1


def test_a_cached_file_needs_no_network_but_its_hash(hub):
    hub.file.parent.mkdir(parents=True)
    hub.file.write_bytes(hub.content)
    networks.pretrained_weights(IMAGENET)
    assert hub.requests == 0
    hub.file.write_bytes(hub.content[:-1] + b"x")
    with pytest.raises(
        InputError, match=r"expected a SHA-256 that begins with \w{8}, found \w{8}; delete the file"
    ):
        networks.pretrained_weights(IMAGENET)


@pytest.mark.parametrize(
    "damage",
    [{"content": b""}, {"content": b"another file"}, {"cut": True}],
    ids=["absent", "wrong hash", "cut off"],
)
def test_a_failed_download_names_file_hash_and_folder(hub, monkeypatch, damage):
    for name, value in damage.items():
        monkeypatch.setattr(hub, name, value)
    message = (
        rf"{hub.file.name} cannot be downloaded \(.+\) from http://.*/{hub.file.name}; put that"
        rf" file, whose SHA-256 begins with \w{{8}}, into {hub.file.parent}, or set weights to a "
        "file in models/pretrained, or to null to start from scratch"
    )
    with pytest.raises(InputError, match=message):
        networks.pretrained_weights(IMAGENET)
    assert not hub.file.exists()


OWN = "models/pretrained/own.pth"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Where a project's own file of starting weights is kept; not there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / OWN).parent.mkdir(parents=True)
    return tmp_path / OWN


def started(architecture="resnet18"):
    model = Model(architecture=architecture, weights=OWN)
    return networks.build(model, 5, 0, networks.pretrained_weights(model))


def refused(own, content, message, architecture="resnet18"):
    torch.save(content, own)
    with pytest.raises(InputError, match=f"^model.weights: {OWN}: {message}") as caught:
        started(architecture)
    assert "\n" not in str(caught.value)


def test_weights_from_a_file(own, network):
    with pytest.raises(
        InputError, match=r"^model.weights: models/pretrained/own.pth: no such file; put it there$"
    ):
        started()
    torch.save(network.state_dict(), own)
    assert (started().conv1.weight == network.conv1.weight).all()
    refused(own, samples.Harmful(), "not a file of tensors that can be read safely")


@pytest.mark.parametrize(
    ("architecture", "old", "new", "legacy"),
    [
        ("resnet18", 102, 122, True),
        ("resnet18", 102, 122, False),
        ("resnet34", 182, 218, False),
        ("resnet50", 267, 320, False),
    ],
)
def test_official_files_fill_all_but_the_last_layer(own, architecture, old, new, legacy):
    """The files are as torchvision has them.

    IMAGENET1K_V1 counts no batches, and has the format used before PyTorch 1.6.
    """
    official = samples.state_dict(architecture)
    assert len(official) == old
    torch.save(official, own, _use_new_zipfile_serialization=not legacy)
    counted = models.get_model(architecture).state_dict()
    assert len(counted) == new
    network = started(architecture)
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, official[name]) if name in official else tensor == 0
    assert network.fc.out_features == 5
    torch.save({**counted, "bn1.num_batches_tracked": torch.tensor(7)}, own)
    assert started(architecture).bn1.num_batches_tracked == 7


def test_counts_may_be_missing_whatever_metadata_says(own):
    tensors = models.resnet18().state_dict()
    for name in [name for name in tensors if name.endswith("num_batches_tracked")]:
        del tensors[name]
    assert tensors._metadata["bn1"] == {"version": 2}, "torch itself would refuse these"
    torch.save(tensors, own)
    assert started().bn1.num_batches_tracked == 0
    torch.save({name: nn.Parameter(tensor) for name, tensor in tensors.items()}, own)
    assert started().bn1.num_batches_tracked == 0


def test_other_networks_weights_are_refused_with_the_first_ones(own):
    official = samples.state_dict("resnet18")
    refused(
        own,
        official,
        r"its tensors are not those of a resnet50: 188 differ, first layer1.0.conv1.weight "
        r"\(expected 64x64x1x1 in float32, found 64x64x3x3"
        r" in float32\), layer1.0.conv3.weight \(expected 256x64x1x1 in float32, found none\)$",
        "resnet50",
    )
    wrapped = {f"module.{name}": tensor for name, tensor in official.items()}
    refused(
        own,
        {"model": wrapped, "epoch": 3},
        r"its tensors below 'model' are not those of a resnet50: 188 differ, first "
        r"module.layer1.0.conv1.weight \(expected",
        "resnet50",
    )
    refused(
        own,
        {**official, "conv1.weight": torch.zeros(64, 3, 3, 3)},
        r".*: 1 differ, first conv1.weight .* found 64x3x3x3 in float32\)$",
    )
    refused(
        own,
        {**official, "bn1.bias": torch.zeros(64, dtype=torch.int8)},
        r".* bn1.bias \(expected 64 in float32, found 64 in int8\)$",
    )
    refused(
        own,
        {**official, "extra.num_batches_tracked": torch.tensor(1)},
        r".* extra.* \(expected none, found one number in int64\)$",
    )
    refused(
        own,
        {**official, "a\nb" * 99: torch.zeros(1)},
        r".*: 1 differ, first a\\nba.* \(expected none, found 1 in float32\)$",
    )
    refused(own, {}, ".*: 100 differ, first conv1.weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted_and_said_once(own, capsys, dtype):
    console.say_once.cache_clear()
    official = {name: tensor.to(dtype) for name, tensor in samples.state_dict("resnet18").items()}
    torch.save(official, own)
    state = [started(), started()][1].state_dict()
    assert state["conv1.weight"].dtype == torch.float32
    assert torch.equal(state["conv1.weight"], official["conv1.weight"].float())
    line = (
        f"model.weights: {OWN}: its tensors in {str(dtype).removeprefix('torch.')} are converted "
        "to float32\n"
    )
    assert capsys.readouterr().out == line


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), torch.tensor(1e300, dtype=torch.float64)]
)
def test_weights_that_are_not_finite_are_refused_by_name(own, value):
    official = samples.state_dict("resnet18")
    damaged = official["layer2.0.conv1.weight"].clone().to(getattr(value, "dtype", torch.float32))
    damaged[3, 2, 1, 0] = value
    refused(
        own,
        {**official, "layer2.0.conv1.weight": damaged},
        r"layer2.0.conv1.weight: expected finite numbers in float32, found NaN or inf",
    )
    torch.save({**official, "fc.bias": torch.full((1000,), torch.nan)}, own)
    assert started().fc.bias.isfinite().all(), "the last layer is new"


def test_other_contents_are_named_with_what_to_save(own):
    remedy = r"save network.state_dict\(\) instead$"
    many = {f"key {number}": number for number in range(9)}
    refused(
        own,
        many,
        "expected a state_dict, tensors by name, found other values under "
        f"'key 0', 'key 1', 'key 2', 'key 3', 'key 4' and 4 more; {remedy}",
    )
    refused(own, {"a\nb" * 99: 1}, rf".* under 'a\\nba.*; {remedy}")
    refused(own, [torch.zeros(3)], rf".* found a list; {remedy}")


def test_starting_weights_are_checked_before_anything_runs(own, hub, capsys, monkeypatch):
    model = Model(architecture="resnet18", weights=OWN)
    with pytest.raises(
        InputError,
        match=(
            r"^params.yaml: online.x.start.weights: models/pretrained/own.pth: no such file; put "
            r"it there$"
        ),
    ):
        networks.expect_weights(model, "params.yaml: online.x.start")
    torch.save({}, own)
    with pytest.raises(
        InputError,
        match="^params.yaml: model.weights: models/pretrained/own.pth: its tensors are not those",
    ):
        networks.expect_weights(model, "params.yaml: model")
    networks.expect_weights(Model(architecture="resnet18", weights=None), "params.yaml: model")
    assert capsys.readouterr().out == ""
    networks.expect_weights(IMAGENET, "params.yaml: model")
    place = f"IMAGENET1K_V1: {hub.file.name} is not in {hub.file.parent} yet"
    line = (
        rf"params.yaml: model.weights: {place}; the training downloads it \(\d+ MiB\) from http:.*"
    )
    assert re.fullmatch(line, capsys.readouterr().out.strip())
    assert hub.requests == 0
    monkeypatch.setattr(hub, "content", b"")
    with pytest.raises(
        InputError, match=r"^params.yaml: model.weights: .* cannot be downloaded \(HTTP Error 404"
    ):
        networks.expect_weights(IMAGENET, "params.yaml: model")
    hub.file.parent.mkdir(parents=True)
    hub.file.write_bytes(b"another file")
    with pytest.raises(
        InputError, match=r"^params.yaml: model.weights: .* expected a SHA-256 that begins with"
    ):
        networks.expect_weights(IMAGENET, "params.yaml: model")


def test_predictions_do_not_depend_on_the_batch(network):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    network.train()
    predicted = networks.predict(network, images, 3)
    assert network.training
    network.eval()
    assert (predicted == networks.predict(network, images, 10)).all()
    expected = network(torch.from_numpy(images) / 255).argmax(1).numpy()
    assert (predicted == expected).all()
    assert networks.accuracy(network, images, expected, 4) == 1


def test_outputs_that_are_no_numbers_are_wrong(network):
    images, labels = np.zeros((4, 3, 8, 8), dtype=np.uint8), np.zeros(4, dtype=np.int64)
    with torch.no_grad():
        network.fc.bias[1] = torch.nan
    predicted = networks.predict(network, images)
    assert (predicted == -1).all()
    assert networks.accuracy(network, images, labels) == 0
    pixels = networks.pixels(images, torch.device("cpu"))
    assert not networks.is_right(network, pixels, torch.from_numpy(labels)).any()
    with pytest.raises(InputError, match="the network gives no numbers for 4 of 4 images; its"):
        networks.expect_numbers(predicted)


def test_the_expected_tensors_have_a_stock_networks_shapes_and_no_content():
    expected = resnet.expected("resnet18", 7)
    stock = resnet.stock("resnet18", 7).state_dict()
    assert list(expected) == list(stock)
    assert all(expected[name].shape == stock[name].shape for name in stock)
    assert all(expected[name].dtype == stock[name].dtype for name in stock)
    assert {tensor.device.type for tensor in expected.values()} == {"meta"}
