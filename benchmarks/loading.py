"""Compare mixed batches read from the disk with the same images in memory.

Run `python -m benchmarks.loading`. It uses three streams of random 32x32 images, 100,000 in all, in
batches of 128. Both ways give the same batches and alternate (A B A B ...) in one process. Results
are medians of PASSES epochs after one warm-up epoch. The page cache drops the shards before every
cold pass. Memory is what the process uses besides the page cache (RssAnon).
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.tables import machine, markdown
from pipeline.base import files, store
from pipeline.train.images import HeldImages, Images, MappedImages
from pipeline.train.mixing import MixedBatches

RESULT = Path(__file__).parent / "results" / "loading.json"
COUNTS = {"clean": 64, "fgsm": 32, "pgd": 32}
SIZES = {"clean": 50_000, "fgsm": 25_000, "pgd": 25_000}
SHARD_ROWS, PASSES = 4_096, 7
CPU = torch.device("cpu")


def write(path: Path, n_images: int) -> store.ImageSet:
    """Store random training images."""
    generator, bounds = np.random.default_rng(0), store.shard_bounds(n_images, SHARD_ROWS)
    with store.Writer(path, {"kind": "clean", "class_names": "[]"}, bounds=bounds) as writer:
        for start, stop in bounds:
            pixels = generator.integers(0, 256, (stop - start, 3, 32, 32), dtype=np.uint8)
            ids, split = np.arange(start, stop), np.zeros(stop - start, np.uint8)
            writer.write(start, store.Block(images=pixels, labels=ids % 10, ids=ids, split=split))
    return store.ImageSet(path)


def mixed(sets: dict[str, store.ImageSet], images: Images) -> MixedBatches:
    """Return the batches of one way to keep the images."""
    labels = {name: stored.training_column("labels") for name, stored in sets.items()}
    return MixedBatches(images, labels, COUNTS, 0, CPU)


def seconds(batches: MixedBatches, epoch: int) -> float:
    """Return the seconds that one epoch takes."""
    started = time.perf_counter()
    for _ in batches.epoch(epoch):
        pass
    return time.perf_counter() - started


def forget(folder: Path) -> None:
    """Drop all shards from the page cache; none of them may be mapped at that time."""
    for path in folder.rglob("*.h5"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def anonymous_mib() -> float:
    """Return the MiB of memory that this process uses besides files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def memory(make: Callable[[], MixedBatches]) -> tuple[MixedBatches, float]:
    """Return the batches, and the MiB that they take for one epoch."""
    before = anonymous_mib()
    batches = make()
    seconds(batches, 0)
    return batches, round(anonymous_mib() - before, 1)


def measure(folder: Path) -> list[dict[str, object]]:
    """Return one row for each way."""
    sets = {name: write(folder / name, n_images) for name, n_images in SIZES.items()}
    stored = list(sets.values())
    mapped, mapped_mib = memory(lambda: mixed(sets, MappedImages(stored, CPU)))
    held, held_mib = memory(lambda: mixed(sets, in_memory(stored)))
    for ours, theirs in zip(mapped.epoch(0), held.epoch(0), strict=True):
        assert torch.equal(ours[0], theirs[0])
    taken: dict[str, list[float]] = {"held": [], "mapped": [], "cold": []}
    for epoch in range(PASSES):
        taken["held"].append(seconds(held, epoch))
        taken["mapped"].append(seconds(mapped, epoch))
    del mapped
    for epoch in range(PASSES):
        cold = mixed(sets, MappedImages(stored, CPU))
        forget(folder)
        taken["cold"].append(seconds(cold, epoch))
        del cold
    rates = {name: held.n_images / statistics.median(each) for name, each in taken.items()}
    texts = {
        "held": "in memory",
        "mapped": "from the disk, page cache warm",
        "cold": "from the disk, page cache cold",
    }
    takes = {"held": held_mib, "mapped": mapped_mib, "cold": mapped_mib}
    return [
        {
            "images": text,
            "images per second": round(rates[name]),
            "ratio": round(rates[name] / rates["held"], 2),
            "RssAnon, MiB": takes[name],
        }
        for name, text in texts.items()
    ]


def in_memory(sets: list[store.ImageSet]) -> HeldImages:
    """Return the training images of some sets, held in one array."""
    return HeldImages(
        torch.cat([torch.from_numpy(each.load("train").images) for each in sets]), CPU
    )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        rows = measure(Path(folder))
    files.write_json(RESULT, {"machine": machine(), "passes": PASSES, "ways": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
