"""Give every worker its part of a batch."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.train.group import Group
from pipeline.train.images import Rows

FEWEST = 2  # images that BatchNorm can train on
UNCOUNTED = -100  # the label that torch's cross-entropy ignores


@dataclass(frozen=True, kw_only=True)
class Part:
    """A worker's part of a batch.

    `batch` are the rows (B,) of the whole batch. `places` (P,) are those of the part in it, in
    which the first `n_own` are the worker's own. The others only fill up the part. They have no
    share of the loss, and are not counted.
    """

    batch: Rows
    places: slice | Rows
    n_own: int

    @property
    def rows(self) -> Rows:
        """The rows (P,) of the part."""
        return self.batch[self.places]

    def select(self, of_batch: Tensor) -> Tensor:
        """Return the part's values (P, …) of what was drawn for the whole batch (B, …).

        A draw for the whole batch does not depend on the number of workers.
        """
        if isinstance(self.places, slice):
            return of_batch[self.places]
        return of_batch[torch.from_numpy(self.places).to(of_batch.device)]

    def shares(self, like: Tensor) -> Tensor:
        """Return each image's share (P,) of the mean over the batch, as `like` (P, …) is kept."""
        shares = torch.full((len(like),), 1 / len(self.batch), dtype=like.dtype, device=like.device)
        shares[self.n_own :] = 0
        return shares

    def counted(self, labels: Tensor) -> Tensor:
        """Return the labels (P,), with UNCOUNTED for the images that only fill up the part."""
        if self.n_own < len(labels):
            labels = labels.clone()
            labels[self.n_own :] = UNCOUNTED
        return labels


def part_of(batch: Rows, is_clean: NDArray[np.bool_], group: Group, *, owned: bool) -> Part:
    """Return this worker's part of a batch of rows (B,).

    The parts are equally large. With `owned`, every row belongs to the same worker whenever it is
    drawn, and the parts differ in size. A part of fewer than FEWEST images is filled up with clean
    images of the batch, which `is_clean` (B,) marks. These are the same on every worker.
    """
    if group.size == 1:
        return Part(batch=batch, places=slice(None), n_own=len(batch))
    numbers = batch if owned else np.arange(len(batch))
    own = np.flatnonzero(numbers % group.size == group.rank)
    filled = own
    if len(own) < FEWEST:
        clean = np.flatnonzero(is_clean)
        others = np.setdiff1d(clean, own)
        filled = np.append(own, np.resize(others if len(others) else clean, FEWEST - len(own)))
    return Part(batch=batch, places=filled, n_own=len(own))
