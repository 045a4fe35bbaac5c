"""`task_dataset`: `Train.pt`, a `torch.save` of a whole `TaskDataset` object pickled under `__main__`.

The object has lists `ids`, `imgs` (PIL images) and `labels`, and a `transform`. A pickle can ask for any code to be run, so this one is
read with torch's restricted unpickler, and every class that it may name is replaced by a stand-in that only holds what it is given:
neither PIL nor torchvision nor anything else in the file is executed. Whatever else the file names is refused.
"""

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import files
from pipeline.errors import InputError
from pipeline.sources.common import Images, Source, check_labels, numbered

DATASET = "__main__.TaskDataset"
IMAGE_MODULES = "PIL."  # PIL.Image.Image and the classes of opened files, such as PIL.PngImagePlugin.PngImageFile
TRANSFORM_MODULES = "torchvision.transforms."
CHANNELS = {"RGB": 3, "L": 1}
MAX_OPCODES = 20_000_000  # an image takes about 30: enough for 600,000; what a hostile file can allocate stays below 2 GiB
# Plain values that the restricted unpickler builds itself: containers, and bytes, which older pickles write as text to encode.
PLAIN_GLOBALS = {"collections.OrderedDict", "builtins.set", "__builtin__.set", "_codecs.encode"}


class _Held:
    """Stands in for any allowed class: keeps its arguments and state, and does nothing with them."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _HeldDataset(_Held):
    pass


class _HeldImage(_Held):
    pass


def read(path: Path, image_size: int) -> Source:
    """The images of a `Train.pt`, kept in memory as raw bytes; grey ones (mode L) become three equal channels.

    Raises InputError for a file that is no such object, that names any other class, or whose images have another size or mode.
    """
    state = _load(path)
    lists = {name: state.get(name) for name in ("ids", "imgs", "labels")}
    for name, value in lists.items():
        if not isinstance(value, list) or len(value) != len(lists["imgs"] or []):
            found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
            raise InputError(f"{path}: {name}: expected lists ids, imgs and labels of one length, found {found}")
    pixels = [_checked_pixels(path, row, image, image_size) for row, image in enumerate(lists["imgs"] or [])]
    labels = check_labels(path, _whole_numbers(path, "labels", lists["labels"]), len(pixels))
    ids = _whole_numbers(path, "ids", lists["ids"])
    if len(np.unique(ids)) != len(ids):
        raise InputError(f"{path}: ids: expected every id once, found {len(ids) - len(np.unique(ids))} repetitions")

    def decode(rows: np.ndarray[Any, np.dtype[np.int64]]) -> Images:
        images = np.empty((len(rows), image_size, image_size, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            images[place] = np.frombuffer(pixels[row], dtype=np.uint8).reshape(image_size, image_size, -1)
        return images.transpose(0, 3, 1, 2)

    return Source(labels=labels, ids=ids, read=decode, class_names=numbered(int(labels.max()) + 1), sha256=files.sha256(path))


def _load(path: Path) -> dict[str, Any]:
    """The state of the pickled dataset, with stand-ins for everything that is not a plain value."""
    try:
        stand_ins = [(_stand_in(name), name) for name in _checked_globals(path) - PLAIN_GLOBALS]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; set data.path to your Train.pt") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a torch.save file; is it whole?") from error
    if not isinstance(content, _HeldDataset) or not isinstance(content.state, dict):
        raise InputError(f"{path}: expected a saved {DATASET}, found {type(content).__name__.lstrip('_')}")
    return content.state


def _checked_globals(path: Path) -> set[str]:
    """The names of all classes and functions that the pickle asks for, read without running anything of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{path}: expected an uncompressed file, as torch.save writes it")
            with archive.open(entry) as pickled:
                return _globals(path, pickled)
    except (zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a torch.save file; is it whole?") from error


def _globals(path: Path, pickled: Any) -> set[str]:
    named: set[str] = set()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count >= MAX_OPCODES:
            raise InputError(f"{path}: expected a pickle of at most {MAX_OPCODES:,} steps; it is too large for a set of images")
        if opcode.name == "GLOBAL":
            named.add(str(argument).replace(" ", "."))
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise InputError(f"{path}: refused: it uses {opcode.name}, which torch.save does not; nothing of it was run")
    for name in sorted(named - PLAIN_GLOBALS):
        if name != DATASET and not name.startswith((IMAGE_MODULES, TRANSFORM_MODULES)):
            raise InputError(f"{path}: refused: it asks for {name}, which a {DATASET} of images does not need; nothing of it was run")
    return named


def _stand_in(name: str) -> type[_Held]:
    return _HeldDataset if name == DATASET else _HeldImage if name.startswith(IMAGE_MODULES) else _Held


def _checked_pixels(path: Path, row: int, image: Any, image_size: int) -> bytes:
    """The raw bytes of one image: RGB, or grey levels alone."""
    state = image.state if isinstance(image, _HeldImage) else None
    if not isinstance(state, list | tuple) or len(state) < 5:
        raise InputError(f"{path}: imgs[{row}]: expected a PIL image, found {type(image).__name__.lstrip('_')}")
    _, mode, size, _, data = state[:5]
    if mode not in CHANNELS:
        raise InputError(f"{path}: imgs[{row}]: expected mode RGB or L, found {mode!r}; convert it first")
    if tuple(size) != (image_size, image_size):
        raise InputError(f"{path}: imgs[{row}]: expected {image_size} x {image_size} pixels, found {size}; data.image_size is {image_size}")
    if not isinstance(data, bytes) or len(data) != image_size * image_size * CHANNELS[mode]:
        raise InputError(f"{path}: imgs[{row}]: expected {image_size * image_size * CHANNELS[mode]} bytes of pixels; is the file whole?")
    return data


def _whole_numbers(path: Path, name: str, values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not all(type(value) is int and abs(value) < 2**63 for value in values):
        raise InputError(f"{path}: {name}: expected whole numbers only")
    return np.array(values, dtype=np.int64)
