import hashlib
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from pipeline.base.errors import InputError
from pipeline.prepare import sources
from tests import samples

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = (np.arange(20) % 4).tolist()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def of(settings, name, root):
    return settings.data.model_copy(update={"source": name, "path": str(root)})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_from_its_own_files(settings, tmp_path, monkeypatch, offline, name):
    samples.write_cifar(tmp_path, monkeypatch, name, PIXELS, LABELS)
    source = sources.open_source(of(settings, name, tmp_path))
    assert (source.read(np.arange(20)) == PIXELS.reshape(20, 3, 32, 32)).all()
    assert source.labels.tolist() == LABELS
    assert source.class_names == ("class 0", "class 1", "class 2", "class 3")


def test_svhn_is_read_from_its_own_file(settings, tmp_path, monkeypatch, offline):
    images = PIXELS.reshape(20, 32, 32, 3)
    path = tmp_path / "train_32x32.mat"
    scipy.io.savemat(
        path,
        {
            "X": images.transpose(1, 2, 3, 0),
            "y": np.array([label or 10 for label in LABELS])[:, None],
        },
    )
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(
        datasets.SVHN, "split_list", {"train": ["http://127.0.0.1/x", "train_32x32.mat", md5]}
    )
    source = sources.open_source(of(settings, "svhn", tmp_path))
    assert (source.read(np.arange(20)) == images.transpose(0, 3, 1, 2)).all()
    assert source.labels.tolist() == LABELS, "SVHN's label 10 is the digit 0"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python"),
        ("svhn", "train_32x32"),
    ],
)
def test_without_a_network_the_missing_file_is_named(settings, tmp_path, offline, name, file):
    with pytest.raises(
        InputError,
        match=(
            rf"{name} is not there whole and could not be downloaded \(.*no network.*\); put "
            rf"{file}"
        ),
    ):
        sources.open_source(of(settings, name, tmp_path))


def test_images_are_resized(settings, tmp_path, monkeypatch, offline):
    samples.write_cifar(tmp_path, monkeypatch, "cifar10", PIXELS, LABELS)
    large = of(settings, "cifar10", tmp_path).model_copy(update={"image_size": 64})
    source = sources.open_source(large)
    assert source.read(np.arange(3)).shape == (3, 3, 64, 64)
    assert source.notes == {"images resized to 64 x 64": 20}
