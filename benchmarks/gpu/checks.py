"""Check what a GPU must not change: accuracy in bf16, a resumed run's bytes, stored attacks."""

import math
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision import models

from pipeline import document
from pipeline.attacks.params import Attack
from pipeline.audit.samples import SAME
from pipeline.base import console, params, store
from pipeline.base.errors import InputError
from pipeline.cluster.here import Here
from pipeline.generate import generation
from pipeline.networks.precision import precision_for
from pipeline.networks.scores import accuracy_on
from pipeline.prepare import sources
from pipeline.prepare.params import Data
from pipeline.train import augmentation, loop, mixing
from pipeline.train.images import HeldImages
from pipeline.train.params import Training

POINTS = 0.5  # of accuracy that the default precision may cost
MOST_POINTS = 2.0  # that it may cost even where chance explains them
SEEDS = 5  # of trainings in each precision
PGD = {"attack": "PGD", "eps": "8/255", "alpha": "2/255", "steps": 14, "random_start": True}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the checks train and attack. `epochs` of training, `attacked` images."""

    architecture: str
    train: store.Block
    val: store.Block
    batch: int
    epochs: int
    attacked: int


def failed(data: Path | None, device: torch.device, *, tiny: bool) -> list[str]:
    """Run all checks, print what each found, and return the names of those that failed.

    `data` is an .npz of CIFAR-10. A tiny trial needs none. Raises InputError if it is missing.
    """
    if data is None and not tiny:
        raise InputError("--data: expected the path of an .npz of CIFAR-10, found none")
    # cuBLAS reads this when it is first used. Without it, it is not deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    trial = _tiny() if data is None else _trial(data, tiny=tiny)
    results = {
        "accuracy": accuracy(trial, device),
        "resume": resume(trial, device),
        "attack again": attack_again(trial, device),
    }
    for name, (passed, found) in results.items():
        console.say(f"{name}: {'ok' if passed else 'FAILED'}, {found}")
    return [name for name, (passed, _) in results.items() if not passed]


def accuracy(trial: Trial, device: torch.device) -> tuple[bool, str]:
    """Compare training in the default precision with fp32, from the same seeds.

    After few epochs, rounding alone moves the accuracy by more than POINTS. So the default
    precision may also cost twice the standard error of its mean cost, but not more than MOST_POINTS
    in all.
    """
    fp32, fast = (
        np.array(
            [
                100 * _fitted(trial, device, asked, seed=seed).history[-1]["val_accuracy"]
                for seed in range(SEEDS)
            ]
        )
        for asked in ("fp32", "auto")
    )
    cost = fp32 - fast
    error = cost.std(ddof=1) / math.sqrt(SEEDS)
    text = (
        f"fp32 {_listed(fp32)}, {precision_for('auto', device)} {_listed(fast)} %, "
        f"which costs {cost.mean():.2f} ± {error:.2f} points"
    )
    return bool(cost.mean() <= min(POINTS + 2 * error, MOST_POINTS)), text


def _listed(accuracies: np.ndarray) -> str:
    return ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)


def resume(trial: Trial, device: torch.device) -> tuple[bool, str]:
    """Compare a run that is stopped and resumed with a whole one, with deterministic algorithms."""
    with tempfile.TemporaryDirectory() as folder, _deterministic():
        whole = _fitted(trial, device, "auto")
        part = Path(folder, "part")
        stop_at = max(1, len(trial.train) // trial.batch * 3 // 2)
        try:
            _fitted(trial, device, "auto", part=part, stop_at=stop_at)
        except console.Interrupted as interruption:
            console.say(str(interruption))
        again = _fitted(trial, device, "auto", part=part)
    differing = [
        name
        for name, tensor in whole.state_dict.items()
        if not torch.equal(tensor, again.state_dict[name])
    ]
    same = not differing and whole.history == again.history
    return same, f"{len(differing)} of {len(whole.state_dict)} tensors differ"


def attack_again(trial: Trial, device: torch.device) -> tuple[bool, str]:
    """Compare an attack with its repetition, by the limit of the audit."""
    torch.manual_seed(0)
    network = models.get_model(trial.architecture, num_classes=10)
    block = trial.val.select(slice(trial.attacked))
    settings, spec = document.load(params.FILE).generate, Attack.model_validate(PGD)
    with tempfile.TemporaryDirectory() as folder:
        clean = _stored(Path(folder, "clean"), block)
        made = generation.generate(
            clean,
            network,
            "0" * 64,
            spec,
            settings,
            name="pgd",
            out=Path(folder, "pgd"),
            workers=Here(device),
        )
        again = generation.attacked_again(made, block, 0, network, spec, settings, device=device)
        stored = store.join(list(made.blocks()))
    differing = (again.images != stored.images).mean(axis=(1, 2, 3))
    limit = SAME[device.type]
    text = f"at most {differing.max():.2%} of an image's values differ (limit {limit:.0%})"
    return bool((differing <= limit).all()), text


class _Stopping:
    """Batches that ask the run to stop when they yield batch number `stop_at` of all epochs."""

    def __init__(self, batches: augmentation.AugmentedBatches, stop_at: int | None) -> None:
        self._batches, self._left, self.state = batches, stop_at, batches.state

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in self._batches.epoch(number, first):
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    signal.raise_signal(signal.SIGTERM)
            yield batch


def _fitted(
    trial: Trial,
    device: torch.device,
    asked: str,
    *,
    seed: int = 0,
    part: Path | None = None,
    stop_at: int | None = None,
) -> loop.Fit:
    """Return the result of a training from a seed, in the precision that is asked for."""
    torch.manual_seed(seed)
    network = models.get_model(trial.architecture, num_classes=10)
    recipe: Training = document.load(params.FILE).clean.model_copy(
        update={"epochs": trial.epochs, "batch_size": trial.batch, "precision": asked, "lr": 0.05}
    )
    held = HeldImages(torch.from_numpy(trial.train.images).to(device), device)
    labels, counts = {"clean": trial.train.labels}, {"clean": trial.batch}
    mixed = mixing.MixedBatches(held, labels, counts, seed, device)
    batches = _Stopping(augmentation.AugmentedBatches(mixed, "flip+crop", seed=seed), stop_at)
    validate = accuracy_on(trial.val)
    return loop.fit(
        network, batches, validate, recipe, text=f"train in {asked}", device=device, part=part
    )


@contextmanager
def _deterministic() -> Iterator[None]:
    """Use deterministic algorithms where torch has them, and warn of others."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _trial(path: Path, *, tiny: bool) -> Trial:
    """Return a trial on the images of an .npz."""
    n_val = 5_000
    data = Data.model_validate(
        {
            "source": "npz",
            "path": str(path),
            "image_size": None,
            "n_images": None,
            "n_val": n_val,
            "seed": 0,
        }
    )
    source = sources.open_source(data)
    rows = np.random.default_rng(0).permutation(len(source.labels))
    if tiny:
        rows, n_val = rows[:96], 32
    block = _block(source.read(np.sort(rows)), source.labels[np.sort(rows)])
    order = np.random.default_rng(1).permutation(len(block))
    is_val = order < n_val
    return Trial(
        architecture="resnet18" if tiny else "resnet50",
        train=block.select(~is_val),
        val=block.select(is_val),
        batch=16 if tiny else 128,
        epochs=2 if tiny else 3,
        attacked=32 if tiny else 1_024,
    )


def _tiny() -> Trial:
    """Return a trial on random images of 8x8 pixels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (96, 3, 8, 8), dtype=np.uint8)
    block = _block(images, np.arange(96) % 10)
    is_val = np.arange(96) >= 64
    return Trial(
        architecture="resnet18",
        train=block.select(~is_val),
        val=block.select(is_val),
        batch=16,
        epochs=2,
        attacked=32,
    )


def _block(images: np.ndarray, labels: np.ndarray) -> store.Block:
    n = len(labels)
    return store.Block(
        images=images,
        labels=labels.astype(np.int64),
        ids=np.arange(n),
        split=np.zeros(n, np.uint8),
    )


def _stored(path: Path, block: store.Block) -> store.ImageSet:
    bounds = store.shard_bounds(len(block), len(block))
    names = '["' + '", "'.join("abcdefghij") + '"]'
    with store.Writer(path, {"kind": "clean", "class_names": names}, bounds=bounds) as writer:
        writer.write(0, block)
    return store.ImageSet(path)
