"""Every reader of outside files, with small real files of its kind to change."""

import io
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors import torch as safetensors

from pipeline import document, networks
from pipeline.base import store, unfinished
from pipeline.base.store import manifest
from pipeline.networks import pretrained, resnet
from pipeline.prepare import sources
from pipeline.prepare.params import Arrays
from tests import samples

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2])
SIZE = 8


@dataclass(frozen=True)
class Reader:
    """A reader of files, and real examples for it.

    `name` is the name of the file that is read, and `kind` its structure. `read` reads all of a
    file.
    """

    name: str
    kind: str
    examples: Callable[[], list[bytes]]
    read: Callable[[Path], object]


@cache
def data():
    """The params of the data, which take longer to read than a small file of images."""
    return document.load(ROOT / "params.yaml").data


def read_source(source, path):
    settings = data().model_copy(
        update={
            "source": source,
            "path": str(path),
            "image_size": SIZE,
            "arrays": Arrays(images="x/images", labels="y") if source == "hdf5" else None,
        }
    )
    opened = sources.open_source(settings)
    images = opened.read(np.arange(len(opened.labels)))
    assert images.shape == (len(opened.labels), 3, SIZE, SIZE)
    assert images.dtype == np.uint8


def read_npy(path):
    """The changed images lie beside labels that are whole."""
    labels = path.parent / "labels.npy"
    np.save(labels, LABELS)
    try:
        read_source("npy", path.parent)
    finally:
        labels.unlink()


def read_archive(path):
    try:
        read_source("image_folder", path)
    finally:
        unfinished.clear(path.parent.glob(".*.part"))


def read_image_folder(path):
    """The changed image lies in a class of its own, beside one that is whole."""
    read_source("image_folder", path.parent.parent)


def tiny(*_):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 3)
    )


def read_checkpoint(path):
    """Read with a network of three layers in place of a ResNet.

    No file of 45 MB need then be changed 10,000 times.
    """
    stock, resnet.stock = resnet.stock, tiny
    try:
        networks.load(path, architecture="resnet18", class_names=("a", "b", "c")).network()
    finally:
        resnet.stock = stock


def read_weights(path):
    """Read the preferred state_dict, and the network of three layers in any of them."""
    networks.read_state_dict(path, "model.weights")
    stock, resnet.stock = resnet.stock, tiny
    try:
        pretrained.read_network(
            path,
            "resnet18",
            "model.weights",
            keep_head=False,
            ignore_normalisation=False,
            remedy="write another",
        )
    finally:
        resnet.stock = stock


def presets():
    return [(ROOT / "params.yaml").read_bytes()]


def npz_files():
    return [
        written(lambda file: np.savez(file, images=PIXELS, labels=LABELS)),
        written(
            lambda file: np.savez_compressed(
                file,
                images=PIXELS.transpose(0, 2, 3, 1),
                labels=LABELS,
                class_names=np.array(list("abc")),
            )
        ),
        written(
            lambda file: np.savez(
                file,
                train_images=PIXELS[:, 0] / 255,
                train_labels=LABELS[:, None],
                val_images=PIXELS[:, 0] / 255,
                val_labels=LABELS[:, None],
            )
        ),
        written(lambda file: np.savez(file, X=PIXELS, y=np.array(list("abcabc")))),
        written(lambda file: np.savez(file, arr_0=PIXELS[:, 0] > 9, arr_1=np.eye(3)[LABELS])),
    ]


def npy_files():
    arrays = (PIXELS, PIXELS.transpose(0, 2, 3, 1) / 255, PIXELS[:, 0].astype("i4"))
    return [
        written(lambda file, array=array: np.lib.format.write_array(file, array))
        for array in arrays
    ]


def archives():
    """Archives of two classes, one of them with its own split."""
    found = []
    for parts in (("",), ("train", "val")):
        with tempfile.TemporaryDirectory() as folder:
            for part in parts:
                for number, name in enumerate("ab"):
                    inside = Path(folder) / "ds" / part / name
                    inside.mkdir(parents=True)
                    Image.fromarray(PIXELS[number].transpose(1, 2, 0)).save(inside / "x.png")
            for kind in ("zip", "tar", "gztar"):
                path = shutil.make_archive(f"{folder}/x", kind, folder, "ds")
                found.append(Path(path).read_bytes())
    return found


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def train_files():
    kind, main = samples.TaskDataset, sys.modules["__main__"]
    before, kind.__module__ = kind.__module__, "__main__"
    main.TaskDataset = kind
    dataset = kind(transform=torch.nn.Linear(2, 2))
    dataset.ids, dataset.labels = list(range(6)), LABELS.tolist()
    dataset.imgs = [Image.fromarray(image.transpose(1, 2, 0)) for image in PIXELS[:5]] + [
        Image.fromarray(PIXELS[5, 0])
    ]
    tensors = {"images": list(torch.from_numpy(PIXELS)), "labels": list(torch.from_numpy(LABELS))}
    several = {**vars(dataset), "imgs": [*dataset.imgs[:5], Image.new("RGBA", (9, 7), "red")]}
    try:
        return [
            written(lambda file: torch.save(dataset, file)),
            written(lambda file: pickle.dump(dataset, file, protocol=4)),
            written(lambda file: torch.save(dataset, file, _use_new_zipfile_serialization=False)),
            written(lambda file: torch.save(tensors, file)),
            written(lambda file: pickle.dump(tensors, file, protocol=5)),
            written(lambda file: pickle.dump((PIXELS, LABELS), file, protocol=5)),
            written(lambda file: torch.save((PIXELS, list(LABELS)), file)),
            written(lambda file: torch.save(several, file)),
        ]
    finally:
        kind.__module__ = before
        del main.TaskDataset


def hdf5_file(libver, *, text=False, **options):
    def write(file):
        with h5py.File(file, "w", libver=libver) as opened:
            opened.create_dataset("x/images", data=PIXELS, **options)
            labels = ["a", "b", "c", "a", "b", "c"] if text else LABELS
            opened.create_dataset("y", data=labels, **({"chunks": (2,)} if options else {}))
            opened["x"].attrs["text"], opened["y"].attrs["number"] = "a text", 7
            opened["soft"] = h5py.SoftLink("/y")
            opened["x/rows"] = np.arange(6)
            opened["x/rows"].make_scale("rows")
            opened["x/images"].dims[0].attach_scale(opened["x/rows"])

    return written(write)


def hdf5_files():
    packed = {"chunks": (2, 3, 8, 8), "compression": "gzip", "shuffle": True}
    return [
        hdf5_file("earliest"),
        hdf5_file("earliest", **packed),
        hdf5_file("v110", **packed, fletcher32=True),
        hdf5_file("latest"),
        hdf5_file("latest", text=True),
        hdf5_file("earliest", chunks=(2, 3, 8, 8), compression="lzf", shuffle=True),
        hdf5_file("v110", chunks=(4, 3, 8, 8), shuffle=True, fletcher32=True),
    ]


def manifests():
    import tempfile

    block = store.Block(
        images=PIXELS, labels=LABELS, ids=np.arange(6), split=np.array([0, 1] * 3, dtype=np.uint8)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        with store.Writer(
            path, {"kind": "clean", "class_names": '["a", "b", "c"]'}, bounds=[(0, 6)]
        ) as writer:
            writer.write(0, block)
        return [(path / manifest.NAME).read_bytes()]


def images():
    picture = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    formats = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "AVIF")
    modes = [
        written(lambda file, mode=mode: picture.convert(mode).save(file, "PNG"))
        for mode in ("P", "L", "1", "RGBA", "LA")
    ]
    tiffs = [
        written(lambda file, kind=kind: picture.save(file, "TIFF", compression=kind))
        for kind in ("tiff_lzw", "jpeg", "packbits")
    ]
    return [
        *(written(lambda file, kind=kind: picture.save(file, kind)) for kind in formats),
        *modes,
        *tiffs,
        *deep_images(picture),
    ]


def deep_images(picture):
    """Images with more than 8 bits, with a transparent level, and with EXIF.

    Each of these is looked at before the pixels.
    """
    exif, ramp = Image.Exif(), np.linspace(0, 1, 192).reshape(12, 16)
    exif[0x0112] = 6
    levels, floats = (
        Image.fromarray((ramp * 65535).astype("u2")),
        Image.fromarray(ramp.astype("f4")),
    )
    deep = [
        written(lambda file, kind=kind: levels.save(file, kind)) for kind in ("PNG", "TIFF", "PPM")
    ]
    turned = [
        written(lambda file, kind=kind: picture.save(file, kind, exif=exif))
        for kind in ("JPEG", "PNG", "TIFF")
    ]
    keyed = written(lambda file: picture.convert("L").save(file, "PNG", transparency=9))
    stated = written(lambda file: levels.save(file, "TIFF", tiffinfo={281: 65535}))
    return [*deep, *turned, keyed, stated, written(lambda file: floats.save(file, "TIFF"))]


def checkpoint_files():
    torch.manual_seed(0)
    content = networks.Checkpoint(
        architecture="resnet18",
        class_names=["a", "b", "c"],
        state_dict=tiny().state_dict(),
        provenance={"seed": 1},
    )
    with tempfile.TemporaryDirectory() as folder:
        content.save(Path(folder) / "model.safetensors")
        return [(Path(folder) / "model.safetensors").read_bytes()]


def weight_files():
    torch.manual_seed(0)
    state_dict = tiny().state_dict()
    floats = {name: tensor for name, tensor in state_dict.items() if tensor.ndim}
    wrapped = {f"module.{name}": tensor.double() for name, tensor in floats.items()}
    norm = {"norm.mean": torch.zeros(3), "norm.std": torch.full((3,), 0.5)}
    trained = {"state_dict": {**wrapped, **norm}, "ema": state_dict, "epoch": 3, "optimizer": {}}
    older = {"_use_new_zipfile_serialization": False}
    half = {name: part.bfloat16() for name, part in floats.items()}
    return [
        written(lambda file: torch.save(state_dict, file)),
        written(lambda file: torch.save(state_dict, file, **older)),
        written(lambda file: torch.save(trained, file)),
        written(lambda file: torch.save(trained, file, pickle_protocol=4, **older)),
        written(lambda file: torch.save(half, file)),
        written(lambda file: pickle.dump(wrapped, file, protocol=5)),
        safetensors.save(state_dict),
    ]


READERS = {
    "params": Reader("params.yaml", "yaml", presets, document.load),
    "npz": Reader("x.npz", "npz", npz_files, lambda path: read_source("npz", path)),
    "task_dataset": Reader(
        "Train.pt", "torch", train_files, lambda path: read_source("task_dataset", path)
    ),
    "npy": Reader("images.npy", "npy", npy_files, read_npy),
    "archive": Reader("x.zip", "zip", archives, read_archive),
    "hdf5": Reader("x.h5", "hdf5", hdf5_files, lambda path: read_source("hdf5", path)),
    "manifest": Reader("manifest.json", "yaml", manifests, lambda path: manifest.read(path.parent)),
    "image_folder": Reader("a.png", "image", images, read_image_folder),
    "checkpoint": Reader("model.safetensors", "safetensors", checkpoint_files, read_checkpoint),
    "weights": Reader("own.pth", "torch", weight_files, read_weights),
}
