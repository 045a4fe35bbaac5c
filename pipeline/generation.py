"""Attack every image of the clean set and store what comes out, shard by shard."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models

from pipeline import attacks, console, files, networks, params, products, store
from pipeline.device import multiplies_bfloat16, processor
from pipeline.in_parts import InParts

SAMPLE = 256  # images on which both precisions are tried before one is chosen
MOST_LOST = 0.005  # of the attacked images


def generate(
    clean: store.ImageSet,
    network: models.ResNet,
    model_sha256: str,
    spec: params.Attack,
    settings: params.Generate,
    *,
    name: str,
    out: Path,
    device: torch.device,
    compression: str = "none",
) -> store.ImageSet:
    """Store adversarial images for all rows of `clean`, train and validation, made against `network`.

    Rows, labels, ids and split are those of the clean set. Batches start at every shard's first row and have their own seeds, so an
    interrupted run goes on with the same images. A shard is written while the next one is attacked. The network is not changed.
    """
    files.require_space(out, len(clean) * (math.prod(clean.image_shape) + store.ROW_BYTES), f"a set of {len(clean)} images")
    exact = attacks.frozen_copy(network).to(device)
    precision, target = choose_target(exact, clean, spec, settings, device)
    attacked, judge = InParts(target), InParts(exact)
    attributes: store.Attributes = {
        "kind": "adversarial",
        "class_names": clean.attributes["class_names"],
        **identity(clean, model_sha256, name, spec, settings),
        "threat_model": "Linf",
        "eps.stored": attacks.eps_levels(params.greatest(spec.eps)) / 255,
        "device": device.type,
        "processor": processor(device),
        "precision": precision,
        **attacks.versions(),
    }
    writing = store.Writer(out, attributes, bounds=clean.bounds, compression=compression, until_recorded=True)
    with writing as writer, console.progress(len(clean), f"attack with {name}", "images") as bar:
        missing = {start for start, _ in writer.missing()}
        for (start, stop), block in zip(clean.bounds, clean.blocks(), strict=True):
            if start in missing:
                writer.write_behind(start, _attacked(block, start, attacked, judge, len(clean.class_names), spec, settings, device, bar))
            else:
                bar.update(stop - start)
    return store.ImageSet(out)


def store_refreshed(
    cached: store.ImageSet, images: Tensor, network: models.ResNet, model_sha256: str, refresh: params.Refresh, out: Path
) -> store.ImageSet:
    """Store what the training rows of a cached set have become: `images` (N, 3, H, W; uint8). Validation rows stay as they were.

    `model_sha256` names `network`, the model that came out of the training, which is the one that `fooled` is about.
    """
    attributes: store.Attributes = {
        **cached.attributes,
        "kind": "refreshed",
        "cached.digest": cached.digest,
        "cached.model.sha256": cached.attributes["model.sha256"],
        "model.sha256": model_sha256,
        **{f"refresh.{key}": value for key, value in refresh},
    }
    remaining = images.cpu().numpy()
    with store.Writer(out, attributes, bounds=cached.bounds, compression=str(cached.attributes["compression"])) as writer:
        for (start, _), block in zip(cached.bounds, cached.blocks(), strict=True):
            trained = block.split == store.SPLITS["train"]
            new = block.images.copy()
            new[trained], remaining = remaining[: trained.sum()], remaining[trained.sum() :]
            fooled = networks.predict(network, new, SAMPLE) != block.labels
            if (start, start + len(block)) in writer.missing():
                writer.write(start, dataclasses.replace(block, images=new, fooled=fooled))
    return store.ImageSet(out)


def passes(images: store.ImageSet) -> int:
    """How many gradients of single images it took to make a set: one a step, as torchattacks' gradient attacks take them."""
    return len(images) * int(images.attributes.get("attack.steps", 1))


def identity(clean: store.ImageSet, model_sha256: str, name: str, spec: params.Attack, settings: params.Generate) -> store.Attributes:
    """The attributes by which a reader knows that a stored set is the one it wants."""
    return {
        "clean.digest": clean.digest,
        "model.sha256": model_sha256,
        "attack": name,
        "attack.class": spec.attack,
        **{f"attack.{key}": value for key, value in spec.described.items()},
        "batch_size": settings.batch_size,
        "seed": settings.seed,
    }


def choose_target(
    exact: models.ResNet, clean: store.ImageSet, spec: params.Attack, settings: params.Generate, device: torch.device
) -> tuple[str, nn.Module]:
    """The network to attack and its precision: the exact one (fp32), or the same function as bfloat16 matrix products (bf16).

    With `auto`, bf16 is taken where the device multiplies it, unless attacks on it fool the exact network less often: both are tried on the
    same images, and a loss of more than MOST_LOST is too much.
    """
    if settings.precision == "fp32" or (settings.precision == "auto" and not multiplies_bfloat16(device)):
        return "fp32", exact
    block = next(clean.blocks())
    fast = products.Frozen(exact, block.images.shape[2], torch.bfloat16)
    spec = spec.at(params.greatest(spec.eps))
    if settings.precision == "auto":
        sample = block.select(np.arange(len(block)) < SAMPLE)
        fooled = {name: _fooled(network, exact, sample, spec, settings, device) for name, network in (("fp32", exact), ("bf16", fast))}
        if fooled["fp32"] - fooled["bf16"] > max(1, MOST_LOST * len(sample)):
            console.say(f"bf16 attacks fool {fooled['bf16']} of {len(sample)} images, fp32 ones {fooled['fp32']}: going on with fp32")
            return "fp32", exact
    return "bf16", fast


def attacked_again(
    images: store.ImageSet,
    original: store.Block,
    start: int,
    network: models.ResNet,
    spec: params.Attack,
    settings: params.Generate,
    *,
    device: torch.device,
) -> store.Block:
    """What a stored set should hold from row `start` on, where a batch begins: `original` attacked once more, in the recorded precision."""
    exact = attacks.frozen_copy(network).to(device)
    fast = images.attributes["precision"] == "bf16"
    attacked = InParts(products.Frozen(exact, original.images.shape[2], torch.bfloat16) if fast else exact)
    with console.progress(len(original), f"attack again with {images.attributes['attack']}", "images") as bar:
        return _attacked(original, start, attacked, InParts(exact), len(images.class_names), spec, settings, device, bar)


def _fooled(
    network: nn.Module, exact: models.ResNet, sample: store.Block, spec: params.Attack, settings: params.Generate, device: torch.device
) -> int:
    """How many images, attacked through `network` and stored, the exact network gets wrong."""
    attack = attacks.build(spec, InParts(network), exact.fc.out_features)
    images, labels = torch.from_numpy(sample.images).to(device), torch.from_numpy(sample.labels).to(device)
    adv_images = attacks.quantise(attacks.perturb(attack, images / 255, labels, settings.seed), images, params.greatest(spec.eps))
    return int((~networks.is_right(exact, adv_images / 255, labels)).sum())


def _attacked(
    block: store.Block,
    start: int,
    attacked: nn.Module,
    judge: nn.Module,
    n_classes: int,
    spec: params.Attack,
    settings: params.Generate,
    device: torch.device,
    bar: console.Bar,
) -> store.Block:
    """The adversarial counterpart of one shard's rows."""
    images, fooled = np.empty_like(block.images), np.empty(len(block), dtype=bool)
    eps = np.empty(len(block), dtype=np.float32)
    for rows in batches(len(block), settings.batch_size):
        seed = attacks.batch_seed(settings.seed, start + rows.start)
        requested = eps_of(spec.eps, len(block.labels[rows]), seed)
        for level in np.unique(requested):
            chosen = rows.start + np.flatnonzero(requested == level)
            attack = attacks.build(spec.at(float(level)), attacked, n_classes)
            clean, labels = torch.from_numpy(block.images[chosen]).to(device), torch.from_numpy(block.labels[chosen]).to(device)
            stored = attacks.quantise(attacks.perturb(attack, clean / 255, labels, seed), clean, float(level))
            images[chosen], fooled[chosen] = stored.cpu().numpy(), ~networks.is_right(judge, stored / 255, labels)
            eps[chosen] = attacks.eps_levels(level) / 255
            bar.update(len(labels))
    return store.Block(images=images, labels=block.labels, ids=block.ids, split=block.split, eps=eps, fooled=fooled)


def eps_of(eps: float | params.Spread, n_images: int, seed: int) -> NDArray[np.float64]:
    """The eps (N,) of each image: the same for all, or drawn from a distribution and lowered to the steps between stored pixels."""
    if not isinstance(eps, params.Spread):
        return np.full(n_images, eps)
    shares = np.random.default_rng(seed).random(n_images)
    return np.array([attacks.eps_levels(eps.quantile(share)) for share in shares]) / 255


def batches(n_rows: int, size: int) -> Iterator[slice]:
    """The rows of each batch, in order; the last one may be smaller."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
