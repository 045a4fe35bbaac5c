"""Compute torchvision's ResNets with matrix products where their maps are small.

The function is the same, and several times faster; `small_maps` computes the layers.

`Frozen` is for attacks. It folds BatchNorm into the matrices (Jacob et al., CVPR 2018, section
3.2). `training_logits` is for training. It uses the network's own parameters and running
statistics.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks import small_maps
from pipeline.networks.captured import captured_network
from pipeline.networks.prediction import frozen_copy
from pipeline.networks.torchvision_models import models

Layer = Callable[[Tensor, nn.Conv2d, nn.BatchNorm2d], Tensor]


class Frozen(nn.Module):
    """A copy of a network for attacks, in evaluation mode and without gradients for parameters.

    The original is not changed. The copy takes images (B, 3, S, S) in [0, 1] of the one size S that
    it is made for. It gives float32 logits (B, n_classes). In float32 they equal the network's up
    to rounding. `dtype` bfloat16 is for hardware that multiplies it faster.
    """

    def __init__(self, network: models.ResNet, image_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.dtype = dtype
        self._layers = _layers(self.network, image_size)
        self._folded: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.update(network)

    def update(self, network: models.ResNet) -> None:
        """Take the current tensors of a network, for attacks on a network in training."""
        own = dict(zip(self.network.modules(), network.modules(), strict=True))
        with torch.no_grad():
            for conv, norm, size in self._layers:
                self._keep(conv, *_folded(own[conv], own[norm], size, self.dtype))
        self.network.fc.load_state_dict(network.fc.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        return logits(self.network, images, self._layer, self.dtype)

    def _keep(self, conv: nn.Module, weight: Tensor, bias: Tensor) -> None:
        """Keep a folded layer, on a GPU in the place of the earlier one, for captured graphs."""
        if weight.is_cuda and conv in self._folded:
            torch._foreach_copy_(list(self._folded[conv]), [weight, bias])
        else:
            self._folded[conv] = weight, bias

    def _layer(self, maps: Tensor, conv: nn.Conv2d, _: nn.BatchNorm2d) -> Tensor:
        weight, bias = self._folded[conv]
        return small_maps.product(maps, weight, bias, conv)


def _layers(network: models.ResNet, image_size: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, int]]:
    """Return each convolution with the BatchNorm after it, and the size of the maps it takes.

    The network runs once for that, in evaluation mode.
    """
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []

    def note(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        found.append((conv, norm, maps.shape[1]))
        after: Tensor = norm(conv(maps.permute(0, 3, 1, 2)))
        return after.permute(0, 2, 3, 1)

    weight = next(network.parameters())
    with torch.no_grad():
        logits(network, weight.new_zeros(1, 3, image_size, image_size), note, weight.dtype)
    return found


def _folded(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the weight, in the form that suits maps of `size`, and the bias of a layer."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.bias - norm.running_mean * scale
    weight = small_maps.form(conv.weight, size, conv.stride[0], dtype, scale)
    bias = bias.repeat(len(weight) // len(bias)).to(dtype)
    return weight.contiguous(memory_format=_format(weight)), bias


def for_attacks(network: nn.Module, image_size: int, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network for attacks, frozen and in evaluation mode.

    The function is the same up to the rounding of `dtype`. torchvision's ResNets are computed as
    `Frozen`, other networks as they are, in their own dtype. On a GPU, both are captured.
    """
    frozen = (
        Frozen(network, image_size, dtype)
        if isinstance(network, models.ResNet)
        else frozen_copy(network)
    )
    return captured_network(frozen, next(network.parameters()).device)


def training_logits(network: models.ResNet, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the logits (B, n_classes) of a network in training mode.

    They are those of its own forward. Its running statistics are updated. Products are in `dtype`.
    Parameters, statistics and the last layer keep their own dtypes.
    """

    def layer(maps: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        weight = small_maps.form(conv.weight, maps.shape[1], conv.stride[0], dtype)
        return _normalised(small_maps.product(maps, weight, None, conv), norm)

    return logits(network, images, layer, dtype)


def logits(network: models.ResNet, images: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Return a torchvision ResNet's logits (B, n_classes).

    `layer` computes each convolution and the BatchNorm after it, on maps (B, H, W, C).
    """
    maps = images.to(dtype).contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    maps = functional.relu(layer(maps, network.conv1, network.bn1))
    maps = functional.max_pool2d(maps.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            identity = maps if block.downsample is None else layer(maps, *block.downsample)
            maps = layer(
                functional.relu(layer(maps, block.conv1, block.bn1)), block.conv2, block.bn2
            )
            if isinstance(block, models.resnet.Bottleneck):
                maps = layer(functional.relu(maps), block.conv3, block.bn3)
            maps = functional.relu(maps + identity)
    return functional.linear(
        maps.to(network.fc.weight.dtype).mean((1, 2)), network.fc.weight, network.fc.bias
    )


def _normalised(maps: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return maps (B, H, W, C) after BatchNorm in training mode.

    One long row of pixels is the fastest shape for its kernels.
    """
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    row = maps.reshape(1, -1, 1, maps.shape[3]).permute(0, 3, 1, 2)
    row = functional.batch_norm(
        row,
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        True,
        norm.momentum or 0.0,
        norm.eps,
    )
    return row.permute(0, 2, 3, 1).reshape(maps.shape)


def _format(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.dim() == 4 else torch.contiguous_format
