"""What runs in the processes of a cluster's nodes. Importing this module imports no torch."""

import time
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

LIBRARIES = ("numpy", "torch", "torchattacks", "torchvision")


class Kind(NamedTuple):
    """What a task was computed on."""

    processor: str
    described: str
    versions: tuple[str, ...]


class Done(NamedTuple):
    """A task's result, what it was computed on, and the seconds that it took."""

    result: Any
    processor: str
    versions: tuple[str, ...]
    seconds: float


@cache
def libraries() -> tuple[str, ...]:
    """Return the libraries that decide an attack's bits, with their versions."""
    return tuple(f"{name} {version(name)}" for name in LIBRARIES)


def ready() -> None:
    """Do nothing, to show that there is a free slot."""


def kind(device_type: str, threads: int) -> Kind:
    """Return what tasks of this process are computed on."""
    from pipeline.networks import device

    chosen = _device(device_type, threads)
    return Kind(device.processor(chosen), device.describe(chosen), libraries())


def run(job: list[Any], item: Any, device_type: str, threads: int) -> Done:
    """Compute one item. `job` holds a reference, which Ray would otherwise read for every item."""
    from pipeline.networks import device

    start = time.perf_counter()
    result = _compute(job[0], device_type, threads)(item)
    processor = device.processor(_device(device_type, threads))
    return Done(result, processor, libraries(), time.perf_counter() - start)


@lru_cache(maxsize=1)
def _compute(job: Any, device_type: str, threads: int) -> Callable[[Any], Any]:
    """Return the function of a job, which is prepared once in every process."""
    import ray

    compute: Callable[[Any], Any] = ray.get(job).on(_device(device_type, threads))
    return compute


def _device(device_type: str, threads: int) -> Any:
    """Return this process's device. A CPU computes with as many threads as the task has cores."""
    import torch

    if device_type == "cpu":
        torch.set_num_threads(threads)
    return torch.device(device_type)
