"""Read the source `image_folder`, which has a folder for each class.

Images have any size, and any of the formats that `image_files` reads.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.store import SPLITS
from pipeline.base.untrusted import limits
from pipeline.base.words import counted
from pipeline.prepare.params import Data, Part
from pipeline.prepare.sources import archives, image_files, image_headers, pixels
from pipeline.prepare.sources.common import Images, Source
from pipeline.prepare.sources.folder_layout import NEEDED, Classes, Listing, shown
from pipeline.prepare.sources.folder_parts import parts_of
from pipeline.prepare.sources.image_files import ENDINGS, Picture

SHOWN = 10  # images in an error message
MAX_SKIPPED = 2**15  # letters of names, which are stored with the set
SKIP = " (or set data.skip_broken: true)"
TOO_MANY = " (too many to skip)"
Item = TypeVar("Item")
Result = TypeVar("Result")


def read(root: Path, data: Data) -> Source:
    """Return the images below `root`, a folder or an archive of one.

    The classes are the subfolders in alphabetical order, or in the order of their numbers. Images
    become upright 8-bit RGB. They are cropped around the centre to a square and resized to
    `image_size`. Headers are read at once, and pixels when they are requested. Links are followed
    only to files inside `root`, unless `data.follow_links` is set. Raises InputError for another
    layout of folders, for classes without images, and for images that are refused.
    """
    if not archives.is_archive(root):
        return _read(root, root, data)
    folder = archives.unpacked(root)
    with archives.named(root):
        source = _read(root, folder, data)
    return replace(source, read=archives.named(root)(source.read))


def _read(root: Path, folder: Path, data: Data) -> Source:
    """Return the images in a folder. Errors about all of it begin with `root`."""
    listing = Listing(root=folder, follow_links=data.follow_links)
    try:
        train, held_out = parts_of(listing, data.own_parts)
    except OSError as error:
        raise InputError(f"{root}: expected {NEEDED} ({error.strerror})") from error
    for name, inside in train.items():
        limits.plain_name(f"{root}: classes", name)
        if not inside:
            raise InputError(_no_images(root, name, listing.summary()))
    paths, labels, split = _listed(train, held_out)
    pictures, skipped, names = _examined(folder, paths, data)
    labels, split = labels[~skipped], split[~skipped]
    _expect_readable(root, tuple(train), labels[split == SPLITS["train"]])
    shapes = ((picture.height, picture.width) for picture in pictures)
    size = data.image_size or pixels.own_size(str(root), shapes)
    whites = _whites(root, pictures, listing.notes)
    listing.notes["images that cannot be read left out"] += len(names)
    listing.notes.update(words for picture in pictures for words in _notes(picture, size))
    _count_copies(pictures, labels.tolist(), listing.notes)
    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=partial(_decoded, folder, pictures, size, whites, "" if data.skip_broken else SKIP),
        class_names=tuple(train),
        sha256=_folder_sha256(folder, pictures),
        image_size=size,
        notes=listing.summary(),
        split=split if held_out else None,
        skipped=names,
    )


def _decoded(
    folder: Path,
    pictures: list[Picture],
    size: int,
    whites: Mapping[str, float],
    advice: str,
    rows: NDArray[np.int64],
) -> Images:
    """Return the pixels of some images.

    Raises InputError that names all damaged images, and ends with `advice`.
    """

    def one(picture: Picture) -> Images:
        return image_files.decode(picture, size, picture.white or whites.get(picture.kind))

    def check(picture: Picture) -> None:
        one(picture)

    images = _attempted(one, [pictures[row] for row in rows])
    whole = [image for image in images if not isinstance(image, InputError)]
    if len(whole) < len(images):
        paths = [picture.path for picture in pictures]
        _raise_all(folder, paths, _attempted(check, pictures), advice)
    return np.stack(whole)


def _listed(
    train: Classes, held_out: Mapping[Part, Classes]
) -> tuple[list[Path], NDArray[np.int64], NDArray[np.uint8]]:
    """Return the paths, labels and split of all images, ordered by part and class."""
    numbers = {name: number for number, name in enumerate(train)}
    found = [
        (path, numbers[name], SPLITS[part])
        for part, classes in (("train", train), *held_out.items())
        for name, inside in classes.items()
        for path in inside
    ]
    return (
        [path for path, _, _ in found],
        np.array([label for _, label, _ in found], dtype=np.int64),
        np.array([part for _, _, part in found], dtype=np.uint8),
    )


def _examined(
    folder: Path, paths: list[Path], data: Data
) -> tuple[list[Picture], NDArray[np.bool_], tuple[str, ...]]:
    """Return the headers of all images, a mask of those that are skipped, and their names.

    Raises InputError for files that are refused, unless `data.skip_broken` is set. It names the
    first ones and their number.
    """

    def examine(path: Path) -> Picture:
        picture = image_files.examine(path)
        if data.skip_broken:
            image_files.check_pixels(picture)
        return picture

    results = _attempted(examine, paths)
    if not data.skip_broken:
        _raise_all(folder, paths, results, SKIP)
    skipped = np.array([isinstance(result, InputError) for result in results], dtype=bool)
    names = tuple(
        shown(str(path.relative_to(folder)))
        for path, is_skipped in zip(paths, skipped, strict=True)
        if is_skipped
    )
    if skipped.all() or sum(map(len, names)) > MAX_SKIPPED:
        _raise_all(folder, paths, results, TOO_MANY)
    return [result for result in results if isinstance(result, Picture)], skipped, names


def _attempted(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> list[Result | InputError]:
    """Return a function's results for many items, or the InputError of each."""

    def attempt(item: Item) -> Result | InputError:
        try:
            return function(item)
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(attempt, items))


def _raise_all(folder: Path, paths: Sequence[Path], results: Sequence[object], advice: str) -> None:
    """Raise one InputError for all those among `results`, which are those of `paths`.

    It names the first images and their number. `advice` follows the remedy.
    """
    errors = {
        path: result
        for path, result in zip(paths, results, strict=True)
        if isinstance(result, InputError)
    }
    if not errors:
        return
    first = next(iter(errors.values()))
    if len(errors) == 1:
        raise InputError(f"{first}{advice}")
    names = ", ".join(str(path.relative_to(folder)) for path in list(errors)[:SHOWN])
    more = f" and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    raise InputError(
        f"{folder}: {len(errors)} images cannot be read: {names}{more} ({first}); "
        f"repair, convert or remove them{advice}"
    )


def _no_images(root: Path, name: str, summary: Mapping[str, int]) -> str:
    """Return what is wrong with a class's folder that has no image, and what to do about it."""
    files = [f"{count} {words}" for words, count in summary.items() if words.startswith("files")]
    others = f" (in all folders: {'; '.join(files)}); convert them"
    return (
        f"{root}: {name}: expected images in the subfolder of each class "
        f"({', '.join(sorted(ENDINGS))}), found none{others if files else '; remove the folder'}"
    )


def _expect_readable(root: Path, names: Sequence[str], labels: NDArray[np.int64]) -> None:
    """Raise InputError for a class of which no image to train on, as in `labels`, can be read."""
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise InputError(
            f"{root}: {names[int(counts.argmin())]}: expected images that can be read "
            "in the subfolder of each class, found none; repair them or remove the folder"
        )


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


def _notes(picture: Picture, size: int) -> Iterator[str]:
    yield from picture.notes
    yield from pixels.resizing(picture.height, picture.width, size)


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
        where = (
            f"{root}: {counted(len(pictures), 'image')} of {depth}, the first is {pictures[0].path}"
        )
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
