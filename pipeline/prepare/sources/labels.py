"""Convert the labels that users have to whole numbers from 0, and name the classes."""

import re
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.sources.common import Labels, Notes, numbered

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,200}")
ONE_EACH = "expected one for each of {} images, found shape {}"


def classes_of(
    where: str,
    labels: NDArray[Any],
    n_images: int,
    class_names: Sequence[str] | None,
    per_part: Container[int] = (),
) -> tuple[Labels, tuple[str, ...], Notes]:
    """Return labels as int64 (n_images,) from 0 without gaps, the classes' names, and notes.

    `labels` are whole numbers in any type, text, bytes or one-hot rows. Text is sorted, by number
    if all of it is whole numbers. Other numbers than 0, 1, 2, … become the names of their classes.
    `class_names` with an entry for each image, or for each image of a part, are left out.
    `per_part` are the numbers of images of the parts. Raises InputError, which begins with `where`,
    for labels of another form.
    """
    notes: Notes = Counter()
    plain = _plain(where, labels, n_images, notes)
    values, positions = np.unique(plain, return_inverse=True)
    if len(values) < 2:
        raise InputError(f"{where}: labels: expected at least two classes, found {values[0]} alone")
    n_names = len(class_names or ())
    if n_names > len(values) and (n_names == n_images or n_names in per_part):
        notes["names of classes left out, because there is one for each image"] = n_names
        class_names = None
    if plain.dtype.kind == "U":
        return _of_text(where, values.tolist(), positions, class_names, notes)
    if values[0] < 0:
        raise InputError(f"{where}: labels: expected 0 or more, found {values[0]}")
    if values[-1] == len(values) - 1:
        names = class_names or numbered(len(values))
    else:
        reason = "they begin at" if values[-1] - values[0] == len(values) - 1 else "of gaps after"
        notes[f"labels numbered again from 0, because {reason} {_before_gap(values)}"] = n_images
        names = class_names or tuple(map(str, values))
    return positions.astype(np.int64), _named(where, values, names, notes), notes


def in_order(where: str, names: Sequence[str]) -> list[str]:
    """Return names by number, if all of them are whole numbers, else sorted as text.

    Raises InputError for names that mean the same number.
    """
    if not all(WHOLE_NUMBER.fullmatch(name) for name in names):
        return sorted(names)
    by_number: dict[int, str] = {}
    for name in sorted(names):
        if (other := by_number.setdefault(int(name), name)) != name:
            raise InputError(
                f"{where}: expected different numbers, found classes {other} and {name}; "
                "rename or join them"
            )
    return [by_number[number] for number in sorted(by_number)]


def _plain(where: str, labels: NDArray[Any], n_images: int, notes: Notes) -> NDArray[Any]:
    """Return labels as a flat array of int64, uint64 or text."""
    if labels.ndim > 1 and labels.size == max(labels.shape):
        labels = labels.reshape(-1)
    if labels.ndim == 2 and len(labels) == n_images and labels.dtype.kind in "biuf":
        labels = _from_one_hot(where, labels)
        notes["labels read from one-hot rows"] = n_images
    if labels.shape != (n_images,):
        raise InputError(f"{where}: labels: {ONE_EACH.format(n_images, labels.shape)}")
    match labels.dtype.kind:
        case "i" | "u":
            return labels
        case "b":
            return labels.astype(np.int64)
        case "f":
            return _whole(where, labels)
        case "U" | "S" | "O":
            return _text(where, labels)
    raise InputError(f"{where}: labels: expected whole numbers or text, found {labels.dtype}")


def _from_one_hot(where: str, rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of the column that holds the single 1 of each row."""
    if not (((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all()):
        raise InputError(
            f"{where}: labels: {ONE_EACH.format(len(rows), rows.shape)}, which is not one-hot; "
            "save one label per image"
        )
    columns: NDArray[np.int64] = rows.argmax(axis=1)
    return columns


def _whole(where: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    broken = ~(np.isfinite(labels) & (np.rint(labels) == labels) & (abs(labels) < 2**53))
    if broken.any():
        raise InputError(
            f"{where}: labels: expected whole numbers, found {labels[broken][0]} "
            f"in row {broken.argmax()}"
        )
    return labels.astype(np.int64)


def _text(where: str, labels: NDArray[Any]) -> NDArray[Any]:
    """Return text or bytes as text, and whole numbers of Python as numbers."""
    if labels.dtype.kind == "O" and all(
        type(value) in (int, bool) and abs(value) < 2**63 for value in labels
    ):
        return labels.astype(np.int64)
    texts = texts_of(f"{where}: labels", labels)
    for text in set(texts):
        limits.plain_name(f"{where}: labels", text)
    return np.array(texts)


def texts_of(where: str, values: NDArray[Any]) -> list[str]:
    """Return a flat array of text or bytes as text.

    Raises InputError, which begins with `where`, for other values.
    """
    try:
        listed: list[Any] = values.tolist()
    except (SystemError, ValueError) as error:  # Python raises these for numbers beyond Unicode
        raise InputError(f"{where}: not text; save it again as text") from error
    if values.ndim != 1:
        raise InputError(f"{where}: expected one text for each, found shape {values.shape}")
    texts = [
        value.decode(errors="replace") if isinstance(value, bytes) else value for value in listed
    ]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{where}: expected text, found {type(text).__name__} {str(text)[:50]!a} "
                f"in row {row}"
            )
    return texts


def _of_text(
    where: str,
    values: list[str],
    positions: NDArray[np.int64],
    class_names: Sequence[str] | None,
    notes: Notes,
) -> tuple[Labels, tuple[str, ...], Notes]:
    if class_names is not None and set(class_names) >= set(values):
        order = [name for name in dict.fromkeys(class_names) if name in values]
    else:
        order = in_order(f"{where}: labels", values)
    rank = np.array([order.index(value) for value in values], dtype=np.int64)
    notes["labels read as the names of classes"] = len(positions)
    return rank[positions], tuple(order), notes


def _before_gap(values: NDArray[Any]) -> int:
    """Return the first label, or the last one before a gap."""
    gaps = np.flatnonzero(np.diff(values) > 1)
    return int(values[gaps[0]] if len(gaps) else values[0])


def _named(where: str, values: NDArray[Any], names: Sequence[str], notes: Notes) -> tuple[str, ...]:
    """Return the name of each class that is there.

    `names` name the classes that are there, or all numbers up to the largest.
    """
    if len(names) == len(values):
        chosen = list(names)
    elif len(names) > values[-1]:
        chosen = [names[int(value)] for value in values]
        notes["names of classes without images left out"] = len(names) - len(values)
    else:
        raise InputError(
            f"{where}: class_names: expected one name for each of {len(values)} classes, "
            f"found {len(names)}"
        )
    first: dict[str, int] = {}
    for number, name in enumerate(chosen):
        if (other := first.setdefault(name, number)) != number:
            raise InputError(
                f"{where}: class_names: expected another name for each class, found {name[:50]!a} "
                f"for {other} and {number}"
            )
    return tuple(limits.plain_name(f"{where}: class_names", name) for name in chosen)
