"""Training batches whose stored adversarial images are attacked for a few more steps whenever they are drawn.

Each attack begins at the stored perturbation and the result is stored again, so one or two steps do what many steps from scratch do (Zheng
et al., "Efficient Adversarial Training with Transferable Adversarial Examples", CVPR 2020).

Attacks see the model in evaluation mode, as an attacker does, and never change it.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from pipeline import attacks
from pipeline.base.errors import InputError
from pipeline.base.store import Block
from pipeline.base.values import CLEAN
from pipeline.harden import params
from pipeline.harden.moving_target import Target
from pipeline.harden.starts import random_start, step_sizes
from pipeline.train import augmentation, mixing

Batch = tuple[Tensor, Tensor, Tensor]


class RefreshedBatches:
    """Mixed batches from a working copy of the stored sets, whose adversarial images are refreshed as they are drawn.

    `streams` are the training rows by the names in the recipe's mix; row i of an adversarial stream belongs to row i of `clean`. The cached
    sets are not touched; `working_copy` gives what they have become. `passes` counts the images whose gradient an attack
    computes in one epoch. Raises InputError for streams whose rows do not belong together.
    """

    def __init__(self, streams: Mapping[str, Block], recipe: params.Finetune, target: Target, device: torch.device) -> None:
        assert recipe.refresh is not None
        for name, block in streams.items():
            if not np.array_equal(block.ids, streams[CLEAN].ids):
                raise InputError(f"{name}: its training rows are not those of the clean set; `dvc repro` makes it again")
        self._batches = mixing.MixedBatches(streams, recipe.counts, recipe.seed, device, balanced=recipe.sampling == "balanced")
        self._recipe, self.refresh, self._target = recipe, recipe.refresh, target
        n, names = len(streams[CLEAN]), list(recipe.counts)
        eps = [np.zeros(n, np.float32) if (own := streams[name].eps) is None else own for name in names]
        self._eps = torch.from_numpy(np.concatenate(eps)).to(device).view(-1, 1, 1, 1)
        self._rows = {name: slice(n * place, n * (place + 1)) for place, name in enumerate(names)}
        self._n = n
        drawn = self._batches.n_images - n
        self.passes = drawn * recipe.refresh.steps // recipe.refresh.every
        self.state = {"images": self._batches.images}
        self.loading = self._batches.loading

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """From batch `first` of an epoch on: images (B, 3, H, W) in [0, 1], labels (B,), and each image's share (B,) of the loss."""
        for index, rows in enumerate(islice(self._batches.rows(number), first, None), first):
            generator = augmentation.generator_for(rows.device, self._recipe.seed, number, index)
            move = augmentation.draw(self._recipe.augment, len(rows), generator)
            images, labels = move.apply(self._batches.images[rows] / 255), self._batches.labels[rows]
            is_adversarial = self._eps[rows].flatten() > 0
            if number % self.refresh.every == 0:
                images[is_adversarial] = self._refreshed(
                    images[is_adversarial], labels[is_adversarial], rows[is_adversarial], move.select(is_adversarial), generator
                )
            yield images, labels, torch.full_like(images[:, 0, 0, 0], 1 / len(rows))

    def _refreshed(self, start: Tensor, labels: Tensor, rows: Tensor, move: augmentation.Move, generator: torch.Generator) -> Tensor:
        """Attack the moved images once more, put the perturbations back into the working copy, and return what the attack gave."""
        refresh, eps = self.refresh, self._eps[rows]
        originals = self._batches.images[rows % self._n + self._rows[CLEAN].start]
        images = move.apply(originals / 255)
        if not refresh.warm_start:
            start = random_start(images, eps, generator)
        alpha = step_sizes(refresh.alpha, eps, refresh.steps)
        adv_images = attacks.ascend(self._target.now(), images, start, labels, eps=eps, alpha=alpha, steps=refresh.steps)
        # What the crop cut off keeps its old perturbation.
        seen = move.undo(torch.ones_like(images)) > 0
        stored = self._batches.images[rows]
        back = attacks.quantise(originals / 255 + move.undo(adv_images - images), originals, eps)
        self._batches.images[rows] = torch.where(seen, back, stored)
        return adv_images

    def working_copy(self, name: str) -> Tensor:
        """The images (N, 3, H, W; uint8) of one stream as they are now."""
        return self._batches.images[self._rows[name]]
