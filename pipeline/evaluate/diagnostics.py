"""Check whether a robust accuracy can be believed.

Each way in which a robust accuracy comes out too high has a check. A check has a number, a limit
and a verdict. The checks follow the lists of Athalye et al. (ICML 2018, section 3.1), Carlini et
al. ("On Evaluating Adversarial Robustness", 2019) and Croce et al. (ICML 2022, on evaluations that
need more than a standard ensemble). docs/evaluation.md explains what each check means.

This module defines all tolerances. A check looks at n images, so what it counts is binomial. It
fails only if the count is more than chance (one time in a hundred) gives at the limit. With 50
images, 5 or more exceed a limit of 2 %. With 1,000 images, 32 or more exceed it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.attacks.params import Threat
from pipeline.base.store import SPLITS, Block
from pipeline.evaluate import params, whitebox
from pipeline.evaluate.sweeps import Curves
from pipeline.evaluate.whitebox import Target
from pipeline.networks.scores import Mask

SIGNIFICANCE = 0.01
LIMIT = 0.02  # share of the images that small imperfections of a sound measurement may affect
# Share of the images that more steps or restarts may still fool after everything that was tried.
CONVERGED = 0.01
ENOUGH = 220  # images; a check with that limit then sees a loss of 5 points nine times in ten
COLLAPSED = 0.6  # share of the clean images that withstand FGSM but not PGD
STATIC = 1 / 2  # robust accuracy below this share of the transfer accuracy
# A stored set is compared with a threat only if it was made at this share of its eps, or more.
COMPARABLE = 3 / 4
UNITS = (1 / 255, 1 / 2)  # an eps outside this range was meant in other units

STRONG, UPPER_BOUND, STATIC_ONLY, SUSPECT = "strong", "upper bound", "static only", "suspect"
FAR_ABOVE = "transfer_far_above_robust"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: its number, the limit, and whether it passed.

    `passed` is None if there was nothing to check.
    """

    value: float | None
    limit: float
    passed: bool | None

    def as_metrics(self) -> dict[str, Any]:
        verdict = "not run" if self.passed is None else "passed" if self.passed else "failed"
        value = None if self.value is None else round(self.value, 6)
        return {"value": value, "limit": round(self.limit, 6), "verdict": verdict}


NOT_RUN = Check(value=None, limit=0.0, passed=None)


def share(found: Mask, limit: float = LIMIT) -> Check:
    """Check the share of images (n,) that show something against a limit.

    The check fails if chance gives that share at the limit less than one time in a hundred. Without
    images it is not run.
    """
    from scipy.stats import binomtest

    if not len(found):
        return NOT_RUN
    more = (
        binomtest(int(found.sum()), len(found), limit, alternative="greater").pvalue < SIGNIFICANCE
    )
    return Check(value=float(found.mean()), limit=limit, passed=not more)


def gain(standing: Mask, before: Mask, limit: float = LIMIT) -> Check:
    """Check the rise in accuracy on the same images (n,) against a limit.

    `standing` and `before` tell which images withstand now and which withstood before. The check
    fails if the rise exceeds the limit and is not chance, by the exact sign test on the images that
    changed.
    """
    from scipy.stats import binomtest

    up, down = int((standing & ~before).sum()), int((before & ~standing).sum())
    value = (up - down) / len(standing)
    more = value > limit and binomtest(up, up + down, alternative="greater").pvalue < SIGNIFICANCE
    return Check(value=value, limit=limit, passed=not more)


def none_of(count: int) -> Check:
    """Check that a number is 0."""
    return Check(value=float(count), limit=0.0, passed=count == 0)


def verdict(checks: Mapping[str, Check], confirmed: bool) -> tuple[str, list[str]]:
    """Return the joint verdict of the checks on the headline, and which of them failed.

    `static only`: robust accuracy is far below transfer accuracy. `suspect`: another check failed,
    so robust accuracy may be far too high. `strong`: no check failed, and APGD-CE and targeted APGD
    were tried, which `confirmed` tells. `upper bound`: no check failed, but these two attacks were
    not tried.
    """
    failed = [name for name, check in checks.items() if check.passed is False]
    if FAR_ABOVE in failed:
        return STATIC_ONLY, failed
    if failed:
        return SUSPECT, failed
    return STRONG if confirmed else UPPER_BOUND, failed


def diagnose(
    target: Target,
    block: Block,
    curves: Curves,
    threat: Threat,
    queries: int,
    stored: Mapping[str, Block],
) -> dict[str, Check]:
    """Return the checks of a measurement by `threat`, a PGD.

    `curves` are that threat's curves on the images of `block`. `stored` are adversarial
    counterparts of `block`, row by row, within the threat's eps. The checks that need other numbers
    are `converged`, `units` and `far_above`.
    """
    clean, white_box = target.is_right(block), curves.restarts[threat.restarts]
    pgd, after_fgsm = (
        curves.steps[threat.parameters["steps"]],
        _right_after_fgsm(target, block, threat),
    )
    transferred = np.logical_or.reduce(
        [white_box & ~target.is_right(images) for images in stored.values()]
        or [~white_box & white_box]
    )
    outputs, repeated = _logits(target, block), _logits(target, block)
    return {
        "fgsm_stronger_than_pgd": gain(pgd, after_fgsm & clean),
        "fgsm_above_clean": gain(after_fgsm, clean),
        "fgsm_far_above_pgd": share((after_fgsm & clean & ~pgd)[clean], COLLAPSED),
        "black_box_finds_more": share(
            white_box & ~_withstands_square(target, block, threat.eps, queries, white_box)
        ),
        "transfer_finds_more": share(transferred) if stored else NOT_RUN,
        "stands_at_eps_1": share(curves.eps[1.0]),
        "gradients_zero_or_not_finite": share(_without_gradient(target, block)),
        "more_steps_raise_accuracy": _greatest_rise(curves.steps),
        "outputs_are_probabilities": share(
            (outputs >= 0).all(1) & (abs(outputs.sum(1) - 1) < 1e-3)
        ),
        "outputs_are_random": share(
            abs(outputs - repeated).max(1) > 1e-3 * (1e-6 + abs(outputs).max(1))
        ),
        "judged_images_not_held_out": none_of(int((block.split != SPLITS["val"]).sum())),
    }


def converged(
    target: Target, block: Block, found: Mask, threat: Threat, settings: params.Curves
) -> dict[str, Check]:
    """Return what more steps and restarts of a PGD threat find beyond all attacks already tried.

    `found` tells which images (n,) of `block` withstood those attacks, which were in the threat's
    eps ball.
    """
    entry, restarts = threat.model_dump(), settings.restarts - threat.restarts
    varied = {
        "more_steps_find_more": {**entry, "steps": settings.steps[-1], "restarts": 1},
        "more_restarts_find_more": {**entry, "restarts": restarts},
    }
    checks = {}
    for name, values in varied.items():
        after = whitebox.withstands(
            target, block, Threat.model_validate(values), f"check: {name}", found
        ).standing
        checks[name] = share(found & ~after, CONVERGED)
    return checks


def units(all_eps: Sequence[float]) -> Check:
    """Check that every eps is between 1/255 and 1/2 of the range of a pixel.

    An eps outside that range was meant in other units. The check's number is how many there are.
    """
    low, high = UNITS
    return none_of(sum(not low - 1e-9 <= eps <= high for eps in all_eps))


def far_above(
    robust: Mapping[str, float], eps: float, transfer: Mapping[str, Mapping[str, Any]]
) -> Check:
    """Return robust accuracy as a share of transfer accuracy, the least over the comparable sets.

    A stored set is comparable if it was made against another model, at no less than COMPARABLE of
    the robust accuracy's eps. The check fails if robust accuracy is significantly below half of
    transfer accuracy. That is so if the 95 % interval of their difference excludes 0. It is made
    from the interval of each accuracy (Zou and Donner, Statistics in Medicine 27, 2008).
    """
    sets = [
        result
        for result in transfer.values()
        if not result.get("made_against_this_model", True) and result["eps"] >= COMPARABLE * eps
    ]
    if not sets:
        return NOT_RUN
    value = min(robust["accuracy"] / max(result["accuracy"], 1e-9) for result in sets)
    return Check(
        value=value,
        limit=STATIC,
        passed=all(_highest_difference(robust, result) >= 0 for result in sets),
    )


def _highest_difference(robust: Mapping[str, float], transfer: Mapping[str, float]) -> float:
    """Return the upper end of the 95 % interval of robust minus half of transfer accuracy."""
    above, below = (
        robust["high95"] - robust["accuracy"],
        STATIC * (transfer["accuracy"] - transfer["low95"]),
    )
    return robust["accuracy"] - STATIC * transfer["accuracy"] + math.hypot(above, below)


def _right_after_fgsm(target: Target, block: Block, threat: Threat) -> Mask:
    """Return which images (N,) the network gets right after FGSM at the threat's eps.

    FGSM also attacks the images that the network gets wrong without an attack.
    """
    fgsm = Threat.model_validate({"attack": "FGSM", "eps": threat.eps, "restarts": 1})
    return whitebox.withstands(
        target, block, fgsm, "check: FGSM", np.ones(len(block), dtype=bool)
    ).standing


def _withstands_square(
    target: Target, block: Block, eps: float, queries: int, standing: Mask
) -> Mask:
    """Return which of the standing images (N,) withstand a black-box attack without gradients."""
    entry = {
        "attack": "Square",
        "n_queries": queries,
        "n_restarts": 1,
        "p_init": 0.8,
        "loss": "margin",
        "resc_schedule": True,
    }
    square = Threat.model_validate({**entry, "eps": eps, "restarts": 1})
    return whitebox.withstands(target, block, square, "check: Square", standing).standing


def _without_gradient(target: Target, block: Block) -> Mask:
    """Return for which images (N,) the loss that attacks climb has no usable gradient.

    Such a gradient consists of zeros, or it is not finite.
    """
    found = np.zeros(len(block), dtype=bool)
    for _, rows in target.batches(~found):
        images, labels = target.tensors(block, rows)
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(
            functional.cross_entropy(target.network(images), labels), images
        )
        flat = gradient.flatten(1)
        found[rows] = ((flat == 0).all(1) | ~flat.isfinite().all(1)).cpu().numpy()
    return found


def _logits(target: Target, block: Block) -> NDArray[np.float32]:
    """Return the network's outputs (N, n_classes) for a block's images."""
    with torch.inference_mode():
        parts = [
            target.network(target.tensors(block, rows)[0]).float().cpu()
            for _, rows in target.batches(np.ones(len(block), dtype=bool))
        ]
    outputs: NDArray[np.float32] = torch.cat(parts).numpy()
    return outputs


def _greatest_rise(by_steps: Mapping[int, Mask]) -> Check:
    """Return the greatest rise in accuracy from fewer steps to more.

    Each number of steps is compared with the fewer ones that left the fewest images standing. More
    steps of a sound attack do not raise accuracy.
    """
    counts = sorted(by_steps)
    rises = [
        gain(
            by_steps[count],
            min(
                (by_steps[fewer] for fewer in counts[:place]),
                key=lambda standing: int(standing.sum()),
            ),
        )
        for place, count in enumerate(counts[1:], 1)
    ]
    return max(rises, key=lambda rise: (rise.passed is False, rise.value))
