"""Give attacks a frozen view of a network that is being trained."""

import torch
from torch import nn
from torchvision import models

from pipeline import networks
from pipeline.networks import matrix_products
from pipeline.networks.captured import graphs_for
from pipeline.networks.memory_fit import InParts


class Target:
    """A network as attacks see it: frozen, in evaluation mode, and with its current weights.

    `graphs` is the way to capture steps of attacks on it, or None if its device has none.
    """

    def __init__(self, network: nn.Module, image_size: int, dtype: torch.dtype) -> None:
        self._network = network
        self._fast = (
            matrix_products.Frozen(network, image_size, dtype)
            if isinstance(network, models.ResNet)
            else None
        )
        self._frozen = InParts(self._fast or networks.frozen_copy(network))
        self.graphs = graphs_for(next(network.parameters()).device)

    def now(self) -> InParts:
        """Return the network to attack, updated to the current weights."""
        if self._fast is None:
            # In place, because a captured step reads the tensors where they are.
            self._frozen.network.load_state_dict(self._network.state_dict())
        else:
            assert isinstance(self._network, models.ResNet)
            self._fast.update(self._network)
        return self._frozen
