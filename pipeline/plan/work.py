"""Describe work by kinds that are measured once, and count how much of each there is."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from pipeline.attacks.params import Attack

# Attacks that take one gradient per pass and little else, so their passes cost the same.
PLAIN_ATTACKS = ("FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "APGD", "APGDT")
PLAIN = {"attack": "PGD", "random_start": True}
MEASURED = Attack.model_validate({**PLAIN, "eps": "8/255", "alpha": "2/255", "steps": 2})
# Parameters that change how much work an attack is, or nothing, but not what a pass costs.
COUNTED = ("eps", "alpha", "steps", "n_queries", "n_restarts", "restarts")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of work whose cost is measured once.

    `name` is `store`, `classify`, `attack` or `train`. `dtype` and `targets` are those of an
    attack. `about` holds what else decides the cost. `recipe` is what the measurement runs. Two
    kinds are equal if all the rest is.
    """

    name: str
    architecture: str = ""
    dtype: str = ""
    targets: int = 1
    about: str = ""
    recipe: Any = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Work:
    """An amount of work of one kind.

    `images` counts passes of single images, and `batches` those of whole batches.
    """

    kind: Kind
    images: int
    batches: int = 0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the pipeline: its work, in words too, and the bytes that it leaves on the disk.

    `extra_disk` is needed while it runs. `held` bytes are in memory all the time.
    """

    name: str
    text: str
    work: tuple[Work, ...] = ()
    disk: int = 0
    extra_disk: int = 0
    held: int = 0

    def images(self, name: str) -> int:
        """Return the passes of single images of all kinds of a name."""
        return sum(work.images for work in self.work if work.kind.name == name)


def classified(architecture: str, n_images: float, batch_size: int) -> Work:
    """Return the prediction of the classes of some images, by the network itself."""
    n = round(n_images)
    kind = Kind(name="classify", architecture=architecture)
    return Work(kind=kind, images=n, batches=math.ceil(n / batch_size))


def attacked(
    architecture: str,
    spec: Attack,
    n_images: float,
    batch_size: int,
    dtype: str,
    targets: int = 1,
) -> Work:
    """Return an attack on some images, in passes through the attacked network."""
    plain = {key: value for key, value in spec.model_dump().items() if key not in COUNTED}
    is_plain = spec.attack in PLAIN_ATTACKS and (spec.model_extra or {}).get("eot_iter", 1) == 1
    kind = Kind(
        name="attack",
        architecture=architecture,
        dtype=dtype,
        targets=1 if is_plain else targets,
        about=json.dumps(PLAIN if is_plain else plain, sort_keys=True),
        recipe=MEASURED if is_plain else spec,
    )
    n, count = round(n_images), passes(spec, targets)
    return Work(kind=kind, images=n * count, batches=math.ceil(n / batch_size) * count)


def passes(spec: Attack, targets: int = 1) -> int:
    """Return how often an attack shows an image to the network, relative to its own other runs."""
    extra = spec.model_extra or {}
    steps = int(extra.get("steps", 1))
    match spec.attack:
        case "Square":
            return int(extra["n_queries"]) + 1
        case "APGD":
            return steps + 1
        case "APGDT":
            return (steps + 1) * targets
        case "FAB":
            return steps * targets
    return steps
