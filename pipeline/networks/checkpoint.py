"""Trained networks and the files that they are kept in: tensors and where they come from, plain values only."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models

from pipeline.base import files
from pipeline.base.errors import InputError, discarding
from pipeline.base.untrusted import limits
from pipeline.networks import resnet, torch_files
from pipeline.networks.torch_files import UNREADABLE, is_state_dict, reason

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
        network = resnet.stock(self.architecture, len(self.class_names))
        network.load_state_dict(self.state_dict)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the checkpoint; the same content gives the same bytes."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)}}, buffer)
        files.write_bytes(path, buffer.getvalue())


def load(path: Path, *, class_names: tuple[str, ...], architecture: str | None = None) -> Checkpoint:
    """Read a checkpoint, tensors and plain values only.

    Raises InputError for a missing or foreign file, and for one of another architecture or other classes.
    """
    if not path.exists():
        raise InputError(f"{path}: no such model; `dvc repro` trains it")
    limits.regular(path, "`dvc repro` makes it anew")
    try:
        checkpoint = _checkpoint(torch_files.load(path))
    except UNREADABLE as error:
        if isinstance(error, MemoryError):
            raise InputError(f"{path}: not enough memory to read it; free some memory and run this again") from error
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(f"{path}: not a checkpoint of this pipeline ({reason(error)}); {discarding(path)}") from error
    if architecture is not None and checkpoint.architecture != architecture:
        raise InputError(f"{path}: expected a {architecture}, as model.architecture says, found a {checkpoint.architecture}")
    if tuple(checkpoint.class_names) != class_names:
        raise InputError(
            f"{path}: expected the {len(class_names)} classes of the data, found a model for {len(checkpoint.class_names)} other ones"
        )
    if not resnet.is_known(checkpoint.architecture):
        raise InputError(f"{path}: not a checkpoint of this pipeline (another architecture); {discarding(path)}")
    with torch.device("meta"):
        expected = resnet.stock(checkpoint.architecture, len(class_names)).state_dict()
    if _shapes(checkpoint.state_dict) != _shapes(expected):
        raise InputError(f"{path}: its tensors are not those of a {checkpoint.architecture}; {discarding(path)}")
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
        and is_state_dict(checkpoint.state_dict)
        and all(isinstance(key, str) and isinstance(value, str | int | float) for key, value in values)
    ):
        raise InputError("values of other types")
    return checkpoint


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in state_dict.items()}
