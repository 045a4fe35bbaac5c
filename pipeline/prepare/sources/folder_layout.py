"""List the images of each class in a folder, and tell other layouts apart."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.words import counted
from pipeline.prepare.sources.image_files import ENDINGS
from pipeline.prepare.sources.labels import in_order
from pipeline.prepare.sources.parts import PARTS, part_of, part_within

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
TOGETHER = [{"train", "val"}, {"train", "test"}, {"val", "test"}, {"images", "annotations"}]
NEEDED = "a folder with a subfolder of images for each class"
FOLLOW = "or set data.follow_links: true"
Classes = dict[str, list[Path]]  # the images of each class, by the name of the class


@dataclass(kw_only=True)
class Listing:
    """The contents of a folder; `notes` counts what is left out."""

    root: Path
    follow_links: bool = False
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

    def folders(self, folder: Path) -> list[Path]:
        """Return the folders in a folder, without any note about the rest."""
        if folder.is_symlink() and not self.follow_links and folder != self.root:
            return []
        return [path for path in Listing(root=folder).visible(folder) if path.is_dir()]

    def images(self, folder: Path, depth: int) -> list[Path]:
        """Return the images in `folder` and below, in a fixed order.

        Raises InputError for links to folders and links out of the root, unless links are followed,
        and for more than `depth` nested folders, and the parts of a data set.
        """
        if folder.is_symlink() and not self.follow_links:
            raise InputError(
                f"{folder}: refused: a link to another folder; put the images themselves there, "
                f"{FOLLOW}"
            )
        if not depth:
            raise InputError(f"{folder}: refused: more than {MAX_DEPTH} folders inside each other")
        entries = self.visible(folder)
        folders = [path for path in entries if path.is_dir()]
        if parts := parts_in(folders) or list(long_names(folders).values()):
            raise InputError(
                f"{folder}: expected the images of one class, found {listed(parts)}; "
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
        root = self.root.resolve()
        # `path.resolve` fails for links in a circle.
        outside = path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)
        if outside and not self.follow_links:
            raise InputError(
                f"{path}: refused: a link out of {self.root}; put the image itself there, {FOLLOW}"
            )
        return True


def classes_in(listing: Listing, folder: Path, *, at_least: int = 2) -> Classes:
    """Return the images of each class in a folder of classes, the classes in their order.

    Raises InputError where the folders in it are something else, or fewer than `at_least`.
    """
    entries = listing.visible(folder)
    folders = {path.name: path for path in entries if path.is_dir()}
    others = [path for path in entries if path.name not in folders]
    images = [path for path in others if path.suffix.lower() in ENDINGS]
    if not folders:
        raise InputError(f"{folder}: expected {NEEDED}, found no subfolder{_instead(others)}")
    if len(folders) < at_least or parts_in(list(folders.values())):
        _refuse_other_layouts(listing, folder, list(folders.values()))
    listing.notes["images beside the folders of the classes left out"] += len(images)
    listing.left_out([path for path in others if path not in images])
    return {
        name: listing.images(folders[name], MAX_DEPTH)
        for name in in_order(str(folder), list(folders))
    }


def parts_in(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that are named like parts of a data set, such as train and test.

    The folder to use comes first. The result is empty unless several parts are there that belong
    together.
    """
    named = sorted(
        ((part_of(folder.name), folder) for folder in folders),
        key=lambda pair: list(PARTS).index(pair[0]) if pair[0] else -1,
    )
    names = {part for part, _ in named}
    return (
        [folder for part, folder in named if part]
        if any(pair <= names for pair in TOGETHER)
        else []
    )


def long_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders whose names differ only in a word that means a part, by that part.

    An example are `seg_train` and `seg_test`. The result is empty where there are not several.
    """
    alike: dict[tuple[str, ...], dict[str, Path]] = {}
    for folder in folders:
        if found := part_within(folder.name):
            part, words = found
            alike.setdefault(words, {}).setdefault(part, folder)
    return next((named for named in alike.values() if len(named) > 1), {})


def expect_short_names(folder: Path, folders: Sequence[Path]) -> None:
    """Raise InputError where `folders`, all those in a folder, are parts by longer names."""
    if named := long_names(folders):
        renamed = [
            f"{_with_classes(path).relative_to(folder)} to {part}" for part, path in named.items()
        ]
        raise InputError(
            f"{folder}: expected {NEEDED}, found {listed(list(named.values()))}, which look like "
            f"the parts of a data set; rename {' and '.join(renamed)}"
        )


def entered(folder: Path) -> Path:
    """Return the first folder, from `folder` down, that holds several folders or an image.

    Other files beside a single folder do not matter.
    """
    while True:
        inside = Listing(root=folder).visible(folder)
        folders = [path for path in inside if path.is_dir()]
        if len(folders) != 1 or any(path.suffix.lower() in ENDINGS for path in inside):
            return folder
        (folder,) = folders


def listed(folders: Sequence[Path]) -> str:
    return " and ".join(sorted(shown(folder.name) for folder in folders)[:6])


def shown(name: str) -> str:
    """Return a name of a file as text that can be stored and printed, also if it is not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _with_classes(part: Path) -> Path:
    """Return the folder with the classes of a part, which a single folder may surround."""
    inner = entered(part)
    return inner if any(path.is_dir() for path in inner.iterdir()) else part


def _instead(files: Sequence[Path]) -> str:
    """Return what a folder without subfolders holds, and what to do."""
    images = [path for path in files if path.suffix.lower() in ENDINGS]
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tsv", ".txt", ".json")]
    if not images:
        return "; set data.path"
    table = f" and {tables[0].name}" if tables else ""
    found = f"{counted(len(images), 'image')}{table}"
    return f" but {found}; move each image into a folder named after its class"


def _refuse_other_layouts(listing: Listing, folder: Path, folders: list[Path]) -> None:
    """Raise InputError for the parts of a data set, and for a single folder that contains the rest.

    The message names the folder that has the classes, or the parts train and val or test.
    """
    goal, inside = folder, folders
    for _ in range(MAX_DEPTH):
        parts = parts_in(inside)
        if (goal != folder and _has_train(parts)) or (not parts and len(inside) != 1):
            break
        goal = parts[0] if parts else inside[0]
        inside = listing.folders(goal)
    if goal == folder:
        return
    parts = parts_in(folders)
    what = f"{listed(parts)}, the parts of a data set" if parts else f"{folders[0].name} alone"
    remedy = (
        f"set data.path: {goal}"
        if len(inside) > 1
        else f"make a folder for each class and move its images there (below {goal})"
    )
    raise InputError(f"{folder}: expected {NEEDED}, found {what}; {remedy}")


def _has_train(parts: Sequence[Path]) -> bool:
    return bool(parts) and part_of(parts[0].name) == "train"
