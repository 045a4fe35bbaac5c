"""What the workers of a cluster do in the tests: they train, and one of them is killed once."""

import os
import signal
import time
from pathlib import Path

import pytest
from torch import distributed

from pipeline.base.errors import InputError
from pipeline.train import group
from pipeline.train.__main__ import train
from tests import narrow

SENDING = 4.0  # seconds in which unfinished work reaches the driver


def narrow_train(args):
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        return train(args)


def dying_train(args):
    """Kill the second worker in its second epoch, unless it was killed before."""
    decide, calls = group.Group.decide, []

    def dying(self, value):
        calls.append(1)
        mark = Path(os.environ["PIPELINE_TEST_MARK"])
        if len(calls) == 2 and self.rank == 1 and not mark.exists():
            mark.touch()
            time.sleep(SENDING)
            os.kill(os.getpid(), signal.SIGKILL)
        return decide(self, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group.Group, "decide", dying)
        return narrow_train(args)


def refusing_train(args):
    distributed.barrier()
    raise InputError("t: the loss is nan after epoch 1; lower its lr in params.yaml (now 9)")
