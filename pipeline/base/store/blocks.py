"""Rows of an image set in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SPLITS = {"train": 0, "val": 1}
DTYPES = {
    "images": "uint8",
    "labels": "int64",
    "ids": "int64",
    "split": "uint8",
    "eps": "float32",
    "fooled": "bool",
}
OPTIONAL = ("eps", "fooled")

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of an image set; the fields are the datasets named in the package's text."""

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


def join(blocks: Sequence[Block]) -> Block:
    """The rows of several blocks, with the datasets that all of them have."""
    shared = set.intersection(*(set(block.datasets) for block in blocks))
    return Block(
        **{name: np.concatenate([block.datasets[name] for block in blocks]) for name in shared}
    )
