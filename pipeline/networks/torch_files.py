"""Turn tensors that were read without torch into torch's own, and say why a file is refused."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.untrusted import torch_arrays
from pipeline.base.untrusted.torch_arrays import Array

# What torch.load raises for files that are cut short, of another kind, or ask for code.
UNREADABLE = (
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    MemoryError,
    TypeError,
    AttributeError,
    AssertionError,
    pickle.UnpicklingError,
    ValueError,
    LookupError,
    EOFError,
)


def check_sums(path: Path) -> None:
    """Check a file that torch.save wrote against the checksums in it, which torch.load ignores.

    Raises one of UNREADABLE for a file that is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{path}: {damaged} is damaged")


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, or a record of one or of a NumPy array."""
    return isinstance(value, Tensor) or torch_arrays.is_array(value)


def tensors(records: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that records describe. They share memory where their file does.

    Raises InputError, without a path, for one that cannot be what it claims.
    """
    return {name: _tensor(record) for name, record in records.items()}


def _tensor(record: Any) -> Tensor:
    if isinstance(record, Tensor):
        return record
    found = torch_arrays.array(record)
    if not isinstance(found, Array) or found.values.dtype.kind not in "biufc":
        raise InputError("refused: an array that is not of numbers")
    values = found.values
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()
    if found.is_bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def reason(error: BaseException) -> str:
    """Return why a file cannot be read, in words for the user.

    An InputError names what was found. Other errors describe their own code, so they are replaced.
    """
    return str(error) if isinstance(error, InputError) else "is it whole?"
