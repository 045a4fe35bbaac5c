"""torchvision's ResNets with a new last layer, and the checkpoints they are kept in.

The networks take images in [0, 1]: whatever normalisation they need is learned, so an attack's eps is in the pixels' own units.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models

from pipeline import files, guards, params, pickles, torch_files
from pipeline.errors import InputError
from pipeline.in_parts import fitted

FORMAT = "resnet-checkpoint/1"
# What torch.load raises for files that are cut short, of another kind, or ask for code.
UNREADABLE = (OSError, RuntimeError, zipfile.BadZipFile, MemoryError, TypeError, AttributeError, AssertionError, *pickles.UNREADABLE)


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


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Tensors to start from and the SHA-256 of the file that holds them; empty for a start from scratch."""

    state_dict: dict[str, Tensor]
    sha256: str


SCRATCH = Pretrained(state_dict={}, sha256="")


def build(model: params.Model, n_classes: int, seed: int, pretrained: Pretrained = SCRATCH) -> models.ResNet:
    """A network to train: stock torchvision with a last layer for `n_classes`, everything else from `pretrained` where it has tensors.

    Random tensors come from `seed`; the global generator is left as it was. Raises InputError for weights of another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _stock(model.architecture, n_classes)
    if pretrained.state_dict:
        own = network.state_dict()
        body = {name: tensor for name, tensor in pretrained.state_dict.items() if not name.startswith("fc.")}
        shapes = {name: tensor.shape for name, tensor in body.items()}
        if shapes != {name: tensor.shape for name, tensor in own.items() if not name.startswith("fc.")}:
            raise InputError(f"model.weights: {model.weights}: its tensors are not those of a {model.architecture}")
        network.load_state_dict({**own, **body})
    return network


def pretrained_weights(model: params.Model) -> Pretrained:
    """The tensors that `model.weights` names: torchvision's ImageNet weights, a state_dict in a file, or none.

    torchvision's are downloaded once to torch's hub folder; the file there is held to the hash in its name on every use. Raises InputError
    when they cannot be had whole: nothing starts from scratch that was told not to.
    """
    if model.weights is None:
        return SCRATCH
    if model.weights.endswith((".pth", ".pt")):
        path = Path(model.weights)
        guards.regular(path, "set model.weights")
    else:
        path = _downloaded(_url(model))
    try:
        content = torch_files.load(path)
    except UNREADABLE as error:
        raise InputError(f"model.weights: {path}: not a file of tensors that can be read safely ({_reason(error)})") from error
    if not _is_state_dict(content):
        raise InputError(f"model.weights: {path}: expected a state_dict, tensors by name, found something else")
    return Pretrained(state_dict=content, sha256=files.sha256(path))


def weights_file(model: params.Model) -> Path | None:
    """Where the weights that `model.weights` names are kept, whether they are there or not; None for a start from scratch."""
    if model.weights is None:
        return None
    return Path(model.weights) if model.weights.endswith((".pth", ".pt")) else _hub_file(_url(model))


def _url(model: params.Model) -> str:
    return str(models.get_model_weights(model.architecture)[model.weights].url)


def _hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _downloaded(url: str) -> Path:
    """The file of that address in torch's hub folder, with the hash that its name ends in."""
    path = _hub_file(url)
    folder, name = path.parent, path.name
    prefix = name.rsplit("-", 1)[1].split(".")[0]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())[:150]
            raise InputError(
                f"model.weights: {name} cannot be downloaded ({reason}); put that file, whose SHA-256 begins with {prefix}, into {folder}"
            ) from error
    if not files.sha256(path).startswith(prefix):
        raise InputError(
            f"model.weights: {path}: expected a SHA-256 that begins with {prefix}, found {files.sha256(path)[:8]}; delete the file"
        )
    return path


def load(path: Path, *, architecture: str, class_names: tuple[str, ...]) -> Checkpoint:
    """Read a checkpoint, tensors and plain values only.

    Raises InputError for a missing or foreign file, and for one of another architecture or other classes.
    """
    if not path.exists():
        raise InputError(f"{path}: no such model; `dvc repro` trains it")
    guards.regular(path, "`dvc repro` makes it anew")
    try:
        checkpoint = _checkpoint(torch_files.load(path))
    except UNREADABLE as error:
        raise InputError(f"{path}: not a checkpoint of this pipeline ({_reason(error)}); delete it and run `dvc repro`") from error
    if checkpoint.architecture != architecture:
        raise InputError(f"{path}: expected a {architecture}, as model.architecture says, found a {checkpoint.architecture}")
    if tuple(checkpoint.class_names) != class_names:
        raise InputError(
            f"{path}: expected the {len(class_names)} classes of the data, found a model for {len(checkpoint.class_names)} other ones"
        )
    with torch.device("meta"):
        expected = _stock(architecture, len(class_names)).state_dict()
    if _shapes(checkpoint.state_dict) != _shapes(expected):
        raise InputError(f"{path}: its tensors are not those of a {architecture}; delete it and run `dvc repro`")
    return checkpoint


def _checkpoint(content: Any) -> Checkpoint:
    """The checkpoint that a file's content spells out; raises ValueError or TypeError for any other content."""
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError("another format")
    checkpoint = Checkpoint(**content)
    values = checkpoint.provenance.items() if isinstance(checkpoint.provenance, dict) else [(None, None)]
    if not (
        isinstance(checkpoint.architecture, str)
        and isinstance(checkpoint.class_names, list)
        and all(isinstance(name, str) for name in checkpoint.class_names)
        and _is_state_dict(checkpoint.state_dict)
        and all(isinstance(key, str) and isinstance(value, str | int | float) for key, value in values)
    ):
        raise InputError("values of other types")
    return checkpoint


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state_dict.items()}


def _reason(error: BaseException) -> str:
    """What an InputError says, which names what was found; others' errors speak of their own code."""
    return str(error) if isinstance(error, InputError) else "is it whole?"


def predict(network: nn.Module, images: NDArray[np.uint8], batch_size: int) -> NDArray[np.int64]:
    """The predicted class (N,) of uint8 images (N, 3, H, W), in evaluation mode; the network's mode is restored."""
    device, was_training = next(network.parameters()).device, network.training
    network.eval()
    try:
        with torch.inference_mode():
            parts = [_predicted(network, pixels(images[i : i + batch_size], device)).cpu() for i in range(0, len(images), batch_size)]
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
        right: NDArray[np.bool_] = (_predicted(network, images) == labels).cpu().numpy()
    return right


def _predicted(network: nn.Module, images: Tensor) -> Tensor:
    """The predicted class (B,) of images (B, 3, H, W) in [0, 1]."""
    predicted: Tensor = fitted(network, images, lambda: network(images).argmax(1))
    return predicted


def _stock(architecture: str, n_classes: int) -> models.ResNet:
    network = models.get_model(architecture, weights=None, num_classes=n_classes)
    assert isinstance(network, models.ResNet)
    return network
