"""Flips and crops a whole batch at random, on its device.

A move is drawn once, can be applied to several batches of images, and can be undone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base import seeds
from pipeline.train.mixing import MixedBatches
from pipeline.train.part import Part

# Pixels per side, as for CIFAR-10 in "Deep Residual Learning for Image Recognition"
# (He et al., 2016).
CROP_PADDING = 4


@dataclass(frozen=True, kw_only=True)
class Move:
    """Where each image of a batch goes.

    `flipped` is (B, 1, 1, 1). `top` and `left` (B, 1, 1, 1) place its crop in the padded image.
    """

    flipped: Tensor | None
    top: Tensor | None
    left: Tensor | None

    def select(self, chosen: Tensor) -> "Move":
        """Return the moves of the images at some places (K,)."""
        return self._each(lambda drawn: drawn[chosen])

    def of(self, part: Part) -> "Move":
        """Return the moves of a worker's part of the batch."""
        return self._each(part.select)

    def _each(self, choose: Callable[[Tensor], Tensor]) -> "Move":
        return Move(
            **{name: None if drawn is None else choose(drawn) for name, drawn in vars(self).items()}
        )

    def apply(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W), each flipped and shifted.

        Pixels are zero where the crop leaves the image.
        """
        if self.flipped is not None:
            images = torch.where(self.flipped, images.flip(3), images)
        return self._shifted(images, 1)

    def undo(self, images: Tensor) -> Tensor:
        """Return moved images (B, C, H, W) to where they came from.

        Pixels are zero where the crop had cut them off.
        """
        images = self._shifted(images, -1)
        return images if self.flipped is None else torch.where(self.flipped, images.flip(3), images)

    def _shifted(self, images: Tensor, direction: int) -> Tensor:
        if self.top is None or self.left is None:
            return images
        n, _, height, width = images.shape
        padded = functional.pad(images, (CROP_PADDING,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        top, left = (
            CROP_PADDING + direction * (corner.flatten() - CROP_PADDING)
            for corner in (self.top, self.left)
        )
        return windows[torch.arange(n, device=images.device), :, top, left]


def draw(kind: str, n_images: int, generator: torch.Generator) -> Move:
    """Draw random moves for a batch.

    `kind` is none, flip (an image with probability 0.5), crop (a window of the padded image), or
    flip+crop.
    """
    flipped = top = left = None
    if "flip" in kind:
        flipped = torch.rand(n_images, 1, 1, 1, generator=generator, device=generator.device) < 0.5
    if "crop" in kind:
        top, left = torch.randint(
            0,
            2 * CROP_PADDING + 1,
            (2, n_images, 1, 1, 1),
            generator=generator,
            device=generator.device,
        )
    return Move(flipped=flipped, top=top, left=left)


def generator_for(device: torch.device, *numbers: int) -> torch.Generator:
    """Return the random numbers for one batch of one epoch of one run.

    A resumed run draws the same ones again.
    """
    return torch.Generator(device).manual_seed(seeds.batch_seed(*numbers))


class AugmentedBatches:
    """Batches to train on, flipped and cropped as `kind` says."""

    def __init__(self, batches: MixedBatches, kind: str, seed: int) -> None:
        self._batches, self._kind, self._seed = batches, kind, seed
        self.state: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for index, (images, labels, part) in enumerate(self._batches.epoch(number, first), first):
            generator = generator_for(images.device, self._seed, number, index)
            move = draw(self._kind, len(part.batch), generator).of(part)
            yield move.apply(images), part.counted(labels), part.shares(images)
