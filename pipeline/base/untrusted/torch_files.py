"""Reads what torch.save and pickle.dump write, without torch and without unpickling.

The content is plain values and records of the calls that the pickle asks for. `array` decodes the
records of tensors and of NumPy arrays. A storage is read from the file when it is first needed, and
tensors share it, so the memory taken is about the size of the file.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits, pickles
from pipeline.base.untrusted.pickle_records import Global, Stored

Bytes = NDArray[np.uint8]
MAX_STEPS = 20_000_000  # what a hostile pickle can allocate stays below 2 GiB
SPAN = 2**24  # bytes that are read together
MAGIC = 0x1950A86A20F9469CFC6C  # begins a file that torch.save wrote before version 1.6
# NumPy has no bfloat16. Its bits are kept as whole numbers of 16 bits.
KINDS = {
    kind: code
    for code, kinds in {
        "?": "Bool",
        "u1": "Byte Untyped",
        "i1": "Char",
        "i2": "Short",
        "u2": "BFloat16",
        "i4": "Int",
        "i8": "Long",
        "f2": "Half",
        "f4": "Float",
        "f8": "Double",
        "c8": "ComplexFloat",
        "c16": "ComplexDouble",
    }.items()
    for kind in kinds.split()
}
# What damaged files raise.
UNREADABLE = (
    OSError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
    *pickles.UNREADABLE,
)


@dataclass(slots=True, eq=False)
class Storage:
    """The numbers of one or several tensors, which are read when they are first needed."""

    key: str
    kind: str  # of its numbers: a key of KINDS
    count: int  # of numbers
    order: Literal["<", ">"]  # of the bytes in a number: < or >
    fetch: Callable[[], Bytes] | None = None
    _content: Bytes | None = field(default=None, repr=False)

    @property
    def n_bytes(self) -> int:
        return self.count * np.dtype(KINDS[self.kind]).itemsize

    def content(self) -> Bytes:
        if self._content is None:
            if self.fetch is None:
                raise InputError(f"refused: storage {self.key!r} is not in the file")
            self._content = self.fetch()
        return self._content


def load(path: Path, max_steps: int = MAX_STEPS) -> Any:
    """Return the content of a file: plain values, and records for everything else.

    The file is an archive as torch writes it, an older torch file, or one pickle. Raises InputError
    without the path, and one of UNREADABLE for a damaged file.
    """
    size = path.stat().st_size
    limits.expect_fits(2 * size, size)
    with path.open("rb", buffering=2**20) as file:
        start = file.read(2)
        file.seek(0)
        if start == b"PK":
            return _Archive(path, file, max_steps).content()
        if start[:1] == b"\x80":
            return _stream(file, size, max_steps, lambda first, n: _read(path, first, n))
    raise InputError("expected a file that torch.save or pickle.dump wrote")


class _Archive:
    """The zip archive that torch.save writes: a pickle, and a member for each storage."""

    def __init__(self, path: Path, file: BinaryIO, max_steps: int) -> None:
        self.path, self.file, self.max_steps = path, file, max_steps
        if any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()):
            raise InputError("refused: it is TorchScript; save module.state_dict() with torch.save")
        _, self.members = limits.zip_members(file, (zipfile.ZIP_STORED,))
        self.storages: dict[str, Storage] = {}
        (self.pickled,) = [name for name in self.members if name.endswith("/data.pkl")]
        self.folder = self.pickled.removesuffix("data.pkl")
        self.order: Literal["<", ">"] = ">" if self._bytes("byteorder") == b"big" else "<"

    def content(self) -> Any:
        member = self.members[self.pickled]
        start = self._start(member)
        for _ in _spans(self.path, start, member.file_size, member.CRC):
            pass  # only the checksum counts
        self.file.seek(start)
        return pickles.read(self.file, member.file_size, self.max_steps, self._storage)

    def _bytes(self, name: str) -> bytes | None:
        member = self.members.get(self.folder + name)
        if member is None or member.file_size > limits.MAX_NAME:
            return None
        return bytes(_read(self.path, self._start(member), member.file_size, member.CRC))

    def _storage(self, key: Any) -> Any:
        storage = _described(key, self.order)
        if not isinstance(storage, Storage):
            return storage
        if storage.key in self.storages:
            return _shared(self.storages, storage)
        member = self.members.get(f"{self.folder}data/{storage.key}")
        if member is None or member.file_size != storage.n_bytes:
            raise InputError(
                f"refused: storage {storage.key!r} claims {storage.n_bytes:,} bytes,"
                f" the file holds {member.file_size if member else 0:,}"
            )
        start = self._start(member)
        storage.fetch = lambda: _read(self.path, start, storage.n_bytes, member.CRC)
        return _shared(self.storages, storage)

    def _start(self, member: zipfile.ZipInfo) -> int:
        """Return where a member's bytes begin, after its own header."""
        header = os.pread(self.file.fileno(), 30, member.header_offset)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise zipfile.BadZipFile("no header where one should be")
        lengths = (int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
        return member.header_offset + 30 + sum(lengths)


def _read(path: Path, start: int, n_bytes: int, crc: int = 0) -> Bytes:
    """Return bytes of a file, whose checksum is compared."""
    content = np.empty(n_bytes, np.uint8)
    place = 0
    for span in _spans(path, start, n_bytes, crc):
        content[place : place + len(span)] = span
        place += len(span)
    return content


def _spans(path: Path, start: int, n_bytes: int, crc: int) -> Iterator[Bytes]:
    """Yield bytes of a file in pieces. A checksum of 0 is none: torch can leave it out."""
    found, left = 0, n_bytes
    with path.open("rb") as file:
        file.seek(start)
        while left:
            content = file.read(min(left, SPAN))
            if not content:
                raise EOFError("cut short")
            found, left = zlib.crc32(content, found), left - len(content)
            yield np.frombuffer(content, np.uint8)
    if crc and found != crc:
        raise zipfile.BadZipFile("a checksum that is not that of the bytes")


def _stream(file: BinaryIO, size: int, max_steps: int, fetch: Callable[[int, int], Bytes]) -> Any:
    """Return the content of one pickle, or of a file that torch.save wrote before version 1.6.

    The latter has its magic number, version and system first. The content, the storages' keys and
    the storages themselves follow. `fetch(start, n)` returns bytes of the file.
    """
    first = pickles.read(file, size, max_steps, _refused_id)
    if first != MAGIC or isinstance(first, bool):
        if file.tell() != size:
            raise InputError("refused: expected one pickle, found more after it")
        return first
    storages: dict[str, Storage] = {}
    _, system = (pickles.read(file, size, max_steps) for _ in range(2))
    little = not isinstance(system, dict) or system.get("little_endian", True)
    value = pickles.read(
        file,
        size,
        max_steps,
        lambda key: _shared(storages, _described(key, "<" if little else ">")),
    )
    keys = pickles.read(file, size, max_steps)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(storages)
    ):
        raise InputError("refused: the storages that it lists are not those of its tensors")
    _place(file, size, [storages[key] for key in keys], fetch)
    return value


def _place(
    file: BinaryIO, size: int, storages: list[Storage], fetch: Callable[[int, int], Bytes]
) -> None:
    """Find the bytes of storages, which follow each other, each after its count of numbers."""
    claimed, left = sum(storage.n_bytes for storage in storages), size - file.tell()
    if claimed != left - 8 * len(storages):
        raise InputError(
            f"refused: its storages claim {claimed:,} bytes,"
            f" the file holds {left - 8 * len(storages):,}"
        )
    for storage in storages:
        if int.from_bytes(file.read(8), "little" if storage.order == "<" else "big") != (
            storage.count
        ):
            raise InputError(f"refused: storage {storage.key!r} claims two sizes or types")
        start, n_bytes = file.tell(), storage.n_bytes
        storage.fetch = lambda start=start, n_bytes=n_bytes: fetch(start, n_bytes)
        file.seek(n_bytes, os.SEEK_CUR)


def inner(content: bytes) -> Any:
    """Return the content of a torch file that is in a pickle.

    pickle.dump writes each storage in this way.
    """
    whole = np.frombuffer(content, np.uint8)
    try:
        return _stream(
            io.BytesIO(content), len(content), 1000, lambda first, n: whole[first : first + n]
        )
    except pickles.UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError("refused: a storage that cannot be read") from error


def _refused_id(_: Any) -> Any:
    raise InputError("refused: a storage or a type without a tensor")


def _shared(storages: dict[str, Storage], storage: Any) -> Any:
    """Return the storage of that key that is known already, if there is one."""
    if not isinstance(storage, Storage):
        return storage
    known = storages.setdefault(storage.key, storage)
    if (known.kind, known.count) != (storage.kind, storage.count):
        raise InputError(f"refused: storage {storage.key!r} claims two sizes or types")
    return known


def _described(key: Any, order: Literal["<", ">"]) -> Any:
    """Return the storage that a persistent id describes, or a record where it is none.

    Older files have the class of a module, with its source, in such an id.
    """
    match key:
        case ("module", Global() as module, *_):
            return module
        case ("storage", Global(name), str(named), _, int(count), *view) if view in ([], [None]):
            kind = name.rpartition(".")[2].removesuffix("Storage")
            if name.startswith("torch.") and kind in KINDS and count >= 0:
                return Storage(named, kind, count, order)
    return Stored(key)
