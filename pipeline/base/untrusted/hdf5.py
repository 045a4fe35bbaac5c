"""Opens HDF5 files, and finds out whether a file from elsewhere is safe to read.

A separate process, `hdf5_inspector.py`, examines each such file.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from pipeline.base.errors import InputError
from pipeline.base.untrusted import hdf5_bounds, hdf5_inspector, limits
from pipeline.base.untrusted.hdf5_inspector import Answer

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
MAX_REASON = 200  # letters of what the process says before it fails


@contextmanager
def reading(path: Path, damaged: str) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading.

    Errors inside the block become an InputError. It names the system's reason where there is one,
    and `damaged` only where the content is at fault.
    """
    try:
        with hdf5_bounds.open_file(path) as file:
            yield file
    except MemoryError as error:
        raise InputError(
            f"{path}: not enough memory to read it; free some memory and run this again"
        ) from error
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{path}: {hdf5_bounds.unavailable(error) or damaged}") from error


@contextmanager
def writing(path: Path, **options: Any) -> Iterator[h5py.File]:
    """Create an HDF5 file.

    A system error becomes an OSError that names the file.
    """
    try:
        with hdf5_bounds.open_file(path, "w", **options) as file:
            yield file
    except OSError as error:
        if not error.errno or error.filename:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def contents(path: Path, remedy: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the shape and kind of the datasets of a file made elsewhere, by name.

    A kind is the name of a NumPy dtype, such as uint8 or bool, or a word, such as text. Only hard
    links are followed. The names have no leading slash, and can be printed. Raises InputError with
    `remedy` for a file that is missing or damaged.
    """
    found = _examined(path, remedy, {"contents": True})
    return {name: (tuple(shape), kind) for name, (shape, kind) in found["contents"].items()}


def check_source(
    path: Path, datasets: Sequence[str], remedy: str, texts: Sequence[str] = ()
) -> None:
    """Raise InputError unless a file made elsewhere is safe and its `datasets` are complete.

    Those that are also in `texts` may be text, of one dimension, instead of numbers. A name that
    leads to no dataset is not an error. The error names what was found and `remedy`.
    """
    request = {
        "memory": limits.available_memory(),
        "datasets": list(datasets),
        "texts": list(texts),
    }
    _examined(path, remedy, request)


def _examined(path: Path, remedy: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to a request about a file. Raises InputError where it is a reason."""
    limits.regular(path, remedy)
    found = _answer({"path": str(path.absolute()), **request})
    if isinstance(found, str):
        raise InputError(
            f"{path}: {'' if found.startswith('not a readable') else 'refused: '}{found}; {remedy}"
        )
    if found and "unavailable" in found:
        raise InputError(f"{path}: {found['unavailable']}")
    return found or {}


def _answer(request: dict[str, Any]) -> Answer:
    """Return the answer of a process that examines one file.

    It is isolated from the environment, and finds its modules where this process does. It gets a
    group of its own, so that only this process receives a Ctrl-C.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", hdf5_inspector.__file__, *sys.path],
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            process_group=0,
            check=False,
        )
    except OSError as error:
        raise InputError(
            f"HDF5 files cannot be examined: no process can be started ({error.strerror}); "
            "raise that limit"
        ) from error
    if done.returncode:
        return _ended(done.returncode, done.stderr)
    found: Answer = json.loads(done.stdout)
    return found


def _ended(status: int, errors: str) -> Answer:
    """Return what the exit status of a process without an answer says about its file."""
    if status == -signal.SIGPROF:
        return "it takes libhdf5 too long to look through, as damaged files do"
    if -status in CRASHES:
        return f"it makes libhdf5 crash (status {status}), as damaged files do"
    if status > 0:
        reason = errors.strip().rpartition("\n")[2][:MAX_REASON]
        return {
            "unavailable": "the process that looks through it failed "
            f"(status {status}: {reason}); fix that and run this again"
        }
    return {
        "unavailable": f"the process that looks through it was ended (status {status}), "
        "perhaps for want of memory; run this again"
    }
