"""Measure by how much a network is right or wrong about each image."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import networks
from pipeline.generate import generation
from pipeline.networks.precision import exact

TIGHT = 1e-2  # in logits: below this margin another processor may predict another class


@exact()
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
    parts = []
    with torch.inference_mode():
        for part in generation.batches(len(images), batch_size):
            logits = network(networks.pixels(images[part], device)).double()
            own = torch.from_numpy(labels[part]).to(device)[:, None]
            others = logits.scatter(1, own, -math.inf).amax(1)
            parts.append((logits.gather(1, own)[:, 0] - others).cpu())
    return torch.cat(parts).numpy()
