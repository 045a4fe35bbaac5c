import io
import os

import numpy as np
import pytest
import torch

from pipeline import networks, params
from pipeline.errors import InputError

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


def test_pretrained_weights_fill_all_but_the_last_layer(monkeypatch):
    stand_in = networks.build(params.Model(architecture="resnet18", weights=None), 1000, seed=9).state_dict()
    weights = networks.models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, check_hash, **__: stand_in if check_hash else None)
    network = networks.build(params.Model(architecture="resnet18", weights="IMAGENET1K_V1"), 10, seed=0)
    assert (network.layer4[1].conv2.weight == stand_in["layer4.1.conv2.weight"]).all()
    assert network.fc.out_features == 10


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
