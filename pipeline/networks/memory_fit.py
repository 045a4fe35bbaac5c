"""Compute batches that do not fit into the GPU's memory, without changing their results.

An attack draws its random numbers for a whole batch, so a smaller batch would give other images.
Here the attack keeps its batch, and the network takes it in parts. Each part's activations are
computed again for its gradient, and are not kept until then (Chen et al., "Training Deep Nets with
Sublinear Memory Cost", 2016).

Training keeps its batch too, since BatchNorm's statistics are those of a whole batch. What the
gradients need is kept in main memory until then (Rhu et al., "vDNN", MICRO 2016).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.networks import device
from pipeline.networks.captured import CapturedNetwork, is_capturing

Result = TypeVar("Result")


class InParts(nn.Module):
    """A frozen network that takes batches whole until one does not fit, and then in parts.

    The parts have half the size, and half of that if they do not fit either. Gives the logits of
    the whole batch (B, n_classes), up to rounding. Products of other sizes may add in another
    order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.most: int | None = None
        self._asked = 0
        self.eval()  # torchattacks restores the mode that it finds, in the model and all its parts

    def forward(self, images: Tensor) -> Tensor:
        self._asked = len(images)
        if self.most is None or len(images) <= self.most:
            return self.network(images)  # type: ignore[no-any-return]
        parts = torch.split(images, self.most)
        if torch.is_grad_enabled():
            return torch.cat(
                [checkpoint(self.network, part, use_reentrant=False) for part in parts]
            )
        return torch.cat([self.network(part) for part in parts])

    def halve(self, images_device: torch.device) -> None:
        """Take half as many images at once as before.

        Raises InputError if it was one image already.
        """
        now = min(self._asked, self.most or self._asked)
        where = f"the memory of {device.describe(images_device)}"
        if now <= 1:
            raise InputError(f"not even one image fits into {where}; see what else uses it")
        self.most = -(-now // 2)
        if isinstance(self.network, CapturedNetwork):
            self.network = self.network.network  # its graphs need memory, and fit no checkpoint
        _empty(images_device)
        console.say_once(
            f"{now} images at once do not fit into {where}:"
            f" continuing with {self.most}, in the same batches"
        )


def fitted(network: nn.Module, images: Tensor, compute: Callable[[], Result]) -> Result:
    """Return the result of `compute`, with smaller parts if it needs more memory than there is.

    Each attempt calls `compute` from its beginning. Raises OutOfMemoryError if `network` is not
    InParts, or if a CUDA graph is being captured: the batch may fit without the graph.
    """
    while True:
        try:
            return compute()
        except torch.OutOfMemoryError:
            if not isinstance(network, InParts) or is_capturing(images.device):
                raise
        # After the except block, where the failed attempt's tensors are released.
        network.halve(images.device)


class Offload:
    """A way to compute the gradients of a network in training with less device memory.

    From the first batch that does not fit, the activations are kept in main memory.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device = device
        self._saving: Callable[[], AbstractContextManager[object]] = nullcontext
        floats = [tensor for tensor in network.buffers() if tensor.is_floating_point()]
        counts = [tensor for tensor in network.buffers() if not tensor.is_floating_point()]
        # With copies. On a GPU, all of one dtype are copied by one launch.
        self._statistics = [
            (tensors, [tensor.clone() for tensor in tensors])
            for tensors in (floats, counts)
            if tensors
        ]

    def fitted(self, gradients: Callable[[], Result]) -> Result:
        """Return what `gradients` returns, which must begin by clearing the gradients.

        Raises OutOfMemoryError if the batch fits neither on the device nor with activations in main
        memory, or if a CUDA graph is being captured: the batch may fit without the graph.
        """
        if is_capturing(self._device):
            return gradients()
        for tensors, before in self._statistics:
            torch._foreach_copy_(before, tensors)
        try:
            with self._saving():
                return gradients()
        except torch.OutOfMemoryError:
            if self._saving is save_on_cpu:
                raise
        # A forward pass that was cut off may have changed some of them.
        for tensors, before in self._statistics:
            torch._foreach_copy_(tensors, before)
        self._saving = save_on_cpu
        _empty(self._device)
        where = f"the memory of {device.describe(self._device)}"
        console.say_once(
            f"training does not fit into {where}: continuing in the same batches, slower,"
            " with activations in main memory"
        )
        return self.fitted(gradients)


def _empty(full: torch.device) -> None:
    """Free the memory that the allocator keeps for later."""
    if full.type == "cuda":
        torch.cuda.empty_cache()
