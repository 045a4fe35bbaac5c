"""Check adversarial and refreshed sets by their images, not by what is written about them.

All images of a set are read, shard by shard. Attacks run again on whole batches of a sample. Every
check takes a project and yields rows.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import attacks
from pipeline.attacks.params import Attack
from pipeline.audit import samples
from pipeline.audit.project import Project, Row, judged, matches
from pipeline.audit.tally import CHUNK, Tally
from pipeline.base import params, store
from pipeline.base.errors import InputError
from pipeline.base.values import CLEAN, Spread, greatest
from pipeline.generate import attacker


def adversarial_set(project: Project, path: str) -> Iterator[Row]:
    """Check that an adversarial set is its clean set, row by row, moved by at most eps.

    The attack and the model must be those that the set names.
    """
    images, clean = project.images(path), project.images(project.clean)
    (model,) = project.checkpoints(project.made(path).deps)
    spec = project.settings.attacks[str(images.attributes["attack"])]
    expected = attacks.identity(
        clean,
        project.sha256(model),
        str(images.attributes["attack"]),
        spec,
        project.settings.generate,
    )
    for key, what in (("clean.digest", project.clean), ("model.sha256", model)):
        yield matches(f"made from {what}", images.attributes[key], expected[key], path)
    rows = _same_rows(project, "rows", path)
    yield rows
    if rows.verdict == "ok":
        yield from _distances(path, clean, images, spec)
        yield from samples.checks(
            project, path, model, samples.sample_of(clean, images, project.settings)
        )


def _distances(
    path: str, clean: store.ImageSet, images: store.ImageSet, spec: Attack
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
        yield judged(what, tally.problem(what), f"{tally.n} equal to the clean set's", everywhere)
    stated = f"{levels}/255 {'at most' if isinstance(spec.eps, Spread) else 'for every image'}"
    yield judged("stated eps", tally.problem("stated eps"), stated, f"{path}, {params.FILE}")
    problem = tally.problem("distance")
    largest = f"{tally.largest}/255 at most, eps allows {levels}/255"
    yield judged(
        "distance", f"{largest}: {problem}" if problem else "", largest, everywhere, tally.largest
    )
    for what, share, how in (
        ("changed pixels", tally.changed / tally.n_pixels, ""),
        ("unchanged images", tally.unchanged_images / tally.n, ""),
        ("fooled", tally.fooled / tally.n, " by the stored flags"),
    ):
        yield judged(what, "", f"{share:.2%}{how}", everywhere, round(share, 6))


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
    for part in attacker.batches(len(stored), CHUNK):
        a, b = original.images[part], stored.images[part]
        moved = np.maximum(a, b) - np.minimum(a, b)
        furthest = moved.max(axis=(1, 2, 3))
        tally.n_pixels += moved.size
        tally.changed += int(np.count_nonzero(moved))
        tally.unchanged_images += int((furthest == 0).sum())
        tally.largest = max(tally.largest, int(furthest.max()))
        tally.blame("distance", furthest > levels[part], rows[part], ids[part], shard)


def refreshed_sets(project: Project, path: str) -> Iterator[Row]:
    """Check that refreshed sets are cached sets whose training rows moved further within eps.

    There is one for each set of the mix, and none where `refresh` is null. `fooled` describes the
    model that the stage produced.
    """
    (model,) = project.checkpoints(project.made(path).outs)
    cached = project.adversarial(project.made(path).deps)
    found = {Path(below).name: below for below in project.below(path)}
    name = Path(model).stem
    recipe = project.settings.finetuned[name]
    wanted = set() if recipe.refresh is None else {*project.settings.mix_of(name)} - {CLEAN}
    differing = ", ".join(sorted(wanted ^ found.keys()))
    yield judged(
        "refreshed sets",
        f"in one place only, the folder or {params.FILE}: {differing}" if differing else "",
        ", ".join(sorted(wanted)) or "none",
        path,
    )
    for name, source in found.items():
        yield from _made_with(project, source, cached[name], model)
        rows = _same_rows(project, f"{source} rows", source)
        yield rows
        if rows.verdict == "ok":
            for row in _refreshed_images(project, source, cached[name], model):
                yield dataclasses.replace(row, parameter=f"{source} {row.parameter}")


def _same_rows(project: Project, parameter: str, path: str) -> Row:
    """Check that a set has the rows of the clean set, in the same shards."""
    images, clean = project.images(path), project.images(project.clean)
    problem = (
        ""
        if images.bounds == clean.bounds
        else f"{len(images)} rows in {len(images.bounds)} shards, {project.clean} has {len(clean)}"
    )
    whole = f"{len(images)}, none twice, none missing"
    return judged(parameter, problem, whole, f"{path}, {project.clean}", len(images))


def _made_with(project: Project, source: str, cached: str, model: str) -> Iterator[Row]:
    """Compare the cached set and the models that a refreshed set names with those on the disk."""
    attributes, attacked = project.images(source).attributes, project.attacked(cached)
    made_with = {
        "cached.digest": (cached, project.images(cached).digest),
        "cached.model.sha256": (attacked, project.sha256(attacked)),
        "model.sha256": (model, project.sha256(model)),
    }
    for key, (what, value) in made_with.items():
        yield matches(f"{source} made with {what}", attributes[key], value, source)


def _refreshed_images(project: Project, source: str, cached: str, model: str) -> Iterator[Row]:
    """Compare the images of a refreshed set with the clean ones, the cached ones and the model."""
    images, origin = project.images(source), project.images(cached)
    clean = project.images(project.clean)
    spec = project.settings.attacks[str(origin.attributes["attack"])]
    yield from _distances(source, clean, images, spec)
    pairs = zip(images.blocks(), origin.blocks(), strict=True)
    moved = sum(int((a.images != b.images).any((1, 2, 3))[a.split > 0].sum()) for a, b in pairs)
    yield judged(
        "held-out rows",
        f"{moved} of them differ from {cached}" if moved else "",
        "as in the cached set",
        f"{source}, {cached}",
    )
    sample = samples.sample_of(clean, images, project.settings)
    yield samples.fooled_again(project, source, model, sample)
