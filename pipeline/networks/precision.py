"""Choose the precision that a network is computed in.

All rules about precision are here. `precision_for` decides for training, `dtype_for` for attacks on
a network in training. `tensor_floats` and `exact` decide how a GPU multiplies float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from pipeline.base.values import Precision
from pipeline.networks.device import multiplies_bfloat16, multiplies_float16

# What a network is computed in. fp16 is never asked for: it replaces bf16 on GPUs without it.
Computed = Literal["fp32", "bf16", "fp16"]


def precision_for(precision: Precision, device: torch.device) -> Computed:
    """Return the precision to train in.

    On a CPU, `auto` gives bf16 where the CPU multiplies it, where it was measured to be faster, and
    fp32 elsewhere. Other values are returned as they are. On a GPU, `auto` and `bf16` give bf16
    where the GPU multiplies it, fp16 where it only multiplies that faster, and fp32 elsewhere.
    """
    if precision == "fp32":
        return "fp32"
    if device.type == "cuda" and not multiplies_bfloat16(device):
        return "fp16" if multiplies_float16(device) else "fp32"
    return "bf16" if precision == "bf16" or multiplies_bfloat16(device) else "fp32"


def recorded(computed: str, device: torch.device) -> str:
    """Return the precision of a training or an attack as its results record it.

    What is computed in fp32 may be rounded to TF32 on a GPU that has it: see `tensor_floats`.
    """
    has_tf32 = device.type == "cuda" and multiplies_bfloat16(device)  # both came with Ampere
    return "tf32" if computed == "fp32" and has_tf32 else computed


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype that attacks on a network in training are computed in.

    That is bfloat16 if the network is trained in it, and otherwise float32.
    """
    return torch.bfloat16 if precision_for(precision, device) == "bf16" else torch.float32


@contextmanager
def tensor_floats() -> Iterator[None]:
    """Allow a GPU to round the factors of float32 products to TF32.

    This is for training, and for attacks whose result an exact network judges. Nothing changes on a
    CPU. The setting that was found is restored.
    """
    with _products("tf32"):
        yield


@contextmanager
def exact() -> Iterator[None]:
    """Make a GPU multiply float32 in full. This is for all that judges.

    torch allows TF32 in convolutions unless it is told otherwise. Nothing changes on a CPU. The
    setting that was found is restored.
    """
    with _products("ieee"):
        yield


@contextmanager
def _products(precision: Literal["tf32", "ieee"]) -> Iterator[None]:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = conv.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
