"""Check image sets by their images themselves, not by what is written about them.

All images of a set are read, shard by shard. Attacks run again on whole batches of a sample. Every
check takes a project and yields rows.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torchvision import models

from pipeline import attacks
from pipeline.attacks.params import Attack
from pipeline.audit.margins import TIGHT, margins_of
from pipeline.audit.project import Project, Row, Verdict, judged
from pipeline.base import params, store
from pipeline.base.errors import InputError
from pipeline.base.values import Spread, greatest
from pipeline.document import Document
from pipeline.generate import generation
from pipeline.networks.device import processor
from pipeline.prepare import preparation, sources

SAMPLE = 128  # images attacked again per adversarial set, in whole batches
CHUNK = 1024  # images compared at once
# The largest share of an image's values that may differ when it is attacked again. A GPU adds in no
# fixed order, and a batch that passes through the network in parts is added in another order. Each
# gradient sign that this flips moves a pixel. Other random numbers would move most pixels.
SAME = {"cpu": 0.0, "cuda": 0.25}


@dataclass
class Tally:
    """Counts over all rows of a set.

    `first` maps each kind of fault to the first row that has it.
    """

    n: int = 0
    n_pixels: int = 0
    changed: int = 0
    unchanged_images: int = 0
    largest: int = 0
    fooled: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def blame(
        self, what: str, wrong: NDArray[np.bool_], rows: range, ids: NDArray[np.int64], shard: str
    ) -> None:
        """Count the rows (n,) that are wrong."""
        if wrong.any():
            place = int(wrong.argmax())
            self.faults[what] = self.faults.get(what, 0) + int(wrong.sum())
            self.first.setdefault(what, f"row {rows[place]} (id {ids[place]}, {shard})")

    def problem(self, what: str) -> str:
        return (
            f"{self.faults[what]} of {self.n} rows, the first is {self.first[what]}"
            if what in self.faults
            else ""
        )


def clean_set(project: Project, stage: str, path: str) -> Iterator[Row]:
    """Check that the clean set holds exactly the images that `data` chooses from its source.

    Each image occurs once, with the split that `data` gives.
    """
    images, rows, data = project.images(path), project.rows(path), project.settings.data
    where = f"{path} (all images)"
    yield Row(
        stage=stage,
        parameter="content",
        value=f"SHA-256 {images.digest}",
        where=path,
        verdict="ok",
        number=len(rows.ids),
    )
    repeated = len(rows.ids) - len(np.unique(rows.ids))
    yield judged(
        stage,
        "ids",
        f"{repeated} rows repeat an id" if repeated else "",
        f"{len(rows.ids)} different ids",
        where,
    )
    moved = preparation.split_rows(rows.labels, data) != rows.split
    fault = (
        f"{moved.sum()} rows, the first is row {moved.argmax()} (id {rows.ids[moved.argmax()]})"
        if moved.any()
        else ""
    )
    yield judged(
        stage,
        "split",
        fault,
        f"{(rows.split == 1).sum()} validation rows, stratified",
        f"{path}, data.seed, data.n_val",
    )
    yield judged(
        stage,
        "shards",
        _wrong_shards(images, project.settings.store.shard_rows),
        f"{len(images.bounds)}",
        path,
    )
    yield from _leaks(project, stage, path)
    yield from _against_source(project, stage, path)


def _wrong_shards(images: store.ImageSet, shard_rows: int) -> str:
    same = images.bounds == store.shard_bounds(len(images), shard_rows)
    return "" if same else f"expected shards of {shard_rows} rows, found {images.bounds[0][1]}"


def _leaks(project: Project, stage: str, path: str) -> Iterator[Row]:
    """Yield a row that is a warning where an identical image is on both sides of the split."""
    sides: tuple[list[NDArray[np.uint64]], list[NDArray[np.uint64]]] = ([], [])
    for block in project.images(path).blocks():
        digests = b"".join(
            hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in block.images
        )
        for side, found in enumerate(sides):
            found.append(np.frombuffer(digests, dtype=np.uint64)[block.split == side])
    shared = len(np.intersect1d(np.concatenate(sides[0]), np.concatenate(sides[1])))
    value = f"{shared} different images"
    verdict: Verdict = "warning" if shared else "ok"
    yield Row(
        stage=stage,
        parameter="images in both splits",
        value=value,
        where=f"{path} (all images)",
        verdict=verdict,
        number=shared,
    )


def _against_source(project: Project, stage: str, path: str) -> Iterator[Row]:
    """Compare images, labels and ids with the raw data, which is read and chosen again."""
    images, data = project.images(path), project.settings.data
    source = sources.open_source(data.model_copy(update={"path": str(project.root / data.path)}))
    chosen, tally, where = (
        preparation.choose_rows(source.labels, data),
        Tally(),
        f"{path}, {data.path}",
    )
    recorded = images.attributes["source.sha256"]
    changed = (
        ""
        if recorded == source.sha256
        else f"recorded SHA-256 {recorded}, raw data: {source.sha256}"
    )
    yield judged(stage, "raw data", changed, f"SHA-256 {source.sha256}", where)
    missing = (
        "" if len(chosen) == len(images) else f"{len(images)} rows, the raw data give {len(chosen)}"
    )
    yield judged(stage, "rows", missing, f"{len(images)}", where, len(images))
    if missing:
        return
    for number, ((start, stop), block) in enumerate(
        zip(images.bounds, images.blocks(), strict=True)
    ):
        picked, rows, shard = chosen[start:stop], range(start, stop), store.shard_name(number)
        tally.n += len(block)
        tally.blame(
            "labels of the raw data", source.labels[picked] != block.labels, rows, block.ids, shard
        )
        tally.blame("ids of the raw data", source.ids[picked] != block.ids, rows, block.ids, shard)
        for part in generation.batches(len(block), CHUNK):
            differing = (source.read(picked[part]) != block.images[part]).any(axis=(1, 2, 3))
            tally.blame("images of the raw data", differing, rows[part], block.ids[part], shard)
    for what in ("images", "labels", "ids"):
        yield judged(
            stage,
            f"{what} of the raw data",
            tally.problem(f"{what} of the raw data"),
            f"{tally.n} equal",
            where,
        )


def adversarial_set(project: Project, stage: str, path: str) -> Iterator[Row]:
    """Check that an adversarial set is its clean set, row by row, moved by at most eps.

    The attack and the model must be those that the set names.
    """
    images, clean, inputs = (
        project.images(path),
        project.images(project.clean),
        project.recorded[stage].deps,
    )
    (model,) = project.checkpoints(inputs)
    spec = project.settings.attacks[str(images.attributes["attack"])]
    expected = attacks.identity(
        clean,
        project.sha256(model),
        str(images.attributes["attack"]),
        spec,
        project.settings.generate,
    )
    for key, what in (("clean.digest", project.clean), ("model.sha256", model)):
        other = (
            ""
            if images.attributes[key] == expected[key]
            else f"recorded {images.attributes[key]}, {what} has {expected[key]}"
        )
        yield judged(stage, f"made from {what}", other, f"SHA-256 {expected[key]}", path)
    bounds = (
        ""
        if images.bounds == clean.bounds
        else f"{len(images)} rows in {len(images.bounds)} shards, {project.clean} has {len(clean)}"
    )
    yield judged(
        stage,
        "rows",
        bounds,
        f"{len(images)}, none twice, none missing",
        f"{path}, {project.clean}",
        len(images),
    )
    if not bounds:
        yield from _distances(stage, path, clean, images, spec)
        yield from _samples(project, stage, path, model, _sample(clean, images, project.settings))


def _distances(
    stage: str, path: str, clean: store.ImageSet, images: store.ImageSet, spec: Attack
) -> Iterator[Row]:
    """Compare all images with their clean originals."""
    tally, levels = Tally(), attacks.eps_levels(greatest(spec.eps))
    pairs = zip(clean.blocks(), images.blocks(), strict=True)
    for number, ((start, _), (original, stored)) in enumerate(
        zip(images.bounds, pairs, strict=True)
    ):
        _compare(tally, original, stored, spec, start, store.shard_name(number))
    everywhere = f"{path} (all images)"
    for what in ("labels", "ids", "split"):
        yield judged(
            stage, what, tally.problem(what), f"{tally.n} equal to the clean set's", everywhere
        )
    stated = f"{levels}/255 {'at most' if isinstance(spec.eps, Spread) else 'for every image'}"
    yield judged(stage, "stated eps", tally.problem("stated eps"), stated, f"{path}, {params.FILE}")
    problem = tally.problem("distance")
    largest = f"{tally.largest}/255 at most, eps allows {levels}/255"
    yield judged(
        stage,
        "distance",
        f"{largest}: {problem}" if problem else "",
        largest,
        everywhere,
        tally.largest,
    )
    for what, share in (
        ("changed pixels", tally.changed / tally.n_pixels),
        ("unchanged images", tally.unchanged_images / tally.n),
    ):
        yield judged(stage, what, "", f"{share:.2%}", everywhere, round(share, 6))
    yield judged(
        stage,
        "fooled",
        "",
        f"{tally.fooled / tally.n:.2%} by the stored flags",
        everywhere,
        round(tally.fooled / tally.n, 6),
    )


def _compare(
    tally: Tally, original: store.Block, stored: store.Block, spec: Attack, start: int, shard: str
) -> None:
    """Count one shard's rows."""
    rows, ids = range(start, start + len(stored)), stored.ids
    tally.n += len(stored)
    for what in ("labels", "ids", "split"):
        tally.blame(
            what, original.datasets[what] != stored.datasets[what], rows, original.ids, shard
        )
    if stored.eps is None or stored.fooled is None:
        raise InputError(f"{shard}: no eps or no fooled dataset; run `dvc repro`")
    least, most = (
        attacks.eps_levels(eps) / 255
        for eps in (spec.eps.bounds if isinstance(spec.eps, Spread) else (spec.eps,) * 2)
    )
    tally.blame(
        "stated eps", (stored.eps < least - 1e-6) | (stored.eps > most + 1e-6), rows, ids, shard
    )
    levels = np.round(np.minimum(stored.eps, most) * 255)
    tally.fooled += int(stored.fooled.sum())
    for part in generation.batches(len(stored), CHUNK):
        a, b = original.images[part], stored.images[part]
        moved = np.maximum(a, b) - np.minimum(a, b)
        furthest = moved.max(axis=(1, 2, 3))
        tally.n_pixels += moved.size
        tally.changed += int(np.count_nonzero(moved))
        tally.unchanged_images += int((furthest == 0).sum())
        tally.largest = max(tally.largest, int(furthest.max()))
        tally.blame("distance", furthest > levels[part], rows[part], ids[part], shard)


def refreshed_sets(project: Project, stage: str, path: str) -> Iterator[Row]:
    """Check that refreshed sets are cached sets whose training rows moved further within eps.

    `fooled` describes the model that the stage produced.
    """
    entry, clean = project.recorded[stage], project.images(project.clean)
    (model,) = project.checkpoints(entry.outs)
    cached = project.adversarial(entry.deps)
    for name, source in project.refreshed(path).items():
        images, origin, attacked = (
            project.images(source),
            project.images(cached[name]),
            project.attacked(cached[name]),
        )
        spec = project.settings.attacks[str(origin.attributes["attack"])]
        made_with = {
            "cached.digest": (cached[name], origin.digest),
            "cached.model.sha256": (attacked, project.sha256(attacked)),
            "model.sha256": (model, project.sha256(model)),
        }
        for key, (what, value) in made_with.items():
            other = (
                ""
                if images.attributes[key] == value
                else f"recorded {images.attributes[key]}, {what} has {value}"
            )
            yield judged(stage, f"{source} made with {what}", other, f"SHA-256 {value}", source)
        bounds = (
            ""
            if images.bounds == clean.bounds
            else f"{len(images)} rows, {project.clean} has {len(clean)}"
        )
        yield judged(
            stage,
            f"{source} rows",
            bounds,
            f"{len(images)}, none twice, none missing",
            f"{source}, {project.clean}",
            len(images),
        )
        if not bounds:
            for row in _distances(stage, source, clean, images, spec):
                yield dataclasses.replace(row, parameter=f"{source} {row.parameter}")
            pairs = zip(images.blocks(), origin.blocks(), strict=True)
            moved = sum(
                int((a.images != b.images).any((1, 2, 3))[a.split == 1].sum()) for a, b in pairs
            )
            problem = f"{moved} of them differ from {cached[name]}" if moved else ""
            yield judged(
                stage,
                f"{source} validation rows",
                problem,
                "as in the cached set",
                f"{source}, {cached[name]}",
            )
            row = _fooled_again(
                project, stage, source, model, _sample(clean, images, project.settings)
            )
            yield dataclasses.replace(row, parameter=f"{source} {row.parameter}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Whole batches of a set, beginning at `rows.start`, with their clean originals."""

    rows: range
    shard: str
    original: store.Block
    stored: store.Block

    def compare(self, wrong: NDArray[np.bool_]) -> str:
        """Return what is wrong where some of its rows (n,) are wrong, else an empty text."""
        tally = Tally(n=len(self.rows))
        tally.blame("sample", wrong, self.rows, self.stored.ids, self.shard)
        return tally.problem("sample")


def _sample(clean: store.ImageSet, images: store.ImageSet, settings: Document) -> Sample:
    """Return at least SAMPLE rows, in whole batches, fewer only where their shard ends earlier.

    Only the set's content decides where the sample begins.
    """
    size = settings.generate.batch_size
    starts = [
        (shard, start)
        for shard, (first, stop) in enumerate(images.bounds)
        for start in range(0, stop - first, size)
    ]
    shard, start = starts[int(images.digest, 16) % len(starts)]
    original, stored = clean.block(shard), images.block(shard)
    stop = min(start + math.ceil(SAMPLE / size) * size, len(stored))
    taken = (np.arange(len(stored)) >= start) & (np.arange(len(stored)) < stop)
    first = images.bounds[shard][0]
    return Sample(
        rows=range(first + start, first + stop),
        shard=store.shard_name(shard),
        original=original.select(taken),
        stored=stored.select(taken),
    )


def _samples(project: Project, stage: str, path: str, model: str, sample: Sample) -> Iterator[Row]:
    """Show the sample's images to their source model again, and attack their originals again."""
    where = f"{path} (rows {sample.rows.start} to {sample.rows.stop - 1})"
    yield _fooled_again(project, stage, path, model, sample)
    yield _attacked_again(project, stage, path, project.network(model), sample, where)


def _fooled_again(project: Project, stage: str, path: str, model: str, sample: Sample) -> Row:
    """Show the sample's images to the model that their `fooled` flags describe."""
    stored, network = sample.stored, project.network(model)
    assert stored.fooled is not None
    where = f"{path} (rows {sample.rows.start} to {sample.rows.stop - 1})"
    margins = margins_of(
        network, stored.images, stored.labels, project.settings.generate.batch_size, project.device
    )
    problem = sample.compare(((margins <= 0) != stored.fooled) & (np.abs(margins) > TIGHT))
    value = f"{(margins <= 0).mean():.2%} of {len(stored)} images, each as stored"
    return judged(stage, "fooled again", problem, value, f"{where}, {model}")


def _attacked_again(
    project: Project, stage: str, path: str, network: models.ResNet, sample: Sample, where: str
) -> Row:
    """Make the sample's images again and compare them with the stored ones.

    The bytes are identical where the same libraries run on the same processor. On a GPU they are
    nearly identical.
    """
    attributes, settings, what = project.images(path).attributes, project.settings, "attacked again"
    if attributes["device"] != project.device.type:
        text = f"made on {attributes['device']}, this is {project.device.type}"
        return Row(stage=stage, parameter=what, value=text, where=where, verdict="not comparable")
    spec = settings.attacks[str(attributes["attack"])]
    again = generation.attacked_again(
        project.images(path),
        sample.original,
        sample.rows.start,
        network,
        spec,
        settings.generate,
        device=project.device,
    )
    differing = (again.images != sample.stored.images).mean(axis=(1, 2, 3))
    problem = sample.compare(differing > SAME[project.device.type])
    here = {"processor": processor(project.device), **attacks.versions()}
    others = [
        f"{key} {attributes.get(key)} (here {value})"
        for key, value in here.items()
        if attributes.get(key) != value
    ]
    if problem and others:
        text = f"{problem}; made with {', '.join(others)}"
        return Row(stage=stage, parameter=what, value=text, where=where, verdict="not comparable")
    same = (
        "the same bytes"
        if not differing.any()
        else f"{differing.mean():.2%} of their values differ, as sums on a GPU do"
    )
    return judged(stage, what, problem, f"{len(sample.rows)} images, {same}", where)
