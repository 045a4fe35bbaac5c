"""torchvision's ResNets: built, read from files, and asked for what they see."""

from pipeline.networks.checkpoint import Checkpoint, load
from pipeline.networks.prediction import accuracy, frozen_copy, is_right, pixels, predict
from pipeline.networks.pretrained import expect_weights, pretrained_weights, read_state_dict, weights_file
from pipeline.networks.resnet import SCRATCH, Pretrained, build

__all__ = [
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
    "read_state_dict",
    "weights_file",
]
