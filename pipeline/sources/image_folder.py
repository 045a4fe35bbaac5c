"""`image_folder`: a folder for each class, images of any size and format that Pillow reads."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.datasets import folder

from pipeline import files
from pipeline.errors import InputError
from pipeline.sources.common import Images, Source, check_labels

MAX_PIXELS = 2**26  # an image that would take more than 192 MiB is refused before it is decoded


def read(root: Path, image_size: int) -> Source:
    """The images below `root`; classes are its subfolders in alphabetical order.

    Images become RGB and are cropped around the centre to a square and resized to `image_size`. They are decoded when asked for.
    """
    try:
        class_names, class_to_index = folder.find_classes(root)
        found = folder.make_dataset(root, class_to_index, extensions=folder.IMG_EXTENSIONS)
    except OSError as error:
        raise InputError(f"{root}: expected a folder with a subfolder of images for each class ({' '.join(str(error).split())})") from error
    paths = [Path(path) for path, _ in found]
    labels = check_labels(root, np.array([label for _, label in found], dtype=np.int64), len(found))

    def decode(rows: NDArray[np.int64]) -> Images:
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda row: _decode(paths[row], image_size), rows)))

    return Source(
        labels=labels, ids=np.arange(len(labels)), read=decode, class_names=tuple(class_names), sha256=_folder_sha256(root, paths)
    )


def _decode(path: Path, image_size: int) -> Images:
    """One image as uint8 (3, image_size, image_size)."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: expected at most {MAX_PIXELS:,} pixels, found {image.width} x {image.height}; make it smaller")
            fitted = ImageOps.fit(image.convert("RGB"), (image_size, image_size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not an image that can be read ({' '.join(str(error).split())[:200]}); mend or remove it") from error
    return np.asarray(fitted).transpose(2, 0, 1)


def _folder_sha256(root: Path, paths: list[Path]) -> str:
    """A SHA-256 over the names and contents of all files."""
    lines = [f"{files.sha256(path)}  {path.relative_to(root)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
