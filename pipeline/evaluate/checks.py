"""Decide what the numbers of an evaluation show.

A check has a number, a limit, the number of images, and one of four results. What it counts is
binomial. It fails only if the count is more than chance (one time in a hundred) gives at the limit.
With 50 images, 5 or more exceed a limit of 2 %. With 1,000 images, 32 or more exceed it. It passes
only if the images exclude a fault that is ROOM greater than the limit, at 95 %. Otherwise the
images are too few to decide, and it is inconclusive.

This module defines all tolerances, and imports no torch. docs/evaluation.md explains them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.networks.scores import Mask

SIGNIFICANCE = 0.01
CONFIDENCE = 0.95
LIMIT = 0.02  # share of the images that small imperfections of a sound measurement may affect
# Share of the images that more steps or restarts may still fool after everything that was tried.
CONVERGED = 0.01
ROOM = 0.1  # a check passes only where its images exclude that its limit is exceeded by this much
ENOUGH = 220  # images; a check with that limit then sees a loss of 5 points nine times in ten
COLLAPSED = 0.6  # share of the clean images that withstand FGSM but not PGD
STATIC = 1 / 2  # robust accuracy below this share of the transfer accuracy
SAME_EPS = 1e-6  # levels of eps that are nearer are the same
GUESSING = 0.1  # share of the way from guessing to perfect that a clean accuracy must exceed
# A stored set is compared with a threat only if it was made at this share of its eps, or more.
COMPARABLE = 3 / 4
UNITS = (1 / 255, 1 / 2)  # an eps outside this range was meant in other units

STRONG, UPPER_BOUND, STATIC_ONLY, SUSPECT = "strong", "upper bound", "static only", "suspect"
TOO_FEW, NEAR_CHANCE = "too few images", "near chance"
FAR_ABOVE, HARDLY_ABOVE_GUESSING = "transfer_far_above_robust", "clean_hardly_above_guessing"

Result = Literal["passed", "failed", "inconclusive", "not run"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: its number, the limit, the number of images, and the result.

    `sign` tells on which side of the limit a sound number is. `n` is 0 where no images are counted.
    """

    value: float | None
    limit: float
    result: Result
    n: int = 0
    sign: Literal["<=", ">="] = "<="

    def as_metrics(self) -> dict[str, Any]:
        return {
            "value": None if self.value is None else round(self.value, 6),
            "limit": round(self.limit, 6),
            "sign": self.sign,
            "n": self.n,
            "verdict": self.result,
        }


NOT_RUN = Check(value=None, limit=0.0, result="not run")


def share(found: "Mask", limit: float = LIMIT) -> Check:
    """Check the share of images (n,) that show something against a limit.

    Without images it is not run.
    """
    from scipy.stats import binomtest

    if not len(found):
        return NOT_RUN
    count, n = int(found.sum()), len(found)
    return Check(
        value=count / n,
        limit=limit,
        result=_result(
            fails=binomtest(count, n, limit, alternative="greater").pvalue < SIGNIFICANCE,
            passes=_highest(count, n) <= limit + ROOM,
        ),
        n=n,
    )


def gain(standing: "Mask", before: "Mask", limit: float = LIMIT) -> Check:
    """Check the rise in accuracy on the same images (n,) against a limit.

    `standing` and `before` tell which images withstand now and which withstood before. The check
    fails if the rise exceeds the limit and is not chance, by the exact sign test on the images that
    changed. The greatest rise that the images allow is made from the intervals of those that rose
    and of those that fell.
    """
    from scipy.stats import binomtest

    up, down, n = int((standing & ~before).sum()), int((before & ~standing).sum()), len(standing)
    value = (up - down) / n
    greatest = value + math.hypot(_highest(up, n) - up / n, down / n - _lowest(down, n))
    return Check(
        value=value,
        limit=limit,
        result=_result(
            fails=value > limit
            and binomtest(up, up + down, alternative="greater").pvalue < SIGNIFICANCE,
            passes=greatest <= limit + ROOM,
        ),
        n=n,
    )


def units(all_eps: Sequence[float]) -> Check:
    """Check that every eps is between 1/255 and 1/2 of the range of a pixel.

    An eps outside that range was meant in other units. The check's number is how many there are.
    """
    low, high = UNITS
    count = sum(not low - 1e-9 <= eps <= high for eps in all_eps)
    return Check(value=float(count), limit=0.0, result="failed" if count else "passed")


def least_eps(transfer: Mapping[str, Any]) -> float:
    """Return the least eps of the images that a transfer accuracy is about, in [0, 1]."""
    return float(transfer.get("eps.least", transfer["eps"]))


def far_above(
    robust: Mapping[str, float], eps: float, transfer: Mapping[str, Mapping[str, Any]]
) -> Check:
    """Return robust accuracy as a share of transfer accuracy, the least over the comparable sets.

    A stored set is comparable if it was made against another model, each image at no less than
    COMPARABLE of the robust accuracy's eps. The check fails if robust accuracy is significantly
    below half of transfer accuracy. That is so if the 95 % interval of their difference excludes 0.
    It is made from the interval of each accuracy (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    sets = [
        result
        for result in transfer.values()
        if not result.get("made_against_this_model", True) and least_eps(result) >= COMPARABLE * eps
    ]
    if not sets:
        return NOT_RUN
    differences = [_difference(robust, result) for result in sets]
    return Check(
        value=min(robust["accuracy"] / max(result["accuracy"], 1e-9) for result in sets),
        limit=STATIC,
        result=_result(
            fails=any(highest < 0 for _, highest in differences),
            passes=all(lowest >= -ROOM for lowest, _ in differences),
        ),
        n=int(robust["n"]),
        sign=">=",
    )


def above_guessing(right: "Mask", labels: NDArray[np.int64]) -> Check:
    """Check that clean accuracy on images (n,) is well above that of guessing.

    Guessing means that the commonest class is the answer to every image. The check fails if the
    accuracy is significantly below the limit, and passes if its interval excludes the limit. The
    accuracy under attack of a network that guesses says nothing about robustness.
    """
    from scipy.stats import binomtest

    count, n = int(right.sum()), len(right)
    guessing = float(np.bincount(labels).max()) / n
    limit = guessing + GUESSING * (1 - guessing)
    return Check(
        value=count / n,
        limit=limit,
        result=_result(
            fails=binomtest(count, n, limit, alternative="less").pvalue < SIGNIFICANCE,
            passes=_lowest(count, n) > limit,
        ),
        n=n,
        sign=">=",
    )


def confirmed(robust: Mapping[str, Mapping[str, Any]]) -> bool:
    """Return whether APGD-CE and targeted APGD, or all of the ensemble, were tried.

    `robust` are the results of the attacks by their names. The ensemble has one eps, and no other
    attack may have a larger one, or leave significantly fewer images standing: the ensemble would
    then have been too weak.
    """
    tried = robust.get("ensemble") or robust.get("apgd")
    if tried is None or ("ensemble" not in robust and "left_out" in tried):
        return False
    threats = [one for one in robust.values() if "eps" in one]
    return all(
        one["eps"] <= tried["eps"] + SAME_EPS and one["high95"] >= tried["low95"] for one in threats
    )


def verdict(results: Mapping[str, Result], is_confirmed: bool) -> tuple[str, list[str]]:
    """Return the joint verdict of the checks on the headline, and which of them failed.

    `near chance`: clean accuracy is hardly above guessing. `static only`: robust accuracy is far
    below transfer accuracy. `suspect`: another check failed, so robust accuracy may be far too
    high. `too few images`: no check failed, and one or more could not decide. `strong`: every check
    passed, and APGD-CE and targeted APGD were tried, which `is_confirmed` tells. `upper bound`:
    every check passed, but these two attacks were not tried.
    """
    failed = [name for name, result in results.items() if result == "failed"]
    if HARDLY_ABOVE_GUESSING in failed:
        return NEAR_CHANCE, failed
    if FAR_ABOVE in failed:
        return STATIC_ONLY, failed
    if failed:
        return SUSPECT, failed
    if "inconclusive" in results.values():
        return TOO_FEW, failed
    return STRONG if is_confirmed else UPPER_BOUND, failed


def _result(*, fails: bool, passes: bool) -> Result:
    if fails:
        return "failed"
    return "passed" if passes else "inconclusive"


def _highest(count: int, n: int) -> float:
    """Return the greatest share that `count` of `n` allow (Clopper and Pearson, one-sided)."""
    from scipy.stats import binomtest

    return float(binomtest(count, n, alternative="less").proportion_ci(CONFIDENCE).high)


def _lowest(count: int, n: int) -> float:
    """Return the smallest share that `count` of `n` allow (Clopper and Pearson, one-sided)."""
    from scipy.stats import binomtest

    return float(binomtest(count, n, alternative="greater").proportion_ci(CONFIDENCE).low)


def _difference(robust: Mapping[str, float], transfer: Mapping[str, float]) -> tuple[float, float]:
    """Return the 95 % interval of robust minus half of transfer accuracy."""
    difference = robust["accuracy"] - STATIC * transfer["accuracy"]
    below = math.hypot(
        robust["accuracy"] - robust["low95"], STATIC * (transfer["high95"] - transfer["accuracy"])
    )
    above = math.hypot(
        robust["high95"] - robust["accuracy"], STATIC * (transfer["accuracy"] - transfer["low95"])
    )
    return difference - below, difference + above
