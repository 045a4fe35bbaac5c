"""Read the source `task_dataset`: `Train.pt`, a saved `TaskDataset` object.

The file is a `torch.save` of the whole object, pickled under `__main__`. The object has lists
`ids`, `imgs` (PIL images) and `labels`, and a `transform`. A pickle can ask for any code to be
run, so this one is not unpickled. The module `pickles` only parses it. Neither PIL nor torchvision
nor anything else that the file names is executed. Everything that a set of images does not need is
refused.
"""

import io
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits, pickles
from pipeline.prepare.sources.common import Images, Source, check_labels, numbered

DATASET = "__main__.TaskDataset"
# PIL.Image.Image and the classes of opened files, such as PIL.PngImagePlugin.PngImageFile.
IMAGE_MODULES = "PIL."
TRANSFORM_MODULES = "torchvision.transforms."
CHANNELS = {"RGB": 3, "L": 1}
_SCALE, _ALPHA = (
    "scale it to 0 to 255 and save it as mode L",
    "paste it on a background of mode RGB, which it then takes",
)
REMEDIES = {
    **dict.fromkeys(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"), _SCALE),
    **dict.fromkeys(("RGBA", "LA", "PA"), _ALPHA),
}
# An image takes about 30 opcodes, so this is enough for 600,000 images. What a hostile file can
# allocate stays below 2 GiB.
MAX_OPCODES = 20_000_000
# These are plain values: containers, and bytes, which older pickles write as text to encode.
PLAIN_GLOBALS = {"collections.OrderedDict", "builtins.set", "__builtin__.set", "_codecs.encode"}


def read(path: Path, image_size: int) -> Source:
    """Return the images of a `Train.pt`, kept in memory as raw bytes.

    Grey images (mode L) become three equal channels. Raises InputError for a file that is no such
    object, that names any other class, or whose images have another size or mode.
    """
    state = _load(path)
    lists = {name: state.get(name) for name in ("ids", "imgs", "labels")}
    for name, value in lists.items():
        if not isinstance(value, list) or len(value) != len(lists["imgs"] or []):
            found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
            raise InputError(
                f"{path}: {name}: expected lists ids, imgs and labels of one length, found {found}"
            )
    pixels = [
        _checked_pixels(path, row, image, image_size)
        for row, image in enumerate(lists["imgs"] or [])
    ]
    labels = check_labels(path, _whole_numbers(path, "labels", lists["labels"]), len(pixels))
    ids = _whole_numbers(path, "ids", lists["ids"])
    if len(np.unique(ids)) != len(ids):
        raise InputError(
            f"{path}: ids: expected every id once, found {len(ids) - len(np.unique(ids))} "
            "repetitions"
        )

    notes = Counter(words for image in lists["imgs"] or [] for words in _notes(image))

    def decode(rows: np.ndarray[Any, np.dtype[np.int64]]) -> Images:
        images = np.empty((len(rows), image_size, image_size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            images[place] = np.frombuffer(pixels[row], dtype=np.uint8).reshape(
                image_size, image_size, -1
            )
        return images.transpose(0, 3, 1, 2)

    return Source(
        labels=labels,
        ids=ids,
        read=decode,
        class_names=numbered(int(labels.max()) + 1),
        sha256=files.sha256(path),
        notes=notes,
    )


def _load(path: Path) -> dict[str, Any]:
    """Return the state of the pickled dataset.

    Everything in it that is not a plain value is represented by a record. Raises InputError for a
    file that cannot be read, or that contains something else.
    """
    limits.regular(path, "set data.path to your Train.pt")
    try:
        with path.open("rb") as file:
            archive, members = limits.zip_members(file, (zipfile.ZIP_STORED,))
            (entry,) = [member for name, member in members.items() if name.endswith("/data.pkl")]
            limits.expect_fits(2 * entry.file_size, entry.file_size)
            with (
                archive.open(entry) as packed,
                io.BufferedReader(cast(io.RawIOBase, packed), 2**20) as pickled,
            ):
                content = pickles.read(
                    cast(io.BytesIO, pickled), entry.file_size, _is_allowed, MAX_OPCODES
                )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, RuntimeError, MemoryError, zipfile.BadZipFile, *pickles.UNREADABLE) as error:
        raise InputError(f"{path}: cannot be read as a torch.save file; is it whole?") from error
    if (
        not isinstance(content, pickles.Call)
        or content.name != DATASET
        or not isinstance(content.state, dict)
    ):
        raise InputError(f"{path}: expected a saved {DATASET}, found {_kind(content)}")
    return content.state


def _is_allowed(name: str) -> bool:
    return (
        name == DATASET
        or name in PLAIN_GLOBALS
        or name.startswith((IMAGE_MODULES, TRANSFORM_MODULES))
    )


def _kind(value: Any) -> str:
    return value.name if isinstance(value, pickles.Call) else type(value).__name__


def _checked_pixels(path: Path, row: int, image: Any, image_size: int) -> bytes:
    """Return the raw bytes of one image, either RGB or grey levels.

    Raises InputError for another type, mode or size.
    """
    state = (
        image.state
        if isinstance(image, pickles.Call) and image.name.startswith(IMAGE_MODULES)
        else None
    )
    if not isinstance(state, list | tuple) or len(state) < 5:
        raise InputError(f"{path}: imgs[{row}]: expected a PIL image, found {_kind(image)}")
    _, mode, size, _, data = state[:5]
    if not isinstance(mode, str) or mode not in CHANNELS:
        remedy = (
            REMEDIES.get(mode, "save it with .convert('RGB')")
            if isinstance(mode, str)
            else "is the file whole?"
        )
        raise InputError(
            f"{path}: imgs[{row}]: expected mode RGB or L, found {reprlib.repr(mode)}; {remedy}"
        )
    if size not in ((image_size, image_size), [image_size, image_size]):
        raise InputError(
            f"{path}: imgs[{row}]: expected {image_size} x {image_size} pixels, "
            f"found {reprlib.repr(size)}; data.image_size is {image_size}"
        )
    if not isinstance(data, bytes) or len(data) != image_size * image_size * CHANNELS[mode]:
        raise InputError(
            f"{path}: imgs[{row}]: expected {image_size * image_size * CHANNELS[mode]} bytes of "
            "pixels; is the file whole?"
        )
    return data


def _notes(image: pickles.Call) -> Iterator[str]:
    """Yield what is converted in a checked image, and what is ignored.

    EXIF and transparent colours are ignored, because a dataset's own transform also gets the
    pixels as they are stored.
    """
    info, mode = image.state[:2]
    if mode == "L":
        yield "images made RGB from grey"
    for key, words in (("exif", "EXIF"), ("transparency", "a transparent colour")):
        if isinstance(info, dict) and key in info:
            yield f"images with {words}, which is ignored: they are taken as stored"


def _whole_numbers(path: Path, name: str, values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not all(_is_whole(value) for value in values):
        found = next(value for value in values if not _is_whole(value))
        raise InputError(
            f"{path}: {name}: expected whole numbers of Python only, found {reprlib.repr(found)}; "
            "number them from 0"
        )
    return np.array(values, dtype=np.int64)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63
