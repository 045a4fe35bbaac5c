"""Read the weights to start from: torchvision's, by name, or a state_dict in a file."""

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from pipeline.base import console, files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.networks import params, resnet, torch_files
from pipeline.networks.resnet import SCRATCH, Pretrained
from pipeline.networks.torch_files import UNREADABLE, is_state_dict, reason


def pretrained_weights(model: params.Model, where: str = "model") -> Pretrained:
    """Return the tensors that `model.weights` names.

    They are torchvision's ImageNet weights, a state_dict in a file, or none. torchvision's are
    downloaded once to torch's hub folder. The hash in the file's name is compared on every use.
    `where` is the dotted key of `model`. Raises InputError for weights that cannot be read whole,
    that belong to another network or that are not finite. Never starts from scratch instead.
    """
    where, path = f"{where}.weights", weights_file(model)
    if path is None:
        return SCRATCH
    if model.file is None:
        _download(_url(model), path, where)
    body = _body(read_state_dict(path, where), model.architecture, f"{where}: {path}")
    return Pretrained(state_dict=body, sha256=files.sha256(path))


def expect_weights(model: params.Model, where: str) -> None:
    """Check the weights that `pretrained_weights` will read.

    If torchvision's weights are not downloaded yet, say where they are expected.
    """
    path = weights_file(model)
    if path is None or model.file is not None or path.exists():
        pretrained_weights(model, where)
    else:
        place = (
            f"{path.name} (its SHA-256 begins with {_hash_prefix(path)}) is not in {path.parent}"
        )
        console.say(
            f"{where}.weights: {model.weights}: {place}; the training downloads it, or put it there"
        )


def read_state_dict(path: Path, where: str) -> dict[str, Tensor]:
    """Return the tensors by name that a file holds.

    Raises InputError, which begins with `where`, for any other content.
    """
    try:
        limits.regular(path, "put it there")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    try:
        content = torch_files.load(path)
    except UNREADABLE as error:
        raise InputError(
            f"{where}: {path}: not a file of tensors that can be read safely ({reason(error)})"
        ) from error
    if not is_state_dict(content):
        raise InputError(
            f"{where}: {path}: expected a state_dict, tensors by name, found {_contents(content)}"
        )
    tensors: dict[str, Tensor] = content
    return tensors


def _contents(content: Any) -> str:
    """Return what a file holds instead of a state_dict, and what to do."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}; save network.state_dict() instead"
    others = [
        ascii(key)[:50]
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"other values under {', '.join(others[:5])}{more}; save the inner state_dict by itself"


def _body(tensors: Mapping[str, Tensor], architecture: str, where: str) -> dict[str, Tensor]:
    """Return the tensors of all layers except the last, in the network's own types.

    Old files, torchvision's among them, lack BatchNorm's counts of batches (num_batches_tracked).
    Those start at 0, as in torch.
    """
    with torch.device("meta"):
        expected = _without_last(resnet.stock(architecture, 2).state_dict())
    found = _without_last(tensors)
    differing = [
        name
        for name in {**expected, **found}
        if _kind(found.get(name)) != _kind(expected.get(name))
        and not (name not in found and name.endswith(".num_batches_tracked"))
    ]
    if differing:
        raise InputError(
            f"{where}: its tensors are not those of a {architecture}:"
            f" {_differences(differing, expected, found)}"
        )
    return {
        name: _converted(tensor, expected[name].dtype, where, name)
        for name, tensor in found.items()
    }


def _converted(tensor: Tensor, dtype: torch.dtype, where: str, name: str) -> Tensor:
    """Return a tensor in the network's own type.

    Says once that a file has other types. Raises InputError for numbers that are not finite in the
    network's type.
    """
    converted = tensor.to(dtype)
    if tensor.dtype != dtype:
        console.say_once(
            f"{where}: its tensors in {_type(tensor)} are converted to {_type(converted)}"
        )
    if not converted.isfinite().all():
        raise InputError(
            f"{where}: {name}: expected finite numbers in {_type(converted)},"
            " found NaN or infinity; use other weights"
        )
    return converted


def _differences(
    names: list[str], expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> str:
    """Return how many tensors differ, and the first ones.

    These are two of the network's, and one that only the file has.
    """
    first = [
        *[name for name in names if name in expected][:2],
        *[name for name in names if name not in expected][:1],
    ]
    shown = [
        f"{ascii(name)[1:-1][:100]} (expected {_shown(expected.get(name))},"
        f" found {_shown(found.get(name))})"
        for name in first
    ]
    return f"{len(names)} differ, first {', '.join(shown)}"


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{shape} in {_type(tensor)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: Tensor | None) -> tuple[torch.Size, bool] | None:
    """Return what must agree: the shape, and whether the numbers are floating point.

    float16, bfloat16 and float64 can be converted to float32. Whole numbers cannot.
    """
    return None if tensor is None else (tensor.shape, tensor.is_floating_point())


def _without_last(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}


def weights_file(model: params.Model) -> Path | None:
    """Return where the weights that `model.weights` names are kept.

    The file may be missing. Return None for a start from scratch.
    """
    if model.weights is None:
        return None
    return model.file or Path(torch.hub.get_dir()) / "checkpoints" / _url(model).rsplit("/", 1)[1]


def _url(model: params.Model) -> str:
    return str(models.get_model_weights(model.architecture)[model.weights].url)


def _hash_prefix(path: Path) -> str:
    """Return the start of the SHA-256 of a file in torch's hub folder, as its name says."""
    return path.stem.rsplit("-", 1)[1]


def _download(url: str, path: Path, where: str) -> None:
    """Download a file unless it exists, and compare its hash with the one in its name."""
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
        raise InputError(
            f"{where}: {path}: expected a SHA-256 that begins with {prefix},"
            f" found {found[:8]}; delete the file"
        )
