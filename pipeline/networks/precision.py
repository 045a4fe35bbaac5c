"""Choose the precision that a network is computed in.

All rules about precision are here. `precision_for` decides for training and attacks, and `is_worse`
whether a trial of attacks in bf16 refuses it. `tensor_floats` and `exact` decide how a GPU
multiplies float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.values import Precision
from pipeline.networks.device import multiplies_bfloat16, multiplies_float16

# What a network is computed in. fp16 is never asked for: it replaces bf16 on GPUs without it.
Computed = Literal["fp32", "bf16", "fp16"]
MOST_LOST = 0.005  # share of the attacked images that bf16 may fool less than fp32
CHANCE = 0.01  # probability that bf16 is refused by chance, where it is as good as fp32


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


def is_worse(by_fp32: NDArray[np.bool_], by_bf16: NDArray[np.bool_]) -> bool:
    """Return whether bf16 attacks fool so many fewer images (N,) that chance does not explain it.

    Images that both or neither fool say nothing. If bf16 is as good, each of the others is fooled
    by either with the same probability (McNemar's exact test, one-sided). The loss must also be
    more than MOST_LOST of all images.
    """
    from scipy.stats import binomtest

    lost, gained = int((by_fp32 & ~by_bf16).sum()), int((by_bf16 & ~by_fp32).sum())
    if lost - gained <= MOST_LOST * len(by_fp32):
        return False
    return bool(binomtest(lost, lost + gained, alternative="greater").pvalue < CHANCE)


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
