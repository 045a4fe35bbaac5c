"""Measure what Ray costs: `make bench-cluster`, or `python -m benchmarks.cluster --images 1000000`.

Nodes are processes of this machine with one core each. Results are written to
docs/results/cluster.json, and as a table into docs/cluster.md.
"""

import argparse
import os
import resource
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

from pipeline import cluster
from pipeline.attacks.params import Attack, Generate
from pipeline.base import files, store
from pipeline.base.errors import InputError
from pipeline.cluster import Here, Workers, connection
from pipeline.generate import generation
from pipeline.networks import device

RESULT, PAGE = Path("docs/results/cluster.json"), Path("docs/cluster.md")
MARKERS = ("<!-- benchmarks.cluster: begin -->", "<!-- benchmarks.cluster: end -->")
SIZE, SHARD_ROWS, N_TASKS = 8, 4096, 200
SPEC = {"attack": "PGD", "eps": "8/255", "alpha": "2/255", "steps": 3, "random_start": True}
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


def generate(clean: store.ImageSet, out: Path, workers: Workers) -> Row:
    """Return the seconds and the driver's memory of one generation, and the set's digest."""
    torch.manual_seed(0)
    network = models.resnet18(num_classes=2)
    before, start = _memory(), time.perf_counter()
    spec = Attack.model_validate(SPEC)
    made = generation.generate(
        clean, network, "none", spec, SETTINGS, name="pgd", out=out, workers=workers
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "driver_grew_mb": round(_memory() - before),
        "digest": made.digest,
    }


def on_cluster(clean: store.ImageSet, out: Path, n_nodes: int, kill_after: float | None) -> Row:
    """Return the same on some nodes. One of them is killed after some seconds if that is given."""
    with _nodes(n_nodes) as nodes, cluster.opened() as workers:
        list(workers.map(Empty(), range(10)))
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


def table(found: Row) -> str:
    """Return the rows as a table."""
    plain = found["rows"][0]
    head = "| | seconds | µs per image more | ms per empty task | driver's memory grew by | bytes |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        more = (row["seconds"] - plain["seconds"]) / found["images"] * 1e6
        same = "same" if row["digest"] == plain["digest"] else "different"
        task = row.get("ms_per_task", "")
        lines.append(
            f"| {row['name']} | {row['seconds']} | {more:+.0f} | {task}"
            f" | {row['driver_grew_mb']} MB | {same} |"
        )
    about = f"{found['images']:,} images of {SIZE}x{SIZE}, ResNet-18, PGD-3; {found['machine']}:"
    return "\n".join([about, "", *lines])


def write_page(found: Row) -> None:
    """Write the table between the markers of the page."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not begin or not end:
        raise InputError(f"{PAGE}: expected the lines {MARKERS[0]} and {MARKERS[1]}. Add them.")
    files.write_bytes(PAGE, f"{before}{begin}\n{table(found)}\n{end}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=40_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        clean = clean_set(Path(folder) / "clean", args.images)
        generate(clean, Path(folder) / "warm", Here(cpu))
        rows.append({"name": "this process", **generate(clean, Path(folder) / "0", Here(cpu))})
        for number, (count, kills) in enumerate(((1, False), (2, False), (3, False), (3, True)), 1):
            after = rows[0]["seconds"] / 6 if kills else None
            name = f"{count} {'node' if count == 1 else 'nodes'}{', one killed' if kills else ''}"
            rows.append(
                {"name": name, **on_cluster(clean, Path(folder) / str(number), count, after)}
            )
            print(rows[-1], flush=True)
    machine = f"{os.cpu_count()} cores, {device.processor(cpu)}, other work beside it"
    found = {"images": args.images, "machine": machine, "rows": rows}
    files.write_json(RESULT, found)
    write_page(found)
    print(table(found))


if __name__ == "__main__":
    main()
