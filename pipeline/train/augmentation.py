"""Random flips and crops of a whole batch, on its device: drawn once, applied to several images, and taken back."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.base import seeds
from pipeline.train.mixing import MixedBatches

CROP_PADDING = 4  # pixels a side, as in "Deep Residual Learning for Image Recognition" for CIFAR-10 (He et al., 2016)


@dataclass(frozen=True, kw_only=True)
class Move:
    """Where each image of a batch goes: `flipped` (B, 1, 1, 1), and the `top` and `left` (B, 1, 1, 1) of its crop in the padded image."""

    flipped: Tensor | None
    top: Tensor | None
    left: Tensor | None

    def select(self, chosen: Tensor) -> "Move":
        """The moves of the images where a mask (B,) is true."""
        return Move(
            **{name: None if part is None else part[chosen] for name, part in vars(self).items()}
        )

    def apply(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), each flipped and shifted, with zeros where the crop leaves the image."""
        if self.flipped is not None:
            images = torch.where(self.flipped, images.flip(3), images)
        return self._shifted(images, 1)

    def undo(self, images: Tensor) -> Tensor:
        """Moved images (B, C, H, W) back where they came from, with zeros where the crop had cut them off."""
        images = self._shifted(images, -1)
        return images if self.flipped is None else torch.where(self.flipped, images.flip(3), images)

    def _shifted(self, images: Tensor, direction: int) -> Tensor:
        if self.top is None or self.left is None:
            return images
        n, channels, height, width = images.shape
        padded = functional.pad(images, (CROP_PADDING,) * 4)
        top, left = (
            CROP_PADDING + direction * (corner - CROP_PADDING) for corner in (self.top, self.left)
        )
        device = images.device
        rows = top + torch.arange(height, device=device).view(1, 1, height, 1)
        columns = left + torch.arange(width, device=device).view(1, 1, 1, width)
        return padded[
            torch.arange(n, device=device).view(n, 1, 1, 1),
            torch.arange(channels, device=device).view(1, -1, 1, 1),
            rows,
            columns,
        ]


def draw(kind: str, n_images: int, generator: torch.Generator) -> Move:
    """Random moves for a batch: none, flip (every second image), crop (a window of the padded image), or flip+crop."""
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
    """Random numbers for one batch of one epoch of one run: a run that goes on draws the same ones again."""
    return torch.Generator(device).manual_seed(seeds.batch_seed(*numbers))


class AugmentedBatches:
    """Batches to train on, flipped and cropped as `kind` says."""

    def __init__(self, batches: MixedBatches, kind: str, seed: int) -> None:
        self._batches, self._kind, self._seed = batches, kind, seed
        self.state: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """From batch `first` of an epoch on: images (B, 3, H, W) in [0, 1], labels (B,), and each image's share (B,) of the loss."""
        for index, (images, labels) in enumerate(self._batches.epoch(number, first), first):
            move = draw(
                self._kind, len(labels), generator_for(images.device, self._seed, number, index)
            )
            yield (
                move.apply(images),
                labels,
                torch.full_like(labels, 1 / len(labels), dtype=images.dtype),
            )
