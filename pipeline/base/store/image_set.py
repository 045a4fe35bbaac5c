"""A stored image set, opened for reading."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError, discarding
from pipeline.base.store import shards
from pipeline.base.store.blocks import SPLITS, Block, Split, join
from pipeline.base.store.shards import Attributes, Value
from pipeline.base.untrusted import limits


class ImageSet:
    """A stored image set, opened for reading.

    `attributes` say how it was made, `digest` identifies its content. Opening reads the attributes alone; `blocks` and `load` read the
    images and check every byte against its SHA-256. `column` and `map_images` read parts and check nothing: call `verify` before. Raises
    InputError for anything but a complete, unchanged set.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards = _shard_paths(path)
        headers = [shards.read_attributes(shard) for shard in self._shards]
        self.attributes: Attributes = {key: value for key, value in headers[0].items() if key not in shards.PER_SHARD}
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
            yield shards.read(path)

    def block(self, index: int) -> Block:
        """One shard's content, checked against its SHA-256."""
        return shards.read(self._shards[index])

    def load(self, split: Split) -> Block:
        """All rows of one split."""
        return join([block.select(block.split == SPLITS[split]) for block in self.blocks()])

    def verify(self) -> None:
        """Check every byte against its SHA-256, holding a few MiB at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(shards.verify, self._shards))

    def column(self, name: str) -> NDArray[Any]:
        """One dataset (N,) of all rows, such as labels or split, without reading the images."""
        parts = []
        for path in self._shards:
            with shards.reading(path) as file:
                parts.append(file[name][...])
        return np.concatenate(parts)

    def training_column(self, name: str) -> NDArray[Any]:
        """Return one dataset (N,) of the training rows."""
        training: NDArray[Any] = self.column(name)[self.column("split") == SPLITS["train"]]
        return training

    def map_images(self) -> list[NDArray[np.uint8]]:
        """Return the images (n, 3, H, W) of every shard, mapped into memory and not to be written."""
        return [shards.map_images(path) for path in self._shards]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        with shards.reading(self._shards[0]) as file:
            return tuple(file["images"].shape[1:])

    def _check_headers(self, headers: list[Attributes]) -> None:
        stop = 0
        for path, header in zip(self._shards, headers, strict=True):
            if header["rows.start"] != stop or {k: v for k, v in header.items() if k not in shards.PER_SHARD} != self.attributes:
                raise InputError(f"{path}: not a shard of the same set as {self._shards[0].name}; {discarding(path.parent)}")
            stop = int(header["rows.stop"])
        if stop != self.attributes.get("rows"):
            raise InputError(f"{self.path}: expected {self.attributes.get('rows')} rows, found {stop}; {discarding(self.path)}")


def paths_below(path: Path) -> list[Path]:
    """Return the image sets at `path`: itself if it holds shards, else those of its folders that do, in the order of their names."""
    folders = [path] if any(path.glob("*.h5")) or not path.is_dir() else sorted(path.iterdir())
    return [folder for folder in folders if any(folder.glob("*.h5")) and not folder.name.startswith(".")]


def _shard_paths(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path}: no such image set; `dvc repro` makes it")
    found = sorted(shard for shard in path.iterdir() if shard.suffix == ".h5")  # glob would take an unreadable folder for an empty one
    expected = [path / shards.shard_name(index) for index in range(len(found))]
    if not found or found != expected:
        raise InputError(f"{path}: expected shards 00000.h5, 00001.h5, … without gaps, found {len(found)} shards; {discarding(path)}")
    return found
