"""Read the sources `npz` and `hdf5`.

They contain arrays of images, uint8 (N, 3, H, W) or (N, H, W, 3), and of labels (N,).
"""

import math
import struct
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5, limits
from pipeline.prepare.params import Hdf5
from pipeline.prepare.sources.common import (
    Images,
    Source,
    check_labels,
    check_shape,
    check_type,
    numbered,
)

NPZ_ARRAYS = ("images", "labels", "class_names")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# zipfile and numpy raise these for files that are cut short, damaged or of another kind.
NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    BadZipFile,
    NotImplementedError,
    RuntimeError,
    TypeError,
    SyntaxError,
    TokenError,
    OverflowError,
    MemoryError,
    KeyError,
    struct.error,
    zlib.error,
)
SPAN_ROWS = 1024
TYPE_ROWS = 64  # read to report the range of images that are not uint8


def read_npz(path: Path, image_size: int) -> Source:
    """Read `images`, `labels` and optional `class_names` of a NumPy archive, without pickles.

    The arrays are kept in memory. Raises InputError for a file that is missing or unreadable, or
    whose arrays have another type, shape or range.
    """
    limits.regular(path, "set data.path to the .npz file of your images")
    try:
        with path.open("rb") as file:
            archive, members = limits.zip_members(file, (ZIP_STORED, ZIP_DEFLATED))
            found = {
                name: _array(name, archive, members[f"{name}.npy"])
                for name in NPZ_ARRAYS
                if f"{name}.npy" in members
            }
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except NPZ_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as .npz ({' '.join(str(error).split())[:200]}); "
            "save it again with numpy.savez"
        ) from error
    for name in ("images", "labels"):
        if name not in found:
            raise InputError(
                f"{path}: expected an array named {name!r}, found {', '.join(found) or 'none'}"
            )
    images = found["images"]
    check_type(f"{path}: images", images)
    channels_last = check_shape(path, images.shape, image_size)
    labels = check_labels(path, found["labels"], len(images))
    class_names = found.get("class_names")
    n_classes = int(labels.max()) + 1
    if class_names is not None and (
        class_names.shape != (n_classes,) or class_names.dtype.kind != "U"
    ):
        raise InputError(
            f"{path}: class_names: expected one name for each of {n_classes} classes, "
            f"found {class_names.dtype} {class_names.shape}"
        )
    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=lambda rows: _channels_first(images[rows], channels_last),
        class_names=numbered(n_classes) if class_names is None else _names(path, class_names),
        sha256=files.sha256(path),
    )


def _array(name: str, archive: ZipFile, member: ZipInfo) -> NDArray[Any]:
    """Return one array of the archive.

    Its header is checked against its size first. Raises InputError where they differ, and for
    arrays that are neither numbers nor text.
    """
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise InputError(
                f"{name}: refused: an .npy header of version {version}, expected 1.0 or 2.0; "
                "save it again with numpy.savez"
            )
        shape, fortran, dtype = HEADERS[version](file)
        if dtype.kind not in "biufU":
            raise InputError(
                f"{name}: refused: an array of {str(dtype)[:50]}, "
                "which is no array of numbers or text"
            )
        n_bytes, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if n_bytes != held or min(shape, default=0) < 0:
            raise InputError(
                f"{name}: refused: its header claims {n_bytes:,} bytes, the archive holds {held:,}"
            )
        content, filled = np.empty(n_bytes, dtype=np.uint8), 0
        while filled < n_bytes and (piece := file.read(2**20)):
            content[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            filled += len(piece)
    if filled < n_bytes:
        raise InputError(f"{name}: cut short after {filled:,} of {n_bytes:,} bytes")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")


def _names(path: Path, names: NDArray[np.str_]) -> tuple[str, ...]:
    try:
        texts = names.tolist()
    except (SystemError, ValueError) as error:  # Python raises these for numbers beyond Unicode
        raise InputError(
            f"{path}: class_names: not text; save it again with numpy.savez"
        ) from error
    return tuple(limits.plain_name(f"{path}: class_names", text) for text in texts)


def read_hdf5(path: Path, image_size: int, names: Hdf5) -> Source:
    """Read two datasets, named by `names`, of an HDF5 file.

    Images are read only when they are requested. Raises InputError for a file that is missing or
    unreadable, or whose datasets have another type, shape or range.
    """
    limits.regular(path, "set data.path to the HDF5 file of your images")
    hdf5.check_source(
        path, [names.images, names.labels], "save it again with h5py, as plain arrays"
    )
    with hdf5.reading(path, "not a readable HDF5 file; is it whole?") as file:
        for name in (names.images, names.labels):
            if not isinstance(file.get(name), h5py.Dataset):
                # h5py returns names that are not text as bytes.
                there = ", ".join(str(other) for other, _ in zip(file, range(20), strict=False))
                raise InputError(
                    f"{path}: expected a dataset named {name!r}, found {there or 'none'}; "
                    "set data.hdf5"
                )
        dataset = file[names.images]
        channels_last = check_shape(path, dataset.shape, image_size)
        check_type(f"{path}: {names.images}[:{TYPE_ROWS}]", dataset[:TYPE_ROWS])
        labels = check_labels(path, file[names.labels][...], len(dataset))

    def read(rows: NDArray[np.int64]) -> Images:
        with hdf5.reading(path, "not a readable HDF5 file; is it whole?") as file:
            spans = [
                _span(file[names.images], part)
                for part in np.split(rows, range(SPAN_ROWS, len(rows), SPAN_ROWS))
            ]
        return _channels_first(np.concatenate(spans), channels_last)

    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=read,
        class_names=numbered(int(labels.max()) + 1),
        sha256=files.sha256(path),
    )


def _span(dataset: h5py.Dataset, rows: NDArray[np.int64]) -> Images:
    """Return some rows, by one contiguous read.

    Selecting the rows inside h5py is many times slower.
    """
    first = int(rows.min())
    span: Images = dataset[first : int(rows.max()) + 1]
    return span[rows - first]


def _channels_first(images: Images, channels_last: bool) -> Images:
    return images.transpose(0, 3, 1, 2) if channels_last else images
