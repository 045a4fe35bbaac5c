"""Build torchvision's ResNets, read them from files, and ask for their predictions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.networks.checkpoint import Checkpoint, load
    from pipeline.networks.downloads import weights_file
    from pipeline.networks.prediction import (
        BATCH_SIZE,
        accuracy,
        frozen_copy,
        is_right,
        pixels,
        predict,
    )
    from pipeline.networks.pretrained import (
        expect_weights,
        pretrained_weights,
        read_network,
        read_state_dict,
    )
    from pipeline.networks.resnet import SCRATCH, Pretrained, build

# Where each public name is defined. A name is imported on its first use, so that reading the params
# of this folder does not import torch.
HOMES = {
    "BATCH_SIZE": "prediction",
    "Checkpoint": "checkpoint",
    "load": "checkpoint",
    "accuracy": "prediction",
    "frozen_copy": "prediction",
    "is_right": "prediction",
    "pixels": "prediction",
    "predict": "prediction",
    "expect_weights": "pretrained",
    "pretrained_weights": "pretrained",
    "read_network": "pretrained",
    "read_state_dict": "pretrained",
    "weights_file": "downloads",
    "SCRATCH": "resnet",
    "Pretrained": "resnet",
    "build": "resnet",
}
__all__ = [
    "BATCH_SIZE",
    "SCRATCH",
    "Checkpoint",
    "Pretrained",
    "accuracy",
    "build",
    "expect_weights",
    "frozen_copy",
    "is_right",
    "load",
    "pixels",
    "predict",
    "pretrained_weights",
    "read_network",
    "read_state_dict",
    "weights_file",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
