"""Measure training on 1 and 2 workers of one core each, and compute what 8 to 64 GPUs would give.

`python -m benchmarks.scaling` prints both tables of docs/cluster.md. Ratios are those of one run,
in which the ways of computing take turns.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.tables import machine
from pipeline import networks
from pipeline.networks import resnet
from pipeline.networks.params import Model
from pipeline.train.params import Training
from pipeline.train.step import Step

CPU = torch.device("cpu")
BATCH, SIZE = 64, 32  # images of all workers, and pixels per side
ARCHITECTURES = ("resnet18", "resnet50")
GPUS = (8, 16, 32, 64)
# What the model assumes.
PER_GPU = 32  # images per step
RATE = 2500  # images per second of one GPU: ResNet-50 at 224x224 in bf16
BACKWARD = 2 / 3  # of a step, in which messages travel beside the computation
LATENCY = 20e-6  # seconds per hop of the ring
NETWORKS = {"100 Gbit/s": 12.5e9, "25 Gbit/s": 3.1e9, "10 Gbit/s": 1.25e9}  # bytes per second


def recipe() -> Training:
    return Training(
        epochs=1, batch_size=BATCH, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=0.0,
        schedule="constant", warmup_epochs=0.0, label_smoothing=0.0, augment="none",
        sampling="natural", precision="fp32", ema=None, patience=None, seed=0,
    )  # fmt: skip


def new_step(architecture: str) -> Step:
    """Return a step of training for a network of 10 classes."""
    model = Model.model_validate({"architecture": architecture, "weights": None})
    network = networks.build(model, 10, 0, networks.pretrained_weights(model))
    return Step(network, recipe(), CPU, None)


def batch(n_images: int) -> tuple[torch.Tensor, ...]:
    images = torch.rand(n_images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(n_images) % 10, torch.full((n_images,), 1 / BATCH)


def seconds(compute: Callable[[], object]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def measure(rank: int, folder: Path, n_steps: int) -> None:
    """Measure on one of two workers. The first one writes the medians."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    torch.set_num_threads(1)
    alone = {name: new_step(name) for name in ARCHITECTURES}  # before there is a group
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    rows = {name: _measured(alone[name], new_step(name), n_steps) for name in ARCHITECTURES}
    if rank == 0:
        torch.save(rows, folder / "rows.pt")
    distributed.destroy_process_group()


def _measured(alone: Step, shared: Step, n_steps: int) -> dict[str, float]:
    ddp = shared._forward
    assert isinstance(ddp, torch.nn.parallel.DistributedDataParallel)
    whole, half = batch(BATCH), batch(BATCH // 2)
    taken: dict[str, list[float]] = {"alone": [], "two": [], "two, no all-reduce": []}
    shared(*half, lr=0.0)

    def both_alone() -> None:
        alone(*whole, lr=0.0)
        distributed.barrier()

    for _ in range(1 + n_steps):
        distributed.barrier()
        # Both compute it at once, so that other work on the machine slows all ways down equally.
        taken["alone"].append(seconds(both_alone))
        for name, context in (("two", nullcontext), ("two, no all-reduce", ddp.no_sync)):
            distributed.barrier()
            with context():
                taken[name].append(seconds(lambda: shared(*half, lr=0.0)))
    medians = {name: statistics.median(each[1:]) for name, each in taken.items()}
    n_bytes = sum(tensor.nbytes for tensor in ddp.parameters())
    return {**medians, "bytes": n_bytes}


def measured(n_steps: int) -> list[str]:
    """Return the table of what two workers give on this machine."""
    with tempfile.TemporaryDirectory() as name:
        spawn(measure, (Path(name), n_steps), nprocs=2)  # type: ignore[no-untyped-call]
        rows = torch.load(Path(name) / "rows.pt")
    lines = [
        "| network | all-reduce | 1 worker | 2 workers | 2, no all-reduce | speed-up "
        "| efficiency |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        ratio = row["alone"] / row["two"]
        lines.append(
            f"| {name} | {row['bytes'] / 1e6:.1f} MB | {row['alone']:.2f} s | {row['two']:.2f} s | "
            f"{row['two, no all-reduce']:.2f} s | {ratio:.2f} | {ratio / 2:.0%} |"
        )
    return lines


def largest_part(n_workers: int) -> float:
    """Return the mean size of the largest part where rows belong to workers, over an equal one."""
    generator, n = np.random.default_rng(0), n_workers * PER_GPU
    drawn = generator.multinomial(n, [1 / n_workers] * n_workers, size=1000)
    return float(drawn.max(1).mean()) / PER_GPU


def modelled() -> list[str]:
    """Return the table of what the assumptions give for several GPUs."""
    with torch.device("meta"):
        network = resnet.stock("resnet50", 10)
    n_bytes = sum(tensor.numel() * 4 for tensor in network.parameters())
    step = PER_GPU / RATE
    lines = [
        f"ResNet-50: an all-reduce of {n_bytes / 1e6:.0f} MB, and a step of {1000 * step:.1f} ms",
        "",
        f"| GPUs | {' | '.join(NETWORKS)} | refreshed, {next(iter(NETWORKS))} |",
        f"|---|{'---|' * (len(NETWORKS) + 1)}",
    ]
    for n in GPUS:
        shown = []
        for bandwidth in NETWORKS.values():
            message = 2 * (n - 1) * (n_bytes / n / bandwidth + LATENCY)
            shown.append(step / (step + max(0.0, message - BACKWARD * step)))
        shown.append(shown[0] / largest_part(n))
        lines.append(f"| {n} | {' | '.join(f'{share:.0%}' for share in shown)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=11, help="steps of each kind, after one that does not count"
    )
    args = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    print(machine(), end="\n\n")
    print("\n".join(measured(args.steps)), end="\n\n")
    print("\n".join(modelled()))


if __name__ == "__main__":
    main()
