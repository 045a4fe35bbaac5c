"""Run AutoAttack's ensemble: each attack gets the images that withstood the ones before it.

With all members, 100 iterations and 9 targets it is AutoAttack's `standard` version with its
published settings (Croce and Hein, ICML 2020, and the code published with it). The members are APGD
on the cross-entropy, targeted APGD on the DLR loss, targeted FAB and Square. The targeted members
attack towards each of the likeliest wrong classes. Square has 5,000 queries and its own schedule.
Each member has one restart, and rho is 0.75.

The first two members, with few iterations, find nearly as much on an adversarially trained network
of the tests. The attacks are torchattacks'. Its own `AutoAttack` runs 10 iterations and another
schedule, so this module does not use it.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.attacks.params import Threat
from pipeline.base.store import Block
from pipeline.evaluate import params, whitebox
from pipeline.evaluate.target import Passes, Target
from pipeline.networks.scores import Mask

STANDARD = {"members": "all", "iterations": 100, "targets": 9}
QUERIES = 5000


def name(settings: params.Ensemble) -> str:
    """Return the name of the result: `apgd` for the first two members, `ensemble` for all."""
    return "apgd" if settings.members == "first_two" else "ensemble"


def threats(settings: params.Ensemble, eps: float) -> dict[str, Threat]:
    """Return each member's threat by its name, in the order of the attacks."""
    apgd = {"steps": settings.iterations, "n_restarts": 1, "eot_iter": 1, "rho": 0.75}
    entries: dict[str, dict[str, Any]] = {
        "apgd_ce": {"attack": "APGD", "loss": "ce", **apgd},
        "apgd_t": {"attack": "APGDT", **apgd},
    }
    if settings.members == "all":
        entries["fab_t"] = {
            "attack": "FAB",
            "steps": settings.iterations,
            "n_restarts": 1,
            "alpha_max": 0.1,
            "eta": 1.05,
            "beta": 0.9,
            "multi_targeted": True,
        }
        entries["square"] = {**whitebox.SQUARE, "n_queries": QUERIES, "resc_schedule": False}
    return {name: Threat.model_validate({**entry, "eps": eps}) for name, entry in entries.items()}


def left_out(settings: params.Ensemble, n_classes: int) -> list[str]:
    """Return the members that cannot attack a network of so few classes.

    The loss of targeted APGD compares four logits.
    """
    return [
        name for name, threat in threats(settings, 1.0).items() if threat.fewest_classes > n_classes
    ]


def withstands(
    target: Target, block: Block, settings: params.Ensemble, eps: float
) -> tuple[Mask, dict[str, Any]]:
    """Return which of a block's images (N,) withstand all members, and a record of the attack.

    The record holds its settings, the accuracy after each member, the passes, and the members that
    were left out.
    """
    standing = target.is_right(block)
    details: dict[str, Any] = {}
    passes = Passes()
    skipped = left_out(settings, target.n_classes)
    for member, threat in threats(settings, eps).items():
        if member in skipped:
            continue
        # torchattacks targets all classes except one.
        aimed = replace(target, n_classes=min(target.n_classes, settings.targets + 1))
        outcome = whitebox.withstands(aimed, block, threat, f"judge by {member}", standing)
        standing = outcome.standing
        passes.add(outcome.passes)
        details[f"after_{member}"] = round(float(np.mean(standing)), 6)
    return standing, {
        **recorded(settings, eps, target.n_classes), **details, **passes.as_metrics()
    }  # fmt: skip


def recorded(settings: params.Ensemble, eps: float, n_classes: int) -> dict[str, Any]:
    """Return what the record of an attack says of its settings, and of members left out."""
    found: dict[str, Any] = {"attack": described(settings), "eps": eps}
    if skipped := left_out(settings, n_classes):
        found["left_out"] = f"{skipped[0]}: its loss compares four classes, there are {n_classes}"
    return found


def described(settings: params.Ensemble) -> str:
    """Return the members and their settings in words."""
    names = (
        "APGD-CE, APGD-T" if settings.members == "first_two" else "APGD-CE, APGD-T, FAB-T, Square"
    )
    if all(getattr(settings, key) == value for key, value in STANDARD.items()):
        return f"{names} at AutoAttack's standard settings, through torchattacks"
    return (
        f"{names}, {settings.iterations} iterations, {settings.targets} target classes,"
        " through torchattacks"
    )
