"""Measure by how much a network is right or wrong about each image."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import networks
from pipeline.generate import attacker
from pipeline.networks.precision import exact

TIGHT = 1e-2  # in logits: below this margin another processor may predict another class


def margins_of(
    network: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return by how much the label's logit exceeds the highest other logit (N,).

    The network is right where the margin is above 0. `images` are uint8 and are judged batch by
    batch.
    """
    logits, own = _logits(network, images, batch_size, device), torch.from_numpy(labels)[:, None]
    others = logits.scatter(1, own, -math.inf).amax(1)
    margins: NDArray[np.float64] = (logits.gather(1, own)[:, 0] - others).numpy()
    return margins


def guesses_of(
    network: nn.Module, images: NDArray[np.uint8], batch_size: int, device: torch.device
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the predicted class (N,) of uint8 images, and by how much its logit leads (N,)."""
    best, classes = _logits(network, images, batch_size, device).topk(2, dim=1)
    return classes[:, 0].numpy(), (best[:, 0] - best[:, 1]).numpy()


@exact()
def _logits(
    network: nn.Module, images: NDArray[np.uint8], batch_size: int, device: torch.device
) -> Tensor:
    """Return the outputs (N, n_classes) for uint8 images, on the CPU."""
    with torch.inference_mode():
        return torch.cat(
            [
                network(networks.pixels(images[part], device)).double().cpu()
                for part in attacker.batches(len(images), batch_size)
            ]
        )
