"""Defines what workers do, and the workers that are this process itself."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import torch

from pipeline.base.console import Stop
from pipeline.networks import device

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Item_contra, Result_co]):
    """What many items have in common, such as a network. It travels once to every node."""

    def on(self, device: torch.device) -> Callable[[Item_contra], Result_co]:
        """Return the function that computes an item on a device."""
        ...


class Here:
    """The calling process, as the only worker.

    `device` is where the calling process keeps its own tensors. `kind` is the kind of device that
    items are computed on, `processors` decides which bits they give, and `described` is for people.
    """

    def __init__(self, processor: torch.device) -> None:
        self.device, self.kind = processor, processor.type
        self.processors, self.described = device.processor(processor), device.describe(processor)

    def map(
        self, job: Job[Item, Result], items: Iterable[Item], stop: Stop | None = None
    ) -> Iterator[Result]:
        """Yield the result of every item, each computed when it is asked for.

        `stop` ends this after an item.
        """
        compute = job.on(self.device)
        for item in items:
            yield compute(item)
            if stop is not None and stop.asked:
                return

    def batches(self, n_left: int) -> int:  # noqa: ARG002
        """Return 1, so that progress is seen, and a stop obeyed, after every batch."""
        return 1
