"""Read the source `image_folder`, which has a folder for each class.

Images have any size, and any of the formats that `image_files` reads.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.sources import folder_layout, image_files, image_headers
from pipeline.prepare.sources.common import Images, Source, check_labels
from pipeline.prepare.sources.folder_layout import NEEDED, Found, class_folders
from pipeline.prepare.sources.image_files import ENDINGS, Picture


def read(root: Path, image_size: int) -> Source:
    """Return the images below `root`.

    The classes are the subfolders in alphabetical order, or in the order of their numbers. Images
    become upright 8-bit RGB. They are cropped around the centre to a square and resized to
    `image_size`. Headers are read at once, and pixels when they are requested. Links are followed
    only to files inside `root`. Raises InputError for another layout of folders, for classes
    without images, and for images that are refused.
    """
    found = Found(root=root)
    try:
        folders = class_folders(found)
        images = [found.images(folder, folder_layout.MAX_DEPTH) for folder in folders]
    except OSError as error:
        raise InputError(f"{root}: expected {NEEDED} ({error.strerror})") from error
    class_names = tuple(limits.plain_name(f"{root}: classes", folder.name) for folder in folders)
    for folder, inside in zip(folders, images, strict=True):
        if not inside:
            raise InputError(_no_images(folder, found.summary()))
    pictures = _examined([path for inside in images for path in inside], image_size)
    labels = check_labels(
        root, np.repeat(np.arange(len(images)), [len(inside) for inside in images]), len(pictures)
    )
    whites = _whites(root, pictures, found.notes)
    found.notes.update(words for picture in pictures for words in picture.notes)
    _count_copies(pictures, labels.tolist(), found.notes)

    def decode(rows: NDArray[np.int64]) -> Images:
        def one(row: int) -> Images:
            picture = pictures[row]
            return image_files.decode(
                picture, image_size, picture.white or whites.get(picture.kind)
            )

        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(one, rows)))

    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=decode,
        class_names=class_names,
        sha256=_folder_sha256(root, pictures),
        notes=found.summary(),
    )


def _no_images(folder: Path, summary: Mapping[str, int]) -> str:
    """Return what is wrong with a class's folder that has no image, and what to do about it."""
    files = [f"{count} {words}" for words, count in summary.items() if words.startswith("files")]
    others = f" (in all folders: {'; '.join(files)}); convert them"
    return (
        f"{folder}: expected images in the subfolder of each class "
        f"({', '.join(sorted(ENDINGS))}), found none{others if files else '; remove the folder'}"
    )


def _examined(paths: list[Path], image_size: int) -> list[Picture]:
    """Return the headers of all images.

    Raises InputError for the first file that is refused, with the number of the others.
    """

    def attempt(path: Path) -> Picture | InputError:
        try:
            return image_files.examine(path, image_size)
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, paths))
    if errors := [result for result in results if isinstance(result, InputError)]:
        more = f" (and {len(errors) - 1} more files are refused)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    return [result for result in results if isinstance(result, Picture)]


def _whites(root: Path, pictures: list[Picture], notes: Counter[str]) -> dict[str, float]:
    """Return the level of white of each kind of image with more than 8 bits that does not state it.

    It is the usual level if the brightest of these images reaches the upper half of its range.
    Otherwise this raises InputError, because the same file can mean a dark picture of 16 bits or a
    bright one of 12. Images of floats may be dark.
    """
    deep: dict[str, list[Picture]] = {}
    for picture in pictures:
        if picture.depth != "8 bits":
            white = image_headers.WHITES[picture.depth] if picture.white is None else picture.white
            notes[_scaling(picture, white)] += 1
            if picture.white is None:
                deep.setdefault(picture.kind, []).append(picture)
    return {kind: _white(root, members, notes) for kind, members in deep.items()}


def _scaling(picture: Picture, white: float) -> str:
    done = (
        "reduced to 8 bits"
        if picture.depth == "16-bit colour"
        else f"scaled to 8 bits so that {white:,.0f} becomes 255"
    )
    return f"images of {picture.depth} {done}"


def _white(root: Path, pictures: list[Picture], notes: Counter[str]) -> float:
    with ThreadPoolExecutor() as pool:
        lows, highs = np.array(list(pool.map(image_files.levels, pictures))).T
    depth, low, high = pictures[0].depth, lows.min(), highs.max()
    white = image_headers.WHITES[depth]
    least = 0 if depth == "floats" else math.ceil(white / 2)
    if not (low >= 0 and least <= high <= white):  # NaN fails both comparisons
        where = f"{root}: {len(pictures)} images of {depth}, the first is {pictures[0].path}"
        above = f", the brightest {least:,} or more" if least else ""
        remedy = "divide by the level of white, multiply by 255, round, and save as 8 bits"
        raise InputError(
            f"{where}: expected levels from 0 to {white:,.0f}{above}, "
            f"found {low:,g} to {high:,g}; {remedy}"
        )
    if depth.startswith("16"):
        notes[
            "images of 16 bits that are dark, below 1/16 of white, and scaled like the others"
        ] += int((highs < white / 16).sum())
    return white


def _count_copies(pictures: list[Picture], labels: list[int], notes: Counter[str]) -> None:
    """Count files with identical bytes.

    The split may put one of them on each side.
    """
    classes: dict[str, set[int]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        classes.setdefault(picture.sha256, set()).add(label)
    notes[
        "images that are copies of others, so that training and validation images may be the same"
    ] += len(pictures) - len(classes)
    notes["images that are in several classes"] += sum(len(held) > 1 for held in classes.values())


def _folder_sha256(root: Path, pictures: list[Picture]) -> str:
    """Return a SHA-256 over the names and contents of all images."""
    lines = [f"{picture.sha256}  {picture.path.relative_to(root)}\n" for picture in pictures]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
