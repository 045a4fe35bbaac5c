"""Store trained networks in files, and read them.

A checkpoint is a safetensors file. It consists of the length of a header (8 bytes), the header as
JSON, and the tensors. One metadata entry holds all the rest as JSON. With several entries, their
order would change from one run to the next, and so would the bytes of the file.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from pipeline.base import files
from pipeline.base.errors import InputError, discarding
from pipeline.base.untrusted import limits
from pipeline.networks import resnet
from pipeline.networks.torch_files import reason
from pipeline.networks.torchvision_models import models

FORMAT = "resnet-checkpoint/2"
METADATA = "__metadata__"  # safetensors' own name
ENTRY = "checkpoint"
MAX_HEADER = 2**24  # bytes; with 1000 classes, the largest ResNet's takes 200,000
DTYPES = {torch.float32: "F32", torch.int64: "I64"}  # all that a stock ResNet has


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network's tensors and where they come from, as plain values."""

    architecture: str
    class_names: list[str]
    state_dict: dict[str, Tensor]
    provenance: dict[str, str | int | float]

    def network(self) -> models.ResNet:
        """Return the network with these tensors, on the CPU, in evaluation mode."""
        network = resnet.stock(self.architecture, len(self.class_names))
        network.load_state_dict(self.state_dict)
        return network.eval()

    def save(self, path: Path) -> None:
        """Write the checkpoint. The same content gives the same bytes."""
        about = {
            "format": FORMAT,
            "architecture": self.architecture,
            "class_names": self.class_names,
            "provenance": self.provenance,
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict.items()}
        text = json.dumps(about, ensure_ascii=False, allow_nan=False)
        files.write_bytes(path, safetensors.save(tensors, {ENTRY: text}))


def load(
    path: Path, *, class_names: tuple[str, ...], architecture: str | None = None
) -> Checkpoint:
    """Read a checkpoint.

    Its tensors are read only if they are those of its architecture. Raises InputError for a
    missing, damaged or foreign file. Raises it also for other classes, and for another architecture
    than the one given.
    """
    if not path.exists():
        raise InputError(f"{path}: no such model; `dvc repro` trains it")
    size = limits.regular(path, "`dvc repro` makes it again")
    with _refusing(path):
        header, n_bytes = _header(path, size)
        checkpoint = _about(header.pop(METADATA))
        claimed = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    _expect_model(path, checkpoint, architecture, class_names)
    expected = resnet.expected(checkpoint.architecture, len(class_names))
    if claimed != {
        name: (DTYPES[tensor.dtype], list(tensor.shape)) for name, tensor in expected.items()
    }:
        raise InputError(
            f"{path}: its tensors are not those of a {checkpoint.architecture}; {discarding(path)}"
        )
    with _refusing(path):
        if n_bytes != (wanted := sum(tensor.nbytes for tensor in expected.values())):
            raise InputError(f"expected {wanted:,} bytes of tensors, found {n_bytes:,}")
        found = safetensors.load(path.read_bytes())
        # In the network's own order: the library returns them in any, and a submission's bytes
        # follow it.
        return replace(checkpoint, state_dict={name: found[name] for name in expected})


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn what damaged and foreign files raise into one line with a remedy."""
    try:
        yield
    except MemoryError as error:
        raise InputError(
            f"{path}: not enough memory to read it; free some memory and run this again"
        ) from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise InputError(
            f"{path}: not a checkpoint of this pipeline ({reason(error)}); {discarding(path)}"
        ) from error


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Return the header of a file of `size` bytes, and how many bytes follow it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER, size - 8):
            raise InputError(f"its header claims {length:,} bytes, the file holds {size:,}")
        text = file.read(length).decode()
    return json.loads(text, object_pairs_hook=_distinct), size - 8 - length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dictionary, and refuse a name that occurs twice.

    Two readers might take different values.
    """
    if len(found := dict(pairs)) < len(pairs):
        raise InputError("its header has a name twice")
    return found


def _about(metadata: Mapping[str, str]) -> Checkpoint:
    """Return the checkpoint that the metadata describes, without its tensors."""
    content = json.loads(metadata[ENTRY])
    if content.pop("format", None) != FORMAT:
        raise InputError("another format")
    checkpoint = Checkpoint(state_dict={}, **content)
    values = checkpoint.provenance.values() if isinstance(checkpoint.provenance, dict) else [None]
    if not (
        isinstance(checkpoint.architecture, str)
        and isinstance(checkpoint.class_names, list)
        and all(isinstance(name, str) for name in checkpoint.class_names)
        and all(isinstance(value, str | int | float) for value in values)
    ):
        raise InputError("values of other types")
    return checkpoint


def _expect_model(
    path: Path, checkpoint: Checkpoint, architecture: str | None, class_names: tuple[str, ...]
) -> None:
    """Raise InputError for another architecture or other classes."""
    if not resnet.is_known(checkpoint.architecture):
        raise InputError(
            f"{path}: not a checkpoint of this pipeline (another architecture); {discarding(path)}"
        )
    if architecture is not None and checkpoint.architecture != architecture:
        raise InputError(
            f"{path}: expected a {architecture}, as model.architecture says,"
            f" found a {checkpoint.architecture}"
        )
    if tuple(checkpoint.class_names) != class_names:
        raise InputError(
            f"{path}: expected the {len(class_names)} classes of the data,"
            f" found a model for {len(checkpoint.class_names)} other ones"
        )
