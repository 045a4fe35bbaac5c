"""What every source gives, and the checks that all of them share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, read piece by piece.

    `labels` int64 (N,), 0 to n_classes - 1, each present. `ids` int64 (N,), the source's own name of each image, each once. `read(rows)`
    gives the images of those rows as uint8 (n, 3, H, W). `class_names` has one name a class. `sha256` is that of the raw data.
    """

    labels: Labels
    ids: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Images]
    class_names: tuple[str, ...]
    sha256: str


def numbered(n_classes: int) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(str(number) for number in range(n_classes))


def check_shape(where: Path, shape: tuple[int, ...], image_size: int) -> bool:
    """Whether images of this shape have their channels last; raises InputError for neither order."""
    first, last = (3, image_size, image_size), (image_size, image_size, 3)
    if len(shape) != 4 or shape[1:] not in (first, last):
        raise InputError(
            f"{where}: images: expected shape (N, {', '.join(map(str, first))}) or (N, {', '.join(map(str, last))}), "
            f"found {tuple(shape)}; data.image_size is {image_size}"
        )
    return shape[1:] == last


def check_labels(where: Path, labels: NDArray[np.generic], n_images: int) -> Labels:
    """`labels` as int64 (n_images,), checked to be 0 to n_classes - 1 with every class present."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{where}: labels: expected whole numbers, found {labels.dtype}")
    if labels.shape != (n_images,):
        raise InputError(f"{where}: labels: expected one for each of {n_images} images, found shape {labels.shape}")
    if n_images == 0 or labels.min() < 0:
        raise InputError(f"{where}: labels: expected 0 or more, found {labels.min() if n_images else 'no images at all'}")
    present = np.unique(labels)
    if present[-1] != len(present) - 1 or len(present) < 2:
        shown = ", ".join(map(str, present[:10])) + (", …" if len(present) > 10 else "")
        raise InputError(f"{where}: labels: expected at least two classes numbered 0, 1, 2, … without gaps, found {shown}")
    return labels.astype(np.int64)
