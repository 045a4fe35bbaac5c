"""Check files of tensors before torch loads them.

The checks are what a file asks for, and whether it holds what it claims.
torch.load(weights_only=True) runs no code. It does allocate what a file asks for, and it makes
tensors that claim more than was stored.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits, pickles
from pipeline.base.untrusted.pickles import Call, Global, Stored

ITEM_BYTES = {
    f"torch.{kind}Storage": size
    for size, kinds in (
        (8, "Double Long"),
        (4, "Float Int"),
        (2, "Half BFloat16 Short"),
        (1, "Char Byte Bool"),
    )
    for kind in kinds.split()
}
TENSOR, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
ALLOWED = {TENSOR, PARAMETER, "collections.OrderedDict", *ITEM_BYTES}
MAX_PICKLE = 2**24  # bytes; the largest ResNet's pickle takes 40,000
MAX_STEPS = 1_000_000
MAX_DEPTH = 20
# A file that torch.save wrote before version 1.6 begins with this number, pickled.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def load(path: Path) -> Any:
    """Return the tensors and plain values of a torch.save file, on the CPU.

    Raises InputError that names what was found, without the path. Damaged files raise torch's and
    zipfile's own errors.
    """
    limits.expect_fits(2 * path.stat().st_size, path.stat().st_size)
    content = path.read_bytes()
    if content.startswith(LEGACY):
        _check_legacy(io.BytesIO(content), len(content))
    else:
        _check_zip(io.BytesIO(content))
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _check_zip(file: BinaryIO) -> None:
    archive, members = limits.zip_members(file, (zipfile.ZIP_STORED,))
    (entry,) = [member for name, member in members.items() if name.endswith("/data.pkl")]
    if entry.file_size > MAX_PICKLE:
        raise InputError(
            f"refused: its pickle takes {entry.file_size:,} bytes, more than {MAX_PICKLE:,}"
        )
    value = pickles.read(
        io.BytesIO(archive.read(entry)), entry.file_size, ALLOWED.__contains__, MAX_STEPS
    )
    for key, n_bytes in _storages(value).items():
        member = members.get(entry.filename.removesuffix("data.pkl") + f"data/{key}")
        if member is None or member.file_size != n_bytes:
            raise InputError(
                f"refused: storage {key!r} claims {n_bytes:,} bytes,"
                f" the file holds {member.file_size if member else 0:,}"
            )


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Check a file that torch.save wrote before version 1.6.

    Its magic number, version and system come first. The content, the storages' keys and the
    storages themselves follow.
    """
    _, _, _, value, keys = [
        pickles.read(file, min(size, MAX_PICKLE), ALLOWED.__contains__, MAX_STEPS) for _ in range(5)
    ]
    storages = _storages(value)
    left = size - file.tell() - 8 * len(storages)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise InputError("refused: the storages that it lists are not those of its tensors")
    if sum(storages.values()) != left:
        raise InputError(
            f"refused: its storages claim {sum(storages.values()):,} bytes, the file holds {left:,}"
        )


def _storages(value: Any) -> dict[str, int]:
    """Return the bytes that every storage claims, by its key.

    Each tensor in `value` is checked against its storage.
    """
    storages: dict[str, int] = {}
    seen: set[int] = set()

    def visit(part: Any, depth: int) -> None:
        if id(part) in seen and isinstance(part, dict | list | tuple):
            return  # a value that is reached twice, perhaps through itself
        seen.add(id(part))
        if depth > MAX_DEPTH:
            raise InputError(f"refused: its values are nested more than {MAX_DEPTH} deep")
        if isinstance(part, dict | list | tuple):
            for inner in part.values() if isinstance(part, dict) else part:
                visit(inner, depth + 1)
        elif isinstance(part, Call) and part.name == PARAMETER:
            visit(part.arguments[0] if part.arguments else None, depth + 1)
        elif isinstance(part, Call):
            key, n_bytes = _checked_tensor(part)
            if storages.setdefault(key, n_bytes) != n_bytes:
                raise InputError(f"refused: storage {key!r} claims two sizes")
        elif isinstance(part, Global | Stored):
            raise InputError("refused: a storage or a type without a tensor")

    visit(value, 0)
    return storages


def _checked_tensor(call: Call) -> tuple[str, int]:
    """Return the key and the bytes of a tensor's storage.

    Raises InputError unless the tensor is inside its storage.
    """
    match call.arguments:
        case (
            Stored(("storage", Global(kind), str(key), _, int(count), *view)),
            int(first),
            tuple(size),
            tuple(stride),
            *_,
        ):
            plain = call.name == TENSOR and kind in ITEM_BYTES and view in ([], [None])
        case _:
            plain = False
    if not plain:
        raise InputError(f"refused: {call.name} with a storage that is not plain")
    if len(size) != len(stride) or not all(
        type(number) is int and number >= 0 for number in (first, count, *size, *stride)
    ):
        raise InputError(f"refused: a tensor of an impossible shape over storage {key!r}")
    last = first + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
    if math.prod(size) > count or (math.prod(size) and last >= count):
        raise InputError(f"refused: a tensor that claims more than storage {key!r} holds")
    return key, count * ITEM_BYTES[kind]


# What torch.load raises for files that are cut short, of another kind, or ask for code.
UNREADABLE = (
    OSError,
    RuntimeError,
    zipfile.BadZipFile,
    MemoryError,
    TypeError,
    AttributeError,
    AssertionError,
    *pickles.UNREADABLE,
)


def is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def reason(error: BaseException) -> str:
    """Return why a file cannot be read, in words for the user.

    An InputError names what was found. Other errors describe their own code, so they are replaced.
    """
    return str(error) if isinstance(error, InputError) else "is it whole?"
