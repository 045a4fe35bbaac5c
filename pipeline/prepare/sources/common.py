"""Define what every source provides, and the checks that all sources share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
SPAN_ROWS = 64  # rows that are checked together


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, read piece by piece.

    `labels`, int64 (N,), are 0 to n_classes - 1, and each is present. `ids`, int64 (N,), are the
    source's own identifiers of the images, each of which occurs once. `read(rows)` returns the
    images of those rows as uint8 (n, 3, H, W). `class_names` has one name per class. `sha256` is
    that of the raw data. `notes` counts what was converted or left out. Each key is a text that
    follows its count.
    """

    labels: Labels
    ids: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Images]
    class_names: tuple[str, ...]
    sha256: str
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Images of one shape as they are in a file.

    `read(rows)` returns the images of those rows (int64) as an array (n, *shape[1:]) of `dtype`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[NDArray[np.int64]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a reader found, before anything is converted.

    `labels` are one for each image in any form that the normaliser knows: numbers, text, one-hot.
    `ids` are whole numbers, or None where the source has none. `class_names` are in the order of
    the labels, or None. `split` is 0 (train) or 1 (val) for each image where the source has its own
    split, else None. `sha256` is that of the raw data. `notes` counts what was left out, as in
    `Source`.
    """

    images: Stack
    labels: NDArray[Any]
    sha256: str
    ids: NDArray[Any] | None = None
    class_names: tuple[str, ...] | None = None
    split: NDArray[np.uint8] | None = None
    notes: Mapping[str, int] = field(default_factory=dict)


def numbered(n_classes: int) -> tuple[str, ...]:
    """Return numbers as names, for classes that have no names."""
    return tuple(str(number) for number in range(n_classes))


def check_levels(where: Path, source: Source) -> Source:
    """Return `source`, with a note where all its images are dark.

    Images are read up to the first bright one. Raises InputError where no level is above 1, as in
    images stored as 0 and 1.
    """
    brightest, rows = 0, np.arange(len(source.labels))
    for start in range(0, len(rows), SPAN_ROWS):
        brightest = max(brightest, int(source.read(rows[start : start + SPAN_ROWS]).max()))
        if brightest >= 128:
            return source
    if brightest <= 1:
        raise InputError(
            f"{where}: images: expected levels from 0 to 255, found none above {brightest}; "
            "scale them so that white is 255"
        )
    return replace(
        source,
        notes={
            **source.notes,
            f"images with no level above {brightest} of 255, taken as they are": len(rows),
        },
    )


def check_type(where: str, images: NDArray[np.generic]) -> None:
    """Raise InputError for images that are not uint8.

    The message contains the range that was found and how to store the images. A few images are
    sufficient.
    """
    if images.dtype == np.uint8:
        return
    found, remedy = str(images.dtype), "map black to 0 and white to 255, round, and save as uint8"
    if images.dtype.kind in "biuf" and images.size:
        low, high = images.min().item(), images.max().item()
        found, remedy = (
            f"{found} from {low:g} to {high:g}",
            _as_bytes(images.dtype.kind, low, high) or remedy,
        )
    raise InputError(f"{where}: expected uint8, 0 to 255, found {found}; {remedy}")


def _as_bytes(kind: str, low: float, high: float) -> str | None:
    """Return how to convert levels of that range to uint8; None where the range does not tell."""
    if math.isnan(low):
        return "replace NaN, map black to 0 and white to 255, round, and save as uint8"
    if low < 0 or high > 255:
        return None
    if high <= 1:
        return "save numpy.rint(images * 255.0).astype(numpy.uint8)"
    return f"save {'numpy.rint(images)' if kind == 'f' else 'images'}.astype(numpy.uint8)"


def check_shape(where: Path, shape: tuple[int, ...], image_size: int) -> bool:
    """Return whether images of this shape have their channels last.

    Raises InputError for a shape with the channels neither first nor last, and for images of
    another size than `image_size`.
    """
    first, last = (3, image_size, image_size), (image_size, image_size, 3)
    if len(shape) != 4 or shape[1:] not in (first, last):
        raise InputError(
            f"{where}: images: expected shape (N, {', '.join(map(str, first))}) or (N, "
            f"{', '.join(map(str, last))}), "
            f"found {tuple(shape)}; data.image_size is {image_size}"
        )
    return shape[1:] == last


def check_labels(where: Path, labels: NDArray[np.generic], n_images: int) -> Labels:
    """Return `labels` as int64 (n_images,).

    Raises InputError unless they are 0 to n_classes - 1 with every class present.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels: expected whole numbers, found {labels.dtype}")
    if labels.shape != (n_images,):
        raise InputError(
            f"{where}: labels: expected one for each of {n_images} images, "
            f"found shape {labels.shape}"
        )
    if n_images == 0 or labels.min() < 0:
        raise InputError(
            f"{where}: labels: expected 0 or more, found "
            f"{labels.min() if n_images else 'no images at all'}"
        )
    present = np.unique(labels)
    if present[-1] != len(present) - 1 or len(present) < 2:
        shown = ", ".join(map(str, present[:10])) + (", …" if len(present) > 10 else "")
        raise InputError(
            f"{where}: labels: expected at least two classes numbered 0, 1, 2, … without gaps, "
            f"found {shown}"
        )
    return labels.astype(np.int64)
