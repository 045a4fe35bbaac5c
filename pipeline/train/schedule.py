"""Defines what moves the weights.

This is the learning rate of every batch, the optimizer, and the average of the weights.
"""

import copy
import math
from itertools import chain

import torch
from torch import Tensor, nn

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
        self._first, self._averaged = copy.deepcopy(network), copy.deepcopy(network)
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.int64, device="cpu"))

    def update(self, network: nn.Module) -> None:
        """Update the average, which a captured step can do."""
        if self.n_steps == 0:
            self.restart(network)
        else:
            averaged, new = _floats(self._averaged), _floats(network)
            torch._foreach_lerp_(averaged, new, 1 - self._decay)

    def restart(self, network: nn.Module) -> None:
        """Begin with a copy of a network."""
        for copied in (self._averaged, self._first):
            copied.load_state_dict(network.state_dict())
        self.n_steps.zero_()

    def count(self) -> None:
        """Count a step. A captured step cannot do this itself."""
        self.n_steps += 1

    def judged(self, network: nn.Module) -> nn.Module:
        """Return the average, without the first copy if its share is more than FIRST.

        The numbers of batches that BatchNorm counts are those of the network.
        """
        buffers = network.named_buffers()
        counts = {name: value for name, value in buffers if not value.is_floating_point()}
        self._averaged.load_state_dict(counts, strict=False)
        share = self._decay ** max(int(self.n_steps) - 1, 0)
        if not FIRST < share < 1:
            return self._averaged
        corrected = copy.deepcopy(self._averaged)
        for own, first in zip(_floats(corrected), _floats(self._first), strict=True):
            own.sub_(first, alpha=share).div_(1 - share)
        return corrected


def _floats(network: nn.Module) -> list[Tensor]:
    tensors = chain(network.parameters(), network.buffers())
    return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
