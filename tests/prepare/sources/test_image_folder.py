import shutil
import tarfile
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare import preparation, sources
from pipeline.prepare.sources import folder_layout, image_files, image_folder


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


SPLITS = [
    ["train/cat", "train/dog", "val/cat", "val/dog", "test/cat"],
    ["Training/cat", "Training/dog", "Validation/cat", "Validation/dog"],
    ["TRAIN/cat", "TRAIN/dog", "eval/cat", "eval/dog"],
    ["train2017/cat", "train2017/dog", "val2017/cat", "val2017/dog"],
    ["training_set/cat", "training_set/dog", "test-set/cat", "test-set/dog"],
    ["trainset/cat", "trainset/dog", "testset/cat", "testset/dog", "extra"],
    ["train/cat/images", "train/dog/images", "val/cat", "val/dog", "test/images"],
]


@pytest.mark.parametrize("names", SPLITS)
def test_the_training_part_alone_is_read(data, folder, names):
    made(folder, *names)
    source = sources.open_source(data)
    assert (source.class_names, source.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert source.split is None
    others = {Path(name).parts[0] for name in names[2:]}
    assert {words: n for words, n in source.notes.items() if "beside" in words} == {
        f"folders beside {Path(names[0]).parts[0]} left out ({' and '.join(sorted(others))})": len(
            others
        )
    }


@pytest.mark.parametrize("names", SPLITS)
def test_the_folder_s_own_split_is_used_on_request(data, folder, names):
    made(folder, *names)
    own = data.model_copy(update={"n_val": "from_source", "n_test": 0})
    source = sources.open_source(own)
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.split.tolist() == [0, 0, 1, 1]
    assert source.read(np.arange(4))[:, 1, 0, 0].tolist() == [0, 1, 2, 3], "val, not test"
    assert preparation.split_of(source, np.arange(4), own).tolist() == [0, 0, 1, 1]


def test_the_folder_s_own_test_part_is_used_on_request(data, folder):
    made(folder, "train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog")
    both = data.model_copy(update={"n_val": "from_source", "n_test": "from_source"})
    source = sources.open_source(both)
    assert source.labels.tolist() == [0, 1] * 3
    assert source.split.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.read(np.arange(6))[:, 1, 0, 0].tolist() == list(range(6))
    assert preparation.split_of(source, np.arange(6), both).tolist() == [0, 0, 1, 1, 2, 2]
    assert not source.notes.keys() & {"folders beside train left out (test)"}
    test = sources.open_source(data.model_copy(update={"n_test": "from_source"}))
    assert test.split.tolist() == [0, 0, 2, 2]
    assert test.notes["folders beside train left out (val)"] == 1
    shutil.rmtree(folder / "val")
    with pytest.raises(InputError, match="data.n_val: expected folders train and validation for"):
        sources.open_source(both)


def test_tiny_imagenet_is_read_with_its_own_split(data, folder):
    made(folder, "train/n1/images", "train/n2/images", "val/images", "test/images")
    Image.new("RGB", (8, 8), (250, 9, 0)).save(folder / "val" / "images" / "b.png")
    (folder / "val" / "val_annotations.txt").write_text("b.png\tn1\t0\t0\t5\t5\na.png\tn2\t0\n")
    (folder / "wnids.txt").write_text("n1\nn2\n")
    (folder / "train" / "n1" / "n1_boxes.txt").write_text("a.png\t0\t0")
    source = sources.open_source(data.model_copy(update={"n_val": "from_source"}))
    assert source.class_names == ("n1", "n2")
    assert source.labels.tolist() == [0, 1, 0, 1]
    assert source.read(np.arange(4))[:, 1, 0, 0].tolist() == [0, 1, 9, 2]
    (folder / "val" / "val_annotations.txt").write_text("c.png\tn1\n")
    with pytest.raises(InputError, match=r"val_annotations.txt:1: expected the name of an image"):
        sources.open_source(data.model_copy(update={"n_val": "from_source"}))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["cat", "dog"],
            "n_val: expected folders train and validation or test for from_source, found cat and d",
        ),
        (
            ["train/a", "train/b", "val/a", "val/c"],
            "expected the classes of the training part, fou",
        ),
        (["train/a", "train/b", "val/a"], "no image to validate of class b; set data.n_val to a"),
        (["train/a", "train/b", "val"], "val: expected a folder with a subfolder of images for e"),
    ],
)
def test_splits_that_are_not_whole_are_refused(data, folder, names, message):
    made(folder, *names)
    own = data.model_copy(update={"n_val": "from_source"})
    with pytest.raises(InputError, match=message):
        preparation.split_of(sources.open_source(own), np.arange(3), own)


@pytest.mark.parametrize(
    ("names", "found", "goal"),
    [
        (["dev/cat", "dev/dog", "testing/cat"], "dev and testing", "dev"),
        (["ds/cat", "ds/dog"], "ds alone", "ds"),
        (["ds/ds/cat", "ds/ds/dog"], "ds alone", "ds/ds"),
        (["ds/train/cat", "ds/train/dog", "ds/valid/cat"], "ds alone", "ds"),
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
            r"train: expected a folder .*, found no subfolder but 1 image; move each image into a "
            r"folder named after its class",
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


@pytest.mark.parametrize(
    ("names", "found", "remedy"),
    [
        (
            [
                *(f"seg_{part}/seg_{part}/{name}" for part in ("train", "test") for name in "ab"),
                "seg_pred",
            ],
            "seg_test and seg_train",
            "rename seg_test/seg_test to test and seg_train/seg_train to train",
        ),
        (
            ["flowers_train/a", "flowers_train/b", "flowers_test/a"],
            "flowers_test and flowers_train",
            "rename flowers_test to test and flowers_train to train",
        ),
        (
            ["Train_Cropped/a", "Test_Cropped/a"],
            "Test_Cropped and Train_Cropped",
            "rename Test_Cropped to test and Train_Cropped to train",
        ),
        (
            ["imagenet-train/a", "imagenet-train/b", "imagenet-val/a"],
            "imagenet-train and imagenet-val",
            "rename imagenet-train to train and imagenet-val to val",
        ),
        (
            ["train_another/a", "validation_another/a", "test/a"],
            "train_another and validation_another",
            "rename train_another to train and validation_another to val",
        ),
    ],
)
@pytest.mark.parametrize("n_test", [0, "from_source"])
def test_parts_by_longer_names_are_no_classes(data, folder, names, found, remedy, n_test):
    made(folder, *names)
    with pytest.raises(
        InputError, match=f"found {found}, which look like the parts of a data set; {remedy}$"
    ):
        sources.open_source(data.model_copy(update={"n_test": n_test}))


def test_parts_by_longer_names_in_a_class_are_refused(data, folder):
    made(folder, "cat/my_train", "cat/my_test", "dog")
    with pytest.raises(InputError, match="cat: .* one class, found my_test and my_train; keep"):
        sources.open_source(data)


@pytest.mark.parametrize(
    "names",
    [
        ["bullet_train", "test_tube"],
        ["class1_train", "class2_test"],
        ["steam_train", "toy_train"],
        ["train_test_a", "train_val_a"],
    ],
)
def test_classes_with_the_word_of_a_part_are_classes(data, folder, names):
    made(folder, *names)
    assert list(sources.open_source(data).class_names) == names


def test_exact_names_go_before_longer_ones(data, folder):
    made(folder, "train/a", "train/b", "test/a", "seg_train/a", "seg_test/a")
    assert sources.open_source(data).class_names == ("a", "b")


def linked(folder, elsewhere):
    """Replace files by links to another place, as DVC's and other caches do, and a class too."""
    elsewhere.mkdir()
    for number, path in enumerate(sorted(folder.glob("cat/*"))):
        path.rename(elsewhere / f"{number}")
        path.symlink_to(elsewhere / f"{number}")
    (folder / "dog").rename(elsewhere / "dog")
    (folder / "dog").symlink_to(elsewhere / "dog")


def test_links_are_followed_on_request(data, folder, tmp_path_factory):
    before = sources.open_source(data)
    linked(folder, tmp_path_factory.mktemp("cache") / "files")
    with pytest.raises(InputError, match="cat/a.png: refused: a link out of .*follow_links: true"):
        sources.open_source(data)
    after = sources.open_source(data.model_copy(update={"follow_links": True}))
    assert after.sha256 == before.sha256
    assert (after.read(np.arange(6)) == before.read(np.arange(6))).all()


def test_links_in_a_circle_are_refused(data, folder):
    (folder / "cat" / "again").symlink_to(folder / "cat")
    with pytest.raises(InputError, match="more than 20 folders inside each other"):
        sources.open_source(data.model_copy(update={"follow_links": True}))


def test_broken_images_are_listed_or_left_out(data, folder):
    for number in range(12):
        (folder / "cat" / f"z{number:02}.png").write_bytes(b"x")
    whole = (folder / "dog" / "a.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError,
        match=r"12 images cannot be read: cat/z00.png, .*cat/z09.png and 2 more \(.*z00.png: not "
        r"an "
        r"image .*\); repair, convert or remove them \(or set data.skip_broken: true\)$",
    ):
        sources.open_source(data)
    source = sources.open_source(data.model_copy(update={"skip_broken": True}))
    assert source.skipped == (*(f"cat/z{number:02}.png" for number in range(12)), "dog/cut.png")
    assert source.notes["images that cannot be read left out"] == 13
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.read(np.arange(6)).shape == (6, 3, 16, 16)


def test_images_of_every_fault_are_skipped(data, folder, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_BYTES", 10_000)
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(folder / "cat" / "x1.png")
    levels = Image.fromarray(np.full((8, 8), 4095, np.uint16))
    levels.save(folder / "cat" / "x2.tif", tiffinfo={281: 1023})
    (folder / "cat" / "x3.png").symlink_to(folder / "gone.png")
    Image.new("RGB", (99, 99)).save(folder / "cat" / "x4.bmp")
    (folder / "cat" / "x6.png").symlink_to(folder / "cat" / "x6.png")
    Image.new("F", (8, 8), np.inf).save(folder / "cat" / "x5.tif")
    deep = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    deep.save(folder / "cat" / "z.png")
    source = sources.open_source(data.model_copy(update={"skip_broken": True}))
    names = ("x1.png", "x2.tif", "x3.png", "x4.bmp", "x5.tif", "x6.png")
    assert source.skipped == tuple(f"cat/{name}" for name in names)
    assert source.read(np.arange(7)).shape == (7, 3, 16, 16)


@pytest.mark.parametrize("skip", [False, True])
def test_the_remedy_of_a_switch_is_named_while_it_is_off(data, folder, skip):
    source = sources.open_source(data.model_copy(update={"skip_broken": skip}))
    (folder / "cat" / "a.png").write_bytes(b"x")
    end = "convert or remove it" + ("" if skip else r" \(or set data.skip_broken: true\)")
    with pytest.raises(InputError, match=f"a.png: not an image .*{end}$"):
        source.read(np.arange(6))


def test_pixels_of_other_images_are_not_kept_for_an_error(data, folder, monkeypatch):
    for number in range(20):
        shutil.copy(folder / "cat" / "a.png", folder / "cat" / f"a{number}.png")
    source = sources.open_source(data)
    (folder / "cat" / "b.jpg").write_bytes(b"x")
    decode, alive, counts = image_files.decode, weakref.WeakSet(), []

    class Pixels(np.ndarray):
        __hash__ = object.__hash__

    def counting(*args):
        image = decode(*args).view(Pixels)
        alive.add(image)
        counts.append(len(alive))
        return image

    monkeypatch.setattr(image_files, "decode", counting)
    monkeypatch.setattr(image_folder, "ThreadPoolExecutor", partial(ThreadPoolExecutor, 1))
    with pytest.raises(InputError, match="b.jpg: not an image"):
        source.read(np.flatnonzero([path.name == "b.jpg" for path in sorted(folder.glob("cat/*"))]))
    assert max(counts) <= 2


def test_names_that_are_not_utf8_can_be_stored(data, folder):
    made(folder, "train/cat", "train/dog", "val/cat", "caf\udce9")
    (folder / "train" / "cat" / "z\udce9.png").write_bytes(b"x")
    source = sources.open_source(data.model_copy(update={"skip_broken": True}))
    assert source.skipped == ("train/cat/z\\udce9.png",)
    assert source.notes["folders beside train left out (caf\\udce9 and val)"] == 2


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_a_class_of_broken_images_alone_is_refused(data, folder, prefix):
    made(folder, *(f"{prefix}{name}" for name in ("cat", "dog", "eel")), "val/dog")
    (folder / prefix / "dog" / "a.png").write_bytes(b"x")
    shutil.rmtree(folder / "val") if not prefix else None
    skipping = data.model_copy(update={"skip_broken": True})
    if prefix:
        skipping = skipping.model_copy(update={"n_val": "from_source"})
    with pytest.raises(InputError, match=": dog: expected images that can be read in the subfold"):
        sources.open_source(skipping)


def test_damaged_pixels_are_all_listed(data, folder):
    for name in ("cat", "dog"):
        whole = (folder / name / "a.png").read_bytes()
        (folder / name / "cut.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match=r"2 images cannot be read: cat/cut.png, dog/cut.png \("):
        sources.open_source(data)


def test_too_many_broken_images_are_not_skipped(data, folder, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_SKIPPED", 10)
    (folder / "cat" / "broken.png").write_bytes(b"x")
    (folder / "dog" / "broken.png").write_bytes(b"x")
    with pytest.raises(InputError, match="2 images cannot be read: .*too many to skip"):
        sources.open_source(data.model_copy(update={"skip_broken": True}))


def test_the_limit_of_skipped_names_is_that_of_the_stored_ones(data, folder, monkeypatch):
    monkeypatch.setattr(image_folder, "MAX_SKIPPED", len("cat/broken.png"))
    (folder / "cat" / "broken.png").write_bytes(b"x")
    source = sources.open_source(data.model_copy(update={"skip_broken": True}))
    assert source.skipped == ("cat/broken.png",)


@pytest.mark.parametrize("ending", ["zip", "tar", "gztar", "bztar", "xztar"])
@pytest.mark.parametrize("inside", ["", "ds", "ds/ds"])
def test_an_archive_is_read_like_its_folder(data, folder, tmp_path_factory, ending, inside):
    before = sources.open_source(data)
    other = tmp_path_factory.mktemp("archive")
    shutil.copytree(folder, other / "all" / inside, dirs_exist_ok=True)
    (other / "all" / "__MACOSX").mkdir()
    archive = shutil.make_archive(str(other / "x"), ending, other / "all")
    after = sources.open_source(data.model_copy(update={"path": archive}))
    assert (after.read(np.arange(6)) == before.read(np.arange(6))).all()
    assert (after.class_names, after.sha256) == (before.class_names, before.sha256)


def test_errors_about_an_archive_name_no_folder_that_goes_away(data, folder, tmp_path_factory):
    def archived():
        path = tmp_path_factory.mktemp("archive") / "x+1"
        return data.model_copy(update={"path": shutil.make_archive(str(path), "zip", folder)})

    def refused(message):
        with pytest.raises(InputError) as caught:
            source = sources.open_source(of_archive)
            source.read(np.arange(len(source.labels)))
        assert message in str(caught.value)
        assert ".part" not in str(caught.value)

    (folder / "cat" / "broken.png").write_bytes(b"x")
    of_archive = archived()
    refused("x+1.zip/cat/broken.png")
    for name in ("cat", "dog"):
        shutil.copytree(folder / name, folder / "test" / name)
        shutil.move(folder / name, folder / "val" / name)
    of_archive = archived()
    refused("x+1.zip/val; for that, unpack the archive first")


def test_an_archive_may_be_larger_than_the_memory(data, folder, tmp_path_factory, monkeypatch):
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("archive") / "x"), "zip", folder)
    monkeypatch.setattr(limits, "available_memory", lambda: 10)
    sources.open_source(data.model_copy(update={"path": archive}))


def test_an_archive_may_be_read_twice_at_once(data, folder, tmp_path_factory):
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("archive") / "x"), "zip", folder)
    first, second = (sources.open_source(data.model_copy(update={"path": archive})) for _ in "12")
    assert (first.read(np.arange(6)) == second.read(np.arange(6))).all()


def test_an_archive_s_own_split_is_used(data, folder, tmp_path_factory):
    made(folder, *SPLITS[0])
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("archive") / "x"), "zip", folder)
    source = sources.open_source(data.model_copy(update={"path": archive, "n_val": "from_source"}))
    assert source.split.tolist() == [0, 0, 1, 1]


def test_a_single_folder_of_an_archive_may_have_files_beside_it(data, folder, tmp_path_factory):
    before = sources.open_source(data)
    other = tmp_path_factory.mktemp("archive")
    shutil.copytree(folder, other / "all" / "ds")
    (other / "all" / "README.txt").write_text("no image")
    archive = shutil.make_archive(str(other / "x"), "zip", other / "all")
    assert sources.open_source(data.model_copy(update={"path": archive})).sha256 == before.sha256
    shutil.copy(folder / "cat" / "a.png", other / "all")
    archive = shutil.make_archive(str(other / "x"), "zip", other / "all")
    with pytest.raises(InputError, match="found ds alone"):
        sources.open_source(data.model_copy(update={"path": archive}))


def test_backslashes_in_the_names_of_a_zip_are_slashes(data, folder, tmp_path_factory):
    before = sources.open_source(data)
    path = tmp_path_factory.mktemp("archive") / "x.zip"
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ds\\cat\\", b"")
        for file in files:
            archive.writestr("ds\\" + "\\".join(file.relative_to(folder).parts), file.read_bytes())
    after = sources.open_source(data.model_copy(update={"path": str(path)}))
    assert (after.class_names, after.sha256) == (before.class_names, before.sha256)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ds/cat/a.png", b"x")
    with pytest.raises(InputError, match="x.zip: refused: it holds 'ds/cat/a.png' twice; unpack"):
        sources.open_source(data.model_copy(update={"path": str(path)}))


def zip_of(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"x")


def tar_of(path, name, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.zip", lambda path: zip_of(path, "../a.png"), "'../a.png', which leads out of its fold"),
        ("x.zip", lambda path: zip_of(path, "/a.png"), "'/a.png', which leads out of its folder"),
        (
            "x.zip",
            lambda path: zip_of(path, "..\\a.png"),
            "'../a.png', which leads out of its folder",
        ),
        ("x.tar", lambda path: tar_of(path, "a/../../a.png"), "which leads out of its folder"),
        (
            "x.tar",
            lambda path: tar_of(path, "a", tarfile.SYMTYPE),
            "cannot be unpacked .*unpack it",
        ),
        (
            "x.tar",
            lambda path: tar_of(path, "a", tarfile.CHRTYPE),
            "cannot be unpacked .*unpack it",
        ),
        ("x.tgz", lambda path: path.write_bytes(b"x" * 600), "cannot be unpacked .*; unpack it"),
        ("x.zip", lambda path: path.write_bytes(b"PK" * 600), "cannot be unpacked .*; unpack it"),
        ("x.zip", lambda _: None, "no such file; set data.path to the archive of your images"),
    ],
)
def test_archives_that_are_not_plain_are_refused(data, tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message):
        sources.open_source(data.model_copy(update={"path": str(tmp_path / name)}))
    assert not (tmp_path.parent / "a.png").exists()


def test_a_tar_is_refused_by_a_python_without_filters(data, folder, tmp_path_factory, monkeypatch):
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("archive") / "x"), "tar", folder)
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(
        InputError,
        match=r"x.tar: refused: .* Python 3.11.4 or newer, .*; unpack it .* to the folder$",
    ):
        sources.open_source(data.model_copy(update={"path": archive}))


def test_an_archive_of_more_than_the_disk_is_refused(data, folder, tmp_path_factory, monkeypatch):
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("archive") / "x"), "tar", folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(InputError, match="its contents needs 1 MiB, and the disk has 0 MiB left"):
        sources.open_source(data.model_copy(update={"path": archive}))


def test_image_size_null_keeps_one_size(data, folder):
    own = data.model_copy(update={"image_size": None})
    with pytest.raises(
        InputError, match="expected squares of one size, .* found 5 x 5 and 30 x 40"
    ):
        sources.open_source(own)
    made(folder, "cat", "dog")
    assert sources.open_source(own).read(np.arange(2)).shape == (2, 3, 8, 8)


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
