"""Reads and writes one shard, an HDF5 file with the set's attributes and its own rows.

libhdf5 trusts much of what a file says. A shard is therefore opened only after its SHA-256 was
checked.
"""

from collections.abc import Iterator
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
from pipeline.base.store.manifest import Attributes, Entry, Run, Value, fingerprint
from pipeline.base.untrusted import hdf5, limits

ROW_BYTES = 32  # of a row besides its image, at most
MOST = 99_999  # shards of a set


def shard_bounds(n_rows: int, shard_rows: int) -> list[Run]:
    """Return the first and past-the-last row of every shard.

    Raises InputError for more shards than MOST, whose names no longer sort by number.
    """
    if (n_shards := -(-n_rows // shard_rows)) > MOST:
        raise InputError(
            f"store.shard_rows: {n_rows:,} images would make {n_shards:,} shards, at most {MOST:,}"
            f" are possible; write {-(-n_rows // MOST)} or more"
        )
    return [(start, min(start + shard_rows, n_rows)) for start in range(0, n_rows, shard_rows)]


def shard_name(index: int) -> str:
    """Return the file name of a set's shard."""
    return f"{index:05d}.h5"


def write(final: Path, attributes: Attributes, start: int, block: Block) -> Entry:
    """Write the shard that begins at row `start`.

    The shard appears under its name only when it is complete and on the disk.
    """
    unfinished, rows = final.with_suffix(".part"), (start, start + len(block))
    with hdf5.writing(unfinished, libver=("v110", "v110")) as file:
        for name, array in block.datasets.items():
            file.create_dataset(name, data=array)
        for key, value in _own_attributes(attributes, rows).items():
            file.attrs[key] = value
    with unfinished.open("rb+") as raw:
        files.sync(raw)
    sha256 = files.sha256(unfinished)
    unfinished.replace(final)
    return Entry(rows=rows, sha256=sha256)


class Shard:
    """A stored shard, as the manifest of its set describes it."""

    def __init__(self, path: Path, attributes: Attributes, entry: Entry) -> None:
        self._path, self._attributes, self._entry = path, attributes, entry
        self._remedy = discarding(path.parent)
        self._is_whole, self._is_checked = False, False
        limits.regular(path, self._remedy)

    def verify(self) -> None:
        """Check every byte of the file against its SHA-256."""
        try:
            found = files.sha256(self._path)
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {error.strerror}") from error
        if found != self._entry.sha256:
            raise InputError(
                f"{self._path}: its content does not match its SHA-256, "
                f"so it was changed after it was made; {self._remedy}"
            )
        self._is_whole = True

    def read(self) -> Block:
        """Return all rows, after checking the file."""
        self.verify()
        with self._open() as file:
            datasets = _present(file)
            try:
                limits.expect_fits(
                    sum(dataset.nbytes for dataset in datasets.values()), self._path.stat().st_size
                )
            except InputError as error:
                raise InputError(
                    f"{self._path}: {error}; lower store.shard_rows or free memory"
                ) from error
            return Block(**{name: dataset[...] for name, dataset in datasets.items()})

    def column(self, name: str) -> NDArray[Any]:
        """Return one dataset."""
        with self._open() as file:
            column: NDArray[Any] = file[name][...]
            return column

    def map_images(self) -> NDArray[np.uint8]:
        """Return the images (n, 3, H, W), mapped into memory and read-only."""
        with self._open() as file:
            offset, shape = file["images"].id.get_offset(), file["images"].shape
        mapped = np.memmap(self._path, np.uint8, "r", offset=offset, shape=shape)
        return mapped.view(np.ndarray)  # indexing a plain array is faster

    @contextmanager
    def _open(self) -> Iterator[h5py.File]:
        """Yield the open file, which is checked only once.

        Errors inside the block become an InputError of one line.
        """
        if not self._is_whole:
            self.verify()
        with hdf5.reading(self._path, f"its datasets cannot be read; {self._remedy}") as file:
            if not self._is_checked:
                self._check_attributes(file)
                for name in DTYPES:
                    if name in file or name not in OPTIONAL:
                        self._check_dataset(name, file.get(name))
                self._is_checked = True
            yield file

    def _check_attributes(self, file: h5py.File) -> None:
        found = {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in file.attrs.items()
        }
        plain = {key: value for key, value in found.items() if isinstance(value, Value)}
        if len(plain) != len(found) or plain != _own_attributes(self._attributes, self._entry.rows):
            raise InputError(
                f"{self._path}: its attributes are not those of its set's manifest; {self._remedy}"
            )

    def _check_dataset(self, name: str, dataset: object) -> None:
        """Raise InputError unless shape, dtype and layout are those in the package's text."""
        if not isinstance(dataset, h5py.Dataset):
            raise InputError(
                f"{self._path}: its datasets cannot be read: no {name}; {self._remedy}"
            )
        n_rows, rest = self._entry.rows[1] - self._entry.rows[0], dataset.shape[1:]
        shape_fits = len(rest) == 3 and rest[0] == 3 if name == "images" else rest == ()
        if dataset.dtype != DTYPES[name] or dataset.shape[:1] != (n_rows,) or not shape_fits:
            found = f"found {dataset.dtype} {dataset.shape}"
            raise InputError(
                f"{self._path}: {name}: expected {n_rows} rows of {DTYPES[name]}, {found}; "
                f"{self._remedy}"
            )
        if dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
            found = (
                f"found chunks of {dataset.chunks}" if dataset.chunks else "found another layout"
            )
            raise InputError(
                f"{self._path}: {name}: expected one contiguous array, {found}; {self._remedy}"
            )


def _own_attributes(attributes: Attributes, rows: Run) -> Attributes:
    """Return the attributes of a shard's file."""
    return {
        **attributes,
        "rows.start": rows[0],
        "rows.stop": rows[1],
        "fingerprint": fingerprint(attributes),
    }


def _present(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return a shard's datasets in the order of Block's fields."""
    return {field.name: file[field.name] for field in fields(Block) if field.name in file}
