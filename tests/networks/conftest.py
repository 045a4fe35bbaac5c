import pytest
import torch
from torchvision import models


@pytest.fixture(scope="session")
def network() -> models.ResNet:
    """A stock ResNet-18, which is the subject here."""
    torch.manual_seed(0)
    return models.resnet18(num_classes=3).eval()
