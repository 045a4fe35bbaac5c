"""Compare torch.compile with the pipeline's own way of computing, on this machine.

Run `python -m benchmarks.compiled`. It measures the gradient of an attack, and a training step
without its optimiser, on one batch of random 32x32 images. Both ways alternate after a warm-up of
each. Mode `reduce-overhead` uses CUDA graphs and runs only on a GPU.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from benchmarks.speed import BATCH, PAIRS, compare
from benchmarks.tables import machine, markdown
from pipeline import networks
from pipeline.base import files
from pipeline.networks import device, matrix_products, precision

RESULT = Path(__file__).parent / "results" / "compiled.json"
Forward = Callable[[Tensor], Tensor]


def attacked(network: models.ResNet, processor: torch.device) -> Forward:
    """Return the network as attacks see it."""
    fast = device.multiplies_bfloat16(processor)
    return (
        matrix_products.Frozen(network, 32, torch.bfloat16)
        if fast
        else networks.frozen_copy(network)
    )


def trained(network: nn.Module, processor: torch.device) -> Forward:
    """Return the network as training sees it."""
    network.train().to(memory_format=torch.channels_last)
    if precision.precision_for("auto", processor) == "bf16":
        return functools.partial(matrix_products.training_logits, network, dtype=torch.bfloat16)
    return network


def gradient(forward: Forward, images: Tensor, labels: Tensor, parameters: list[Tensor]) -> None:
    """Compute the gradient of the parameters, or of the pixels where `parameters` is empty."""
    pixels = images.clone().requires_grad_(not parameters)
    torch.autograd.grad(
        functional.cross_entropy(forward(pixels), labels, reduction="sum"), parameters or [pixels]
    )
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def figures(
    forward: Forward, images: Tensor, labels: Tensor, parameters: list[Tensor], mode: str
) -> dict[str, float]:
    """Return the images per second of both ways, their ratio, and the seconds to compile."""
    compiled = torch.compile(forward, mode=mode, dynamic=False)
    started = time.perf_counter()
    gradient(compiled, images, labels, parameters)
    seconds = round(time.perf_counter() - started, 1)
    ways = [
        functools.partial(gradient, way, images, labels, parameters) for way in (compiled, forward)
    ]
    found = compare(ways[0], ways[1], len(images))
    return {
        "compiled": found["ours"],
        "as it is": found["naive"],
        "ratio": found["ratio"],
        "seconds to compile": seconds,
    }


def main() -> None:
    torch._inductor.config.force_disable_caches = True  # else a second run reuses the cache
    processor = device.choose()
    torch.manual_seed(0)
    images, labels = (
        torch.rand(BATCH, 3, 32, 32, device=processor),
        torch.randint(10, (BATCH,), device=processor),
    )
    rows = []
    for architecture in ("resnet50", "resnet18"):
        for what, prepare in (("attack", attacked), ("training", trained)):
            for mode in (
                ("default", "reduce-overhead") if processor.type == "cuda" else ("default",)
            ):
                network = models.get_model(architecture, num_classes=10).to(processor)
                parameters = list(network.parameters()) if what == "training" else []
                found = figures(prepare(network, processor), images, labels, parameters, mode)
                rows.append({"what": f"{architecture} {what}", "mode": mode, **found})
    files.write_json(RESULT, {"machine": machine(), "pairs": PAIRS, "images_per_second": rows})
    print(f"{machine()}; medians of {PAIRS} pairs, images/s\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
