"""Build torchvision's ResNets, read them from files, and ask for their predictions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.networks.checkpoint import Checkpoint as Checkpoint
    from pipeline.networks.checkpoint import load as load
    from pipeline.networks.downloads import weights_file as weights_file
    from pipeline.networks.prediction import BATCH_SIZE as BATCH_SIZE
    from pipeline.networks.prediction import accuracy as accuracy
    from pipeline.networks.prediction import expect_numbers as expect_numbers
    from pipeline.networks.prediction import frozen_copy as frozen_copy
    from pipeline.networks.prediction import is_right as is_right
    from pipeline.networks.prediction import outputs as outputs
    from pipeline.networks.prediction import pixels as pixels
    from pipeline.networks.prediction import predict as predict
    from pipeline.networks.pretrained import expect_weights as expect_weights
    from pipeline.networks.pretrained import pretrained_weights as pretrained_weights
    from pipeline.networks.pretrained import read_network as read_network
    from pipeline.networks.pretrained import read_state_dict as read_state_dict
    from pipeline.networks.resnet import SCRATCH as SCRATCH
    from pipeline.networks.resnet import Pretrained as Pretrained
    from pipeline.networks.resnet import build as build

# Where each public name is defined. A name is imported on its first use, so that reading the params
# of this folder does not import torch.
HOMES = {
    name: home
    for home, names in {
        "checkpoint": "Checkpoint load",
        "downloads": "weights_file",
        "prediction": "BATCH_SIZE accuracy expect_numbers frozen_copy is_right outputs pixels"
        " predict",
        "pretrained": "expect_weights pretrained_weights read_network read_state_dict",
        "resnet": "SCRATCH Pretrained build",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
