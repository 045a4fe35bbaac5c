"""Read the PIL images in a pickle from the records of their states.

A state is the image's information, mode, size, palette and raw pixels. No code of the file runs.
"""

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.base.untrusted.pickle_records import Call
from pipeline.prepare.sources import pixels
from pipeline.prepare.sources.common import Images

CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "LA": 2, "1": 1}
PLAIN = ("RGB", "L")  # nothing but a copy of the channel is needed
ALPHA = ("RGBA", "LA")
COLOURS = {"L": "grey", "LA": "grey", "1": "black and white"}
MAX_SIDE = 2**15
_SCALE = "scale it to 0 to 255 and save it as mode L"
REMEDIES = dict.fromkeys(("I", "F", "I;16", "I;16L", "I;16B", "I;16N"), _SCALE)


@dataclass(frozen=True, slots=True)
class Picture:
    """A PIL image: its mode, its size (width, height) and its pixels as PIL packs them."""

    mode: str
    size: tuple[int, int]
    pixels: bytes


def is_picture(value: Any) -> bool:
    """Return whether a record is that of a PIL image, of PIL's own class or of another."""
    state = value.state if isinstance(value, Call) else None
    return isinstance(state, list | tuple) and len(state) >= 5 and isinstance(state[1], str)


def picture(value: Any) -> Picture:
    """Return the image that a record describes.

    Raises InputError, without a path, for a mode that cannot be converted, for another number of
    bytes than the size needs, and for an image that is completely transparent.
    """
    _, mode, size, _, packed = value.state[:5]
    if mode not in CHANNELS:
        remedy = REMEDIES.get(mode, "save it with .convert('RGB')")
        modes = ", ".join(CHANNELS)
        raise InputError(f"expected mode {modes}, found {reprlib.repr(mode)}; {remedy}")
    if isinstance(packed, str) and packed.isascii():
        packed = packed.encode()  # as Python 2 wrote them
    match size:
        case (int(width), int(height)) if 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
            row = -(-width // 8) if mode == "1" else width * CHANNELS[mode]
            if isinstance(packed, bytes) and len(packed) == row * height:
                return _visible(Picture(mode, (width, height), packed))
            raise InputError(f"expected {row * height} bytes of pixels; is the file whole?")
    raise InputError(f"expected a width and height up to {MAX_SIDE}, found {reprlib.repr(size)}")


def _visible(found: Picture) -> Picture:
    n_channels = CHANNELS[found.mode]
    if found.mode in ALPHA and not any(found.pixels[n_channels - 1 :: n_channels]):
        raise InputError(
            "expected a picture, found every pixel transparent; save it without its alpha channel"
        )
    return found


def plain(found: Picture) -> Images:
    """Return the pixels of an image of a PLAIN mode as uint8 (H, W, 3)."""
    width, height = found.size
    levels = np.frombuffer(found.pixels, np.uint8).reshape(height, width, CHANNELS[found.mode])
    return np.broadcast_to(levels, (height, width, 3))


def converted(found: Picture, image_size: int | None) -> Images:
    """Return the pixels as uint8 (H, W, 3), on white where they are transparent.

    With `image_size`, the result is the largest square in the middle in that size.
    """
    image = Image.frombytes(found.mode, found.size, found.pixels)
    rgb = pixels.on_white(image) if found.mode in ALPHA else image.convert("RGB")
    if image_size is not None:
        return pixels.fitted(rgb, image_size).transpose(1, 2, 0)
    return np.asarray(rgb)


def notes(value: Any, found: Picture, image_size: int | None) -> Iterator[str]:
    """Yield what is converted in an image, and what is ignored.

    EXIF and transparent colours are ignored, because a dataset's own transform also gets the
    pixels as they are stored.
    """
    if found.mode in COLOURS:
        yield f"images made RGB from {COLOURS[found.mode]}"
    if found.mode in ALPHA:
        yield "images with transparency put on white"
    info = value.state[0]
    for key, words in (("exif", "EXIF"), ("transparency", "a transparent colour")):
        if isinstance(info, dict) and key in info:
            yield f"images with {words}, which is ignored: they are taken as stored"
    if image_size is not None:
        yield from pixels.resizing(found.size[1], found.size[0], image_size)
