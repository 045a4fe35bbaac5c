import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.prepare import sources
from pipeline.prepare.sources import folder_layout, image_files


@pytest.fixture
def folder(tmp_path):
    """Two classes; sizes, modes and formats as they come."""
    for name, colour in (("cat", 250), ("dog", 10)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 30), (colour, 0, 0)).save(tmp_path / name / "a.png")
        Image.new("L", (16, 64), colour).save(tmp_path / name / "b.jpg")
        Image.new("RGBA", (5, 5), (colour, colour, 0, 255)).save(
            tmp_path / name / "c.webp", lossless=True
        )
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.fixture
def data(settings, folder):
    return settings.data.model_copy(
        update={"source": "image_folder", "path": str(folder), "image_size": 16}
    )


def test_images_of_any_size_and_mode_become_one_shape(data):
    source = sources.open_source(data)
    images = source.read(np.arange(6))
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.shape == (6, 3, 16, 16)
    assert images[0, :, 5, 5].tolist() == [250, 0, 0]
    assert np.abs(images[4].astype(int) - 10).max() <= 2
    assert images[5, :, 0, 0].tolist() == [10, 10, 0]


def test_the_hash_covers_names_and_contents(data, folder):
    before = sources.open_source(data).sha256
    (folder / "cat" / "a.png").rename(folder / "cat" / "z.png")
    assert sources.open_source(data).sha256 != before


def test_a_decompression_bomb_is_refused_before_it_is_decoded(data, folder, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    with pytest.raises(
        InputError, match=r"cat/a.png: expected at most 1,000 pixels, found 40 x 30"
    ):
        sources.open_source(data).read(np.arange(1))


def test_folders_without_classes_or_images(data, tmp_path, folder):
    with pytest.raises(InputError, match="a subfolder of images for each class"):
        sources.open_source(data.model_copy(update={"path": str(tmp_path / "nowhere")}))
    (folder / "empty").mkdir()
    with pytest.raises(
        InputError,
        match=(
            r"empty: expected images in .*, found none \(in all folders: 1 files left out "
            r"\(.txt\)\)"
        ),
    ):
        sources.open_source(data)


def test_notes_count_what_was_done_and_left_out(data):
    assert sources.open_source(data).notes == {
        "files left out (.txt)": 1,
        "images cut to the largest square in the middle": 4,
        "images made RGB from grey": 2,
        "images resized to 16 x 16": 4,
    }


@pytest.mark.parametrize(
    "name",
    [
        *(
            ".ipynb_checkpoints/a.png",
            "__MACOSX/a.png",
            "@eaDir/a.png",
            ".git/a.png",
            ".hidden/a.png",
            "lost+found/a.png",
            "__pycache__/a.png",
        ),
        *(
            "cat/.ipynb_checkpoints/a.png",
            "cat/@eaDir/a.png",
            "cat/._a.png",
            "cat/.DS_Store",
            "cat/Thumbs.db",
        ),
        *("__pycache__/a.png", "dog/desktop.ini"),
        *(
            "$RECYCLE.BIN/a.png",
            "System Volume Information/a.png",
            ".DS_Store",
            "Thumbs.db",
            ".gitignore",
            "#recycle/a.png",
            "__pycache__/a.png",
        ),
    ],
)
def test_what_systems_leave_is_skipped_and_said(data, folder, name):
    before = sources.open_source(data)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((folder / "cat" / "a.png").read_bytes())
    after = sources.open_source(data)
    assert (after.class_names, after.labels.tolist(), after.sha256) == (
        before.class_names,
        before.labels.tolist(),
        before.sha256,
    )
    assert after.notes == {**before.notes, "system and hidden files or folders skipped": 1}


def test_what_is_not_read_is_counted_by_ending(data, folder):
    for name in ("a.HEIC", "b.heic", "c.jp2", "none", "old.jpg~"):
        (folder / "cat" / name).write_bytes(b"x")
    (folder / "preview.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    (folder / "labels.csv").write_text("a")
    notes = sources.open_source(data).notes
    endings = {"(.heic)": 2, "(.jp2)": 1, "(no ending)": 1, "(.jpg~)": 1, "(.csv)": 1, "(.txt)": 1}
    assert {words: n for words, n in notes.items() if words.startswith("files")} == {
        f"files left out {e}": n for e, n in endings.items()
    }
    assert notes["images beside the folders of the classes left out"] == 1


def test_many_endings_are_counted_together(data, folder):
    for number in range(30):
        (folder / "cat" / f"a.{number}").write_bytes(b"x")
        (folder / "cat" / f"b.\x1b{number}").write_bytes(b"x")
    notes = {
        words: count
        for words, count in sources.open_source(data).notes.items()
        if words.startswith("files")
    }
    assert len(notes) <= folder_layout.MAX_ENDINGS + 1
    assert sum(notes.values()) == 61
    assert all(words.isprintable() for words in notes)


def test_copies_are_counted(data, folder):
    image = (folder / "cat" / "a.png").read_bytes()
    (folder / "cat" / "copy.png").write_bytes(image)
    (folder / "dog" / "copy.png").write_bytes(image)
    notes = sources.open_source(data).notes
    assert (
        notes[
            "images that are copies of others, so that training and validation images may be the "
            "same"
        ]
        == 2
    )
    assert notes["images that are in several classes"] == 1


def made(folder, *names):
    """Folders with an image in each; those that were there are gone."""
    shutil.rmtree(folder)
    for number, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (250, number, 0)).save(folder / name / "a.png")


@pytest.mark.parametrize(
    ("names", "found", "goal"),
    [
        (
            ["train/cat", "train/dog", "val/cat", "test/cat"],
            "test and train and val, the parts of a data set",
            "train",
        ),
        (
            ["Training/cat", "Training/dog", "Validation/cat"],
            "Training and Validation, the parts of a data set",
            "Training",
        ),
        (["TRAIN/cat", "TRAIN/dog", "eval/cat"], "TRAIN and eval", "TRAIN"),
        (["train2017/cat", "train2017/dog", "val2017/cat"], "train2017 and val2017", "train2017"),
        (
            ["training_set/cat", "training_set/dog", "test-set/cat"],
            "test-set and training_set",
            "training_set",
        ),
        (
            ["trainset/cat", "trainset/dog", "testset/cat", "extra"],
            "testset and trainset",
            "trainset",
        ),
        (["dev/cat", "dev/dog", "testing/cat"], "dev and testing", "dev"),
        (["ds/cat", "ds/dog"], "ds alone", "ds"),
        (["ds/ds/cat", "ds/ds/dog"], "ds alone", "ds/ds"),
        (["ds/train/cat", "ds/train/dog", "ds/valid/cat"], "ds alone", "ds/train"),
        (
            ["train/n1/images", "train/n2/images", "val/images", "test/images"],
            "test and train and val",
            "train",
        ),
        (["images/cat", "images/dog", "annotations"], "annotations and images", "images"),
    ],
)
def test_other_layouts_are_refused_with_the_path_to_set(data, folder, names, found, goal):
    made(folder, *names)
    with pytest.raises(
        InputError, match=rf"for each class, found {found}.*; set data.path: {folder}/{goal}$"
    ):
        sources.open_source(data)
    assert (
        len(sources.open_source(data.model_copy(update={"path": str(folder / goal)})).class_names)
        == 2
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["cat"],
            r"found cat alone; make a folder for each class and move its images there \(below "
            r".*/cat\)",
        ),
        (
            ["train", "test"],
            r"found test and train, the parts of a data set; make a folder for each class and "
            r"move its images there",
        ),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            r"cat: expected the images of one class, found test and train; keep",
        ),
        (["1", "01"], "expected different numbers, found classes 01 and 1; rename or join them"),
    ],
)
def test_folders_that_are_no_classes_are_refused(data, folder, names, message):
    made(folder, *names)
    with pytest.raises(InputError, match=message):
        sources.open_source(data)


def test_images_with_a_table_of_labels_are_refused(data, folder):
    (folder / "cat" / "labels.csv").write_text("a.png,0")
    with pytest.raises(
        InputError,
        match=(
            r"no subfolder but 3 images and labels.csv; move each image into a folder named after "
            r"its class"
        ),
    ):
        sources.open_source(data.model_copy(update={"path": str(folder / "cat")}))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0", "1", "10", "11", "2", "9"], ["0", "1", "2", "9", "10", "11"]),
        (["001", "010", "002"], ["001", "002", "010"]),
        (["-1", "1", "0"], ["-1", "0", "1"]),
        (["10", "9", "a"], ["10", "9", "a"]),
        (["train", "bus", "car"], ["bus", "car", "train"]),
        (["b", "B", "a"], ["B", "a", "b"]),
    ],
)
def test_classes_are_ordered_by_number_or_name(data, folder, names, expected):
    made(folder, *names)
    source = sources.open_source(data)
    assert list(source.class_names) == expected
    assert [int(source.read(np.array([row]))[0, 1, 0, 0]) for row in range(len(names))] == [
        names.index(name) for name in expected
    ]
