"""Give attacks a frozen view of a network that is being trained."""

import torch
from torch import Tensor, nn

from pipeline import networks
from pipeline.networks import matrix_products
from pipeline.networks.captured import captured, graphs_for
from pipeline.networks.memory_fit import InParts
from pipeline.networks.torchvision_models import models


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
        self._update = captured(self._updated, "the update of an attacked network", self.graphs)

    def now(self) -> InParts:
        """Return the network to attack, updated to the current weights."""
        self._update()
        return self._frozen

    def _updated(self) -> Tensor:
        """Update the network in place, where captured steps read it.

        A step must return a tensor. Nobody reads this one.
        """
        if self._fast is None:
            self._frozen.network.load_state_dict(self._network.state_dict())
        else:
            assert isinstance(self._network, models.ResNet)
            self._fast.update(self._network)
        return next(self._frozen.parameters())
