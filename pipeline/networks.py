"""torchvision's ResNets with a new last layer, and the checkpoints they are kept in.

The networks take images in [0, 1]: whatever normalisation they need is learned, so an attack's eps is in the pixels' own units.
"""

import io
import pickle
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models

from pipeline import files, params
from pipeline.errors import InputError

FORMAT = "resnet-checkpoint/1"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network's tensors and where they come from; plain values only, so that it loads without running code."""

    architecture: str
    class_names: list[str]
    state_dict: dict[str, Tensor]
    provenance: dict[str, str | int | float]

    def network(self) -> models.ResNet:
        """The network with these tensors, on the CPU, in evaluation mode."""
        network = _stock(self.architecture, len(self.class_names))
        network.load_state_dict(self.state_dict)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the checkpoint; the same content gives the same bytes."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)}}, buffer)
        files.write_bytes(path, buffer.getvalue())


def build(model: params.Model, n_classes: int, seed: int) -> models.ResNet:
    """A network to train: stock torchvision, its last layer replaced by one for `n_classes`.

    With `model.weights`, everything but the last layer starts from torchvision's ImageNet weights. Random tensors come from `seed`; the
    global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _stock(model.architecture, n_classes)
    if model.weights is not None:
        weights = models.get_model_weights(model.architecture)[model.weights]
        pretrained = weights.get_state_dict(progress=True, check_hash=True)
        network.load_state_dict({**pretrained, "fc.weight": network.fc.weight, "fc.bias": network.fc.bias})
    return network


def load(path: Path, *, architecture: str, class_names: tuple[str, ...]) -> Checkpoint:
    """Read a checkpoint, tensors and plain values only.

    Raises InputError for a missing or foreign file, and for one of another architecture or other classes.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such model; `dvc repro` trains it")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        checkpoint = Checkpoint(**content)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a checkpoint of this pipeline; delete it and run `dvc repro`") from error
    if checkpoint.architecture != architecture:
        raise InputError(f"{path}: expected a {architecture}, as model.architecture says, found a {checkpoint.architecture}")
    if tuple(checkpoint.class_names) != class_names:
        raise InputError(
            f"{path}: expected the {len(class_names)} classes of the data, found a model for {len(checkpoint.class_names)} other ones"
        )
    return checkpoint


def predict(network: nn.Module, images: NDArray[np.uint8], batch_size: int) -> NDArray[np.int64]:
    """The predicted class (N,) of uint8 images (N, 3, H, W), in evaluation mode; the network's mode is restored."""
    device, was_training = next(network.parameters()).device, network.training
    network.eval()
    try:
        with torch.inference_mode():
            parts = [network(pixels(images[i : i + batch_size], device)).argmax(1).cpu() for i in range(0, len(images), batch_size)]
    finally:
        network.train(was_training)
    return torch.cat(parts).numpy()


def accuracy(network: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int) -> float:
    """The share of uint8 images (N, 3, H, W) that the network gets right, in [0, 1]."""
    return float((predict(network, images, batch_size) == labels).mean())


def pixels(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images in [0, 1] on a device, from stored uint8 ones."""
    return torch.from_numpy(images).to(device).contiguous(memory_format=torch.channels_last) / 255


def is_right(network: nn.Module, images: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    """Which images (B, 3, H, W) in [0, 1] the network, in its present mode, gives their labels (B,)."""
    with torch.inference_mode():
        right: NDArray[np.bool_] = (network(images).argmax(1) == labels).cpu().numpy()
    return right


def _stock(architecture: str, n_classes: int) -> models.ResNet:
    network = models.get_model(architecture, weights=None, num_classes=n_classes)
    assert isinstance(network, models.ResNet)
    return network
