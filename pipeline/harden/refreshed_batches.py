"""Make training batches whose stored adversarial images are attacked again when sampled.

Each attack begins at the stored perturbation, takes a few more steps, and its result is stored
again. So one or two steps do what many steps from scratch do (Zheng et al., "Efficient Adversarial
Training with Transferable Adversarial Examples", CVPR 2020).

Attacks see the model in evaluation mode, as an attacker does, and never change it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import attacks
from pipeline.base.errors import InputError
from pipeline.base.store import ImageSet
from pipeline.base.values import CLEAN
from pipeline.harden import params
from pipeline.harden.moving_target import Target
from pipeline.harden.starts import noise, random_start, step_sizes
from pipeline.train import augmentation, mixing, pairs
from pipeline.train.batches import ALPHA_SCALE
from pipeline.train.images import COPIED, Rows, sent, working_copy
from pipeline.train.pairs import Batch
from pipeline.train.part import Part


class RefreshedBatches:
    """Mixed batches whose adversarial images are refreshed as they are sampled.

    Batches come from a working copy of the stored sets. The stored sets are not touched.
    `working_copy` returns the current images. They are kept in a file in `folder` where they do
    not fit on a GPU. `sets` are named as in the recipe's mix. Training row i of an adversarial set
    belongs to training row i of `clean`. Raises InputError for sets whose rows do not belong
    together.

    Where several workers train together, every row belongs to one of them, which refreshes it in
    its own working copy. No worker needs the rows of another.
    """

    def __init__(
        self,
        sets: Mapping[str, ImageSet],
        recipe: params.Finetune,
        target: Target,
        device: torch.device,
        folder: Path,
    ) -> None:
        assert recipe.refresh is not None
        names, ids = list(recipe.counts), sets[CLEAN].training_column("ids")
        for name in names:
            if not np.array_equal(sets[name].training_column("ids"), ids):
                raise InputError(
                    f"{name}: its training rows are not those of the clean set; "
                    "`dvc repro` makes it again"
                )
        self._images = working_copy([sets[name] for name in names], device, folder)
        self._batches = mixing.mixed(self._images, sets, recipe, device, owned=True)
        self._recipe, self.refresh, self._target = recipe, recipe.refresh, target
        n = len(ids)
        eps = [
            np.zeros(n, np.float32) if name == CLEAN else sets[name].training_column("eps")
            for name in names
        ]
        # Known on the CPU, too: a GPU would have to be waited for to say which images they are.
        self._is_adversarial = np.concatenate(eps) > 0
        self._eps = torch.from_numpy(np.concatenate(eps)).to(device).view(-1, 1, 1, 1)
        self._rows = {name: slice(n * place, n * (place + 1)) for place, name in enumerate(names)}
        self._n = n
        self.state = {"images": self._images.images, ALPHA_SCALE: torch.ones(())}
        self._ascent = attacks.Ascent(graphs=target.graphs)

    def __len__(self) -> int:
        return len(self._batches)

    def passes(self, epochs: int) -> int:
        """Return how many gradients of single images attacks compute in so many epochs."""
        attacked = -(-epochs // self.refresh.every)
        return (self._batches.n_images - self._n) * self.refresh.steps * attacked

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        reset = self.refresh.reset
        if reset is not None and first == 0 and number > 0 and number % reset == 0:
            self._forget(number)
        for index, found in enumerate(self._batches.stored(number, first), first):
            rows, stored, labels, part = found
            generator = augmentation.generator_for(rows.device, self._recipe.seed, number, index)
            move = augmentation.draw(self._recipe.augment, len(part.batch), generator).of(part)
            images = move.apply(stored / 255)
            places = np.flatnonzero(self._is_adversarial[part.rows])
            chosen = sent(torch.from_numpy(places), rows.device)
            own, own_move, start = rows[chosen], move.select(chosen), images[chosen]
            is_refreshed = number % self.refresh.every == 0
            if is_refreshed:
                if not self.refresh.warm_start:
                    original = own_move.apply(self._originals(own) / 255)
                    drawn = self._noise(original, part, places, generator)
                    start = random_start(original, self._eps[own], drawn)
                if len(own):  # a small part may have no adversarial image
                    images[chosen] = self._refreshed(start, labels[chosen], own, own_move)
            batch = images, part.counted(labels), part.shares(images)
            if self._recipe.beta is not None:
                original = own_move.apply(self._originals(own) / 255)
                yield pairs.trades(batch, chosen, original, self._recipe.beta)
            elif self.refresh.regularise is not None and is_refreshed:
                yield pairs.regularised(batch, chosen, start, self.refresh.regularise)
            else:
                yield batch

    def _noise(
        self, images: Tensor, part: Part, chosen: Rows, generator: torch.Generator
    ) -> Tensor:
        """Return noise for the adversarial images of a part, at the places `chosen` (K,)."""
        of_batch = self._is_adversarial[part.batch]
        drawn = noise(int(of_batch.sum()), images, generator)
        places = (of_batch.cumsum() - 1)[part.places][chosen]
        return drawn[sent(torch.from_numpy(places), drawn.device)]

    def _refreshed(
        self, start: Tensor, labels: Tensor, rows: Tensor, move: augmentation.Move
    ) -> Tensor:
        """Attack the moved images again from `start`, and return the adversarial images.

        The perturbations are written back into the working copy.
        """
        refresh, eps = self.refresh, self._eps[rows]
        originals = self._originals(rows)
        images = move.apply(originals / 255)
        alpha = step_sizes(refresh.alpha, eps, refresh.steps) * self.state[ALPHA_SCALE]
        adv_images = self._ascent(
            self._target.now(), images, start, labels, eps=eps, alpha=alpha, steps=refresh.steps
        )
        # What the crop cut off keeps its old perturbation.
        seen = move.undo(torch.ones_like(images[:, :1])) > 0
        back = attacks.quantise(originals / 255 + move.undo(adv_images - images), originals, eps)
        stored = torch.where(seen, back, self._images.get(rows))
        self._images.put(rows, stored[_last_of_each(rows)])
        return adv_images

    def _originals(self, rows: Tensor) -> Tensor:
        """Return the clean images (B, 3, H, W; uint8) that belong to some rows (B,)."""
        return self._images.get(rows % self._n + self._rows[CLEAN].start)

    def _forget(self, epoch: int) -> None:
        """Replace the stored perturbations of all rows by random noise."""
        generator = augmentation.generator_for(self._eps.device, self._recipe.seed, epoch, 0, 1)
        for rows in torch.split(torch.nonzero(self._eps.flatten() > 0).flatten(), COPIED):
            originals, eps = self._originals(rows), self._eps[rows]
            noisy = random_start(originals / 255, eps, noise(len(rows), originals, generator))
            self._images.put(rows, attacks.quantise(noisy, originals, eps))

    def working_copy(self, name: str) -> Tensor:
        """Return the current images (N, 3, H, W; uint8) of one stream."""
        return self._images.images[self._rows[name]]


def _last_of_each(rows: Tensor) -> Tensor:
    """Return the last place (B,) of each of some rows (B,), of which some may be the same.

    torch writes to the same row in no fixed order.
    """
    places = torch.arange(len(rows), device=rows.device)
    return torch.where(rows == rows[:, None], places, -1).amax(1)
