"""The image store: a folder of HDF5 shards, each complete in itself, that says how it was made.

Shard `00000.h5` holds the first rows, `00001.h5` the next, and so on. Datasets, all of n rows:

    images uint8 (n, 3, H, W)     labels int64 (n,)     ids int64 (n,)     split uint8 (n,; 0 train, 1 val)

and in adversarial sets also

    eps    float32 (n,; the bound that the stored image keeps, in units of pixels in [0, 1])
    fooled bool    (n,; the source model gets the stored image wrong)

Images lie in chunks of CHUNK_BYTES, whole images each, compressed as the attribute `compression` says.

Every shard carries the set's attributes (how it was made), its own rows, `fingerprint` (a SHA-256 over the set's attributes) and
`content_sha256` (over the fingerprint, the rows and every dataset). A set appears under its name only when all its shards are
complete: they are written to a hidden sibling keyed by the fingerprint and the code, so an interrupted run goes on where it stopped and
a changed one starts anew.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files, unfinished
from pipeline.base.errors import InputError, discarding
from pipeline.base.untrusted import hdf5, limits

SCHEMA = 1
SPLITS = {"train": 0, "val": 1}
CHUNK_BYTES = 64 * 3 * 32 * 32  # large enough to be read fast, small enough to be shuffled well: benchmarks/store.py and shuffle.py
SLICE_CHUNKS = 64  # are hashed at a time
ROW_BYTES = 32  # of a row besides its image, at most
DTYPES = {"images": "uint8", "labels": "int64", "ids": "int64", "split": "uint8", "eps": "float32", "fooled": "bool"}
OPTIONAL = ("eps", "fooled")
PER_SHARD = ("rows.start", "rows.stop", "fingerprint", "content_sha256")

Value = str | int | float | bool
Attributes = dict[str, Value]
Split = Literal["train", "val"]
Run = tuple[int, int]


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

    def select(self, rows: NDArray[np.bool_] | slice) -> "Block":
        """The rows where a mask (n,) is true, copied, or those of a slice, not copied."""
        return Block(**{name: array[rows] for name, array in self.datasets.items()})  # type: ignore[arg-type]


class ImageSet:
    """A stored image set, opened for reading.

    `attributes` say how it was made, `digest` identifies its content. Opening reads the attributes alone; `blocks` and `load` read the
    images and check every byte against its SHA-256. `column` and `read_runs` read parts and check nothing: call `verify` before. Raises
    InputError for anything but a complete, unchanged set.
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
            raise InputError(f"{self.path}: class_names: expected a list of names; {discarding(self.path)}")
        return tuple(limits.plain_name(f"{self.path}: class_names", name) for name in names)

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

    def block(self, index: int) -> Block:
        """One shard's content, checked against its SHA-256."""
        return _read_shard(self._shards[index])

    def load(self, split: Split) -> Block:
        """All rows of one split."""
        return join([block.select(block.split == SPLITS[split]) for block in self.blocks()])

    def verify(self) -> None:
        """Check every byte against its SHA-256, holding a few MiB at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(_verify_shard, self._shards))

    def column(self, name: str) -> NDArray[Any]:
        """One dataset (N,) of all rows, such as labels or split, without reading the images."""
        parts = []
        for path in self._shards:
            with _reading(path) as file:
                parts.append(file[name][...])
        return np.concatenate(parts)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        with _reading(self._shards[0]) as file:
            return tuple(file["images"].shape[1:])

    def runs(self) -> list[Run]:
        """The first and past-the-last row of every chunk of images."""
        with _reading(self._shards[0]) as file:
            rows = file["images"].chunks[0]
        return [(first, min(first + rows, stop)) for start, stop in self.bounds for first in range(start, stop, rows)]

    def read_runs(self, runs: Sequence[Run], out: NDArray[np.uint8]) -> None:
        """Read the images of several runs, each inside one shard, into `out` (n, 3, H, W), one behind another."""
        shards = np.searchsorted([start for start, _ in self.bounds], [start for start, _ in runs], side="right") - 1
        end = 0
        for shard in dict.fromkeys(shards.tolist()):
            with _reading(self._shards[shard]) as file:
                images = file["images"]
                for start, stop in (run for run, own in zip(runs, shards, strict=True) if own == shard):
                    first = self.bounds[shard][0]
                    out[end : end + stop - start] = images[start - first : stop - first]  # twice as fast as read_direct on small chunks
                    end += stop - start

    def _check_headers(self, headers: list[Attributes]) -> None:
        stop = 0
        for path, header in zip(self._shards, headers, strict=True):
            if header["rows.start"] != stop or {k: v for k, v in header.items() if k not in PER_SHARD} != self.attributes:
                raise InputError(f"{path}: not a shard of the same set as {self._shards[0].name}; {discarding(path.parent)}")
            stop = int(header["rows.stop"])
        if stop != self.attributes.get("rows"):
            raise InputError(f"{self.path}: expected {self.attributes.get('rows')} rows, found {stop}; {discarding(self.path)}")


class Writer:
    """Writes an image set shard by shard; use as a context manager.

    `attributes` must hold all that decides the content: an interrupted run goes on only where they are equal. On a clean exit all shards
    must be there, and the set gets its name. The set that had the name before stays until that moment.

    `compression` is one of those that `params.Store` names.
    """

    def __init__(self, path: Path, attributes: Attributes, *, bounds: list[Run], compression: str = "none") -> None:
        self.path = path
        self.attributes: Attributes = {"schema": SCHEMA, **attributes, "compression": compression, "rows": bounds[-1][1]}
        self.fingerprint = _fingerprint(self.attributes)
        self._bounds = bounds
        self._part = unfinished.path_for(path, {"fingerprint": self.fingerprint})
        self._begun = self._part / "begun.h5"
        self._behind = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        self._part.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._behind.shutdown()
        if kind is None:
            self.flush()
            self._publish()

    def missing(self) -> list[Run]:
        """The row ranges of the shards that an earlier, interrupted run has not left behind whole."""
        with ThreadPoolExecutor(2) as pool:
            complete = pool.map(self._is_complete, range(len(self._bounds)))
            return [bounds for bounds, whole in zip(self._bounds, complete, strict=True) if not whole]

    def write_behind(self, start: int, block: Block) -> None:
        """Have the shard that begins at row `start` written while the caller goes on; its arrays must not change any more.

        One shard at a time: waits for the one before, as `flush` does. A clean exit does the same for the last.
        """
        self.flush()
        self._pending = self._behind.submit(self.write, start, block)

    def flush(self) -> None:
        """Wait until what `write_behind` was given is written; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def write(self, start: int, block: Block) -> None:
        """Write the shard that begins at row `start`."""
        self._write(self._part / shard_name(self._bounds.index((start, start + len(block)))), start, block)

    def keep(self, start: int, block: Block) -> None:
        """Keep the first rows of the shard that begins at row `start`, for `begun` to give back."""
        self._write(self._begun, start, block)

    def _write(self, final: Path, start: int, block: Block) -> None:
        unfinished = final.with_suffix(".part")
        own: Attributes = {"rows.start": start, "rows.stop": start + len(block), "fingerprint": self.fingerprint}
        with hdf5.writing(unfinished, libver=("v110", "v110")) as file, ThreadPoolExecutor(1) as pool:
            content = pool.submit(_content_sha256, own, block.datasets)  # hashing and writing take about as long as each other
            for name, array in block.datasets.items():
                filters = _filters(str(self.attributes["compression"])) if name == "images" else {}
                file.create_dataset(name, data=array, chunks=(min(len(block), _chunk_rows(array)), *array.shape[1:]), **filters)
            for key, value in {**self.attributes, **own, "content_sha256": content.result()}.items():
                file.attrs[key] = value
        with unfinished.open("rb+") as raw:
            files.sync(raw)
        unfinished.replace(final)

    def begun(self, start: int) -> Block | None:
        """What an earlier, interrupted run has kept of the shard that begins at row `start`, where it is whole and unchanged."""
        try:
            return _read_shard(self._begun) if _read_attributes(self._begun)["rows.start"] == start else None
        except InputError:
            return None

    def _is_complete(self, index: int) -> bool:
        path = self._part / shard_name(index)
        try:
            _verify_shard(path)
        except InputError:
            return False
        return True

    def _publish(self) -> None:
        if missing := self.missing():
            raise RuntimeError(f"{self.path}: rows {missing[0][0]} to {missing[0][1]} were never written")
        unfinished.clear([self._begun, self._begun.with_suffix(".part")])
        files.sync_folder(self._part)
        replaced = self.path.with_name(f".{self.path.name}.replaced.part")
        unfinished.clear([replaced])
        if self.path.exists():
            self.path.replace(replaced)
        self._part.replace(self.path)
        files.sync_folder(self.path.parent)
        unfinished.clear([replaced])


def paths_below(path: Path) -> list[Path]:
    """Return the image sets at `path`: itself if it holds shards, else those of its folders that do, in the order of their names."""
    folders = [path] if any(path.glob("*.h5")) or not path.is_dir() else sorted(path.iterdir())
    return [folder for folder in folders if any(folder.glob("*.h5")) and not folder.name.startswith(".")]


def join(blocks: Sequence[Block]) -> Block:
    """The rows of several blocks, with the datasets that all of them have."""
    shared = set.intersection(*(set(block.datasets) for block in blocks))
    return Block(**{name: np.concatenate([block.datasets[name] for block in blocks]) for name in shared})


def shard_bounds(n_rows: int, shard_rows: int) -> list[Run]:
    """The first and past-the-last row of every shard."""
    return [(start, min(start + shard_rows, n_rows)) for start in range(0, n_rows, shard_rows)]


def shard_name(index: int) -> str:
    """The file name of a set's shard."""
    return f"{index:05d}.h5"


def _shard_paths(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path}: no such image set; `dvc repro` makes it")
    found = sorted(shard for shard in path.iterdir() if shard.suffix == ".h5")  # glob would take an unreadable folder for an empty one
    expected = [path / shard_name(index) for index in range(len(found))]
    if not found or found != expected:
        raise InputError(f"{path}: expected shards 00000.h5, 00001.h5, … without gaps, found {len(found)} shards; {discarding(path)}")
    return found


def _read_attributes(path: Path) -> Attributes:
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
    if _fingerprint({key: value for key, value in attributes.items() if key not in PER_SHARD}) != attributes["fingerprint"]:
        return "its attributes do not match their fingerprint, so it was changed after it was made"
    for key in ("rows", "rows.start", "rows.stop"):
        if type(attributes.get(key)) is not int:
            return f"attribute {key}: expected a whole number, found {attributes.get(key)!r}"
    return None


def _read_shard(path: Path) -> Block:
    """A shard's rows, checked against its SHA-256."""
    attributes = _read_attributes(path)
    with _reading(path) as file:
        limits.expect_fits(sum(dataset.nbytes for dataset in _present(file).values()), path.stat().st_size)
        block = Block(**{name: dataset[...] for name, dataset in _present(file).items()})
    _check_content(path, attributes, _content_sha256(attributes, block.datasets))
    return block


def _verify_shard(path: Path) -> None:
    """Check a shard's rows against its SHA-256 without holding them."""
    attributes = _read_attributes(path)
    with _reading(path) as file:
        found = _content_sha256(attributes, _present(file))
    _check_content(path, attributes, found)


def _check_content(path: Path, attributes: Attributes, found: str) -> None:
    if found != attributes["content_sha256"]:
        raise InputError(f"{path}: its content does not match its SHA-256, so it was changed after it was made; {discarding(path.parent)}")


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """A shard open for reading, with the filter that its images need; what goes wrong inside becomes one line."""
    with hdf5.reading(path, f"its datasets cannot be read; {discarding(path.parent)}") as file:
        _filters(str(file.attrs["compression"]))
        _check_datasets(path, file, int(file.attrs["rows.stop"]) - int(file.attrs["rows.start"]))
        yield file


def _present(file: h5py.File) -> dict[str, h5py.Dataset]:
    """A shard's datasets in the order of Block's fields."""
    return {field.name: file[field.name] for field in fields(Block) if field.name in file}


def _filters(compression: str) -> dict[str, Any]:
    """What h5py's `create_dataset` takes for a compression; makes the filter known to HDF5, for reading too."""
    if compression == "none":
        return {}
    if compression == "lzf":
        return {"compression": "lzf"}
    import hdf5plugin

    options: dict[str, tuple[Any, dict[str, Any]]] = {
        "zstd": (hdf5plugin.Zstd, {"clevel": 3}),
        "blosc2-zstd": (hdf5plugin.Blosc2, {"cname": "zstd", "clevel": 1, "filters": hdf5plugin.Blosc2.BITSHUFFLE}),
        "bitshuffle-zstd": (hdf5plugin.Bitshuffle, {"cname": "zstd", "clevel": 1, "nelems": 65_536}),
        "bitshuffle-lz4": (hdf5plugin.Bitshuffle, {"cname": "lz4"}),
    }
    constructor, settings = options[compression]
    return dict(constructor(**settings))


def _chunk_rows(array: NDArray[Any] | h5py.Dataset) -> int:
    """How many rows of an array a chunk holds."""
    return max(1, CHUNK_BYTES // (array.dtype.itemsize * int(np.prod(array.shape[1:]))))


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


def _fingerprint(attributes: Mapping[str, Value]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _content_sha256(own: Mapping[str, Value], datasets: Mapping[str, NDArray[Any] | h5py.Dataset]) -> str:
    digest = hashlib.sha256(json.dumps({key: own[key] for key in PER_SHARD[:3]}).encode())
    for name, array in datasets.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        rows = SLICE_CHUNKS * _chunk_rows(array)
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).view(np.uint8).data)
    return digest.hexdigest()
