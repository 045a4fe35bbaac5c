"""Store small sets of random images, on which a few real steps are measured."""

import json
from pathlib import Path

import numpy as np

from pipeline.base import store
from pipeline.base.values import CLEAN

EPS = 8 / 255


def block(n_images: int, size: int, n_classes: int) -> store.Block:
    """Return training images with random pixels."""
    rows, generator = np.arange(n_images), np.random.default_rng(0)
    return store.Block(
        images=generator.integers(0, 256, (n_images, 3, size, size), dtype=np.uint8),
        labels=rows % n_classes,
        ids=rows,
        split=np.zeros(n_images, dtype=np.uint8),
        eps=np.full(n_images, EPS, dtype=np.float32),
        fooled=np.zeros(n_images, dtype=bool),
    )


def write(path: Path, images: store.Block, n_classes: int) -> store.ImageSet:
    """Store images as one shard."""
    names = [str(label) for label in range(n_classes)]
    attributes: store.Attributes = {"kind": CLEAN, "class_names": json.dumps(names)}
    with store.Writer(path, attributes, bounds=[(0, len(images))]) as writer:
        writer.write(0, images)
    return store.ImageSet(path)
