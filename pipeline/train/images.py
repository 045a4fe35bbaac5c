"""Reads the training images of several sets, one set after another, wherever they are kept.

Every way of keeping them gives the same bytes for the same rows. The size of the memory therefore
never decides a result.
"""

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base import files
from pipeline.base.ahead import one_ahead
from pipeline.base.store import SPLITS, ImageSet

DEVICE_SHARE = 0.5  # of the free memory of a GPU: activations and gradients need the rest
COPIED = 1024  # images at a time

Rows = NDArray[np.int64]


class Images(Protocol):
    """Training images, by row."""

    def read(self, batches: Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows (B,) of each batch and their images (B, 3, H, W; uint8), on the device."""
        ...


class HeldImages:
    """Training images in one tensor: `images` (N, 3, H, W; uint8)."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self._device = images, device

    def read(self, batches: Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            rows = sent(torch.from_numpy(batch), self._device)
            yield rows, self.get(rows)

    def get(self, rows: Tensor) -> Tensor:
        """Return the images (B, 3, H, W; uint8) of some rows (B,), on the device."""
        return self.images[rows.to(self.images.device)].to(self._device)

    def put(self, rows: Tensor, images: Tensor) -> None:
        """Replace the images of some rows (B,)."""
        self.images[rows.to(self.images.device)] = images.to(self.images.device)


class MappedImages:
    """The training rows of stored sets, read from the disk through the page cache.

    A thread reads the next batch while the current one is used.
    """

    def __init__(self, sets: Sequence[ImageSet], device: torch.device) -> None:
        self._device = device
        self._maps = [shard for images in sets for shard in images.map_images()]
        self._starts = np.cumsum([0, *map(len, self._maps)])
        is_train = np.concatenate([images.column("split") == SPLITS["train"] for images in sets])
        self._places = np.flatnonzero(is_train)
        self.shape: tuple[int, ...] = (len(self._places), *self._maps[0].shape[1:])

    def read(self, batches: Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, images in one_ahead(self.get, batches):
            yield sent(torch.from_numpy(rows), self._device), sent(images, self._device)

    def get(self, rows: Rows) -> Tensor:
        """Return the images (B, 3, H, W; uint8) of some rows (B,), in main memory."""
        places = self._places[rows]
        order = np.argsort(places)  # by shard, and within a shard by place on the disk
        places = places[order]
        edges = np.searchsorted(places, self._starts)
        images = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        for shard in np.flatnonzero(np.diff(edges)):
            own = slice(edges[shard], edges[shard + 1])
            images[order[own]] = self._maps[shard][places[own] - self._starts[shard]]
        return torch.from_numpy(images)

    def copy_to(self, target: Tensor) -> Tensor:
        """Fill a tensor (N, 3, H, W; uint8) with all images, and return it."""
        for start in range(0, len(target), COPIED):
            part = target[start : start + COPIED]
            part.copy_(self.get(np.arange(start, start + len(part))))
        return target


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device. A GPU is not waited for, which needs pinned memory."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def stored(sets: Sequence[ImageSet], device: torch.device) -> Images:
    """Return the training images of some sets, after checking every byte against its SHA-256.

    They are kept on a GPU where they fit. Otherwise, they are read from the disk.
    """
    mapped = _verified(sets, device)
    return _on_gpu(mapped, device) if _fits(mapped, device) else mapped


def working_copy(sets: Sequence[ImageSet], device: torch.device, folder: Path) -> HeldImages:
    """Return a copy of the training images of some sets that can be changed.

    The sets are checked as by `stored`. The copy is kept on a GPU where it fits. Otherwise, it is
    kept in a file without a name in `folder`. Raises InputError where the disk has no room for it.
    """
    mapped = _verified(sets, device)
    if _fits(mapped, device):
        return _on_gpu(mapped, device)
    return HeldImages(mapped.copy_to(_in_a_file(mapped.shape, folder)), device)


def _verified(sets: Sequence[ImageSet], device: torch.device) -> MappedImages:
    for images in dict.fromkeys(sets):
        images.verify()
    return MappedImages(sets, device)


def _fits(images: MappedImages, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free: int = torch.cuda.mem_get_info(device)[0]
    return math.prod(images.shape) <= DEVICE_SHARE * free


def _on_gpu(images: MappedImages, device: torch.device) -> HeldImages:
    empty = torch.empty(images.shape, dtype=torch.uint8, device=device)
    return HeldImages(images.copy_to(empty), device)


def _in_a_file(shape: tuple[int, ...], folder: Path) -> Tensor:
    """Return a tensor whose memory is a file, which is deleted together with the tensor."""
    n_bytes = math.prod(shape)
    files.require_space(folder, n_bytes, "a working copy of the images to refresh")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)  # else a full disk ends the process later
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))
