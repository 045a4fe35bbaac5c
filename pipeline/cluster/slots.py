"""Choose what a task or a worker takes of a node, and count how many of them fit."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.base.errors import InputError
from pipeline.cluster.connection import VARIABLE
from pipeline.networks import device_name
from pipeline.networks.device_name import VARIABLE as DEVICE

CORES = "PIPELINE_CLUSTER_CPUS"
WORKERS = "PIPELINE_TRAIN_WORKERS"
USUAL_CORES = 4  # more threads speed one batch up less than more tasks speed up many


@dataclass(frozen=True)
class Slot:
    """What a task, or a worker of a training, takes: a GPU and a core, or cores of one node."""

    kind: Literal["cpu", "cuda"]
    cores: int

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of a task. Lost tasks are sent again by the driver, which says so."""
        gpus = 1 if self.kind == "cuda" else 0
        return {"num_cpus": self.cores, "num_gpus": gpus, "max_retries": 0}

    @property
    def bundle(self) -> dict[str, float]:
        """What a worker of a training reserves."""
        return {"CPU": self.cores, **({"GPU": 1} if self.kind == "cuda" else {})}

    @property
    def words(self) -> str:
        cores = f"{self.cores} {'core' if self.cores == 1 else 'cores'}"
        return f"a GPU and {cores}" if self.kind == "cuda" else cores

    def is_free(self, available: dict[str, float]) -> bool:
        """Return whether a cluster with these free resources has room for a task.

        They are those of all nodes together, so a task of several cores may still have to wait.
        """
        gpus = available.get("GPU", 0) if self.kind == "cuda" else 1
        return available.get("CPU", 0) >= self.cores and gpus >= 1

    def fits(self, nodes: list[dict[str, Any]]) -> dict[str, int]:
        """Return how many slots each node has, by its id. Nodes without one are left out."""
        counts = {}
        for node in nodes:
            if node["Alive"]:
                count = int(node["Resources"].get("CPU", 0)) // self.cores
                if self.kind == "cuda":
                    count = min(count, int(node["Resources"].get("GPU", 0)))
                counts[node["NodeID"]] = count
        return {name: count for name, count in counts.items() if count}


def choose(nodes: list[dict[str, Any]]) -> Slot:
    """Return the slot for these nodes.

    It is a GPU where a node has one, unless PIPELINE_DEVICE is `cpu`, and a group of cores
    otherwise. Raises InputError for a number of cores, or a device, that no node has.
    """
    resources = _alive(nodes)
    if _takes_gpus(resources):
        return Slot("cuda", 1)
    most = max((int(node.get("CPU", 0)) for node in resources), default=0)
    cores = asked(CORES) or max(1, min(USUAL_CORES, most))
    if cores > most:
        raise InputError(
            f"{CORES}: a task of {cores} cores fits on no node (the largest has {most})."
            " Lower it, or add nodes."
        )
    return Slot("cpu", cores)


def for_training(nodes: list[dict[str, Any]]) -> tuple[Slot, int]:
    """Return what each worker of a training takes, and how many workers there are.

    PIPELINE_TRAIN_WORKERS asks for a number. Otherwise there is a worker for each GPU, or one for
    each node where GPUs are not used. Raises InputError for another value than a whole number from
    1 on, for a device that no node has, and where no node has a core.
    """
    resources = _alive(nodes)
    n_asked = asked(WORKERS)
    if _takes_gpus(resources):
        return Slot("cuda", 1), n_asked or sum(int(node.get("GPU", 0)) for node in resources)
    cores = [int(node.get("CPU", 0)) for node in resources]
    n_workers = n_asked or sum(count > 0 for count in cores)
    if not any(cores):
        raise InputError(
            f"{VARIABLE}: no node has a core yet. Wait for the nodes; `ray status` shows them."
        )
    fitting = [
        each
        for each in range(1, max(cores) + 1)
        if sum(count // each for count in cores) >= n_workers
    ]
    return Slot("cpu", max(fitting, default=1)), n_workers


def _alive(nodes: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the resources of the nodes that are not lost."""
    return [node["Resources"] for node in nodes if node["Alive"]]


def _takes_gpus(resources: list[dict[str, float]]) -> bool:
    """Return whether GPUs are used: where a node has one, unless PIPELINE_DEVICE is `cpu`.

    Raises InputError where it asks for one that no node has.
    """
    device = asked_device()
    has_gpus = any(node.get("GPU", 0) >= 1 for node in resources)
    if device == "cuda" and not has_gpus:
        raise InputError(
            f"{DEVICE}: no node of the cluster has a GPU. Set it to cpu, or add a node with one."
        )
    return has_gpus and device != "cpu"


def expect_sound() -> None:
    """Raise InputError for a variable that no stage on a cluster can use.

    The stages `audit` and `report` run on this machine, so that it needs a GPU if one is asked for.
    """
    asked(CORES)
    asked(WORKERS)
    if asked_device() == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                f"{DEVICE}: cuda was asked for, but this machine, which runs the stages `audit` and"
                " `report`, has no GPU. Unset it: a cluster's GPUs are used where there are any."
            )


def asked_device() -> str:
    """Return what PIPELINE_DEVICE asks of a cluster: `auto`, `cpu` or `cuda`.

    Raises InputError for another name, and for one GPU by its number.
    """
    name = device_name.asked()
    if ":" in name:
        raise InputError(
            f"{DEVICE}: expected auto, cpu or cuda with {VARIABLE}, which takes every free GPU,"
            f" found {name}. Write cuda."
        )
    return name


def asked(variable: str) -> int | None:
    """Return the number that an environment variable gives, or None where it is not set.

    Raises InputError for another value than a whole number from 1 on.
    """
    text = os.environ.get(variable, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable}: expected a whole number from 1 on, found {text!r}")
    return int(text)
