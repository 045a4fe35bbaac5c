from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import presets
from pipeline.audit import lineage
from pipeline.base.errors import InputError
from pipeline.plan import images
from tests.conftest import ROOT, make_block, write_set


def changed(settings, **values):
    return settings.data.model_copy(update={"n_test": 0, **values})


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


def test_the_digits_are_counted(settings):
    found = images.known(settings.data)
    assert (found.n_images, found.n_val, found.n_train) == (1797, 200, 1300)
    assert (found.size, found.n_classes, found.origin) == (32, 10, "the source digits")
    assert found.n_bytes == 3 * 32 * 32 + 32


def test_n_images_is_taken_from_the_params(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    data = presets.settings("cifar10-cpu").data
    monkeypatch.chdir(tmp_path)
    found = images.known(data)
    assert (found.n_images, found.n_val, found.origin) == (
        50000,
        2500,
        "data.n_images of params.yaml",
    )
    assert images.known(data, where="the preset x").origin == "data.n_images of the preset x"


def test_an_unknown_number_is_asked_for(settings):
    data = changed(settings, source="npz", path="data/raw/mine.npz")
    with pytest.raises(
        InputError,
        match=r"^data.n_images: not known before data/raw/mine.npz is read .*; write --images N$",
    ):
        images.known(data)
    with pytest.raises(InputError, match=r"is read \(null in the preset x\); write --images N$"):
        images.known(data, where="the preset x")
    found = images.known(data, 1000)
    assert (found.n_images, found.origin) == (1000, "--images")


def test_an_unknown_size_is_asked_for(settings):
    data = changed(settings, source="npz", path="data/raw/mine.npz", image_size=None)
    with pytest.raises(InputError, match=r"^data.image_size: not known before .*; set it, or run"):
        images.known(data, 1000)


def test_a_split_of_the_source_is_assumed(settings):
    data = changed(settings, source="npz", path="data/raw/mine.npz", n_val="from_source")
    assert images.known(data, 6000).n_val == 1000
    both = data.model_copy(update={"n_test": "from_source"})
    assert images.known(both, 6000).n_judged == 1000
    assert images.known(both, 6000).n_train == 4000


def test_a_split_of_the_source_is_counted(settings, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    parts = {"train": slice(0, 24), "val": slice(24, 34), "test": slice(34, 40)}
    arrays = {f"{part}_images": pixels[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": np.arange(40)[rows] % 2 for part, rows in parts.items()}
    np.savez(tmp_path / "data/mine.npz", **arrays)
    own = {"n_val": "from_source", "n_test": "from_source"}
    found = images.known(changed(settings, source="npz", path="data/mine.npz", **own))
    assert (found.n_train, found.n_val, found.n_test) == (24, 10, 6)


def test_too_few_images_are_refused(settings):
    data = changed(settings, source="npz", path="data/raw/mine.npz")
    with pytest.raises(InputError, match=r"n_test: expected fewer than the 200 images \(--"):
        images.known(data, 200)


def test_a_small_source_is_read(settings, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "data/mine.npz", images=pixels, labels=np.arange(40) % 4)
    data = changed(settings, source="npz", path="data/mine.npz", image_size=None, n_val=8)
    found = images.known(data)
    assert (found.n_images, found.size, found.n_classes) == (40, 16, 4)
    assert images.known(data, 600).n_images == 600, "what the user says counts"


def test_a_large_source_is_not_read(settings, tmp_path, monkeypatch):
    (tmp_path / "data/raw").mkdir()
    (tmp_path / "data/raw/mine.npy").write_bytes(bytes(100))
    monkeypatch.setattr(images, "CHEAP", 99)
    with pytest.raises(InputError, match="write --images N$"):
        images.known(changed(settings, source="npy", path="data/raw"))


def record(data, **md5s):
    """Write what `dvc.lock` says of the stage `prepare` that read `data`."""
    read = [{"path": data.path, "md5": md5} for md5 in md5s.values()]
    params = {"params.yaml": {"data": data.model_dump(exclude={"seed"})}}
    with Path("dvc.lock").open("w") as file:
        YAML().dump({"stages": {"prepare": {"cmd": "x", "deps": read, "params": params}}}, file)


@pytest.fixture
def prepared(settings, tmp_path):
    """The params of a clean image set that no longer has its source."""
    about = {"source": "npz", "split.n_val": 10, "image_size": 16}
    write_set(tmp_path / "data/clean", make_block(40), **about)
    data = changed(settings, source="npz", path="data/mine.npz", n_val=10, image_size=None)
    record(data)
    return data


def write_source(path, n_images):
    pixels = np.random.default_rng(0).integers(0, 256, (n_images, 3, 16, 16), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(n_images) % 4)


def test_the_clean_set_is_preferred(settings, prepared):
    data = prepared
    found = images.known(data)
    assert (found.n_images, found.n_val, found.size, found.n_classes) == (40, 10, 16, 3)
    assert found.origin == "data/clean"
    assert images.known(settings.data).origin == "the source digits"


def test_the_clean_set_of_another_source_is_not_counted(prepared, tmp_path):
    write_source(tmp_path / "data/other.npz", 50)
    other = prepared.model_copy(update={"path": "data/other.npz"})
    assert images.known(other).n_images == 50
    write_source(tmp_path / "data/mine.npz", 60)
    assert images.known(prepared).n_images == 60, "the file has changed"
    record(prepared, mine=lineage.md5(tmp_path / "data/mine.npz"))
    assert images.known(prepared).origin == "data/clean"


@pytest.mark.parametrize("text", ["", "stages: {}", "stages: {prepare: {cmd: x}}", "{"])
def test_the_clean_set_of_an_unknown_source_is_not_counted(prepared, tmp_path, text):
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(InputError, match="write --images N$"):
        images.known(prepared)
