"""Count what is wrong with the rows of an image set."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

CHUNK = 1024  # images compared at once


@dataclass
class Tally:
    """Counts over all rows of a set.

    `first` maps each kind of fault to the first row that has it.
    """

    n: int = 0
    n_pixels: int = 0
    changed: int = 0
    unchanged_images: int = 0
    largest: int = 0
    fooled: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def blame(
        self, what: str, wrong: NDArray[np.bool_], rows: range, ids: NDArray[np.int64], shard: str
    ) -> None:
        """Count the rows (n,) that are wrong."""
        if wrong.any():
            place = int(wrong.argmax())
            self.faults[what] = self.faults.get(what, 0) + int(wrong.sum())
            self.first.setdefault(what, f"row {rows[place]} (id {ids[place]}, {shard})")

    def problem(self, what: str) -> str:
        return (
            f"{self.faults[what]} of {self.n} rows, the first is {self.first[what]}"
            if what in self.faults
            else ""
        )
