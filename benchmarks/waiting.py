"""Compare how OpenMP's threads wait: train a stock ResNet-18 spinning and passively, in turns.

Run `python -m benchmarks.waiting`. The figures depend on what else the machine does, so the load
is printed beside them.
"""

import argparse
import os
import subprocess
import sys
import time

import torch
from torch.nn import functional
from torchvision import models

from benchmarks.tables import machine
from pipeline.base import console

WAYS = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each")
    parser.add_argument("--seconds", type=float, default=8, help="length of each measurement")
    parser.add_argument("--alone", action="store_true", help="measure once, in this process")
    args = parser.parse_args()

    if args.alone:
        return f"{images_per_second(args.seconds):.0f}"
    console.say(f"{machine()}; images per second of training in fp32, batches of 64 at 32x32")
    own = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-m", "benchmarks.waiting", "--alone", "--seconds"]
    for _ in range(args.pairs):
        found = {
            name: subprocess.run(
                [*command, str(args.seconds)],
                env={**own, **way},
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()[0]
            for name, way in WAYS.items()
        }
        shown = ", ".join(f"{name} {speed}" for name, speed in found.items())
        console.say(f"{shown}; load {os.getloadavg()[0]:.0f}")
    return "done"


def images_per_second(seconds: float) -> float:
    """Return the speed of training steps, after one that is not counted."""
    torch.manual_seed(0)
    network = models.resnet18(num_classes=10).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 10

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    console.run(main)
