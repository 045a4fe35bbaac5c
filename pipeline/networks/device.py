"""Choose and describe the processor that a run uses.

It is chosen when the run starts, and recorded in what the run makes. It is never a parameter.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.base.errors import InputError
from pipeline.base.words import counted
from pipeline.networks.device_name import VARIABLE, asked

VOLTA, AMPERE = (7, 0), (8, 0)  # compute capabilities


def choose() -> torch.device:
    """Return the device that the environment variable `PIPELINE_DEVICE` names.

    The default is the first GPU, or the CPU if there is none. Raises InputError for a device that
    does not exist. Never falls back to the CPU silently.
    """
    name = asked()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    number = int(name.partition(":")[2] or 0)
    # torch counts a device's number modulo 256.
    if name != "cpu" and number >= torch.cuda.device_count():
        raise InputError(
            f"{VARIABLE}: {name} was asked for,"
            f" but torch sees {torch.cuda.device_count()} CUDA devices; set it to cpu or auto"
        )
    return torch.device(name)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions that multiply bfloat16.

    Only then is bfloat16 worth the rounding. On GPUs, these are Ampere and later.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiplies_float16(device: torch.device) -> bool:
    """Return whether the device is a GPU that multiplies float16 in tensor cores."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= VOLTA


def describe(device: torch.device) -> str:
    """Return the device in words, such as "cpu (2 threads)" or "cuda (NVIDIA H100 80GB HBM3)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_threads()})"


def processor(device: torch.device) -> str:
    """Return what decides, apart from library versions, which bits a computation gives.

    Examples are "cpu (AVX512, bf16, 2 threads)" and "cuda (NVIDIA H100 80GB HBM3)". A CPU divides
    sums between its threads, so that their number decides how sums are rounded.
    """
    if device.type == "cuda":
        return describe(device)
    kinds = [torch.backends.cpu.get_cpu_capability()]
    kinds += ["bf16"] if multiplies_bfloat16(device) else []
    return f"cpu ({', '.join([*kinds, _threads()])})"


@contextmanager
def threads_of(recorded: str) -> Iterator[None]:
    """Compute with as many threads as a processor that `processor` described.

    Without a number in `recorded`, nothing changes.
    """
    before = torch.get_num_threads()
    found = re.search(r"\b(\d+) threads?\b", recorded)
    torch.set_num_threads(int(found[1]) if found else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads() -> str:
    return counted(torch.get_num_threads(), "thread")
