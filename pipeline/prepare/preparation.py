"""Choose, split and store the images of a source as the clean image set."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.base.values import CLEAN
from pipeline.base.words import counted, printable
from pipeline.prepare import params, sources
from pipeline.prepare.sources.common import Labels, numbered
from pipeline.prepare.sources.parts import IN_WORDS

Split = NDArray[np.uint8]
SHOWN_CLASSES = 20


def prepare(
    source: sources.Source, data: params.Data, stored: params.Store, out: Path
) -> store.ImageSet:
    """Store the images that `data` chooses from a source, with an exact, stratified split.

    Rows keep the order and the ids of the source. Raises InputError where the source has fewer
    images than requested, or where a class has too few images for both parts of the split.
    """
    rows = choose_rows(source.labels, data, source.class_names)
    labels = source.labels[rows]
    split = split_of(source, rows, data)
    attributes: store.Attributes = {
        "kind": CLEAN,
        "source": data.source,
        "source.sha256": source.sha256,
        "source.notes": json.dumps(source.notes),
        "source.skipped": json.dumps(source.skipped),
        "class_names": json.dumps(source.class_names, ensure_ascii=False),
        "split.n_val": data.n_val,
        **({"split.n_test": data.n_test} if data.n_test else {}),
        **({"source.arrays": data.arrays.model_dump_json()} if data.arrays else {}),
        "seed": data.seed,
        "image_size": source.image_size,
        **{f"versions.{name}": version(name) for name in ("h5py", "numpy")},
    }
    bounds = store.shard_bounds(len(rows), stored.shard_rows)
    with store.Writer(out, attributes, bounds=bounds) as writer:
        missing = writer.missing()
        writer.require_space(missing, (3, source.image_size, source.image_size))
        for start, stop in missing:
            part = slice(start, stop)
            images = np.ascontiguousarray(source.read(rows[part]))
            writer.write_behind(
                start,
                store.Block(
                    images=images,
                    labels=labels[part],
                    ids=source.ids[rows[part]],
                    split=split[part],
                ),
            )
    return store.ImageSet(out)


def told(source: sources.Source) -> Iterator[str]:
    """Yield what the source did to the images, and the number of each class that has a name.

    Control characters come from the names of files and arrays. They are written as escapes.
    """
    for words, count in source.notes.items():
        yield printable(f"{count:,} {words}")
    names = [f"{number} = {name[:40]}" for number, name in enumerate(source.class_names)]
    if source.class_names != numbered(len(names)):
        shown = (
            names if len(names) <= SHOWN_CLASSES else [*names[: SHOWN_CLASSES - 1], "…", names[-1]]
        )
        yield f"classes {', '.join(shown)}"


def choose_rows(
    labels: Labels, data: params.Data, class_names: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Return the source rows to use (int64), in the source's order.

    They are all rows, or `n_images` of them with every class in its share. Errors call the classes
    by `class_names`, if there are any.
    """
    n_images = len(labels) if data.n_images is None else data.n_images
    if n_images > len(labels):
        raise InputError(
            f"data.n_images: expected at most {len(labels)}, all that the source holds, "
            f"found {n_images}"
        )
    if n_images == len(labels):
        return np.arange(len(labels))
    return np.flatnonzero(
        _stratified_choice(labels, n_images, data.seed, "data.n_images", class_names)
    )


def split_rows(
    labels: Labels,
    data: params.Data,
    own: Split | None = None,
    class_names: Sequence[str] = (),
) -> Split:
    """Return 0 (train), 1 (val) or 2 (test) for each row (uint8).

    Of the rows to train on, which are all or those of the source's `own` split, exactly `n_test`
    become 2 and then `n_val` become 1, where these are numbers. Every class has its share, and is
    present in all parts. Errors call the classes by `class_names`, if there are any.
    """
    split = np.zeros(len(labels), dtype=np.uint8) if own is None else own.copy()
    for part in ("test", "val"):
        key = f"n_{part}"
        if isinstance(count := getattr(data, key), int) and count:
            rest = np.flatnonzero(split == store.SPLITS["train"])
            chosen = _stratified_choice(labels[rest], count, data.seed, f"data.{key}", class_names)
            split[rest[chosen]] = store.SPLITS[part]
    return split


def split_of(
    source: sources.Source, rows: NDArray[np.int64], data: params.Data
) -> NDArray[np.uint8]:
    """Return 0 (train), 1 (val) or 2 (test) for some rows of a source (uint8).

    A part that is `from_source` is the source's own. Raises InputError where a class is missing in
    one of these parts, or in what they leave to train on.
    """
    labels = source.labels[rows]
    own = None if source.split is None else source.split[rows]
    for part in data.own_parts:
        assert own is not None  # readers refuse a source without the part
        for name in ("train", part):
            missing = np.setdiff1d(labels, labels[own == store.SPLITS[name]])
            if len(missing):
                raise InputError(
                    f"data.n_{part}: expected every class in each part, found no image to "
                    f"{IN_WORDS[name]} of class {source.class_names[missing[0]]}; "
                    f"set data.n_{part} to a number"
                )
    return split_rows(labels, data, own, source.class_names)


def _stratified_choice(
    labels: Labels, n_chosen: int, seed: int, key: str, class_names: Sequence[str]
) -> NDArray[np.bool_]:
    """Return a mask of exactly `n_chosen` rows in which every class has its share.

    Every class has at least one row inside the mask and one outside. Raises InputError, which
    names `key` and the class, where that is not possible.
    """
    from sklearn.model_selection import train_test_split

    n_classes = int(labels.max()) + 1
    if len(labels) < 2 * n_classes:
        raise InputError(
            f"data.n_images: expected at least {2 * n_classes} images, two for each class, "
            f"found {len(labels)}"
        )
    if not n_classes <= n_chosen <= len(labels) - n_classes:
        raise InputError(
            f"{key}: expected from {n_classes} to {len(labels) - n_classes} of {len(labels)} "
            f"images, found {n_chosen}"
        )
    counts = np.bincount(labels)
    chosen = np.zeros(len(labels), dtype=bool)
    if counts.min() >= 2:  # scikit-learn refuses smaller classes with another message
        chosen[
            train_test_split(
                np.arange(len(labels)), test_size=n_chosen, stratify=labels, random_state=seed
            )[1]
        ] = True
    inside = np.bincount(labels[chosen], minlength=n_classes)
    unsplit = np.flatnonzero((inside == 0) | (inside == counts))
    if len(unsplit):
        label = unsplit[counts[unsplit].argmin()]
        name = class_names[label] if class_names else label
        remedy = "add images to it" if counts[label] < 2 else f"raise {key}"
        raise InputError(
            f"{key}: expected every class on both sides of the choice, "
            f"found class {name} with {counted(counts[label], 'image')}, too few for "
            f"{n_chosen} of {len(labels)}; {remedy} or leave the class out"
        )
    return chosen
