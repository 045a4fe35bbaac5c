"""Run fresh attacks on the judged network: which images withstand them, and what they cost.

Every robust accuracy of this project is counted here, by the network itself, in float32 and in
evaluation mode. Attacks compute the same function faster where they can. Adversarial images are not
rounded. They are clamped to the eps ball and to [0, 1] before they are judged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pipeline import attacks, networks
from pipeline.attacks.params import Threat
from pipeline.base import console, seeds
from pipeline.base.store import Block
from pipeline.evaluate.target import Passes, Target
from pipeline.networks.memory_fit import InParts

if TYPE_CHECKING:
    from torchattacks.attack import Attack
from pipeline.networks.scores import Mask

SQUARE = {"attack": "Square", "n_restarts": 1, "p_init": 0.8, "loss": "margin"}


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
    target: Target,
    block: Block,
    threat: Threat,
    text: str,
    standing: Mask | None = None,
    *,
    earlier: int = 0,
) -> Outcome:
    """Return which of a block's images (N,) withstand every restart of a fresh attack.

    The network gets such an image right unattacked, and after every restart against the network
    itself. A lost image is not attacked again. `standing` excludes images that were lost before, to
    an attack in the same ball. `earlier` is the number of restarts whose random numbers are left
    out, because they were used before.
    """
    passes = Passes()
    standing = target.is_right(block) if standing is None else standing
    after = [np.empty(len(block), dtype=bool) for _ in range(threat.restarts)]
    with console.progress(len(block) * threat.restarts, text, "images") as bar:
        parts = target.each_part(withstands_part, block, threat, earlier, standing=standing)
        for rows, found in parts:
            for restart, mask in enumerate(found.after):
                after[restart][rows] = mask
            passes.add(found.passes)
            bar.update((rows.stop - rows.start) * threat.restarts)
    return Outcome(after=after, passes=passes)


def withstands_part(
    target: Target, first: int, block: Block, threat: Threat, earlier: int, standing: Mask
) -> Outcome:
    """Return what a fresh attack finds on a part of a block that begins at place `first`."""
    attack = attacks.build(threat, target.attacked, target.n_classes)
    passes, standing = Passes(), standing.copy()
    after = []
    for restart in range(earlier, earlier + threat.restarts):
        for start, rows in target.batches(standing):
            if len(rows):
                images, labels = target.tensors(block, rows)
                seed = seeds.batch_seed(target.seed, restart, first + start)
                adv_images = perturb(attack, images, labels, threat.eps, passes, seed)
                standing[rows] = networks.is_right(target.network, adv_images, labels)
        after.append(standing.copy())
    return Outcome(after=after, passes=passes)


def perturb(
    attack: "Attack", images: Tensor, labels: Tensor, eps: float, passes: Passes, seed: int
) -> Tensor:
    """Return adversarial images (B, 3, H, W) of one batch, in the eps ball and in [0, 1]."""
    with passes.counting(attack.model):
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
    standing = {count: np.zeros(len(block), dtype=bool) for count in steps}
    with console.progress(len(block), text, "images") as bar:
        right = target.is_right(block)
        for rows, found in target.each_part(by_steps_part, block, threat, steps, standing=right):
            for count, mask in found.items():
                standing[count][rows] = mask
            bar.update(rows.stop - rows.start)
    return standing


def by_steps_part(
    target: Target, first: int, block: Block, threat: Threat, steps: Sequence[int], right: Mask
) -> dict[int, Mask]:
    """Return the same as `by_steps`, of a part of a block that begins at place `first`."""
    longest = Threat.model_validate({**threat.model_dump(), "steps": max(steps)})
    attack = attacks.build(longest, target.attacked, target.n_classes)
    standing = {count: np.zeros(len(block), dtype=bool) for count in steps}
    for start, rows in target.batches(right):
        if len(rows):
            images, labels = target.tensors(block, rows)
            seed = seeds.batch_seed(target.seed, 0, first + start)
            iterates = _iterates(attack, target.attacked, images, labels, steps, seed)
            for count, adv_images in iterates.items():
                standing[count][rows] = networks.is_right(target.network, adv_images, labels)
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
