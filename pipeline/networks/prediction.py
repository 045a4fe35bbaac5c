"""Ask a network about images: predicted classes and accuracy."""

import copy
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.base.errors import InputError
from pipeline.networks.memory_fit import InParts, fitted
from pipeline.networks.precision import exact

# Images for networks that are only asked for their predictions. Smaller images than 64x64 are more
# at once on a GPU, most of which a small batch leaves idle.
BATCH_SIZE, PIXELS = 256, 64 * 64
NO_CLASS = -1


def predict(
    network: nn.Module, images: NDArray[np.uint8], batch_size: int | None = None
) -> NDArray[np.int64]:
    """Return the predicted class (N,) of uint8 images (N, 3, H, W), in evaluation mode.

    It is NO_CLASS, and so wrong, for outputs that are not numbers. Without `batch_size`, the device
    and the size of the images decide it. The network's mode is restored.
    """
    return _of_each(network, images, batch_size, _classes).numpy()


def outputs(network: nn.Module, images: NDArray[np.uint8], batch_size: int | None = None) -> Tensor:
    """Return the outputs (N, n_classes) for uint8 images as `predict` takes them, on the CPU."""
    return _of_each(network, images, batch_size, lambda logits: logits)


def _of_each(
    network: nn.Module,
    images: NDArray[np.uint8],
    batch_size: int | None,
    kept: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return what is kept of the outputs for uint8 images (N, 3, H, W), on the CPU."""
    device, was_training = next(network.parameters()).device, network.training
    asked = network if isinstance(network, InParts) else InParts(network)
    batch_size = batch_size or _at_once(images, device)
    asked.eval()
    try:
        with torch.inference_mode(), exact():
            parts = [
                kept(_outputs(asked, pixels(images[i : i + batch_size], device))).cpu()
                for i in range(0, len(images), batch_size)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts)


def expect_numbers(predicted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what `predict` found (N,). Raises InputError if the network gives NaN for an image."""
    if failed := int((predicted == NO_CLASS).sum()):
        raise InputError(
            f"the network gives no numbers for {failed} of {len(predicted)} images; its training"
            " failed, or its file is damaged (a lower lr helps)"
        )
    return predicted


def accuracy(
    network: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    batch_size: int | None = None,
) -> float:
    """Return the share of uint8 images (N, 3, H, W) that the network gets right, in [0, 1]."""
    return float((predict(network, images, batch_size) == labels).mean())


def _at_once(images: NDArray[np.uint8], device: torch.device) -> int:
    """Return how many of some images (N, 3, H, W) are computed at once."""
    if device.type == "cpu":
        return BATCH_SIZE
    n_pixels = int(np.prod(images.shape[2:]))
    return max(BATCH_SIZE, BATCH_SIZE * PIXELS // n_pixels)


def pixels(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return images in [0, 1] on a device, from stored uint8 ones."""
    return torch.from_numpy(images).to(device).contiguous(memory_format=torch.channels_last) / 255


def is_right(network: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Return which images (B, 3, H, W) in [0, 1] the network gives their labels (B,).

    An image for which it gives NaN is wrong. The network is used in its present mode.
    """
    with torch.inference_mode(), exact():
        right: NDArray[np.bool_] = (_classes(_outputs(network, images)) == labels).cpu().numpy()
    return right


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs (B, n_classes) for images (B, 3, H, W) in [0, 1]."""
    found: Tensor = fitted(network, images, lambda: network(images))
    return found


def _classes(logits: Tensor) -> Tensor:
    """Return the predicted class (B,) of outputs (B, n_classes), or NO_CLASS for NaN."""
    return logits.argmax(1).masked_fill(logits.isnan().any(1), NO_CLASS)


Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """Return a copy of a network for attacks to use.

    The copy is in evaluation mode, without gradients for parameters, with channels last. The
    original is not changed. torchattacks changes its model's mode and does not restore it after an
    error, so it never gets the caller's own network.
    """
    return copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.channels_last)
