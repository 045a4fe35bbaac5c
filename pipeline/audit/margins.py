"""Measure by how much a network is right or wrong about each image."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import networks
from pipeline.base.store import Block

TIGHT = 1e-2  # in logits: below this margin another processor may predict another class


def margins_of(
    network: nn.Module, block: Block, batch_size: int = networks.BATCH_SIZE
) -> NDArray[np.float64]:
    """Return by how much the label's logit exceeds the highest other logit (N,).

    The network is right where the margin is above 0.
    """
    logits = networks.outputs(network, block.images, batch_size).double()
    own = torch.from_numpy(block.labels)[:, None]
    others = logits.scatter(1, own, -math.inf).amax(1)
    margins: NDArray[np.float64] = (logits.gather(1, own)[:, 0] - others).numpy()
    return margins


def guesses_of(
    network: nn.Module, images: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the predicted class (N,) of uint8 images, and by how much its logit leads (N,)."""
    logits = networks.outputs(network, images, networks.BATCH_SIZE).double()
    best, classes = logits.topk(2, dim=1)
    return classes[:, 0].numpy(), (best[:, 0] - best[:, 1]).numpy()
