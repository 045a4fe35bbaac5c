"""Rank the judged models by what a hidden grader is expected to find of them.

The worst FGSM and the worst PGD of a model's grid stand for a grader whose attack is not known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.export.params import AUTO, Export

Result = Mapping[str, Any]
FGSM = "FGSM"  # the guess of that name in a grid; those of PGD begin with PGD


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A model with its score, and the results that the score is made of, by name.

    `margin` is half the width of the score's 95 % interval, at most: it is the mean of those of its
    parts, which are measured on the same images. `is_high` tells whether its clean accuracy exceeds
    `export.min_clean`.
    """

    model: str
    score: float
    margin: float
    parts: dict[str, Result]
    is_high: bool

    @property
    def interval(self) -> tuple[float, float]:
        """Return the score's 95 % interval, within [0, 1]."""
        return max(0.0, self.score - self.margin), min(1.0, self.score + self.margin)


def rank(
    rule: Export, metrics: Mapping[str, Result], grids: Mapping[str, Sequence[Result]]
) -> list[Ranked]:
    """Return the models, the best first; none where a grid has no attack that the rule counts.

    Models whose clean accuracy does not exceed the floor come last.
    """
    found = []
    for model, judged in metrics.items():
        parts = {"clean": judged["clean"]} | _worst(rule, grids[model])
        if len(parts) < len(rule.score.weights):
            return []
        weights, total = rule.score.weights, sum(rule.score.weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        found.append(
            Ranked(
                model=model,
                score=sum(share * parts[name]["accuracy"] for name, share in shares.items()),
                margin=sum(share * _margin(parts[name]) for name, share in shares.items()),
                parts=parts,
                is_high=judged["clean"]["accuracy"] > rule.min_clean,
            )
        )
    return sorted(found, key=lambda one: (not one.is_high, -one.score))


def chosen(rule: Export, ranked: Sequence[Ranked]) -> str:
    """Return the name of the model to submit.

    Raises InputError where it is the best one, and nothing was ranked.
    """
    if rule.model != AUTO:
        return rule.model
    if not ranked:
        raise InputError(
            f"export.model: expected a name, found {AUTO}, which needs attacks of "
            "evaluate.grid up to export.score.max_eps"
        )
    return ranked[0].model


def n_candidates(rule: Export, ranked: Sequence[Ranked]) -> int:
    """Return from how many models the judged images chose the one to submit: 1 if it is named."""
    return len(ranked) if rule.model == AUTO else 1


def alike(ranked: Sequence[Ranked]) -> list[str]:
    """Return the models that the images cannot tell from the best one.

    For these, the 95 % interval of the difference of the scores holds 0.
    """
    best, *others = ranked
    return [
        one.model
        for one in others
        if one.is_high == best.is_high
        and best.score - one.score <= math.hypot(best.margin, one.margin)
    ]


def table(rule: Export, ranked: Sequence[Ranked]) -> list[str]:
    """Return the ranking as lines of text, and which models cannot be told from the best."""
    if not ranked:
        return []
    width = max(len(one.model) for one in ranked)
    weights = rule.score.weights
    weighted = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
    lines = [
        "ranking by export.score: mean of clean and of the grid's worst FGSM and PGD"
        + ("" if len(set(weights.values())) == 1 else f" (weights: {weighted})")
    ]
    for place, one in enumerate(ranked, 1):
        low, high = (100 * bound for bound in one.interval)
        parts = ", ".join(
            f"{name} {100 * part['accuracy']:.1f}" for name, part in one.parts.items()
        )
        floor = "" if one.is_high else "; not above export.min_clean"
        lines.append(
            f"  {place}. {one.model:<{width}} {100 * one.score:5.1f} % "
            f"(95 %: {low:.1f} to {high:.1f}): {parts}{floor}"
        )
    if others := alike(ranked):
        lines.append(
            f"  {', '.join(others)} cannot be told from {ranked[0].model} on so few images"
        )
    return lines


def read_grids(plots: Path, models: Sequence[str]) -> dict[str, list[Result]]:
    """Return the rows of each model's `grid.csv`. Raises InputError for what cannot be read."""
    return {model: _read(plots / model / "grid.csv") for model in models}


def _read(path: Path) -> list[Result]:
    numbers = ("eps", "accuracy", "low95", "high95")
    try:
        return [
            {"guess": row["guess"], **{key: float(row[key]) for key in numbers}}
            for row in files.read_csv(path)
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: cannot be read; `dvc repro` makes it") from error


def _worst(rule: Export, grid: Sequence[Result]) -> dict[str, Result]:
    """Return the lowest result of FGSM and of PGD that counts, where there is one."""
    inside = [row for row in grid if rule.score.covers(row["eps"])]
    kinds = {
        "fgsm": [row for row in inside if row["guess"] == FGSM],
        "pgd": [row for row in inside if row["guess"].startswith("PGD")],
    }
    return {
        name: min(rows, key=lambda row: float(row["accuracy"]))
        for name, rows in kinds.items()
        if rows
    }


def _margin(result: Result) -> float:
    return float(result["high95"] - result["low95"]) / 2
