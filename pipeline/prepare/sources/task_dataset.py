"""Read the source `task_dataset`: `Train.pt`, saved images and labels.

The file is a `torch.save` or `pickle.dump` of an object with lists `ids`, `imgs` and `labels`, of a
dict, or of a tuple. A pickle can ask for any code to be run, so this one is not unpickled. What it
asks for becomes records, of which only images and numbers are decoded. Neither PIL nor torchvision
nor anything else that the file names is executed.
"""

import reprlib
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits, torch_arrays, torch_files
from pipeline.base.untrusted.pickle_records import Call
from pipeline.base.untrusted.torch_arrays import Array
from pipeline.prepare.sources import array_names, pil_records
from pipeline.prepare.sources.common import Found, Stack

Rows = NDArray[np.int64]
WANTED = "a TaskDataset, a dict of images and labels, or a tuple (images, labels)"


def found(path: Path, image_size: int | None) -> Found:
    """Return the images, labels and ids in a `Train.pt` as they are stored.

    PIL images of one size and of mode RGB or L keep their size, as uint8 (N, H, W, 3). Others
    become squares of `image_size`. Raises InputError for a file that holds anything else than
    images and labels, and for images and labels that do not fit together.
    """
    limits.regular(path, "set data.path to your Train.pt")
    try:
        content = _content(path)
        values, labels, ids = _parts(content)
        size = path.stat().st_size
        images, notes = _images(values, image_size, size)
        return Found(
            images=images,
            labels=_numbers("labels", labels, size),
            ids=None if ids is None else _numbers("ids", ids, size),
            sha256=files.sha256(path),
            notes=notes,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (MemoryError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read as a torch.save file; is it whole?") from error


def _content(path: Path) -> Any:
    """Return plain values, and records in place of everything else."""
    try:
        return torch_files.load(path)
    except torch_files.UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError("cannot be read as a torch.save file; is it whole?") from error


def _parts(content: Any) -> tuple[Any, Any, Any]:
    """Return the images, the labels and the ids; the latter are None where there are none."""
    if isinstance(content, tuple) and len(content) == 2:
        return (*content, None)
    items = {key.lower(): value for key, value in _items(content).items() if isinstance(key, str)}
    for images, labels in (("imgs", "labels"), *array_names.PAIRS):
        if images in items and labels in items:
            return items[images], items[labels], items.get("ids")
    if torch_arrays.is_array(content):
        raise InputError(f"expected {WANTED}, found one tensor or array")
    if isinstance(content, Call):
        raise InputError(f"expected {WANTED}, found {content.name[:100]} without imgs and labels")
    keys = f" with the keys {reprlib.repr(list(items))}" if isinstance(content, dict) else ""
    raise InputError(f"expected {WANTED}, found {_kind(content)}{keys}")


def _items(content: Any) -> Mapping[Any, Any]:
    """Return the items of a dict, or the attributes of an object, which may have slots."""
    if isinstance(content, dict):
        return content
    if not isinstance(content, Call):
        return {}
    states = content.state if isinstance(content.state, tuple) else (content.state,)
    found: dict[Any, Any] = {}
    for part in (content.entries, *states):
        found.update(part if isinstance(part, dict) else {})
    return found


def _kind(value: Any) -> str:
    return value.name[:100] if isinstance(value, Call) else type(value).__name__


def _images(values: Any, image_size: int | None, size: int) -> tuple[Stack, Mapping[str, int]]:
    """Return images in any of the known forms, and notes of what is converted."""
    whole = torch_arrays.array(values)
    if isinstance(whole, Array):
        array = whole.values
        if not array.ndim or not array.shape[0]:
            raise InputError(f"images: expected several, found the shape {array.shape}")
        return _stack(whole, array.shape), {}
    every = whole if isinstance(whole, list) else values
    if not isinstance(every, list | tuple) or not every:
        kind = "an empty list" if every in ([], ()) else _kind(every)
        raise InputError(f"images: expected a list, an array or a tensor, found {kind}")
    if pil_records.is_picture(every[0]):
        return _pictures(every, image_size, size)
    return _arrays(every, size), {}


def _stack(whole: Array, shape: tuple[int, ...]) -> Stack:
    dtype = np.dtype(np.float32) if whole.is_bfloat16 else whole.values.dtype
    return Stack(
        shape=shape,
        dtype=dtype,
        read=lambda rows: Array(whole.values[rows], whole.is_bfloat16).plain(),
    )


def _arrays(every: list[Any] | tuple[Any, ...], size: int) -> Stack:
    """Return a list of arrays or tensors of one shape and type."""
    arrays: list[NDArray[Any]] = []
    for row, value in enumerate(every):
        array = torch_arrays.array(value)
        if not isinstance(array, Array):
            raise InputError(
                f"imgs[{row}]: expected a PIL image, an array or a tensor, found {_kind(value)}"
            )
        arrays.append(array.plain())
        if (arrays[row].shape, arrays[row].dtype) != (arrays[0].shape, arrays[0].dtype):
            raise InputError(
                f"imgs[{row}]: expected the shape and type of imgs[0], {arrays[0].shape} in"
                f" {arrays[0].dtype}, found {arrays[row].shape} in {arrays[row].dtype}; resize them"
                " to one size"
            )
    limits.expect_fits(len(arrays) * arrays[0].nbytes, size)
    return Stack(
        shape=(len(arrays), *arrays[0].shape),
        dtype=arrays[0].dtype,
        read=lambda rows: np.stack([arrays[row] for row in rows.tolist()]),
    )


def _pictures(
    every: list[Any] | tuple[Any, ...], image_size: int | None, size: int
) -> tuple[Stack, Mapping[str, int]]:
    """Return PIL images, converted one by one where they have several sizes or other modes."""
    pictures = [_picture(row, value) for row, value in enumerate(every)]
    width, height = pictures[0].size
    limits.expect_fits(sum(len(picture.pixels) for picture in pictures), size)
    target = None
    if any(picture.size != (width, height) for picture in pictures):
        if image_size is None:
            raise InputError("images: expected one size, found several; resize them to one")
        target, width, height = image_size, image_size, image_size
    notes = Counter(
        words
        for value, picture in zip(every, pictures, strict=True)
        for words in pil_records.notes(value, picture, target)
    )

    def decode(rows: Rows) -> NDArray[Any]:
        images = np.empty((len(rows), height, width, 3), np.uint8)
        for place, row in enumerate(rows.tolist()):
            images[place] = _decoded(pictures[row], target)
        return images

    return Stack(
        shape=(len(pictures), height, width, 3), dtype=np.dtype(np.uint8), read=decode
    ), notes


def _picture(row: int, value: Any) -> pil_records.Picture:
    if not pil_records.is_picture(value):
        raise InputError(f"imgs[{row}]: expected a PIL image like the first, found {_kind(value)}")
    try:
        return pil_records.picture(value)
    except InputError as error:
        raise InputError(f"imgs[{row}]: {error}") from None


def _decoded(picture: pil_records.Picture, target: int | None) -> NDArray[np.uint8]:
    if target is None and picture.mode in pil_records.PLAIN:
        return pil_records.plain(picture)
    return pil_records.converted(picture, target)


def _numbers(name: str, values: Any, size: int) -> NDArray[Any]:
    """Return numbers or text in any form: an array, or a list of numbers, arrays or text.

    Raises InputError for other values, and for a list of several types or shapes.
    """
    whole = torch_arrays.array(values)
    if isinstance(whole, Array):
        return whole.plain()
    every = whole if isinstance(whole, list) else values
    if not isinstance(every, list | tuple):
        raise InputError(f"{name}: expected a list, an array or a tensor, found {_kind(values)}")
    parts = [_number(name, row, value) for row, value in enumerate(every)]
    if len({(part.shape, part.dtype.kind in "US") for part in parts}) > 1:
        raise InputError(f"{name}: expected values of one type and shape, found several")
    limits.expect_fits(2 * len(parts) * max((part.nbytes for part in parts), default=0), size)
    return np.stack(parts) if parts else np.empty(0, np.int64)


def _number(name: str, row: int, value: Any) -> NDArray[Any]:
    """Return one number or text, of any shape that its array has."""
    array = torch_arrays.array(value)
    if isinstance(array, Array):
        return array.plain()
    is_whole = isinstance(value, int) and abs(value) < 2**63
    is_text = isinstance(value, str) and len(value) <= limits.MAX_NAME
    if is_whole or is_text or isinstance(value, float):
        return np.array(value)
    shown = _kind(value) if isinstance(value, Call) else reprlib.repr(value)
    raise InputError(f"{name}[{row}]: expected a number or a short text, found {shown}")
