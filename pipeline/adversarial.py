"""Training batches whose adversarial images follow the model that is being trained.

`OnlineBatches` makes them anew for every batch (Goodfellow et al., ICLR 2015; Kurakin et al., ICLR 2017; Madry et al., ICLR 2018).
`RefreshedBatches` takes stored ones and moves them on: each attack begins where the stored perturbation is and the result is stored again,
so that a step or two do what many steps from scratch do (Zheng et al., "Efficient Adversarial Training with Transferable Adversarial
Examples", CVPR 2020).

Attacks see the model in evaluation mode, as an attacker does, and never change it.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from pipeline import attacks, augmentation, mixing, params, products
from pipeline.device import multiplies_bfloat16
from pipeline.errors import InputError
from pipeline.in_parts import InParts
from pipeline.params import CLEAN
from pipeline.store import Block

Batch = tuple[Tensor, Tensor, Tensor]


def dtype_for(precision: params.Precision, device: torch.device) -> torch.dtype:
    """What attacks on a network in training are computed in: bf16 where it is asked for, or `auto` finds that the device multiplies it."""
    fast = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device))
    return torch.bfloat16 if fast else torch.float32


class Target:
    """A network as attacks see it: frozen, in evaluation mode, and as it is at that moment."""

    def __init__(self, network: nn.Module, image_size: int, dtype: torch.dtype) -> None:
        self._network = network
        self._fast = products.Frozen(network, image_size, dtype) if isinstance(network, models.ResNet) else None
        self._frozen = InParts(self._fast or attacks.frozen_copy(network))

    def now(self) -> InParts:
        """The network to attack, brought up to date."""
        if self._fast is None:
            self._frozen.network = attacks.frozen_copy(self._network)
        else:
            assert isinstance(self._network, models.ResNet)
            self._fast.update(self._network)
        return self._frozen


class OnlineBatches:
    """Clean images and adversarial ones made from them against the network in training, or against a fixed other one.

    With `clean_weight` 0 the batches hold adversarial images alone. The shares of the loss sum to `clean_weight` and `adv_weight`. `passes`
    counts the images whose gradient an attack computes in one epoch.
    """

    def __init__(self, batches: mixing.Mixed, recipe: params.Online, target: Target, *, fixed: bool) -> None:
        self._batches, self._recipe, self._target = batches, recipe, target
        self._fixed = target.now() if fixed else None
        self.passes = batches.n_images * recipe.adversary.steps
        self.state: dict[str, Tensor] = {}
        self.loading = batches.loading

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        """From batch `first` of an epoch on: images (B, 3, H, W) in [0, 1], labels (B,), and each image's share (B,) of the loss."""
        recipe = self._recipe
        for index, (images, labels) in enumerate(islice(self._batches.epoch(number), first, None), first):
            generator = augmentation.generator_for(images.device, recipe.seed, number, index)
            images = augmentation.draw(recipe.augment, len(labels), generator).apply(images)
            eps = self._eps(number, len(labels), generator).to(images.dtype)
            adv_images = self._attacked(images, labels, eps, generator)
            share = torch.full_like(eps.flatten(), 1 / len(labels))
            if recipe.clean_weight == 0:
                yield adv_images, labels, share * recipe.adv_weight
            else:
                shares = torch.cat([share * recipe.clean_weight, share * recipe.adv_weight])
                yield torch.cat([images, adv_images]), torch.cat([labels, labels]), shares

    def _attacked(self, images: Tensor, labels: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
        """Adversarial images within `eps` (B, 1, 1, 1)."""
        adversary = self._recipe.adversary
        network = self._fixed or self._target.now()
        aim, towards = labels, adversary.target == "least_likely"
        if towards:
            with torch.no_grad():
                aim = network(images).argmin(1)
        start = random_start(images, eps, generator) if adversary.random_start else images
        alpha = step_sizes(adversary.alpha, eps, adversary.steps)
        return attacks.ascend(
            network, images, start, aim, eps=eps, alpha=alpha, steps=adversary.steps, loss=adversary.loss, towards=towards
        )

    def _eps(self, epoch: int, n_images: int, generator: torch.Generator) -> Tensor:
        """The eps (B, 1, 1, 1) of a batch: fixed, or drawn for each image, once a batch or once an epoch."""
        eps, per, device = self._recipe.adversary.eps, self._recipe.adversary.eps_per, generator.device
        if not isinstance(eps, params.Spread):
            return torch.full((n_images, 1, 1, 1), eps, device=device)
        if per == "epoch":
            generator = augmentation.generator_for(device, self._recipe.seed, epoch)
        shares = torch.rand(n_images if per == "image" else 1, generator=generator, device=device).tolist()
        return torch.tensor([eps.quantile(share) for share in shares], device=device).expand(n_images).reshape(-1, 1, 1, 1)


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


def random_start(images: Tensor, eps: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved by uniform noise within their `eps` (B, 1, 1, 1), in [0, 1]."""
    noise = torch.rand(images.shape, generator=generator, device=images.device) * 2 - 1
    return (images + noise * eps).clamp(0, 1)


def step_sizes(alpha: float | str, eps: Tensor, steps: int) -> Tensor:
    """Each image's step size (B, 1, 1, 1)."""
    return params.step_size(alpha, 1.0, steps) * eps if isinstance(alpha, str) else torch.full_like(eps, alpha)
