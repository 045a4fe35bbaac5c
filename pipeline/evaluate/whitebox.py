"""Run fresh attacks on the judged network: which images withstand them, and what they cost.

Every robust accuracy of this project is counted here, by the network itself, in float32 and in
evaluation mode. Attacks compute the same function faster where they can. Adversarial images are not
rounded. They are clamped to the eps ball and to [0, 1] before they are judged.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import attacks, networks
from pipeline.attacks.params import Threat
from pipeline.base import console, seeds
from pipeline.base.store import Block
from pipeline.networks import matrix_products
from pipeline.networks.memory_fit import InParts

if TYPE_CHECKING:
    from torchattacks.attack import Attack
from pipeline.networks.scores import Mask

BATCH_SIZE = 256  # images that share an attack's random numbers, so it affects the result


@dataclass(frozen=True, kw_only=True)
class Target:
    """A frozen copy of the judged network, with the settings that all attacks on it share.

    The network takes images in [0, 1]. It alone decides whether an image withstands. `attacked` is
    the network that attacks use: the same function in float32, as matrix products on a CPU.
    `batch_size` and `seed` decide which random numbers an image gets.
    """

    network: InParts
    attacked: InParts
    n_classes: int
    batch_size: int
    seed: int

    @classmethod
    def of(
        cls,
        network: nn.Module,
        n_classes: int,
        *,
        batch_size: int,
        seed: int,
        image_size: int | None = None,
    ) -> Self:
        """Return a target with a copy of the network. The caller's own is not changed.

        Attacks use the network itself if `image_size` is not known.
        """
        judge = InParts(networks.frozen_copy(network))
        attacked = judge
        if image_size is not None:
            attacked = InParts(matrix_products.for_attacks(network, image_size, torch.float32))
        return cls(
            network=judge,
            attacked=attacked,
            n_classes=n_classes,
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def is_right(self, block: Block) -> Mask:
        """Return which unattacked images (N,) the network gets right."""
        right: Mask = networks.predict(self.network, block.images, self.batch_size) == block.labels
        return right

    def tensors(self, block: Block, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W) in [0, 1] and labels (B,) on the network's device.

        The images are contiguous, because torchattacks' FAB takes no others.
        """
        return networks.pixels(block.images[rows], self.device).contiguous(), torch.from_numpy(
            block.labels[rows]
        ).to(self.device)

    def batches(self, standing: Mask) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the first place of every batch, and the rows of its images that are not lost.

        A batch keeps its place whichever images were lost before.
        """
        for start in range(0, len(standing), self.batch_size):
            yield start, start + np.flatnonzero(standing[start : start + self.batch_size])


class Passes:
    """A counter of the images that pass forward and backward through a network.

    These passes are the cost of an attack. It counts while its context is entered.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network, self.forward, self.backward = network, 0, 0

    def __enter__(self) -> Self:
        self._handle = self._network.register_forward_hook(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _seen(self, _: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._returned)  # type: ignore[no-untyped-call]

    def _returned(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def as_metrics(self) -> dict[str, int]:
        return {"forward_passes": self.forward, "backward_passes": self.backward}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The images (N,) that are not lost after each restart, and the passes that it took."""

    after: list[Mask]
    passes: Passes

    @property
    def standing(self) -> Mask:
        """Return which images withstood every restart."""
        return self.after[-1]


def withstands(
    target: Target, block: Block, threat: Threat, text: str, standing: Mask | None = None
) -> Outcome:
    """Return which of a block's images (N,) withstand every restart of a fresh attack.

    The network gets such an image right unattacked, and after every restart against the network
    itself. A lost image is not attacked again. `standing` excludes images that were lost before, to
    an attack in the same ball.
    """
    attack = attacks.build(threat, target.attacked, target.n_classes)
    passes = Passes(target.attacked)
    standing = target.is_right(block) if standing is None else standing.copy()
    after = []
    with console.progress(len(block) * threat.restarts, text, "images") as bar:
        for restart in range(threat.restarts):
            for start, rows in target.batches(standing):
                if len(rows):
                    images, labels = target.tensors(block, rows)
                    adv_images = perturb(
                        attack,
                        images,
                        labels,
                        threat.eps,
                        passes,
                        seeds.batch_seed(target.seed, restart, start),
                    )
                    standing[rows] = networks.is_right(target.network, adv_images, labels)
                bar.update(min(target.batch_size, len(block) - start))
            after.append(standing.copy())
    return Outcome(after=after, passes=passes)


def perturb(
    attack: "Attack", images: Tensor, labels: Tensor, eps: float, passes: Passes, seed: int
) -> Tensor:
    """Return adversarial images (B, 3, H, W) of one batch, in the eps ball and in [0, 1].

    APGD, FAB and Square seed themselves. They get the batch's seed, because every restart would
    otherwise be the same.
    """
    if hasattr(attack, "seed"):
        attack.seed = seed
    with passes:
        adv_images = attacks.perturb(attack, images, labels, seed)
    return (images + (adv_images - images).clamp(-eps, eps)).clamp(0, 1)


def by_steps(
    target: Target, block: Block, threat: Threat, steps: Sequence[int], text: str
) -> dict[int, Mask]:
    """Return which images (N,) withstand PGD, for each of several numbers of steps.

    PGD has one restart. Images that the network gets wrong unattacked never count. torchattacks'
    PGD shows the network each of its iterates once. A run of the most steps therefore contains the
    runs of fewer steps, and its images are equal to theirs. An image that is lost at fewer steps is
    still attacked, so more steps may raise a number. The checks look for such a rise.
    """
    assert threat.attack == "PGD"
    longest = Threat.model_validate({**threat.model_dump(), "steps": max(steps)})
    attack = attacks.build(longest, target.attacked, target.n_classes)
    right = target.is_right(block)
    standing = {count: np.zeros(len(block), dtype=bool) for count in steps}
    with console.progress(len(block), text, "images") as bar:
        for start, rows in target.batches(right):
            if len(rows):
                images, labels = target.tensors(block, rows)
                iterates = _iterates(
                    attack,
                    target.attacked,
                    images,
                    labels,
                    steps,
                    seeds.batch_seed(target.seed, 0, start),
                )
                for count, adv_images in iterates.items():
                    standing[count][rows] = networks.is_right(target.network, adv_images, labels)
            bar.update(min(target.batch_size, len(block) - start))
    return standing


def _iterates(
    attack: "Attack",
    network: InParts,
    images: Tensor,
    labels: Tensor,
    steps: Sequence[int],
    seed: int,
) -> dict[int, Tensor]:
    """Return PGD's images after each number of steps.

    After `count` steps these are the images that the network is shown. After the most steps they
    are what the attack returns.
    """
    shown: dict[int, Tensor] = {}
    # Counted by part size, because an attack that begins again does so with smaller parts.
    counts: Counter[int | None] = Counter()

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count = counts[network.most]
        if count in steps:
            shown[count] = inputs[0].detach().clone()
        counts[network.most] += 1

    handle = network.register_forward_pre_hook(keep)
    try:
        last = attacks.perturb(attack, images, labels, seed)
    finally:
        handle.remove()
    return {**shown, max(steps): last}
