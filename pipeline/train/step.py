"""Takes one step of training: gradients, weights, their average, and the sums of the epoch."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from pipeline.networks import matrix_products
from pipeline.networks.captured import Graphs, captured
from pipeline.networks.memory_fit import Offload
from pipeline.networks.precision import Computed, precision_for
from pipeline.train import pairs, params, schedule


class Step:
    """A step of training, with everything that it changes.

    The whole step is captured where `graphs` is given. `totals` (3,) are the sums of the losses,
    of the right predictions and of the images. They stay on the device, because reading them would
    stall it at every step.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: params.Training,
        device: torch.device,
        graphs: Graphs | None,
    ) -> None:
        computed = precision_for(settings.precision, device)
        self._network, self._smoothing = network, settings.label_smoothing
        self._paired = settings.paired
        self._forward = _forward(network, computed, device)
        self._optimizer = schedule.optimizer(network, settings, capturable=graphs is not None)
        # fp16 has so few exponents that small gradients become 0 unless the loss is scaled.
        self._scaler = torch.amp.GradScaler(device.type, enabled=computed == "fp16")
        if self._scaler.is_enabled():
            schedule.start_at_zero(self._optimizer)
        self._average = None if settings.ema is None else schedule.Average(network, settings.ema)
        self._memory = Offload(network, device)
        # A captured step reads the learning rate where it is. A CPU takes it as a number.
        self._rate = None if graphs is None else torch.zeros((), device=device)
        self._train = captured(self._trained, "a step of training", graphs)
        self.totals = torch.zeros(3, device=device)

    def __call__(self, *batch: Tensor, lr: float) -> None:
        """Train on one batch, as `loop.Batches` yields it."""
        rate = lr if self._rate is None else self._rate.fill_(lr)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._network.train()
        self._train(*batch)
        if self._average is not None:
            self._average.count()

    @property
    def judged(self) -> nn.Module:
        """The network whose accuracy counts, or the average of its weights if there is one."""
        return self._network if self._average is None else self._average.judged()

    def restart(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of a network, with an optimizer that remembers no gradient."""
        self._network.load_state_dict(tensors)
        if self._average is not None:
            self._average.restart(self._network)
        for state in self._optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def parts(self) -> dict[str, Any]:
        """Return all that has a state, by name, for a run that resumes."""
        parts = {
            "network": self._network,
            "optimizer": self._optimizer,
            "average": self._average,
            "scaler": self._scaler if self._scaler.is_enabled() else None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _trained(self, images: Tensor, labels: Tensor, shares: Tensor, *of_pairs: Tensor) -> Tensor:
        """Train on one batch, and return the loss."""
        loss, logits = self._memory.fitted(
            lambda: self._gradients(images, labels, shares, *of_pairs)
        )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._update_average()
        right = (logits.argmax(1) == labels).sum()
        self.totals += torch.stack([loss * len(labels), right, torch.full_like(right, len(labels))])
        return loss

    def _gradients(
        self, images: Tensor, labels: Tensor, shares: Tensor, *of_pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Set the parameters' gradients, and return the loss and the logits (B, n_classes)."""
        self._optimizer.zero_grad()
        logits = self._forward(images.contiguous(memory_format=torch.channels_last))
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self._smoothing
        )
        loss = (losses * shares).sum()
        if self._paired is not None and of_pairs:
            loss = loss + pairs.loss(self._paired, logits, *of_pairs)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    def _update_average(self) -> None:
        if self._average is not None:
            self._average.update(self._network, in_place=self._rate is not None)


def _forward(
    network: nn.Module, computed: Computed, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the network's forward in the precision that it is computed in.

    On a CPU, bf16 is the same function as bfloat16 matrix products. Elsewhere, and for fp16, it is
    torch's autocast, whose logits become float32.
    """
    if computed == "fp32":
        return network
    if device.type == "cpu" and computed == "bf16":
        if isinstance(network, models.ResNet):
            return functools.partial(matrix_products.training_logits, network, dtype=torch.bfloat16)
        return network
    dtype = torch.bfloat16 if computed == "bf16" else torch.float16

    def logits(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            found: Tensor = network(images)
        return found.float()

    return logits
