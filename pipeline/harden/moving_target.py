"""Give attacks a frozen view of a network that is being trained."""

import torch
from torch import nn
from torchvision import models

from pipeline import networks
from pipeline.networks import matrix_products
from pipeline.networks.memory_fit import InParts


class Target:
    """A network as attacks see it: frozen, in evaluation mode, and with its current weights."""

    def __init__(self, network: nn.Module, image_size: int, dtype: torch.dtype) -> None:
        self._network = network
        self._fast = (
            matrix_products.Frozen(network, image_size, dtype)
            if isinstance(network, models.ResNet)
            else None
        )
        self._frozen = InParts(self._fast or networks.frozen_copy(network))

    def now(self) -> InParts:
        """Return the network to attack, updated to the current weights."""
        if self._fast is None:
            self._frozen.network = networks.frozen_copy(self._network)
        else:
            assert isinstance(self._network, models.ResNet)
            self._fast.update(self._network)
        return self._frozen
