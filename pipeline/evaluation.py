"""How good a model is, in three words that are never mixed up.

**Clean accuracy** is on unattacked images. **Transfer accuracy** is on stored adversarial images: it says nothing about an attacker who
attacks the judged model, unless the images were made against that very model. **Robust accuracy** is under a white-box attack run afresh
against the judged model, and only that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline import diagnostics, ensemble, networks, params, sweeps, whitebox
from pipeline.params import MIXED
from pipeline.store import Block, ImageSet
from pipeline.whitebox import Mask, Target, summarise

WORST, ENSEMBLE = "worst", "ensemble"
Standing = tuple[NDArray[np.int64], Mask]  # rows of the validation images that were attacked, and which of them stand


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All that is found about a model: numbers, its clean predictions for a confusion matrix, the grid's guesses and the curves' points."""

    metrics: dict[str, Any]
    confusion: list[dict[str, str]]
    grid: list[sweeps.Row]
    curves: list[sweeps.Row]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A stored set's adversarial validation images, their eps, and the SHA-256 of the model that they were made against."""

    block: Block
    eps: float
    model_sha256: str


def judge(network: nn.Module, clean: ImageSet, stored: Sequence[ImageSet], model_sha256: str, settings: params.Evaluate) -> Judgement:
    """Clean, transfer and robust accuracy of a network on the validation images, and whether the robust one can be believed.

    `stored` are adversarial sets of the same clean set, all made against one model; `model_sha256` tells whether that is this very network.
    Raises InputError for sets of another clean set, or of several models, which an attack's name would not tell apart.
    """
    val, names = clean.load("val"), clean.class_names
    target = Target.of(network, len(names), batch_size=settings.batch_size, seed=settings.seed)
    predicted = networks.predict(network, val.images, settings.batch_size)
    for images in stored:
        images.expect({"model.sha256": stored[0].attributes["model.sha256"]}, f"made from another model than {stored[0].path}")
    sets = {str(images.attributes["attack"]): _opened(images, clean) for images in stored}
    transfer = _transfer(target, val, predicted == val.labels, sets, model_sha256)
    robust = _robust(target, val, settings)
    grid_rows, grid = _grid(target, val, settings)
    curves, checks = _checked(target, val, sets, transfer, robust, settings)
    verdict, failed = diagnostics.verdict(checks)
    return Judgement(
        metrics={
            "class_names": list(names),
            "clean": summarise(predicted == val.labels, val.labels, len(names)),
            "transfer": transfer,
            "robust": robust,
            "grid": grid,
            "diagnostics": {
                "verdict": verdict,
                "failed": failed,
                "threat": settings.curves.threat,
                "n": min(settings.curves.n_eval, len(val)),
                "checks": {name: check.as_metrics() for name, check in checks.items()},
            },
        },
        confusion=[{"actual": names[label], "predicted": names[guess]} for label, guess in zip(val.labels, predicted, strict=True)],
        grid=grid_rows,
        curves=curves.rows(),
    )


def _opened(images: ImageSet, clean: ImageSet) -> Stored:
    images.expect({"clean.digest": clean.digest}, "made from another clean set")
    return Stored(block=images.load("val"), eps=float(images.attributes["eps.stored"]), model_sha256=str(images.attributes["model.sha256"]))


def _transfer(target: Target, val: Block, clean_right: Mask, sets: Mapping[str, Stored], model_sha256: str) -> dict[str, Any]:
    """Accuracy on stored adversarial validation images, set by set, and on the mix of them and the clean ones."""
    results: dict[str, Any] = {}
    all_right, all_labels = [clean_right], [val.labels]
    for name, images in sets.items():
        right, labels = target.is_right(images.block), images.block.labels
        results[name] = {
            **summarise(right, labels, target.n_classes),
            "eps": images.eps,
            "made_against_this_model": images.model_sha256 == model_sha256,
        }
        all_right.append(right)
        all_labels.append(labels)
    return {**results, MIXED: summarise(np.concatenate(all_right), np.concatenate(all_labels), target.n_classes)}


def _robust(target: Target, val: Block, settings: params.Evaluate) -> dict[str, Any]:
    """Accuracy under every threat and under the ensemble, run afresh against the network, and under all of them together.

    The last is the headline: an image counts if it withstands everything that was tried on it, at whatever eps.
    """
    results: dict[str, Any] = {}
    all_standing: list[Standing] = []

    def enter(name: str, rows: NDArray[np.int64], standing: Mask, **about: Any) -> None:
        results[name] = {**summarise(standing, val.labels[rows], target.n_classes), **about}
        all_standing.append((rows, standing))

    rows = whitebox.sample(val, settings.n_eval, settings.seed)
    for name, threat in settings.threats.items():
        outcome = whitebox.withstands(target, _rows(val, rows), threat, f"judge by {name}")
        about = {"attack": threat.attack, "restarts": threat.restarts, **threat.parameters, **outcome.passes.as_metrics()}
        enter(name, rows, outcome.standing, **about)
    if settings.ensemble is not None:
        rows = whitebox.sample(val, settings.ensemble.n_eval, settings.seed)
        standing, about = ensemble.withstands(target, _rows(val, rows), ensemble.threats(settings.ensemble.eps))
        enter(ENSEMBLE, rows, standing, eps=settings.ensemble.eps, **about)
    rows, standing = _worst(all_standing)
    return {**results, WORST: {**summarise(standing, val.labels[rows], target.n_classes), "over": list(results)}}


def _worst(all_standing: Sequence[Standing]) -> Standing:
    """Which images stand after everything, of those on which everything was tried: the smallest of the nested samples."""
    smallest = min((rows for rows, _ in all_standing), key=len)
    return smallest, np.logical_and.reduce([standing[np.isin(rows, smallest)] for rows, standing in all_standing])


def _grid(target: Target, val: Block, settings: params.Evaluate) -> tuple[list[sweeps.Row], dict[str, Any] | None]:
    """The hidden grader's view, where it is asked for."""
    if settings.grid is None:
        return [], None
    return sweeps.grid(target, _rows(val, whitebox.sample(val, settings.grid.n_eval, settings.seed)), settings.grid)


def _checked(
    target: Target,
    val: Block,
    sets: Mapping[str, Stored],
    transfer: Mapping[str, Any],
    robust: Mapping[str, Any],
    settings: params.Evaluate,
) -> tuple[sweeps.Curves, dict[str, diagnostics.Check]]:
    """The curves of one threat, and all checks of what was measured by it."""
    threat, rows = settings.threats[settings.curves.threat], whitebox.sample(val, settings.curves.n_eval, settings.seed)
    block = _rows(val, rows)
    curves = sweeps.curves(target, block, threat, settings.curves)
    within = {name: _rows(images.block, rows) for name, images in sets.items() if images.eps <= threat.eps + 1e-6}
    eps = {name: entry.eps for name, entry in settings.threats.items()}
    if settings.ensemble is not None:
        eps[ENSEMBLE] = settings.ensemble.eps
    return curves, {
        **diagnostics.diagnose(target, block, curves, threat, settings.curves.queries, within),
        "eps_in_wrong_units": diagnostics.units(eps),
        diagnostics.FAR_ABOVE: diagnostics.far_above(robust[settings.curves.threat], threat.eps, transfer),
    }


def _rows(block: Block, rows: NDArray[np.int64]) -> Block:
    chosen = np.zeros(len(block), dtype=bool)
    chosen[rows] = True
    return block.select(chosen)
