"""Compute the starting points and the step sizes of attacks inside training."""

import torch
from torch import Tensor

from pipeline.base.values import step_size


def noise(n_images: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform noise (n_images, 3, H, W) in [-1, 1] for images of the size of `images`."""
    shape = (n_images, *images.shape[1:])
    return torch.rand(shape, generator=generator, device=images.device) * 2 - 1


def random_start(images: Tensor, eps: Tensor, drawn: Tensor) -> Tensor:
    """Return images in [0, 1], moved by noise in [-1, 1] times their `eps` (B, 1, 1, 1)."""
    return (images + drawn * eps).clamp(0, 1)


def step_sizes(alpha: float | str, eps: Tensor, steps: int) -> Tensor:
    """Return each image's step size (B, 1, 1, 1)."""
    return (
        step_size(alpha, 1.0, steps) * eps
        if isinstance(alpha, str)
        else torch.full_like(eps, alpha)
    )
