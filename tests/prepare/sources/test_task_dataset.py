import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from pipeline.base.errors import InputError
from pipeline.base.untrusted import torch_files
from pipeline.prepare import sources
from tests import samples

GENERATOR = np.random.default_rng(0)
COLOUR = GENERATOR.integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
GREY = GENERATOR.integers(0, 256, (2, 32, 32), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2]


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


class Nested:
    def __reduce__(self):
        return getattr, (Harmful(), "x")


class WithState:
    def __setstate__(self, state):
        Path("harmed").touch()

    def __getstate__(self):
        return {"a": 1}


@pytest.fixture
def save(tmp_path, monkeypatch):
    """Writes a real Train.pt: nine images, seven RGB and two grey."""
    monkeypatch.chdir(tmp_path)
    samples.under_main(monkeypatch, samples.TaskDataset, WithState)
    return lambda transform=None, **changes: samples.save_task_dataset(
        tmp_path / "Train.pt", [*COLOUR, *GREY], LABELS, transform, **changes
    )


def read(settings, path):
    return sources.open_source(
        settings.data.model_copy(update={"source": "task_dataset", "path": str(path)})
    )


TRANSFORM = transforms.Compose(
    [
        transforms.Resize((32, 32)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


@pytest.mark.parametrize(
    "transform", [None, transforms.ToTensor(), TRANSFORM], ids=["none", "one", "many"]
)
def test_images_are_read_exactly_with_and_without_a_transform(settings, save, transform):
    source = read(settings, save(transform))
    images = source.read(np.arange(9))
    assert (images[:7] == COLOUR.transpose(0, 3, 1, 2)).all()
    assert (images[7:] == GREY[:, None]).all()
    assert source.ids.tolist() == list(range(500, 509))
    assert source.labels.tolist() == LABELS
    assert (source.read(np.array([8, 2]))[1] == images[2]).all()


def test_images_that_were_opened_from_files_are_read_too(settings, save, tmp_path):
    Image.fromarray(COLOUR[0]).save(tmp_path / "a.png")
    opened = Image.open(tmp_path / "a.png")
    opened.load()
    images = [
        opened,
        *(Image.fromarray(image) for image in COLOUR[1:]),
        *(Image.fromarray(image) for image in GREY),
    ]
    assert (
        read(settings, save(imgs=images)).read(np.arange(1)) == COLOUR[:1].transpose(0, 3, 1, 2)
    ).all()


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (Harmful(), r"(posix|os).system"),
        (Nested(), "(getattr|system)"),
        (eval, "__builtin__.eval"),
    ],
    ids=["os.system", "nested reduce", "builtin"],
)
def test_a_pickle_with_foreign_names_is_refused_and_never_run(
    settings, save, tmp_path, transform, name
):
    with pytest.raises(
        InputError,
        match=rf"refused: it asks for \S*{name}\S*, which .* does not need; nothing of it was run",
    ):
        read(settings, save(transform))
    assert not (tmp_path / "harmed").exists()


def test_a_transform_with_a_state_of_its_own_is_never_set(settings, save, tmp_path):
    assert len(read(settings, save(WithState())).labels) == 9
    assert not (tmp_path / "harmed").exists()


def test_a_harmful_reduce_inside_an_image_list_is_refused_too(settings, save, tmp_path):
    with pytest.raises(InputError, match="refused: it asks for"):
        read(settings, save(imgs=[Harmful()] * 9))
    assert not (tmp_path / "harmed").exists()


def test_grey_images_and_unused_information_are_said(settings, save):
    images = [Image.fromarray(image) for image in (*COLOUR, *GREY)]
    images[0].info["exif"], images[1].info["transparency"] = b"Exif", (0, 0, 0)
    assert read(settings, save(imgs=images)).notes == {
        "images made RGB from grey": 2,
        "images with EXIF, which is ignored: they are taken as stored": 1,
        "images with a transparent colour, which is ignored: they are taken as stored": 1,
    }


def rewritten(path, pickled, compression=zipfile.ZIP_STORED):
    """The same file around another pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    return path


def test_truncated_and_foreign_files(settings, save, tmp_path):
    path = save()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-10], pickle.dumps([1, 2])[:-1]):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"Train.pt: cannot be read as a torch.save file; is it whole\?"
        ):
            read(settings, path)
    for content in (b"", b"hello"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"expected a file that torch.save or pickle.dump"):
            read(settings, path)
    path.write_bytes(pickle.dumps([1, 2]) + b"more")
    with pytest.raises(InputError, match=r"refused: expected one pickle, found more after it"):
        read(settings, path)
    with pytest.raises(InputError, match="cannot be read as a torch.save file"):
        read(settings, rewritten(save(), b"\x80\x02]q\x00(K"))
    with pytest.raises(InputError, match=r"no such file; set data.path"):
        read(settings, tmp_path / "none.pt")


def test_a_compressed_archive_is_refused_unread(settings, save):
    body = b"\x80\x02](" + b"K\x00" * 1000 + b"e."
    with pytest.raises(
        InputError,
        match="refused: 'Train/data.pkl' is encrypted or compressed in a way that is not read here",
    ):
        read(settings, rewritten(save(), body, zipfile.ZIP_DEFLATED))


def test_a_pickle_of_too_many_steps_is_refused(settings, save, monkeypatch):
    monkeypatch.setattr(torch_files.load, "__defaults__", (1000,))
    with pytest.raises(InputError, match="expected a pickle of at most 1,000 steps"):
        read(settings, rewritten(save(), b"\x80\x02](" + b"K\x00" * 2000 + b"e."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": LABELS[:8]},
            r"labels: expected one for each of 9 images, found shape \(8,\)",
        ),
        ({"imgs": "none"}, "images: expected a list, an array or a tensor, found str"),
        ({"imgs": []}, "images: expected a list, an array or a tensor, found an empty list"),
        ({"imgs": torch.zeros(0, 3, 32, 32)}, r"images: expected several, found the shape \(0, 3"),
        ({"labels": 7}, "labels: expected a list, an array or a tensor, found int"),
        ({"labels": [0.5, *LABELS[1:]]}, "labels: expected whole numbers, found 0.5 in row 0"),
        (
            {"labels": [2**70, *LABELS[1:]]},
            r"labels\[0\]: expected a number or a short text, found",
        ),
        (
            {"labels": ["a" * 201] * 9},
            r"labels\[0\]: expected a number or a short text, found 'a",
        ),
        ({"labels": [None] * 9}, r"labels\[0\]: expected a number or a short text, found None"),
        (
            {"labels": ["a", *LABELS[1:]]},
            "labels: expected values of one type and shape",
        ),
        ({"labels": [-5, *LABELS[1:]]}, "labels: expected 0 or more, found -5"),
        ({"ids": [1] * 9}, "ids: expected every id once, found 8 repetitions"),
        (
            {"imgs": [Image.new("P", (32, 32))] * 9},
            r"imgs\[0\]: expected mode RGB, L, .*, found 'P'; save it with .convert\('RGB'\)",
        ),
        (
            {"imgs": [Image.new("I;16", (32, 32))] * 9},
            "found 'I;16'; scale it to 0 to 255 and save it as mode L",
        ),
        (
            {"imgs": [Image.new("LA", (32, 32))] * 9},
            r"imgs\[0\]: expected a picture, found every pixel transparent; save it without",
        ),
        (
            {"ids": list("abcdefghi")},
            r"one whole number for each of 9 images, found <U1 \(9,\)",
        ),
        (
            {"ids": [1, 2]},
            r"one whole number for each of 9 images, found int64 \(2,\)",
        ),
        ({"imgs": [torch.zeros(3, 32, 32)] * 9}, "images: expected levels from 0 to 255, found n"),
        ({"imgs": [7] * 9}, r"imgs\[0\]: expected a PIL image, an array or a tensor, found int"),
        (
            {"imgs": [Image.new("L", (32, 32)), *[7] * 8]},
            r"imgs\[1\]: expected a PIL image like the first, found int",
        ),
        (
            {"imgs": [torch.zeros(3, 8, 8), *[torch.zeros(3, 9, 8)] * 8]},
            r"imgs\[1\]: expected the shape and type of imgs\[0\], \(3, 8, 8\) in float32, found",
        ),
    ],
)
def test_contents_of_another_kind_are_refused(settings, save, changes, message):
    with pytest.raises(InputError, match=message):
        read(settings, save(**changes))


def test_an_image_whose_bytes_are_too_few_is_refused(settings, save):
    path = save()
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive:
        pickled = next(
            archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl")
        )
    buffer.write(pickled.replace(b"RGB", b"XYZ"))
    with pytest.raises(InputError, match="expected mode RGB, L, RGBA, LA, 1, found 'XYZ'"):
        read(settings, rewritten(path, buffer.getvalue()))
