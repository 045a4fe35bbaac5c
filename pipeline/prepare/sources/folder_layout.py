"""Find the folders of classes in a folder of images, and tell other layouts apart."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.sources.image_files import ENDINGS

MAX_BYTES = 2**28  # of one file
MAX_DEPTH = 20
MAX_ENDINGS = 10  # endings that get their own note
# Systems and tools create these names in folders. They are in lower case here. Hidden files and
# folders are skipped, too.
SYSTEM = frozenset(
    [
        *(
            "__macosx",
            "thumbs.db",
            "ehthumbs.db",
            "ehthumbs_vista.db",
            "desktop.ini",
            "icon\r",
            "lost+found",
            "__pycache__",
        ),
        *(
            "$recycle.bin",
            "system volume information",
            "@eadir",
            "@tmp",
            "#recycle",
            "@recycle",
            "#snapshot",
            "temporary items",
        ),
    ]
)
PARTS = {
    "train": {"train", "training", "trn", "trainval"},
    "val": {"val", "valid", "validate", "validation", "dev", "devel", "development", "holdout"},
    "test": {"test", "testing", "tst", "eval", "evaluation"},
    "images": {"images", "image", "imgs", "img", "jpegimages"},
    "annotations": {"annotations", "annotation", "labels", "masks", "xmls", "segmentations"},
}
TOGETHER = [{"train", "val"}, {"train", "test"}, {"val", "test"}, {"images", "annotations"}]
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
NEEDED = "a folder with a subfolder of images for each class"


@dataclass(kw_only=True)
class Found:
    """The contents of a folder; `notes` counts what is left out."""

    root: Path
    notes: Counter[str] = field(default_factory=Counter)

    def visible(self, folder: Path) -> list[Path]:
        """Return the entries of a folder that belong to the user, sorted by name."""
        entries = sorted(folder.iterdir())
        kept = [
            path
            for path in entries
            if not (path.name.startswith(".") or path.name.lower() in SYSTEM)
        ]
        self.notes["system and hidden files or folders skipped"] += len(entries) - len(kept)
        return kept

    def images(self, folder: Path, depth: int) -> list[Path]:
        """Return the images in `folder` and below, in a fixed order.

        Raises InputError for links to folders, links out of the root, pipes, files that are too
        large, more than `depth` nested folders, and the parts of a data set.
        """
        if folder.is_symlink():
            raise InputError(
                f"{folder}: refused: a link to another folder; put the images themselves there"
            )
        if not depth:
            raise InputError(f"{folder}: refused: more than {MAX_DEPTH} folders inside each other")
        entries = self.visible(folder)
        folders = [path for path in entries if path.is_dir()]
        if parts := _parts(folders):
            raise InputError(
                f"{folder}: expected the images of one class, found {_listed(parts)}; "
                "keep the images of one part only"
            )
        images = [path for path in entries if path not in folders and self._is_image(path)]
        return images + [path for inner in folders for path in self.images(inner, depth - 1)]

    def left_out(self, paths: Sequence[Path]) -> None:
        """Count files that are left out, by their ending."""
        for path in paths:
            ending = path.suffix.lower() or "no ending"
            self.notes[
                "files left out "
                f"({ending if ending.isprintable() and len(ending) <= 20 else 'other endings'})"
            ] += 1

    def summary(self) -> dict[str, int]:
        """Return the counts, with rare endings added up."""
        endings = [
            words for words, _ in self.notes.most_common() if words.startswith("files left out")
        ]
        for words in endings[MAX_ENDINGS:]:
            self.notes["files left out (other endings)"] += self.notes.pop(words)
        return {words: count for words, count in sorted(self.notes.items()) if count}

    def _is_image(self, path: Path) -> bool:
        if path.suffix.lower() not in ENDINGS:
            self.left_out([path])
            return False
        if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(
                f"{path}: refused: a link out of {self.root}; put the image itself there"
            )
        if limits.regular(path, "repair, convert or remove it") > MAX_BYTES:
            raise InputError(
                f"{path}: expected at most {MAX_BYTES:,} bytes, found {path.stat().st_size:,}; "
                "make it smaller"
            )
        return True


def class_folders(found: Found) -> list[Path]:
    """Return the folders of the classes.

    Raises InputError where the folders in `root` are something else.
    """
    root, entries = found.root, found.visible(found.root)
    folders = [path for path in entries if path.is_dir()]
    others = [path for path in entries if path not in folders]
    images = [path for path in others if path.suffix.lower() in ENDINGS]
    if not folders:
        tables = [
            f" and {path.name}"
            for path in others
            if path.suffix.lower() in (".csv", ".tsv", ".txt", ".json")
        ][:1]
        there = (
            f" but {len(images)} images{''.join(tables)}; "
            "move each image into a folder named after its class"
            if images
            else ""
        )
        raise InputError(
            f"{root}: expected {NEEDED}, found no subfolder{there or '; set data.path'}"
        )
    _refuse_other_layouts(found, folders)
    found.notes["images beside the folders of the classes left out"] += len(images)
    found.left_out([path for path in others if path not in images])
    return in_order(root, folders)


def _refuse_other_layouts(found: Found, folders: list[Path]) -> None:
    """Raise InputError for the parts of a data set, and for a single folder that contains the rest.

    The message names the folder that has the classes.
    """
    goal, inside = found.root, folders
    for _ in range(MAX_DEPTH):
        parts = _parts(inside)
        if not parts and len(inside) != 1:
            break
        goal = parts[0] if parts else inside[0]
        inside = (
            []
            if goal.is_symlink()
            else [path for path in Found(root=goal).visible(goal) if path.is_dir()]
        )
    if goal == found.root:
        return
    parts = _parts(folders)
    what = f"{_listed(parts)}, the parts of a data set" if parts else f"{folders[0].name} alone"
    remedy = (
        f"set data.path: {goal}"
        if len(inside) > 1
        else f"make a folder for each class and move its images there (below {goal})"
    )
    raise InputError(f"{found.root}: expected {NEEDED}, found {what}; {remedy}")


def _parts(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that are named like parts of a data set, such as train and test.

    The folder to use comes first. The result is empty unless several parts are there that belong
    together.
    """
    named = sorted(
        ((_part(folder.name), folder) for folder in folders),
        key=lambda pair: list(PARTS).index(pair[0]) if pair[0] else -1,
    )
    names = {part for part, _ in named}
    return (
        [folder for part, folder in named if part]
        if any(pair <= names for pair in TOGETHER)
        else []
    )


def _part(name: str) -> str | None:
    """Return the part of a data set that a folder's name means; None for other names.

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


def _listed(folders: Sequence[Path]) -> str:
    return " and ".join(sorted(folder.name for folder in folders)[:6])


def in_order(root: Path, folders: list[Path]) -> list[Path]:
    """Return the folders by number, if all names are whole numbers, else in the given order.

    The given order is alphabetical. Raises InputError for names that mean the same number.
    """
    if not all(re.fullmatch(r"-?[0-9]{1,200}", folder.name) for folder in folders):
        return folders
    by_number: dict[int, Path] = {}
    for folder in folders:
        if (other := by_number.setdefault(int(folder.name), folder)) != folder:
            raise InputError(
                f"{root}: expected different numbers, found classes {other.name} and "
                f"{folder.name}; rename or join them"
            )
    return [by_number[number] for number in sorted(by_number)]
