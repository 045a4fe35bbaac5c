"""Find the arrays of images and labels in a file by their names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.base.errors import InputError
from pipeline.prepare.params import HELD_OUT, Arrays, Part
from pipeline.prepare.sources.parts import held_out_parts, part_of, wanted

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
ONE_VALUE = "one value"  # the description of the shape ()


@dataclass(frozen=True)
class Pair:
    """The names of an array of images and of the array of their labels."""

    images: str
    labels: str


@dataclass(frozen=True)
class Chosen:
    """The arrays to read: those to train on, and those of the source's own other parts.

    `left_out` are parts that are there and are not read. A pair without a part is called by
    the name of its images.
    """

    train: Pair
    held_out: Mapping[Part, Pair]
    left_out: tuple[str, ...] = ()


def choose(
    where: str, there: Mapping[str, str], named: Arrays | None, asked: Sequence[Part]
) -> Chosen:
    """Return the arrays to read of those that are `there`, names with a description of each.

    `named` are the names in `params.yaml`, if any. The parts that are `asked` for are read too.
    Raises InputError, with a list of what is there, where the arrays are missing.
    """
    if named is not None:
        return _named(where, there, named, asked)
    pairs = _pairs(where, there)
    order = ("train", "") if asked else ("", "train")
    trained = next((name for name in order if name in pairs), None)
    if trained is None:
        raise InputError(
            f"{where}: expected arrays named images and labels, or like one of the pairs in "
            f"docs/data.md, found {listed(there)}; set data.arrays: {{images: …, labels: …}}"
        )
    held_out = held_out_parts(pairs, asked)
    for part in asked:
        if part not in held_out:
            raise InputError(
                f"{where}: data.n_{part}: expected the arrays of a {wanted(part, asked)} part for "
                f"from_source, found {listed(there)}; set data.n_{part} to a number"
            )
    read = {trained, *held_out.values()}
    return Chosen(
        pairs[trained],
        {part: pairs[name] for part, name in held_out.items()},
        tuple(
            name or pairs[name].images
            for name in ("", "train", *HELD_OUT)
            if name in pairs and name not in read
        ),
    )


def class_names_in(there: Mapping[str, str]) -> str | None:
    """Return the name of the array that names the classes, if there is one.

    A single value, such as the number of classes, is none.
    """
    by_name = {name.lower(): name for name in there if not there[name].startswith(ONE_VALUE)}
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


def _named(where: str, there: Mapping[str, str], named: Arrays, asked: Sequence[Part]) -> Chosen:
    for name in named.model_dump().values():
        if name is not None and name not in there:
            raise InputError(
                f"{where}: expected an array named {name!r}, found {listed(there)}; set data.arrays"
            )
    held_out: dict[Part, Pair] = {}
    for part in asked:
        images, labels = f"{part}_images", f"{part}_labels"
        if getattr(named, images) is None:
            raise InputError(
                f"{where}: data.arrays: expected {images} and {labels} for "
                f"n_{part}: from_source, found none"
            )
        held_out[part] = Pair(getattr(named, images), getattr(named, labels))
    return Chosen(Pair(named.images, named.labels), held_out)


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
