"""Find the images to train on in a folder of images, and those of the folder's own other parts."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.params import Part
from pipeline.prepare.sources.folder_layout import (
    MAX_DEPTH,
    Classes,
    Listing,
    classes_in,
    expect_short_names,
    listed,
    parts_in,
)
from pipeline.prepare.sources.parts import held_out_parts, part_of, wanted

# Tiny-ImageNet's validation part has this table: image, class, and a box.
TABLE, TABLE_IMAGES = "val_annotations.txt", "images"
MAX_TABLE = 2**26  # bytes


def parts_of(listing: Listing, asked: Sequence[Part]) -> tuple[Classes, dict[Part, Classes]]:
    """Return the images to train on, by class, and those of the parts that are `asked` for.

    The folder `root` of the listing holds the folders of the classes, or `train` with `val` or
    `test`. Raises InputError for other layouts, and where a part is missing.
    """
    folders = [path for path in listing.visible(listing.root) if path.is_dir()]
    parts = {part_of(path.name): path for path in reversed(parts_in(folders))}
    if not parts:
        expect_short_names(listing.root, folders)
    held_out = held_out_parts(parts, asked)
    for part in asked:
        if part not in held_out or "train" not in parts:
            raise InputError(
                f"{listing.root}: data.n_{part}: expected folders train and "
                f"{wanted(part, asked)} for from_source, found {listed(folders) or 'none'}; "
                f"set data.n_{part} to a number"
            )
    if "train" not in parts:
        listing.notes.clear()  # `classes_in` counts the same entries
        return classes_in(listing, listing.root), {}
    train = classes_in(listing, parts["train"])
    read = {parts["train"], *(parts[name] for name in held_out.values())}
    if others := [path for path in folders if path not in read]:
        words = f"folders beside {listed([parts['train']])} left out ({listed(others)})"
        listing.notes[words] += len(others)
    return train, {
        part: _held_out(listing, part, parts[name], train) for part, name in held_out.items()
    }


def _held_out(listing: Listing, part: Part, folder: Path, train: Classes) -> Classes:
    """Return the images of a part that is held out, by class.

    Raises InputError for a class that the training part does not have.
    """
    if (folder / TABLE).is_file():
        found = _from_table(listing, folder)
    else:
        found = classes_in(listing, folder, at_least=1)
    for name in found:
        if name not in train:
            raise InputError(
                f"{folder}: expected the classes of the training part, found {name[:50]!a} too; "
                f"set data.n_{part} to a number"
            )
    return found


def _from_table(listing: Listing, folder: Path) -> Classes:
    """Return the images that a table of lines "image, tab, class, …" names."""
    table = folder / TABLE
    if limits.regular(table, "set data.n_val to a number") > MAX_TABLE:
        raise InputError(f"{table}: expected at most {MAX_TABLE:,} bytes, found more")
    by_name = {path.name: path for path in listing.images(folder / TABLE_IMAGES, MAX_DEPTH)}
    found: Classes = {}
    for number, line in enumerate(table.read_text(errors="replace").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        if name not in by_name or not rest:
            raise InputError(
                f"{table}:{number}: expected the name of an image in {TABLE_IMAGES}, a tab and its "
                f"class, found {line[:50]!a}"
            )
        found.setdefault(rest.split("\t")[0], []).append(by_name.pop(name))
    listing.notes[f"images without a line in {TABLE} left out"] += len(by_name)
    return found
