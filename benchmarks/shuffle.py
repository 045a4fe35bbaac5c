"""How well streamed loading shuffles, against a perfect shuffle: `python -m benchmarks.shuffle`.

100,000 images sorted by class, the worst case, in batches of 128; means over EPOCHS epochs. For each buffer:

- rank correlation: between an image's place in the store and in the epoch, without its sign; 0 is perfect, and chance gives 0.003
- neighbours: pairs of images of one chunk in a batch, relative to a perfect shuffle; 1 is perfect
- class spread: variance of the number of images of a class in a batch, relative to a perfect shuffle; 1 is perfect, batches of one class
  give 128
"""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tables import markdown
from pipeline.base import files, store
from pipeline.base.store import shards
from pipeline.train import mixing, streaming

RESULT = Path(__file__).parent / "results" / "shuffle.json"
N, CLASSES, BATCH, EPOCHS = 100_000, 10, 128, 5
CHUNK = shards.RUN_BYTES // (3 * 32 * 32)
BUFFERS = (4_096, 16_384, 65_536, 200_000)

Rows = NDArray[np.int64]


def sorted_set(path: Path) -> store.ImageSet:
    """Black images sorted by class."""
    bounds = store.shard_bounds(N, 16_384)
    with store.Writer(path, {"kind": "bench"}, bounds=bounds) as writer:
        for start, stop in bounds:
            rows = np.arange(start, stop)
            images = np.zeros((len(rows), 3, 32, 32), np.uint8)
            writer.write(start, store.Block(images=images, labels=rows * CLASSES // N, ids=rows, split=np.zeros(len(rows), np.uint8)))
    return store.ImageSet(path)


def quality(epoch: Callable[[int], Iterable[dict[str, Rows]]]) -> dict[str, float]:
    """The three figures of an order of the rows."""
    figures = [_of_one_epoch([rows["clean"] for rows in epoch(number)]) for number in range(EPOCHS)]
    names = ("rank correlation", "neighbours", "class spread")
    return {name: round(float(np.mean([figure[place] for figure in figures])), 3) for place, name in enumerate(names)}


def _of_one_epoch(batches: list[Rows]) -> tuple[float, float, float]:
    order, full = np.concatenate(batches), np.array(batches[:-1])
    correlation = abs(np.corrcoef(order, np.arange(N))[0, 1])
    pairs = np.mean([_pairs(rows // CHUNK) for rows in full])
    expected = BATCH * (BATCH - 1) / 2 * (CHUNK - 1) / (N - 1)
    counts = np.array([np.bincount(rows * CLASSES // N, minlength=CLASSES) for rows in full])
    chance = BATCH / CLASSES * (1 - 1 / CLASSES) * (N - BATCH) / (N - 1)
    return float(correlation), float(pairs / expected), float(((counts - BATCH / CLASSES) ** 2).mean() / chance)


def _pairs(groups: Rows) -> float:
    counts = np.bincount(groups)
    return float((counts * (counts - 1) / 2).sum())


def main() -> None:
    sampler = mixing.MixSampler({"clean": np.arange(N) * CLASSES // N}, {"clean": BATCH}, 0)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        images = sorted_set(Path(name) / "set")
        for buffer in BUFFERS:
            sizes = {"clean": sampler.sizes("clean")}
            batches = streaming.StreamedBatches({"clean": images}, sizes, sampler.generator, torch.device("cpu"), buffer=buffer)
            rows.append({"buffer, images": buffer, "MiB": round(buffer * 3072 / 2**20), **quality(batches.rows)})
    rows.append({"buffer, images": "all, in memory", "MiB": round(N * 3072 / 2**20), **quality(sampler.epoch)})
    files.write_json(RESULT, {"images": N, "classes": CLASSES, "batch": BATCH, "chunk": CHUNK, "epochs": EPOCHS, "orders": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
