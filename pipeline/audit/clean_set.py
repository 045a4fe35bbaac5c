"""Check the clean image set against its source, image by image."""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.project import Project, Row, Verdict, judged, matches
from pipeline.audit.tally import CHUNK, Tally
from pipeline.base import store
from pipeline.base.words import counted
from pipeline.generate import attacker
from pipeline.prepare import preparation, sources


def clean_set(project: Project, path: str) -> Iterator[Row]:
    """Check that the clean set holds exactly the images that `data` chooses from its source.

    Each image occurs once, with the split that `data` gives.
    """
    images, data = project.images(path), project.settings.data
    ids, labels = images.column("ids"), images.column("labels")
    where = f"{path} (all images)"
    yield Row("content", f"SHA-256 {images.digest}", path, "ok", number=len(ids))
    repeated = len(ids) - len(np.unique(ids))
    yield judged(
        "ids",
        f"{counted(repeated, 'row')} with the id of another" if repeated else "",
        f"{len(ids)} different ids",
        where,
    )
    if not data.own_parts:
        yield _split(images, preparation.split_rows(labels, data), "stratified", path)
    yield judged(
        "shards",
        _wrong_shards(images, project.settings.store.shard_rows),
        f"{len(images.bounds)}",
        path,
    )
    yield from _leaks(project, path)
    yield from _against_source(project, path)


def _split(images: store.ImageSet, expected: NDArray[np.uint8], words: str, path: str) -> Row:
    split, ids = images.column("split"), images.column("ids")
    moved = expected != split
    fault = (
        f"{counted(moved.sum(), 'row')}, the first is row {moved.argmax()}"
        f" (id {ids[moved.argmax()]})"
        if moved.any()
        else ""
    )
    return judged(
        "split",
        fault,
        f"{(split == 1).sum()} validation rows, {(split == 2).sum()} test rows, {words}",
        f"{path}, data.seed, data.n_val, data.n_test",
    )


def _wrong_shards(images: store.ImageSet, shard_rows: int) -> str:
    same = images.bounds == store.shard_bounds(len(images), shard_rows)
    return "" if same else f"expected shards of {shard_rows} rows, found {images.bounds[0][1]}"


def _leaks(project: Project, path: str) -> Iterator[Row]:
    """Yield a row that is a warning where a held-out image is a training image too."""
    sides: tuple[list[NDArray[np.uint64]], list[NDArray[np.uint64]]] = ([], [])
    for block in project.images(path).blocks():
        digests = b"".join(
            hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in block.images
        )
        for side, found in enumerate(sides):
            found.append(np.frombuffer(digests, dtype=np.uint64)[(block.split > 0) == side])
    shared = len(np.intersect1d(np.concatenate(sides[0]), np.concatenate(sides[1])))
    value = f"{shared} different images"
    verdict: Verdict = "warning" if shared else "ok"
    yield Row("images in both splits", value, f"{path} (all images)", verdict, number=shared)


def _against_source(project: Project, path: str) -> Iterator[Row]:
    """Compare images, labels and ids with the raw data, which is read and chosen again."""
    images, data = project.images(path), project.settings.data
    source = sources.open_source(data.model_copy(update={"path": str(project.root / data.path)}))
    chosen = preparation.choose_rows(source.labels, data)
    tally, where = Tally(), f"{path}, {data.path}"
    recorded = images.attributes["source.sha256"]
    yield matches("raw data", recorded, source.sha256, where)
    missing = (
        "" if len(chosen) == len(images) else f"{len(images)} rows, the raw data give {len(chosen)}"
    )
    yield judged("rows", missing, f"{len(images)}", where, len(images))
    if missing:
        return
    if data.own_parts:
        split = preparation.split_of(source, chosen, data)
        yield _split(images, split, "as in the raw data", path)
    for number, ((start, stop), block) in enumerate(
        zip(images.bounds, images.blocks(), strict=True)
    ):
        picked, rows, shard = chosen[start:stop], range(start, stop), store.shard_name(number)
        tally.n += len(block)
        tally.blame(
            "labels of the raw data", source.labels[picked] != block.labels, rows, block.ids, shard
        )
        tally.blame("ids of the raw data", source.ids[picked] != block.ids, rows, block.ids, shard)
        for part in attacker.batches(len(block), CHUNK):
            differing = (source.read(picked[part]) != block.images[part]).any(axis=(1, 2, 3))
            tally.blame("images of the raw data", differing, rows[part], block.ids[part], shard)
    for what in ("images", "labels", "ids"):
        yield judged(
            f"{what} of the raw data",
            tally.problem(f"{what} of the raw data"),
            f"{tally.n} equal",
            where,
        )
