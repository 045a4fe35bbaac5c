import json
import shutil

import h5py
import numpy as np
import pytest

from pipeline.base import files, store
from pipeline.base.errors import InputError
from pipeline.base.store import manifest
from pipeline.base.untrusted import limits
from tests.conftest import ROOT, make_block, renew_manifest, write_set


def test_more_shards_than_names_sort_by_number_are_refused():
    assert len(store.shard_bounds(99_999, 1)) == 99_999
    with pytest.raises(InputError, match="^store.shard_rows: 10,000,000 images .* write 101 or"):
        store.shard_bounds(10_000_000, 100)


def test_what_is_written_is_read_back(clean, block):
    assert len(clean) == 40
    assert clean.bounds == [(0, 16), (16, 32), (32, 40)]
    read = store.join(list(clean.blocks()))
    for name, array in block.datasets.items():
        assert (read.datasets[name] == array).all()
        assert read.datasets[name].dtype == array.dtype
    assert (clean.load("val").ids == block.ids[block.split == 1]).all()
    assert len(clean.load("train")) == 30


def test_a_shard_that_does_not_fit_in_memory_is_named(clean, monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 1000)
    with pytest.raises(
        InputError,
        match=r"/clean/00000.h5: refused: .* that unpack to [\d,]+, more than this machine's free "
        r"memory; lower store.shard_rows or free memory$",
    ):
        clean.load("train")


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


def edit_manifest(clean, change):
    """Change the JSON of a set's manifest, and nothing else."""
    path = clean.path / manifest.NAME
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("key", ["kind", "rows", "class_names"])
def test_a_changed_attribute_is_found(clean, key):
    edit_manifest(clean, lambda content: content["attributes"].update({key: "other"}))
    with pytest.raises(
        InputError, match=r"manifest.json: its attributes do not match their fingerprint"
    ):
        store.ImageSet(clean.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(schema=1), "not the manifest of an image set of schema 2"),
        (lambda content: content.pop("shards"), "not the manifest of an image set of schema 2"),
        (lambda content: content.update(shards=[]), "expected attributes and shards by name"),
        (
            lambda content: content["shards"].update({"00000.h5": 7}),
            "00000.h5: expected rows and a SHA-256",
        ),
        (
            lambda content: content["shards"]["00000.h5"].update(rows=[0]),
            "00000.h5: expected rows and a SHA-256",
        ),
        (
            lambda content: content["shards"]["00000.h5"].update(sha256="x"),
            "00000.h5: expected rows and a SHA-256",
        ),
        (
            lambda content: content["shards"]["00002.h5"].update(rows=[32, 41]),
            "expected 40 rows, found 41",
        ),
        (
            lambda content: content["shards"]["00001.h5"].update(rows=[17, 32]),
            "whose rows follow each other, found",
        ),
        (lambda content: content["shards"].pop("00000.h5"), "without gaps, found 3 shards"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(clean, change, message):
    edit_manifest(clean, change)
    with pytest.raises(InputError, match=message) as caught:
        store.ImageSet(clean.path)
    assert str(caught.value).endswith(
        f"run `python -m pipeline discard {clean.path}`, then `dvc repro`"
    )


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"schema": ' + "9" * 5000])
def test_a_manifest_that_is_no_json_is_refused(clean, content):
    (clean.path / manifest.NAME).write_text(content)
    with pytest.raises(
        InputError, match=r"manifest.json: not readable JSON, perhaps cut short; run"
    ):
        store.ImageSet(clean.path)


def test_a_missing_and_an_oversized_manifest_are_refused(clean, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_BYTES", 10)
    with pytest.raises(InputError, match=r"manifest.json: expected at most 10 bytes, found more"):
        store.ImageSet(clean.path)
    (clean.path / manifest.NAME).unlink()
    with pytest.raises(
        InputError, match=r"manifest.json: no such file; run `python -m pipeline discard"
    ):
        store.ImageSet(clean.path)


def test_truncated_foreign_and_missing_shards(clean, tmp_path, block):
    last = clean.path / "00002.h5"
    whole = last.read_bytes()
    foreign = write_set(tmp_path / "other", block, seed=3).path / "00002.h5"
    for content in (whole[: len(whole) // 2], b"", foreign.read_bytes()):
        last.write_bytes(content)
        with pytest.raises(InputError, match=r"00002.h5: its content does not match its SHA-256"):
            store.ImageSet(clean.path).load("val")
    last.unlink()
    with pytest.raises(InputError, match="without gaps, found 2 shards"):
        store.ImageSet(clean.path)
    with pytest.raises(InputError, match="no such image set"):
        store.ImageSet(tmp_path / "nowhere")


def test_a_shard_of_another_set_is_found_by_its_attributes(clean, tmp_path, block):
    shutil.copy(write_set(tmp_path / "other", block, seed=3).path / "00002.h5", clean.path)
    renew_manifest(clean.path)
    with pytest.raises(
        InputError, match=r"00002.h5: its attributes are not those of its set's manifest"
    ):
        store.ImageSet(clean.path).load("val")


@pytest.mark.parametrize("renewed", [False, True])
def test_shards_in_another_order_are_found(clean, renewed):
    first, second = clean.path / "00000.h5", clean.path / "00001.h5"
    first.rename(clean.path / "x")
    second.rename(first)
    (clean.path / "x").rename(second)
    if renewed:
        renew_manifest(clean.path)
    message = (
        "its attributes are not those of its set's manifest"
        if renewed
        else "its content does not match its SHA-256"
    )
    with pytest.raises(InputError, match=f"00000.h5: {message}"):
        store.ImageSet(clean.path).load("val")


def test_no_shard_is_opened_before_its_hash_is_checked(clean, monkeypatch):
    (clean.path / "00000.h5").write_bytes(b"damaged")
    monkeypatch.setattr(h5py, "File", None)
    found = store.ImageSet(clean.path)
    for read in (
        found.verify,
        lambda: found.load("val"),
        lambda: found.column("ids"),
        found.map_images,
        lambda: found.image_shape,
    ):
        with pytest.raises(InputError, match=r"00000.h5: its content does not match its SHA-256"):
            read()


def test_the_digest_is_the_hash_of_the_manifest(clean):
    assert clean.digest == files.sha256(clean.path / manifest.NAME)


def test_a_missing_dataset_is_found(clean):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        del file["labels"]
    renew_manifest(clean.path)
    with pytest.raises(InputError, match="its datasets cannot be read: no labels"):
        store.ImageSet(clean.path).load("val")


def test_expectations_name_reason_key_and_both_values(clean):
    clean.expect({"kind": "clean"}, "never seen")
    with pytest.raises(
        InputError,
        match="made from another model: kind: expected adversarial, found clean; `dvc repro`",
    ):
        clean.expect({"kind": "adversarial"}, "made from another model")


def part(block, start, stop):
    return store.Block(**{name: array[start:stop] for name, array in block.datasets.items()})


def test_an_interrupted_set_resumes_unless_it_changed(tmp_path, block, clean):
    path, bounds = tmp_path / "set", store.shard_bounds(40, 16)
    attributes = {"kind": "clean", "class_names": '["a", "b", "c"]'}
    with pytest.raises(KeyboardInterrupt), store.Writer(path, attributes, bounds=bounds) as writer:
        writer.write(0, part(block, 0, 16))
        writer.write(16, part(block, 16, 32))
        raise KeyboardInterrupt
    assert not path.exists()
    assert store.Writer(path, {**attributes, "seed": 1}, bounds=bounds).missing() == bounds
    other = store.shard_bounds(40, 8)
    assert store.Writer(path, attributes, bounds=other).missing() == other
    damaged = next(tmp_path.glob(".set.*.part")) / "00001.h5"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert len(manifest.read(damaged.parent).shards) == 2
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
    assert {path.name for path in clean.path.iterdir()} == {
        "00000.h5",
        "README.md",
        "manifest.json",
    }


@pytest.mark.parametrize("name", ["sub/thesis.txt", "00000.h5"])
def test_a_set_never_replaces_other_files(tmp_path, name):
    own = tmp_path / "own" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(InputError, match="own: expected an image set or nothing, found other fi"):
        write_set(tmp_path / "own", make_block(8))
    with pytest.raises(InputError, match="expected an image set or nothing"):
        write_set(own, make_block(8))
    assert own.read_text() == "mine"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]


@pytest.mark.parametrize(
    "options", [{"chunks": (8, 3, 16, 16)}, {"compression": "gzip", "chunks": (8, 3, 16, 16)}]
)
def test_shards_with_chunks_or_compression_are_refused(clean, block, options):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        del file["images"]
        file.create_dataset("images", data=block.images[:16], **options)
    renew_manifest(clean.path)
    message = (
        r"00000.h5: images: expected one contiguous array, found chunks of \(8, 3, 16, 16\); run "
        r"`python -m pipeline discard"
    )
    with pytest.raises(InputError, match=message):
        store.ImageSet(clean.path).map_images()


def test_a_shard_of_a_compact_layout_is_refused(clean, block):
    with h5py.File(clean.path / "00000.h5", "r+") as file:
        del file["split"]
        plan, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((16,))
        plan.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, b"split", h5py.h5t.NATIVE_UINT8, space, plan)
    renew_manifest(clean.path)
    with pytest.raises(
        InputError, match="split: expected one contiguous array, found another layout"
    ):
        store.ImageSet(clean.path).load("val")


def test_sets_are_read_by_columns_and_by_mapping_their_images(clean, block):
    assert (clean.column("labels") == block.labels).all()
    assert (clean.training_column("ids") == block.ids[block.split == 0]).all()
    assert clean.image_shape == (3, 16, 16)
    shards = clean.map_images()
    assert list(map(len, shards)) == [16, 16, 8]
    assert (np.concatenate(shards) == block.images).all()


def test_verifying_finds_a_changed_image(tmp_path):
    images = write_set(tmp_path / "set", make_block(600), shard_rows=600)
    images.verify()
    with h5py.File(images.path / "00000.h5", "r+") as file:
        file["images"][599, 0, 0, 0] ^= 1
    with pytest.raises(InputError, match=r"00000.h5: its content does not match its SHA-256"):
        images.verify()


def test_shards_written_behind_are_those_written_at_once(tmp_path, block, clean):
    bounds = store.shard_bounds(40, 16)
    with store.Writer(
        tmp_path / "set", {"kind": "clean", "class_names": '["a", "b", "c"]'}, bounds=bounds
    ) as writer:
        for start, stop in bounds:
            writer.write_behind(start, part(block, start, stop))
    assert store.ImageSet(tmp_path / "set").digest == clean.digest


def test_optional_datasets_and_joining(tmp_path, block):
    attacked = store.Block(
        **block.datasets, eps=np.full(40, 0.1, np.float32), fooled=np.arange(40) % 2 == 0
    )
    read = write_set(tmp_path / "adv", attacked).load("val")
    assert read.fooled.dtype == bool
    assert (read.fooled == attacked.fooled[attacked.split == 1]).all()
    assert store.join([read, block]).eps is None
    assert len(store.join([read, block])) == 50


def test_evaluations_judge_test_images_where_there_are_any(clean, block, tmp_path):
    assert clean.judged == "val"
    split = block.split.copy()
    split[:5] = store.SPLITS["test"]
    tested = write_set(tmp_path / "tested", store.Block(**{**block.datasets, "split": split}))
    assert tested.judged == "test"
    assert (tested.load("test").ids == block.ids[:5]).all()
    assert len(tested.load("train")) + len(tested.load("val")) == 35


def test_a_set_has_a_card_whose_lines_read_it(tmp_path, block):
    folder = tmp_path / "set"
    more = {"eps": np.full(40, 0.1, np.float32), "fooled": np.arange(40) < 10}
    whole = store.Block(**block.datasets, **more)
    write_set(folder, whole, kind="adversarial", attack="pgd", note="a|b `c`")
    card = (folder / "README.md").read_text()
    assert "# Adversarial images: pgd\n" in card
    assert "40 images of 16 x 16 pixels in 3 classes: 30 train, 10 val." in card
    assert "25.0% of them fool the model" in card
    assert "| note | `a\\|b 'c'` |\n" in card
    lines = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    found = {}
    exec(lines, found)
    assert len(found["val"]) == 10


def test_the_lines_of_the_documentation_give_a_dataset(tmp_path, block, monkeypatch):
    text = (ROOT / "docs/data.md").read_text().split("## Reading a stored set")[1]
    lines = text.split("```python\n")[1].split("```")[0]
    assert sum(bool(line) for line in lines.splitlines()) == 5
    write_set(tmp_path / "data/adversarial/clean/pgd", block)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(lines, found)
    image, label = found["images"][0]
    assert (image.shape, float(image.max()) <= 1) == ((3, 16, 16), True)
    assert label == block.labels[block.split == 1][0]
