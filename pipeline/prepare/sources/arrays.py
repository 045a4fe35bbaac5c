"""Read the sources `npz` and `npy`: arrays of NumPy in an archive, or in a folder of files."""

import hashlib
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.prepare.params import Arrays, Part
from pipeline.prepare.sources import array_names, labels, normaliser
from pipeline.prepare.sources.common import Found, Stack

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# zipfile and numpy raise these for files that are cut short, damaged or of another kind.
NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    BadZipFile,
    NotImplementedError,
    RuntimeError,
    TypeError,
    SyntaxError,
    TokenError,
    OverflowError,
    MemoryError,
    KeyError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class _Header:
    """What the header of an array says, and where its content begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int

    @property
    def words(self) -> str:
        return described(self.shape, str(self.dtype))


def found_npz(path: Path, names: Arrays | None, asked: Sequence[Part]) -> Found:
    """Return the images and labels of a NumPy archive, without pickles.

    The arrays are kept in memory. Raises InputError for a file that is missing or unreadable, or
    that has no such arrays.
    """
    limits.regular(path, "set data.path to the .npz file of your images")
    with _reading(path, ".npz", "numpy.savez"), path.open("rb") as file:
        archive, members = limits.zip_members(file, (ZIP_STORED, ZIP_DEFLATED))
        there = {
            name.removesuffix(".npy"): member
            for name, member in members.items()
            if name.endswith(".npy")
        }
        words = {name: _words(name, archive, member) for name, member in there.items()}

        def load(name: str) -> NDArray[Any]:
            return _array(name, archive, there[name])

        return from_arrays(path, words, names, asked, load, files.sha256(path))


def found_npy(folder: Path, names: Arrays | None, asked: Sequence[Part]) -> Found:
    """Return the images and labels of a folder of `.npy` files, without pickles.

    Images are read only when they are requested. Raises InputError for a folder that is missing, or
    that has no such arrays.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected a folder with images.npy and labels.npy, found none; set data.path"
        )
    paths = sorted(path for path in folder.glob("*.npy") if not path.name.startswith("."))
    there = {path.stem: path for path in paths}
    words = {name: _npy_words(path) for name, path in there.items()}
    read: list[Path] = []

    def load(name: str) -> NDArray[Any]:
        read.append(there[name])
        return _mapped(there[name])

    found = from_arrays(folder, words, names, asked, load, "")
    lines = "".join(f"{files.sha256(path)}  {path.name}\n" for path in sorted(read))
    return replace(found, sha256=hashlib.sha256(lines.encode()).hexdigest())


def from_arrays(
    path: Path,
    there: Mapping[str, str],
    names: Arrays | None,
    asked: Sequence[Part],
    load: Callable[[str], NDArray[Any]],
    sha256: str,
) -> Found:
    """Return what the arrays of a file hold that the names in `params.yaml` or the usual ones mean.

    `there` are the names of all arrays with a description of each. `load` reads one.
    """
    chosen = array_names.choose(str(path), there, names, asked)
    named = array_names.class_names_in(there)
    classes = None if named is None else class_names_of(path, named, load(named))

    def part(pair: array_names.Pair) -> Found:
        images = load(pair.images)
        return Found(
            images=Stack(shape=images.shape, dtype=images.dtype, read=images.__getitem__),
            labels=load(pair.labels),
            class_names=classes,
            sha256=sha256,
            notes=array_names.left_out(chosen),
        )

    held_out = {name: part(pair) for name, pair in chosen.held_out.items()}
    return normaliser.joined(path, part(chosen.train), held_out)


def described(shape: tuple[int, ...], dtype: str) -> str:
    """Return the shape and type of an array in words."""
    return f"{' x '.join(map(str, shape)) or array_names.ONE_VALUE} {dtype[:30]}"


@contextmanager
def _reading(path: Path, ending: str, function: str) -> Iterator[None]:
    """Make one InputError with the path of every error of reading a NumPy file.

    `function` is that of NumPy which writes such files, of that `ending`.
    """
    try:
        yield
    except InputError as error:
        where = "" if str(error).startswith(str(path)) else f"{path}: "
        raise InputError(f"{where}{error}") from error
    except NPZ_ERRORS as error:
        raise InputError(
            f"{path}: cannot be read as {ending} ({' '.join(str(error).split())[:200]}); "
            f"save it again with {function}"
        ) from error


def _words(name: str, archive: ZipFile, member: ZipInfo) -> str:
    with archive.open(member) as file:
        return _header(name, file).words


def _header(name: str, file: IO[bytes]) -> _Header:
    """Return the header of an array. Raises InputError for a format that is not read here."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise InputError(
            f"{name}: refused: an .npy header of version {version}, expected 1.0 or 2.0; "
            "save it again as numbers or text"
        )
    shape, fortran, dtype = HEADERS[version](file)
    return _Header(shape, fortran, dtype, file.tell())


def _check_header(name: str, header: _Header, held: int, holder: str) -> int:
    """Return the bytes that an array claims.

    Raises InputError unless they are those that are `held`, and for arrays that are neither numbers
    nor text.
    """
    if header.dtype.kind not in "biufUS":
        raise InputError(
            f"{name}: refused: an array of {str(header.dtype)[:50]}, "
            f"which is no array of numbers or text; {_remedy(name, header.dtype)}"
        )
    n_bytes = math.prod(header.shape) * header.dtype.itemsize
    if n_bytes != held or min(header.shape, default=0) < 0:
        raise InputError(
            f"{name}: refused: its header claims {n_bytes:,} bytes, {holder} holds {held:,}"
        )
    return n_bytes


def _remedy(name: str, dtype: np.dtype[Any]) -> str:
    if dtype.kind == "c":
        return f"save {name}.real if that is what is meant"
    return f"save numpy.stack(list({name})) of images, numpy.array({name}.tolist()) of labels"


def _array(name: str, archive: ZipFile, member: ZipInfo) -> NDArray[Any]:
    """Return one array of the archive.

    Its header is checked against its size first, and its size against the free memory.
    """
    with archive.open(member) as file:
        header = _header(name, file)
        n_bytes = _check_header(name, header, member.file_size - header.offset, "the archive")
        limits.expect_fits(n_bytes, member.compress_size)
        content, filled = np.empty(n_bytes, dtype=np.uint8), 0
        while filled < n_bytes and (piece := file.read(2**20)):
            content[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            filled += len(piece)
    if filled < n_bytes:
        raise InputError(f"{name}: cut short after {filled:,} of {n_bytes:,} bytes")
    return content.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _npy_words(path: Path) -> str:
    """Return the shape and type of a file's array, or that it cannot be read."""
    try:
        return _npy_header(path).words
    except InputError:
        return "that cannot be read"


def _npy_header(path: Path) -> _Header:
    size = limits.regular(path, "save it again with numpy.save")
    with _reading(path, ".npy", "numpy.save"), path.open("rb") as file:
        header = _header(path.stem, file)
        _check_header(path.stem, header, size - header.offset, "the file")
    return header


def _mapped(path: Path) -> NDArray[Any]:
    """Return the array of a `.npy` file, whose pages are read when they are needed."""
    header = _npy_header(path)
    if not math.prod(header.shape):
        return np.empty(header.shape, header.dtype)
    order: Literal["F", "C"] = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", header.offset, header.shape, order)


def class_names_of(path: Path, name: str, names: NDArray[Any]) -> tuple[str, ...] | None:
    """Return the names of the classes, or None for numbers, which name nothing.

    Raises InputError for what is no list of text.
    """
    if names.dtype.kind in "biuf":
        return None
    texts = labels.texts_of(f"{path}: {name}", names)
    return tuple(limits.plain_name(f"{path}: {name}", text) for text in texts)
