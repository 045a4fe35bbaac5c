"""Choose the precision that a network is computed in."""

import torch

from pipeline.base.values import Precision
from pipeline.networks.device import multiplies_bfloat16


def precision_for(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to train in.

    `auto` gives bf16 on a CPU that multiplies it, where it was measured to be faster, and fp32 on
    any other device. Other values are returned as they are.
    """
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cpu" and multiplies_bfloat16(device) else "fp32"


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype that attacks on a network in training are computed in.

    That is bfloat16 if it is asked for, or if `auto` finds that the device multiplies it. Otherwise
    it is float32.
    """
    fast = precision == "bf16" or (precision == "auto" and multiplies_bfloat16(device))
    return torch.bfloat16 if fast else torch.float32
