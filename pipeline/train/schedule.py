"""Defines what moves the weights.

This is the learning rate of every batch, the optimizer, and the average of the weights.
"""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.train import params


def learning_rate(epoch: float, settings: params.Training) -> float:
    """Return the factor on `settings.lr` at a fractional epoch.

    It rises linearly from 0 during the warm-up. Then it is constant, or falls to 0 as half a
    cosine.
    """
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    done = (epoch - settings.warmup_epochs) / max(settings.epochs - settings.warmup_epochs, 1e-9)
    return (1 + math.cos(math.pi * min(done, 1))) / 2


def optimizer(network: nn.Module, settings: params.Training) -> torch.optim.Optimizer:
    weights = network.parameters()
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            weights,
            lr=settings.lr,
            betas=(settings.momentum, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
        )
    return torch.optim.SGD(
        weights,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def average(network: nn.Module, decay: float) -> AveragedModel:
    """Return a running average of the parameters and of BatchNorm's statistics.

    The training loop updates it after every step.
    """
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
