"""Take part in a training as one of the workers of a cluster.

Every worker has a folder of its own, with the project's files that the stage reads. What the first
worker prints and writes there is sent to the driver: at once what is printed, the history and the
unfinished work, and at the end what the stage makes.
"""

import io
import os
import shutil
import tempfile
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.cluster import freight
from pipeline.networks import device, device_name

INTERVAL = 0.5  # seconds between two looks at the files that change


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all workers of a training are told.

    `train` does the work of the stage in the current folder. Its `args` name paths there. `outputs`
    are what it makes, and `changing` are patterns of what it writes before its end.
    """

    name: str
    train: Callable[[Namespace], str]
    args: Namespace
    inputs: Sequence[freight.File]
    unfinished: Sequence[freight.File]
    outputs: Sequence[str]
    changing: Sequence[str]
    threads: int
    mailbox: Any


def work(job: Job) -> None:
    """Train, as the function that Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank = context.get_world_rank()
    os.environ[device_name.VARIABLE] = str(ray.train.torch.get_device())
    torch.set_num_threads(job.threads)
    try:
        root = home(job.name)
        if context.get_local_rank() == 0 and not (root / "inputs").exists():
            freight.unpack(job.inputs, root / "receiving")
            (root / "receiving").rename(root / "inputs")
        distributed.barrier()
        own = freight.linked(root / "inputs", root / f"worker-{rank}")
        freight.unpack(job.unfinished, own)
        os.chdir(own)
        os.environ["TORCH_HOME"] = str(own)
        _expect_one_kind()
        with _reporting(job) if rank == 0 else redirect_stdout(io.StringIO()):
            done = job.train(job.args)
        if rank == 0:
            for path in job.outputs:
                for each in (Path(path), *sorted(Path(path).rglob("*"))):
                    _send(job.mailbox, each)
            job.mailbox.put(("done", done))
    except (InputError, OSError, RuntimeError) as error:
        if words := console.in_words(error):
            job.mailbox.put(("refused", words))
        raise


def home(name: str) -> Path:
    """Return the folder of a training on this node."""
    return Path(tempfile.gettempdir()) / f"offline-hardening-{os.getuid()}-{name}"


def forget(name: str) -> None:
    """Delete the folder of a training on this node."""
    shutil.rmtree(home(name), ignore_errors=True)


def _expect_one_kind() -> None:
    """Raise InputError unless all workers have the same kind of processor, and the same torch."""
    kinds: list[Any] = [None] * distributed.get_world_size()
    own = f"{device.processor(device.choose())}, torch {torch.__version__}"
    distributed.all_gather_object(kinds, own)
    if len(set(kinds)) > 1:
        raise InputError(
            f"the workers are of several kinds ({'; '.join(sorted(set(kinds)))}), which round "
            "differently; train on nodes of one kind, with the same requirements"
        )


@contextmanager
def _reporting(job: Job) -> Iterator[None]:
    """Send to the driver what is printed, and the files that change."""
    ended = threading.Event()
    sender = threading.Thread(target=_send_changes, args=(job, _versions(job), ended), daemon=True)
    sender.start()
    try:
        with redirect_stdout(_Lines(job.mailbox)):
            yield
    finally:
        ended.set()
        sender.join()


class _Lines(io.StringIO):
    """A standard output whose lines are sent to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__()
        self._mailbox, self._begun = mailbox, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._mailbox.put(("line", line))
        return len(text)


def _versions(job: Job) -> dict[Path, int]:
    """Return when each file that `job.changing` names was replaced last."""
    found: dict[Path, int] = {}
    for path in (found for pattern in job.changing for found in Path().glob(pattern)):
        with suppress(FileNotFoundError):  # it is being replaced
            if not path.name.endswith(".new.part"):
                found[path] = path.stat().st_mtime_ns
    return found


def _send_changes(job: Job, known: dict[Path, int], ended: threading.Event) -> None:
    """Send each file that changes, and say which ones are gone.

    `known` are those that the driver has.
    """
    is_last = False
    while not is_last:
        is_last = ended.wait(INTERVAL)
        found = _versions(job)
        for path in known.keys() - found.keys():
            job.mailbox.put(("gone", str(path)))
            del known[path]
        for path, version in found.items():
            with suppress(FileNotFoundError):  # it is being replaced
                if known.get(path) != version:
                    _send(job.mailbox, path)
                    known[path] = version


def _send(mailbox: Any, path: Path) -> None:
    """Send a file or a folder. A message with the number of its pieces ends a file."""
    if path.is_dir():
        mailbox.put(("folder", str(path)))
        return
    n_pieces = 0
    for piece in freight.pieces(path):
        mailbox.put(("piece", str(path), piece))
        n_pieces += 1
    mailbox.put(("file", str(path), n_pieces))
