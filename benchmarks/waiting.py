"""Compare how OpenMP's threads wait: train a ResNet-50 as the pipeline does, in turns.

Run `python -m benchmarks.waiting`. The figures depend on what else the machine does. `--others 4`
starts four processes that compute beside it.
"""

import argparse
import os
import subprocess
import sys
import time

import torch
from torch.nn import functional

from benchmarks.tables import machine
from pipeline.base import console
from pipeline.networks import matrix_products, resnet

WAYS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "short": {"GOMP_SPINCOUNT": "10000"},  # what `make repro` sets
}
BUSY = [sys.executable, "-c", "while True: pass"]


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each")
    parser.add_argument("--seconds", type=float, default=8, help="length of each measurement")
    parser.add_argument("--others", type=int, default=0, help="processes that compute beside it")
    parser.add_argument("--alone", action="store_true", help="measure once, in this process")
    args = parser.parse_args()

    if args.alone:
        return f"{images_per_second(args.seconds):.0f}"
    console.say(f"{machine()}; images per second of training in bf16, batches of 64 at 32x32")
    others = [subprocess.Popen(BUSY) for _ in range(args.others)]
    try:
        for _ in range(args.pairs):
            found = {name: _measured(way, args.seconds) for name, way in WAYS.items()}
            shown = ", ".join(f"{name} {speed}" for name, speed in found.items())
            console.say(f"{shown}; {args.others} other processes, load {os.getloadavg()[0]:.0f}")
    finally:
        for other in others:
            other.kill()
    return "done"


def _measured(way: dict[str, str], seconds: float) -> str:
    """Return the images per second of a process of its own, in words."""
    settings = {setting for each in WAYS.values() for setting in each}
    own = {key: value for key, value in os.environ.items() if key not in settings}
    command = [sys.executable, "-m", "benchmarks.waiting", "--alone", "--seconds", str(seconds)]
    done = subprocess.run(
        command, env={**own, **way}, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.split()[0]


def images_per_second(seconds: float) -> float:
    """Return the speed of training steps, after one that is not counted."""
    torch.manual_seed(0)
    network = resnet.stock("resnet50", 10).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    images, labels = torch.rand(64, 3, 32, 32), torch.arange(64) % 10

    def step() -> None:
        optimizer.zero_grad()
        logits = matrix_products.training_logits(network, images, torch.bfloat16)
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * len(images) / (time.perf_counter() - started)


if __name__ == "__main__":
    console.run(main)
