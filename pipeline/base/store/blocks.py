"""Holds rows of an image set in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SPLITS = {"train": 0, "val": 1, "test": 2}
DTYPES = {
    "images": "uint8",
    "labels": "int64",
    "ids": "int64",
    "split": "uint8",
    "eps": "float32",
    "fooled": "bool",
}
OPTIONAL = ("eps", "fooled")

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of an image set.

    The fields are the datasets that the package's text names.
    """

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
        """The arrays that are present, by name, in a fixed order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def select(self, rows: NDArray[np.bool_ | np.int64] | slice) -> "Block":
        """Return some of the rows.

        A mask (n,) selects the rows where it is true, and numbers select those rows. Both copy
        them. A slice does not.
        """
        return Block(**{name: array[rows] for name, array in self.datasets.items()})  # type: ignore[arg-type]


def join(blocks: Sequence[Block]) -> Block:
    """Return the rows of several blocks, with the datasets that all of them have."""
    shared = set.intersection(*(set(block.datasets) for block in blocks))
    return Block(
        **{name: np.concatenate([block.datasets[name] for block in blocks]) for name in shared}
    )
