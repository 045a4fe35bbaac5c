"""Score a model during training.

The score decides which epoch is kept. A collapse of the training gives a warning.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from pipeline import attacks, networks
from pipeline.attacks.params import Attack
from pipeline.base.store import Block
from pipeline.harden import moving_target, params
from pipeline.networks import precision, scores
from pipeline.networks.memory_fit import InParts
from pipeline.networks.prediction import BATCH_SIZE
from pipeline.networks.scores import Validate, accuracy_on
from pipeline.train import group
from pipeline.train.history import Keep, Row, more_accurate


def validation(
    recipe: params.Online | params.Finetune,
    val: Block,
    settings: params.Held,
    device: torch.device,
) -> Validate:
    """Return the validation that the recipe's `best_on` names.

    `mixed` and `clean` validate on all of `val`. `robust` needs clean images in `val`.
    """
    if recipe.best_on == "robust":
        chosen = _sample(val, settings.selection)
        dtype = precision.dtype_for(recipe.precision, device)
        return group.current().validation(
            chosen, lambda part: robust_accuracy_on(part, settings, dtype)
        )
    return group.current().validation(val, accuracy_on)


def robust_accuracy_on(chosen: Block, settings: params.Held, dtype: torch.dtype) -> Validate:
    """Return a validation that measures robust accuracy against the current network.

    It runs PGD and FGSM against the network at each call, on those of the `chosen` clean validation
    images that the network gets right. So an image counts as in an evaluation: only if it is right
    without the attack, too. Attacks follow the gradients of the network in `dtype`. The network
    itself, not its version in `dtype`, decides whether they succeed.
    """
    spec, image_size = settings.selection, chosen.images.shape[2]
    pgd = {
        "attack": "PGD",
        "eps": spec.eps,
        "alpha": spec.alpha,
        "steps": spec.steps,
        "random_start": True,
    }
    threats = [Attack.model_validate(entry) for entry in ({"attack": "FGSM", "eps": spec.eps}, pgd)]

    def validate(network: nn.Module) -> dict[str, float]:
        copied = networks.frozen_copy(network)
        target, exact = moving_target.Target(copied, image_size, dtype).now(), InParts(copied)
        right = chosen.select(networks.predict(exact, chosen.images) == chosen.labels)
        fgsm, robust = (
            _withstand(threat, target, exact, right) / len(chosen) for threat in threats
        )
        clean = len(right) / len(chosen)
        return {"val_accuracy": robust, "val_clean": clean, "val_fgsm": fgsm, "val_pgd": robust}

    return validate


def keep(recipe: params.Online | params.Finetune, n_val: int, selection: params.Selection) -> Keep:
    """Return the rule that chooses the epoch to keep, where there are `n_val` validation images."""
    if recipe.best_on != "robust":
        return more_accurate
    return as_robust(min(selection.n_images, n_val))


def as_robust(n_images: int) -> Keep:
    """Return the rule that keeps the best clean accuracy among the most robust epochs.

    These are the epochs whose PGD accuracy on `n_images` images is at most one standard error below
    the best one, and so cannot be told from it (the one-standard-error rule of Breiman et al.,
    "Classification and Regression Trees", 1984).
    """

    def replaces(history: Sequence[Row], kept: Row) -> bool:
        last, best = history[-1], max(row["val_pgd"] for row in history)
        least = best - math.sqrt(best * (1 - best) / n_images)
        if last["val_pgd"] < least or kept["val_pgd"] < least:
            return bool(last["val_pgd"] >= least)
        return _clean_first(last) > _clean_first(kept)

    return replaces


def _clean_first(row: Row) -> tuple[float, float]:
    return row["val_clean"], row["val_pgd"]


def watch(n_val: int, selection: params.Selection) -> Callable[[Sequence[Row]], str]:
    """Return `collapse` for a training that chooses its epoch on `n_val` validation images."""
    return partial(collapse, n_images=min(selection.n_images, n_val))


def collapse(history: Sequence[Row], n_images: int) -> str:
    """Return a warning if training against single-step attacks fails in the last epoch.

    In such a collapse, PGD accuracy on `n_images` images falls to less than half its best while
    FGSM accuracy does not fall (Wong et al., ICLR 2020). The fall must exceed three standard
    errors of the difference, since chance alone halves an accuracy near 0. Only the first epoch of
    a collapse gives a warning. Otherwise the result is empty.
    """
    if "val_fgsm" not in (history[-1] if history else {}):
        return ""

    def collapsed(rows: Sequence[Row]) -> bool:
        best, last = max(rows, key=lambda row: row["val_pgd"]), rows[-1]
        high, low = best["val_pgd"], last["val_pgd"]
        error = math.sqrt((high * (1 - high) + low * (1 - low)) / n_images)
        return bool(
            low < high / 2 and high - low > 3 * error and last["val_fgsm"] >= best["val_fgsm"]
        )

    if not collapsed(history) or (len(history) > 1 and collapsed(history[:-1])):
        return ""
    best, last = max(history, key=lambda row: row["val_pgd"]), history[-1]
    return (
        f"collapse in epoch {last['epoch']}: held-out PGD accuracy fell from "
        f"{best['val_pgd']:.3f} to {last['val_pgd']:.3f}, FGSM accuracy "
        f"is {last['val_fgsm']:.3f} (more steps, a random start or a smaller alpha help)"
    )


def _withstand(threat: Attack, target: nn.Module, exact: nn.Module, chosen: Block) -> int:
    """Return how many of the images withstand a fresh attack."""
    attack = attacks.build(threat, target, 2)  # FGSM and PGD alone, which compare two classes
    device, count = next(exact.parameters()).device, 0
    for start in range(0, len(chosen), BATCH_SIZE):
        images = networks.pixels(chosen.images[start : start + BATCH_SIZE], device)
        labels = torch.from_numpy(chosen.labels[start : start + BATCH_SIZE]).to(device)
        adv_images = attacks.perturb(attack, images, labels, start)
        count += int(networks.is_right(exact, adv_images, labels).sum())
    return count


def _sample(val: Block, selection: params.Selection) -> Block:
    """Return `selection.n_images` validation images.

    They are the last ones that an evaluation of validation images would attack. So it uses other
    images than the choice of the epoch, as far as there are enough.
    """
    spared = scores.sample(val, max(0, len(val) - selection.n_images), selection.seed)
    chosen = np.ones(len(val), dtype=bool)
    chosen[spared] = False
    return val.select(chosen)
