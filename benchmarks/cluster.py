"""Measure what Ray costs: `make bench-cluster`.

Nodes are processes of this machine with one core each. The ways to compute take turns. The driver's
memory is measured on two sets of very different sizes. Results are written to
docs/results/cluster.json, and as a table into docs/cluster.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import models

from benchmarks.tables import machine, write_between
from pipeline.attacks.params import Attack, Generate
from pipeline.base import files, store
from pipeline.cluster import connection
from pipeline.cluster.here import Here
from pipeline.cluster.opened import Workers, opened
from pipeline.generate import generation

RESULT, PAGE = Path("docs/results/cluster.json"), Path("docs/cluster.md")
MARKERS = ("<!-- benchmarks.cluster: begin -->", "<!-- benchmarks.cluster: end -->")
SIZE, SHARD_ROWS, N_TASKS = 8, 4096, 200
STEPS, ROUNDS = 3, 3
WAYS = ((0, False), (1, False), (2, False), (3, False), (3, True))  # nodes, and whether one dies
MEMORY = (100_000, 1_000_000)  # images
SPEC = {"attack": "PGD", "eps": "8/255", "alpha": "2/255", "random_start": True}
SETTINGS = Generate(batch_size=256, precision="fp32", seed=0)
Row = dict[str, Any]


class Empty:
    """A job of tasks that do nothing, to measure what a task costs."""

    def on(self, _: torch.device) -> Callable[[int], int]:
        """Return the function that gives back what it takes."""
        return lambda number: number


def clean_set(path: Path, n_images: int) -> store.ImageSet:
    """Store random images of SIZE pixels, shard by shard."""
    generator = np.random.default_rng(0)
    bounds = store.shard_bounds(n_images, SHARD_ROWS)
    attributes: store.Attributes = {"kind": "clean", "class_names": '["a", "b"]'}
    with store.Writer(path, attributes, bounds=bounds) as writer:
        for start, end in bounds:
            n = end - start
            writer.write(
                start,
                store.Block(
                    images=generator.integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8),
                    labels=generator.integers(0, 2, n),
                    ids=np.arange(start, end),
                    split=np.zeros(n, dtype=np.uint8),
                ),
            )
    return store.ImageSet(path)


def generate(clean: store.ImageSet, out: Path, workers: Workers, steps: int = STEPS) -> Row:
    """Return the seconds and the driver's memory of one generation, and the set's digest."""
    torch.manual_seed(0)
    network = models.resnet18(num_classes=2)
    before, start = _memory(), time.perf_counter()
    spec = Attack.model_validate({**SPEC, "steps": steps})
    made = generation.generate(
        clean, network, "none", spec, SETTINGS, name="pgd", out=out, workers=workers
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "driver_grew_mb": round(_memory() - before),
        "digest": made.digest,
    }


def on_cluster(
    clean: store.ImageSet, out: Path, n_nodes: int, kill_after: float | None = None
) -> Row:
    """Return the same on some nodes. One of them is killed after some seconds if that is given."""
    with _nodes(n_nodes) as nodes, opened() as workers:
        few = clean_set(out.with_name(f"{out.name}-few"), 512)
        generate(few, out.with_name(f"{out.name}-warm"), workers)
        start = time.perf_counter()
        list(workers.map(Empty(), range(N_TASKS)))
        per_task = (time.perf_counter() - start) / N_TASKS
        timer = threading.Timer(kill_after or 0.0, lambda: _kill(nodes[-1]))
        if kill_after is not None:
            timer.start()
        row = generate(clean, out, workers)
        timer.cancel()
    return {**row, "ms_per_task": round(1000 * per_task, 2)}


@contextmanager
def _nodes(count: int) -> Iterator[list[Any]]:
    os.environ.update({**connection.QUIET, **connection.LOOPBACK, connection.VARIABLE: "auto"})
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = made.address
    try:
        added = [made.add_node(wait=False, num_cpus=1) for _ in range(count - 1)]
        made.wait_for_nodes()
        yield added
    finally:
        made.shutdown()


def _kill(node: Any) -> None:
    (raylet,) = node.all_processes["raylet"]
    raylet.process.kill()


def _memory() -> float:
    """Return the most memory, in MB, that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(n_images: int) -> Row:
    """Return how much the memory of a driver grows that attacks a set on two nodes."""
    with tempfile.TemporaryDirectory() as folder, _nodes(2), opened() as workers:
        clean = clean_set(Path(folder) / "clean", n_images)
        list(workers.map(Empty(), range(10)))
        return {"images": n_images, **generate(clean, Path(folder) / "pgd", workers, steps=1)}


def table(found: Row) -> str:
    """Return the rows as a table, and what the driver needs."""
    plain = found["rows"][0]
    head = "| | seconds, of all rounds | median against this process | ms per empty task | bytes |"
    lines = [head, "|---|---|---|---|---|"]
    for row in found["rows"]:
        ratio = statistics.median(
            own / other for own, other in zip(row["seconds"], plain["seconds"], strict=False)
        )
        same = "same" if row["digests"] == plain["digests"][:1] else "different"
        seconds = ", ".join(f"{each:.1f}" for each in row["seconds"])
        task = row.get("ms_per_task", "")
        lines.append(f"| {row['name']} | {seconds} | {ratio:.2f} | {task} | {same} |")
    about = f"{found['images']:,} images of {SIZE}x{SIZE}, ResNet-18, PGD-3; {found['machine']}:"
    grown = " and ".join(
        f"{each['driver_grew_mb']} MB with {each['images']:,} images" for each in found["memory"]
    )
    return "\n".join([about, "", *lines, "", f"The driver's memory grew by {grown}."])


def _in_new_process(n_images: int) -> Row:
    """Return what `memory` returns in a process that used none before."""
    command = [sys.executable, "-m", "benchmarks.cluster", "--memory", str(n_images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def name_of(n_nodes: int, dies: bool) -> str:
    if not n_nodes:
        return "this process"
    return f"{n_nodes} {'node' if n_nodes == 1 else 'nodes'}{', one killed' if dies else ''}"


def rounds(n_images: int) -> list[Row]:
    """Return a row for every way to compute. The first two take turns, and the others run once."""
    rows: list[Row] = [{"name": name_of(*way), "seconds": [], "digests": []} for way in WAYS]
    here = Here(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        clean = clean_set(Path(folder) / "clean", n_images)
        generate(clean, Path(folder) / "warm", here)
        for number in range(ROUNDS):
            for (n_nodes, dies), row in list(zip(WAYS, rows, strict=True))[: 2 if number else None]:
                out = Path(folder) / f"{number}-{row['name']}"
                after = rows[0]["seconds"][0] / 6 if dies else None
                found = (
                    on_cluster(clean, out, n_nodes, after)
                    if n_nodes
                    else generate(clean, out, here)
                )
                row["seconds"].append(found["seconds"])
                row["digests"] = sorted({*row["digests"], found["digest"]})
                row.update({key: found[key] for key in ("ms_per_task",) if key in found})
                print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--memory", type=int, help="only print the driver's memory with so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        print(json.dumps(memory(args.memory)))
        return
    found = {
        "images": args.images,
        "machine": machine(),
        "memory": [_in_new_process(n_images) for n_images in MEMORY],
        "rows": rounds(args.images),
    }
    files.write_json(RESULT, found)
    write_between(PAGE, MARKERS, table(found))
    print(table(found))


if __name__ == "__main__":
    main()
