import time

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.base.store import shards
from pipeline.train import memory, mixing, streaming
from tests.conftest import make_block, write_set

CPU = torch.device("cpu")
COUNTS = {"clean": 8, "fgsm": 4, "pgd": 4}
MARK = {"clean": 0, "fgsm": 1, "pgd": 2}


def marked_set(path, n, mark, size=8, shard_rows=40, **options):
    """A set whose images tell their stream in the first pixel and their row in the two behind it; labels by row."""
    block = make_block(n, size=size)
    block.images[:, 0, 0, 0] = mark
    block.images[:, 0, 0, 1], block.images[:, 0, 0, 2] = np.arange(n) % 256, np.arange(n) // 256
    return write_set(path, block, shard_rows=shard_rows, **options)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch):
    monkeypatch.setattr(shards, "RUN_BYTES", 2 * 3 * 8 * 8)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {
        "clean": marked_set(folder / "clean", 320, 0),
        "fgsm": marked_set(folder / "fgsm", 320, 1),
        "pgd": marked_set(folder / "pgd", 200, 2),
    }


def batches_of(sets, counts=COUNTS, seed=0, buffer=400):
    labels = {name: images.column("labels")[images.column("split") == 0] for name, images in sets.items()}
    sampler = mixing.MixSampler(labels, counts, seed)
    return streaming.StreamedBatches(sets, {name: sampler.sizes(name) for name in counts}, sampler.generator, CPU, buffer=buffer)


def told(images):
    """The stream and the row that each image tells."""
    pixels = (images * 255).round().int().numpy()
    return pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] + 256 * pixels[:, 0, 0, 2]


def test_batches_have_the_exact_mix_and_the_right_labels_in_shuffled_order(sets):
    batches, whole = batches_of(sets), {name: store.join(list(images.blocks())) for name, images in sets.items()}
    *full, last = list(batches.epoch(0))
    assert len(batches) == len(full) + 1 == 30
    alternations = 0
    for images, labels in full:
        marks, rows = told(images)
        assert {name: int((marks == mark).sum()) for name, mark in MARK.items()} == COUNTS
        alternations += (np.diff(marks) != 0).sum()
        for name, mark in MARK.items():
            own = marks == mark
            assert (np.round(images[own].numpy() * 255) == whole[name].images[rows[own]]).all()
            assert (labels[own].numpy() == whole[name].labels[rows[own]]).all()
    assert len(last[1]) == 16
    assert alternations > 29 * 15 / 4, "kinds must not stand in blocks"


@pytest.mark.parametrize("buffer", [256, 400, 1000, 10_000])
def test_every_training_row_is_used_equally_often_and_no_validation_row_ever(sets, buffer):
    batches = batches_of(sets, buffer=buffer)
    drawn = {name: [] for name in COUNTS}
    for epoch in range(4):
        for name in COUNTS:
            rows = np.concatenate([parts[name] for parts in batches.rows(epoch)])
            drawn[name].append(rows)
            if name == "clean":
                assert sorted(rows) == [row for row in range(320) if row % 4 != 3]
    for name, images in sets.items():
        times = np.bincount(np.concatenate(drawn[name]), minlength=len(images))
        assert not times[images.column("split") == 1].any()
        training = times[images.column("split") == 0]
        assert training.max() - training.min() <= 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.integers(256, 900))
def test_images_come_in_the_order_of_the_rows(sets, clean_count, adv_count, epoch, buffer):
    counts = {"clean": clean_count, "pgd": adv_count}
    chosen = {name: sets[name] for name in counts}
    try:
        batches = batches_of(chosen, counts, buffer=buffer)
    except InputError:
        return
    for (images, _), parts in zip(batches.epoch(epoch), batches.rows(epoch), strict=True):
        marks, rows = told(images)
        for name, wanted in parts.items():
            assert sorted(rows[marks == MARK[name]]) == sorted(wanted)


def test_seed_and_epoch_decide_everything_whatever_the_threads_do(sets, monkeypatch):
    read, delays = store.ImageSet.read_runs, np.random.default_rng(0)

    def slow(self, runs, out):
        time.sleep(delays.uniform(0, 0.02))
        read(self, runs, out)

    first = list(batches_of(sets, seed=3).epoch(1))
    monkeypatch.setattr(store.ImageSet, "read_runs", slow)
    again = list(batches_of(sets, seed=3).epoch(1))
    assert all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in zip(first, again, strict=True))
    for seed, epoch in ((4, 1), (3, 0)):
        assert not torch.equal(first[0][0], next(batches_of(sets, seed=seed).epoch(epoch))[0])


def test_an_epoch_that_is_left_early_leaves_no_thread(sets):
    import threading

    before = threading.active_count()
    epoch = batches_of(sets).epoch(0)
    next(epoch)
    epoch.close()
    assert threading.active_count() == before


def test_no_more_images_than_the_buffer_are_held(sets, monkeypatch):
    held = []
    empty = streaming.Stream.buffer
    monkeypatch.setattr(streaming.Stream, "buffer", lambda self: (held.append(empty(self)), held[-1])[1])
    for _ in batches_of(sets, buffer=400).epoch(0):
        pass
    assert len(held) == 6, "two a stream"
    assert 300 < sum(map(len, held)) <= 400


def test_a_changed_image_is_found_at_opening_and_one_that_goes_missing_while_reading(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RUN_BYTES", 2 * 3 * 8 * 8)
    clean = marked_set(tmp_path / "clean", 320, 0)
    batches = batches_of({"clean": clean}, {"clean": 8}, buffer=64)
    (clean.path / "00003.h5").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"00003.h5: cannot be read: No such file or directory"):
        list(batches.epoch(0))
    (tmp_path / "elsewhere").rename(clean.path / "00003.h5")
    with h5py.File(clean.path / "00003.h5", "r+") as file:
        file["images"][20, 0, 4, 4] ^= 1
    with pytest.raises(InputError, match=r"00003.h5: its content does not match its SHA-256"):
        batches_of({"clean": clean}, {"clean": 8}, buffer=64)


def test_a_buffer_too_small_to_shuffle_in_is_refused(sets):
    with pytest.raises(InputError, match="PIPELINE_MEMORY: expected at least 1 MiB to stream .*fgsm through, found less"):
        batches_of(sets, buffer=255)


def test_the_order_is_nearly_as_good_as_a_perfect_shuffle(tmp_path, monkeypatch):
    """A set sorted by class, a buffer of a quarter of it: batches see its classes almost as evenly as with the whole set in memory."""
    monkeypatch.setattr(shards, "RUN_BYTES", 8 * 3 * 8 * 8)
    n, n_classes, per_batch = 8192, 8, 64
    block = make_block(n, size=8)
    sorted_block = store.Block(images=block.images, labels=np.arange(n) * n_classes // n, ids=block.ids, split=np.zeros(n, np.uint8))
    images = write_set(tmp_path / "sorted", sorted_block, shard_rows=1024)
    parts = [rows["clean"] for rows in batches_of({"clean": images}, {"clean": per_batch}, buffer=n // 4).rows(0)]
    order = np.concatenate(parts)
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.15
    counts = np.array([np.bincount(sorted_block.labels[rows], minlength=n_classes) for rows in parts])
    spread = ((counts - per_batch / n_classes) ** 2).sum(1).mean() / (per_batch * (1 - 1 / n_classes))
    assert 0.7 < spread < 1.6, "1: a perfect shuffle; 64: whole batches of one class"


def fitting(monkeypatch, settings, sets, mebibytes, **changes):
    monkeypatch.setenv(memory.VARIABLE, str(mebibytes))
    recipe = settings.finetune.model_copy(update={"batch_size": 16, **changes})
    return mixing.training_batches(sets, recipe, CPU)


def test_free_memory_decides_where_the_images_are_and_both_ways_give_the_mix(sets, settings, monkeypatch, capsys):
    monkeypatch.setattr(memory, "MIB", 1024)
    monkeypatch.setattr(mixing, "MIB", 1024)
    held = fitting(monkeypatch, settings, sets, 1000)
    assert capsys.readouterr().out == "training images: 118 MiB, held in memory, of the 1,000 MiB that images may take\n"
    streamed = fitting(monkeypatch, settings, sets, 220)
    assert capsys.readouterr().out.startswith(
        "training images: 118 MiB, streamed through 220 MiB: twice that, to put them together, is more than the 220 MiB"
    )
    for batches, kind in ((held, mixing.MixedBatches), (streamed, streaming.StreamedBatches)):
        assert isinstance(batches, kind)
        seen = set()
        for epoch in range(4):
            for images, _ in batches.epoch(epoch):
                marks, rows = told(images)
                assert np.bincount(marks).tolist() == [8, 4, 4]
                seen |= set(zip(marks.tolist(), rows.tolist(), strict=True))
        assert seen == {(MARK[name], row) for name, each in sets.items() for row in range(len(each)) if row % 4 != 3}


def test_balanced_sampling_of_images_that_do_not_fit_is_refused(sets, settings, monkeypatch):
    monkeypatch.setattr(memory, "MIB", 1024)
    with pytest.raises(InputError, match="balanced sampling needs them there; set sampling: natural, or PIPELINE_MEMORY"):
        fitting(monkeypatch, settings, sets, 100, sampling="balanced")
