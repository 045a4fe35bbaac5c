"""Lists the parameters of each L-infinity attack of torchattacks 3.5.1 and their allowed values."""

import math
from dataclasses import dataclass
from typing import Literal

# What each L-infinity attack of torchattacks 3.5.1 asks for. All of it must be written down, so
# that params.yaml describes the whole attack. `tests/test_params.py` checks this table against the
# constructors' signatures.
MOMENTUM = ("alpha", "steps", "decay")
ATTACK_PARAMETERS: dict[str, tuple[str, ...]] = {
    "FGSM": (),
    "FFGSM": ("alpha",),
    "RFGSM": ("alpha", "steps"),
    "BIM": ("alpha", "steps"),
    "PGD": ("alpha", "steps", "random_start"),
    "TPGD": ("alpha", "steps"),
    "EOTPGD": ("alpha", "steps", "eot_iter", "random_start"),
    "UPGD": ("alpha", "steps", "random_start", "loss", "decay", "eot_iter"),
    "MIFGSM": MOMENTUM,
    "NIFGSM": MOMENTUM,
    "SINIFGSM": (*MOMENTUM, "m"),
    "VMIFGSM": (*MOMENTUM, "N", "beta"),
    "VNIFGSM": (*MOMENTUM, "N", "beta"),
    "DIFGSM": (*MOMENTUM, "resize_rate", "diversity_prob", "random_start"),
    "TIFGSM": (
        *MOMENTUM,
        "kernel_name",
        "len_kernel",
        "nsig",
        "resize_rate",
        "diversity_prob",
        "random_start",
    ),
    "Jitter": ("alpha", "steps", "scale", "std", "random_start"),
    "APGD": ("steps", "n_restarts", "loss", "eot_iter", "rho"),
    "APGDT": ("steps", "n_restarts", "eot_iter", "rho"),
    "FAB": ("steps", "n_restarts", "alpha_max", "eta", "beta", "multi_targeted"),
    "Square": ("n_queries", "n_restarts", "p_init", "loss", "resc_schedule"),
    "AutoAttack": ("version",),
    "PGDRS": ("alpha", "steps", "noise_type", "noise_sd", "noise_batch_size", "batch_max"),
    "PIFGSM": ("num_iter_set", "momentum", "amplification", "prob"),
    "PIFGSMPP": ("num_iter_set", "momentum", "amplification", "prob", "project_factor"),
    "SPSA": ("delta", "lr", "nb_iter", "nb_sample", "max_batch_size"),
}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers that a parameter of an attack may be.

    An infinite bound is no bound.
    """

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    kind: Literal["a number", "a whole number", "an odd number"] = "a number"

    def hold(self, value: object) -> bool:
        """Return whether a value is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
            return False
        if self.kind != "a number" and not isinstance(value, int):
            return False
        return (
            self.least <= value <= self.most
            and self.above < value < self.below
            and (self.kind != "an odd number" or value % 2 == 1)
        )

    def __str__(self) -> str:
        bounds = {
            "of at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        named = " and ".join(
            f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound)
        )
        return f"{self.kind} {named}"


@dataclass(frozen=True)
class Words:
    """The words that a parameter of an attack may be."""

    words: tuple[str, ...]

    def hold(self, value: object) -> bool:
        """Return whether a value is one of these words."""
        return value in self.words

    def __str__(self) -> str:
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"


class Flag:
    """The truth values, for a parameter of an attack that must be one."""

    def hold(self, value: object) -> bool:
        """Return whether a value is a truth value."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


COUNT, SHARE, POSITIVE = (
    Numbers(least=1, kind="a whole number"),
    Numbers(least=0, most=1),
    Numbers(above=0),
)
# What each parameter may be, so that torchattacks 3.5.1 runs and does what its paper says. The key
# is the parameter's name, or (attack, name) where attacks differ. `parse_step` reads the step size
# `alpha`.
VALUES: dict[str | tuple[str, str], Numbers | Words | Flag] = {
    **dict.fromkeys(
        (
            "steps",
            "n_restarts",
            "n_queries",
            "eot_iter",
            "N",
            "nb_iter",
            "nb_sample",
            "max_batch_size",
        ),
        COUNT,
    ),
    **dict.fromkeys(("num_iter_set", "noise_batch_size", "batch_max"), COUNT),
    **dict.fromkeys(("random_start", "multi_targeted", "resc_schedule"), Flag()),
    **dict.fromkeys(("decay", "momentum", "diversity_prob", "prob", "alpha_max"), SHARE),
    **dict.fromkeys(("scale", "amplification", "lr"), POSITIVE),
    **dict.fromkeys(("std", "noise_sd", "project_factor"), Numbers(least=0)),
    **dict.fromkeys(("rho", "p_init"), Numbers(above=0, most=1)),
    # Images are divided by powers of two, which are 64-bit integers.
    "m": Numbers(least=1, most=62, kind="a whole number"),
    # An even kernel shifts the gradient.
    "len_kernel": Numbers(least=1, most=255, kind="an odd number"),
    "nsig": Numbers(above=0, most=10),
    # At least one of 8 pixels remains. Networks take no image larger than the data's.
    "resize_rate": Numbers(least=0.125, below=1),
    "eta": Numbers(least=1),
    "delta": Numbers(least=1e-6, most=1),  # less is lost in float32
    "kernel_name": Words(("gaussian", "linear", "uniform")),
    # The second word is torchattacks' spelling of the first.
    "noise_type": Words(("gaussian", "guassian", "uniform")),
    "version": Words(("standard", "plus", "rand")),
    ("APGD", "loss"): Words(("ce", "dlr")),
    ("UPGD", "loss"): Words(("ce", "dlr", "margin")),
    ("Square", "loss"): Words(("ce", "margin")),
    ("FAB", "beta"): Numbers(above=0, most=1),
    ("VMIFGSM", "beta"): Numbers(least=0),
    ("VNIFGSM", "beta"): Numbers(least=0),
}
