"""Find the arrays of images and labels in a file by their names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.base.errors import InputError
from pipeline.prepare.params import Arrays
from pipeline.prepare.sources.parts import part_of

# The names of images and labels, in the order in which they are looked for, without regard to case.
# A part of a data set may precede or follow them, as in train_images and x_train.
PAIRS = (
    ("images", "labels"),
    ("image", "label"),
    ("imgs", "labels"),
    ("x", "y"),
    ("data", "target"),
    ("data", "targets"),
    ("data", "labels"),
    ("images", "targets"),
    ("features", "labels"),
    ("arr_0", "arr_1"),
)
CLASS_NAMES = ("class_names", "classes", "label_names", "list_classes")
SHOWN = 20  # arrays in an error message


@dataclass(frozen=True)
class Pair:
    """The names of an array of images and of the array of their labels."""

    images: str
    labels: str


@dataclass(frozen=True)
class Chosen:
    """The arrays to read: those to train on, and those of the source's own other part.

    `left_out` are parts that are there and are not read.
    """

    train: Pair
    held_out: Pair | None
    left_out: tuple[str, ...] = ()


def choose(where: str, there: Mapping[str, str], named: Arrays | None, own_split: bool) -> Chosen:
    """Return the arrays to read of those that are `there`, names with a description of each.

    `named` are the names in `params.yaml`, if any. With `own_split`, the validation part of the
    source is read too; it is its test part where it has no other. Raises InputError, with a list of
    what is there, where the arrays are missing.
    """
    if named is not None:
        return _named(where, there, named, own_split)
    pairs = _pairs(where, there)
    train = pairs.get("") or pairs.get("train")
    if train is None:
        raise InputError(
            f"{where}: expected arrays named images and labels, or like one of the pairs in "
            f"docs/data.md, found {listed(there)}; set data.arrays: {{images: …, labels: …}}"
        )
    held_out = next((part for part in ("val", "test") if part in pairs), None)
    others = tuple(part for part in ("val", "test") if part in pairs)
    if not own_split:
        return Chosen(train, None, others)
    if held_out is None or "train" not in pairs:
        raise InputError(
            f"{where}: data.n_val: expected the arrays of a validation or test part for "
            f"from_source, found {listed(there)}; set data.n_val to a number"
        )
    return Chosen(
        pairs["train"], pairs[held_out], tuple(part for part in others if part != held_out)
    )


def class_names_in(there: Iterable[str]) -> str | None:
    """Return the name of the array that names the classes, if there is one."""
    by_name = {name.lower(): name for name in there}
    return next((by_name[name] for name in CLASS_NAMES if name in by_name), None)


def left_out(chosen: Chosen) -> dict[str, int]:
    """Return a note about the parts that are not read."""
    parts = ", ".join(chosen.left_out)
    return {f"parts of the data set left out ({parts})": len(chosen.left_out)} if parts else {}


def listed(there: Mapping[str, str]) -> str:
    """Return the arrays that are there, with their shapes and types."""
    shown = [f"{name} {words}" for name, words in list(there.items())[:SHOWN]]
    more = f", and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return ", ".join(shown) + more if shown else "none"


def _named(where: str, there: Mapping[str, str], named: Arrays, own_split: bool) -> Chosen:
    for name in named.model_dump().values():
        if name is not None and name not in there:
            raise InputError(
                f"{where}: expected an array named {name!r}, found {listed(there)}; set data.arrays"
            )
    held_out = None
    if named.val_images is not None and named.val_labels is not None:
        held_out = Pair(named.val_images, named.val_labels)
    if own_split and held_out is None:
        raise InputError(
            f"{where}: data.arrays: expected val_images and val_labels for "
            "n_val: from_source, found none"
        )
    return Chosen(Pair(named.images, named.labels), held_out if own_split else None)


def _pairs(where: str, there: Iterable[str]) -> dict[str, Pair]:
    """Return the first pair of names of each part; the part "" has no part in its name."""
    roles: dict[tuple[str, str], list[str]] = {}
    for name in there:
        part, role = _meaning(name)
        roles.setdefault((part, role), []).append(name)
    pairs: dict[str, Pair] = {}
    for part in {part for part, _ in roles}:
        for images, labels in PAIRS:
            if (part, images) in roles and (part, labels) in roles:
                pairs[part] = Pair(
                    _only(where, roles[part, images]), _only(where, roles[part, labels])
                )
                break
    return pairs


def _meaning(name: str) -> tuple[str, str]:
    """Return the part of a data set that a name means, or "", and the rest of the name."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in ("", "set")]
    parts = [part for part in map(part_of, words) if part in ("train", "val", "test")]
    if len(parts) != 1:
        return "", "_".join(words)
    return parts[0], "_".join(word for word in words if part_of(word) != parts[0])


def _only(where: str, names: Sequence[str]) -> str:
    if len(names) > 1:
        raise InputError(
            f"{where}: expected one array of each kind, found {' and '.join(sorted(names)[:6])}; "
            "set data.arrays: {images: …, labels: …}"
        )
    return names[0]
