"""Mixed batches from image sets that do not fit in memory.

Every stream reads its set in *windows*: chunks of the store, drawn at random and read whole, their training rows shuffled together. While
one window is used, a thread reads the next into a second buffer: two windows a stream are all that is held. Reading decides nothing: which
rows come when is a pure function of seed and epoch.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.store import SPLITS, ImageSet, Run
from pipeline.train.memory import MIB, VARIABLE

LEAST_CHUNKS = 16  # in a window: fewer would give batches of neighbours

Rows = NDArray[np.int64]
Images = NDArray[np.uint8]
Draw = Callable[[str, int], np.random.Generator]


@dataclass(frozen=True, kw_only=True)
class Window:
    """Chunks of a set that are read together: their `runs` of rows in storage order, and training `rows` (N,) in the order of use."""

    runs: list[Run]
    rows: Rows

    def places(self) -> Rows:
        """Where each of `rows` lies when the runs are read one behind another."""
        starts = np.array([start for start, _ in self.runs])
        offsets = np.cumsum([0, *(stop - start for start, stop in self.runs[:-1])])
        run = np.searchsorted(starts, self.rows, side="right") - 1
        places: Rows = offsets[run] + self.rows - starts[run]
        return places


class Stream:
    """The training rows of one set in an endless order: one shuffled pass after another, each row once a pass.

    A pass shuffles the chunks, cuts them into windows of `n_chunks`, and shuffles the training rows of each window. Labels and split are
    held whole, images are not. `draw` gives the random numbers for a purpose and a number.
    """

    def __init__(self, name: str, images: ImageSet, draw: Draw, n_chunks: int) -> None:
        self._name, self._images, self._draw, self._n_chunks = name, images, draw, n_chunks
        self.labels = images.column("labels")
        self._is_train = images.column("split") == SPLITS["train"]
        self._runs = [(start, stop) for start, stop in images.runs() if self._is_train[start:stop].any()]
        self._n_train = int(self._is_train.sum())

    def order(self, start: int, length: int) -> Iterator[Window]:
        """The windows that hold places `start` to `start + length` of the endless order; the outer two are cut to these places."""
        for number in range(start // self._n_train, -(-(start + length) // self._n_train)):
            place = number * self._n_train
            for window in self._pass(number):
                rows = window.rows[max(start - place, 0) : max(start + length - place, 0)]
                place += len(window.rows)
                if len(rows):
                    yield Window(runs=window.runs, rows=rows)

    def buffer(self) -> Images:
        """Room for the images of the largest window."""
        chunk = max(stop - start for start, stop in self._runs)
        return np.empty((min(self._n_chunks, len(self._runs)) * chunk, *self._images.image_shape), dtype=np.uint8)

    def read(self, window: Window, buffer: Images) -> tuple[Window, Images, Rows]:
        """Fill a buffer with a window's runs; gives them back with the places of the window's rows."""
        self._images.read_runs(window.runs, buffer)
        return window, buffer, window.places()

    def _pass(self, number: int) -> Iterator[Window]:
        generator = self._draw(f"{self._name} windows", number)
        shuffled = generator.permutation(len(self._runs))
        for first in range(0, len(shuffled), self._n_chunks):
            runs = [self._runs[index] for index in sorted(shuffled[first : first + self._n_chunks])]
            rows = np.concatenate([start + np.flatnonzero(self._is_train[start:stop]) for start, stop in runs])
            yield Window(runs=runs, rows=generator.permutation(rows))


class Cursor:
    """Takes a stream's images from place `start` on, `length` in all, with one window read ahead by a thread of `pool`."""

    def __init__(self, stream: Stream, start: int, length: int, pool: ThreadPoolExecutor) -> None:
        self._stream, self._pool, self._windows = stream, pool, stream.order(start, length)
        self._ahead: Future[tuple[Window, Images, Rows]] | None = None
        self._buffer, self._rows, self._places, self._used = stream.buffer(), np.empty(0, np.int64), np.empty(0, np.int64), 0
        self._read_ahead(stream.buffer())

    def take(self, out: Images) -> Rows:
        """Fill `out` (n, 3, H, W) with the next images; gives their rows (n,)."""
        taken = []
        while len(out):
            if self._used == len(self._rows):
                self._advance()
            part = slice(self._used, self._used + len(out))
            places = self._places[part]
            np.take(self._buffer, places, axis=0, out=out[: len(places)], mode="clip")  # the default mode would buffer its output
            taken.append(self._rows[part])
            self._used, out = self._used + len(places), out[len(places) :]
        return np.concatenate([np.empty(0, np.int64), *taken])

    def _advance(self) -> None:
        """Go on to the window that was read ahead; the buffer that is done with takes the one behind it."""
        assert self._ahead is not None
        free = self._buffer
        window, self._buffer, self._places = self._ahead.result()
        self._rows, self._used = window.rows, 0
        self._read_ahead(free)

    def _read_ahead(self, buffer: Images) -> None:
        window = next(self._windows, None)
        self._ahead = None if window is None else self._pool.submit(self._stream.read, window, buffer)


class StreamedBatches:
    """Mixed batches like `mixing.MixedBatches`, of which `buffer` images at most are held at a time.

    `counts` says how many images of each stream are in every batch of an epoch (n_batches,). Opening checks every byte of the sets against
    its SHA-256 once. Raises InputError for a buffer too small to shuffle in.
    """

    def __init__(self, sets: Mapping[str, ImageSet], counts: Mapping[str, Rows], draw: Draw, device: torch.device, *, buffer: int) -> None:
        self._counts, self._draw, self._device = counts, draw, device
        self.loading = f"streamed through {buffer} images"
        self.n_images = sum(int(of_stream.sum()) for of_stream in counts.values())
        self._shape = next(iter(sets.values())).image_shape
        per_batch = sum(int(of_stream[0]) for of_stream in counts.values())
        self._streams = {}
        for name, of_stream in counts.items():
            runs = sets[name].runs()
            chunk = max(stop - start for start, stop in runs)
            share = int(of_stream[0]) / per_batch / 2  # half of a stream's part is used while the other half is read
            least = min(LEAST_CHUNKS, len(runs)) * chunk / share
            if buffer < least:
                needed = math.ceil(least * math.prod(self._shape) / MIB)
                raise InputError(f"{VARIABLE}: expected at least {needed} MiB to stream {sets[name].path} through, found less")
            self._streams[name] = Stream(name, sets[name], draw, int(buffer * share // chunk))
        for name in counts:
            sets[name].verify()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(next(iter(self._counts.values())))

    def rows(self, epoch: int) -> Iterator[dict[str, Rows]]:
        """The rows of each stream's set in each batch of an epoch (counted from 0); reads no image."""
        places = {name: self._places(name, epoch) for name in self._streams}
        whole = {name: np.concatenate([window.rows for window in self._streams[name].order(*place)]) for name, place in places.items()}
        parts = {name: np.split(rows, np.cumsum(self._counts[name])[:-1]) for name, rows in whole.items()}
        for index in range(len(self)):
            yield {name: of_stream[index] for name, of_stream in parts.items()}

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch (counted from 0)."""
        shuffling, pool = self._draw("shuffle", epoch), ThreadPoolExecutor(1)  # HDF5 reads one after another anyway
        try:
            cursors = {name: Cursor(stream, *self._places(name, epoch), pool) for name, stream in self._streams.items()}
            for index in range(len(self)):
                images, labels = self._batch(cursors, index)
                order = torch.from_numpy(shuffling.permutation(len(labels)))
                yield images[order].to(self._device) / 255, labels[order].to(self._device)
        finally:
            pool.shutdown(cancel_futures=True)

    def _places(self, name: str, epoch: int) -> tuple[int, int]:
        """Where in a stream's endless order an epoch begins, and how many places it takes."""
        taken = int(self._counts[name].sum())
        return epoch * taken, taken

    def _batch(self, cursors: Mapping[str, Cursor], index: int) -> tuple[Tensor, Tensor]:
        """The uint8 images and the labels of one batch, stream by stream."""
        edges = np.cumsum([0, *(self._counts[name][index] for name in cursors)])
        images = np.empty((edges[-1], *self._shape), dtype=np.uint8)
        parts = [
            self._streams[name].labels[cursor.take(images[start:stop])]
            for (name, cursor), start, stop in zip(cursors.items(), edges[:-1], edges[1:], strict=True)
        ]
        return torch.from_numpy(images), torch.from_numpy(np.concatenate(parts))
