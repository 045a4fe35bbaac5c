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

from pipeline import console, files, guards, params, pickles, torch_files
from pipeline.errors import InputError, discarding
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
    """Tensors to start from, for all layers but the last, and the SHA-256 of their file; empty for a start from scratch."""

    state_dict: dict[str, Tensor]
    sha256: str


SCRATCH = Pretrained(state_dict={}, sha256="")


def build(model: params.Model, n_classes: int, seed: int, pretrained: Pretrained = SCRATCH) -> models.ResNet:
    """A network to train: stock torchvision with a last layer for `n_classes`, everything else from `pretrained` where it has tensors.

    Random tensors come from `seed`; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _stock(model.architecture, n_classes)
    network.load_state_dict({**network.state_dict(), **pretrained.state_dict})
    return network


def pretrained_weights(model: params.Model, where: str = "model") -> Pretrained:
    """Return the tensors that `model.weights` names: torchvision's ImageNet weights, a state_dict in a file, or none.

    torchvision's are downloaded once to torch's hub folder; the hash in the file's name is compared on every use. `where` is the dotted key
    of `model`. Raises InputError for weights that cannot be read whole, of another network or not finite: nothing starts from scratch
    instead.
    """
    where, path = f"{where}.weights", weights_file(model)
    if path is None:
        return SCRATCH
    if model.file is None:
        _download(_url(model), path, where)
    body = _body(read_state_dict(path, where), model.architecture, f"{where}: {path}")
    return Pretrained(state_dict=body, sha256=files.sha256(path))


def expect_weights(model: params.Model, where: str) -> None:
    """Check the weights that `pretrained_weights` will read; of torchvision's that are not here yet, say where they are expected."""
    path = weights_file(model)
    if path is None or model.file is not None or path.exists():
        pretrained_weights(model, where)
    else:
        place = f"{path.name} (its SHA-256 begins with {_hash_prefix(path)}) is not in {path.parent}"
        console.say(f"{where}.weights: {model.weights}: {place}; the training downloads it, or put it there")


def read_state_dict(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors by name that a file holds. Raises InputError, which begins with `where`, for any other content."""
    try:
        guards.regular(path, "put it there")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        content = torch_files.load(path)
    except UNREADABLE as error:
        raise InputError(f"{where}: {path}: not a file of tensors that can be read safely ({_reason(error)})") from error
    if not _is_state_dict(content):
        raise InputError(f"{where}: {path}: expected a state_dict, tensors by name, found {_contents(content)}")
    tensors: dict[str, Tensor] = content
    return tensors


def _contents(content: Any) -> str:
    """What a file holds instead of a state_dict, and what to do."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}; save network.state_dict() instead"
    others = [ascii(key)[:50] for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"other values under {', '.join(others[:5])}{more}; save the inner state_dict by itself"


def _body(tensors: Mapping[str, Tensor], architecture: str, where: str) -> dict[str, Tensor]:
    """The tensors of all layers but the last, as the network holds them.

    Old files, torchvision's among them, lack BatchNorm's counts of batches (num_batches_tracked). Those start at 0, as torch's own would.
    """
    with torch.device("meta"):
        expected = _without_last(_stock(architecture, 2).state_dict())
    found = _without_last(tensors)
    differing = [
        name
        for name in {**expected, **found}
        if _kind(found.get(name)) != _kind(expected.get(name)) and not (name not in found and name.endswith(".num_batches_tracked"))
    ]
    if differing:
        raise InputError(f"{where}: its tensors are not those of a {architecture}: {_differences(differing, expected, found)}")
    return {name: _converted(tensor, expected[name].dtype, where, name) for name, tensor in found.items()}


def _converted(tensor: Tensor, dtype: torch.dtype, where: str, name: str) -> Tensor:
    """A tensor in the network's own type; says once that a file has others. Raises InputError for numbers that are not finite there."""
    converted = tensor.to(dtype)
    if tensor.dtype != dtype:
        console.say_once(f"{where}: its tensors in {_type(tensor)} are converted to {_type(converted)}")
    if not converted.isfinite().all():
        raise InputError(f"{where}: {name}: expected finite numbers in {_type(converted)}, found NaN or infinity; use other weights")
    return converted


def _differences(names: list[str], expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How many tensors differ, and the first ones: two of the network's and one that only the file has."""
    first = [*[name for name in names if name in expected][:2], *[name for name in names if name not in expected][:1]]
    shown = [f"{ascii(name)[1:-1][:100]} (expected {_shown(expected.get(name))}, found {_shown(found.get(name))})" for name in first]
    return f"{len(names)} differ, first {', '.join(shown)}"


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{shape} in {_type(tensor)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: Tensor | None) -> tuple[torch.Size, bool] | None:
    """What must agree: float16, bfloat16 and float64 can be converted to float32, whole numbers cannot."""
    return None if tensor is None else (tensor.shape, tensor.is_floating_point())


def _without_last(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


def weights_file(model: params.Model) -> Path | None:
    """Where the weights that `model.weights` names are kept, whether they are there or not; None for a start from scratch."""
    if model.weights is None:
        return None
    return model.file or Path(torch.hub.get_dir()) / "checkpoints" / _url(model).rsplit("/", 1)[1]


def _url(model: params.Model) -> str:
    return str(models.get_model_weights(model.architecture)[model.weights].url)


def _hash_prefix(path: Path) -> str:
    """What the SHA-256 of a file in torch's hub folder begins with, as its name says."""
    return path.stem.rsplit("-", 1)[1]


def _download(url: str, path: Path, where: str) -> None:
    """Download the file of that address unless it is there, and compare its hash with the one that its name ends in."""
    prefix = _hash_prefix(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = " ".join(str(error).split())[:150]
            raise InputError(
                f"{where}: {path.name} cannot be downloaded ({reason});"
                f" put that file, whose SHA-256 begins with {prefix}, into {path.parent}"
            ) from error
    found = files.sha256(path)
    if not found.startswith(prefix):
        raise InputError(f"{where}: {path}: expected a SHA-256 that begins with {prefix}, found {found[:8]}; delete the file")


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
        if isinstance(error, MemoryError):
            raise InputError(f"{path}: not enough memory to read it; free some memory and run this again") from error
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path}: not a checkpoint of this pipeline ({_reason(error)}); {discarding(path)}") from error
    if checkpoint.architecture != architecture:
        raise InputError(f"{path}: expected a {architecture}, as model.architecture says, found a {checkpoint.architecture}")
    if tuple(checkpoint.class_names) != class_names:
        raise InputError(
            f"{path}: expected the {len(class_names)} classes of the data, found a model for {len(checkpoint.class_names)} other ones"
        )
    with torch.device("meta"):
        expected = _stock(architecture, len(class_names)).state_dict()
    if _shapes(checkpoint.state_dict) != _shapes(expected):
        raise InputError(f"{path}: its tensors are not those of a {architecture}; {discarding(path)}")
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
