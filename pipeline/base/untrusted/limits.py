"""Provides the checks that all readers of outside files share.

Nothing is allocated before its size is known to fit.
"""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.base.errors import InputError

MEMINFO = Path("/proc/meminfo")
CONTAINER, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The files of a control group with its limit and its use, and the line of memory.stat with the
# cached files that nobody reads, of cgroups v2 and v1.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
MAX_NAME = 200  # letters in the name of a class


def regular(path: Path, remedy: str) -> int:
    """Return the size in bytes of a regular file.

    Raises InputError with `remedy`, which says what to do, for a missing file and for a pipe,
    device or folder. Raises OSError for a file that cannot be reached.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if path.is_symlink():
            raise InputError(
                f"{path}: a link to {path.readlink()}, where there is no file; is its disk mounted?"
            ) from error
        raise InputError(f"{path}: no such file; {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: expected a plain file, found a folder, pipe or device; {remedy}")
    return found.st_size


def available_memory() -> int:
    """Return how many bytes of host memory are available without swapping.

    Linux reports the number. The result is at most what every control group above this process
    leaves, as those of containers and batch jobs. Cached files that nobody reads count as free.
    """
    lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].removesuffix("kB")) * 1024
    for group, (limit, use, cached) in _control_groups():
        if not (group / limit).exists() or (most := (group / limit).read_text().strip()) == "max":
            continue
        used = int((group / use).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, max(int(most) - used + int(stat[cached]), 0))
    return free


def _control_groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yield the control groups that this process is in, with the names of their files.

    A container may not see its own group under the name that Linux gives, but sees it as the root.
    """
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (CONTAINER / "memory", V1) if controllers else (CONTAINER, V2)
        own = root / path.lstrip("/")
        yield from ((group, names) for group in (own, *own.parents) if group.is_relative_to(root))


def expect_fits(n_bytes: int, packed: int) -> None:
    """Raise InputError for `packed` stored bytes that unpack to more than the free memory.

    The error has no path.
    """
    if n_bytes > available_memory():
        raise InputError(
            f"refused: {packed:,} bytes that unpack to {n_bytes:,}, "
            "more than this machine's free memory"
        )


def plain_name(where: str, name: str) -> str:
    """Return `name` if it can be shown as it is.

    Raises InputError for an empty or very long name, and for control characters.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise InputError(
            f"{where}: expected names of 1 to {MAX_NAME} printable letters, found {name[:50]!a}"
        )
    return name


def zip_members(
    file: BinaryIO, methods: tuple[int, ...]
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Return an opened zip archive and its members by name.

    The names are never used as paths. Raises InputError, without a path, for encrypted members, for
    compression methods (of `zipfile`) other than `methods`, for duplicate names, and for sizes that
    the file cannot hold.
    """
    archive = zipfile.ZipFile(file)
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name, method = member.filename[:MAX_NAME], member.compress_type
        if member.filename in members:
            raise InputError(f"refused: it holds {name!r} twice")
        if member.flag_bits & 1 or method not in methods:
            raise InputError(
                f"refused: {name!r} is encrypted or compressed in a way that is not read here "
                f"(method {method})"
            )
        if method == zipfile.ZIP_STORED and member.compress_size != member.file_size:
            raise InputError(f"refused: {name!r} claims another size than it has")
        members[member.filename] = member
    packed = sum(member.compress_size for member in members.values())
    if packed > file.seek(0, os.SEEK_END):
        raise InputError(f"refused: its members claim {packed:,} bytes, more than the file has")
    return archive, members
