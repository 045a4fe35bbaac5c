"""Every form of Train.pt that is read: classes, containers, images, labels, files, transforms."""

import enum
import functools
import io
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.base.errors import InputError
from pipeline.base.untrusted import torch_arrays
from pipeline.prepare.sources import task_dataset
from tests import samples

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def pictures():
    return [Image.fromarray(image) for image in PIXELS]


def dataset(**changes):
    made = samples.TaskDataset()
    made.ids, made.imgs, made.labels = list(range(6)), pictures(), list(LABELS)
    made.__dict__.update(changes)
    return made


@pytest.fixture
def found(tmp_path):
    """Writes a file, and returns what is found in it: pixels, labels, ids and notes."""

    def write_and_read(content, image_size=None, write=torch.save, **options):
        path = tmp_path / "Train.pt"
        with path.open("wb") as file:
            write(content, file, **options)
        read = task_dataset.found(path, image_size)
        images = read.images.read(np.arange(read.images.shape[0]))
        assert images.shape == read.images.shape
        assert images.dtype == read.images.dtype
        return images, read.labels, read.ids, dict(read.notes)

    return write_and_read


def expect_all(result, ids=True):
    images, labels, found_ids, notes = result
    assert (images == PIXELS).all()
    assert labels.tolist() == LABELS
    assert (found_ids.tolist() == list(range(6))) if ids else found_ids is None
    assert notes == {}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_every_protocol_is_read(found, write, protocol):
    name = "protocol" if write is pickle.dump else "pickle_protocol"
    expect_all(found(dataset(), write=write, **{name: protocol}))
    numbers = {"images": torch.from_numpy(PIXELS), "labels": np.array(LABELS)}
    expect_all(found(numbers, write=write, **{name: protocol}), ids=False)


@pytest.mark.parametrize("protocol", [2, 4])
def test_files_of_before_torch_1_6_are_read(found, protocol):
    older = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
    expect_all(found(dataset(), **older))
    expect_all(found((torch.from_numpy(PIXELS), torch.tensor(LABELS)), **older), ids=False)


class Renamed(samples.TaskDataset):
    """A subclass by another name."""


class Slotted:
    __slots__ = ("ids", "imgs", "labels")


def test_any_class_with_the_three_attributes_is_read(found):
    renamed = Renamed()
    renamed.__dict__.update(dataset().__dict__)
    expect_all(found(renamed))
    slotted = Slotted()
    slotted.ids, slotted.imgs, slotted.labels = list(range(6)), pictures(), LABELS
    expect_all(found(slotted))


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        tuple(LABELS),
        [np.int64(label) for label in LABELS],
        [torch.tensor(label) for label in LABELS],
        [np.uint8(0), torch.tensor(1), 2, 0, 1, 2],
        np.array(LABELS, dtype=np.int32),
        np.array(LABELS, dtype=">i2"),
        np.array(LABELS, dtype=object),
        torch.tensor(LABELS),
        torch.tensor(LABELS, dtype=torch.bfloat16),
    ],
    ids=[
        *("list", "tuple", "numpy scalars", "tensors", "mixed", "int32", "big endian", "objects"),
        *("tensor", "bfloat16"),
    ],
)
def test_labels_of_any_kind_are_read(found, labels):
    expect_all(found(dataset(labels=labels)))


def test_text_and_one_hot_labels_are_left_as_they_are(found):
    names = [*"abcabc"]
    assert found(dataset(labels=names))[1].tolist() == names
    assert found(dataset(labels=np.array(names)))[1].tolist() == names
    one_hot = np.eye(3)[LABELS]
    assert (found(dataset(labels=torch.from_numpy(one_hot)))[1] == one_hot).all()
    assert (found(dataset(labels=list(torch.from_numpy(one_hot))))[1] == one_hot).all()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (PIXELS, PIXELS),
        (torch.from_numpy(PIXELS), PIXELS),
        (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), PIXELS.transpose(0, 3, 1, 2)),
        (list(PIXELS), PIXELS),
        (list(torch.from_numpy(PIXELS)), PIXELS),
        ([np.asfortranarray(image) for image in PIXELS], PIXELS),
        (torch.from_numpy(PIXELS / 255), PIXELS / 255),
        (torch.from_numpy(PIXELS).bfloat16(), PIXELS.astype(np.float32)),
        (torch.from_numpy(PIXELS[..., 0]), PIXELS[..., 0]),
        (nn.Parameter(torch.from_numpy(PIXELS / 255)), PIXELS / 255),
    ],
    ids=[
        *("array", "tensor", "permuted", "arrays", "tensors", "fortran", "double", "bfloat16"),
        *("grey", "parameter"),
    ],
)
def test_arrays_and_tensors_are_read_as_stored(found, images, expected):
    stored, labels, _, notes = found(dataset(imgs=images))
    if expected.dtype == np.float32:
        expected = torch.from_numpy(expected).bfloat16().float().numpy()
    assert stored.dtype == expected.dtype
    assert (stored == expected).all()
    assert labels.tolist() == LABELS
    assert notes == {}


@pytest.mark.parametrize(
    "keys",
    ["images labels", "IMGS Labels", "data targets", "data target", "X y", "image label"],
)
def test_dicts_and_objects_with_other_names_are_read(found, keys):
    images, labels = keys.split()
    content = {images: torch.from_numpy(PIXELS), labels: torch.tensor(LABELS), "classes": "abc"}
    expect_all(found(content), ids=False)
    expect_all(found({**content, "IDs": list(range(6))}))
    other = samples.TaskDataset()
    other.__dict__ = content
    expect_all(found(other), ids=False)


def test_tuples_are_read_and_other_containers_named(found):
    expect_all(found((torch.from_numpy(PIXELS), torch.tensor(LABELS))), ids=False)
    expect_all(found((pictures(), LABELS)), ids=False)
    wanted = r"Train.pt: expected a TaskDataset, a dict of images and labels, or a tuple \(images"
    for content, kind in (
        ([PIXELS, LABELS], "list"),
        ({"a": PIXELS, "b": LABELS}, r"dict with the keys \['a', 'b'\]"),
        (torch.from_numpy(PIXELS), "one tensor or array"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear without imgs and labels"),
    ):
        with pytest.raises(InputError, match=f"{wanted}, labels\\), found {kind}"):
            found(content)


def test_grey_and_colour_of_one_size_keep_their_size(found):
    images = [*pictures()[:4], *(image.convert("L") for image in pictures()[4:])]
    stored, _, _, notes = found(dataset(imgs=images), image_size=32)
    assert (stored[:4] == PIXELS[:4]).all()
    assert (stored[4] == np.asarray(images[4])[:, :, None]).all()
    assert notes == {"images made RGB from grey": 2}


def test_images_of_several_sizes_become_squares(found):
    images = [*pictures()[:5], Image.fromarray(RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8))]
    stored, _, _, notes = found(dataset(imgs=images), image_size=8)
    assert stored.shape == (6, 8, 8, 3)
    assert (stored[:5] == PIXELS[:5]).all()
    assert notes == {
        "images cut to the largest square in the middle": 1,
        "images resized to 8 x 8": 1,
    }
    with pytest.raises(InputError, match="images: expected one size, found several; resize them"):
        found(dataset(imgs=images))


def test_transparent_images_are_put_on_white(found):
    half = Image.fromarray(PIXELS[0])
    half.putalpha(Image.fromarray(np.repeat([[0] * 4 + [255] * 4], 8, axis=0).astype(np.uint8)))
    bits = np.eye(8, dtype=bool)
    images = [half, half.convert("LA"), Image.fromarray(bits), *pictures()[3:]]
    stored, _, _, notes = found(dataset(imgs=images), image_size=32)
    assert (stored[:2, :, :4] == 255).all()
    assert (stored[0, :, 4:] == PIXELS[0, :, 4:]).all()
    assert (stored[2] == np.where(bits, 255, 0)[:, :, None]).all()
    assert (stored[3:] == PIXELS[3:]).all()
    assert notes == {
        "images made RGB from black and white": 1,
        "images made RGB from grey": 1,
        "images with transparency put on white": 2,
    }


class Kind(enum.Enum):
    TRAIN = 1


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.options = nn.Parameter(torch.ones(2)), {Kind.TRAIN: {(1, (2, 3))}}

    def method(self, image):
        return image


def by_name(image, factor):
    return image


def test_images_of_bfloat16_are_not_converted_before_they_are_read(tmp_path, monkeypatch):
    torch.save(dataset(imgs=torch.from_numpy(PIXELS).bfloat16()), tmp_path / "Train.pt")
    converted, plain = [], torch_arrays.Array.plain

    def counting(array):
        converted.append(len(array.values))
        return plain(array)

    monkeypatch.setattr(torch_arrays.Array, "plain", counting)
    images = task_dataset.found(tmp_path / "Train.pt", None).images
    assert (converted, images.dtype) == ([], np.float32)
    assert images.read(np.arange(2)).dtype == np.float32
    assert converted == [2]


@pytest.mark.parametrize(
    "transform",
    [by_name, functools.partial(by_name, factor=2), Own(), Own().method, Kind.TRAIN, Own],
    ids=["function", "partial", "module", "method", "enum", "class"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_transforms_of_any_kind_are_left_alone(found, transform, protocol):
    expect_all(found(dataset(transform=transform), pickle_protocol=protocol))
    older = {"_use_new_zipfile_serialization": False, "pickle_protocol": protocol}
    expect_all(found(dataset(transform=transform), **older))


def dilled(content):
    """The pickle of an object whose class dill has written into the file."""
    body = pickle.dumps(content.__dict__, 2)[2:-1]
    kind = (
        b"cdill._dill\n_create_type\n(cdill._dill\n_load_type\nX\x04\0\0\0type\x85R"
        b"X\x0b\0\0\0TaskDatasetcbuiltins\nobject\n\x85}tR"
    )
    return b"\x80\x02" + kind + b")\x81" + body + b"b."


def test_a_class_inside_the_file_is_read_too(found):
    expect_all(found(dilled(dataset()), write=lambda content, file: file.write(content)))


class Marks:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Leaves:
    def __reduce__(self):
        return leave, ("harmed",)


def leave(path):
    open(path, "w").close()  # noqa: PTH123


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("write", [torch.save, pickle.dump])
def test_nothing_in_a_file_is_run(found, tmp_path, monkeypatch, write, protocol):
    monkeypatch.chdir(tmp_path)
    option = {"protocol" if write is pickle.dump else "pickle_protocol": protocol}
    expect_all(found(dataset(transform=Leaves()), write=write, **option))
    assert not (tmp_path / "harmed").exists()
    for call, name in (
        ((os.system, ("touch harmed",)), "posix.system"),
        ((exec, ("open('harmed', 'w')",)), "(builtins|__builtin__).exec"),
        ((__import__, ("os",)), "(builtins|__builtin__).__import__"),
        ((io.open, ("harmed", "w")), r"_?io.open"),
        ((sys.exit, (1,)), "sys.exit"),
    ):
        with pytest.raises(
            InputError, match=f"refused: it asks for {name}, which .* not run|{name}"
        ):
            found(dataset(transform=Marks(*call)), write=write, **option)
    assert not (tmp_path / "harmed").exists()


def test_a_name_that_reaches_the_standard_library_is_refused(found):
    hostile = b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93."
    with pytest.raises(InputError, match="refused: it asks for torch.serialization.os.system"):
        found(hostile, write=lambda content, file: file.write(content))
