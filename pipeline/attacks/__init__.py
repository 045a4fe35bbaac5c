"""Attacks on networks, and adversarial images as they are stored."""

from pipeline.attacks.ascent import LOSSES, ascend, margin
from pipeline.attacks.library import build, perturb, scaled
from pipeline.attacks.stored import eps_levels, identity, passes, quantise, versions

__all__ = ["LOSSES", "ascend", "build", "eps_levels", "identity", "margin", "passes", "perturb", "quantise", "scaled", "versions"]
