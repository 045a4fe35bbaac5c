"""Computes the part of a loss that compares the network's outputs for two images.

FGSM-PGI keeps the logits of an adversarial image close to those of the image that its attack began
at (Jia et al., "Prior-Guided Adversarial Initialization for Fast Adversarial Training", ECCV 2022).
TRADES keeps the probabilities of an adversarial image close to those of its original (Zhang et al.,
"Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019).
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.train.params import Paired


def loss(kind: Paired, logits: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """Return the sum of the weighted differences between images and their partners.

    `partners` (B,) are the rows of `logits` (B, n_classes) that each row is compared with. An image
    without a partner has a weight of 0 in `weights` (B,), and any row as its partner. Gradients
    reach both images of a pair.
    """
    others = logits[partners]
    if kind == "logits":
        differences = (logits - others).square().mean(1)
    else:
        own, other = (functional.log_softmax(found, 1) for found in (logits, others))
        differences = (other.exp() * (other - own)).sum(1)
    return torch.sum(differences * weights)
