"""Whether a robust accuracy can be believed: the ways in which it comes out too high, each with a number, a limit and a verdict.

After the check lists of Athalye et al. (ICML 2018, section 3.1), Carlini et al. ("On Evaluating Adversarial Robustness", 2019) and Croce et
al. (ICML 2022, on evaluations that need more than a standard ensemble). docs/evaluation.md tells what each check means.

All tolerances stand here. A check looks at n images, so what it counts is binomial: it fails only where the count is more than chance (one
time in a hundred) gives at the limit. With 50 images a limit of 2 % is exceeded by 5 images or more, with 1,000 by 32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline import params, whitebox
from pipeline.store import SPLITS, Block
from pipeline.sweeps import Curves
from pipeline.whitebox import Mask, Target

SIGNIFICANCE = 0.01
LIMIT = 0.02  # of the images: what a sound measurement may show by its own small imperfections
CONVERGED = 0.05  # of the images: what more steps or restarts of a sound attack may still find
COLLAPSED = 0.6  # of the clean images: FGSM leaves them standing and PGD does not
STATIC = 1 / 3  # robust accuracy below this share of the transfer accuracy
COMPARABLE = 3 / 4  # of the threat's eps: the least at which a stored set was made to be held against it
UNITS = (1 / 255, 1 / 2)  # an eps outside of these was meant in other units

TRUSTWORTHY, SUSPECT, STATIC_ONLY = "trustworthy", "suspect", "static only"
FAR_ABOVE = "transfer_far_above_robust"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: its number, the limit, and whether it passed; `passed` is None where there was nothing to check."""

    value: float | None
    limit: float
    passed: bool | None

    def as_metrics(self) -> dict[str, Any]:
        verdict = "not run" if self.passed is None else "passed" if self.passed else "failed"
        value = None if self.value is None else round(self.value, 6)
        return {"value": value, "limit": round(self.limit, 6), "verdict": verdict}


NOT_RUN = Check(value=None, limit=0.0, passed=None)


def share(found: Mask, limit: float = LIMIT) -> Check:
    """The share of images (n,) that show something, held to a limit that chance may exceed one time in a hundred."""
    from scipy.stats import binomtest

    if not len(found):
        return NOT_RUN
    more = binomtest(int(found.sum()), len(found), limit, alternative="greater").pvalue < SIGNIFICANCE
    return Check(value=float(found.mean()), limit=limit, passed=not more)


def gain(standing: Mask, before: Mask, limit: float = LIMIT) -> Check:
    """By how much more of the same images (n,) stand than before, in accuracy; chance by the exact sign test on those that changed."""
    from scipy.stats import binomtest

    up, down = int((standing & ~before).sum()), int((before & ~standing).sum())
    value = (up - down) / len(standing)
    more = value > limit and binomtest(up, up + down, alternative="greater").pvalue < SIGNIFICANCE
    return Check(value=value, limit=limit, passed=not more)


def none_of(count: int) -> Check:
    """A number that must be 0."""
    return Check(value=float(count), limit=0.0, passed=count == 0)


def verdict(checks: Mapping[str, Check]) -> tuple[str, list[str]]:
    """What the checks say together, and which of them failed.

    `trustworthy`: none failed. `static only`: the measurement is sound, and transfer accuracy is far above robust accuracy. `suspect`: a
    robust accuracy may be too high.
    """
    failed = [name for name, check in checks.items() if check.passed is False]
    return TRUSTWORTHY if not failed else STATIC_ONLY if failed == [FAR_ABOVE] else SUSPECT, failed


def diagnose(
    target: Target,
    block: Block,
    curves: Curves,
    threat: params.Threat,
    queries: int,
    stored: Mapping[str, Block],
) -> dict[str, Check]:
    """The checks of a measurement by `threat`, a PGD, whose curves on the images of `block` are given.

    `stored` are adversarial counterparts of `block`, row by row, within the threat's eps. The two checks that need other numbers are
    `units` and `far_above`.
    """
    clean, white_box = target.is_right(block), curves.restarts[threat.restarts]
    steps, most = threat.parameters["steps"], max(curves.steps)
    pgd, after_fgsm = curves.steps[steps], _right_after_fgsm(target, block, threat)
    transferred = np.logical_or.reduce([white_box & ~target.is_right(images) for images in stored.values()] or [~white_box & white_box])
    outputs, repeated = _logits(target, block), _logits(target, block)
    return {
        "fgsm_stronger_than_pgd": gain(pgd, after_fgsm & clean),
        "fgsm_above_clean": gain(after_fgsm, clean),
        "fgsm_far_above_pgd": share((after_fgsm & clean & ~pgd)[clean], COLLAPSED),
        "black_box_finds_more": share(white_box & ~_withstands_square(target, block, threat.eps, queries, white_box)),
        "transfer_finds_more": share(transferred) if stored else NOT_RUN,
        "stands_at_eps_1": share(curves.eps[1.0]),
        "gradients_zero_or_not_finite": share(_without_gradient(target, block)),
        "more_steps_raise_accuracy": _greatest_rise(curves.steps),
        "more_steps_find_more": gain(pgd, curves.steps[most], CONVERGED),
        "more_restarts_find_more": gain(white_box, curves.restarts[max(curves.restarts)], CONVERGED),
        "outputs_are_probabilities": share((outputs >= 0).all(1) & (abs(outputs.sum(1) - 1) < 1e-3)),
        "outputs_are_random": share(abs(outputs - repeated).max(1) > 1e-3 * (1e-6 + abs(outputs).max(1))),
        "judged_images_not_held_out": none_of(int((block.split != SPLITS["val"]).sum())),
    }


def units(threats: Mapping[str, float]) -> Check:
    """How many threats, given by their eps, have one that cannot be meant: below 1/255 or above 1/2 of the range of a pixel."""
    low, high = UNITS
    return none_of(sum(not low - 1e-9 <= eps <= high for eps in threats.values()))


def far_above(robust: Mapping[str, Any], eps: float, transfer: Mapping[str, Mapping[str, Any]]) -> Check:
    """Robust accuracy as a share of transfer accuracy, the least over the stored sets that can be compared.

    Those were made against another model, at the eps of the robust accuracy or not much less. Fails where even the upper end of the one's
    interval is below a third of the lower end of the other's.
    """
    sets = [result for result in transfer.values() if not result.get("made_against_this_model", True) and result["eps"] >= COMPARABLE * eps]
    if not sets:
        return NOT_RUN
    value = min(robust["accuracy"] / max(result["accuracy"], 1e-9) for result in sets)
    return Check(value=value, limit=STATIC, passed=all(robust["high95"] >= STATIC * result["low95"] for result in sets))


def _right_after_fgsm(target: Target, block: Block, threat: params.Threat) -> Mask:
    """Which images (N,), clean mistakes among them, the network gets right after FGSM at the threat's eps."""
    fgsm = params.Threat.model_validate({"attack": "FGSM", "eps": threat.eps, "restarts": 1})
    return whitebox.withstands(target, block, fgsm, "check: FGSM", np.ones(len(block), dtype=bool)).standing


def _withstands_square(target: Target, block: Block, eps: float, queries: int, standing: Mask) -> Mask:
    """Which of the standing images (N,) a black-box attack, which sees no gradient, leaves standing."""
    entry = {"attack": "Square", "n_queries": queries, "n_restarts": 1, "p_init": 0.8, "loss": "margin", "resc_schedule": True}
    square = params.Threat.model_validate({**entry, "eps": eps, "restarts": 1})
    return whitebox.withstands(target, block, square, "check: Square", standing).standing


def _without_gradient(target: Target, block: Block) -> Mask:
    """For which images (N,) the loss that attacks climb has a gradient of zeros, or one that is not finite."""
    found = np.zeros(len(block), dtype=bool)
    for _, rows in target.batches(~found):
        images, labels = target.tensors(block, rows)
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(target.network(images), labels), images)
        flat = gradient.flatten(1)
        found[rows] = ((flat == 0).all(1) | ~flat.isfinite().all(1)).cpu().numpy()
    return found


def _logits(target: Target, block: Block) -> NDArray[np.float32]:
    """The network's outputs (N, n_classes) for a block's images."""
    with torch.inference_mode():
        parts = [
            target.network(target.tensors(block, rows)[0]).float().cpu() for _, rows in target.batches(np.ones(len(block), dtype=bool))
        ]
    outputs: NDArray[np.float32] = torch.cat(parts).numpy()
    return outputs


def _greatest_rise(by_steps: Mapping[int, Mask]) -> Check:
    """Each number of steps against the fewer ones that left the least standing: more steps of a sound attack do not lose ground."""
    counts = sorted(by_steps)
    rises = [
        gain(by_steps[count], min((by_steps[fewer] for fewer in counts[:place]), key=lambda standing: int(standing.sum())))
        for place, count in enumerate(counts[1:], 1)
    ]
    return max(rises, key=lambda rise: (rise.passed is False, rise.value))
