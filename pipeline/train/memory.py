"""How much memory the training images may take."""

import os

import torch

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits

VARIABLE = "PIPELINE_MEMORY"
MIB = 2**20
HOST_SHARE = 0.75  # of what is free; a network that trains on the CPU needs far less than the rest
DEVICE_SHARE = 0.5  # of what is free on a GPU: activations and gradients need the rest
MOST_STREAMED = 1024 * MIB  # a larger buffer only puts off the first batch


def limit() -> int:
    """Bytes of host memory that images may take: `PIPELINE_MEMORY`, in MiB, or else a share of what is free now.

    Raises InputError for a value that is no whole number of at least 1.
    """
    value = os.environ.get(VARIABLE)
    if value is None:
        return int(HOST_SHARE * limits.available_memory())
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise InputError(f"{VARIABLE}: expected a whole number of MiB, at least 1, found {value!r}")
    return int(value) * MIB


def stream_buffer() -> int:
    """Bytes of images to hold when they are streamed."""
    return min(limit(), MOST_STREAMED)


def obstacle(n_bytes: int, device: torch.device) -> str:
    """Why images of so many bytes cannot be held on `device`, in words; nothing where they can. Putting them together takes twice that."""
    if 2 * n_bytes > limit():
        return f"twice that, to put them together, is more than the {limit() / MIB:,.0f} MiB that images may take"
    if device.type == "cuda" and n_bytes > (free := DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]):
        return f"that is more than the {free / MIB:,.0f} MiB of the GPU that images may take"
    return ""
