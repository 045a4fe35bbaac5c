"""Attack runs of batches with one network and one attack, here or on the nodes of a cluster."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import attacks, networks
from pipeline.attacks.params import Attack, Generate
from pipeline.base import seeds, store
from pipeline.base.values import Spread
from pipeline.networks import matrix_products
from pipeline.networks.memory_fit import InParts
from pipeline.networks.precision import tensor_floats
from pipeline.networks.torchvision_models import models


class Run(NamedTuple):
    """Clean rows of a set that begin with a batch at row `start`."""

    start: int
    block: store.Block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacking:
    """What all runs of a set have in common. The networks for it are built where it runs."""

    network: models.ResNet
    image_size: int
    n_classes: int
    precision: str  # anything but bf16 is fp32
    spec: Attack
    settings: Generate

    def on(self, device: torch.device) -> Callable[[Run], store.Block]:
        """Return the function that gives a run's adversarial counterpart, on a device."""
        return _Attacker(self, device).run


class _Attacker:
    """Attacks in the precision of a job. The exact network tells which images are fooled."""

    def __init__(self, job: Attacking, device: torch.device) -> None:
        exact = networks.frozen_copy(job.network).to(device)
        dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
        target = matrix_products.for_attacks(exact, job.image_size, dtype)
        self._attacked, self._judge = InParts(target), InParts(exact)
        self._spec, self._n_classes = job.spec, job.n_classes
        self._settings, self._device = job.settings, device

    def run(self, run: Run) -> store.Block:
        """Return the adversarial counterpart of a run, attacked batch by batch."""
        return store.join(
            [
                self._batch(
                    run.block.select(rows),
                    seeds.batch_seed(self._settings.seed, run.start + rows.start),
                )
                for rows in batches(len(run.block), self._settings.batch_size)
            ]
        )

    def _batch(self, block: store.Block, seed: int) -> store.Block:
        images, eps, fooled = (
            np.empty_like(block.images),
            np.empty(len(block), dtype=np.float32),
            np.empty(len(block), dtype=bool),
        )
        requested = eps_of(self._spec.eps, len(block), seed)
        for level in np.unique(requested):
            chosen = requested == level
            attack = attacks.build(self._spec.at(float(level)), self._attacked, self._n_classes)
            clean, labels = (
                torch.from_numpy(array[chosen]).to(self._device)
                for array in (block.images, block.labels)
            )
            with tensor_floats():
                found = attacks.perturb(attack, clean / 255, labels, seed)
            stored = attacks.quantise(found, clean, float(level))
            images[chosen], fooled[chosen] = (
                stored.cpu().numpy(),
                ~networks.is_right(self._judge, stored / 255, labels),
            )
            eps[chosen] = attacks.eps_levels(level) / 255
        return dataclasses.replace(block, images=images, eps=eps, fooled=fooled)


def eps_of(eps: float | Spread, n_images: int, seed: int) -> NDArray[np.float64]:
    """Return the eps (N,) of each image.

    It is the same for all, or drawn from a distribution and lowered to a whole number of steps
    between stored pixels.
    """
    if not isinstance(eps, Spread):
        return np.full(n_images, eps)
    shares = np.random.default_rng(seed).random(n_images)
    return np.array([attacks.eps_levels(eps.quantile(share)) for share in shares]) / 255


def batches(n_rows: int, size: int) -> Iterator[slice]:
    """Yield the rows of each batch, in order. The last batch may be smaller."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
