"""Convert what a reader found to the one form of a source, and explain every conversion once."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.store import SPLITS
from pipeline.prepare.params import Part
from pipeline.prepare.sources import labels, pixels
from pipeline.prepare.sources.common import Found, Notes, Source, Stack
from pipeline.prepare.sources.parts import IN_WORDS


def normalised(path: Path, found: Found, image_size: int | None) -> Source:
    """Return the images of a reader as a source.

    Raises InputError, which begins with `path`, for images, labels or ids whose meaning is not
    plain.
    """
    shape = found.images.shape
    if not shape or 0 in shape:
        raise InputError(
            f"{path}: images: expected some, of a pixel or more, found shape {shape}; "
            "save them again"
        )
    n_images = shape[0]
    read, size, image_notes = pixels.as_rgb(str(path), found.images, image_size)
    numbers, class_names, label_notes = labels.classes_of(
        str(path),
        found.labels,
        n_images,
        found.class_names,
        () if found.split is None else np.bincount(found.split).tolist(),
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


def joined(path: Path, train: Found, held_out: Mapping[Part, Found]) -> Found:
    """Return the parts of a data set as one, with their split.

    Raises InputError for parts whose images have different shapes or types, for parts whose labels
    have different forms, and for a part without one row of labels for each image.
    """
    if not held_out:
        return train
    first, parts = train.images, [train, *held_out.values()]
    columns = [_column(path, "train", train)]
    for part, found in held_out.items():
        columns.append(_column(path, part, found))
        _expect_alike(path, "images", part, _kind(first), _kind(found.images))
        _expect_alike(path, "labels", part, _form(columns[0]), _form(columns[-1]))
    counts = [found.images.shape[0] for found in parts]
    starts = np.cumsum([0, *counts])

    def read(rows: NDArray[np.int64]) -> NDArray[Any]:
        images = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for found, start, stop in zip(parts, starts, starts[1:], strict=False):
            inside = (rows >= start) & (rows < stop)
            if inside.any():
                images[inside] = found.images.read(rows[inside] - start)
        return images

    numbers = [SPLITS[name] for name in ("train", *held_out)]
    return replace(
        train,
        images=Stack(shape=(int(starts[-1]), *first.shape[1:]), dtype=first.dtype, read=read),
        labels=np.concatenate(columns),
        split=np.repeat(np.array(numbers, np.uint8), counts),
    )


def _column(path: Path, part: str, found: Found) -> NDArray[Any]:
    """Return the labels of a part with one row per image, so that those of two can be joined."""
    rows, n_images = found.labels, found.images.shape[0] if found.images.shape else 0
    if not n_images:
        raise InputError(
            f"{path}: images: expected some to {IN_WORDS[part]}, found shape {found.images.shape}"
        )
    if rows.size == n_images:
        return rows.reshape(-1)
    if not rows.shape or len(rows) != n_images:
        raise InputError(
            f"{path}: labels: expected one for each of {n_images} images to {IN_WORDS[part]}, "
            f"found shape {rows.shape}; set data.arrays if they are those of another part"
        )
    return rows


def _kind(images: Stack) -> str:
    return f"{images.dtype} {images.shape[1:]}"


def _form(rows: NDArray[Any]) -> str:
    """Return what the labels of one image are, in words."""
    what = {"U": "text", "S": "bytes", "O": "bytes"}.get(rows.dtype.kind, "numbers")
    return f"{what} {rows.shape[1:]}" if rows.ndim > 1 else what


def _expect_alike(path: Path, what: str, part: Part, first: str, other: str) -> None:
    if first != other:
        raise InputError(
            f"{path}: {what}: expected the same form in all parts, found {first} to train and "
            f"{other} to {IN_WORDS[part]}"
        )


def _checked_ids(path: Path, ids: NDArray[Any], n_images: int) -> NDArray[np.int64]:
    if ids.dtype.kind not in "iu" or ids.shape != (n_images,):
        raise InputError(
            f"{path}: ids: expected one whole number for each of {n_images} images, "
            f"found {ids.dtype} {ids.shape}"
        )
    if repeated := n_images - len(np.unique(ids)):
        raise InputError(f"{path}: ids: expected every id once, found {repeated} repetitions")
    return ids.astype(np.int64)
