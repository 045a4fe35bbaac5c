"""Compute the starting points and the step sizes of attacks inside training."""

import torch
from torch import Tensor

from pipeline.base.values import step_size


def random_start(images: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
    """Return images in [0, 1], moved by uniform noise within their `eps` (B, 1, 1, 1)."""
    noise = torch.rand(images.shape, generator=generator, device=images.device) * 2 - 1
    return (images + noise * eps).clamp(0, 1)


def step_sizes(alpha: float | str, eps: Tensor, steps: int) -> Tensor:
    """Return each image's step size (B, 1, 1, 1)."""
    return (
        step_size(alpha, 1.0, steps) * eps
        if isinstance(alpha, str)
        else torch.full_like(eps, alpha)
    )
