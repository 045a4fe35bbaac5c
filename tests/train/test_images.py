import errno
import os
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.train import images, mixing
from tests.conftest import make_block, write_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def blocks():
    sizes = {"clean": 320, "fgsm": 320, "pgd": 200}
    return {name: make_block(n, size=8, seed=n + len(name)) for name, n in sizes.items()}


@pytest.fixture(scope="module")
def sets(blocks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {name: write_set(folder / name, block, shard_rows=40) for name, block in blocks.items()}


def training_images(blocks):
    """The images that every kind must give, in one array."""
    return np.concatenate([block.images[block.split == 0] for block in blocks.values()])


def kinds(sets, tmp_path):
    stored = list(sets.values())
    copy = images.working_copy(stored, CPU, tmp_path)
    return {"mapped": images.stored(stored, CPU), "held": images.HeldImages(copy.images, CPU)}


@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_batches_are_the_same_bytes_wherever_images_are(sets, blocks, settings, tmp_path, sampling):
    recipe = settings.finetuned["robust"].model_copy(
        update={"batch_size": 16, "sampling": sampling}
    )
    both = {
        name: mixing.mixed(kind, sets, recipe, CPU) for name, kind in kinds(sets, tmp_path).items()
    }
    whole = torch.from_numpy(training_images(blocks))
    for epoch in range(3):
        batches = zip(both["mapped"].stored(epoch), both["held"].stored(epoch), strict=True)
        for (rows, pixels, labels, _), other in batches:
            assert torch.equal(rows, other[0])
            assert torch.equal(pixels, other[1])
            assert torch.equal(labels, other[2])
            assert torch.equal(pixels, whole[rows])


def test_an_epoch_begun_in_its_middle_gives_the_same_batches(sets, settings):
    recipe = settings.finetuned["robust"].model_copy(update={"batch_size": 16})
    batches = mixing.training_batches(sets, recipe, CPU)
    whole = list(batches.epoch(2))
    rest = list(batches.epoch(2, 7))
    assert len(rest) == len(whole) - 7
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[7:], rest, strict=True))


def test_an_epoch_that_is_left_early_leaves_no_thread(sets, settings):
    import threading

    before = threading.active_count()
    epoch = mixing.training_batches(sets, settings.finetuned["robust"], CPU).epoch(0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("free", "kind"), [(92_160, images.HeldImages), (92_159, images.MappedImages)]
)
def test_images_are_kept_on_a_gpu_where_half_of_it_is_enough(sets, monkeypatch, free, kind):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    monkeypatch.setattr(
        images.torch, "empty", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype)
    )
    assert isinstance(images.stored([sets["clean"]], gpu), kind)


def test_a_changed_image_is_found_before_training(tmp_path):
    clean = write_set(tmp_path / "clean", make_block(64))
    with h5py.File(clean.path / "00003.h5", "r+") as file:
        file["images"][7, 0, 4, 4] ^= 1
    for read in (images.stored, lambda *given: images.working_copy(*given, tmp_path)):
        with pytest.raises(InputError, match=r"00003.h5: its content does not match its SHA-256"):
            read([clean], CPU)


def test_a_set_cannot_be_written_through_its_mapping(sets):
    with pytest.raises(ValueError, match="read-only"):
        sets["clean"].map_images()[0][0] = 1


def test_a_working_copy_is_unnamed_and_leaves_the_set_unchanged(sets, blocks, tmp_path):
    copy = images.working_copy(list(sets.values()), CPU, tmp_path / "models")
    rows, whole = torch.arange(5, 200, 3), training_images(blocks)
    assert (copy.images.numpy() == whole).all()
    copy.put(rows, 255 - copy.get(rows))
    assert (copy.get(rows).numpy() == 255 - whole[rows.numpy()]).all()
    assert (
        images.stored(list(sets.values()), CPU).get(rows.numpy()).numpy() == whole[rows.numpy()]
    ).all()
    assert list((tmp_path / "models").iterdir()) == []


def test_a_disk_too_full_for_a_working_copy_is_said(sets, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        images.working_copy([sets["clean"]], CPU, tmp_path)
    monkeypatch.setattr(images.files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(InputError, match="a working copy of the images to refresh needs 1 MiB"):
        images.working_copy([sets["clean"]], CPU, tmp_path)
