"""Show where the time of a training step and of an attack's gradient goes, on this machine.

`python -m benchmarks.profile` prints the share of each kind of work, and the arithmetic achieved
against that of a large matrix product in the same run.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from benchmarks.tables import machine, markdown
from pipeline import document
from pipeline.base import files, params
from pipeline.networks import device, matrix_products
from pipeline.train import schedule

RESULT = Path(__file__).parent / "results" / "profile.json"
BATCH, SIZE, STEPS, LARGE = 128, 32, 5, 4096
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
KINDS = {
    "matrix products and convolutions": ("mm", "addmm", "conv", "linear", "bmm"),
    "copies and conversions": ("copy_", "clone", "contiguous", "cat"),
    "BatchNorm": ("batch_norm",),
    "optimiser": ("sgd", "adam"),
    "elementwise and pooling": (
        *("add", "mul", "div", "sub", "sign", "clamp", "threshold", "relu", "pool", "fill"),
        *("zero", "mean", "sum", "neg", "sqrt"),
    ),
}


def peak(dtype: torch.dtype, processor: torch.device) -> float:
    """Return the GFLOP/s of a large matrix product."""
    left = torch.randn(LARGE, LARGE, device=processor).to(dtype)
    seconds = median_seconds(lambda: left @ left)
    return 2 * LARGE**3 / seconds / 1e9


def median_seconds(work: Callable[[], object]) -> float:
    work()
    taken = []
    for _ in range(STEPS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def shares(work: Callable[[], object]) -> dict[str, float]:
    """Return the share of each kind of work in the computing time."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            work()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: round(100 * times[kind] / total, 1) for kind in (*KINDS, "other")}


def kind_of(name: str) -> str:
    word = name.split("::")[-1].lower()
    return next(
        (kind for kind, words in KINDS.items() if any(part in word for part in words)), "other"
    )


def training(architecture: str, dtype: torch.dtype) -> Callable[[], object]:
    """Return one step of training as the loop takes it."""
    network = stock(architecture).train()
    images, labels = batch()
    optimizer = schedule.optimizer(network, document.load(params.FILE).clean)

    def step() -> None:
        network.zero_grad()
        logits = matrix_products.training_logits(network, images, dtype)
        functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def gradient(architecture: str, dtype: torch.dtype) -> Callable[[], object]:
    """Return the gradient of one step of an attack."""
    network = matrix_products.for_attacks(stock(architecture).eval(), SIZE, dtype)
    images, labels = batch()
    images.requires_grad_()

    def step() -> None:
        loss = functional.cross_entropy(network(images), labels, reduction="sum")
        torch.autograd.grad(loss, images)

    return step


def flops(architecture: str, backwards: int) -> float:
    """Return the FLOPs that the stock network needs for a batch.

    `backwards` is 1 for the gradient of the images, and 2 for that of the weights too. Either takes
    as many as the forward pass.
    """
    network = stock(architecture).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(batch()[0])
    return float(counter.get_total_flops() * (1 + backwards))


def stock(architecture: str) -> models.ResNet:
    torch.manual_seed(0)
    network: models.ResNet = models.get_model(architecture, num_classes=10)
    return network.to(memory_format=torch.channels_last)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator)
    return images, torch.randint(0, 10, (BATCH,), generator=generator)


def main() -> None:
    processor = device.choose()
    peaks = {name: peak(dtype, processor) for name, dtype in PRECISIONS.items()}
    rows = []
    for architecture in ("resnet50", "resnet18"):
        for what, make, backwards in (("training", training, 2), ("attack", gradient, 1)):
            for name, dtype in PRECISIONS.items():
                step = make(architecture, dtype)
                achieved = flops(architecture, backwards) / median_seconds(step) / 1e9
                rows.append(
                    {
                        "work": f"{architecture} {what}, {name}",
                        "GFLOP/s": round(achieved),
                        "of the peak, %": round(100 * achieved / peaks[name]),
                        **shares(step),
                    }
                )
    files.write_json(RESULT, {"machine": machine(), "peak_gflops": peaks, "rows": rows})
    print(f"{machine()}; a product of {LARGE} x {LARGE} matrices:", end=" ")
    print(", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in peaks.items()), "\n")
    print(markdown(rows))


if __name__ == "__main__":
    main()
