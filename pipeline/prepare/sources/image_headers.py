"""Read from the header of an image what its levels mean, and whether it can be read."""

from typing import Any, Literal

from PIL import Image

Depth = Literal["8 bits", "16-bit grey", "16-bit colour", "integers", "floats"]
# The level of white where the header does not state it. Pillow keeps only the upper 8 bits of
# 16-bit colour.
WHITES: dict[Depth, float] = {
    "16-bit grey": 65535,
    "16-bit colour": 255,
    "integers": 255,
    "floats": 1,
}
MODES = {
    **dict.fromkeys(("1",), "black and white"),
    **dict.fromkeys(("L", "LA", "La", "I;16", "I;16B", "I", "F"), "grey"),
    **dict.fromkeys(("P", "PA"), "a palette"),
    **dict.fromkeys(("RGB", "RGBA", "RGBa", "RGBX"), ""),
    **dict.fromkeys(("CMYK",), "CMYK, without a colour profile"),
    **dict.fromkeys(("YCbCr",), "YCbCr"),
}
# Tags of TIFF.
SAMPLE_FORMAT, PHOTOMETRIC, BITS, COLORMAP, PLANES, CHANNELS = 339, 262, 258, 320, 284, 277
STATED_MAXIMA = (341, 281)


def layout_of(image: Image.Image) -> Any:
    """Return how the file packs its pixels, as Pillow describes it.

    Pillow drops this description when the pixels are decoded. Then the result is None.
    """
    tiles = getattr(image, "tile", None)
    return tiles[0].args if tiles else None


def depth_of(image: Image.Image) -> Depth:
    if image.mode == "F":
        return "floats"
    if image.mode == "I" and image.format != "PPM":
        return "integers"
    if image.mode.startswith("I"):
        return "16-bit grey"
    deep = (
        ";16" in str(layout_of(image)) or maxval_of(image) > 255 or (tag_of(image, BITS) or 0) > 8
    )
    return "16-bit colour" if deep else "8 bits"


def maxval_of(image: Image.Image) -> int:
    """Return the level of white in the header of a PGM or PPM, if Pillow scales by it, else 0."""
    layout = layout_of(image)
    return (
        int(layout[1])
        if image.format == "PPM" and isinstance(layout, tuple) and image.mode != "F"
        else 0
    )


def stated_white_of(image: Image.Image, depth: Depth) -> float | None:
    """Return the level of white that the header states, after Pillow's own scaling.

    The result is None where the header does not state it. 65,535 in a PGM or PPM says only that
    there are 16 bits, because programs also write it for images of 12 bits. The largest level in a
    TIFF is a statement only if it is 2^n - 1. Otherwise it is just the largest level of that image.
    """
    if depth == "8 bits":
        return None
    if maxval_of(image) not in (0, 65535):
        return WHITES[depth]  # Pillow has scaled the levels
    if image.format != "TIFF" or depth not in ("16-bit grey", "integers"):
        return None
    if (bits := tag_of(image, BITS)) not in (16, 32):
        return float(2**bits - 1)
    return next(
        (float(value) for tag in STATED_MAXIMA if _is_full_scale(value := tag_of(image, tag))), None
    )


def _is_full_scale(level: Any) -> bool:
    """Return whether a level is the largest one of 8 bits or more, which is 2^n - 1."""
    return (
        isinstance(level, int | float)
        and level >= 255
        and float(level).is_integer()
        and not int(level) & int(level) + 1
    )


def tag_of(image: Image.Image, tag: int) -> Any:
    """Return the first value of a tag of a TIFF; None where the tag is missing."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def obstacle_of(image: Image.Image, depth: Depth) -> str | None:
    """Return why an image cannot be read without a guess, and what to do.

    The result is None for an image that can be read.
    """
    if image.mode not in MODES:
        return f"expected grey, palette, RGB or CMYK, found mode {image.mode}; save it as RGB"
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return (
            "expected one picture, found several (frames or pages); "
            "save the one that you mean as a file of its own"
        )
    if depth == "16-bit colour" and "transparency" in image.info:
        return (
            "16-bit colour with one colour that is transparent is not read here; "
            "save it with 8 bits a channel"
        )
    if image.format != "TIFF":
        return None
    if tag_of(image, SAMPLE_FORMAT) == 2 and image.mode == "L":
        return "expected levels from 0 to 255, found signed ones; save it as unsigned 8 bits"
    if tag_of(image, PHOTOMETRIC) == 0 and depth != "8 bits":
        return (
            "a TIFF of more than 8 bits in which 0 is white is not read here; "
            "save it with 0 as black"
        )
    if tag_of(image, PLANES) == 2 and depth == "16-bit colour":
        return "16-bit colour in separate planes is not read here; save it with 8 bits a channel"
    if image.mode in ("P", "PA") and max(image.tag_v2[COLORMAP]) < 256:  # type: ignore[attr-defined]
        return (
            "expected a palette of 16-bit colours, as TIFF has them, found none above 255; "
            "save it as RGB"
        )
    return None
