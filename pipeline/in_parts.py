"""Batches that do not fit into the GPU's memory, without another result than theirs.

An attack draws its random numbers for a whole batch, so a smaller batch would give other images. Here the attack keeps its batch, and the
network takes it in parts; each part's activations are computed again for its gradient and held no longer (Chen et al., "Training Deep Nets
with Sublinear Memory Cost", 2016).
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline import console, device
from pipeline.errors import InputError

Result = TypeVar("Result")


class InParts(nn.Module):
    """A frozen network that takes batches whole, until one does not fit: from then on in parts of half the size, and of half that.

    Gives the logits of the whole batch (B, n_classes), up to rounding: products of other sizes may add in another order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.most: int | None = None
        self._asked = 0
        self.eval()  # torchattacks returns a model to the mode that it found it in, with all its parts

    def forward(self, images: Tensor) -> Tensor:
        self._asked = len(images)
        if self.most is None or len(images) <= self.most:
            return self.network(images)  # type: ignore[no-any-return]
        parts = torch.split(images, self.most)
        if torch.is_grad_enabled():
            return torch.cat([checkpoint(self.network, part, use_reentrant=False) for part in parts])
        return torch.cat([self.network(part) for part in parts])

    def halve(self, images_device: torch.device) -> None:
        """Take half as many images at once as before. Raises InputError where it was one already."""
        now = min(self._asked, self.most or self._asked)
        where = f"the memory of {device.describe(images_device)}"
        if now <= 1:
            raise InputError(f"not even one image fits into {where}; see what else uses it")
        self.most = -(-now // 2)
        if images_device.type == "cuda":
            torch.cuda.empty_cache()
        console.say_once(f"{now} images at once do not fit into {where}: going on with {self.most}, in the same batches")


def fitted(network: nn.Module, images: Tensor, compute: Callable[[], Result]) -> Result:
    """What `compute` gives, from its beginning again each time that it needs more memory than there is and `network` is InParts."""
    while True:
        try:
            return compute()
        except torch.OutOfMemoryError:
            if not isinstance(network, InParts):
                raise
        network.halve(images.device)  # behind the except block, where the failed attempt's tensors are let go
