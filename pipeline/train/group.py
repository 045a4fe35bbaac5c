"""Let several workers train one model together, through torch.distributed.

All workers hold the same weights and walk the same batches. Each trains on its part of every batch.
A process alone is a group of one, for which nothing here computes or changes anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn

from pipeline.base.store import Block
from pipeline.networks.scores import Validate

Value = TypeVar("Value")
SENT = 2**26  # bytes of rows at a time


@dataclass(frozen=True)
class Group:
    """The workers that train together: this one's number, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the worker that writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all workers, in place, and return it."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Replace some tensors of one dtype by those of the first worker, in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.broadcast(flat, 0)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors), [part.view_as(own) for part, own in zip(parts, tensors, strict=True)]
        )

    def decide(self, value: Value) -> Value:
        """Return the first worker's value."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def all(self, value: Value) -> list[Value]:
        """Return the values of all workers, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def gather_rows(self, tensor: Tensor, device: torch.device) -> None:
        """Copy every worker's own rows of a tensor (N, …) into that of the first worker.

        Row i belongs to worker i % size. `device` is the one that the workers train on.
        """
        for rank in range(1, self.size):
            if self.rank not in (0, rank):
                continue
            for part in torch.split(tensor[rank :: self.size], _rows_at_a_time(tensor)):
                if self.is_first:
                    received = torch.empty(part.shape, dtype=part.dtype, device=device)
                    distributed.recv(received, rank)
                    part.copy_(received)
                else:
                    distributed.send(part.to(device).contiguous(), 0)

    def validation(self, images: Block, make: Callable[[Block], Validate]) -> Validate:
        """Return a validation on `images` that all workers share.

        `make` returns the validation on some of the images. Its scores must be means over them.
        """
        if self.size == 1:
            return make(images)
        own = images.select(np.arange(len(images)) % self.size == self.rank)
        validate = make(own) if len(own) else lambda _: {}

        def together(network: nn.Module) -> dict[str, float]:
            found = [(n, scores) for n, scores in self.all((len(own), validate(network))) if n]
            return {
                key: sum(n * scores[key] for n, scores in found) / len(images)
                for key in found[0][1]
            }

        return together


def _rows_at_a_time(tensor: Tensor) -> int:
    return max(1, SENT // max(1, tensor[0].nbytes))


def current() -> Group:
    """Return the group that this process belongs to."""
    if distributed.is_available() and distributed.is_initialized():
        return Group(distributed.get_rank(), distributed.get_world_size())
    return Group()
