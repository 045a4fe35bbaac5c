"""Start the workers of a training, and what they send their messages through.

Ray Train starts a process for every worker, and connects them through torch.distributed.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.cluster import worker
from pipeline.cluster.slots import Slot


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


def fit(job: worker.Job, slot: Slot, n_workers: int) -> None:
    """Run a training with Ray Train, in a process of its own, which can be ended."""
    # Neither is used here, and each takes a process or a thread.
    os.environ.update(RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0", RAY_TRAIN_METRICS_ENABLED="0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            functools.partial(worker.work, job),
            torch_config=TorchConfig(backend="nccl" if slot.kind == "cuda" else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=n_workers,
                use_gpu=slot.kind == "cuda",
                resources_per_worker=slot.bundle,
            ),
            run_config=RunConfig(
                name=job.name, storage_path=folder, failure_config=FailureConfig(max_failures=0)
            ),
        ).fit()
