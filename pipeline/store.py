"""The image store: a folder of HDF5 shards, each complete in itself, that says how it was made.

Shard `00000.h5` holds the first rows, `00001.h5` the next, and so on. Datasets, all of n rows:

    images uint8 (n, 3, H, W)     labels int64 (n,)     ids int64 (n,)     split uint8 (n,; 0 train, 1 val)

and in adversarial sets also

    eps    float32 (n,; the bound that the stored image keeps, in units of pixels in [0, 1])
    fooled bool    (n,; the source model gets the stored image wrong)

Every shard carries the set's attributes (how it was made), its own rows, `fingerprint` (a SHA-256 over the set's attributes) and
`content_sha256` (over the fingerprint, the rows and every dataset). A set appears under its name only when all its shards are
complete: they are written to a hidden sibling keyed by the fingerprint, so an interrupted run goes on where it stopped and a changed
one starts anew.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import files, guards, hdf5_guard
from pipeline.errors import InputError

SCHEMA = 1
SPLITS = {"train": 0, "val": 1}
CHUNK_ROWS = 256
DTYPES = {"images": "uint8", "labels": "int64", "ids": "int64", "split": "uint8", "eps": "float32", "fooled": "bool"}
OPTIONAL = ("eps", "fooled")
PER_SHARD = ("rows.start", "rows.stop", "fingerprint", "content_sha256")

Value = str | int | float | bool
Attributes = dict[str, Value]
Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of an image set; the fields are the datasets named in the module's text."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    split: NDArray[np.uint8]
    eps: NDArray[np.float32] | None = None
    fooled: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def datasets(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that are there, by name, in a fixed order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def select(self, rows: NDArray[np.bool_]) -> "Block":
        """The rows where a mask (n,) is true."""
        return Block(**{name: array[rows] for name, array in self.datasets.items()})  # type: ignore[arg-type]


class ImageSet:
    """A stored image set, opened for reading.

    `attributes` say how it was made, `digest` identifies its content. Opening reads the attributes alone; `blocks` and `load` read the
    images and check every byte against its SHA-256. Raises InputError for anything but a complete, unchanged set.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards = _shard_paths(path)
        headers = [_read_attributes(shard) for shard in self._shards]
        self.attributes: Attributes = {key: value for key, value in headers[0].items() if key not in PER_SHARD}
        self._check_headers(headers)
        self.bounds = [(int(header["rows.start"]), int(header["rows.stop"])) for header in headers]
        joined = "".join(str(header["content_sha256"]) for header in headers)
        self.digest = hashlib.sha256(joined.encode()).hexdigest()

    def __len__(self) -> int:
        return self.bounds[-1][1]

    @property
    def class_names(self) -> tuple[str, ...]:
        try:
            names = json.loads(str(self.attributes.get("class_names")))
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{self.path}: class_names: expected a list of names; {_REMEDY}")
        return tuple(guards.plain_name(f"{self.path}: class_names", name) for name in names)

    def expect(self, expected: Mapping[str, Value], reason: str) -> None:
        """Raise InputError, naming `reason`, where an attribute differs from what is expected of it."""
        for key, value in expected.items():
            found = self.attributes.get(key)
            if found != value:
                raise InputError(f"{self.path}: {reason}: {key}: expected {value}, found {found}; `dvc repro` makes it anew")

    def blocks(self) -> Iterator[Block]:
        """The shards' contents in order, each checked against its SHA-256."""
        for path in self._shards:
            yield _read_shard(path)

    def load(self, split: Split) -> Block:
        """All rows of one split."""
        return join([block.select(block.split == SPLITS[split]) for block in self.blocks()])

    def _check_headers(self, headers: list[Attributes]) -> None:
        stop = 0
        for path, header in zip(self._shards, headers, strict=True):
            if header["rows.start"] != stop or {k: v for k, v in header.items() if k not in PER_SHARD} != self.attributes:
                raise InputError(f"{path}: not a shard of the same set as {self._shards[0].name}; {_REMEDY}")
            stop = int(header["rows.stop"])
        if stop != self.attributes.get("rows"):
            raise InputError(f"{self.path}: expected {self.attributes.get('rows')} rows, found {stop}; {_REMEDY}")


class Writer:
    """Writes an image set shard by shard; use as a context manager.

    `attributes` must hold all that decides the content: an interrupted run goes on only where they are equal. On a clean exit all shards
    must be there, and the set gets its name. The set that had the name before stays until that moment.
    """

    def __init__(self, path: Path, attributes: Attributes, *, bounds: list[tuple[int, int]]) -> None:
        self.path = path
        self.attributes: Attributes = {"schema": SCHEMA, **attributes, "rows": bounds[-1][1]}
        self.fingerprint = _fingerprint(self.attributes)
        self._bounds = bounds
        self._part = path.with_name(f".{path.name}.{self.fingerprint[:16]}.part")

    def __enter__(self) -> "Writer":
        self._part.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._publish()

    def missing(self) -> list[tuple[int, int]]:
        """The row ranges of the shards that an earlier, interrupted run has not left behind whole."""
        with ThreadPoolExecutor(2) as pool:
            complete = pool.map(self._is_complete, range(len(self._bounds)))
            return [bounds for bounds, whole in zip(self._bounds, complete, strict=True) if not whole]

    def write(self, start: int, block: Block) -> None:
        """Write the shard that begins at row `start`."""
        index = [first for first, _ in self._bounds].index(start)
        assert len(block) == self._bounds[index][1] - start
        final = self._part / _shard_name(index)
        unfinished = final.with_suffix(".part")
        own: Attributes = {"rows.start": start, "rows.stop": start + len(block), "fingerprint": self.fingerprint}
        with h5py.File(unfinished, "w", libver=("v110", "v110")) as file, ThreadPoolExecutor(1) as pool:
            content = pool.submit(_content_sha256, own, block)  # hashing and writing take about as long as each other
            for name, array in block.datasets.items():
                file.create_dataset(name, data=array, chunks=(min(len(block), CHUNK_ROWS), *array.shape[1:]))
            for key, value in {**self.attributes, **own, "content_sha256": content.result()}.items():
                file.attrs[key] = value
        with unfinished.open("rb+") as raw:
            files.sync(raw)
        unfinished.replace(final)

    def _is_complete(self, index: int) -> bool:
        path = self._part / _shard_name(index)
        try:
            _read_shard(path)
        except InputError:
            return False
        return True

    def _publish(self) -> None:
        if missing := self.missing():
            raise RuntimeError(f"{self.path}: rows {missing[0][0]} to {missing[0][1]} were never written")
        files.sync_folder(self._part)
        if self.path.exists():
            shutil.rmtree(self.path)
        self._part.replace(self.path)
        files.sync_folder(self.path.parent)


_REMEDY = "delete the folder and run `dvc repro`"


def join(blocks: Sequence[Block]) -> Block:
    """The rows of several blocks, with the datasets that all of them have."""
    shared = set.intersection(*(set(block.datasets) for block in blocks))
    return Block(**{name: np.concatenate([block.datasets[name] for block in blocks]) for name in shared})


def shard_bounds(n_rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """The first and past-the-last row of every shard."""
    return [(start, min(start + shard_rows, n_rows)) for start in range(0, n_rows, shard_rows)]


def _shard_name(index: int) -> str:
    return f"{index:05d}.h5"


def _shard_paths(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path}: no such image set; `dvc repro` makes it")
    found = sorted(path.glob("*.h5"))
    expected = [path / _shard_name(index) for index in range(len(found))]
    if not found or found != expected:
        raise InputError(f"{path}: expected shards 00000.h5, 00001.h5, … without gaps, found {len(found)} shards; {_REMEDY}")
    return found


def _read_attributes(path: Path) -> Attributes:
    """A shard's attributes, checked to be this schema's and to match their fingerprint."""
    hdf5_guard.check_shard(path, list(DTYPES), _REMEDY)
    try:
        with h5py.File(path, "r") as file:
            attributes: Attributes = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable HDF5 file, perhaps cut short; {_REMEDY}") from error
    if attributes.get("schema") != SCHEMA or not set(PER_SHARD) <= attributes.keys():
        raise InputError(f"{path}: not an image shard of schema {SCHEMA}; {_REMEDY}")
    for key, value in attributes.items():
        if not isinstance(value, Value) or not str(value).isprintable():
            found = f"{type(value).__name__} {str(value)[:50]!a}"
            raise InputError(f"{path}: attribute {key}: expected a plain value, found {found}; {_REMEDY}")
    if _fingerprint({key: value for key, value in attributes.items() if key not in PER_SHARD}) != attributes["fingerprint"]:
        raise InputError(f"{path}: its attributes do not match their fingerprint, so it was changed after it was made; {_REMEDY}")
    for key in ("rows", "rows.start", "rows.stop"):
        if type(attributes.get(key)) is not int:
            raise InputError(f"{path}: attribute {key}: expected a whole number, found {attributes.get(key)!r}; {_REMEDY}")
    return attributes


def _read_shard(path: Path) -> Block:
    """A shard's rows, checked against its SHA-256."""
    attributes = _read_attributes(path)
    try:
        with h5py.File(path, "r") as file:
            _check_datasets(path, file, int(attributes["rows.stop"]) - int(attributes["rows.start"]))
            names = {field.name for field in fields(Block)}
            block = Block(**{name: dataset[...] for name, dataset in file.items() if name in names})
    except (OSError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: its datasets cannot be read; {_REMEDY}") from error
    own = {key: attributes[key] for key in PER_SHARD if key != "content_sha256"}
    if _content_sha256(own, block) != attributes["content_sha256"]:
        raise InputError(f"{path}: its content does not match its SHA-256, so it was changed after it was made; {_REMEDY}")
    return block


def _check_datasets(path: Path, file: h5py.File, n_rows: int) -> None:
    """Hold the datasets to their dtypes, to `n_rows` and to the memory there is, before any of them is read."""
    sizes = {name: _n_bytes(path, name, file.get(name), n_rows) for name in DTYPES if name in file or name not in OPTIONAL}
    guards.expect_fits(sum(sizes.values()), path.stat().st_size)


def _n_bytes(path: Path, name: str, dataset: object, n_rows: int) -> int:
    """The bytes of one dataset; raises InputError for another shape or dtype than the module's text says."""
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: its datasets cannot be read: no {name}; {_REMEDY}")
    rest = dataset.shape[1:]
    shape_fits = len(rest) == 3 and rest[0] == 3 if name == "images" else rest == ()
    if dataset.dtype != DTYPES[name] or dataset.shape[:1] != (n_rows,) or not shape_fits:
        raise InputError(f"{path}: {name}: expected {n_rows} rows of {DTYPES[name]}, found {dataset.dtype} {dataset.shape}; {_REMEDY}")
    return int(dataset.nbytes)


def _fingerprint(attributes: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _content_sha256(own: Mapping[str, Value], block: Block) -> str:
    digest = hashlib.sha256(json.dumps({key: own[key] for key in PER_SHARD[:3]}).encode())
    for name, array in block.datasets.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()
