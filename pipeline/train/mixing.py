"""Builds batches that mix clean and stored adversarial images in exact proportion.

One epoch is one pass over the clean images. Every other stream has its own shuffled order, which
continues from epoch to epoch, so each of its images is used as often as any other. The kinds are
shuffled within a batch. With balanced sampling, an epoch has as many batches, but every stream
draws its classes equally often. Within a class, it draws the images equally often.
"""

from collections.abc import Iterator, Mapping
from itertools import islice, tee

import numpy as np
import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.store import ImageSet
from pipeline.base.values import CLEAN
from pipeline.base.words import counted
from pipeline.train import group, params
from pipeline.train.images import Images, Rows, stored
from pipeline.train.part import Part, part_of


class MixSampler:
    """The rows that make up each batch, as a pure function of seed and epoch.

    `labels` gives the classes (N,) of each stream's images, `counts` how many of them are in a full
    batch. The last batch of an epoch is smaller, in the same proportion. `balanced` draws all
    classes equally often. `n_images` is the number of images in an epoch.
    """

    def __init__(
        self,
        labels: Mapping[str, Rows],
        counts: Mapping[str, int],
        seed: int,
        *,
        balanced: bool = False,
    ) -> None:
        self._labels, self._counts, self._seed, self._balanced = labels, counts, seed, balanced
        per_batch, n_clean = counts[CLEAN], len(labels[CLEAN])
        edges = [*range(0, n_clean, per_batch), n_clean]
        if len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]  # BatchNorm cannot train on one image, so it joins the previous batch
        self._clean_counts = np.diff(edges)
        of_streams = {
            name: int((self._clean_counts * count // per_batch).sum())
            for name, count in counts.items()
        }
        if empty := [
            name for name, n_images in of_streams.items() if counts[name] and not n_images
        ]:
            raise InputError(
                f"{counted(n_clean, 'training image')}: too few, for an epoch would have none of "
                f"{', '.join(empty)}; lower batch_size, or use more images"
            )
        self.n_images = sum(of_streams.values())

    def __len__(self) -> int:
        return len(self._clean_counts)

    def epoch(self, epoch: int) -> Iterator[dict[str, Rows]]:
        """Yield the rows of each stream in each batch of an epoch (counted from 0)."""
        per_stream = {name: self._batches(name, epoch) for name in self._counts}
        for index in range(len(self)):
            yield {name: batches[index] for name, batches in per_stream.items()}

    def _batches(self, name: str, epoch: int) -> list[Rows]:
        """Return one stream's rows for an epoch, batch by batch."""
        counts = self._clean_counts * self._counts[name] // self._counts[CLEAN]
        taken = int(counts.sum())
        order = self._balanced_order if self._balanced else self._natural_order
        return np.split(order(name, epoch * taken, taken), np.cumsum(counts)[:-1])

    def _natural_order(self, name: str, start: int, length: int) -> Rows:
        """Return places `start` to `start + length` of a stream's endless order."""
        return self._endless(name, len(self._labels[name]), start, length)

    def _balanced_order(self, name: str, start: int, length: int) -> Rows:
        """Return places `start` to `start + length` of a stream's balanced order.

        Every run of n_classes places has all classes. Each class has an endless order of its own.
        """
        members = [
            np.flatnonzero(self._labels[name] == label) for label in np.unique(self._labels[name])
        ]
        first, last = start // len(members), -(-(start + length) // len(members))
        classes = np.concatenate(
            [
                self.generator(f"{name} classes", run).permutation(len(members))
                for run in range(first, last)
            ]
        )
        rows = np.empty(len(classes), dtype=np.int64)
        for label, of_class in enumerate(members):
            rows[classes == label] = of_class[
                self._endless(f"{name} class {label}", len(of_class), first, last - first)
            ]
        return rows[start - first * len(members) :][:length]

    def _endless(self, purpose: str, size: int, start: int, length: int) -> Rows:
        """Return places `start` to `start + length` of an endless order of `size` rows.

        The order is one shuffled pass over the rows after another.
        """
        first, last = start // size, -(-(start + length) // size)
        passes = [
            self.generator(purpose, number).permutation(size) for number in range(first, last)
        ]
        return np.concatenate(passes or [np.empty(0, dtype=np.int64)])[start - first * size :][
            :length
        ]

    def generator(self, purpose: str, number: int) -> np.random.Generator:
        """Return the random numbers for one purpose.

        A purpose is the order of a stream in one pass, or the shuffling of one epoch's batches.
        """
        return np.random.default_rng([self._seed, number, *purpose.encode()])


class MixedBatches:
    """Mixed batches of clean and stored adversarial images.

    `images` are the training images of all streams, one stream after another in the order of
    `counts`. `labels` (N,) are each stream's own. `clean` must be among them. Where several workers
    train together, each gets its part of every batch. `owned` says how: see `part_of`.
    """

    def __init__(
        self,
        images: Images,
        labels: Mapping[str, Rows],
        counts: Mapping[str, int],
        seed: int,
        device: torch.device,
        *,
        balanced: bool = False,
        owned: bool = False,
    ) -> None:
        names = list(counts)
        self._images, self._group, self._owned = images, group.current(), owned
        self._labels = torch.from_numpy(np.concatenate([labels[name] for name in names])).to(device)
        sizes = [len(labels[name]) for name in names]
        self._offsets = dict(zip(names, np.cumsum([0, *sizes[:-1]]), strict=True))
        self._clean = range(self._offsets[CLEAN], self._offsets[CLEAN] + len(labels[CLEAN]))
        self._sampler = MixSampler(labels, counts, seed, balanced=balanced)

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def n_images(self) -> int:
        """The number of images in an epoch."""
        return self._sampler.n_images

    def stored(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor, Part]]:
        """Yield the batches of an epoch (counted from 0) from batch `first` on, as they are stored.

        Each is the rows (P,) of `images`, the images (P, 3, H, W; uint8), the labels (P,), and the
        part of the whole batch that they are.
        """
        parts, to_read = tee(islice(self._parts(epoch), first, None))
        read = self._images.read(part.rows for part in to_read)
        for part, (rows, images) in zip(parts, read, strict=True):
            yield rows, images, self._labels[rows], part

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Part]]:
        """Yield the batches of an epoch, from batch `first` on.

        Each is images (P, 3, H, W) in [0, 1], labels (P,), and the part of the whole batch that
        they are.
        """
        for _, images, labels, part in self.stored(epoch, first):
            yield images / 255, labels, part

    def _parts(self, epoch: int) -> Iterator[Part]:
        """Yield this worker's part of each batch of an epoch."""
        shuffling = self._sampler.generator("shuffle", epoch)
        for streams in self._sampler.epoch(epoch):
            batch = shuffling.permutation(
                np.concatenate([self._offsets[name] + rows for name, rows in streams.items()])
            )
            is_clean = (batch >= self._clean.start) & (batch < self._clean.stop)
            yield part_of(batch, is_clean, self._group, owned=self._owned)


def training_batches(
    sets: Mapping[str, ImageSet], recipe: params.Training, device: torch.device
) -> MixedBatches:
    """Return the batches that a recipe asks for.

    They come from the training rows of the sets that the recipe mixes.
    """
    images = stored([sets[name] for name in recipe.counts], device)
    return mixed(images, sets, recipe, device)


def mixed(
    images: Images,
    sets: Mapping[str, ImageSet],
    recipe: params.Training,
    device: torch.device,
    *,
    owned: bool = False,
) -> MixedBatches:
    """Return the batches that a recipe asks for, from `images`.

    `images` are the training rows of the sets that the recipe mixes. `owned` is for images that
    each worker changes.
    """
    labels = {name: sets[name].training_column("labels") for name in recipe.counts}
    return MixedBatches(
        images,
        labels,
        recipe.counts,
        recipe.seed,
        device,
        balanced=recipe.sampling == "balanced",
        owned=owned,
    )
