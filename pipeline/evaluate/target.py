"""The judged network, with what all attacks on it share, and how parts of a block reach workers."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import networks
from pipeline.base.store import Block
from pipeline.cluster.here import Here
from pipeline.cluster.opened import Workers
from pipeline.networks import matrix_products
from pipeline.networks.memory_fit import InParts
from pipeline.networks.precision import exact
from pipeline.networks.scores import Mask

Found = TypeVar("Found")
BATCH_SIZE = 256  # images that share an attack's random numbers, so it affects the result


@dataclass(frozen=True, kw_only=True)
class Target:
    """A frozen copy of the judged network, with the settings that all attacks on it share.

    The network takes images in [0, 1]. It alone decides whether an image withstands. `attacked` is
    the network that attacks use: the same function in float32, as matrix products.
    `batch_size` and `seed` decide which random numbers an image gets. `_predicted` has the
    predicted classes of stored images, by their digests.
    """

    network: InParts
    attacked: InParts
    n_classes: int
    batch_size: int
    seed: int
    image_size: int | None
    workers: Workers
    _predicted: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        network: nn.Module,
        n_classes: int,
        *,
        batch_size: int,
        seed: int,
        image_size: int | None = None,
        workers: Workers | None = None,
    ) -> Self:
        """Return a target with a copy of the network. The caller's own is not changed.

        Attacks use the network itself if `image_size` is not known. Without `workers`, the network
        attacks and judges where it is.
        """
        judge = InParts(networks.frozen_copy(network))
        attacked = judge
        if image_size is not None:
            attacked = InParts(matrix_products.for_attacks(network, image_size, torch.float32))
        return cls(
            network=judge,
            attacked=attacked,
            n_classes=n_classes,
            batch_size=batch_size,
            seed=seed,
            image_size=image_size,
            workers=workers or Here(next(network.parameters()).device),
        )

    def __reduce__(self) -> tuple[type["Packed"], tuple[Any, ...]]:
        """Travel to other processes without what is made of the network for attacks."""
        network = copy.deepcopy(self.network.network).cpu()
        return Packed, (network, self.n_classes, self.batch_size, self.seed, self.image_size)

    def on(self, _: torch.device) -> Callable[["Part"], Any]:
        """Return the function that computes a part of a block: a target is a `Job`."""

        @exact()
        def compute(part: "Part") -> Any:
            return part.compute(self, part.start, part.block, *part.arguments)

        return compute

    def each_part(
        self,
        compute: Callable[..., Found],
        block: Block,
        *arguments: Any,
        standing: Mask,
    ) -> Iterator[tuple[slice, Found]]:
        """Yield the rows of every part of a block, and what workers computed of it, in order.

        A part is a run of whole batches. `compute` takes the target, the part's first place in the
        block, the part, `arguments`, and the part's rows of `standing`.
        """
        taken: list[slice] = []

        def parts() -> Iterator[Part]:
            first = 0
            while first < len(block):
                n_batches = self.workers.batches(-(-(len(block) - first) // self.batch_size))
                rows = slice(first, min(first + n_batches * self.batch_size, len(block)))
                taken.append(rows)
                yield Part(compute, first, block.select(rows), (*arguments, standing[rows]))
                first = rows.stop

        for place, found in enumerate(self.workers.map(self, parts())):
            yield taken[place], found

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def predicted(self, block: Block) -> NDArray[np.int64]:
        """Return the predicted class (N,) of stored images, as `networks.predict` does.

        The network is asked once for images that are equal.
        """
        digests = [digest(image) for image in block.images]
        new = {key: row for row, key in enumerate(digests) if key not in self._predicted}
        if new:
            classes = networks.predict(
                self.network, block.images[list(new.values())], self.batch_size
            )
            self._predicted.update(zip(new, classes.tolist(), strict=True))
        return np.array([self._predicted[key] for key in digests], dtype=np.int64)

    def is_right(self, block: Block) -> Mask:
        """Return which stored images (N,) the network gets right."""
        right: Mask = self.predicted(block) == block.labels
        return right

    def tensors(self, block: Block, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in [0, 1] and labels (B,) on the network's device.

        The images are contiguous, because torchattacks' FAB takes no others.
        """
        return networks.pixels(block.images[rows], self.device).contiguous(), torch.from_numpy(
            block.labels[rows]
        ).to(self.device)

    def batches(self, standing: Mask) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the first place of every batch, and the rows of its images that are not lost.

        A batch keeps its place whichever images were lost before.
        """
        for start in range(0, len(standing), self.batch_size):
            yield start, start + np.flatnonzero(standing[start : start + self.batch_size])


class Part(NamedTuple):
    """A run of whole batches of a block, beginning at place `start`, and what to compute of it."""

    compute: Callable[..., Any]
    start: int
    block: Block
    arguments: tuple[Any, ...]


class Packed(NamedTuple):
    """A target on its way to another process, with the network on the CPU."""

    network: nn.Module
    n_classes: int
    batch_size: int
    seed: int
    image_size: int | None

    def on(self, device: torch.device) -> Callable[[Part], Any]:
        """Return the function that computes a part of a block with a target on a device."""
        target = Target.of(
            self.network.to(device),
            self.n_classes,
            batch_size=self.batch_size,
            seed=self.seed,
            image_size=self.image_size,
        )
        return target.on(device)


def digest(image: NDArray[np.uint8]) -> bytes:
    """Return what tells an image from all others."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


@dataclass
class Passes:
    """The images that passed forward and backward through networks: the cost of an attack."""

    forward: int = 0
    backward: int = 0

    @contextmanager
    def counting(self, network: nn.Module) -> Iterator[None]:
        """Count what passes through a network in the block."""
        handle = network.register_forward_hook(self._seen)
        try:
            yield
        finally:
            handle.remove()

    def _seen(self, _: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._returned)  # type: ignore[no-untyped-call]

    def _returned(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def add(self, other: "Passes") -> None:
        """Count passes that were made elsewhere."""
        self.forward, self.backward = self.forward + other.forward, self.backward + other.backward

    def as_metrics(self) -> dict[str, int]:
        return {"forward_passes": self.forward, "backward_passes": self.backward}
