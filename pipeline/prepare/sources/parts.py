"""Know the usual names of the parts of a data set, such as train and test."""

import re
from collections.abc import Container, Sequence

from pipeline.prepare.params import Part

IN_WORDS = {"train": "train", "val": "validate", "test": "test"}  # after "images to"
PARTS = {
    "train": {"train", "training", "trn", "trainval"},
    "val": {"val", "valid", "validate", "validation", "dev", "devel", "development", "holdout"},
    "test": {"test", "testing", "tst", "eval", "evaluation"},
    "images": {"images", "image", "imgs", "img", "jpegimages"},
    "annotations": {"annotations", "annotation", "labels", "masks", "xmls", "segmentations"},
}
FILLERS = {
    "",
    "set",
    "data",
    "dataset",
    "split",
    "folder",
    "images",
    "image",
    "imgs",
    "img",
}  # as in train_images and TestSet


def part_of(name: str) -> str | None:
    """Return the part of a data set that a name means; None for other names.

    For example, `Training_set`, `train2017` and `train-images` all mean `train`.
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word not in FILLERS] or [
        name.lower()
    ]
    word = re.sub(r"(?<=.)(set|data|images|imgs)$", "", words[0])
    return next(
        (
            part
            for part, spellings in PARTS.items()
            if len(words) == 1 and {word, words[0]} & spellings
        ),
        None,
    )


def part_within(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the part that one word of a longer name means, and the words with a gap for it.

    For example, `seg_train` gives `train` and ("seg", ""). The result is None for other names, and
    for those that mean a part as a whole.
    """
    words = re.split(r"[^a-z0-9]+", name.lower())
    found = {
        place: part
        for place, word in enumerate(words)
        if (part := part_of(word)) in ("train", "val", "test")
    }
    if part_of(name) or len(found) != 1:
        return None
    ((gap, part),) = found.items()
    return part, (*words[:gap], "", *words[gap + 1 :])


def held_out_parts(there: Container[object], asked: Sequence[Part]) -> dict[Part, Part]:
    """Return which part of a source is used as each part that is asked for, if it is there.

    The test part stands in for a missing validation part, unless it is asked for itself.
    """
    found: dict[Part, Part] = {part: part for part in asked if part in there}
    if "val" not in found and tuple(asked) == ("val",) and "test" in there:
        found["val"] = "test"
    return found


def wanted(part: Part, asked: Sequence[Part]) -> str:
    """Return the parts that serve as a part that is asked for, in words."""
    if part == "test":
        return "test"
    return "validation" if "test" in asked else "validation or test"
