"""Small networks of each kind that an evaluation must tell apart.

They are trained in seconds on scikit-learn's digits at 8x8 pixels.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipeline.base.store import Block

EPS = 32 / 255
N_VAL = 150


def digits() -> Block:
    """All digits, the first ones held out."""
    source = load_digits()
    rows = np.random.default_rng(0).permutation(len(source.target))
    grey = np.round(source.images[rows] * 255 / 16).astype(np.uint8)
    split = (np.arange(len(rows)) < N_VAL).astype(np.uint8)
    return Block(
        images=np.repeat(grey[:, None], 3, 1),
        labels=source.target[rows].astype(np.int64),
        ids=rows,
        split=split,
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def pgd(model, images, labels, *, eps=EPS, steps=5, alpha=EPS / 3):
    """Attack with PGD, written a second time, so that the tested code does not also train.

    One step with alpha = eps is FGSM.
    """
    start = (
        images
        if steps == 1
        else (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    )
    for _ in range(steps):
        start = start.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(start), labels), start)
        start = (
            images + (start.detach() + alpha * gradient.sign() - images).clamp(-eps, eps)
        ).clamp(0, 1)
    return start.detach()


def train(model, images, labels, epochs, attacked=lambda model, images, labels: images):
    """Adam on images (N, 3, 8, 8) in [0, 1], each batch attacked first."""
    optimizer, generator = (
        torch.optim.Adam(model.parameters(), 3e-3),
        torch.Generator().manual_seed(0),
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            adv_images = attacked(model, images[rows], labels[rows])
            optimizer.zero_grad()
            functional.cross_entropy(model(adv_images), labels[rows]).backward()
            optimizer.step()
    return model


class Rounded(nn.Module):
    """A network behind a layer that rounds, and so has no gradient."""

    def __init__(self, inner, levels=16):
        super().__init__()
        self.inner, self.levels = inner, levels

    def forward(self, images):
        return self.inner(torch.round(images * self.levels) / self.levels)


class Scaled(nn.Module):
    """A network whose logits are so far apart that the cross-entropy has no gradient left."""

    def __init__(self, inner, factor=1e4):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, images):
        return self.inner(images) * self.factor


class Noisy(nn.Module):
    """A network that adds noise to its images, freshly for every prediction."""

    def __init__(self, inner, deviation=0.2):
        super().__init__()
        self.inner, self.deviation = inner, deviation

    def forward(self, images):
        return self.inner(images + self.deviation * torch.randn_like(images))


class Probabilities(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images).softmax(1)


class FullInBackward(torch.autograd.Function):
    """Logits whose way back runs out of memory."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError("CUDA out of memory")
