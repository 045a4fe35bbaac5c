import shutil

import h5py
import numpy as np
import pytest

from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.base.store import shards
from tests.conftest import make_block, write_set


def test_what_is_written_is_read_back(clean, block):
    assert len(clean) == 40
    assert clean.bounds == [(0, 16), (16, 32), (32, 40)]
    read = store.join(list(clean.blocks()))
    for name, array in block.datasets.items():
        assert (read.datasets[name] == array).all()
        assert read.datasets[name].dtype == array.dtype
    assert (clean.load("val").ids == block.ids[block.split == 1]).all()
    assert len(clean.load("train")) == 30


def test_the_same_content_gives_the_same_bytes(clean, block, tmp_path):
    again = write_set(tmp_path / "again", block)
    assert again.digest == clean.digest
    for shard in sorted(clean.path.iterdir()):
        assert shard.read_bytes() == (again.path / shard.name).read_bytes()


def test_another_image_or_attribute_gives_another_digest(clean, tmp_path, block):
    assert write_set(tmp_path / "a", make_block(40, seed=1)).digest != clean.digest
    assert write_set(tmp_path / "b", block, seed=1).digest != clean.digest


@pytest.mark.parametrize("name", ["images", "labels", "ids", "split"])
def test_a_changed_value_is_found(clean, name):
    with h5py.File(clean.path / "00001.h5", "r+") as file:
        file[name][3] = 1 - file[name][3] % 2
    with pytest.raises(InputError, match=r"00001.h5: its content does not match its SHA-256"):
        clean.load("train")


@pytest.mark.parametrize("key", ["kind", "rows", "class_names"])
def test_a_changed_attribute_is_found(clean, key):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        file.attrs[key] = "other"
    with pytest.raises(InputError, match="attributes do not match their fingerprint"):
        store.ImageSet(clean.path)


def test_changed_row_numbers_are_found(clean):
    with h5py.File(clean.path / "00002.h5", "r+") as file:
        file.attrs["rows.stop"] = 41
    with pytest.raises(InputError, match="expected 40 rows, found 41"):
        store.ImageSet(clean.path)


def test_truncated_foreign_and_missing_shards(clean, tmp_path, block):
    last = clean.path / "00002.h5"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"00002.h5: not a readable HDF5 file, perhaps cut short"):
        store.ImageSet(clean.path)
    with h5py.File(last, "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="not an image shard of schema 2"):
        store.ImageSet(clean.path)
    shutil.copy(write_set(tmp_path / "other", block, seed=3).path / "00002.h5", last)
    with pytest.raises(InputError, match=r"not a shard of the same set as 00000.h5"):
        store.ImageSet(clean.path)
    last.unlink()
    with pytest.raises(InputError, match="expected 40 rows, found 32"):
        store.ImageSet(clean.path)
    (clean.path / "00000.h5").unlink()
    with pytest.raises(InputError, match="without gaps, found 1 shards"):
        store.ImageSet(clean.path)
    with pytest.raises(InputError, match="no such image set"):
        store.ImageSet(tmp_path / "nowhere")


def test_shards_in_another_order_are_found(clean):
    first, second = clean.path / "00000.h5", clean.path / "00001.h5"
    first.rename(clean.path / "x")
    second.rename(first)
    (clean.path / "x").rename(second)
    with pytest.raises(InputError, match="not a shard of the same set"):
        store.ImageSet(clean.path)


def test_a_missing_dataset_is_found(clean):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        del file["labels"]
    with pytest.raises(InputError, match="its datasets cannot be read"):
        clean.load("val")


def test_expectations_name_reason_key_and_both_values(clean):
    clean.expect({"kind": "clean"}, "never seen")
    with pytest.raises(InputError, match="made from another model: kind: expected adversarial, found clean; `dvc repro`"):
        clean.expect({"kind": "adversarial"}, "made from another model")


def part(block, start, stop):
    return store.Block(**{name: array[start:stop] for name, array in block.datasets.items()})


def test_an_interrupted_set_goes_on_and_a_changed_one_starts_anew(tmp_path, block, clean):
    path, bounds = tmp_path / "set", store.shard_bounds(40, 16)
    attributes = {"kind": "clean", "class_names": '["a", "b", "c"]'}
    with pytest.raises(KeyboardInterrupt), store.Writer(path, attributes, bounds=bounds) as writer:
        writer.write(0, part(block, 0, 16))
        writer.write(16, part(block, 16, 32))
        raise KeyboardInterrupt
    assert not path.exists()
    assert store.Writer(path, {**attributes, "seed": 1}, bounds=bounds).missing() == bounds
    damaged = next(tmp_path.glob(".set.*.part")) / "00001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with store.Writer(path, attributes, bounds=bounds) as writer:
        assert writer.missing() == bounds[1:]
        for start, stop in writer.missing():
            writer.write(start, part(block, start, stop))
    assert store.ImageSet(path).digest == clean.digest
    assert not list(tmp_path.glob(".set.*"))


def test_an_incomplete_set_never_gets_its_name(tmp_path, block, clean):
    with (
        pytest.raises(RuntimeError, match="rows 16 to 32 were never written"),
        store.Writer(clean.path, {"kind": "clean"}, bounds=store.shard_bounds(40, 16)) as writer,
    ):
        writer.write(0, part(block, 0, 16))
    assert len(store.ImageSet(clean.path)) == 40, "the set that had the name before is still there"


def test_a_new_set_replaces_the_old_one(clean, tmp_path):
    write_set(clean.path, make_block(8))
    assert len(store.ImageSet(clean.path)) == 8
    assert len(list(clean.path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": (8, 3, 32, 32)}, r"images: expected one contiguous array, found chunks of \(8, 3, 32, 32\)"),
        ({"compression": "gzip"}, r"refused: /images needs the filter deflate \(number 1\)"),
    ],
)
def test_shards_with_chunks_or_compression_are_refused(clean, block, options, message):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        del file["images"]
        file.create_dataset("images", data=block.images[:16], **options)
    with pytest.raises(InputError, match=rf"00000.h5: {message}; run `python -m pipeline discard"):
        store.ImageSet(clean.path).verify()


def test_sets_are_read_by_columns_and_by_mapping_their_images(clean, block):
    assert (clean.column("labels") == block.labels).all()
    assert (clean.training_column("ids") == block.ids[block.split == 0]).all()
    assert clean.image_shape == (3, 32, 32)
    shards = clean.map_images()
    assert list(map(len, shards)) == [16, 16, 8]
    assert (np.concatenate(shards) == block.images).all()


def test_verifying_finds_a_changed_image_in_any_slice(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SLICE_BYTES", 1)
    images = write_set(tmp_path / "set", make_block(600), shard_rows=600)
    images.verify()
    with h5py.File(images.path / "00000.h5", "r+") as file:
        file["images"][599, 0, 0, 0] ^= 1
    with pytest.raises(InputError, match=r"00000.h5: its content does not match its SHA-256"):
        images.verify()


def test_shards_written_behind_are_those_written_at_once(tmp_path, block, clean):
    bounds = store.shard_bounds(40, 16)
    with store.Writer(tmp_path / "set", {"kind": "clean", "class_names": '["a", "b", "c"]'}, bounds=bounds) as writer:
        for start, stop in bounds:
            writer.write_behind(start, part(block, start, stop))
    assert store.ImageSet(tmp_path / "set").digest == clean.digest


def test_optional_datasets_and_joining(tmp_path, block):
    attacked = store.Block(**block.datasets, eps=np.full(40, 0.1, np.float32), fooled=np.arange(40) % 2 == 0)
    read = write_set(tmp_path / "adv", attacked).load("val")
    assert read.fooled.dtype == bool
    assert (read.fooled == attacked.fooled[attacked.split == 1]).all()
    assert store.join([read, block]).eps is None
    assert len(store.join([read, block])) == 50
