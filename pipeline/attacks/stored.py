"""Adversarial images as they are stored: rounded to uint8 inside the eps ball, and known by how they were made."""

from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.attacks import params

if TYPE_CHECKING:
    pass
from pipeline.base import store


def eps_levels(eps: float) -> int:
    """How many of the 255 steps between stored pixels fit into `eps`: 8 for 8/255, 7 for 0.03."""
    return int(np.floor(eps * 255 + 1e-6))


def quantise(adv_images: Tensor, images: Tensor, eps: Tensor | float) -> Tensor:
    """Adversarial images as uint8, rounded to nearest and then projected: no pixel leaves the eps ball or [0, 255].

    `adv_images` (B, 3, H, W) in [0, 1], `images` the clean ones as uint8, `eps` one for all, or (B, 1, 1, 1) in whole steps between stored
    pixels. Rounding alone could leave the ball by half a step.
    """
    levels = eps.mul(255).round().to(torch.int16) if isinstance(eps, Tensor) else eps_levels(eps)
    clean = images.to(torch.int16)
    rounded = adv_images.mul(255).round_().clamp_(0, 255).to(torch.int16)
    return rounded.clamp(clean - levels, clean + levels).clamp_(0, 255).to(torch.uint8)


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what an attack gives."""
    return {
        f"versions.{name}": version(name)
        for name in ("torch", "torchvision", "torchattacks", "h5py")
    }


def passes(images: store.ImageSet) -> int:
    """How many gradients of single images it took to make a set: one a step, as torchattacks' gradient attacks take them."""
    return len(images) * int(images.attributes.get("attack.steps", 1))


def identity(
    clean: store.ImageSet,
    model_sha256: str,
    name: str,
    spec: params.Attack,
    settings: params.Generate,
) -> store.Attributes:
    """The attributes by which a reader knows that a stored set is the one it wants."""
    return {
        "clean.digest": clean.digest,
        "model.sha256": model_sha256,
        "attack": name,
        "attack.class": spec.attack,
        **{f"attack.{key}": value for key, value in spec.described.items()},
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
