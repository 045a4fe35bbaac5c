"""Opens a stored image set for reading."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError, discarding
from pipeline.base.store import manifest, shards
from pipeline.base.store.blocks import SPLITS, Block, Split, join
from pipeline.base.store.manifest import Attributes, Value
from pipeline.base.untrusted import limits
from pipeline.base.values import CLEAN


class ImageSet:
    """A stored image set, opened for reading.

    `attributes` say how it was made. `digest`, the SHA-256 of the manifest, identifies its content.
    Opening reads only the manifest. `blocks`, `load` and `verify` always check every byte against
    its SHA-256. `column`, `map_images` and `image_shape` do so only for shards that were not
    checked before. Raises InputError for anything except a complete, unchanged set.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: no such image set; `dvc repro` makes it")
        self.path = path
        found = manifest.read(path)
        self.attributes: Attributes = found.attributes
        self.digest = found.digest
        self.bounds = [entry.rows for entry in found.shards.values()]
        self._check_shards(list(found.shards))
        self._shards = [
            shards.Shard(path / name, found.attributes, entry)
            for name, entry in found.shards.items()
        ]

    def __len__(self) -> int:
        return self.bounds[-1][1]

    @property
    def class_names(self) -> tuple[str, ...]:
        try:
            names = json.loads(str(self.attributes.get("class_names")))
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{self.path}: class_names: expected a list of names; {discarding(self.path)}"
            )
        return tuple(limits.plain_name(f"{self.path}: class_names", name) for name in names)

    @property
    def judged(self) -> Split:
        """The split that evaluations judge: `test` where the set has one, otherwise `val`."""
        return "test" if (self.column("split") == SPLITS["test"]).any() else "val"

    def expect(self, expected: Mapping[str, Value], reason: str) -> None:
        """Raise InputError, naming `reason`, where an attribute differs from its expected value."""
        for key, value in expected.items():
            found = self.attributes.get(key)
            if found != value:
                raise InputError(
                    f"{self.path}: {reason}: {key}: expected {value}, found {found}; "
                    "`dvc repro` makes it again"
                )

    def blocks(self) -> Iterator[Block]:
        """Yield the shards' contents in order, each checked against its SHA-256."""
        for shard in self._shards:
            yield shard.read()

    def block(self, index: int) -> Block:
        """Return one shard's content, checked against its SHA-256."""
        return self._shards[index].read()

    def load(self, split: Split) -> Block:
        """Return all rows of one split."""
        return join([block.select(block.split == SPLITS[split]) for block in self.blocks()])

    def verify(self) -> None:
        """Check every byte against its SHA-256, with only a few MiB in memory at a time."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(shards.Shard.verify, self._shards))

    def column(self, name: str) -> NDArray[Any]:
        """Return one dataset (N,) of all rows, such as labels or split.

        Does not read the images.
        """
        return np.concatenate([shard.column(name) for shard in self._shards])

    def training_column(self, name: str) -> NDArray[Any]:
        """Return one dataset (N,) of the training rows."""
        training: NDArray[Any] = self.column(name)[self.column("split") == SPLITS["train"]]
        return training

    def map_images(self) -> list[NDArray[np.uint8]]:
        """Return the images (n, 3, H, W) of every shard, mapped into memory and read-only."""
        return [shard.map_images() for shard in self._shards]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self._shards[0].map_images().shape
        return channels, height, width

    def _check_shards(self, names: list[str]) -> None:
        """Check that the manifest names all rows and all files, in order and without gaps."""
        remedy = discarding(self.path)
        expected = [shards.shard_name(index) for index in range(len(names))]
        # iterdir raises for an unreadable folder, which glob would treat as empty
        found = sorted(path.name for path in self.path.iterdir() if path.suffix == ".h5")
        if not names or names != expected or found != expected:
            raise InputError(
                f"{self.path}: expected the shards of {manifest.NAME}, "
                f"00000.h5, 00001.h5, … without gaps, found {len(found)} shards; {remedy}"
            )
        edges = [0, *(stop for _, stop in self.bounds)]
        if [start for start, _ in self.bounds] != edges[:-1] or edges != sorted(set(edges)):
            raise InputError(
                f"{self.path}: expected shards whose rows follow each other, "
                f"found {self.bounds[:3]}; {remedy}"
            )
        if edges[-1] != self.attributes["rows"]:
            raise InputError(
                f"{self.path}: expected {self.attributes['rows']} rows, found {edges[-1]}; {remedy}"
            )


def clean(path: Path) -> ImageSet:
    """Open a set of clean images. Raises InputError for another kind of set."""
    images = ImageSet(path)
    if images.attributes.get("kind") != CLEAN:
        raise InputError(
            f"{path}: expected a set of clean images, found one of kind "
            f"{images.attributes.get('kind')}"
        )
    return images


def paths_below(path: Path) -> list[Path]:
    """Return the image sets at `path`.

    This is `path` itself if it holds shards. Otherwise, it is the folders inside it that hold
    shards, in the order of their names.
    """
    folders = [path] if any(path.glob("*.h5")) or not path.is_dir() else sorted(path.iterdir())
    return [
        folder for folder in folders if any(folder.glob("*.h5")) and not folder.name.startswith(".")
    ]
