"""Defines the sections `attacks` and `generate` of `params.yaml`, and the attacks of judges."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from pipeline.attacks.parameters import ATTACK_PARAMETERS, VALUES, Words
from pipeline.base.errors import InputError
from pipeline.base.values import (
    Count,
    Eps,
    Level,
    Precision,
    Section,
    Seed,
    Spread,
    greatest,
    parse_step,
    spelled,
    step_size,
    suggestion,
)

# The attacks that return an image that they do not fool as it was.
SPARING = ("APGD", "APGDT", "FAB", "Square", "AutoAttack")


class Attack(Section):
    """A torchattacks L-infinity attack with every parameter that it takes.

    `ATTACK_PARAMETERS` names the parameters.
    """

    model_config = ConfigDict(extra="allow")
    attack: str
    eps: Eps

    @property
    def parameters(self) -> dict[str, Any]:
        """What the attack's constructor is given, by its own names.

        For a distribution of eps, this is the greatest eps. A step is at most 1: a longer one ends
        at the same pixels.
        """
        extra, eps = self.model_extra or {}, greatest(self.eps)
        step = (
            {"alpha": min(1.0, step_size(extra["alpha"], eps, extra.get("steps", 1)))}
            if "alpha" in extra
            else {}
        )
        return {"eps": eps, **extra, **step}

    @property
    def resolved(self) -> Self:
        """The same attack with alpha as a number, where it is written as a share of eps."""
        return self.model_copy(update=self.parameters)

    def at(self, eps: float) -> Self:
        """Return the same attack with one eps for all images."""
        return self.model_copy(update={"eps": eps})

    @property
    def fewest_classes(self) -> int:
        """The number of classes that the loss compares.

        The DLR loss divides by a difference to the third-largest logit. The targeted one divides by
        a difference to the fourth-largest.
        """
        extra = self.model_extra or {}
        if self.attack == "APGDT" or extra.get("version") in ("standard", "plus"):
            return 4
        return 3 if extra.get("loss") == "dlr" or extra.get("version") == "rand" else 2

    @property
    def described(self) -> dict[str, str | int | float | bool]:
        """The parameters as plain values, to be stored with what the attack gives."""
        eps = (
            json.dumps(self.eps.model_dump(exclude_none=True))
            if isinstance(self.eps, Spread)
            else self.eps
        )
        return {"eps": eps, **(self.model_extra or {})}

    @model_validator(mode="before")
    @classmethod
    def _check_parameters(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or "attack" not in entry:
            return entry
        entry = {**entry, "attack": spelled(entry["attack"], ATTACK_PARAMETERS)}
        wanted = (
            ATTACK_PARAMETERS.get(entry["attack"]) if isinstance(entry["attack"], str) else None
        )
        if wanted is None:
            raise ValueError(
                f"attack: expected one of {', '.join(ATTACK_PARAMETERS)}, "
                f"found {entry['attack']!r}{suggestion(entry['attack'], ATTACK_PARAMETERS)}"
            )
        known = {*wanted, *cls.model_fields}
        for key in entry.keys() - known:
            raise ValueError(
                f"{key}: expected only {', '.join(sorted(known))} for {entry['attack']}, "
                f"found {key!r}{suggestion(key, known)}"
            )
        for key in wanted:
            if key not in entry:
                raise ValueError(
                    f"{key}: expected a value, "
                    f"{entry['attack']} takes {', '.join(('eps', *wanted))}; found none"
                )
        values = {key: _attack_value(entry["attack"], key, entry[key]) for key in wanted}
        if entry["attack"] == "PGDRS" and entry["batch_max"] < entry["noise_batch_size"]:
            least, found = entry["noise_batch_size"], entry["batch_max"]
            raise ValueError(
                f"batch_max: expected at least noise_batch_size ({least}), "
                f"the noisy copies of one image, found {found}"
            )
        return {**entry, **values}


class Threat(Attack):
    """An attack that a judge runs freshly against the judged model, `restarts` times.

    An image counts as robust if it withstands all of them. Without `restarts` the attack runs once.
    """

    eps: Level
    restarts: Count = 1


class Generate(Section):
    """The settings of how a stored set is made.

    `batch_size` and `seed` decide which random numbers an image gets.
    """

    batch_size: Count
    precision: Precision
    seed: Seed


def expect_classes(specs: Mapping[str, Attack], n_classes: int) -> None:
    """Check that each attack's loss finds the classes that it compares.

    Raises InputError with the attack's key in `specs`.
    """
    for where, spec in specs.items():
        if spec.fewest_classes > n_classes:
            raise InputError(
                f"{where}: expected at least {spec.fewest_classes} classes, "
                f"which the loss of {spec.attack} compares, found {n_classes};"
                " use another loss or attack"
            )


def _attack_value(attack: str, key: str, value: object) -> object:
    """Return one parameter of an attack after checking it.

    `parse_step` reads a step size.
    """
    if key == "alpha":
        try:
            return parse_step(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    allowed = VALUES.get((attack, key)) or VALUES[key]
    words = allowed.words if isinstance(allowed, Words) else ()
    value = spelled(value, words)
    if not allowed.hold(value):
        raise ValueError(f"{key}: expected {allowed}, found {value!r}{suggestion(value, words)}")
    return value
