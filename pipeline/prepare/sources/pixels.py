"""Convert the arrays of images that users have to uint8 with three channels and one size."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.errors import InputError
from pipeline.prepare.params import MAX_SIZE, MIN_SIZE
from pipeline.prepare.sources.common import Images, Notes, Stack

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
SPAN_ROWS = 256  # rows that are examined together
WHITE_16 = 65535
ROUNDING = 1e-6  # of floats above 1, which become 255 as 1 does
LAYOUTS = "(N, H, W), (N, C, H, W) or (N, H, W, C) with 1, 3 or 4 channels"
Read = Callable[[NDArray[np.int64]], Images]


class UnusableError(ValueError):
    """Pixels that show nothing."""


@dataclass(frozen=True)
class Layout:
    """The order of the axes of images. `axis` is that of the channels, or None without one."""

    axis: int | None
    n_channels: int
    height: int
    width: int

    def channels_last(self, images: NDArray[np.uint8]) -> Images:
        if self.axis is None:
            return images[..., None]
        return images.transpose(0, 2, 3, 1) if self.axis == 1 else images


def as_rgb(where: str, stack: Stack, image_size: int | None) -> tuple[Read, int, Notes]:
    """Return a reader of images as uint8 (n, 3, size, size), that size, and notes.

    Grey and RGBA images, floats from 0 to 1, bool and integers of more than 8 bits are converted.
    Images of another size are cropped around the centre to a square and resized. `image_size` None
    keeps their own size. Raises InputError, which begins with `where`, for another shape, type or
    range.
    """
    layout = _layout(where, stack.shape)
    size = image_size or own_size(where, [(layout.height, layout.width)])
    notes: Notes = Counter(dict.fromkeys(_notes(layout, size), stack.shape[0]))
    to_bytes, words = _to_bytes(where, stack)
    if words:
        notes[words] = stack.shape[0]

    def read(rows: NDArray[np.int64]) -> Images:
        images = layout.channels_last(to_bytes(stack.read(rows)))
        if layout.n_channels == 3 and (layout.height, layout.width) == (size, size):
            return images.transpose(0, 3, 1, 2)
        return np.stack([_square(where, image, size) for image in images])

    return read, size, notes


def on_white(image: Image.Image) -> Image.Image:
    """Return RGB in which white shows through transparent pixels.

    Colours that are hidden in transparent pixels do not appear. Raises UnusableError where every
    pixel is transparent.
    """
    whole = image.convert("LA") if image.mode == "La" else image
    rgba = whole if whole.mode == "RGBA" else whole.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        raise UnusableError(
            "expected a picture, found every pixel transparent; save it without its alpha channel"
        )
    ground = Image.new("RGB", rgba.size, (255, 255, 255))
    ground.paste(rgba, mask=rgba)
    return ground


def fitted(image: Image.Image, image_size: int) -> Images:
    """Return the largest square in the middle of an RGB image, resized, as (3, size, size)."""
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def resizing(height: int, width: int, size: int) -> Iterator[str]:
    """Yield what `fitted` does to an image."""
    if height != width:
        yield "images cut to the largest square in the middle"
    if min(height, width) != size:
        yield f"images resized to {size} x {size}"


def own_size(where: str, shapes: Iterable[tuple[int, int]]) -> int:
    """Return the side of the squares that all images are, for `image_size: null`.

    `shapes` are their heights and widths. Raises InputError for any other image.
    """
    found = sorted(set(shapes))
    height, width = found[0]
    if len(found) > 1 or height != width or not MIN_SIZE <= height <= MAX_SIZE:
        shown = " and ".join(f"{height} x {width}" for height, width in found[:2])
        raise InputError(
            f"{where}: images: expected squares of one size, from {MIN_SIZE} to {MAX_SIZE} pixels "
            f"a side, for image_size: null, found {shown}; set data.image_size"
        )
    return height


def _notes(layout: Layout, size: int) -> Iterator[str]:
    if layout.n_channels == 1:
        yield "images made RGB from grey"
    if layout.n_channels == 4:
        yield "images with transparency put on white"
    yield from resizing(layout.height, layout.width, size)


def _square(where: str, image: NDArray[np.uint8], size: int) -> Images:
    if image.shape[2] == 1:
        rgb = Image.fromarray(image[..., 0]).convert("RGB")
    elif image.shape[2] == 4:
        try:
            rgb = on_white(Image.fromarray(np.ascontiguousarray(image)))
        except UnusableError as error:
            raise InputError(f"{where}: images: {error}") from error
    else:
        rgb = Image.fromarray(np.ascontiguousarray(image))
    return fitted(rgb, size)


def _layout(where: str, shape: tuple[int, ...]) -> Layout:
    """Return what each axis of images is.

    Raises InputError with the numpy line that helps.
    """
    if len(shape) == 3:
        return Layout(None, 1, *shape[1:])
    found = f"{where}: images: expected shape {LAYOUTS}, found {shape}"
    if len(shape) != 4:
        raise InputError(found + _reshaping(shape))
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if first and last and shape[1] != shape[2] != shape[3]:
        raise InputError(f"{found}, where the channels may be first or last; transpose them")
    if last and not (first and shape[2] == shape[3]):
        return Layout(3, shape[3], shape[1], shape[2])
    if first:
        return Layout(1, shape[1], shape[2], shape[3])
    if shape[2] in CHANNELS:
        raise InputError(f"{found}; save images.transpose(3, 0, 1, 2)")
    raise InputError(found)


def _reshaping(shape: tuple[int, ...]) -> str:
    """Return the line that gives flat images their shape back, if they can be square."""
    if len(shape) != 2:
        return ""
    for channels in (1, 3):
        side = math.isqrt(shape[1] // channels)
        if channels * side**2 == shape[1] and side >= MIN_SIZE:
            axes = f"{side}, {side}" if channels == 1 else f"3, {side}, {side}"
            return f"; save images.reshape(-1, {axes})"
    return ""


def _to_bytes(
    where: str, stack: Stack
) -> tuple[Callable[[NDArray[np.generic]], NDArray[np.uint8]], str]:
    """Return the conversion of levels to uint8, and words for it.

    Raises InputError for levels whose meaning is not plain, with their range and what to do.
    """
    kind = stack.dtype.kind
    if stack.dtype == np.uint8:
        return (lambda images: images.view(np.uint8)), ""
    if kind == "b":
        return _scaled(1), "images of bool scaled to 8 bits so that 1 becomes 255"
    if kind not in "iuf":
        raise InputError(f"{where}: images: expected numbers, found {stack.dtype}")
    low, high, whole = _range(stack)
    if low >= 0 and high <= 1 + ROUNDING and kind == "f":
        return _scaled(1), f"images of {stack.dtype} scaled to 8 bits so that 1 becomes 255"
    if low >= 0 and high <= 255 and whole:
        return _scaled(255), f"images of {stack.dtype} taken as levels from 0 to 255"
    # Either byte order has 16 bits.
    if stack.dtype.newbyteorder("=") == np.uint16 and high > WHITE_16 // 2:
        return _scaled(WHITE_16), "images of 16 bits scaled to 8 bits so that 65,535 becomes 255"
    raise InputError(
        f"{where}: images: expected uint8, floats from 0 to 1 or whole numbers from 0 to 255, "
        f"found {stack.dtype} from {low:,g} to {high:,g}; {_remedy(low)}"
    )


def _remedy(low: float) -> str:
    replaced = "replace NaN, " if math.isnan(low) else ""
    return f"{replaced}map black to 0 and white to 255, round, and save as uint8"


def _scaled(white: int) -> Callable[[NDArray[np.generic]], NDArray[np.uint8]]:
    def convert(images: NDArray[np.generic]) -> NDArray[np.uint8]:
        if white == 255:
            return images.astype(np.uint8)
        return np.rint(images.astype(np.float64) * (255 / white)).astype(np.uint8)

    return convert


def _range(stack: Stack) -> tuple[float, float, bool]:
    """Return the lowest and the highest level of all images, and whether all are whole.

    The levels are NaN if one is.
    """
    lows, highs, whole = [math.inf], [-math.inf], True
    for start in range(0, stack.shape[0], SPAN_ROWS):
        images = stack.read(np.arange(start, min(start + SPAN_ROWS, stack.shape[0])))
        lows.append(images.min().item())
        highs.append(images.max().item())
        whole = whole and (images.dtype.kind != "f" or bool((np.rint(images) == images).all()))
    return float(np.min(lows)), float(np.max(highs)), whole
