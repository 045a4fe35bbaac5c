"""Compare the pipeline with the recipe as it is usually written, on this machine: `make bench`.

Both do the same work on the same random 32x32 images. They alternate (A B A B …) after a warm-up of
each. Results are the medians of PAIRS pairs.
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
import torchattacks
from torch import Tensor
from torchvision import models

from benchmarks import naive
from benchmarks.tables import machine, markdown
from pipeline import attacks, document, networks
from pipeline.attacks.params import Attack, Threat
from pipeline.base import files, params, store
from pipeline.evaluate import whitebox
from pipeline.evaluate.target import Target
from pipeline.networks import device, matrix_products
from pipeline.train import augmentation, loop, mixing
from pipeline.train.images import HeldImages, stored
from pipeline.train.params import Training

RESULT = Path(__file__).parent / "results" / "speed.json"
PAIRS, BATCH, STEPS, SIZE, ROWS, WRITTEN = 5, 128, 8, 32, 10_240, 100_000
PGD_20 = {"attack": "PGD", "steps": 20, "random_start": True}
Figures = dict[str, dict[str, float]]
# Ratios of the first edition, on 2 cores of an AMD EPYC with AVX-512 and bf16, without AMX.
FIRST = {
    "resnet50 fgsm, bf16": 3.4,
    "resnet50 pgd, bf16": 3.5,
    "resnet50 judging by PGD-20": 1.0,
    "resnet50 training, bf16": 2.15,
    "resnet18 fgsm, bf16": 2.6,
    "resnet18 pgd, bf16": 2.7,
    "resnet18 judging by PGD-20": 1.0,
    "resnet18 training, bf16": 1.64,
}


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], n_images: int
) -> dict[str, float]:
    """Return the images per second of both, and the ratio of ours to theirs."""
    times: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for _ in range(PAIRS + 1):
        for work, taken in times.items():
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    rates = {
        name: n_images / statistics.median(times[work][1:])
        for name, work in (("ours", ours), ("naive", theirs))
    }
    return {
        **{name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["ours"] / rates["naive"], 2),
    }


def attack_figures(architecture: str, block: store.Block, processor: torch.device) -> Figures:
    """Measure FGSM and PGD on one batch, in bf16 and in fp32."""
    network = stock(architecture, processor)
    images, labels, pixels = tensors(block, processor)
    specs: dict[str, dict[str, object]] = {
        "fgsm": {"attack": "FGSM"},
        "pgd": {"attack": "PGD", "alpha": "2/255", "steps": 10, "random_start": True},
    }
    figures = {}
    for name, dtype in itertools.product(specs, (torch.bfloat16, torch.float32)):
        fast = matrix_products.for_attacks(network, SIZE, dtype)
        spec = Attack.model_validate({"eps": "8/255", **specs[name]})
        attack, usual = attacks.build(spec, fast, 10), {"fgsm": naive.fgsm, "pgd": naive.pgd}[name]

        def ours(attack: torchattacks.attack.Attack = attack) -> None:
            attacks.quantise(attacks.perturb(attack, pixels, labels, 0), images, 8 / 255)

        def theirs(usual: Callable[..., object] = usual) -> None:
            usual(network.eval(), pixels, labels)

        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        figures[f"{architecture} {name}, {precision}"] = compare(ours, theirs, BATCH)
    return figures


def judging_figures(architecture: str, block: store.Block, processor: torch.device) -> Figures:
    """Measure PGD in an evaluation, against the same attack on the stock network."""
    network = stock(architecture, processor)
    block = block.select(slice(BATCH))
    right = dataclasses.replace(block, labels=networks.predict(network, block.images))
    threat = Threat.model_validate({**PGD_20, "eps": 1e-6, "alpha": 1e-7})  # all images stand
    fast, plain = (
        Target.of(network, 10, batch_size=BATCH, seed=0, image_size=size) for size in (SIZE, None)
    )
    return {
        f"{architecture} judging by PGD-20": compare(
            lambda: whitebox.withstands(fast, right, threat, "bench"),
            lambda: whitebox.withstands(plain, right, threat, "bench"),
            BATCH,
        )
    }


def training_figures(architecture: str, block: store.Block, processor: torch.device) -> Figures:
    """Measure STEPS steps of training, in bf16 and in fp32.

    The usual way has a network of its own, since the loop changes the layout of the one it trains.
    """
    usual = stock(architecture, processor)
    _, labels, pixels = tensors(block, processor)
    few = block.select(slice(STEPS * BATCH))
    held = HeldImages(torch.from_numpy(few.images).to(processor), processor)
    mixed = mixing.MixedBatches(held, {"clean": few.labels}, {"clean": BATCH}, 0, processor)
    batches = augmentation.AugmentedBatches(mixed, "none", seed=0)
    optimizer = torch.optim.SGD(usual.parameters(), lr=0.01, momentum=0.9)
    figures = {}
    for precision in ("bf16", "fp32"):
        network = stock(architecture, processor)
        recipe = document.load(params.FILE).clean.model_copy(
            update={"epochs": 1, "warmup_epochs": 0.0, "precision": precision}
        )

        def ours(network: models.ResNet = network, recipe: Training = recipe) -> None:
            loop.fit(
                network,
                batches,
                lambda _: {"val_accuracy": 0.0},
                recipe,
                text="bench",
                device=processor,
            )

        def theirs() -> None:
            usual.train()
            for _ in range(STEPS):
                naive.training_step(usual, optimizer, pixels, labels)

        name = f"{architecture} training, {precision}"
        figures[name] = compare(ours, theirs, STEPS * BATCH)
    return figures


def stock(architecture: str, processor: torch.device) -> models.ResNet:
    torch.manual_seed(0)
    network: models.ResNet = models.get_model(architecture, num_classes=10).to(processor)
    return network


def tensors(block: store.Block, processor: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return one batch: stored images, labels, and images in [0, 1]."""
    images, labels = (
        torch.from_numpy(array[:BATCH]).to(processor) for array in (block.images, block.labels)
    )
    return images, labels, images / 255


def exhaust(epoch: Callable[[int], Iterable[object]]) -> None:
    for _ in epoch(0):
        pass


def loading_figures(
    block: store.Block, folder: Path, processor: torch.device
) -> dict[str, dict[str, float]]:
    """Measure one epoch of mixed batches."""
    for name in ("clean", "fgsm", "pgd"):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["images"], file["labels"] = (block.images / 255).astype(np.float32), block.labels
    paths = [folder / f"{name}.h5" for name in ("clean", "fgsm", "pgd")]
    counts = {"clean": 64, "fgsm": 32, "pgd": 32}
    write(folder / "mixed", block)
    read = stored([store.ImageSet(folder / "mixed")] * len(counts), processor)
    mixed = mixing.MixedBatches(read, dict.fromkeys(counts, block.labels), counts, 0, processor)
    usual = partial(exhaust, lambda _: naive.mixed_batches(*paths))
    return {"mixed loading": compare(partial(exhaust, mixed.epoch), usual, 2 * ROWS)}


def write(path: Path, block: store.Block) -> None:
    """Store a block in shards of the usual size."""
    bounds = store.shard_bounds(len(block), 4_096)
    with store.Writer(path, {"kind": "clean", "class_names": "[]"}, bounds=bounds) as writer:
        for start, stop in bounds:
            part = {name: array[start:stop] for name, array in block.datasets.items()}
            writer.write_behind(start, store.Block(**part))  # type: ignore[arg-type]


def store_figures(block: store.Block, folder: Path) -> dict[str, dict[str, float]]:
    """Compare writing to the store with plain sequential writing of as many bytes.

    The store's images are written, closed and read back with their SHA-256. Rates are in images per
    second.
    """
    many = store.join([block] * -(-WRITTEN // len(block))).select(
        np.arange(-(-WRITTEN // len(block)) * len(block)) < WRITTEN
    )
    content = many.images.tobytes()
    ours = partial(write, folder / "set", many)
    return {
        "store write, against plain writing": compare(
            ours, partial(files.write_bytes, folder / "plain", content), WRITTEN
        )
    }


def main() -> None:
    processor, generator = device.choose(), np.random.default_rng(0)
    block = store.Block(
        images=generator.integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8),
        labels=generator.integers(0, 10, ROWS),
        ids=np.arange(ROWS),
        split=np.zeros(ROWS, np.uint8),
    )
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures = store_figures(block, Path(folder)) | loading_figures(
            block, Path(folder), processor
        )
    for architecture in ("resnet50", "resnet18"):
        for measure in (attack_figures, judging_figures, training_figures):
            figures |= measure(architecture, block, processor)
    files.write_json(RESULT, {"machine": machine(), "pairs": PAIRS, "images_per_second": figures})
    print(f"{machine()}; medians of {PAIRS} pairs, images/s\n")
    columns = {"ours": "pipeline", "naive": "usual way", "ratio": "ratio"}
    rows = [
        {
            "what": name,
            **{text: figure[key] for key, text in columns.items()},
            "first edition": FIRST.get(name, ""),
        }
        for name, figure in figures.items()
    ]
    print(markdown(rows))


if __name__ == "__main__":
    main()
