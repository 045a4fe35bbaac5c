"""Batches that mix clean and stored adversarial images in exact proportion.

One epoch is one pass over the clean images. Every other stream has a shuffled order of its own that goes on from epoch to epoch, so each
of its images is used as often as any other. The kinds are shuffled within a batch. With balanced sampling an epoch has as many batches,
but every stream draws its classes equally often, and within a class its images equally often.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.base.store import SPLITS, Block, ImageSet
from pipeline.base.values import CLEAN
from pipeline.train import memory, params
from pipeline.train.memory import MIB
from pipeline.train.streaming import StreamedBatches

Rows = NDArray[np.int64]


class MixSampler:
    """Which rows make up each batch: a pure function of seed and epoch; `n_images` in all.

    `labels` gives the classes (N,) of each stream's images, `counts` how many of them are in a full batch. The last batch of an epoch is
    smaller, in the same proportion. `balanced` draws all classes equally often.
    """

    def __init__(self, labels: Mapping[str, Rows], counts: Mapping[str, int], seed: int, *, balanced: bool = False) -> None:
        self._labels, self._counts, self._seed, self._balanced = labels, counts, seed, balanced
        per_batch, n_clean = counts[CLEAN], len(labels[CLEAN])
        edges = [*range(0, n_clean, per_batch), n_clean]
        if len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]  # BatchNorm cannot train on a single image: it joins the batch before
        self._clean_counts = np.diff(edges)
        self.n_images = sum(int((self._clean_counts * count // per_batch).sum()) for count in counts.values())

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._clean_counts)

    def epoch(self, epoch: int) -> Iterator[dict[str, Rows]]:
        """The rows of each stream in each batch of an epoch (counted from 0)."""
        per_stream = {name: self._batches(name, epoch) for name in self._counts}
        for index in range(len(self)):
            yield {name: batches[index] for name, batches in per_stream.items()}

    def sizes(self, name: str) -> Rows:
        """How many images of a stream are in each batch of an epoch."""
        sizes: Rows = self._clean_counts * self._counts[name] // self._counts[CLEAN]
        return sizes

    def _batches(self, name: str, epoch: int) -> list[Rows]:
        """One stream's rows for an epoch, batch by batch."""
        counts = self.sizes(name)
        taken = int(counts.sum())
        order = self._balanced_order if self._balanced else self._natural_order
        return np.split(order(name, epoch * taken, taken), np.cumsum(counts)[:-1])

    def _natural_order(self, name: str, start: int, length: int) -> Rows:
        """Places `start` to `start + length` of a stream's endless order."""
        return self._endless(name, len(self._labels[name]), start, length)

    def _balanced_order(self, name: str, start: int, length: int) -> Rows:
        """The same with all classes in every run of n_classes places, and each class in an endless order of its own."""
        members = [np.flatnonzero(self._labels[name] == label) for label in np.unique(self._labels[name])]
        first, last = start // len(members), -(-(start + length) // len(members))
        classes = np.concatenate([self.generator(f"{name} classes", run).permutation(len(members)) for run in range(first, last)])
        rows = np.empty(len(classes), dtype=np.int64)
        for label, of_class in enumerate(members):
            rows[classes == label] = of_class[self._endless(f"{name} class {label}", len(of_class), first, last - first)]
        return rows[start - first * len(members) :][:length]

    def _endless(self, purpose: str, size: int, start: int, length: int) -> Rows:
        """Places `start` to `start + length` of one shuffled pass over `size` rows after another."""
        first, last = start // size, -(-(start + length) // size)
        passes = [self.generator(purpose, number).permutation(size) for number in range(first, last)]
        return np.concatenate(passes or [np.empty(0, dtype=np.int64)])[start - first * size :][:length]

    def generator(self, purpose: str, number: int) -> np.random.Generator:
        """Random numbers for one purpose: the order of a stream in one pass, or the shuffling of one epoch's batches."""
        return np.random.default_rng([self._seed, number, *purpose.encode()])


class Mixed(Protocol):
    """Mixed batches, wherever their images are: `n_images` in an epoch; `loading` tells how, and all of it that decides their order."""

    loading: str

    @property
    def n_images(self) -> int: ...

    def __len__(self) -> int: ...

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (counted from 0): images (B, 3, H, W) in [0, 1] and labels (B,)."""
        ...


class MixedBatches:
    """Mixed batches from images held once, as uint8, on the device that trains.

    `streams` holds the training rows by the names in `counts`; `clean` must be among them. `images` (N, 3, H, W; uint8) and `labels`
    (N,) are those of all streams, one behind the other in the order of `counts`.
    """

    loading = "held in memory"

    def __init__(
        self, streams: Mapping[str, Block], counts: Mapping[str, int], seed: int, device: torch.device, *, balanced: bool = False
    ) -> None:
        names = list(counts)
        self.images = torch.cat([torch.from_numpy(streams[name].images) for name in names]).to(device)
        self.labels = torch.cat([torch.from_numpy(streams[name].labels) for name in names]).to(device)
        sizes = [len(streams[name]) for name in names]
        self._offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
        self._sampler = MixSampler({name: streams[name].labels for name in names}, counts, seed, balanced=balanced)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._sampler)

    @property
    def n_images(self) -> int:
        """Images in an epoch."""
        return self._sampler.n_images

    def rows(self, epoch: int) -> Iterator[Tensor]:
        """Which of `images` make up each batch (B,) of an epoch (counted from 0)."""
        shuffling = self._sampler.generator("shuffle", epoch)
        for parts in self._sampler.epoch(epoch):
            rows = np.concatenate([self._offsets[name] + rows for name, rows in parts.items()])
            yield torch.from_numpy(shuffling.permutation(rows)).to(self.images.device)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch: images (B, 3, H, W) in [0, 1] and labels (B,)."""
        for rows in self.rows(epoch):
            yield self.images[rows] / 255, self.labels[rows]


def training_batches(sets: Mapping[str, ImageSet], recipe: params.Training, device: torch.device) -> Mixed:
    """The batches that a recipe asks for, from the training rows of the sets that it mixes; validation rows are left out.

    Images that fit in memory are held there, others are streamed; says which, and why. Raises InputError for balanced sampling of images
    that do not fit.
    """
    labels = {name: sets[name].column("labels")[sets[name].column("split") == SPLITS["train"]] for name in recipe.counts}
    n_bytes = sum(len(labels[name]) * math.prod(sets[name].image_shape) for name in recipe.counts)
    size = f"training images: {n_bytes / MIB:,.0f} MiB"
    obstacle = memory.obstacle(n_bytes, device)
    if not obstacle:
        console.say(f"{size}, held in memory, of the {memory.limit() / MIB:,.0f} MiB that images may take")
        streams = {name: sets[name].load("train") for name in recipe.counts}
        return MixedBatches(streams, recipe.counts, recipe.seed, device, balanced=recipe.sampling == "balanced")
    if recipe.sampling == "balanced":
        raise InputError(f"{size}: {obstacle}, and balanced sampling needs them there; set sampling: natural, or {memory.VARIABLE}")
    sampler = MixSampler(labels, recipe.counts, recipe.seed)
    sizes, buffer = {name: sampler.sizes(name) for name in recipe.counts}, memory.stream_buffer()
    console.say(f"{size}, streamed through {buffer / MIB:,.0f} MiB: {obstacle}; {memory.VARIABLE} changes it")
    images = buffer // math.prod(sets[CLEAN].image_shape)
    return StreamedBatches(sets, sizes, sampler.generator, device, buffer=images)
