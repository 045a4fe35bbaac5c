"""Jobs and a command that tests run on a cluster."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.attacks.params import Generate
from pipeline.base import console, store
from pipeline.cluster.opened import opened
from pipeline.generate import generation
from tests.conftest import PGD, attack_spec
from tests.narrow import NarrowResNet

SETTINGS = Generate(batch_size=8, precision="fp32", seed=7)


@dataclass(frozen=True)
class Square:
    """Squares numbers; some tests make it slow, wrong or deadly."""

    seconds: float = 0.0
    fails_at: int | None = None
    dies_at: int | None = None

    def on(self, device):
        return self._square

    def _square(self, number):
        time.sleep(self.seconds)
        if number == self.fails_at:
            raise ValueError(f"no square of {number}")
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number


def network():
    torch.manual_seed(0)
    return NarrowResNet(num_classes=3)


def generate(clean, out, workers, steps=3):
    spec = attack_spec(**{**PGD, "steps": steps})
    return generation.generate(
        clean, network(), "hash", spec, SETTINGS, name="pgd", out=out, workers=workers
    )


def main() -> str:
    clean, out, steps = store.ImageSet(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
    with opened() as workers:
        print("open", flush=True)
        generate(clean, out, workers, steps)
    return "done"


if __name__ == "__main__":
    console.run(main)
