"""Append to a batch the images that its adversarial images are compared with.

`train.pairs` computes the comparison. A batch has images (B, 3, H, W) in [0, 1], labels (B,), and
each image's share (B,) of the loss. Where images have partners, the weight (B,) of each comparison
and the rows (B,) of the partners follow.
"""

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]


def regularised(batch: Batch, adversarial: Tensor, starts: Tensor, weight: float) -> Batch:
    """Return a batch in which adversarial images are compared with the starts of their attacks.

    `adversarial` (K,) are their places, and `starts` (K, 3, H, W) are in the same order. Starts
    have no share of the cross-entropy.
    """
    shares = batch[2]
    return _with_partners(
        batch, adversarial, starts, shares, torch.zeros_like(shares[adversarial]), weight
    )


def trades(batch: Batch, adversarial: Tensor, originals: Tensor, beta: float) -> Batch:
    """Return a batch in which adversarial images are compared with their originals.

    `adversarial` (K,) are their places, and `originals` (K, 3, H, W) are in the same order. These
    take over the adversarial images' shares of the cross-entropy.
    """
    shares = batch[2]
    own = shares.index_fill(0, adversarial, 0)
    return _with_partners(batch, adversarial, originals, own, shares[adversarial], beta)


def _with_partners(
    batch: Batch, adversarial: Tensor, partners: Tensor, own: Tensor, others: Tensor, weight: float
) -> Batch:
    """Return a batch with `partners`, whose shares are `others`, appended to it.

    `own` are the shares of the batch's own images.
    """
    images, labels, shares = batch
    n, n_all = len(labels), len(labels) + len(partners)
    weights = torch.zeros_like(shares).index_copy(0, adversarial, shares[adversarial] * weight)
    rows = torch.arange(n_all, device=labels.device)
    rows[:n][adversarial] = rows[n:]
    return (
        torch.cat([images, partners]),
        torch.cat([labels, labels[adversarial]]),
        torch.cat([own, others]),
        torch.cat([weights, torch.zeros_like(others)]),
        rows,
    )
