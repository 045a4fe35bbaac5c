"""Provides attacks on networks, and the form in which adversarial images are stored."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.attacks.ascent import LOSSES as LOSSES
    from pipeline.attacks.ascent import Ascent as Ascent
    from pipeline.attacks.ascent import margin as margin
    from pipeline.attacks.library import build as build
    from pipeline.attacks.library import perturb as perturb
    from pipeline.attacks.library import scaled as scaled
    from pipeline.attacks.stored import eps_levels as eps_levels
    from pipeline.attacks.stored import identity as identity
    from pipeline.attacks.stored import passes as passes
    from pipeline.attacks.stored import quantise as quantise
    from pipeline.attacks.stored import versions as versions

# Where each public name is defined. A name is imported on first use, so that reading the params of
# this folder does not import torch.
HOMES = {
    name: home
    for home, names in {
        "ascent": "LOSSES Ascent margin",
        "library": "build perturb scaled",
        "stored": "eps_levels identity passes quantise versions",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
