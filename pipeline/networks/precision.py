"""The precision that a network is computed in."""

import torch

from pipeline.base.values import Precision
from pipeline.networks.device import multiplies_bfloat16


def precision_for(precision: Precision, device: torch.device) -> Precision:
    """The precision to train in: the one asked for, or bf16 on a CPU that multiplies it, where it was measured to be faster."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cpu" and multiplies_bfloat16(device) else "fp32"


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """What attacks on a network in training are computed in: bf16 where it is asked for, or `auto` finds that the device multiplies it."""
    fast = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device))
    return torch.bfloat16 if fast else torch.float32
