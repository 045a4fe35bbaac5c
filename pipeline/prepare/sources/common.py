"""Define what every source provides, and the checks that all sources share."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Notes = Counter[str]
SPAN_ROWS = 64  # rows that are checked together


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, read piece by piece.

    `labels`, int64 (N,), are 0 to n_classes - 1, and each is present. `ids`, int64 (N,), are the
    source's own identifiers of the images, each of which occurs once. `read(rows)` returns the
    images of those rows as uint8 (n, 3, image_size, image_size). `class_names` has one name per
    class. `sha256` is that of the raw data. `notes` counts what was converted or left out. Each key
    is a text that follows its count. `split` is 0 (train), 1 (val) or 2 (test) for each image, or
    None where the source's own split is not used. `skipped` are the names of images that cannot be
    read.
    """

    labels: Labels
    ids: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Images]
    class_names: tuple[str, ...]
    sha256: str
    image_size: int
    notes: Mapping[str, int] = field(default_factory=dict)
    split: NDArray[np.uint8] | None = None
    skipped: tuple[str, ...] = ()


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
    the labels, or None. `split` is 0 (train), 1 (val) or 2 (test) for each image where the source's
    own split is used, else None. `sha256` is that of the raw data. `notes` counts what was left
    out, as in `Source`.
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
