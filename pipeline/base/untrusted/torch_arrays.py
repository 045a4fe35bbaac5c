"""Decodes the records of tensors and NumPy arrays that `torch_files` finds.

Nothing is expanded: an array that claims more numbers than were stored is refused.
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.untrusted import torch_files
from pipeline.base.untrusted.pickle_records import Call, Global
from pipeline.base.untrusted.torch_files import Storage

MAX_DIMENSIONS = 8
MAX_EXTENT = 2**40
DTYPE = re.compile(r"[biufcSU]\d{1,5}")
# The types of tensors over a storage without a type of its own.
UNTYPED = {"torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8"}
TENSORS = {f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3")}
# These only add attributes to a tensor: a parameter, or a tensor of a class of its own.
PARAMETERS = {f"torch._utils._rebuild_parameter{with_}" for with_ in ("", "_with_state")}
SUBCLASSES = {
    f"torch.{name}" for name in ("_tensor._rebuild_from_type", "_tensor._rebuild_from_type_v2")
}
ARRAY, BUFFER, SCALAR = (
    {f"numpy.{core}.{name}" for core in ("core", "_core")}
    for name in ("multiarray._reconstruct", "numeric._frombuffer", "multiarray.scalar")
)
KNOWN = TENSORS | PARAMETERS | SUBCLASSES | ARRAY | BUFFER | SCALAR


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """Numbers or text of a tensor or a NumPy array.

    Those of a bfloat16 tensor are its bits, as uint16.
    """

    values: NDArray[Any]
    is_bfloat16: bool = False

    def plain(self) -> NDArray[Any]:
        """Return the values, with bfloat16 converted to float32, which is exact."""
        if not self.is_bfloat16:
            return self.values
        return (self.values.astype(np.uint32) << 16).view(np.float32)


def is_array(value: Any) -> bool:
    """Return whether a record is one of a tensor or an array, without decoding it."""
    return isinstance(value, Call) and value.name in KNOWN


def array(value: Any, depth: int = 0) -> Array | list[Any] | None:
    """Return the array that a record describes; None where it describes something else.

    A NumPy array of objects becomes a list. Raises InputError, without a path, for a tensor or an
    array that cannot be what it claims.
    """
    if not isinstance(value, Call) or value.name not in KNOWN:
        return None
    match value.name, value.arguments:
        case name, (inner, *_) if name in PARAMETERS and depth < 4:
            return array(inner, depth + 1)
        case name, (Global(function), _, tuple(arguments), *_) if name in SUBCLASSES and depth < 4:
            return array(Call(function, arguments), depth + 1)
        case name, (storage, int(first), tuple(size), tuple(stride), *rest) if name in TENSORS:
            return _tensor(value, _storage(storage, name), first, size, stride, rest)
        case name, (content, kind, tuple(shape), order, *_) if name in BUFFER:
            return _filled(content, _dtype(kind), shape, order == "F")
        case name, (kind, content) if name in SCALAR:
            return _filled(content, _dtype(kind), (), False)
        case name, _ if name in ARRAY:
            return _numpy(value.state)
    raise InputError(f"refused: {value.name} with a storage that is not plain")


def _storage(value: Any, name: str) -> Storage:
    """Return a tensor's storage, which is in the file or, in a plain pickle, in the pickle."""
    match value:
        case Call("torch.storage._load_from_bytes", (bytes(content),)):
            value = torch_files.inner(content)
    if not isinstance(value, Storage):
        raise InputError(f"refused: {name} with a storage that is not plain")
    return value


def _tensor(
    call: Call,
    storage: Storage,
    first: int,
    size: tuple[Any, ...],
    stride: tuple[Any, ...],
    rest: list[Any],
) -> Array:
    """Return a view of the storage. Raises InputError unless it is inside."""
    kind, count = torch_files.KINDS[storage.kind], storage.count
    if call.name.endswith("_v3"):
        match rest:
            case [_, _, Global(name), *_] if storage.kind == "Untyped" and name in UNTYPED:
                kind, count = UNTYPED[name], count // np.dtype(UNTYPED[name]).itemsize
            case _:
                raise InputError("refused: a tensor of a type that is not known")
    _check_view(storage.key, count, first, size, stride)
    dtype = np.dtype(kind).newbyteorder(storage.order)
    numbers = storage.content()[: count * dtype.itemsize].view(dtype)
    view = np.lib.stride_tricks.as_strided(
        numbers[first:] if math.prod(size) else np.empty(0, dtype),
        size,
        [step * dtype.itemsize for step in stride],
        writeable=numbers.flags.writeable,
    )
    return Array(_native(view), storage.kind == "BFloat16")


def _check_view(
    key: str, count: int, first: int, size: tuple[Any, ...], stride: tuple[Any, ...]
) -> None:
    if (
        not len(size) == len(stride) <= MAX_DIMENSIONS
        or not all(type(number) is int for number in (first, *size, *stride))
        or not all(0 <= number < MAX_EXTENT for number in (first, *size, *stride))
    ):
        raise InputError(f"refused: a tensor of an impossible shape over storage {key!r}")
    last = first + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if math.prod(size) > count or (math.prod(size) and last >= count):
        raise InputError(f"refused: a tensor that claims more than storage {key!r} holds")


def _numpy(state: Any) -> Array | list[Any]:
    """Return the array of NumPy's own state: version, shape, type, order, content."""
    match state:
        case (int(), tuple(shape), Call("numpy.dtype", ("O8", *_)), _, list(values)):
            if shape != (len(values),):
                raise InputError("refused: an array of objects of an impossible shape")
            return values
        case (int(), tuple(shape), kind, fortran, content):
            return _filled(content, _dtype(kind), shape, fortran is True)
    raise InputError("refused: a NumPy array without its content")


def _filled(content: Any, dtype: np.dtype[Any], shape: tuple[Any, ...], fortran: bool) -> Array:
    """Return the array of these bytes, which is read-only."""
    if isinstance(content, str) and content.isascii():
        content = content.encode()  # as Python 2 wrote it
    if isinstance(content, Call):  # of protocol 5: the bytes are those of another array
        inner = array(content)
        content = inner.values.tobytes() if isinstance(inner, Array) else None
    plain = len(shape) <= MAX_DIMENSIONS and all(
        type(extent) is int and 0 <= extent < MAX_EXTENT for extent in shape
    )
    if not isinstance(content, bytes) or not plain:
        raise InputError("refused: a NumPy array without its content")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise InputError(
            f"refused: a NumPy array of {math.prod(shape):,} values of {dtype.itemsize} bytes,"
            f" the file holds {len(content):,} bytes"
        )
    if dtype.itemsize == 0 or not content:
        return Array(np.empty(shape, dtype))
    values = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return Array(_native(values))


def _dtype(record: Any) -> np.dtype[Any]:
    """Return the NumPy type that a record describes. Raises InputError for other than plain ones.

    The record's state holds the order of the bytes in a number, at place 1.
    """
    match record:
        case Call("numpy.dtype", (str(name), *_), (_, str(order), None, None, None, *_)):
            if DTYPE.fullmatch(name) and order in "<>|=":
                with suppress(TypeError):  # such as i3, of which there is none
                    return np.dtype(name).newbyteorder(cast(Literal["<"], order))
    raise InputError("refused: a NumPy array that is neither of numbers nor of text")


def _native(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(values.dtype.newbyteorder("="), copy=False)
