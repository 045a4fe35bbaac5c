"""Measure whether a robust accuracy can be believed.

Each way in which a robust accuracy comes out too high has a check. The checks follow the lists of
Athalye et al. (ICML 2018, section 3.1), Carlini et al. ("On Evaluating Adversarial Robustness",
2019) and Croce et al. (ICML 2022, on evaluations that need more than a standard ensemble).
docs/evaluation.md explains what each check means. `checks` decides what the numbers show.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline import attacks, networks
from pipeline.attacks.params import Threat
from pipeline.base.store import SPLITS, Block, ImageSet
from pipeline.evaluate import checks, params, whitebox
from pipeline.evaluate.checks import COLLAPSED, CONVERGED, NOT_RUN, Check, gain, share
from pipeline.evaluate.sweeps import Curves
from pipeline.evaluate.target import Target, digest
from pipeline.networks import memory_fit
from pipeline.networks.scores import Mask


def diagnose(
    target: Target,
    block: Block,
    white_box: Mask,
    few: Block,
    curves: Curves,
    threat: Threat,
    queries: int,
    stored: Mapping[str, Block],
) -> dict[str, Check]:
    """Return the checks of a measurement by `threat`, a PGD.

    `white_box` tells which images (n,) of `block` withstood the threat. `curves` are the threat's
    curves on the images of `few`. `stored` are adversarial counterparts of `block`, row by row.
    Those beyond the threat's eps do not count. What needs many attacks on an image uses `few`,
    everything else uses `block`. `checks` and `converged` have the checks that need other numbers.
    """
    clean, after_fgsm = target.is_right(block), _right_after_fgsm(target, block, threat)
    transferred = np.zeros_like(white_box)
    for images in stored.values():
        assert images.eps is not None
        is_inside = images.eps <= threat.eps + checks.SAME_EPS
        transferred |= white_box & is_inside & ~target.is_right(images)
    outputs, repeated = (
        networks.outputs(target.network, block.images, target.batch_size).float().numpy()
        for _ in range(2)
    )
    standing = curves.restarts[threat.restarts]
    after_square = whitebox.withstands(
        target, few, square(threat.eps, queries), "check: Square", standing
    ).standing
    return {
        "fgsm_stronger_than_pgd": gain(white_box, after_fgsm & clean),
        "fgsm_above_clean": gain(after_fgsm, clean),
        "fgsm_far_above_pgd": share((after_fgsm & clean & ~white_box)[clean], COLLAPSED),
        "black_box_finds_more": share(standing & ~after_square),
        "transfer_finds_more": share(transferred) if stored else NOT_RUN,
        "stands_at_eps_1": share(curves.eps[1.0]),
        "gradients_zero_or_not_finite": share(_without_gradient(target, block)),
        "more_steps_raise_accuracy": _greatest_rise(curves.steps),
        "outputs_are_probabilities": share(
            (outputs >= 0).all(1) & (abs(outputs.sum(1) - 1) < 1e-3)
        ),
        "outputs_are_random": share(
            abs(outputs - repeated).max(1) > 1e-3 * (1e-6 + abs(outputs).max(1))
        ),
    }


def of_clean(clean: ImageSet, block: Block, right: Mask) -> dict[str, Check]:
    """Return the checks that need no attack.

    `right` tells which images (n,) of `block`, those that are judged, the network gets right.
    """
    return {
        checks.HARDLY_ABOVE_GUESSING: checks.above_guessing(right, block.labels),
        "judged_images_not_held_out": share(trained_on(clean, block)),
    }


def trained_on(clean: ImageSet, block: Block) -> Mask:
    """Return which images (n,) of a block are training images of a set, too, pixel by pixel."""
    own = [digest(image) for image in block.images]
    judged, found = set(own), set[bytes]()
    for part in clean.blocks():
        found |= judged.intersection(map(digest, part.images[part.split == SPLITS["train"]]))
    return np.array([key in found for key in own], dtype=bool)


def converged(
    target: Target, block: Block, found: Mask, threat: Threat, settings: params.Curves
) -> dict[str, Check]:
    """Return what more steps and restarts of a PGD threat find beyond all attacks already tried.

    `found` tells which images (n,) of `block` withstood those attacks, which were in the threat's
    eps ball. The further restarts follow those of the threat, and so have other random numbers.
    They start at random even if the threat does not, or all would be the same.
    """
    entry, restarts = threat.model_dump(), settings.restarts - threat.restarts
    varied = {
        "more_steps_find_more": ({**entry, "steps": settings.steps[-1], "restarts": 1}, 0),
        "more_restarts_find_more": (
            {**entry, "restarts": restarts, "random_start": True},
            threat.restarts,
        ),
    }
    found_more = {}
    for name, (values, earlier) in varied.items():
        attack = Threat.model_validate(values)
        after = whitebox.withstands(
            target, block, attack, f"check: {name}", found, earlier=earlier
        ).standing
        found_more[name] = share(found & ~after, CONVERGED)
    return found_more


def _right_after_fgsm(target: Target, block: Block, threat: Threat) -> Mask:
    """Return which images (N,) the network gets right after FGSM at the threat's eps.

    FGSM also attacks the images that the network gets wrong without an attack.
    """
    fgsm = Threat.model_validate({"attack": "FGSM", "eps": threat.eps})
    return whitebox.withstands(
        target, block, fgsm, "check: FGSM", np.ones(len(block), dtype=bool)
    ).standing


def square(eps: float, queries: int) -> Threat:
    """Return Square, a black-box attack without gradients."""
    about = {"eps": eps, "n_queries": queries, "resc_schedule": True}
    return Threat.model_validate({**whitebox.SQUARE, **about})


def _without_gradient(target: Target, block: Block) -> Mask:
    """Return for which images (N,) the loss that attacks climb has no usable gradient.

    Such a gradient consists of zeros, or it is not finite.
    """
    found = np.zeros(len(block), dtype=bool)
    for _, rows in target.batches(~found):
        images, labels = target.tensors(block, rows)
        images.requires_grad_()
        gradient = memory_fit.fitted(
            target.network, images, partial(_gradient, target.network, images, labels)
        )
        flat = gradient.flatten(1)
        found[rows] = ((flat == 0).all(1) | ~flat.isfinite().all(1)).cpu().numpy()
    return found


def _gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return each image's gradient of the cross-entropy, through `attacks.scaled` as in attacks."""
    logits = attacks.scaled(network(images))
    loss = functional.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient


def _greatest_rise(by_steps: Mapping[int, Mask]) -> Check:
    """Return the greatest rise in accuracy from fewer steps to more.

    Each number of steps is compared with the fewer ones that left the fewest images standing. More
    steps of a sound attack do not raise accuracy.
    """
    counts = sorted(by_steps)
    rises = [
        gain(
            by_steps[count],
            min(
                (by_steps[fewer] for fewer in counts[:place]),
                key=lambda standing: int(standing.sum()),
            ),
        )
        for place, count in enumerate(counts[1:], 1)
    ]
    worse = ("passed", "inconclusive", "failed")
    return max(rises, key=lambda rise: (worse.index(rise.result), rise.value))
