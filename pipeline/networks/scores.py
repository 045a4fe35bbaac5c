"""Compute accuracies with their intervals, and choose the images to attack."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline import networks
from pipeline.base.store import Block

Mask = NDArray[np.bool_]


def sample(val: Block, n_eval: int | None, seed: int) -> NDArray[np.int64]:
    """Return the rows of the validation images to attack, in order.

    That is all rows, or `n_eval` at random. A smaller sample is part of every larger one.
    """
    rows = np.random.default_rng(seed).permutation(len(val))[:n_eval]
    return np.sort(rows)


def summarise(
    right: Mask, labels: NDArray[np.int64], n_classes: int, n_images: int | None = None
) -> dict[str, Any]:
    """Return accuracy over all images and by class, in [0, 1].

    That is: accuracy, its 95 % interval (Wilson, 1927), the mean of the classes' accuracies, the
    number of images, and each class's accuracy. A class without images has None. Where `right`
    (n,) holds several versions of `n_images` images, the interval is that of so many images: the
    versions of one image are right or wrong together.
    """
    of_class = [right[labels == label] for label in range(n_classes)]
    return {
        **interval(right, n_images),
        "balanced_accuracy": round(
            float(np.mean([part.mean() for part in of_class if len(part)])), 6
        ),
        "n": len(right),
        "per_class": [round(float(part.mean()), 6) if len(part) else None for part in of_class],
    }


def interval(right: Mask, n_images: int | None = None) -> dict[str, float]:
    """Return accuracy and its 95 % interval (Wilson, 1927), in [0, 1], as `summarise` does."""
    from scipy.stats import binomtest

    n = len(right) if n_images is None else n_images
    bounds = binomtest(round(right.sum() * n / len(right)), n).proportion_ci(
        confidence_level=0.95, method="wilson"
    )
    return {
        "accuracy": round(float(right.mean()), 6),
        "low95": round(float(bounds.low), 6),
        "high95": round(float(bounds.high), 6),
    }


Validate = Callable[[nn.Module], dict[str, float]]


def accuracy_on(val: Block) -> Validate:
    """Return a function that measures accuracy on validation images as they are stored."""
    return lambda network: {"val_accuracy": networks.accuracy(network, val.images, val.labels)}
