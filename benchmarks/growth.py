"""Measure time and peak memory against the number of images and their size: `make growth`.

Every measurement runs in its own process, so that its peak memory is its own. Images are random and
made shard by shard. The three streams of the mix are read from one set of images. The table has no
entry where a set is too large to attack in reasonable time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tables import machine, markdown

RESULT = Path(__file__).parent / "results" / "growth.json"
PLOT = Path("docs/results/growth.png")
COUNTS, SIZES = (1_000, 10_000, 100_000, 1_000_000), (32, 64, 128, 224)
SIZED = {"write": 4_096, "read": 4_096, "loading": 4_096, "fgsm": 128}  # images of each of SIZES
MOST = {"fgsm": 100_000}  # images of 32x32; all other work runs up to the last of COUNTS
TEXTS = {
    "write": "write to the store and read back",
    "read": "read all, checked",
    "loading": "mixed loading",
    "fgsm": "FGSM, ResNet-18",
}
SHARD_BYTES = 16_384 * 3 * 32 * 32
MIX = {"clean": 64, "fgsm": 32, "pgd": 32}


def write(folder: Path, n_images: int, size: int) -> None:
    """Write an image set that repeats one random shard; ids tell its rows apart."""
    import numpy as np

    from pipeline.base import store

    rows = min(n_images, SHARD_BYTES // (3 * size * size))
    images = np.random.default_rng(0).integers(0, 256, (rows, 3, size, size), dtype=np.uint8)
    bounds = store.shard_bounds(n_images, rows)
    with store.Writer(
        folder / "set", {"kind": "clean", "class_names": json.dumps([*"0123456789"])}, bounds=bounds
    ) as writer:
        for start, stop in bounds:
            ids, n = np.arange(start, stop), stop - start
            writer.write_behind(
                start,
                store.Block(
                    images=images[:n], labels=ids % 10, ids=ids, split=np.zeros(n, np.uint8)
                ),
            )


def read(folder: Path, *_: int) -> None:
    from pipeline.base import store

    for _block in store.ImageSet(folder / "set").blocks():
        pass


def loading(folder: Path, *_: int) -> None:
    """Open the sets, which checks them, and read one epoch."""
    import torch

    from pipeline.base import store
    from pipeline.train import images, mixing

    cpu, stored = torch.device("cpu"), store.ImageSet(folder / "set")
    labels = dict.fromkeys(MIX, stored.training_column("labels"))
    batches = mixing.MixedBatches(images.stored([stored] * len(MIX), cpu), labels, MIX, 0, cpu)
    for _batch in batches.epoch(0):
        pass


def fgsm(folder: Path, *_: int) -> None:
    import torch
    from torchvision import models

    from pipeline.attacks.params import Attack, Generate
    from pipeline.base import store
    from pipeline.cluster.here import Here
    from pipeline.generate import generation

    spec = Attack.model_validate({"attack": "FGSM", "eps": "8/255"})
    settings = Generate(batch_size=128, precision="auto", seed=0)
    network = models.resnet18(num_classes=10)
    clean = store.ImageSet(folder / "set")
    generation.generate(
        clean,
        network,
        "",
        spec,
        settings,
        name="fgsm",
        out=folder / "fgsm",
        workers=Here(torch.device("cpu")),
    )


WORK: dict[str, Callable[[Path, int, int], None]] = {
    "write": write,
    "read": read,
    "loading": loading,
    "fgsm": fgsm,
}


def measure(name: str, folder: Path, n_images: int, size: int) -> dict[str, float]:
    """Return the seconds and peak MiB of one piece of work in this process.

    The process must not have done any work before. The seconds exclude imports. The peak includes
    their memory, which is also given separately as `imports_mib`.
    """
    import torchattacks  # noqa: F401

    import pipeline.generate.generation
    import pipeline.train.mixing  # noqa: F401

    imports = peak_mib()
    started = time.perf_counter()
    WORK[name](folder, n_images, size)
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "peak_mib": peak_mib(),
        "imports_mib": imports,
    }


def peak_mib() -> float:
    """Return the peak memory of this process in MiB.

    resource.getrusage does not serve here: a process inherits that maximum from its parent.
    """
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return round(int(line.split()[1]) / 1024, 1)


def row(name: str, folder: Path, n_images: int, size: int) -> dict[str, Any]:
    """Return one measurement, made in its own process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.growth",
        "--measure",
        name,
        str(folder),
        str(n_images),
        str(size),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    print(f"{TEXTS[name]}: {n_images:,} images of {size}x{size}: {measured}", flush=True)
    return {"work": name, "images": n_images, "size": size, **measured}


def rows(names: list[str], n_images: int, size: int) -> list[dict[str, Any]]:
    """Return the measurements that use one set of images, which the first of them writes."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        return [row(name, Path(folder), n_images, size) for name in names]


def by_size(size: int) -> list[dict[str, Any]]:
    """Return the measurements for images of one size.

    Attacking large images is slow, so a smaller set is made for it. The row for writing that set is
    dropped.
    """
    others = [name for name in TEXTS if name != "fgsm"]
    return rows(others, SIZED["read"], size) + rows(["write", "fgsm"], SIZED["fgsm"], size)[1:]


def table(results: list[dict[str, Any]], key: str) -> str:
    """Return a table of all work against `key`.

    It gives the seconds for 1,000 images, and the peak MiB above that of the imports.
    """
    lines = []
    for value in sorted({result[key] for result in results}):
        line: dict[str, object] = {"images" if key == "images" else "pixels a side": value}
        for name in TEXTS:
            found = [
                result for result in results if result[key] == value and result["work"] == name
            ]
            line[TEXTS[name]] = _cell(found[0]) if found else "–"
        lines.append(line)
    return markdown(lines)


def _cell(result: dict[str, Any]) -> str:
    return (
        f"{1000 * result['seconds'] / result['images']:.3g} s, "
        f"{result['peak_mib'] - result['imports_mib']:,.0f} MiB"
    )


def plot(results: dict[str, list[dict[str, Any]]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(10, 7), constrained_layout=True)
    for column, (key, label) in enumerate(
        (("images", "images of 32x32"), ("size", "pixels a side"))
    ):
        for name, text in TEXTS.items():
            points = [result for result in results[key] if result["work"] == name]
            places = [point[key] for point in points]
            grid[0][column].plot(
                places,
                [
                    point["seconds"] * (1 if column == 0 else 1000 / point["images"])
                    for point in points
                ],
                "o-",
                label=text,
            )
            grid[1][column].plot(
                places,
                [point["peak_mib"] - point["imports_mib"] for point in points],
                "o-",
                label=text,
            )
        for line, unit in enumerate(
            ("seconds" if column == 0 else "seconds for 1,000 images", "peak MiB")
        ):
            grid[line][column].set(xscale="log", yscale="log", xlabel=label, ylabel=unit)
            grid[line][column].grid(alpha=0.3)
        for axis in (grid[0][1], grid[1][1]):
            axis.set_xticks(SIZES, [str(size) for size in SIZES])
            axis.minorticks_off()
    grid[0][0].legend(fontsize="small")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=100)


def run(most: int) -> None:
    from pipeline.base import files

    results: dict[str, list[dict[str, Any]]] = {"images": [], "size": []}
    for n_images in (count for count in COUNTS if count <= most):
        results["images"] += rows(
            [name for name in TEXTS if n_images <= MOST.get(name, n_images)], n_images, 32
        )
    for size in SIZES:
        results["size"] += by_size(size)
    about = {"machine": machine(), "shard_mib": SHARD_BYTES // 2**20}
    files.write_json(RESULT, {**about, **results})
    plot(results)
    print(table(results["images"], "images"), table(results["size"], "size"), sep="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure",
        nargs=4,
        metavar=("WORK", "FOLDER", "IMAGES", "SIZE"),
        help="one measurement, in this process",
    )
    parser.add_argument(
        "--most", type=int, default=COUNTS[-1], help="leave out larger numbers of images"
    )
    args = parser.parse_args()
    if args.measure:
        name, folder, n_images, size = args.measure
        print(json.dumps(measure(name, Path(folder), int(n_images), int(size))))
    else:
        run(args.most)


if __name__ == "__main__":
    main()
