"""Prepare a made-up `Train.pt` of 100,000 images, and measure time and peak memory.

Run `python -m benchmarks.task_dataset`. The file has the layout of the real one: a `TaskDataset`
pickled under `__main__` with PIL images of 32x32. Of these, 10 % are grey, and classes have 409 to
31,802 images.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.tables import machine
from pipeline import presets
from pipeline.base import files

RESULT = Path(__file__).parent / "results" / "task_dataset.json"
CLASS_SIZES = [31_802, 20_000, 15_000, 11_000, 8_000, 6_000, 4_000, 2_500, 1_289, 409]


class TaskDataset:
    """The object that the task's own script saves."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.imgs: list[Any] = []
        self.labels: list[int] = []
        self.transform = None


def make(path: Path) -> None:
    """Write the file, with random images in random order."""
    generator = np.random.default_rng(0)
    dataset = TaskDataset()
    for number, label in enumerate(generator.permutation(np.repeat(np.arange(10), CLASS_SIZES))):
        pixels = generator.integers(
            0, 256, (32, 32) if number % 10 == 0 else (32, 32, 3), dtype=np.uint8
        )
        dataset.imgs.append(Image.fromarray(pixels))
        dataset.labels.append(int(label))
        dataset.ids.append(number + 1_000_000)
    torch.save(dataset, path)


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        make(folder / "Train.pt")
        content = YAML(typ="safe").load(presets.complete("assignment"))
        content["data"]["path"] = str(folder / "Train.pt")
        YAML().dump(content, folder / "params.yaml")
        before = os.times().elapsed
        subprocess.run(
            [sys.executable, "-m", "pipeline.prepare", "--out", "clean"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            check=True,
        )
        seconds = os.times().elapsed - before
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        result = {
            "machine": machine(),
            "images": sum(CLASS_SIZES),
            "file_mib": round((folder / "Train.pt").stat().st_size / 2**20),
            "seconds": round(seconds, 1),
            "peak_memory_gib": round(peak, 2),
        }
    files.write_json(RESULT, result)
    print(result)


if __name__ == "__main__":
    main()
