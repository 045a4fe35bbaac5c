"""Rounds adversarial images to uint8 inside the eps ball, and records how they were made."""

from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from pipeline.attacks import params
from pipeline.base import store


def eps_levels(eps: float) -> int:
    """Return how many of the 255 steps between stored pixels fit into `eps`.

    The result is 8 for 8/255, and 7 for 0.03.
    """
    return int(np.floor(eps * 255 + 1e-6))


def quantise(adv_images: Tensor, images: Tensor, eps: Tensor | float) -> Tensor:
    """Return adversarial images as uint8, rounded to nearest and then projected.

    No pixel leaves the eps ball or [0, 255]. Rounding alone could leave the ball by half a step.
    `adv_images` (B, 3, H, W) are in [0, 1], and `images` are the clean ones as uint8. `eps` is one
    for all, or (B, 1, 1, 1) in whole steps between stored pixels.
    """
    levels = eps.mul(255).round().to(torch.int16) if isinstance(eps, Tensor) else eps_levels(eps)
    clean = images.to(torch.int16)
    rounded = adv_images.mul(255).round_().clamp_(0, 255).to(torch.int16)
    return rounded.clamp(clean - levels, clean + levels).clamp_(0, 255).to(torch.uint8)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what an attack gives."""
    return {
        f"versions.{name}": version(name)
        for name in ("torch", "torchvision", "torchattacks", "h5py", "numpy")
    }


def passes(images: store.ImageSet) -> int:
    """Return how many gradients of single images it took to make a set.

    This is one per image and step, as most gradient attacks take them, times the gradients that a
    step averages. Restarts and targets of APGD count for all images, although those that are fooled
    leave. FAB, Square, SPSA and AutoAttack count as one step, or as their steps.
    """
    given = images.attributes
    each = int(given.get("attack.eot_iter", 1)) * int(given.get("attack.noise_batch_size", 1))
    match given["attack.class"]:
        case "VMIFGSM" | "VNIFGSM":
            each *= int(given["attack.N"]) + 1
        case "SINIFGSM":
            each *= int(given["attack.m"])
        case "APGD":
            each *= int(given["attack.n_restarts"])
        case "APGDT":
            each *= int(given["attack.n_restarts"]) * (len(images.class_names) - 1)
    steps = given.get("attack.num_iter_set", given.get("attack.steps", 1))
    return len(images) * int(steps) * each


def identity(
    clean: store.ImageSet,
    model_sha256: str,
    name: str,
    spec: params.Attack,
    settings: params.Generate,
) -> store.Attributes:
    """Return the attributes by which a reader recognises the stored set that it wants."""
    return {
        "clean.digest": clean.digest,
        "model.sha256": model_sha256,
        "attack": name,
        "attack.class": spec.attack,
        **{f"attack.{key}": value for key, value in spec.described.items()},
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }
