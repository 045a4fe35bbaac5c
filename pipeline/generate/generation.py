"""Attack every image of the clean set, and store the results shard by shard."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision import models

from pipeline import attacks, networks
from pipeline.attacks.params import Attack, Generate
from pipeline.attacks.stored import identity
from pipeline.base import console, files, seeds, store
from pipeline.base.values import Spread, greatest
from pipeline.networks import matrix_products
from pipeline.networks.device import multiplies_bfloat16, processor
from pipeline.networks.memory_fit import InParts
from pipeline.networks.precision import recorded, tensor_floats

# Images on which both precisions are tried: this share of the set, within these bounds.
SAMPLE_SHARE, SAMPLE = 0.05, (256, 1024)
MOST_LOST = 0.005  # share of the attacked images that bf16 may fool less than fp32
CHANCE = 0.01  # probability that bf16 is refused by chance, where it is as good as fp32


@dataclasses.dataclass(frozen=True)
class Choice:
    """The precision of attacks, the network that they use, and what a trial of both found."""

    precision: str
    network: nn.Module
    trial: str = "none"


def generate(
    clean: store.ImageSet,
    network: models.ResNet,
    model_sha256: str,
    spec: Attack,
    settings: Generate,
    *,
    name: str,
    out: Path,
    device: torch.device,
) -> store.ImageSet:
    """Store adversarial images for all rows of `clean`, made against `network`.

    The rows are those of the train and the validation split. Rows, labels, ids and split are those
    of the clean set. Batches start at every shard's first row and have their own seeds. An
    interrupted run therefore resumes with the same images. A shard is written while the next one is
    attacked. The network is not changed. Raises Interrupted after Ctrl-C or SIGTERM, once the
    current batch is done. Whole shards are kept.
    """
    files.require_space(
        out,
        len(clean) * (math.prod(clean.image_shape) + store.ROW_BYTES),
        f"a set of {len(clean)} images",
    )
    exact = networks.frozen_copy(network).to(device)
    choice = choose_target(exact, clean, spec, settings, device)
    attacker = _Attacker(choice.network, exact, len(clean.class_names), spec, settings, device)
    attributes: store.Attributes = {
        "kind": "adversarial",
        "class_names": clean.attributes["class_names"],
        **identity(clean, model_sha256, name, spec, settings),
        "threat_model": "Linf",
        "eps.stored": attacks.eps_levels(greatest(spec.eps)) / 255,
        "device": device.type,
        "processor": processor(device),
        "precision": recorded(choice.precision, device),
        "precision.trial": choice.trial,
        **attacks.versions(),
    }
    with store.Writer(out, attributes, bounds=clean.bounds) as writer:
        _attack_missing(clean, writer, attacker, f"attack with {name}")
    return store.ImageSet(out)


def choose_target(
    exact: models.ResNet,
    clean: store.ImageSet,
    spec: Attack,
    settings: Generate,
    device: torch.device,
) -> Choice:
    """Return the precision, and the network to attack.

    With `auto`, bf16 is taken if the device multiplies it, unless attacks on it fool the exact
    network less often. Both are tried on the same images; `is_worse` decides.
    """
    size = clean.image_shape[1]
    plain = matrix_products.for_attacks(exact, size, torch.float32)
    if settings.precision == "fp32" or (
        settings.precision == "auto" and not multiplies_bfloat16(device)
    ):
        return Choice("fp32", plain)
    fast = matrix_products.for_attacks(exact, size, torch.bfloat16)
    if settings.precision == "bf16":
        return Choice("bf16", fast)
    least, most = SAMPLE
    sample = next(clean.blocks()).select(
        slice(min(most, max(least, int(SAMPLE_SHARE * len(clean)))))
    )
    by_fp32, by_bf16 = (
        _fooled(network, exact, sample, spec.at(greatest(spec.eps)), settings, device)
        for network in (plain, fast)
    )
    trial = (
        f"bf16 attacks fool {by_bf16.sum()} of {len(sample)} images, fp32 ones {by_fp32.sum()}, "
        f"both the same {(by_fp32 & by_bf16).sum()}"
    )
    if is_worse(by_fp32, by_bf16):
        console.say(f"{trial}: continuing with fp32")
        return Choice("fp32", plain, trial)
    return Choice("bf16", fast, trial)


def is_worse(by_fp32: NDArray[np.bool_], by_bf16: NDArray[np.bool_]) -> bool:
    """Return whether bf16 attacks fool so many fewer images (N,) that chance does not explain it.

    Images that both or neither fool say nothing. If bf16 is as good, each of the others is fooled
    by either with the same probability (McNemar's exact test, one-sided). The loss must also be
    more than MOST_LOST of all images.
    """
    lost, gained = int((by_fp32 & ~by_bf16).sum()), int((by_bf16 & ~by_fp32).sum())
    n_differing = lost + gained
    tail = sum(math.comb(n_differing, count) for count in range(lost, n_differing + 1))
    return lost - gained > MOST_LOST * len(by_fp32) and tail < CHANCE * 2**n_differing


def attacked_again(
    images: store.ImageSet,
    original: store.Block,
    start: int,
    network: models.ResNet,
    spec: Attack,
    settings: Generate,
    *,
    device: torch.device,
) -> store.Block:
    """Return what a stored set should hold from row `start` on, where a batch begins.

    `original` is attacked once more, in the recorded precision.
    """
    exact = networks.frozen_copy(network).to(device)
    dtype = torch.bfloat16 if images.attributes["precision"] == "bf16" else torch.float32
    target = matrix_products.for_attacks(exact, original.images.shape[2], dtype)
    attacker = _Attacker(target, exact, len(images.class_names), spec, settings, device)
    with console.progress(
        len(original), f"attack again with {images.attributes['attack']}", "images"
    ) as bar:
        return store.join(list(attacker.batches(original, start, bar)))


def _attack_missing(
    clean: store.ImageSet, writer: store.Writer, attacker: "_Attacker", text: str
) -> None:
    """Attack and write the shards that do not exist yet."""
    missing = {start for start, _ in writer.missing()}
    with console.progress(len(clean), text, "images") as bar, console.stopping() as stop:
        for (start, end), block in zip(clean.bounds, clean.blocks(), strict=True):
            if start not in missing:
                bar.update(end - start)
            elif (rows := attacker.rows(block, start, bar, stop)) is not None:
                writer.write_behind(start, rows)
            else:
                end = start
            if stop.asked:
                writer.flush()
                raise console.Interrupted(f"{text}: {end} of {len(clean)} images are done")


def _fooled(
    network: nn.Module,
    exact: models.ResNet,
    sample: store.Block,
    spec: Attack,
    settings: Generate,
    device: torch.device,
) -> NDArray[np.bool_]:
    """Return which attacked images (N,) the exact network gets wrong.

    They are attacked through `network`, and rounded as they would be stored.
    """
    attack = attacks.build(spec, InParts(network), exact.fc.out_features)
    images, labels = (
        torch.from_numpy(sample.images).to(device),
        torch.from_numpy(sample.labels).to(device),
    )
    with tensor_floats():
        found = attacks.perturb(attack, images / 255, labels, settings.seed)
    adv_images = attacks.quantise(found, images, greatest(spec.eps))
    return ~networks.is_right(exact, adv_images / 255, labels)


class _Attacker:
    """An attacker of `target` that asks `exact` which images are fooled."""

    def __init__(
        self,
        target: nn.Module,
        exact: nn.Module,
        n_classes: int,
        spec: Attack,
        settings: Generate,
        device: torch.device,
    ) -> None:
        self._attacked, self._judge, self._n_classes = InParts(target), InParts(exact), n_classes
        self._spec, self._settings, self._device = spec, settings, device

    def rows(
        self, block: store.Block, start: int, bar: console.Bar, stop: console.Stop
    ) -> store.Block | None:
        """Return the adversarial counterpart of a shard that begins at row `start`.

        Return None if it is stopped before the shard's end.
        """
        parts: list[store.Block] = []
        for part in self.batches(block, start, bar):
            parts.append(part)
            if stop.asked:
                break
        attacked = store.join(parts)
        return attacked if len(attacked) == len(block) else None

    def batches(self, block: store.Block, start: int, bar: console.Bar) -> Iterator[store.Block]:
        """Yield the adversarial batches of a shard that begins at row `start`."""
        for rows in batches(len(block), self._settings.batch_size):
            yield self._batch(
                block.select(rows), seeds.batch_seed(self._settings.seed, start + rows.start)
            )
            bar.update(rows.stop - rows.start)

    def _batch(self, block: store.Block, seed: int) -> store.Block:
        images, eps, fooled = (
            np.empty_like(block.images),
            np.empty(len(block), dtype=np.float32),
            np.empty(len(block), dtype=bool),
        )
        requested = eps_of(self._spec.eps, len(block), seed)
        for level in np.unique(requested):
            chosen = requested == level
            attack = attacks.build(self._spec.at(float(level)), self._attacked, self._n_classes)
            clean, labels = (
                torch.from_numpy(array[chosen]).to(self._device)
                for array in (block.images, block.labels)
            )
            with tensor_floats():
                found = attacks.perturb(attack, clean / 255, labels, seed)
            stored = attacks.quantise(found, clean, float(level))
            images[chosen], fooled[chosen] = (
                stored.cpu().numpy(),
                ~networks.is_right(self._judge, stored / 255, labels),
            )
            eps[chosen] = attacks.eps_levels(level) / 255
        return dataclasses.replace(block, images=images, eps=eps, fooled=fooled)


def eps_of(eps: float | Spread, n_images: int, seed: int) -> NDArray[np.float64]:
    """Return the eps (N,) of each image.

    It is the same for all, or drawn from a distribution and lowered to a whole number of steps
    between stored pixels.
    """
    if not isinstance(eps, Spread):
        return np.full(n_images, eps)
    shares = np.random.default_rng(seed).random(n_images)
    return np.array([attacks.eps_levels(eps.quantile(share)) for share in shares]) / 255


def batches(n_rows: int, size: int) -> Iterator[slice]:
    """Yield the rows of each batch, in order. The last batch may be smaller."""
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
