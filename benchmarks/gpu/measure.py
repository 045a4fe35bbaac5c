"""Measure time, memory and the card's peaks, and count the work of a network."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 10


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one image costs: operations, and bytes that layers read and write.

    A multiplication and an addition are two operations. Bytes count every layer's input, output and
    weights in float32 once, so a fused kernel may move fewer, and bfloat16 moves half.
    """

    flops: float
    n_bytes: float

    def times(self, factor: float) -> "Work":
        """Return the work of so many images."""
        return Work(flops=self.flops * factor, n_bytes=self.n_bytes * factor)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done everything that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, until the device has done it."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def forget_peak(device: torch.device) -> None:
    """Begin to watch the peak memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_mib(device: torch.device) -> float | None:
    """Return the most memory (MiB) that tensors took on a GPU, or None on a CPU."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)


def peaks(device: torch.device, side: int, n_bytes: int) -> dict[str, float]:
    """Return the best rates of a card: bf16 matrix products (TFLOP/s) and copies (GB/s).

    The product is of two square matrices. A copy counts the bytes that it reads and writes.
    """
    factors = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: factors[0] @ factors[1], device)
    copy = _best(lambda: target.copy_(source), device)
    return {"tflops": 2 * side**3 / product / 1e12, "gb_per_s": 2 * n_bytes / copy / 1e9}


def _best(work: Callable[[], object], device: torch.device) -> float:
    seconds(work, device)
    return min(seconds(work, device) for _ in range(REPEATS))


def work_of(network: nn.Module, images: Tensor) -> tuple[Work, Work]:
    """Return the work of one image: its forward pass alone, and with all gradients.

    An attack's gradient, which needs none of the weights' gradients, costs two thirds of the
    second.
    """
    sizes: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weights = sum(tensor.nbytes for tensor in layer.parameters())
        sizes.append(inputs[0].nbytes + output.nbytes + weights)

    leaves = [layer for layer in network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(count) for layer in leaves]
    try:
        with FlopCounterMode(display=False) as forward:
            logits = network(images)
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with FlopCounterMode(display=False) as backward:
            functional.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
        network.zero_grad()
    n, moved = len(images), sum(sizes)
    alone, back = forward.get_total_flops(), backward.get_total_flops()
    return (
        Work(flops=alone / n, n_bytes=moved / n),
        # Backward reads each layer's input and output gradient again, and writes the others.
        Work(flops=(alone + back) / n, n_bytes=3 * moved / n),
    )


def rates(work: Work, taken: float, best: dict[str, float]) -> dict[str, Any]:
    """Return the rates of some work, and their shares of the card's best."""
    tflops, gb_per_s = work.flops / taken / 1e12, work.n_bytes / taken / 1e9
    return {
        "tflops": round(tflops, 3),
        "tflops_share": round(tflops / best["tflops"], 4),
        "gb_per_s": round(gb_per_s, 2),
        "gb_per_s_share": round(gb_per_s / best["gb_per_s"], 4),
    }
