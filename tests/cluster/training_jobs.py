"""What the workers of a cluster do in the tests: they train, and a node is killed once."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
import torch
from torch import distributed

from pipeline.base.errors import InputError
from pipeline.train import group
from pipeline.train.__main__ import train
from tests import narrow

SENDING = 60.0  # seconds in which unfinished work must reach the driver


def narrow_train(args):
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        return train(args)


def train_alone(rank, args, folder):
    """Train on one of two processes that no cluster has started."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    os.chdir(folder / ("project" if rank == 0 else "second"))
    narrow_train(args)
    distributed.destroy_process_group()


def dying_train(args):
    """Kill the node of a worker in its second epoch, unless one was killed before.

    The driver's node is spared.
    """
    decide, calls = group.Group.decide, []

    def dying(self, value):
        calls.append(1)
        is_spared = ray.get_runtime_context().get_node_id() == os.environ["PIPELINE_TEST_HEAD"]
        mark = Path(os.environ["PIPELINE_TEST_MARK"])
        if len(calls) == 2 and not is_spared and _is_first(mark):
            _wait_for_the_driver(Path((mark.parent / "project").read_text()))
            for pid in (os.getppid(), os.getpid()):
                os.kill(pid, signal.SIGKILL)
        return decide(self, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group.Group, "decide", dying)
        return narrow_train(args)


def _is_first(mark):
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for_the_driver(project):
    deadline = time.monotonic() + SENDING
    while not list(project.glob("models/.*.part")) and time.monotonic() < deadline:
        time.sleep(0.05)


def refusing_train(args):
    distributed.barrier()
    raise InputError("t: the loss is nan after epoch 1; lower its lr in params.yaml (now 9)")
