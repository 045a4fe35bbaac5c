"""Pixels of every kind that a folder may hold.

Each gets its right value, or is refused with advice on what to do.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.base.errors import InputError
from pipeline.prepare import sources

SIZE = 8
COLOUR = (200, 100, 50)
RAMP = np.linspace(0, 1, SIZE * SIZE).reshape(SIZE, SIZE)  # black to white


@pytest.fixture
def read(settings, tmp_path):
    """Reads files of class `cat` beside a bright RGB image of class `dog`.

    Gives the source and the images of `cat` (n, 3, H, W).
    """
    data = settings.data.model_copy(
        update={"source": "image_folder", "path": str(tmp_path), "image_size": SIZE}
    )

    def opened(**named):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), "white").save(tmp_path / "dog" / "white.png")
        for name, content in named.items():
            (tmp_path / "cat" / name.replace("_", ".")).write_bytes(content)
        source = sources.open_source(data)
        return source, source.read(np.arange(len(named)))

    return opened


def packed(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array(values, dtype, kind, **options):
    return packed(Image.fromarray(np.asarray(values).astype(dtype)), kind, **options)


def pgm(values, maxval):
    return f"P2 {SIZE} {SIZE} {maxval}\n{' '.join(map(str, values.ravel().astype(int)))}\n".encode()


def to_tiff(image, **tags):
    """A TIFF with some tags set as they come, whatever Pillow makes of them."""
    return packed(image, "TIFF", tiffinfo={int(tag[1:]): value for tag, value in tags.items()})


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a_png", array(RAMP * 65535, "u2", "PNG"), "16-bit grey scaled to 8 bits so that 65,535"),
        ("a_tif", array(RAMP * 65535, "u2", "TIFF"), "16-bit grey scaled to 8 bits so that 65,535"),
        (
            "a_tif",
            array(RAMP * 65535, ">u2", "TIFF"),
            "16-bit grey scaled to 8 bits so that 65,535",
        ),
        (
            "a_tif",
            array(RAMP * 65535, "u2", "TIFF", compression="tiff_lzw"),
            "16-bit grey scaled to 8 bits so that 65,535",
        ),
        ("a_pgm", array(RAMP * 65535, "u2", "PPM"), "16-bit grey scaled to 8 bits so that 65,535"),
        ("a_pgm", pgm(RAMP * 4095, 4095), "16-bit grey scaled to 8 bits so that 65,535"),
        ("a_pgm", pgm(RAMP * 15, 15), None),
        (
            "a_tif",
            array(RAMP * 4095, "u2", "TIFF", tiffinfo={281: 4095}),
            "16-bit grey scaled to 8 bits so that 4,095",
        ),
        ("a_tif", array(RAMP * 255, "i4", "TIFF"), "integers scaled to 8 bits so that 255"),
        (
            "a_tif",
            array(RAMP * 65535, "i4", "TIFF", tiffinfo={341: 65535}),
            "integers scaled to 8 bits so that 65,535",
        ),
        ("a_tif", array(RAMP, "f4", "TIFF"), "floats scaled to 8 bits so that 1"),
        ("a_pgm", array(RAMP, "f4", "PPM"), "floats scaled to 8 bits so that 1"),
    ],
)
def test_levels_of_more_bits_become_eight(read, name, content, note):
    source, images = read(**{name: content})
    steps = 15 if note is None else 255
    assert np.abs(images[0] - np.floor(RAMP * steps) * 255 / steps).max() <= 1
    assert images.max() == 255
    said = [words for words in source.notes if "8 bits" in words]
    assert said == ([] if note is None else [f"images of {note} becomes 255"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a_png",
            array(RAMP * 4095, "u2", "PNG"),
            "1 image of 16-bit grey, the first is .*a.png: .* 32,768 or more, found 0 to 4,095",
        ),
        (
            "a_tif",
            array(RAMP * 4095, "u2", "TIFF"),
            "expected levels from 0 to 65,535, the brightest 32,768 or more, found 0 to 4,095",
        ),
        (
            "a_tif",
            array(RAMP * 4095, "u2", "TIFF", tiffinfo={281: 3900}),
            "found 0 to 4,095; divide by the level of white",
        ),
        (
            "a_tif",
            array(RAMP * 4095, "u2", "TIFF", tiffinfo={281: 1023}),
            "a.tif: expected levels from 0 to 1,023, found 0 to 4,095",
        ),
        ("a_pgm", pgm(RAMP * 4095, 65535), "found 0 to 4,095"),
        (
            "a_tif",
            array(RAMP * 70000, "i4", "TIFF"),
            "image of integers, .*: expected levels from 0 to 255.*, found 0 to 70,000",
        ),
        ("a_tif", array(RAMP * 100, "i4", "TIFF"), "found 0 to 100"),
        ("a_tif", array(RAMP * 300 - 100, "i4", "TIFF"), "found -100 to 200"),
        (
            "a_tif",
            array(RAMP * 255, "f4", "TIFF"),
            "image of floats, .*: expected levels from 0 to 1, found 0 to 255; divide",
        ),
        ("a_tif", array(RAMP * 2 - 1, "f4", "TIFF"), "found -1 to 1"),
        ("a_tif", array(np.where(RAMP > 0.9, np.nan, RAMP), "f4", "TIFF"), "found nan to nan"),
        (
            "a_tif",
            to_tiff(Image.new("L", (8, 8), 9), _339=2),
            "found signed ones; save it as unsigned 8 bits",
        ),
        ("a_tif", to_tiff(Image.new("LAB", (8, 8))), "found mode LAB; save it as RGB"),
    ],
)
def test_levels_of_unknown_range_are_refused(read, name, content, message):
    with pytest.raises(InputError, match=message):
        read(**{name: content})[0].read(np.arange(1))


def test_a_dark_image_of_16_bits_is_read_beside_bright_ones(read):
    source, images = read(
        a_png=array(RAMP * 4095, "u2", "PNG"), b_png=array(RAMP * 65535, "u2", "PNG")
    )
    assert (images[0].max(), images[1].max()) == (16, 255)
    assert (
        source.notes[
            "images of 16 bits that are dark, below 1/16 of white, and scaled like the others"
        ]
        == 1
    )


def colour_png(values):
    """A 16-bit RGB PNG, which Pillow cannot write."""
    rows = np.repeat(values.astype(">u2")[..., None], 3, axis=2)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def test_colour_of_16_bits_keeps_its_upper_8(read):
    source, images = read(a_png=colour_png(RAMP * 65535))
    assert (images[0, 1] == (RAMP * 65535).astype("u2") >> 8).all()
    assert source.notes["images of 16-bit colour reduced to 8 bits"] == 1


@pytest.mark.parametrize("name", ["a_png", "a_ppm"])
def test_colour_of_12_bits_in_16_is_refused(read, name):
    values = (RAMP * 4095).astype(">u2")
    content = (
        colour_png(values)
        if name == "a_png"
        else b"P6 8 8 65535\n" + np.repeat(values, 3).tobytes()
    )
    with pytest.raises(
        InputError,
        match=(
            "16-bit colour, .*: expected levels from 0 to 255, the brightest 128 or more, found 0 "
            "to 1[56];"
        ),
    ):
        read(**{name: content})


def tiff(values, *, order="<", photometric=2, planes=1, bits=8, kind=1, extra=()):
    """A TIFF of (8, 8, channels), uncompressed, of the kinds that Pillow does not write."""
    values = np.asarray(values)
    data = values.transpose(2, 0, 1).tobytes() if planes == 2 else values.tobytes()
    channels, n_strips = values.shape[2], values.shape[2] if planes == 2 else 1
    tags = {
        256: [SIZE],
        257: [SIZE],
        258: [bits] * channels,
        259: [1],
        262: [photometric],
        277: [channels],
        278: [SIZE],
        284: [planes],
    }
    size = len(data) // n_strips
    tags |= {
        273: [8 + strip * size for strip in range(n_strips)],
        279: [size] * n_strips,
        338: extra,
        339: [kind] * channels,
    }
    tags = {
        tag: struct.pack(f"{order}{len(held)}I", *held)
        for tag, held in sorted(tags.items())
        if held
    }
    place, entries, long = 8 + len(data) + 6 + 12 * len(tags), b"", b""
    for tag, held in tags.items():
        entries += struct.pack(f"{order}HHI", tag, 4, len(held) // 4)
        entries += held if len(held) == 4 else struct.pack(f"{order}I", place + len(long))
        long += b"" if len(held) == 4 else held
    start = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return (
        start
        + data
        + struct.pack(f"{order}H", len(tags))
        + entries
        + struct.pack(f"{order}I", 0)
        + long
    )


FLAT = np.broadcast_to([65535, 30000, 0], (SIZE, SIZE, 3))
FOUR = np.broadcast_to(np.uint8([9, 200, 30, 77]), (SIZE, SIZE, 4))


@pytest.mark.parametrize(
    ("content", "expected", "note"),
    [
        (
            tiff(FLAT.astype("<u2"), bits=16),
            [255, 117, 0],
            "images of 16-bit colour reduced to 8 bits",
        ),
        (
            tiff(FLAT.astype(">u2"), bits=16, order=">"),
            [255, 117, 0],
            "images of 16-bit colour reduced to 8 bits",
        ),
        (
            tiff(FOUR, extra=(0,)),
            [9, 200, 30],
            "images with more channels than these, which are left out",
        ),
        (
            tiff(FOUR[..., :2], photometric=1, extra=(1,)),
            [9 + 255 - 200] * 3,
            "images with transparency put on white",
        ),
        (tiff(FOUR[..., :1], photometric=0), [246, 246, 246], "images made RGB from grey"),
    ],
)
def test_tiffs_of_other_programs_are_read(read, content, expected, note):
    source, images = read(a_tif=content)
    assert images[0, :, 4, 4].tolist() == expected
    assert source.notes[note] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiff(FLAT.astype("<u2"), bits=16, planes=2),
            "16-bit colour in separate planes is not read here; save it with 8 bits a channel",
        ),
        (
            tiff(FLAT[..., :1].astype("<u2"), bits=16, photometric=0),
            "more than 8 bits in which 0 is white is not read here; save it with 0",
        ),
        (
            tiff(FLAT[..., :1].astype("<i2"), bits=16, photometric=1, kind=2),
            "image of integers, .*, found -1 to -1; divide",
        ),
        (
            tiff(FLAT[..., :1].astype("f8"), bits=64, photometric=1, kind=3),
            "not an image that can be read .*; repair, convert or remove it",
        ),
    ],
)
def test_tiffs_that_pillow_would_read_wrongly_are_refused(read, content, message):
    with pytest.raises(InputError, match=message):
        read(a_tif=content)


def plain(mode):
    return Image.new("RGB", (SIZE, SIZE), COLOUR).convert(mode)


@pytest.mark.parametrize(
    ("name", "content", "expected", "note"),
    [
        ("a_png", packed(plain("RGB"), "PNG"), COLOUR, None),
        ("a_png", packed(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255), "black and white"),
        ("a_tif", packed(Image.new("1", (8, 8), 1), "TIFF"), (255, 255, 255), "black and white"),
        ("a_pbm", packed(Image.new("1", (8, 8), 1), "PPM"), (255, 255, 255), "black and white"),
        ("a_png", packed(Image.new("L", (8, 8), 77), "PNG"), (77, 77, 77), "grey"),
        ("a_png", packed(plain("RGB").quantize(4), "PNG"), COLOUR, "a palette"),
        ("a_bmp", packed(plain("RGB"), "BMP"), COLOUR, None),
        ("a_gif", packed(plain("RGB").quantize(4), "GIF"), COLOUR, "a palette"),
        ("a_jpe", packed(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77), "grey"),
        ("a_jfif", packed(Image.new("L", (8, 8), 77), "JPEG"), (77, 77, 77), "grey"),
        ("a_tif", packed(plain("CMYK"), "TIFF"), COLOUR, "CMYK, without a colour profile"),
        ("a_tif", packed(plain("YCbCr"), "TIFF"), COLOUR, "YCbCr"),
        ("a_webp", packed(plain("RGB"), "WEBP", lossless=True), COLOUR, None),
        ("a_avif", packed(plain("RGB"), "AVIF", quality=100, subsampling="4:4:4"), COLOUR, None),
    ],
)
def test_every_mode_gets_its_colours(read, name, content, expected, note):
    source, images = read(**{name: content})
    assert np.abs(images[0].reshape(3, -1).T - np.array(expected)).max() <= 2
    assert [words for words in source.notes if "made RGB" in words] == (
        [] if note is None else [f"images made RGB from {note}"]
    )


def see_through(mode, alpha=0):
    """Red, with a left half of that alpha."""
    image = Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 255))
    image.paste((255, 0, 0, alpha), (0, 0, SIZE // 2, SIZE))
    return image.convert(mode)


def keyed(mode, background, key, **options):
    """Half `background`, half another level, of which the first is transparent."""
    if mode == "I;16":
        return packed(
            Image.fromarray(np.repeat(np.uint16([[background, 40_000]] * SIZE), SIZE // 2, axis=1)),
            "PNG",
            transparency=key,
        )
    image = Image.new(mode, (SIZE, SIZE), background)
    image.paste(1 if mode == "P" else 0, (SIZE // 2, 0, SIZE, SIZE))
    if mode == "P":
        image.putpalette([9, 9, 9, 0, 0, 0])
    return packed(image, "PNG", transparency=key, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a_png", packed(see_through("RGBA"), "PNG")),
        ("a_png", packed(see_through("LA"), "PNG")),
        ("a_tif", packed(see_through("RGBA"), "TIFF")),
        ("a_tif", packed(see_through("LA"), "TIFF")),
        ("a_webp", packed(see_through("RGBA"), "WEBP", lossless=True, exact=True)),
        ("a_avif", packed(see_through("RGBA"), "AVIF", quality=100)),
        ("a_png", keyed("L", 9, 9)),
        ("a_png", keyed("RGB", (9, 9, 9), (9, 9, 9))),
        ("a_png", keyed("P", 0, 0)),
        ("a_png", keyed("P", 0, b"\0\xff")),
        ("a_png", keyed("I;16", 9, 9)),
        ("a_gif", packed(Image.open(io.BytesIO(keyed("P", 0, 0))), "GIF", transparency=0)),
    ],
)
def test_transparent_pixels_are_white(read, name, content):
    source, images = read(**{name: content})
    assert (images[0, :, :, : SIZE // 2] >= 254).all()
    assert (images[0, 1, :, SIZE // 2 :] < 160).all()
    assert source.notes["images with transparency put on white"] == 1


def test_half_transparent_pixels_are_mixed_with_white(read):
    _, images = read(a_png=packed(see_through("RGBA", 128), "PNG"))
    assert images[0, :, 0, 0].tolist() == [255, 127, 127]


def test_the_transparent_level_of_few_bits_is_found(read):
    grey = Image.new("L", (8, 8), 255)
    grey.paste(0, (4, 0, 8, 8))
    content = packed(grey.convert("P", palette=Image.Palette.ADAPTIVE, colors=2), "PNG", bits=2)
    header = content.index(b"IHDR")
    body = content[header + 21 :]
    ihdr = content[header + 4 : header + 17]
    kept = body[body.index(b"IDAT") - 4 :]
    raw = (
        content[:8] + chunk(b"IHDR", ihdr[:9] + b"\0" + ihdr[10:]) + chunk(b"tRNS", b"\0\1") + kept
    )
    _, images = read(a_png=raw)
    assert {(images[0, 0, 0, 0] == 255), (images[0, 0, 0, 7] == 255)} == {True, False}, (
        "level 1 of 3, which Pillow makes 85"
    )
    assert images[0].min() == 0


def test_an_image_that_is_transparent_all_over_is_refused(read):
    with pytest.raises(
        InputError,
        match=(
            "a.png: expected a picture, found every pixel transparent; save it without its alpha "
            "channel"
        ),
    ):
        read(a_png=packed(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), "PNG"))


def corner(orientation):
    """A photo with EXIF that, turned upright, is black in its upper left quarter, else white."""
    upright = Image.new("RGB", (SIZE, SIZE), "white")
    upright.paste("black", (0, 0, SIZE // 2, SIZE // 2))
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[
        orientation
    ]  # Image.Transpose, the other way round
    exif = Image.Exif()
    exif[0x0112] = orientation
    return (upright if back is None else upright.transpose(Image.Transpose(back))), exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a_jpg", "a_png", "a_tif", "a_webp"])
def test_photos_are_turned_upright(read, name, orientation):
    stored, exif = corner(orientation)
    kind = {"a_jpg": "JPEG", "a_png": "PNG", "a_tif": "TIFF", "a_webp": "WEBP"}[name]
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    content = packed(stored, kind, exif=exif, **options)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(content))).getpixel((0, 0))[0] < 9, (
        "the photo is as it should be"
    )
    source, images = read(**{name: content})
    assert images[0, 0, :4, :4].max() < 9
    assert images[0, 0, 4:].min() > 246
    assert source.notes.get("images turned upright as their EXIF says", 0) == (orientation != 1)


def test_exif_after_the_pixels_of_a_png_is_found(read):
    stored, exif = corner(3)
    content = packed(stored, "PNG")
    end = content.index(b"IEND") - 4
    source, images = read(a_png=content[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + content[end:])
    assert images[0, 0, 0, 0] == 0
    assert source.notes["images turned upright as their EXIF says"] == 1


def test_broken_exif_turns_nothing(read):
    source, images = read(a_png=packed(plain("RGB"), "PNG", exif=b"Exif\0\0broken"))
    assert images[0, :, 0, 0].tolist() == list(COLOUR)
    assert source.notes == {}


FRAMES = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("white", "red")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a_gif", "GIF"), ("a_png", "PNG"), ("a_webp", "WEBP"), ("a_tif", "TIFF"), ("a_avif", "AVIF")],
)
def test_several_frames_or_pages_are_refused(read, name, kind):
    with pytest.raises(InputError, match="expected one picture, found several"):
        read(**{name: packed(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])})


def test_a_photo_with_a_preview_is_its_first_picture(read):
    source, images = read(a_jpg=packed(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:]))
    assert images[0].min() == 255
    assert (
        source.notes["images with further pictures in the file, of which the first is taken"] == 1
    )


def test_cut_and_resized_images_are_counted(read):
    source, _ = read(
        a_png=packed(Image.new("RGB", (16, 8)), "PNG"),
        b_png=packed(Image.new("RGB", (16, 16)), "PNG"),
    )
    assert source.notes["images cut to the largest square in the middle"] == 1
    assert source.notes["images resized to 8 x 8"] == 1


@pytest.mark.parametrize("content", [b"", b"no image at all", packed(plain("RGB"), "PNG")[:50]])
def test_corrupt_images_are_named_with_their_path(read, content):
    with pytest.raises(
        InputError,
        match=r"cat/a.png: not an image that can be read \(.+\); repair, convert or remove it",
    ):
        read(a_png=content)
