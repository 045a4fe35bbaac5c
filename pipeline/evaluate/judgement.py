"""Measure how good a model is, in three terms that are never mixed up.

**Clean accuracy** is on unattacked images. **Transfer accuracy** is on stored adversarial images.
It says nothing about an attacker who attacks the judged model, unless the images were made against
the judged model itself. **Robust accuracy** is only ever under a white-box attack run freshly
against the judged model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline import networks
from pipeline.base.store import Block, ImageSet
from pipeline.base.values import MIXED
from pipeline.cluster.opened import Workers
from pipeline.evaluate import checks, diagnostics, ensemble, params, sweeps, whitebox
from pipeline.evaluate.target import BATCH_SIZE, Target
from pipeline.networks import scores
from pipeline.networks.precision import exact
from pipeline.networks.scores import Mask, summarise

WORST = "worst"
Stored = Mapping[str, tuple[ImageSet, Block]]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What one attack found.

    `rows` (n,) are the rows of the validation images that it was tried on. `standing` (n,) tells
    which of them withstood it. `eps` is in [0, 1].
    """

    eps: float
    rows: NDArray[np.int64]
    standing: Mask


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All that is found about a model.

    That is: numbers, its clean predictions for a confusion matrix, the grid's guesses and the
    curves' points.
    """

    metrics: dict[str, Any]
    confusion: list[dict[str, str]]
    grid: list[sweeps.Row]
    curves: list[sweeps.Row]


@exact()
def judge(
    network: nn.Module,
    clean: ImageSet,
    stored: Sequence[ImageSet],
    model_sha256: str,
    settings: params.Evaluate,
    workers: Workers | None = None,
) -> Judgement:
    """Return clean, transfer and robust accuracy of a network, and whether to believe the last.

    All are measured on the test images, or on the validation images where there are none. `stored`
    are adversarial sets of the same clean set, all made against one model. `model_sha256` tells
    whether that model is the judged network itself. Raises InputError for sets of another clean
    set. Raises it also for sets of several models, which an attack's name would not tell apart.
    Fresh attacks run on `workers`, or in this process where the network is.
    """
    val, names = clean.load(clean.judged), clean.class_names
    size, seed = val.images.shape[2], settings.seed
    target = Target.of(
        network, len(names), batch_size=BATCH_SIZE, seed=seed, image_size=size, workers=workers
    )
    predicted = networks.expect_numbers(target.predicted(val))
    sets = _all_opened(stored, clean)
    transfer = _transfer(target, val, predicted == val.labels, sets, model_sha256)
    robust, tried = _robust(target, val, settings)
    grid_rows, grid = _grid(target, val, settings)
    curves, found = _checked(target, val, sets, transfer, tried, settings)
    found |= diagnostics.of_clean(clean, val, predicted == val.labels)
    verdict, failed = checks.verdict(
        {name: check.result for name, check in found.items()}, checks.confirmed(robust)
    )
    return Judgement(
        metrics={
            "class_names": list(names),
            "data_set": data_set(clean),
            "clean": summarise(predicted == val.labels, val.labels, len(names)),
            "transfer": transfer,
            "robust": robust,
            "grid": grid,
            "diagnostics": {
                "verdict": verdict,
                "failed": failed,
                "threat": settings.curves.threat,
                "checks": {name: check.as_metrics() for name, check in found.items()},
            },
        },
        confusion=_confusion(names, val, predicted),
        grid=grid_rows,
        curves=curves.rows(),
    )


def data_set(clean: ImageSet) -> dict[str, Any]:
    """Return what identifies a clean set and its source, for its results.

    Sets that `prepare` did not store have no source.
    """
    return {
        "source": clean.attributes.get("source"),
        "source_sha256": clean.attributes.get("source.sha256"),
        "sha256": clean.digest,
        "n": len(clean),
        "judged": clean.judged,
        "classes": len(clean.class_names),
        "image_size": clean.image_shape[1],
    }


def of_stored(images: ImageSet, block: Block, model_sha256: str) -> dict[str, Any]:
    """Return what tells a judged model's transfer accuracy on a stored set from another one.

    `block` holds the set's judged images, and `model_sha256` is that of the judged model. `eps` is
    the greatest of a set whose images have their own, and `eps.least` the least.
    """
    assert block.eps is not None
    greatest, least = float(images.attributes["eps.stored"]), round(float(block.eps.min()), 6)
    return {
        "eps": greatest,
        **({} if abs(least - greatest) < 1e-5 else {"eps.least": least}),
        "made_against_this_model": images.attributes["model.sha256"] == model_sha256,
    }


def _confusion(
    names: Sequence[str], val: Block, predicted: NDArray[np.int64]
) -> list[dict[str, str]]:
    return [
        {"actual": names[label], "predicted": names[guess]}
        for label, guess in zip(val.labels, predicted, strict=True)
    ]


def _all_opened(stored: Sequence[ImageSet], clean: ImageSet) -> Stored:
    """Return stored sets, and those of their images that are judged, by the names of attacks."""
    for images in stored:
        images.expect(
            {"model.sha256": stored[0].attributes["model.sha256"]},
            f"made from another model than {stored[0].path}",
        )
        images.expect({"clean.digest": clean.digest}, "made from another clean set")
    return {str(one.attributes["attack"]): (one, one.load(clean.judged)) for one in stored}


def _transfer(
    target: Target, val: Block, clean_right: Mask, sets: Stored, model_sha256: str
) -> dict[str, Any]:
    """Return the accuracy on stored adversarial validation images.

    It is given set by set, and on the mix of all sets and the clean images.
    """
    results: dict[str, Any] = {}
    all_right, all_labels = [clean_right], [val.labels]
    for name, (images, block) in sets.items():
        right, labels = target.is_right(block), block.labels
        about = of_stored(images, block, model_sha256)
        results[name] = {**summarise(right, labels, target.n_classes), **about}
        all_right.append(right)
        all_labels.append(labels)
    return {
        **results,
        MIXED: summarise(
            np.concatenate(all_right), np.concatenate(all_labels), target.n_classes, len(val)
        ),
    }


def _robust(
    target: Target, val: Block, settings: params.Evaluate
) -> tuple[dict[str, Any], dict[str, Tried]]:
    """Return the accuracy under every attack and under all together, and each one's findings.

    The attacks are the threats and the ensemble. The accuracy under all is the headline. An image
    counts there if it withstands everything that was tried on it, at whatever eps.
    """
    results: dict[str, Any] = {}
    tried: dict[str, Tried] = {}

    def enter(name: str, rows: NDArray[np.int64], standing: Mask, **about: Any) -> None:
        results[name] = {**summarise(standing, val.labels[rows], target.n_classes), **about}
        tried[name] = Tried(eps=about["eps"], rows=rows, standing=standing)

    rows = scores.sample(val, settings.n_eval, settings.seed)
    for name, threat in settings.threats.items():
        outcome = whitebox.withstands(target, val.select(rows), threat, f"judge by {name}")
        about = {
            "attack": threat.attack,
            "restarts": threat.restarts,
            **threat.described,
            **outcome.passes.as_metrics(),
        }
        enter(name, rows, outcome.standing, **about)
    if settings.ensemble is not None:
        rows = scores.sample(val, settings.ensemble.n_eval, settings.seed)
        eps = settings.threats[settings.curves.threat].eps
        standing, about = ensemble.withstands(target, val.select(rows), settings.ensemble, eps)
        enter(ensemble.name(settings.ensemble), rows, standing, **about)
    rows, standing = _worst(list(tried.values()))
    return {
        **results,
        WORST: {**summarise(standing, val.labels[rows], target.n_classes), "over": list(results)},
    }, tried


def _worst(tried: Sequence[Tried]) -> tuple[NDArray[np.int64], Mask]:
    """Return the rows on which everything was tried, and which of them withstand everything.

    The rows are the smallest of the nested samples.
    """
    smallest = min((one.rows for one in tried), key=len)
    return smallest, np.logical_and.reduce(
        [one.standing[np.isin(one.rows, smallest)] for one in tried]
    )


def _grid(
    target: Target, val: Block, settings: params.Evaluate
) -> tuple[list[sweeps.Row], dict[str, Any] | None]:
    """Return the grid's rows and metrics, which are a hidden grader's view.

    Without a grid in the settings, return no rows and None.
    """
    if settings.grid is None:
        return [], None
    rows = scores.sample(val, settings.grid.n_eval, settings.seed)
    return sweeps.grid(target, val.select(rows), settings.grid)


def _checked(
    target: Target,
    val: Block,
    sets: Stored,
    transfer: Mapping[str, Any],
    tried: Mapping[str, Tried],
    settings: params.Evaluate,
) -> tuple[sweeps.Curves, dict[str, checks.Check]]:
    """Return the curves of one threat, and all checks of what was found in its eps ball."""
    name = settings.curves.threat
    threat, of_threat = settings.threats[name].resolved, tried[name]
    few = val.select(scores.sample(val, settings.curves.n_eval, settings.seed))
    curves = sweeps.curves(target, few, threat, settings.curves)
    largest = threat.eps + checks.SAME_EPS
    within = {
        name: block.select(of_threat.rows)
        for name, (_, block) in sets.items()
        if checks.least_eps(transfer[name]) <= largest
    }
    judged, found = _worst([one for one in tried.values() if one.eps <= largest])
    enough = scores.sample(val, min(checks.ENOUGH, len(judged)), settings.seed)
    return curves, {
        **diagnostics.diagnose(
            target,
            val.select(of_threat.rows),
            of_threat.standing,
            few,
            curves,
            threat,
            settings.curves.queries,
            within,
        ),
        **diagnostics.converged(
            target, val.select(enough), found[np.isin(judged, enough)], threat, settings.curves
        ),
        "eps_in_wrong_units": checks.units([one.eps for one in tried.values()]),
        checks.FAR_ABOVE: checks.far_above(
            {**scores.interval(found), "n": len(found)}, threat.eps, transfer
        ),
    }
