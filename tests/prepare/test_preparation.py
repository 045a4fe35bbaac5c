import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML

from pipeline import document
from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.prepare import __main__ as prepare
from pipeline.prepare import preparation, sources
from pipeline.prepare.params import Data, Store
from tests.conftest import ROOT

DATA = document.load(ROOT / "params.yaml").data.model_copy(update={"n_test": 0})
STORED = Store(shard_rows=64)


def source_of(labels, class_names, **more):
    ids = np.arange(len(labels))
    return sources.Source(
        labels=labels, ids=ids, read=lambda rows: rows, class_names=class_names, sha256="",
        image_size=8, **more,
    )  # fmt: skip


@given(
    st.lists(st.integers(10, 60), min_size=2, max_size=5), st.integers(1, 100), st.integers(0, 5)
)
def test_the_split_is_exact_and_stratified(counts, n_val, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    assume(len(counts) * 2 <= n_val <= len(labels) // 2)
    data = DATA.model_copy(update={"n_val": n_val, "seed": seed})
    try:
        split = preparation.split_rows(labels, data)
    except InputError as error:
        assert "too few" in str(error)
        return
    assert split.sum() == n_val
    share = np.bincount(labels[split == 1], minlength=len(counts)) - np.array(counts) * n_val / len(
        labels
    )
    assert np.abs(share).max() <= 1
    assert (preparation.split_rows(labels, data) == split).all()


def test_test_images_are_held_out_first_and_in_every_class_its_share():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [150, 50]))
    data = DATA.model_copy(update={"n_val": 40, "n_test": 60})
    split = preparation.split_rows(labels, data)
    assert np.bincount(split).tolist() == [100, 40, 60]
    assert np.bincount(labels[split == 2]).tolist() == [45, 15]
    more = preparation.split_rows(labels, data.model_copy(update={"n_val": 80}))
    assert ((more == 2) == (split == 2)).all(), "n_val does not move the test images"
    with pytest.raises(InputError, match="data.n_test: expected from 2 to 198 of 200 images"):
        preparation.split_rows(labels, data.model_copy(update={"n_test": 199}))


def test_a_source_with_its_own_split_gives_the_test_from_its_training_part():
    labels, own = np.arange(200) % 2, (np.arange(200) >= 150).astype(np.uint8)
    source = source_of(labels, ("a", "b"), split=own)
    data = DATA.model_copy(update={"n_val": "from_source", "n_test": 30})
    split = preparation.split_of(source, np.arange(200), data)
    assert (split[150:] == 1).all()
    assert np.bincount(split[:150]).tolist() == [120, 0, 30]
    source = dataclasses.replace(source, split=2 * own)
    data = DATA.model_copy(update={"n_val": 30, "n_test": "from_source"})
    split = preparation.split_of(source, np.arange(200), data)
    assert (split[150:] == 2).all()
    assert np.bincount(split[:150]).tolist() == [120, 30]
    with pytest.raises(InputError, match="data.n_test: expected every class in each part, foun"):
        preparation.split_of(dataclasses.replace(source, split=labels * 2), np.arange(200), data)


def test_a_subset_keeps_the_order_and_the_shares():
    labels = np.repeat([0, 1, 2], [100, 200, 300])
    rows = preparation.choose_rows(labels, DATA.model_copy(update={"n_images": 60}))
    assert (np.diff(rows) > 0).all()
    assert np.bincount(labels[rows]).tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("change", "counts", "message"),
    [
        (
            {"n_images": 100},
            [30, 30],
            "data.n_images: expected at most 60, all that the source holds, found 100",
        ),
        ({"n_val": 59}, [30, 30], "data.n_val: expected from 2 to 58 of 60 images, found 59"),
        (
            {"n_images": 3, "n_val": 1},
            [30, 30],
            "data.n_images: expected at least 4 images, two for each class, found 3",
        ),
        ({"n_val": 5}, [59, 1], "class 1 with 1 image, too few for 5 of 60; add images to it or"),
        ({"n_val": 3}, [57, 3], "class 1 with 3 images, too few for 3 of 60; raise data.n_val or"),
    ],
)
def test_impossible_choices_are_refused(change, counts, message):
    labels = np.repeat(np.arange(len(counts)), counts)
    data = DATA.model_copy(update=change)
    with pytest.raises(InputError, match=message):
        preparation.split_rows(labels[preparation.choose_rows(labels, data)], data)


def test_a_class_that_is_too_small_is_called_by_its_name():
    labels = np.repeat([0, 1], [59, 1])
    source = source_of(labels, ("cat", "dog"))
    with pytest.raises(InputError, match="data.n_val: .* found class dog with 1 image, too few"):
        preparation.split_of(source, np.arange(60), DATA.model_copy(update={"n_val": 5}))
    with pytest.raises(InputError, match="data.n_images: .* found class dog with 1 image, too few"):
        preparation.choose_rows(
            labels, DATA.model_copy(update={"n_images": 20}), source.class_names
        )


def test_prepared_digits_are_the_source_row_by_row(tmp_path):
    data = DATA.model_copy(update={"n_images": 200, "n_val": 40})
    source = sources.open_source(data)
    clean = preparation.prepare(source, data, STORED, tmp_path / "clean")
    blocks = list(clean.blocks())
    assert [len(block) for block in blocks] == [64, 64, 64, 8]
    for block in blocks:
        assert (block.images == source.read(block.ids)).all(), "digits have their rows as ids"
        assert (block.labels == source.labels[block.ids]).all()
    assert len(clean.load("val")) == 40
    assert not set(clean.load("train").ids) & set(clean.load("val").ids)


def test_what_was_done_to_images_is_said_and_recorded(tmp_path, monkeypatch, capsys, raw_params):
    for name in ("10", "9"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (16, 16), 200 + number).save(
                tmp_path / "images" / name / f"{number}.png"
            )
    (tmp_path / "images" / "9" / "a.heic").write_bytes(b"x")
    raw_params["data"].update(
        source="image_folder", path="images", image_size=16, n_val=2, n_test=0
    )
    YAML().dump(raw_params, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", "--out", "clean"])
    prepare.prepare()
    assert capsys.readouterr().out.splitlines() == [
        "images: 1 files left out (.heic)",
        "images: 8 images made RGB from grey",
        "images: 4 images that are copies of others, so that training and validation images may "
        "be the same",
        "images: 4 images that are in several classes",
        "images: classes 0 = 9, 1 = 10",
    ]
    clean = store.ImageSet(tmp_path / "clean")
    assert json.loads(clean.attributes["source.notes"])["images made RGB from grey"] == 8
    assert clean.class_names == ("9", "10")
    assert clean.load("train").images[0, 0, 0, 0] in (200, 201, 202, 203)


def test_the_name_of_a_skipped_file_may_hold_any_letter(tmp_path):
    # macOS puts a narrow space that does not break before AM and PM.
    skipped = ["cat/Screenshot 9.00.00\u202fAM.png"]
    source = dataclasses.replace(
        source_of(np.repeat([0, 1], 4), ("cat", "dog")), skipped=skipped,
        read=lambda rows: np.zeros((len(rows), 3, 8, 8), np.uint8),
    )  # fmt: skip
    data = DATA.model_copy(update={"n_images": None, "n_val": 2})
    clean = preparation.prepare(source, data, STORED, tmp_path / "clean")
    assert json.loads(str(clean.attributes["source.skipped"])) == skipped


def test_unfinished_work_on_other_arrays_is_not_resumed(tmp_path):
    path, out = tmp_path / "x.npz", tmp_path / "clean"
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    np.savez(path, images=images, inverse=255 - images, y=np.arange(200) % 2)
    changed = {
        "source": "npz",
        "path": str(path),
        "image_size": None,
        "n_images": None,
        "n_val": 40,
    }

    def of(images):
        named = {**DATA.model_dump(), **changed, "arrays": {"images": images, "labels": "y"}}
        data = Data.model_validate(named)
        return sources.open_source(data), data

    source, data = of("images")

    def read(rows):
        if rows[0] >= 128:
            raise KeyboardInterrupt
        return source.read(rows)

    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(dataclasses.replace(source, read=read), data, STORED, out)
    found = preparation.prepare(*of("inverse"), STORED, out)
    made = np.concatenate([block.images for block in found.blocks()])
    assert (made.transpose(0, 2, 3, 1) == 255 - images).all()


def test_a_resumed_set_needs_space_for_its_missing_images_alone(tmp_path, monkeypatch):
    data = DATA.model_copy(update={"n_images": 200, "n_val": 40})
    source, space = sources.open_source(data), SimpleNamespace(free=2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: space)

    def read(rows):
        if len(rows) < 64:
            raise KeyboardInterrupt
        return source.read(rows)

    with pytest.raises(KeyboardInterrupt):
        preparation.prepare(dataclasses.replace(source, read=read), data, STORED, tmp_path / "a")
    space.free = 8 * (3 * source.image_size**2 + store.ROW_BYTES)
    with pytest.raises(InputError, match="b: storing 200 images needs 1 MiB, .* has 0 MiB left"):
        preparation.prepare(source, data, STORED, tmp_path / "b")
    assert len(preparation.prepare(source, data, STORED, tmp_path / "a")) == 200


def test_many_class_names_are_shortened():
    source = sources.Source(
        image_size=8,
        labels=np.arange(300),
        ids=np.arange(300),
        read=lambda rows: rows,
        class_names=tuple(f"n{n}" * 90 for n in range(300)),
        sha256="",
    )
    (line,) = preparation.told(source)
    assert line.startswith("classes 0 = n0n0")
    assert ", …, 299 = n299" in line
    assert len(line) < 1000


def test_control_characters_of_names_are_told_as_escapes():
    notes = {"folders beside train left out (a\x1b[31m\nb)": 1}
    source = source_of(np.arange(2), ("0", "1"), notes=notes)
    assert list(preparation.told(source)) == [r"1 folders beside train left out (a\x1b[31m\nb)"]


def test_digits_have_nothing_to_tell():
    assert list(preparation.told(sources.open_source(DATA))) == []
