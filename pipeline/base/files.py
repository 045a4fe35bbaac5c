"""Writes files that are either complete or absent, and computes their SHA-256."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.base.errors import InputError

TEXT = ("actual", "predicted", "output", "class_name")  # columns of a CSV that are never numbers


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete and on the disk.

    Creates the file's folder.
    """
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file that replaces `path` when the block ends without an error.

    The file takes the name only when it is complete and on the disk. Creates the file's folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name.removeprefix('.')}.new.part")
    with part.open("wb") as file:
        yield file
        sync(file)
    part.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as indented JSON.

    Raises ValueError for NaN and infinities.
    """
    write_bytes(
        path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write rows that all have the keys of the first one.

    `columns` names the keys where there may be no row.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Return what a result holds. Raises InputError for what cannot be read or lacks a key."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in keys if key not in content]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read; `dvc repro` makes it") from error
    if missing:
        raise InputError(f"{path}: cannot be read (no {missing[0]}); `dvc repro` makes it")
    return content


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a result, with numbers where they are numbers, except in TEXT.

    Raises InputError for what cannot be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: _value(key, text) for key, text in row.items()} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read; `dvc repro` makes it") from error


def _value(column: str, text: str) -> int | float | str:
    for kind in () if column in TEXT else (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def require_space(folder: Path, n_bytes: int, what: str) -> None:
    """Raise InputError unless the disk of a folder has room for `n_bytes` bytes.

    The folder need not exist yet.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise InputError(
            f"{folder}: {what} needs {math.ceil(n_bytes / 2**20):,} MiB, "
            f"and the disk has {free // 2**20:,} MiB left; free some space"
        )


def is_full_disk(error: OSError) -> bool:
    """Return whether a write failed for lack of space.

    HDF5 reports this cause only in the text of its error.
    """
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or f"errno = {errno.ENOSPC}," in str(error)


def sync(file: BinaryIO) -> None:
    """Flush an open file, and return once its content is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames inside a folder survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
