"""Convert what a reader found to the one form of a source, and explain every conversion once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.prepare.sources import labels, pixels
from pipeline.prepare.sources.common import Found, Notes, Source, Stack


def normalised(path: Path, found: Found, image_size: int | None) -> Source:
    """Return the images of a reader as a source.

    Raises InputError, which begins with `path`, for images, labels or ids whose meaning is not
    plain.
    """
    n_images = found.images.shape[0] if found.images.shape else 0
    if not n_images:
        raise InputError(f"{path}: images: expected some, found shape {found.images.shape}")
    read, size, image_notes = pixels.as_rgb(str(path), found.images, image_size)
    numbers, class_names, label_notes = labels.classes_of(
        str(path), found.labels, n_images, found.class_names
    )
    notes: Notes = Counter(found.notes) + image_notes + label_notes
    return Source(
        labels=numbers,
        ids=np.arange(n_images) if found.ids is None else _checked_ids(path, found.ids, n_images),
        read=read,
        class_names=class_names,
        sha256=found.sha256,
        image_size=size,
        notes=notes,
        split=found.split,
    )


def joined(path: Path, train: Found, held_out: Found) -> Found:
    """Return two parts of a data set as one, with their split.

    Raises InputError for parts whose images have different shapes or types.
    """
    first, second = train.images, held_out.images
    if (first.shape[1:], first.dtype) != (second.shape[1:], second.dtype):
        raise InputError(
            f"{path}: expected the same images in both parts, found {first.dtype} "
            f"{first.shape[1:]} to train and {second.dtype} {second.shape[1:]} to validate"
        )
    n_train = first.shape[0]

    def read(rows: NDArray[np.int64]) -> NDArray[Any]:
        images = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for part, stack, shift in ((rows < n_train, first, 0), (rows >= n_train, second, n_train)):
            if part.any():
                images[part] = stack.read(rows[part] - shift)
        return images

    n_images = n_train + second.shape[0]
    return replace(
        train,
        images=Stack(shape=(n_images, *first.shape[1:]), dtype=first.dtype, read=read),
        labels=np.concatenate([_column(train), _column(held_out)]),
        split=(np.arange(n_images) >= n_train).astype(np.uint8),
    )


def _column(found: Found) -> NDArray[Any]:
    """Return labels with one row per image, so that those of two parts can be joined."""
    rows = found.labels
    return rows.reshape(-1) if rows.size == found.images.shape[0] else rows


def _checked_ids(path: Path, ids: NDArray[Any], n_images: int) -> NDArray[np.int64]:
    if ids.dtype.kind not in "iu" or ids.shape != (n_images,):
        raise InputError(
            f"{path}: ids: expected one whole number for each of {n_images} images, "
            f"found {ids.dtype} {ids.shape}"
        )
    if repeated := n_images - len(np.unique(ids)):
        raise InputError(f"{path}: ids: expected every id once, found {repeated} repetitions")
    return ids.astype(np.int64)
