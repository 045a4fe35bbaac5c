"""Choose what one task takes of a node, and count how many of them fit."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.base.errors import InputError
from pipeline.networks.device import VARIABLE as DEVICE

CORES = "PIPELINE_CLUSTER_CPUS"
USUAL_CORES = 4  # more threads speed one batch up less than more tasks speed up many


@dataclass(frozen=True)
class Slot:
    """What one task takes: a GPU and a core, or some cores of one node."""

    kind: Literal["cpu", "cuda"]
    cores: int

    @property
    def options(self) -> dict[str, Any]:
        """What Ray is told of a task. Lost tasks are sent again by the driver, which says so."""
        gpus = 1 if self.kind == "cuda" else 0
        return {"num_cpus": self.cores, "num_gpus": gpus, "max_retries": 0}

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
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    device = os.environ.get(DEVICE, "auto").partition(":")[0]
    has_gpus = any(node.get("GPU", 0) >= 1 for node in resources)
    if device == "cuda" and not has_gpus:
        raise InputError(
            f"{DEVICE}: no node of the cluster has a GPU. Set it to cpu, or add a node with one."
        )
    if has_gpus and device != "cpu":
        return Slot("cuda", 1)
    most = max((int(node.get("CPU", 0)) for node in resources), default=0)
    cores = _asked_cores() or max(1, min(USUAL_CORES, most))
    if cores > most:
        raise InputError(
            f"{CORES}: a task of {cores} cores fits on no node (the largest has {most})."
            " Lower it, or add nodes."
        )
    return Slot("cpu", cores)


def _asked_cores() -> int | None:
    text = os.environ.get(CORES, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"{CORES}: no number of cores (expected 1, 2, …, found {text!r}). Unset it for the"
            f" usual {USUAL_CORES}."
        )
    return int(text)
