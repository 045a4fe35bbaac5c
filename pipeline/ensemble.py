"""The standard strong ensemble: four different attacks, each on the images that the ones before it left standing.

They are those of AutoAttack's `standard` version with its published settings (Croce and Hein, ICML 2020, and the code it came with):
APGD on the cross-entropy, 100 iterations; targeted APGD on the DLR loss, 100 iterations towards each of the 9 likeliest wrong classes;
targeted FAB, 100 iterations towards the same classes; Square with 5,000 queries and its own schedule; one restart each, rho 0.75. The
attacks are torchattacks', whose own `AutoAttack` runs 10 iterations and another schedule and is not used here.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline import params, whitebox
from pipeline.store import Block
from pipeline.whitebox import Mask, Passes, Target

ITERATIONS, QUERIES = 100, 5000
TARGETS = 9  # wrong classes that the targeted attacks aim at
NAME = "APGD-CE, APGD-T, FAB-T, Square at AutoAttack's standard settings, through torchattacks"


def threats(eps: float) -> dict[str, params.Threat]:
    """The four attacks in their order; eps in units of pixels in [0, 1]."""
    apgd = {"steps": ITERATIONS, "n_restarts": 1, "eot_iter": 1, "rho": 0.75}
    entries: dict[str, dict[str, Any]] = {
        "apgd_ce": {"attack": "APGD", "loss": "ce", **apgd},
        "apgd_t": {"attack": "APGDT", **apgd},
        "fab_t": {
            "attack": "FAB", "steps": ITERATIONS, "n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "multi_targeted": True,
        },
        "square": {"attack": "Square", "n_queries": QUERIES, "n_restarts": 1, "p_init": 0.8, "loss": "margin", "resc_schedule": False},
    }  # fmt: skip
    return {name: params.Threat.model_validate({**entry, "eps": eps, "restarts": 1}) for name, entry in entries.items()}


def withstands(target: Target, block: Block, members: dict[str, params.Threat]) -> tuple[Mask, dict[str, Any]]:
    """Which of a block's images (N,) stand after all members, and the accuracy and the passes after each of them.

    Targeted APGD compares four logits: with fewer classes it is left out, and the result says so.
    """
    standing = target.is_right(block)
    details: dict[str, Any] = {}
    passes = Passes(target.network)
    for name, threat in members.items():
        if threat.fewest_classes > target.n_classes:
            details["left_out"] = f"{name}: its loss compares four classes, there are {target.n_classes}"
            continue
        # torchattacks aims at all classes but one; the standard, at the likeliest nine.
        aimed = replace(target, n_classes=min(target.n_classes, TARGETS + 1))
        outcome = whitebox.withstands(aimed, block, threat, f"judge by {name}", standing)
        standing = outcome.standing
        passes.forward, passes.backward = passes.forward + outcome.passes.forward, passes.backward + outcome.passes.backward
        details[f"after_{name}"] = round(float(np.mean(standing)), 6)
    return standing, {"attack": NAME, **details, **passes.as_metrics()}
