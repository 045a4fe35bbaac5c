"""Provides what the modules of the HDF5 inspector share: its limits, its refusals, open files.

These modules also run in a process that imports neither torch nor pathlib, so that it starts fast.
"""

import errno
import os
import re
import resource
import signal
from typing import Any

import h5py

MEMORY = 768 * 2**20  # bytes that one examination may take
# Computing time after which the process is ended. It restarts for every object and chunk,
# and while the places of chunks are found.
SECONDS = 1
SPEED = 2**25  # bytes of a chunk for which it gets a second more
MAX_SHOWN = 200  # letters of a name or path
# libhdf5 causes these system errors itself when a damaged file sends it to impossible places.
OF_CONTENT = (0, errno.EINVAL, errno.EFAULT, errno.EOVERFLOW)


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """A reason why a file is not read."""


def bound_process() -> None:
    """Limit the memory of this process, and let it leave no core file."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - importing pathlib slows every start
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + MEMORY if hard == resource.RLIM_INFINITY else min(used + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def more_time(n_bytes: int = 0) -> None:
    """Let SIGPROF end this process, which alone stops C code, once it has computed for SECONDS.

    It gets more time for a chunk of `n_bytes`.
    """
    signal.setitimer(signal.ITIMER_PROF, SECONDS + n_bytes / SPEED)


def shown(name: bytes) -> str:
    """Return a name of the file as printable text of at most MAX_SHOWN letters."""
    text = name[: 4 * MAX_SHOWN].decode(errors="backslashreplace")
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def open_file(path: Any, mode: str = "r", **options: Any) -> h5py.File:
    """Return an open HDF5 file, which libhdf5 does not lock where the disk has no locks.

    Raises OSError as h5py does.
    """
    try:
        return h5py.File(path, mode, **options)
    except OSError as error:
        if "unable to lock file" not in str(error) or error.errno == errno.EAGAIN:
            raise
    return h5py.File(path, mode, locking=False, **options)


def unavailable(error: BaseException) -> str | None:
    """Return why a file could not be opened or read although it may be whole, and what to do.

    Returns None where the file's content is at fault.
    """
    text = str(error)
    if "consistency flags" in text:
        return (
            "marked as open for writing: a program has it open, or ended without closing it; "
            "close that program, or if there is none, "
            "clear the mark with `h5clear -s FILE` (of the HDF5 tools)"
        )
    number = getattr(error, "errno", None) or next(map(int, re.findall(r"errno = (\d+)", text)), 0)
    if number == errno.EAGAIN:
        return "locked: another program has it open for writing; close it there and run this again"
    return None if number in OF_CONTENT else f"cannot be read: {os.strerror(number)}"
