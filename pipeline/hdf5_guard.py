"""Asks `pipeline/hdf5_walk.py`, in a process of its own, whether an HDF5 file is safe to read."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pipeline import guards, hdf5_walk
from pipeline.errors import InputError

# By their registered numbers: gzip, shuffle, fletcher32 in files of others; what the project itself writes, blosc2 and zstd, in stores.
OTHERS_FILTERS, STORE_FILTERS = (1, 2, 3), (2, 32000, 32008, 32015, 32026)


def check_source(path: Path, datasets: Sequence[str], remedy: str) -> None:
    """Raise InputError, naming what was found and `remedy`, unless a file made elsewhere is safe and those datasets of it whole."""
    _check(path, {"filters": OTHERS_FILTERS, "datasets": list(datasets), "exact": True}, remedy)


def check_shard(path: Path, datasets: Sequence[str], remedy: str) -> None:
    """Raise InputError, naming what was found and `remedy`, unless a shard is safe to read and those datasets of it whole."""
    _check(path, {"filters": STORE_FILTERS, "datasets": list(datasets), "exact": False}, remedy)


def _check(path: Path, request: dict[str, object], remedy: str) -> None:
    guards.regular(path, remedy)
    found = _walker(os.getpid()).ask({"path": str(path.absolute()), "memory": guards.available_memory(), **request})
    if found is not None:
        raise InputError(f"{path}: {'' if found.startswith('not a readable') else 'refused: '}{found}; {remedy}")


class _Walker:
    """The process that examines files, started again after a file that ended it."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, object]) -> str | None:
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-I", hdf5_walk.__file__]
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(  # in a group of its own: a Ctrl-C is ours to answer
                    command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, process_group=0
                )
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            if answer:
                found: str | None = json.loads(answer)
                return found
            return self._ended()

    def close(self) -> int:
        """End the process; returns its exit status."""
        if self._process is None or self._owner != os.getpid():
            return 0
        self._process.communicate()
        status, self._process = self._process.returncode, None
        return status

    def _ended(self) -> str:
        status = self.close()
        if status == -signal.SIGPROF:
            return "it takes libhdf5 too long to look through, as damaged files do"
        return f"it makes libhdf5 crash (status {status}), as damaged files do"


@cache
def _walker(_process_id: int) -> _Walker:
    """The walker of this process: a forked one must not share its pipes."""
    walker = _Walker()
    atexit.register(walker.close)
    return walker
