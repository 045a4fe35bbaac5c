"""Measure accuracy under many variations of an attack.

The grid shows what a grader who chose other parameters would find. The curves reveal a false
result.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.attacks.params import Threat
from pipeline.base.store import Block
from pipeline.base.values import step_size
from pipeline.evaluate import params, whitebox
from pipeline.evaluate.target import Target
from pipeline.networks import scores
from pipeline.networks.scores import Mask

Row = dict[str, Any]
GRID_COLUMNS = ("guess", "eps", "alpha", "steps", "n", "accuracy", "low95", "high95")
WORST = "worst of them"
CURVE_COLUMNS = ("curve", "value", "n", "accuracy", "low95", "high95")


def grid(target: Target, block: Block, settings: params.Grid) -> tuple[list[Row], dict[str, Any]]:
    """Return a row for FGSM and for PGD at every guess of eps, alpha and steps, and the metrics.

    A row `worst of them` for each eps counts an image only if it withstands every guess at that
    eps. `worst` in the metrics counts an image only if it withstands every guess at all eps. Images
    that the network gets wrong unattacked are lost under every guess.
    """
    guessed: list[Row] = []
    worst: list[Row] = []
    standing = np.ones(len(block), dtype=bool)
    for eps in settings.eps:
        withstood = list(_withstood(target, block, eps, settings))
        of_eps = np.logical_and.reduce(withstood)
        standing &= of_eps
        guessed += [
            {**guess, "n": len(block), **scores.interval(stands)}
            for guess, stands in zip(guesses(settings, eps), withstood, strict=True)
        ]
        worst.append(
            {
                "guess": WORST,
                "eps": round(eps, 6),
                "alpha": "",
                "steps": "",
                "n": len(block),
                **scores.interval(of_eps),
            }
        )
    lowest, highest = (
        chosen(guessed, key=lambda row: float(row["accuracy"])) for chosen in (min, max)
    )
    metrics = {
        "n": len(block),
        "guesses": len(guessed),
        "worst": scores.interval(standing),
        "lowest": lowest,
        "highest": highest,
    }
    return [*guessed, *worst], metrics


def guesses(settings: params.Grid, eps: float) -> list[Row]:
    """Return what the grid says of each guess at one eps, in their order."""
    shown = {"eps": round(eps, 6)}
    return [
        {"guess": "FGSM", **shown, "alpha": "", "steps": ""},
        *(
            {
                "guess": f"PGD, alpha {written}, {steps} steps",
                **shown,
                "alpha": round(alpha, 6),
                "steps": steps,
            }
            for (written, alpha), counts in grid_runs(settings, eps).items()
            for steps in counts
        ),
    ]


def _withstood(target: Target, block: Block, eps: float, settings: params.Grid) -> Iterator[Mask]:
    """Yield which images (N,) withstand each of these guesses.

    Guesses of PGD that differ only in their steps share one run.
    """
    fgsm = Threat.model_validate({"attack": "FGSM", "eps": eps})
    yield whitebox.withstands(target, block, fgsm, f"grid: FGSM, eps {eps:.4f}").standing
    for (written, alpha), counts in grid_runs(settings, eps).items():
        standing = whitebox.by_steps(
            target,
            block,
            pgd(eps, alpha, max(counts)),
            counts,
            f"grid: PGD, eps {eps:.4f}, alpha {written}",
        )
        yield from (standing[steps] for steps in counts)


def grid_runs(settings: params.Grid, eps: float) -> Mapping[tuple[str, float], list[int]]:
    """Return the numbers of steps that share a run of PGD at one eps, by alpha as written."""
    runs: dict[tuple[str, float], list[int]] = defaultdict(list)
    for step in settings.alphas:
        for steps in settings.steps:
            alpha = min(1.0, step_size(step, eps, steps))
            runs[step if isinstance(step, str) else f"{step:.4g}", alpha].append(steps)
    return runs


def pgd(eps: float, alpha: float, steps: int) -> Threat:
    """Return PGD with a random start, with eps and alpha in units of pixels in [0, 1]."""
    entry = {
        "attack": "PGD",
        "eps": eps,
        "alpha": alpha,
        "steps": steps,
        "random_start": True,
    }
    return Threat.model_validate(entry)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The images (N,) that withstand one PGD threat, by eps, by steps and by restarts.

    Eps 0 is unattacked.
    """

    eps: dict[float, Mask]
    steps: dict[int, Mask]
    restarts: dict[int, Mask]

    def rows(self) -> list[Row]:
        """Return one row per point."""
        named: dict[str, dict[Any, Mask]] = {
            "eps": self.eps,
            "steps": self.steps,
            "restarts": self.restarts,
        }
        return [
            {
                "curve": name,
                "value": round(value, 6),
                "n": len(standing),
                **scores.interval(standing),
            }
            for name, points in named.items()
            for value, standing in points.items()
        ]


def curves(target: Target, block: Block, threat: Threat, settings: params.Curves) -> Curves:
    """Vary a PGD threat in three ways.

    By eps: alpha varies in proportion. The ball of a greater eps contains the ball of a smaller
    one. An image that is lost at a smaller eps is therefore not attacked again. By steps: each
    number of steps attacks all images, because more steps might raise the accuracy. By restarts: a
    lost image stays lost.
    """
    standing = target.is_right(block)
    by_eps: dict[float, Mask] = {0.0: standing}
    for eps in settings.eps:
        alpha = min(1.0, threat.parameters["alpha"] * eps / threat.eps)
        varied = Threat.model_validate(
            {**threat.model_dump(), "eps": eps, "alpha": alpha, "restarts": 1}
        )
        standing = whitebox.withstands(
            target, block, varied, f"curve: eps {eps:.4f}", standing
        ).standing
        by_eps[eps] = standing
    steps = sorted({*settings.steps, threat.parameters["steps"]})
    repeated = threat.model_copy(update={"restarts": settings.restarts})
    return Curves(
        eps=by_eps,
        steps=whitebox.by_steps(target, block, threat, steps, "curve: steps"),
        restarts=dict(
            enumerate(whitebox.withstands(target, block, repeated, "curve: restarts").after, 1)
        ),
    )
