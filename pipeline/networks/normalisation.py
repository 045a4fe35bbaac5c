"""Takes the normalisation in front of a network into account, which this pipeline's networks lack.

Dividing by a standard deviation can be moved into the first convolution exactly. Subtracting a mean
cannot: the convolution pads the normalised image with zeros, which are the mean in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.networks import torch_files

# One of them is a word of the tensor's name, as in `new_mean`, `_mean` and `pixel_std`.
MEANS = {"mean", "means", "mu"}
STDS = {"std", "stds", "sigma"}
N_CHANNELS = 3


def is_part(name: str) -> bool:
    """Return whether a tensor of this name can be a normalisation's mean or std."""
    words = _words(name)
    return bool(words & (MEANS | STDS)) and "running" not in words  # BatchNorm's


def _words(name: str) -> set[str]:
    return set(name.rpartition(".")[2].split("_"))


def std_to_fold(records: Mapping[str, Any], remedy: str) -> Tensor | None:
    """Return the standard deviation, float64 (3,), that the first weights must be divided by.

    It is None where there is nothing to do. Raises InputError, without a path, for a mean other
    than 0, with `remedy`, for normalisations that differ, and for a std that nothing can be divided
    by.
    """
    values = _of_channels(records)
    stds = []
    for name, value in values.items():
        if _words(name) & STDS:
            stds.append(value)
        elif value.any():
            raise InputError(
                f"expected no normalisation, or one of mean 0, found {name[:100]}"
                f" {numbers(value)}, which conv1 cannot take over exactly, because it pads with"
                f" zeros; {remedy}"
            )
    if any(not torch.equal(std, stds[0]) for std in stds):
        raise InputError(f"expected one normalisation, found {', '.join(values)[:200]} that differ")
    if not stds or torch.equal(stds[0], torch.ones_like(stds[0])):
        return None
    if not (stds[0].isfinite() & (stds[0] > 0)).all():
        raise InputError(f"expected a std above 0 for each channel, found {numbers(stds[0])}")
    return stds[0]


def _of_channels(records: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the means and standard deviations of all or of three channels, float64 (3,)."""
    found = torch_files.tensors({name: part for name, part in records.items() if is_part(name)})
    return {
        name: tensor.flatten().double().expand(N_CHANNELS)
        for name, tensor in found.items()
        if tensor.numel() in (1, N_CHANNELS) and not tensor.is_complex()
    }


def folded(weight: Tensor, std: Tensor) -> Tensor:
    """Return the first convolution's weights (O, 3, H, W) for images that are not divided."""
    return (weight.double() / std.view(1, N_CHANNELS, 1, 1)).to(weight.dtype)


def numbers(values: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in values.tolist())
