"""Read the header of one image file, and its pixels as upright 8-bit RGB."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.params import MIN_SIZE
from pipeline.prepare.sources import image_headers, pixels
from pipeline.prepare.sources.common import Images

MAX_BYTES = 2**28  # of one file
MAX_PIXELS = 2**26  # a larger image, of more than 256 MiB, is refused before it is decoded
LARGE_PIXELS = 2**22  # such images are decoded one at a time
# Files are restricted by ending and by content. Of the formats that Pillow opens, some run programs
# (EPS), and some hide their number of bits (JPEG 2000).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
}

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_STEPS = {
    "L;2": 85,
    "L;4": 17,
}  # Pillow scales these pixels of a PNG, but not their transparent level
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image file as described by its header.

    `kind` is its format and mode. `white` is the level of white in grey images of more than 8
    bits, where the header states it. `orientation` is that of EXIF, and 1 means upright. `notes`
    describe how the pixels are converted.
    """

    path: Path
    sha256: str
    kind: str
    width: int
    height: int
    depth: image_headers.Depth
    white: float | None
    orientation: int
    notes: tuple[str, ...]


def examine(path: Path) -> Picture:
    """Read the header of an image.

    Pixels are read only where a PNG has its EXIF after them. Raises InputError for a file that is
    missing, too large or not an image, for an image of too many pixels, and for an image that is
    ambiguous.
    """
    with _opened(path) as image:
        depth = image_headers.depth_of(image)
        if obstacle := image_headers.obstacle_of(image, depth):
            raise InputError(f"{path}: {obstacle}")
        orientation = _orientation(path, image)
        return Picture(
            path=path,
            sha256=files.sha256(path),
            kind=f"{image.format} {image.mode}",
            width=image.width,
            height=image.height,
            depth=depth,
            white=image_headers.stated_white_of(image, depth),
            orientation=orientation,
            notes=tuple(_notes(image, orientation)),
        )


def levels(picture: Picture) -> tuple[float, float]:
    """Return the lowest and the highest stored level of an image; both are NaN if a pixel is."""
    with _decoding(picture) as image:
        pixels = np.asarray(image)
        return float(pixels.min()), float(pixels.max())


def decode(picture: Picture, image_size: int, white: float | None) -> Images:
    """Return the pixels as uint8 (3, image_size, image_size).

    `white` is the level that becomes 255 in images of more than 8 bits. Raises InputError for
    damaged pixels, for levels outside of 0 to `white`, and for an image that is completely
    transparent.
    """
    with _decoding(picture) as image:
        if picture.depth not in ("8 bits", "16-bit colour"):
            assert white is not None
            image = _grey(picture.path, image, white)
        rgb = pixels.on_white(image) if image.has_transparency_data else image.convert("RGB")
        # Pillow turns a TIFF itself.
        if picture.orientation in UPRIGHT and not picture.kind.startswith("TIFF"):
            rgb = rgb.transpose(UPRIGHT[picture.orientation])
        return pixels.fitted(rgb, image_size)


def check_pixels(picture: Picture) -> None:
    """Decode an image.

    Raises InputError as `decode` does. Where the header states no white, every level from 0 is
    allowed.
    """
    decode(picture, MIN_SIZE, picture.white or math.inf)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield an image whose header was read, and whose file and size are not too large.

    Raises InputError, with a message of one line, for any error inside the context.
    """
    try:
        if (n_bytes := limits.regular(path, "repair, convert or remove it")) > MAX_BYTES:
            raise InputError(
                f"{path}: expected at most {MAX_BYTES:,} bytes, found {n_bytes:,}; make it smaller"
            )
        with Image.open(path, formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{path}: expected at most {MAX_PIXELS:,} pixels, "
                    f"found {image.width} x {image.height}; make it smaller"
                )
            if image.mode == "L" and isinstance(key := image.info.get("transparency"), int):
                image.info["transparency"] = key * GREY_STEPS.get(
                    str(image_headers.layout_of(image)), 1
                )
            yield image
    except InputError:
        raise
    except pixels.UnusableError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types of errors for damaged images
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not an image that can be read ({reason}); repair, convert or remove it"
        ) from error


@contextmanager
def _decoding(picture: Picture) -> Iterator[Image.Image]:
    with (
        _opened(picture.path) as image,
        _one_at_a_time if picture.width * picture.height > LARGE_PIXELS else nullcontext(),
    ):
        yield image


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(path: Path, image: Image.Image) -> int:
    """Return EXIF's orientation, from 1 to 8.

    Where it cannot be read, the result is 1, as in every viewer.
    """
    if image.format == "PNG" and _has_late_text(path):
        with _one_at_a_time:
            image.load()
    try:
        # Not `image.getexif`: PNG's own method would decode the pixels.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many types of errors here, as its decoders do
        return 1
    return found if found in UPRIGHT else 1


def _has_late_text(path: Path) -> bool:
    """Return whether a PNG has EXIF or text, which may be XMP, after its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        decoded = False
        while len(head := file.read(8)) == 8:
            if decoded and head[4:] in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            decoded = decoded or head[4:] == b"IDAT"
            file.seek(int.from_bytes(head[:4], "big") + 4, 1)
    return False


def _notes(image: Image.Image, orientation: int) -> Iterator[str]:
    """Yield the conversions of an image's pixels, except those of their depth and size."""
    if colours := image_headers.MODES[image.mode]:
        yield f"images made RGB from {colours}"
    if image.has_transparency_data:
        yield "images with transparency put on white"
    if orientation in UPRIGHT:
        yield "images turned upright as their EXIF says"
    if image.format == "MPO":
        yield "images with further pictures in the file, of which the first is taken"
    if (image_headers.tag_of(image, image_headers.CHANNELS) or 0) > len(image.getbands()):
        yield "images with more channels than these, which are left out"


def _grey(path: Path, image: Image.Image, white: float) -> Image.Image:
    """Return 8 bits of grey, with an alpha channel where a level is transparent.

    Raises InputError for levels outside of 0 to `white`.
    """
    pixels: NDArray[Any] = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= white and high < math.inf):  # NaN fails every comparison
        raise InputError(
            f"{path}: expected levels from 0 to {white:,.0f}, found {low:,g} to {high:,g}; "
            "save it as 8 bits"
        )
    scaled = np.multiply(pixels, np.float32(255 / white), dtype=np.float32)
    grey = Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(
            Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8))
        )
    return grey
