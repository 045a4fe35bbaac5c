"""A ResNet-18 an eighth as wide, for tests whose subject is not the network.

It has torchvision's layers under torchvision's names, and 180,000 values in place of 11 million.
"""

from typing import Any

import pytest
from torch import nn
from torchvision import models
from torchvision.models import _api

FACTOR = 8


class NarrowResNet(models.ResNet):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(models.resnet.BasicBlock, [2, 2, 2, 2])
        self.conv1 = nn.Conv2d(3, 64 // FACTOR, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64 // FACTOR)
        self.fc = nn.Linear(512 // FACTOR, num_classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, **_: Any):
        self.inplanes = max(64, planes // 2) // FACTOR
        return super()._make_layer(block, planes // FACTOR, blocks, stride)


def narrow_resnet18(*, weights: None = None, num_classes: int = 1000) -> models.ResNet:
    assert weights is None
    return NarrowResNet(num_classes)


def replace_resnet18(patch: pytest.MonkeyPatch) -> None:
    """Let torchvision build the narrow network wherever a resnet18 is asked for by name."""
    patch.setitem(_api.BUILTIN_MODELS, "resnet18", narrow_resnet18)
