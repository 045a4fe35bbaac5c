"""Make training batches whose adversarial images are computed for every batch.

This is the usual adversarial training (Goodfellow et al., ICLR 2015; Kurakin et al., ICLR 2017;
Madry et al., ICLR 2018). Attacks see the model in evaluation mode, as an attacker does, and never
change it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline import attacks
from pipeline.base.values import Spread
from pipeline.harden import params
from pipeline.harden.moving_target import Target
from pipeline.harden.starts import noise, random_start, step_sizes
from pipeline.networks.memory_fit import fitted
from pipeline.train import augmentation, mixing, pairs
from pipeline.train.batches import ALPHA_SCALE
from pipeline.train.pairs import Batch
from pipeline.train.part import Part


class OnlineBatches:
    """Batches of clean images and of adversarial images made from them.

    The attack runs against the network in training, or against another, `fixed` one. With
    `clean_weight` 0 the batches contain only adversarial images. The shares of the loss sum to
    `clean_weight` for the clean images and to `adv_weight` for the adversarial ones. With the loss
    of TRADES, every adversarial image has its clean image as a partner.
    """

    def __init__(
        self, batches: mixing.MixedBatches, recipe: params.Online, target: Target, *, fixed: bool
    ) -> None:
        self._batches, self._recipe, self._target = batches, recipe, target
        self._fixed = target.now() if fixed else None
        adversary = recipe.adversary
        self._ascent = attacks.Ascent(
            loss=adversary.loss, towards=adversary.target == "least_likely", graphs=target.graphs
        )
        self.state = {ALPHA_SCALE: torch.ones(())}

    def passes(self, epochs: int) -> int:
        """Return how many gradients of single images attacks compute in so many epochs."""
        return self._batches.n_images * self._recipe.adversary.steps * epochs

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[Batch]:
        recipe = self._recipe
        for index, (images, labels, part) in enumerate(self._batches.epoch(number, first), first):
            generator = augmentation.generator_for(images.device, recipe.seed, number, index)
            n = len(part.batch)
            images = augmentation.draw(recipe.augment, n, generator).of(part).apply(images)
            eps = part.select(self._eps(number, n, generator).to(images.dtype))
            adv_images = self._attacked(images, labels, eps, generator, part)
            labels, share = part.counted(labels), part.shares(images)
            if recipe.beta is not None:
                batch = adv_images, labels, share * recipe.adv_weight
                all_of_them = torch.arange(len(labels), device=labels.device)
                yield pairs.trades(batch, all_of_them, images, recipe.beta)
            elif recipe.clean_weight == 0:
                yield adv_images, labels, share * recipe.adv_weight
            else:
                shares = torch.cat([share * recipe.clean_weight, share * recipe.adv_weight])
                yield torch.cat([images, adv_images]), torch.cat([labels, labels]), shares

    def _attacked(
        self, images: Tensor, labels: Tensor, eps: Tensor, generator: torch.Generator, part: Part
    ) -> Tensor:
        """Return adversarial images within `eps` (P, 1, 1, 1) of `images`."""
        adversary = self._recipe.adversary
        network = self._fixed or self._target.now()
        aim = labels
        if adversary.target == "least_likely":
            with torch.no_grad():
                logits = fitted(network, images, lambda: network(images))
                aim = logits.scatter(1, labels[:, None], torch.inf).argmin(1)  # not the label
        alpha = step_sizes(adversary.alpha, eps, adversary.steps) * self.state[ALPHA_SCALE]
        reach, bound = eps, eps
        if adversary.noise is not None:
            reach = eps * adversary.noise
            bound = reach + alpha * adversary.steps  # which no step leaves
        start = images
        if adversary.random_start:
            drawn = noise(len(part.batch), images, generator)
            start = random_start(images, reach, part.select(drawn))
        return self._ascent(
            network, images, start, aim, eps=bound, alpha=alpha, steps=adversary.steps
        )

    def _eps(self, epoch: int, n_images: int, generator: torch.Generator) -> Tensor:
        """Return the eps (B, 1, 1, 1) of a batch.

        It is fixed, or it is drawn for each image, once per batch or once per epoch.
        """
        adversary, device = self._recipe.adversary, generator.device
        eps, per = adversary.eps, adversary.eps_per
        if not isinstance(eps, Spread):
            return torch.full((n_images, 1, 1, 1), eps, device=device)
        if per == "epoch":
            generator = augmentation.generator_for(device, self._recipe.seed, epoch, 0, 1)
        shares = torch.rand(
            n_images if per == "image" else 1, generator=generator, device=device
        ).tolist()
        return (
            torch.tensor([eps.quantile(share) for share in shares], device=device)
            .expand(n_images)
            .reshape(-1, 1, 1, 1)
        )
