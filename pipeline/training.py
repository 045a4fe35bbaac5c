"""The one training loop: optimiser, schedule, and the model of the best epoch."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from pipeline import console, files, networks, params, products
from pipeline.device import describe, multiplies_bfloat16
from pipeline.errors import InputError
from pipeline.mixing import MixedBatches

CROP_PADDING = 4  # pixels a side, as in "Deep Residual Learning for Image Recognition" for CIFAR-10 (He et al., 2016)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave.

    `epoch` counts from 1, `lr` is that of its first batch, accuracies are in [0, 1], training loss and accuracy are means over its images.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished training: the tensors of the best epoch and the history of all of them."""

    state_dict: dict[str, Tensor]
    best: Epoch
    history: list[dict[str, Any]]


def fit(
    network: nn.Module,
    batches: MixedBatches,
    validate: Callable[[nn.Module], float],
    settings: params.Training,
    *,
    text: str,
    device: torch.device,
) -> Fit:
    """Train `network` for `settings.epochs` and keep the first of its best epochs on `validate`, an accuracy in [0, 1].

    The network is trained in place. Raises InputError when the loss is no longer finite.
    """
    network.to(device).to(memory_format=torch.channels_last)
    forward = _forward(network, settings.precision, device)
    optimizer = _optimizer(network, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate((step + 0.5) / len(batches), settings))
    generator = torch.Generator(device).manual_seed(settings.seed)
    history: list[Epoch] = []
    best: Epoch | None = None
    state: dict[str, Tensor] = {}
    with console.progress(settings.epochs * len(batches), text, "batches") as bar:
        for number in range(settings.epochs):
            lr = float(schedule.get_last_lr()[0])
            loss, accuracy = _train_epoch(network, forward, batches, number, optimizer, schedule, settings, generator, bar)
            if not math.isfinite(loss):
                raise InputError(f"{text}: the loss is {loss} after epoch {number + 1}; lower its lr in params.yaml (now {settings.lr})")
            val_accuracy = validate(network)
            epoch = Epoch(epoch=number + 1, lr=lr, train_loss=loss, train_accuracy=accuracy, val_accuracy=val_accuracy)
            history.append(epoch)
            if best is None or val_accuracy > best.val_accuracy:
                best, state = epoch, {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            bar.set_postfix_str(f"loss {loss:.3f}, val {val_accuracy:.4f}, best {best.val_accuracy:.4f}")
    assert best is not None
    return Fit(state_dict=state, best=best, history=[_rounded(epoch) for epoch in history])


def save(
    fitted: Fit,
    out: Path,
    history: Path,
    *,
    architecture: str,
    class_names: Sequence[str],
    provenance: Mapping[str, str | int | float],
    settings: params.Training,
    device: torch.device,
) -> str:
    """Write the best epoch's checkpoint, with where it comes from, and the history of all epochs; says what was kept."""
    checkpoint = networks.Checkpoint(
        architecture=architecture,
        class_names=list(class_names),
        state_dict=fitted.state_dict,
        provenance={
            **provenance,
            **{f"training.{key}": value if isinstance(value, str | int | float) else json.dumps(value) for key, value in settings},
            "best.epoch": fitted.best.epoch,
            "best.val_accuracy": fitted.best.val_accuracy,
            "device": device.type,
            "precision": precision_for(settings.precision, device),
            **{f"versions.{name}": version(name) for name in ("torch", "torchvision")},
        },
    )
    checkpoint.save(out)
    files.write_csv(history, fitted.history)
    kept = f"epoch {fitted.best.epoch} of {settings.epochs} kept, validation accuracy {fitted.best.val_accuracy:.4f}"
    return f"{out}: {kept}, on {describe(device)}"


def precision_for(precision: params.Precision, device: torch.device) -> params.Precision:
    """The precision to train in: the one asked for, or bf16 on a CPU that multiplies it, where it was measured to be faster."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cpu" and multiplies_bfloat16(device) else "fp32"


def learning_rate(epoch: float, settings: params.Training) -> float:
    """The factor on `settings.lr` at a fractional epoch: a linear warm-up from 0, then constant or half a cosine down to 0."""
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    done = (epoch - settings.warmup_epochs) / max(settings.epochs - settings.warmup_epochs, 1e-9)
    return (1 + math.cos(math.pi * min(done, 1))) / 2


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Flip and shift a batch (B, 3, H, W), image by image, as `kind` says: none, flip, crop, or flip+crop.

    A crop is a window of the image padded with `CROP_PADDING` zeros on every side.
    """
    n, device = len(images), images.device
    if "flip" in kind:
        flipped = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
        images = torch.where(flipped, images.flip(3), images)
    if "crop" in kind:
        height, width = images.shape[2:]
        padded = functional.pad(images, (CROP_PADDING,) * 4)
        corners = torch.randint(0, 2 * CROP_PADDING + 1, (2, n, 1, 1, 1), generator=generator, device=device)
        rows = corners[0] + torch.arange(height, device=device).view(1, 1, height, 1)
        columns = corners[1] + torch.arange(width, device=device).view(1, 1, 1, width)
        channels = torch.arange(images.shape[1], device=device).view(1, -1, 1, 1)
        images = padded[torch.arange(n, device=device).view(n, 1, 1, 1), channels, rows, columns]
    return images


def _train_epoch(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: MixedBatches,
    number: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    settings: params.Training,
    generator: torch.Generator,
    bar: console.Bar,
) -> tuple[float, float]:
    """One pass; returns the mean loss and accuracy over its images. Sums stay on the device: reading them would stall it at every step."""
    network.train()
    totals = torch.zeros(3, device=generator.device)
    for images, labels in batches.epoch(number):
        images = augment(images, settings.augment, generator).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        logits = forward(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right = (logits.detach().argmax(1) == labels).sum()
        totals += torch.stack([loss.detach() * len(labels), right, torch.full_like(right, len(labels))])
        bar.update(1)
    loss_sum, n_right, n_images = totals.tolist()
    return loss_sum / n_images, n_right / n_images


def _forward(network: nn.Module, precision: params.Precision, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network's own forward, or the same function as bfloat16 matrix products."""
    if precision_for(precision, device) == "bf16" and isinstance(network, models.ResNet):
        return partial(products.training_logits, network, dtype=torch.bfloat16)
    return network


def _optimizer(network: nn.Module, settings: params.Training) -> torch.optim.Optimizer:
    weights = network.parameters()
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=settings.lr, betas=(settings.momentum, 0.999), weight_decay=settings.weight_decay, fused=True)
    return torch.optim.SGD(
        weights,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def _rounded(epoch: Epoch) -> dict[str, Any]:
    return {key: round(value, 6) for key, value in asdict(epoch).items()}
