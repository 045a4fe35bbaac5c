"""Batches that mix clean and stored adversarial images in exact proportion.

One epoch is one pass over the clean images. Every other stream has a shuffled order of its own that goes on from epoch to epoch, so each
of its images is used as often as any other. The kinds are shuffled within a batch.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.params import CLEAN
from pipeline.store import Block

Rows = NDArray[np.int64]


class MixSampler:
    """Which rows make up each batch: a pure function of seed and epoch.

    `sizes` gives the number of images of each stream, `counts` how many of them are in a full batch. The last batch of an epoch is
    smaller, in the same proportion.
    """

    def __init__(self, sizes: Mapping[str, int], counts: Mapping[str, int], seed: int) -> None:
        self._sizes, self._counts, self._seed = sizes, counts, seed
        per_batch, n_clean = counts[CLEAN], sizes[CLEAN]
        edges = [*range(0, n_clean, per_batch), n_clean]
        if len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]  # BatchNorm cannot train on a single image: it joins the batch before
        self._clean_counts = np.diff(edges)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._clean_counts)

    def epoch(self, epoch: int) -> Iterator[dict[str, Rows]]:
        """The rows of each stream in each batch of an epoch (counted from 0)."""
        per_stream = {name: self._batches(name, epoch) for name in self._counts}
        for index in range(len(self)):
            yield {name: batches[index] for name, batches in per_stream.items()}

    def _batches(self, name: str, epoch: int) -> list[Rows]:
        """One stream's rows for an epoch, batch by batch."""
        counts = self._clean_counts * self._counts[name] // self._counts[CLEAN]
        taken = int(counts.sum())
        return np.split(self._order(name, epoch * taken, taken), np.cumsum(counts)[:-1])

    def _order(self, name: str, start: int, length: int) -> Rows:
        """Places `start` to `start + length` of a stream's endless order: one shuffled pass over all its rows after another."""
        size = self._sizes[name]
        first, last = start // size, -(-(start + length) // size)
        passes = [self.generator(name, number).permutation(size) for number in range(first, last)]
        return np.concatenate(passes or [np.empty(0, dtype=np.int64)])[start - first * size :][:length]

    def generator(self, purpose: str, number: int) -> np.random.Generator:
        """Random numbers for one purpose: the order of a stream in one pass, or the shuffling of one epoch's batches."""
        return np.random.default_rng([self._seed, number, *purpose.encode()])


class MixedBatches:
    """Mixed batches from images held once, as uint8, on the device that trains.

    `streams` holds the training rows by the names in `counts`; `clean` must be among them. `epoch` yields `images` (B, 3, H, W) in
    [0, 1] and `labels` (B,).
    """

    def __init__(self, streams: Mapping[str, Block], counts: Mapping[str, int], seed: int, device: torch.device) -> None:
        names = list(counts)
        self._images = torch.cat([torch.from_numpy(streams[name].images) for name in names]).to(device)
        self._labels = torch.cat([torch.from_numpy(streams[name].labels) for name in names]).to(device)
        sizes = [len(streams[name]) for name in names]
        self._offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
        self._sampler = MixSampler(dict(zip(names, sizes, strict=True)), counts, seed)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._sampler)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (counted from 0)."""
        shuffling = self._sampler.generator("shuffle", epoch)
        for parts in self._sampler.epoch(epoch):
            rows = np.concatenate([self._offsets[name] + rows for name, rows in parts.items()])
            chosen = torch.from_numpy(shuffling.permutation(rows)).to(self._images.device)
            yield self._images[chosen] / 255, self._labels[chosen]
