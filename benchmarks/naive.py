"""Run the recipe as it is usually written, as the baseline of the benchmarks.

It uses torchattacks on the unmodified model, and DataLoaders that read image by image. `python -m
benchmarks.naive FOLDER` runs both phases in FOLDER, with the images, epochs, batches and learning
rates of params.yaml.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import h5py
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision import models

from pipeline import document
from pipeline.base import params
from pipeline.prepare import preparation, sources
from pipeline.train.params import Training

WORKERS = 2


class Stored(Dataset[tuple[Tensor, int]]):
    """A data set that reads one float32 image at a time; every worker opens the file for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: h5py.File | None = None
        with h5py.File(path, "r") as file:
            self.length = len(file["labels"])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        return torch.from_numpy(self.file["images"][row]), int(self.file["labels"][row])


def mixed_batches(clean: Path, fgsm: Path, pgd: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of 64 + 32 + 32 images from three shuffled loaders, shuffled together."""
    loaders: list[DataLoader[tuple[Tensor, int]]] = [
        DataLoader(
            ConcatDataset([Stored(path)]),
            batch_size=size,
            shuffle=True,
            num_workers=WORKERS,
            drop_last=True,
        )
        for path, size in ((clean, 64), (fgsm, 32), (pgd, 32))
    ]
    for parts in zip(*loaders, strict=False):
        images, labels = (
            torch.cat([part[0] for part in parts]),
            torch.cat([part[1] for part in parts]),
        )
        order = torch.randperm(len(labels))
        yield images[order], labels[order]


def fgsm(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    adv_images: Tensor = torchattacks.FGSM(network, eps=8 / 255)(images, labels)
    return adv_images


def pgd(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    adv_images: Tensor = torchattacks.PGD(network, eps=8 / 255, alpha=2 / 255, steps=10)(
        images, labels
    )
    return adv_images


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def recipe(settings: document.Document, folder: Path) -> None:
    """Run the recipe from the raw images to the fine-tuned network."""
    source = sources.open_source(settings.data)
    rows = preparation.choose_rows(source.labels, settings.data)
    split = preparation.split_rows(source.labels[rows], settings.data)
    for number, name in enumerate(("train", "val")):
        chosen = rows[split == number]
        with h5py.File(folder / f"clean_{name}.h5", "w") as file:
            file["images"], file["labels"] = (
                source.read(chosen).astype("float32") / 255,
                source.labels[chosen],
            )
    torch.manual_seed(0)
    network = models.get_model(settings.model.architecture, num_classes=len(source.class_names))
    clean = Stored(folder / "clean_train.h5")
    fit(
        network,
        lambda: DataLoader(clean, settings.clean.batch_size, True, num_workers=WORKERS),
        [folder / "clean_val.h5"],
        settings.clean,
    )
    for name, attack in (("fgsm", fgsm), ("pgd", pgd)):
        for side in ("train", "val"):
            store_attacked(
                network.eval(), attack, folder / f"clean_{side}.h5", folder / f"{name}_{side}.h5"
            )
    paths = {
        side: [folder / f"{name}_{side}.h5" for name in ("clean", "fgsm", "pgd")]
        for side in ("train", "val")
    }
    fit(network, lambda: mixed_batches(*paths["train"]), paths["val"], settings.finetuned["robust"])
    torch.save(network.state_dict(), folder / "robust.pt")


def fit(
    network: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    val: list[Path],
    settings: Training,
) -> None:
    """Train, then load the weights of the epoch that is best on the validation images."""
    weights, lr, decay = network.parameters(), settings.lr, settings.weight_decay
    optimizer = (
        torch.optim.AdamW(weights, lr, weight_decay=decay)
        if settings.optimizer == "adamw"
        else torch.optim.SGD(weights, lr, settings.momentum, weight_decay=decay)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    held_out: DataLoader[tuple[Tensor, int]] = DataLoader(
        ConcatDataset([Stored(path) for path in val]), 128, num_workers=WORKERS
    )
    best, best_state = -1, network.state_dict()
    for _ in range(settings.epochs):
        network.train()
        for images, labels in batches():
            training_step(network, optimizer, images, labels)
        schedule.step()
        network.eval()
        with torch.no_grad():
            right = sum(
                int((network(images).argmax(1) == labels).sum()) for images, labels in held_out
            )
        if right > best:
            best, best_state = right, copy.deepcopy(network.state_dict())
    network.load_state_dict(best_state)


def store_attacked(
    network: nn.Module,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
    clean: Path,
    out: Path,
) -> None:
    parts = [
        (attack(network, images, labels), labels)
        for images, labels in DataLoader(Stored(clean), 128, num_workers=WORKERS)
    ]
    with h5py.File(out, "w") as file:
        file["images"], file["labels"] = (
            torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True)
        )


if __name__ == "__main__":
    recipe(document.load(params.FILE), Path(sys.argv[1]))
