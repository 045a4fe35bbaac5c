"""Workers of a training as forks of this process, so that torch is imported only once."""

import os
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import distributed


def run(work, size, folder, *args):
    """Call `work(rank, *args)` in a group of processes; gives what each said on standard error.

    `folder` must be empty. A process alone forms no group.
    """
    fork = get_context("fork")
    processes = [
        fork.Process(target=_child, args=(work, rank, size, folder, args)) for rank in range(size)
    ]
    with warnings.catch_warnings(
        action="ignore", category=DeprecationWarning
    ):  # of forking threads
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=300)
    said = [_said(folder, rank).read_text() for rank in range(size)]
    assert [process.exitcode for process in processes] == [0] * size, "".join(said)
    return said


def _said(folder: Path, rank: int) -> Path:
    return folder / f"said-{rank}"


def _child(work, rank, size, folder, args):
    os.dup2(os.open(_said(folder, rank), os.O_WRONLY | os.O_CREAT, 0o600), 2)
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size
        )
    work(rank, *args)
    if size > 1:
        distributed.destroy_process_group()
