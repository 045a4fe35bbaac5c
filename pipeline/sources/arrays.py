"""`npz` and `hdf5`: arrays of images (N, 3, H, W) or (N, H, W, 3), uint8, and of labels (N,)."""

from pathlib import Path
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import files, params
from pipeline.errors import InputError
from pipeline.sources.common import Images, Source, check_labels, check_shape, numbered


def read_npz(path: Path, image_size: int) -> Source:
    """`images`, `labels` and optional `class_names` of a NumPy archive, without pickles; held in memory."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in ("images", "labels", "class_names") if name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; set data.path to the .npz file of your images") from error
    except (OSError, ValueError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as .npz ({' '.join(str(error).split())[:200]}); save it anew with numpy.savez") from error
    for name in ("images", "labels"):
        if name not in found:
            raise InputError(f"{path}: expected an array named {name!r}, found {', '.join(found) or 'none'}")
    images = found["images"]
    if images.dtype != np.uint8:
        nan = " with NaN" if np.issubdtype(images.dtype, np.floating) and np.isnan(images).any() else ""
        raise InputError(f"{path}: images: expected uint8, 0 to 255, found {images.dtype}{nan}; scale, round and convert them first")
    channels_last = check_shape(path, images.shape, image_size)
    labels = check_labels(path, found["labels"], len(images))
    class_names = found.get("class_names")
    n_classes = int(labels.max()) + 1
    if class_names is not None and class_names.shape != (n_classes,):
        raise InputError(f"{path}: class_names: expected one name for each of {n_classes} classes, found shape {class_names.shape}")
    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=lambda rows: _channels_first(images[rows], channels_last),
        class_names=numbered(n_classes) if class_names is None else tuple(str(name) for name in class_names),
        sha256=files.sha256(path),
    )


def read_hdf5(path: Path, image_size: int, names: params.Hdf5) -> Source:
    """The datasets that `names` names in an HDF5 file; images stay there until they are asked for."""
    try:
        with h5py.File(path, "r") as file:
            for name in (names.images, names.labels):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise InputError(f"{path}: expected a dataset named {name!r}, found {', '.join(file) or 'none'}; set data.hdf5")
            dataset = file[names.images]
            if dataset.dtype != np.uint8:
                raise InputError(
                    f"{path}: {names.images}: expected uint8, 0 to 255, found {dataset.dtype}; scale, round and convert it first"
                )
            channels_last = check_shape(path, dataset.shape, image_size)
            labels = check_labels(path, file[names.labels][...], len(dataset))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; set data.path to the HDF5 file of your images") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read as HDF5; is it whole?") from error

    def read(rows: NDArray[np.int64]) -> Images:
        with h5py.File(path, "r") as file:
            first, last = int(rows.min()), int(rows.max()) + 1
            span = file[names.images][first:last]  # one contiguous read: picking rows inside h5py is many times slower
        return _channels_first(span[rows - first], channels_last)

    return Source(
        labels=labels, ids=np.arange(len(labels)), read=read, class_names=numbered(int(labels.max()) + 1), sha256=files.sha256(path)
    )


def _channels_first(images: Images, channels_last: bool) -> Images:
    return images.transpose(0, 3, 1, 2) if channels_last else images
