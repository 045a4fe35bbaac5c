"""One shard of an image set: an HDF5 file with the set's attributes and its own rows."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import InputError, discarding
from pipeline.base.store.blocks import DTYPES, OPTIONAL, Block
from pipeline.base.untrusted import hdf5, limits

SCHEMA = 2
SLICE_BYTES = 12 * 2**20  # are hashed at a time
ROW_BYTES = 32  # of a row besides its image, at most
PER_SHARD = ("rows.start", "rows.stop", "fingerprint", "content_sha256")

Value = str | int | float | bool
Attributes = dict[str, Value]
Run = tuple[int, int]


def shard_bounds(n_rows: int, shard_rows: int) -> list[Run]:
    """The first and past-the-last row of every shard."""
    return [(start, min(start + shard_rows, n_rows)) for start in range(0, n_rows, shard_rows)]


def shard_name(index: int) -> str:
    """The file name of a set's shard."""
    return f"{index:05d}.h5"


def write(final: Path, attributes: Attributes, fingerprint: str, start: int, block: Block) -> None:
    """Write the shard that begins at row `start`; it appears under its name only when it is complete and on the disk."""
    unfinished = final.with_suffix(".part")
    own: Attributes = {"rows.start": start, "rows.stop": start + len(block), "fingerprint": fingerprint}
    with hdf5.writing(unfinished, libver=("v110", "v110")) as file, ThreadPoolExecutor(1) as pool:
        content = pool.submit(content_sha256, own, block.datasets)  # hashing and writing take about as long as each other
        for name, array in block.datasets.items():
            file.create_dataset(name, data=array)
        for key, value in {**attributes, **own, "content_sha256": content.result()}.items():
            file.attrs[key] = value
    with unfinished.open("rb+") as raw:
        files.sync(raw)
    unfinished.replace(final)


def read_attributes(path: Path) -> Attributes:
    """A shard's attributes, checked to be this schema's and to match their fingerprint."""
    remedy = discarding(path.parent)
    hdf5.check_shard(path, list(DTYPES), remedy)
    unreadable = f"not a readable HDF5 file, perhaps cut short; {remedy}"
    with hdf5.reading(path, unreadable) as file:
        try:
            attributes: Attributes = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {unreadable}") from error
    if problem := _wrong_attribute(attributes):
        raise InputError(f"{path}: {problem}; {remedy}")
    return attributes


def _wrong_attribute(attributes: Attributes) -> str | None:
    """What keeps a file's attributes from being those of a shard."""
    if attributes.get("schema") != SCHEMA or not set(PER_SHARD) <= attributes.keys():
        return f"not an image shard of schema {SCHEMA}"
    for key, value in attributes.items():
        if not isinstance(value, Value) or not str(value).isprintable():
            return f"attribute {key}: expected a plain value, found {type(value).__name__} {str(value)[:50]!a}"
    if fingerprint_of({key: value for key, value in attributes.items() if key not in PER_SHARD}) != attributes["fingerprint"]:
        return "its attributes do not match their fingerprint, so it was changed after it was made"
    for key in ("rows", "rows.start", "rows.stop"):
        if type(attributes.get(key)) is not int:
            return f"attribute {key}: expected a whole number, found {attributes.get(key)!r}"
    return None


def read(path: Path) -> Block:
    """A shard's rows, checked against its SHA-256."""
    attributes = read_attributes(path)
    with reading(path) as file:
        limits.expect_fits(sum(dataset.nbytes for dataset in _present(file).values()), path.stat().st_size)
        block = Block(**{name: dataset[...] for name, dataset in _present(file).items()})
    _check_content(path, attributes, content_sha256(attributes, block.datasets))
    return block


def verify(path: Path) -> None:
    """Check a shard's rows against its SHA-256 without holding them."""
    attributes = read_attributes(path)
    with reading(path) as file:
        found = content_sha256(attributes, _present(file))
    _check_content(path, attributes, found)


def map_images(path: Path) -> NDArray[np.uint8]:
    """Return a shard's images (n, 3, H, W), mapped into memory and not to be written."""
    with reading(path) as file:
        offset, shape = file["images"].id.get_offset(), file["images"].shape
    mapped = np.memmap(path, np.uint8, "r", offset=offset, shape=shape)
    return mapped.view(np.ndarray)  # whose indexing is faster


def _check_content(path: Path, attributes: Attributes, found: str) -> None:
    if found != attributes["content_sha256"]:
        raise InputError(f"{path}: its content does not match its SHA-256, so it was changed after it was made; {discarding(path.parent)}")


@contextmanager
def reading(path: Path) -> Iterator[h5py.File]:
    """A shard open for reading; what goes wrong inside becomes one line."""
    with hdf5.reading(path, f"its datasets cannot be read; {discarding(path.parent)}") as file:
        _check_datasets(path, file, int(file.attrs["rows.stop"]) - int(file.attrs["rows.start"]))
        yield file


def _present(file: h5py.File) -> dict[str, h5py.Dataset]:
    """A shard's datasets in the order of Block's fields."""
    return {field.name: file[field.name] for field in fields(Block) if field.name in file}


def _check_datasets(path: Path, file: h5py.File, n_rows: int) -> None:
    """Hold the datasets to their dtypes and to `n_rows` before any of them is read."""
    for name in DTYPES:
        if name in file or name not in OPTIONAL:
            _check_dataset(path, name, file.get(name), n_rows)


def _check_dataset(path: Path, name: str, dataset: object, n_rows: int) -> None:
    """Raise InputError for another shape or dtype than the module's text says."""
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: its datasets cannot be read: no {name}; {discarding(path.parent)}")
    rest = dataset.shape[1:]
    shape_fits = len(rest) == 3 and rest[0] == 3 if name == "images" else rest == ()
    if dataset.dtype != DTYPES[name] or dataset.shape[:1] != (n_rows,) or not shape_fits:
        found = f"found {dataset.dtype} {dataset.shape}"
        raise InputError(f"{path}: {name}: expected {n_rows} rows of {DTYPES[name]}, {found}; {discarding(path.parent)}")
    if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        found = f"found chunks of {dataset.chunks}" if dataset.chunks else "found another layout"
        raise InputError(f"{path}: {name}: expected one contiguous array, {found}; {discarding(path.parent)}")


def fingerprint_of(attributes: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def content_sha256(own: Mapping[str, Value], datasets: Mapping[str, NDArray[Any] | h5py.Dataset]) -> str:
    digest = hashlib.sha256(json.dumps({key: own[key] for key in PER_SHARD[:3]}).encode())
    for name, array in datasets.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        rows = max(1, SLICE_BYTES // (array.dtype.itemsize * math.prod(array.shape[1:])))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).view(np.uint8).data)
    return digest.hexdigest()
