"""Where labelled images come from: each source is read into the same uint8 arrays and checked in the same way."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import files, params
from pipeline.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images, read piece by piece.

    `labels` int64 (N,), 0 to n_classes - 1, each present. `read(rows)` gives the images of those rows as uint8 (n, 3, H, W). `class_names`
    has one name a class. `sha256` is that of the raw data.
    """

    labels: Labels
    read: Callable[[NDArray[np.int64]], Images]
    class_names: tuple[str, ...]
    sha256: str


def open_source(data: params.Data) -> Source:
    """The labelled images that `data` describes.

    Raises InputError for a source that is missing or unreadable, or whose images or labels have another type, shape or range.
    """
    match data.source:
        case "digits":
            return _digits(data.image_size)
        case "npz":
            return _npz(Path(data.path), data.image_size)


def _digits(image_size: int) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels and 17 grey levels, enlarged (UCI ML hand-written digits data set)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    large = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in grey]
    images: Images = np.repeat(np.stack(large)[:, None], 3, axis=1)
    sha256 = hashlib.sha256(pixels.tobytes() + labels.astype(np.int64).tobytes()).hexdigest()
    return Source(labels=labels.astype(np.int64), read=lambda rows: images[rows], class_names=_numbered(10), sha256=sha256)


def _npz(path: Path, image_size: int) -> Source:
    """`images` uint8 (N, 3, H, W) or (N, H, W, 3), `labels` (N,) of any integer type, and optional `class_names`; no pickles."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("images", "labels", "class_names") if name in archive.files}
        sha256 = files.sha256(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; set data.path to the .npz file of your images") from error
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as .npz ({' '.join(str(error).split())[:200]}); save it anew with numpy.savez") from error
    for name in ("images", "labels"):
        if name not in arrays:
            raise InputError(f"{path}: expected an array named {name!r}, found {', '.join(arrays) or 'none'}")
    images = _channels_first(path, arrays["images"], image_size)
    labels = _checked_labels(path, arrays["labels"], len(images))
    names = arrays.get("class_names")
    n_classes = int(labels.max()) + 1
    if names is not None and names.shape != (n_classes,):
        raise InputError(f"{path}: class_names: expected one name for each of {n_classes} classes, found an array of shape {names.shape}")
    class_names = _numbered(n_classes) if names is None else tuple(str(name) for name in names)
    return Source(labels=labels, read=lambda rows: images[rows], class_names=class_names, sha256=sha256)


def _channels_first(path: Path, images: NDArray[np.generic], image_size: int) -> Images:
    """`images` as uint8 (N, 3, H, W), a view where it can be."""
    if images.dtype != np.uint8:
        nan = " with NaN" if np.issubdtype(images.dtype, np.floating) and np.isnan(images).any() else ""
        raise InputError(f"{path}: images: expected uint8, 0 to 255, found {images.dtype}{nan}; scale, round and convert them first")
    first, last = (3, image_size, image_size), (image_size, image_size, 3)
    if images.ndim != 4 or images.shape[1:] not in (first, last):
        raise InputError(
            f"{path}: images: expected shape (N, {', '.join(map(str, first))}) or (N, {', '.join(map(str, last))}), "
            f"found {images.shape}; data.image_size is {image_size}"
        )
    checked: Images = images.astype(np.uint8, copy=False)
    return checked if images.shape[1:] == first else checked.transpose(0, 3, 1, 2)


def _checked_labels(path: Path, labels: NDArray[np.generic], n_images: int) -> Labels:
    """`labels` as int64 (n_images,), checked to be 0 to n_classes - 1 with every class present."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{path}: labels: expected whole numbers, found {labels.dtype}")
    if labels.shape != (n_images,):
        raise InputError(f"{path}: labels: expected one for each of {n_images} images, found shape {labels.shape}")
    if n_images == 0 or labels.min() < 0:
        raise InputError(f"{path}: labels: expected 0 or more, found {labels.min() if n_images else 'no images at all'}")
    present = np.unique(labels)
    if present[-1] != len(present) - 1 or len(present) < 2:
        shown = ", ".join(map(str, present[:10])) + (", …" if len(present) > 10 else "")
        raise InputError(f"{path}: labels: expected at least two classes numbered 0, 1, 2, … without gaps, found {shown}")
    return labels.astype(np.int64)


def _numbered(n_classes: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(n_classes))
