import hashlib
import http.server
import io
import os
import threading

import numpy as np
import pytest
import torch

from pipeline import networks, params
from pipeline.errors import InputError
from tests import samples

NAMES = ("a", "b", "c")


@pytest.fixture
def checkpoint(network):
    return networks.Checkpoint(
        architecture="resnet18", class_names=list(NAMES), state_dict=network.state_dict(), provenance={"seed": 1, "weights": "none"}
    )


@pytest.fixture
def path(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "resnet50"])
def test_networks_are_stock_with_a_new_last_layer(architecture):
    before = torch.get_rng_state()
    network = networks.build(params.Model(architecture=architecture, weights=None), 7, seed=0)
    assert (before == torch.get_rng_state()).all()
    assert network.fc.out_features == 7
    assert network.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    again = networks.build(params.Model(architecture=architecture, weights=None), 7, seed=0)
    assert (network.conv1.weight == again.conv1.weight).all()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves one file; `cut` drops the second half of it after promising the whole."""

    content, cut, requests = b"", False, 0

    def do_GET(self):
        type(self).requests += 1
        self.send_response(200 if self.content else 404)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.cut else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torchvision's ResNet-18 weights, replaced by a stand-in of the right shape on a server on this machine."""
    served = type("Served", (Handler,), {"content": samples.state_dict_bytes("resnet18")})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.file = samples.replace_weights(monkeypatch, tmp_path / "home", "resnet18", served.content, f"127.0.0.1:{server.server_port}")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


IMAGENET = params.Model(architecture="resnet18", weights="IMAGENET1K_V1")


def test_pretrained_weights_are_downloaded_once_and_fill_all_but_the_last_layer(hub):
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
    with pytest.raises(InputError, match=r"expected a SHA-256 that begins with \w{8}, found \w{8}; delete the file"):
        networks.pretrained_weights(IMAGENET)


@pytest.mark.parametrize("damage", [{"content": b""}, {"content": b"another file"}, {"cut": True}], ids=["absent", "wrong hash", "cut off"])
def test_a_failed_download_names_file_hash_and_folder_and_leaves_nothing(hub, monkeypatch, damage):
    for name, value in damage.items():
        monkeypatch.setattr(hub, name, value)
    message = rf"{hub.file.name} cannot be downloaded \(.+\); put that file, whose SHA-256 begins with \w{{8}}, into {hub.file.parent}"
    with pytest.raises(InputError, match=message):
        networks.pretrained_weights(IMAGENET)
    assert not hub.file.exists()


def test_weights_from_a_file(tmp_path, network):
    path = tmp_path / "own.pth"
    model = params.Model(architecture="resnet18", weights=str(path))
    with pytest.raises(InputError, match=r"own.pth: no such file"):
        networks.pretrained_weights(model)
    torch.save(network.state_dict(), path)
    built = networks.build(model, 5, 0, networks.pretrained_weights(model))
    assert (built.conv1.weight == network.conv1.weight).all()
    other = model.model_copy(update={"architecture": "resnet34"})
    with pytest.raises(InputError, match="its tensors are not those of a resnet34"):
        networks.build(other, 5, 0, networks.pretrained_weights(other))
    torch.save({"state_dict": network.state_dict()}, path)
    with pytest.raises(InputError, match="expected a state_dict, tensors by name"):
        networks.pretrained_weights(model)
    torch.save(Harmful(), path)
    with pytest.raises(InputError, match="not a file of tensors that can be read safely"):
        networks.pretrained_weights(model)


def test_a_checkpoint_comes_back_as_it_was(checkpoint, path, network):
    loaded = networks.load(path, architecture="resnet18", class_names=NAMES)
    assert loaded.provenance == checkpoint.provenance
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.network()(images), network(images))
    assert not loaded.network().training


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint, path, tmp_path):
    checkpoint.save(tmp_path / "sub/other.pt")
    assert path.read_bytes() == (tmp_path / "sub/other.pt").read_bytes()


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("content", [{"format": "other"}, [1, 2], Harmful(), {"format": networks.FORMAT, "surprise": 1}])
def test_foreign_files_are_refused_and_never_run(path, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for raw in (buffer.getvalue(), b"", b"hello", path.read_bytes()[:5000]):
        path.write_bytes(raw)
        with pytest.raises(InputError, match=r"model.pt: not a checkpoint of this pipeline"):
            networks.load(path, architecture="resnet18", class_names=NAMES)
    assert not (tmp_path / "harmed").exists()


def test_models_that_do_not_fit_are_refused(path, tmp_path):
    with pytest.raises(InputError, match=r"expected a resnet50, as model.architecture says, found a resnet18"):
        networks.load(path, architecture="resnet50", class_names=NAMES)
    with pytest.raises(InputError, match=r"expected the 2 classes of the data, found a model for 3 other ones"):
        networks.load(path, architecture="resnet18", class_names=("a", "b"))
    with pytest.raises(InputError, match=r"no such model; `dvc repro` trains it"):
        networks.load(tmp_path / "none.pt", architecture="resnet18", class_names=NAMES)


def test_predictions_do_not_depend_on_the_batch_and_leave_the_mode(network):
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    network.train()
    predicted = networks.predict(network, images, 3)
    assert network.training
    network.eval()
    assert (predicted == networks.predict(network, images, 10)).all()
    expected = network(torch.from_numpy(images) / 255).argmax(1).numpy()
    assert (predicted == expected).all()
    assert networks.accuracy(network, images, expected, 4) == 1
