"""Start the workers of a training, and what they send their messages through.

Ray Train starts a process for every worker, and connects them through torch.distributed.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import worker


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The workers of a training: how many, and what each has of its node."""

    n: int
    cpus: int
    gpus: int

    @property
    def bundle(self) -> dict[str, float]:
        """What each worker reserves."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def words(self) -> str:
        return "a GPU" if self.gpus else f"{self.cpus} {'core' if self.cpus == 1 else 'cores'}"


@contextmanager
def mailbox() -> Iterator[Any]:
    """Yield a queue on the driver's node, through which workers send messages."""
    from ray.util.queue import Queue

    mailbox = Queue(maxsize=8, actor_options={"num_cpus": 0, **here()})
    try:
        yield mailbox
    finally:
        mailbox.shutdown(force=True)


def here() -> dict[str, Any]:
    """Return the option that places a task on the node of the driver."""
    import ray

    return on(ray.get_runtime_context().get_node_id())


def on(node: str) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def fit(job: worker.Job, slots: Slots) -> None:
    """Run a training with Ray Train, in a process of its own, which can be ended."""
    # Neither is used here, and each takes a process or a thread.
    os.environ.update(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0", RAY_TRAIN_METRICS_ENABLED="0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            functools.partial(worker.work, job),
            torch_config=TorchConfig(backend="nccl" if slots.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=slots.n, use_gpu=bool(slots.gpus), resources_per_worker=slots.bundle
            ),
            run_config=RunConfig(
                name=job.name, storage_path=folder, failure_config=FailureConfig(max_failures=0)
            ),
        ).fit()
