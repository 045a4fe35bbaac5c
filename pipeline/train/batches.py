"""Defines what a training is given: the batches of its epochs."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

ALPHA_SCALE = "alpha_scale"


class Batches(Protocol):
    """What the loop trains on.

    `epoch` yields the batches of an epoch, from batch `first` on. Each is images (B, 3, H, W) in
    [0, 1], labels (B,), and each image's share (B,) of the loss. Where images are compared in
    pairs, the weights (B,) and partners (B,) of `pairs.loss` follow. The batches depend only on the
    epoch, the network, the params and the tensors of `state`. Batches that attack the network keep
    a factor on their step size there, as ALPHA_SCALE.

    Where several workers train together, each yields its part of every batch. The rows of the
    tensors (N, …) of `state` belong to fixed workers. A scalar is the same on all.
    """

    state: dict[str, Tensor]

    def __len__(self) -> int: ...

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, ...]]: ...
