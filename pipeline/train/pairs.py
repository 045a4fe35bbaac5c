"""Compares the network's outputs for adversarial images with those for their partners.

FGSM-PGI keeps the logits of an adversarial image close to those of the image that its attack began
at (Jia et al., "Prior-Guided Adversarial Initialization for Fast Adversarial Training", ECCV 2022).
TRADES keeps the probabilities of an adversarial image close to those of its original (Zhang et al.,
"Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019).

A batch has images (B, 3, H, W) in [0, 1], labels (B,), and each image's share (B,) of the loss.
Where images have partners, the weight (B,) of each comparison and the rows (B,) of the partners
follow.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.train.params import Paired
from pipeline.train.part import UNCOUNTED

Batch = tuple[Tensor, ...]


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


def regularised(batch: Batch, adversarial: Tensor, starts: Tensor, weight: float) -> Batch:
    """Return a batch in which adversarial images are compared with the starts of their attacks.

    `adversarial` (K,) are their places, and `starts` (K, 3, H, W) are in the same order. Starts
    have no label and no share of the cross-entropy.
    """
    labels, shares = batch[1:3]
    uncounted = torch.full_like(labels[adversarial], UNCOUNTED)
    none = torch.zeros_like(shares[adversarial])
    return _with_partners(batch, adversarial, (starts, uncounted, none), shares, weight)


def trades(batch: Batch, adversarial: Tensor, originals: Tensor, beta: float) -> Batch:
    """Return a batch in which adversarial images are compared with their originals.

    `adversarial` (K,) are their places, and `originals` (K, 3, H, W) are in the same order. These
    take over the adversarial images' shares of the cross-entropy.
    """
    labels, shares = batch[1:3]
    own = shares.index_fill(0, adversarial, 0)
    partners = originals, labels[adversarial], shares[adversarial]
    return _with_partners(batch, adversarial, partners, own, beta)


def _with_partners(
    batch: Batch, adversarial: Tensor, partners: Batch, own: Tensor, weight: float
) -> Batch:
    """Return a batch with `partners`, a batch like it, appended to it.

    `own` are the shares of the batch's own images.
    """
    images, labels, shares = batch
    others, their_labels, their_shares = partners
    n, n_all = len(labels), len(labels) + len(others)
    weights = torch.zeros_like(shares).index_copy(0, adversarial, shares[adversarial] * weight)
    rows = torch.arange(n_all, device=labels.device)
    rows[:n][adversarial] = rows[n:]
    return (
        torch.cat([images, others]),
        torch.cat([labels, their_labels]),
        torch.cat([own, their_shares]),
        torch.cat([weights, torch.zeros_like(their_shares)]),
        rows,
    )
