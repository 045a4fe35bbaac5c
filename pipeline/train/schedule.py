"""Defines what moves the weights.

This is the learning rate of every batch, the optimizer, and the average of the weights.
"""

import copy
import math
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.train import params

FIRST = 0.01  # the greatest share that the first weights may have in an average


def learning_rate(epoch: float, settings: params.Training) -> float:
    """Return the factor on `settings.lr` at a fractional epoch.

    It rises linearly from 0 during the warm-up. Then it is constant, or falls to 0: as half a
    cosine, or linearly (`onecycle`; Smith and Topin, 2018, as in Wong et al., ICLR 2020).
    """
    if epoch < settings.warmup_epochs:
        return epoch / settings.warmup_epochs
    if settings.schedule == "constant":
        return 1.0
    done = (epoch - settings.warmup_epochs) / max(settings.epochs - settings.warmup_epochs, 1e-9)
    if settings.schedule == "onecycle":
        return 1 - min(done, 1)
    return (1 + math.cos(math.pi * min(done, 1))) / 2


def optimizer(
    network: nn.Module, settings: params.Training, *, capturable: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer that moves the weights in one fused kernel.

    It takes the gradients from the network's parameters, where they must be set to zero, too.
    `capturable` prepares its steps for a CUDA graph.
    """
    weights = list(network.parameters())
    in_order = [_in_memory_order(weight) for weight in weights]

    def take_gradients(*_: object) -> None:
        for own, weight in zip(in_order, weights, strict=True):
            if own is not weight and weight.grad is not None:
                own.grad = weight.grad.permute(0, 2, 3, 1)

    found = _optimizer(in_order, settings, capturable=capturable)
    found.register_step_pre_hook(take_gradients)
    return found


def _in_memory_order(weight: nn.Parameter) -> Tensor:
    """Return a contiguous view of a weight whose channels are last in the memory of a CPU.

    There, torch's fused kernels would copy such a weight and its gradient in every step.
    """
    if weight.is_contiguous() or weight.device.type != "cpu":
        return weight
    return weight.detach().permute(0, 2, 3, 1)


def _optimizer(
    weights: list[Tensor], settings: params.Training, *, capturable: bool
) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        adamw = torch.optim.AdamW(
            weights,
            lr=settings.lr,
            betas=(settings.momentum, 0.999),
            weight_decay=settings.weight_decay,
            fused=True,
            capturable=capturable,
        )
        # Steps before and beside the captured one are intended, so torch need not warn of them.
        adamw._warned_capturable_if_run_uncaptured = True
        return adamw
    return torch.optim.SGD(
        weights,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
        fused=True,
    )


def start_at_zero(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD momentum of zero before its first step.

    That step then does what it always does. If it is skipped, because gradients in fp16 were too
    large, torch's fused SGD would otherwise continue from memory that it never wrote.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for weights in group["params"]:
                optimizer.state[weights]["momentum_buffer"] = torch.zeros_like(weights)


class Average(nn.Module):
    """A running average of a network's parameters and of BatchNorm's statistics.

    It begins with a copy of the network after the first step. That copy keeps a share, which
    shrinks by the factor `decay` with every update. `n_steps` counts the steps since then.
    """

    n_steps: Tensor

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        self._first = copy.deepcopy(network)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device="cpu"))
        self._averaged = AveragedModel(
            network,
            multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )

    def update(self, network: nn.Module, *, in_place: bool) -> None:
        """Update the average. `in_place` is for steps that are captured."""
        if self.n_steps == 0:
            self.restart(network)
        elif in_place:
            _update_in_place(self._averaged, network)
        else:
            self._averaged.update_parameters(network)

    def restart(self, network: nn.Module) -> None:
        """Begin with a copy of a network."""
        for copied in (self._averaged.module, self._first):
            copied.load_state_dict(network.state_dict())
        self._averaged.n_averaged.fill_(1)
        self.n_steps.zero_()

    def count(self) -> None:
        """Count a step. A captured step cannot do this itself."""
        self.n_steps += 1

    def judged(self) -> nn.Module:
        """Return the average, without the first copy if its share is more than FIRST."""
        share = self._decay ** max(int(self.n_steps) - 1, 0)
        if not FIRST < share < 1:
            return self._averaged.module
        corrected = copy.deepcopy(self._averaged.module)
        with torch.no_grad():
            for own, first in zip(_tensors(corrected), _tensors(self._first), strict=True):
                if own.is_floating_point():
                    own.sub_(first, alpha=share).div_(1 - share)
        return corrected


def _update_in_place(averaged: AveragedModel, network: nn.Module) -> None:
    """Update an average as its own method does after its first update, without stalling a GPU.

    Its own method copies a count to the GPU for every update, which this kind of average ignores.
    """
    pairs = zip(_tensors(averaged.module), _tensors(network), strict=True)
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for own, new in pairs:
        ours, theirs = by_dtype.setdefault(own.dtype, ([], []))
        ours.append(own.detach())
        theirs.append(new.detach())
    assert averaged.multi_avg_fn is not None
    for ours, theirs in by_dtype.values():
        averaged.multi_avg_fn(tuple(ours), tuple(theirs), 0)


def _tensors(network: nn.Module) -> chain[Tensor]:
    return chain(network.parameters(), network.buffers())
