"""Provides attacks on networks, and the form in which adversarial images are stored."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.attacks.ascent import LOSSES, Ascent, ascend, margin
    from pipeline.attacks.library import build, perturb, scaled
    from pipeline.attacks.stored import eps_levels, identity, passes, quantise, versions

# Where each public name is defined. A name is imported on first use, so that reading the params of
# this folder does not import torch.
HOMES = {
    "LOSSES": "ascent",
    "Ascent": "ascent",
    "ascend": "ascent",
    "margin": "ascent",
    "build": "library",
    "perturb": "library",
    "scaled": "library",
    "eps_levels": "stored",
    "identity": "stored",
    "passes": "stored",
    "quantise": "stored",
    "versions": "stored",
}
__all__ = [
    "LOSSES",
    "Ascent",
    "ascend",
    "build",
    "eps_levels",
    "identity",
    "margin",
    "passes",
    "perturb",
    "quantise",
    "scaled",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
