"""Choose, split and store the images of a source as the clean image set."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files, store
from pipeline.base.errors import InputError
from pipeline.base.words import counted
from pipeline.prepare import params, sources
from pipeline.prepare.sources.common import Labels

Split = NDArray[np.uint8]


def prepare(
    source: sources.Source, data: params.Data, stored: params.Store, out: Path
) -> store.ImageSet:
    """Store the images that `data` chooses from a source, with an exact, stratified split.

    Rows keep the order and the ids of the source. Raises InputError where the source has fewer
    images than requested, or where a class has too few images for both parts of the split.
    """
    rows = choose_rows(source.labels, data)
    labels = source.labels[rows]
    split = split_of(source, rows, data)
    attributes: store.Attributes = {
        "kind": "clean",
        "source": data.source,
        "source.sha256": source.sha256,
        "source.notes": json.dumps(source.notes, ensure_ascii=False),
        "source.skipped": json.dumps(source.skipped, ensure_ascii=False),
        "class_names": json.dumps(source.class_names, ensure_ascii=False),
        "split.n_val": data.n_val,
        **({"split.n_test": data.n_test} if data.n_test else {}),
        "seed": data.seed,
        "image_size": source.image_size,
        "versions.h5py": version("h5py"),
    }
    n_bytes = len(rows) * (3 * source.image_size**2 + store.ROW_BYTES)
    files.require_space(out, n_bytes, f"a set of {len(rows)} images")
    bounds = store.shard_bounds(len(rows), stored.shard_rows)
    with store.Writer(out, attributes, bounds=bounds) as writer:
        for start, stop in writer.missing():
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


def choose_rows(labels: Labels, data: params.Data) -> NDArray[np.int64]:
    """Return the source rows to use (int64), in the source's order.

    They are all rows, or `n_images` of them with every class in its share.
    """
    n_images = len(labels) if data.n_images is None else data.n_images
    if n_images > len(labels):
        raise InputError(
            f"data.n_images: expected at most {len(labels)}, all that the source holds, "
            f"found {n_images}"
        )
    if n_images == len(labels):
        return np.arange(len(labels))
    return np.flatnonzero(_stratified_choice(labels, n_images, data.seed, "data.n_images"))


def split_rows(labels: Labels, data: params.Data) -> NDArray[np.uint8]:
    """Return 0 (train), 1 (val) or 2 (test) for each row (uint8).

    There are exactly `n_test` rows of 2, and `n_val` of 1 among the rest. Every class has its
    share, and is present in all parts.
    """
    assert isinstance(data.n_val, int)
    split = _with_test(np.zeros(len(labels), dtype=np.uint8), labels, data)
    rest = np.flatnonzero(split == store.SPLITS["train"])
    chosen = _stratified_choice(labels[rest], data.n_val, data.seed, "data.n_val")
    split[rest[chosen]] = store.SPLITS["val"]
    return split


def _with_test(split: Split, labels: Labels, data: params.Data) -> Split:
    """Return a split of which `n_test` training rows are test rows instead."""
    changed = split.copy()
    if data.n_test:
        rest = np.flatnonzero(split == store.SPLITS["train"])
        chosen = _stratified_choice(labels[rest], data.n_test, data.seed, "data.n_test")
        changed[rest[chosen]] = store.SPLITS["test"]
    return changed


def split_of(
    source: sources.Source, rows: NDArray[np.int64], data: params.Data
) -> NDArray[np.uint8]:
    """Return 0 (train), 1 (val) or 2 (test) for some rows of a source (uint8).

    It is the source's own split for `n_val: from_source`, with `n_test` of its training images for
    the test. Raises InputError where the source has
    none, or where a class is in one part only.
    """
    if not data.own_split:
        return split_rows(source.labels[rows], data)
    if source.split is None:
        raise InputError(
            f"data.n_val: expected a source with a validation or test part for {data.n_val}, "
            "found one part; set data.n_val to a number"
        )
    labels, split = source.labels[rows], source.split[rows]
    for part, words in enumerate(("to train", "to validate")):
        missing = np.setdiff1d(labels, labels[split == part])
        if len(missing):
            raise InputError(
                f"data.n_val: expected every class in both parts, found no image {words} of class "
                f"{source.class_names[missing[0]]}; set data.n_val to a number"
            )
    return _with_test(split, labels, data)


def _stratified_choice(labels: Labels, n_chosen: int, seed: int, key: str) -> NDArray[np.bool_]:
    """Return a mask of exactly `n_chosen` rows in which every class has its share.

    Every class has at least one row inside the mask and one outside. Raises InputError, which
    names `key`, where that is not possible.
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
        raise InputError(
            f"{key}: expected every class on both sides of the choice, "
            f"found class {label} with {counted(counts[label], 'image')}, too few for "
            f"{n_chosen} of {len(labels)}; raise {key} or leave the class out"
        )
    return chosen
