"""The recipe as it is usually written, to measure against: torchattacks on the model as it comes, DataLoaders over per-image reads."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, Dataset

WORKERS = 2


class Stored(Dataset[tuple[Tensor, int]]):
    """One image a read, float32, from a file that every worker opens for itself."""

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
    """Batches of 64 + 32 + 32 images from three shuffled loaders, shuffled together."""
    loaders: list[DataLoader[tuple[Tensor, int]]] = [
        DataLoader(ConcatDataset([Stored(path)]), batch_size=size, shuffle=True, num_workers=WORKERS, drop_last=True)
        for path, size in ((clean, 64), (fgsm, 32), (pgd, 32))
    ]
    for parts in zip(*loaders, strict=False):
        images, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        order = torch.randperm(len(labels))
        yield images[order], labels[order]


def fgsm(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    adv_images: Tensor = torchattacks.FGSM(network, eps=8 / 255)(images, labels)
    return adv_images


def pgd(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    adv_images: Tensor = torchattacks.PGD(network, eps=8 / 255, alpha=2 / 255, steps=10)(images, labels)
    return adv_images


def training_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
