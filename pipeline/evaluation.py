"""How good a model is, in three words that are never mixed up.

**Clean accuracy** is on unattacked images. **Transfer accuracy** is on stored adversarial images: it says nothing about an attacker who
attacks the judged model, unless the images were made against that very model. **Robust accuracy** is under a white-box attack run afresh
against the judged model, and only that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import attacks, console, networks, params
from pipeline.params import MIXED
from pipeline.store import Block, ImageSet


def withstands(
    network: nn.Module, block: Block, threat: params.Threat, n_classes: int, *, batch_size: int, seed: int, text: str
) -> NDArray[np.bool_]:
    """Which of a block's clean images (N,) the network still gets right after every restart of a fresh attack against it.

    The attack sees the judged network itself and its images are not rounded. Images already lost are not attacked again.
    """
    target = attacks.frozen_copy(network)
    attack = attacks.build(threat, target, n_classes)
    device = next(target.parameters()).device
    standing: NDArray[np.bool_] = networks.predict(target, block.images, batch_size) == block.labels
    with console.progress(len(block) * threat.restarts, text, "images") as bar:
        for restart in range(threat.restarts):
            for start in range(0, len(block), batch_size):
                rows = start + np.flatnonzero(standing[start : start + batch_size])
                if len(rows):
                    images, labels = networks.pixels(block.images[rows], device), torch.from_numpy(block.labels[rows]).to(device)
                    adv_images = attacks.perturb(attack, images, labels, attacks.batch_seed(seed, restart, start))
                    standing[rows] = networks.is_right(target, adv_images, labels)
                bar.update(min(batch_size, len(block) - start))
    return standing


def judge(
    network: nn.Module, clean: ImageSet, stored: Sequence[ImageSet], model_sha256: str, settings: params.Evaluate
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Clean, transfer and robust accuracy of a network on the validation images, and its clean predictions for a confusion matrix.

    `stored` are adversarial sets of the same clean set; `model_sha256` tells whether they were made against this very network. Raises
    InputError for sets of another clean set.
    """
    val, names, batch_size = clean.load("val"), clean.class_names, settings.batch_size
    predicted = networks.predict(network, val.images, batch_size)
    clean_right = predicted == val.labels
    return {
        "class_names": list(names),
        "clean": summarise(clean_right, val.labels, len(names)),
        "transfer": _transfer(network, clean, clean_right, stored, model_sha256, batch_size),
        "robust": _robust(network, val.select(sampled(len(val), settings)), len(names), settings),
    }, [{"actual": names[label], "predicted": names[guess]} for label, guess in zip(val.labels, predicted, strict=True)]


def summarise(right: NDArray[np.bool_], labels: NDArray[np.int64], n_classes: int) -> dict[str, Any]:
    """Accuracy, its 95 % interval (Wilson, 1927), the mean of the classes' accuracies, the number of images, and each class's accuracy.

    All in [0, 1]; a class without images has None.
    """
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(confidence_level=0.95, method="wilson")
    of_class = [right[labels == label] for label in range(n_classes)]
    return {
        "accuracy": round(float(right.mean()), 6),
        "low95": round(float(interval.low), 6),
        "high95": round(float(interval.high), 6),
        "balanced_accuracy": round(float(np.mean([part.mean() for part in of_class if len(part)])), 6),
        "n": len(right),
        "per_class": [round(float(part.mean()), 6) if len(part) else None for part in of_class],
    }


def _transfer(
    network: nn.Module, clean: ImageSet, clean_right: NDArray[np.bool_], stored: Sequence[ImageSet], model_sha256: str, batch_size: int
) -> dict[str, Any]:
    """Accuracy on stored adversarial validation images, set by set, and on the mix of them and the clean ones."""
    results: dict[str, Any] = {}
    all_right, all_labels = [clean_right], [clean.load("val").labels]
    for images in stored:
        images.expect({"clean.digest": clean.digest}, "made from another clean set")
        val = images.load("val")
        right = networks.predict(network, val.images, batch_size) == val.labels
        results[str(images.attributes["attack"])] = {
            **summarise(right, val.labels, len(clean.class_names)),
            "eps": images.attributes["eps.stored"],
            "made_against_this_model": images.attributes["model.sha256"] == model_sha256,
        }
        all_right.append(right)
        all_labels.append(val.labels)
    return {**results, MIXED: summarise(np.concatenate(all_right), np.concatenate(all_labels), len(clean.class_names))}


def _robust(network: nn.Module, val: Block, n_classes: int, settings: params.Evaluate) -> dict[str, Any]:
    """Accuracy under every threat, run afresh against the network."""
    return {
        name: {
            **summarise(
                withstands(network, val, threat, n_classes, batch_size=settings.batch_size, seed=settings.seed, text=f"judge by {name}"),
                val.labels,
                n_classes,
            ),
            "attack": threat.attack,
            "restarts": threat.restarts,
            **threat.parameters,
        }
        for name, threat in settings.threats.items()
    }


def sampled(n_val: int, settings: params.Evaluate) -> NDArray[np.bool_]:
    """Which validation images (N,) are attacked: all, or `n_eval` drawn at random."""
    if settings.n_eval is None or settings.n_eval >= n_val:
        return np.ones(n_val, dtype=bool)
    chosen = np.zeros(n_val, dtype=bool)
    chosen[np.random.default_rng(settings.seed).choice(n_val, settings.n_eval, replace=False)] = True
    return chosen
