"""Build torchvision's ResNets with a new last layer.

The networks take images in [0, 1]. They learn whatever normalisation they need, so an attack's eps
is in the pixels' own units.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.base.errors import InputError
from pipeline.networks import params
from pipeline.networks.torchvision_models import models


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Tensors to start from, for all layers except the last, or for all with `model.keep_head`.

    `sha256` is that of their file. Both are empty for a start from scratch.
    """

    state_dict: dict[str, Tensor]
    sha256: str


SCRATCH = Pretrained(state_dict={}, sha256="")


def build(
    model: params.Model,
    n_classes: int,
    seed: int,
    pretrained: Pretrained = SCRATCH,
    where: str = "model",
) -> models.ResNet:
    """Return a network to train: stock torchvision with a last layer for `n_classes`.

    Everything else comes from `pretrained` where it has tensors. Random tensors come from `seed`.
    The global generator is not changed. `where` is the dotted key of `model`. Raises InputError
    where `pretrained` has a last layer for another number of classes.
    """
    head = pretrained.state_dict.get("fc.weight")
    if head is not None and len(head) != n_classes:
        raise InputError(
            f"{where}.keep_head: expected a last layer for {n_classes} classes, found one for"
            f" {len(head)} in {model.weights}; write keep_head: false for a new one"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = stock(model.architecture, n_classes)
    network.load_state_dict({**network.state_dict(), **pretrained.state_dict})
    return network


def is_known(architecture: str) -> bool:
    """Return whether this pipeline trains networks of that name."""
    return architecture in get_args(params.Architecture)


def stock(architecture: str, n_classes: int) -> models.ResNet:
    network = models.get_model(architecture, weights=None, num_classes=n_classes)
    assert isinstance(network, models.ResNet)
    return network


def expected(architecture: str, n_classes: int) -> dict[str, Tensor]:
    """Return the state of a stock network as tensors of the meta device, which have no content."""
    with torch.device("meta"), _NothingDrawn():
        found: dict[str, Tensor] = stock(architecture, n_classes).state_dict()
    return found


class _NothingDrawn(TorchFunctionMode):
    """Leaves out random starting values.

    For tensors without content, torch would compute them in Python, and import its compiler first.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
