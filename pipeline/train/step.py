"""Takes one step of training: gradients, weights, their average, and the sums of the epoch."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pipeline.base.errors import InputError
from pipeline.networks import matrix_products
from pipeline.networks.captured import CudaGraphs, captured
from pipeline.networks.memory_fit import Offload
from pipeline.networks.precision import Computed, precision_for
from pipeline.networks.torchvision_models import models
from pipeline.train import group, pairs, params, schedule


class Step:
    """A step of training, with everything that it changes.

    The whole step is captured where `graphs` is given. `totals` (3,) are the sums of the losses,
    of the right predictions and of the images. They stay on the device, because reading them would
    stall it at every step.

    Where several workers train together, each is given its part of the batch. The gradients and the
    totals are those of the whole batch. The running statistics of BatchNorm are those of the first
    worker's parts, as in torch's DistributedDataParallel.
    """

    def __init__(
        self,
        network: nn.Module,
        settings: params.Training,
        device: torch.device,
        graphs: CudaGraphs | None,
    ) -> None:
        computed = precision_for(settings.precision, device)
        self._group = group.current()
        if settings.sync_batchnorm:
            _synchronise(network, device)
        self._network, self._smoothing = network, settings.label_smoothing
        self._paired = settings.paired
        self._forward = _forward(network, computed, device)
        if self._group.size > 1:
            graphs = None  # of one process
            self._forward = DistributedDataParallel(_Differentiated(network, self._forward))
        self._is_first = True
        self._statistics = [part for part in network.buffers() if part.is_floating_point()]
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
        for weights in self._optimizer.param_groups:
            weights["lr"] = rate
        self._network.train()
        if self._is_first and self._group.size > 1:
            self._rehearse(*batch)
        self._is_first = False
        self._train(*batch)
        if self._average is not None:
            self._average.count()

    @property
    def judged(self) -> nn.Module:
        """The network whose accuracy counts, or the average of its weights if there is one."""
        return self._network if self._average is None else self._average.judged(self._network)

    def restart(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of a network, with an optimizer that remembers no gradient."""
        self._network.load_state_dict(tensors)
        if self._average is not None:
            self._average.restart(self._network)
            self._average.count()  # else the next step would begin anew, unless it is captured
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
        loss, logits = self._fitted(lambda: self._gradients(images, labels, shares, *of_pairs))
        self._group.follow(self._statistics)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self._network)
        right, counted = (logits.argmax(1) == labels).sum(), (labels >= 0).sum()
        sums = self._group.sum_(torch.stack([loss, right, counted]))
        self.totals += torch.stack([sums[0] * sums[2], sums[1], sums[2]])
        return sums[0]

    def _fitted(self, gradients: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return what `gradients` returns, with less device memory if it does not fit.

        One worker alone cannot try again: the others would wait for other gradients.
        """
        return gradients() if self._group.size > 1 else self._memory.fitted(gradients)

    def _rehearse(self, *batch: Tensor) -> None:
        """Compute the gradients of a batch once for nothing.

        After its first gradients, DistributedDataParallel orders the parameters anew for its
        messages. The order decides how sums are rounded. A resumed run must not have another first
        order than an undisturbed one.
        """
        before = {name: tensor.clone() for name, tensor in self._network.named_buffers()}
        with warnings.catch_warnings():
            # torch warns once of 1x1 convolutions with channels last, whose strides are ambiguous.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self._gradients(*batch)
        self._network.load_state_dict(before, strict=False)

    def _gradients(
        self, images: Tensor, labels: Tensor, shares: Tensor, *of_pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Set the parameters' gradients, and return the loss and the logits (B, n_classes)."""
        self._network.zero_grad()
        logits = self._forward(images.contiguous(memory_format=torch.channels_last))
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self._smoothing
        )
        loss = (losses * shares).sum()
        if self._paired is not None and of_pairs:
            loss = loss + pairs.loss(self._paired, logits, *of_pairs)
        # DistributedDataParallel divides the sum of the gradients by the number of workers.
        scaled = self._scaler.scale(loss * self._group.size)
        scaled.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()


class _Differentiated(nn.Module):
    """A network with the function of it that is trained, for DistributedDataParallel."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._network, self._function = network, function

    def forward(self, images: Tensor) -> Tensor:
        return self._function(images)


def _synchronise(network: nn.Module, device: torch.device) -> None:
    """Let every BatchNorm of a network use the statistics of all workers.

    Raises InputError for a CPU, for which torch has no such layer.
    """
    if device.type == "cpu":
        raise InputError(
            "sync_batchnorm: expected GPUs, found a CPU, which torch cannot synchronise; leave it "
            "out of params.yaml"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


def _forward(
    network: nn.Module, computed: Computed, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return the network's forward in the precision that it is computed in.

    On a CPU, torchvision's ResNets are computed as matrix products, and other networks in float32.
    On a GPU, bf16 and fp16 are torch's autocast, whose logits become float32.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[computed]
    on_cpu = device.type == "cpu" and computed != "fp16"
    if on_cpu and isinstance(network, models.ResNet):
        return functools.partial(matrix_products.training_logits, network, dtype=dtype)
    if on_cpu or computed == "fp32":
        return network

    def logits(images: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            found: Tensor = network(images)
        return found.float()

    return logits
