"""Images a second through each part of the pipeline on this machine: `make bench`.

Every part runs on random 32x32 images and a ResNet-50 with random weights, five times after a warm-up; the median counts.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pipeline import attacks, device, files, mixing, networks, params, store, training

RESULT = Path(__file__).parent / "results" / "throughput.json"
ROWS, BATCH, REPEATS = 20_000, 128, 5


def images_per_second(work: Callable[[], object], n_images: int) -> float:
    """The median rate of `work`, which handles `n_images`, over REPEATS runs after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(n_images / statistics.median(times[1:]), 1)


def main() -> None:
    processor, generator = device.choose(), np.random.default_rng(0)
    settings = params.load(params.FILE)
    block = store.Block(
        images=generator.integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8),
        labels=generator.integers(0, 10, ROWS),
        ids=np.arange(ROWS),
        split=np.zeros(ROWS, np.uint8),
    )
    network = networks.build(params.Model(architecture="resnet50", weights=None), 10, seed=0)
    target = attacks.frozen_copy(network).to(processor)
    pixels, labels = torch.from_numpy(block.images[:BATCH]).to(processor) / 255, torch.from_numpy(block.labels[:BATCH]).to(processor)
    fgsm = attacks.build(params.Attack.model_validate({"attack": "FGSM", "eps": "8/255"}), target, 10)
    batches = mixing.MixedBatches(dict.fromkeys(("clean", "fgsm", "pgd"), block), settings.finetune.counts, 0, processor)
    few = mixing.MixedBatches({"clean": block.select(np.arange(ROWS) < 4 * BATCH)}, {"clean": BATCH}, 0, processor)
    recipe = settings.clean.model_copy(update={"epochs": 1, "warmup_epochs": 0.0})
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def write() -> None:
            with store.Writer(Path(folder) / "set", {"kind": "clean", "class_names": "[]"}, bounds=[(0, ROWS)]) as writer:
                writer.write(0, block)

        rates = {
            "store_write": images_per_second(write, ROWS),
            "store_checked_read": images_per_second(lambda: store.ImageSet(Path(folder) / "set").load("train"), ROWS),
            "mixed_loading": images_per_second(lambda: [images.sum() for images, _ in batches.epoch(0)], 2 * ROWS),
            "resnet50_fgsm": images_per_second(lambda: attacks.perturb(fgsm, pixels, labels, 0), BATCH),
            "resnet50_training": images_per_second(
                lambda: training.fit(network, few, lambda _: 0.0, recipe, text="bench", device=processor), 4 * BATCH
            ),
        }
    machine = f"{device.describe(processor)}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    files.write_json(RESULT, {"machine": machine, "images_per_second": rates})
    print(f"{machine}; {REPEATS} runs each, median images/s")
    for name, rate in rates.items():
        print(f"{name:>20} {rate:>12,.0f}")


if __name__ == "__main__":
    main()
