"""`image_folder`: a folder for each class, images of any size and format that Pillow reads."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import files, guards
from pipeline.errors import InputError
from pipeline.sources.common import Images, Source, check_labels

MAX_PIXELS = 2**26  # an image that would take more than 256 MiB is refused before it is decoded
LARGE_PIXELS = 2**22  # such images are decoded one at a time
MAX_BYTES = 2**28  # in one file
MAX_DEPTH = 20
# By ending and by content: of all that Pillow opens, some run programs (EPS) or hold many images.
ENDINGS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")


def read(root: Path, image_size: int) -> Source:
    """The images below `root`; classes are its subfolders in alphabetical order.

    Images become RGB and are cropped around the centre to a square and resized to `image_size`. They are decoded when asked for. Links are
    followed to files inside `root` alone.
    """
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir())
        found = [_images(root, folder, MAX_DEPTH) for folder in folders]
    except OSError as error:
        raise InputError(f"{root}: expected a folder with a subfolder of images for each class ({error.strerror})") from error
    if not folders:
        raise InputError(f"{root}: expected a folder with a subfolder of images for each class, found no subfolder")
    class_names = tuple(guards.plain_name(f"{root}: classes", folder.name) for folder in folders)
    for folder, images in zip(folders, found, strict=True):
        if not images:
            raise InputError(f"{folder}: expected images in the subfolder of each class ({', '.join(sorted(ENDINGS))}), found none")
    paths = [path for images in found for path in images]
    labels = check_labels(root, np.repeat(np.arange(len(found)), [len(images) for images in found]), len(paths))
    one_at_a_time = threading.Lock()

    def decode(rows: NDArray[np.int64]) -> Images:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda row: _decode(paths[row], image_size, one_at_a_time), rows)))

    return Source(labels=labels, ids=np.arange(len(labels)), read=decode, class_names=class_names, sha256=_folder_sha256(root, paths))


def _images(root: Path, folder: Path, depth: int) -> list[Path]:
    """The images in `folder` and below, in a fixed order; raises InputError for a link out of `root` and for what is no plain file."""
    if folder.is_symlink():
        raise InputError(f"{folder}: refused: a link to another folder; put the images themselves there")
    if not depth:
        raise InputError(f"{folder}: refused: more than {MAX_DEPTH} folders inside each other")
    images, folders = [], []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            folders.append(path)
        elif path.suffix.lower() in ENDINGS:
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise InputError(f"{path}: refused: a link out of {root}; put the image itself there")
            if guards.regular(path, "mend or remove it") > MAX_BYTES:
                raise InputError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {path.stat().st_size:,}; make it smaller")
            images.append(path)
    return images + [path for folder in folders for path in _images(root, folder, depth - 1)]


def _decode(path: Path, image_size: int, one_at_a_time: threading.Lock) -> Images:
    """One image as uint8 (3, image_size, image_size)."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            n_pixels = image.width * image.height
            if n_pixels > MAX_PIXELS:
                raise InputError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {image.width} x {image.height}; make it smaller")
            with one_at_a_time if n_pixels > LARGE_PIXELS else nullcontext():
                fitted = ImageOps.fit(image.convert("RGB"), (image_size, image_size), Image.Resampling.BICUBIC)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of every kind for damaged images
        raise InputError(f"{path}: not an image that can be read ({' '.join(str(error).split())[:200]}); mend or remove it") from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _folder_sha256(root: Path, paths: list[Path]) -> str:
    """A SHA-256 over the names and contents of all files."""
    lines = [f"{files.sha256(path)}  {path.relative_to(root)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
