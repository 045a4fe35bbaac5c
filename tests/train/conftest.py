"""A tiny network, batches and a recipe that the tests of training share."""

import pytest
import torch
from torch import nn

from pipeline.train import augmentation
from tests.conftest import held_batches, make_block

CPU = torch.device("cpu")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 4 * 4, 3),
        )

    def forward(self, images):
        return self.layers(images)


@pytest.fixture
def batches():
    return augmentation.AugmentedBatches(
        held_batches({"clean": make_block(64)}, {"clean": 16}), "flip+crop", seed=0
    )


@pytest.fixture
def recipe(settings):
    return settings.clean.model_copy(update={"epochs": 4, "batch_size": 16, "warmup_epochs": 1.0})


def scores(*values):
    """Validation that gives these accuracies in turn and notes the network's weights each time."""
    seen = []

    def validate(network):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return {"val_accuracy": values[len(seen) - 1]}

    return validate, seen
