"""Chunk sizes, ways to read chunks in random order, and compressions of the image store on this machine: `python -m benchmarks.store`.

`--sets` names image sets whose images are compressed: how much there is to save depends on them. The chunk sizes are tried on random
images. Files lie in the working folder, and are read from the page cache.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.tables import machine, markdown
from pipeline.base import files, store

RESULT = Path(__file__).parent / "results" / "store.json"
CHUNKS, COMPRESSIONS = (64, 128, 256, 512, 1024, 2048, 4096), ("none", "lzf", "zstd", "blosc2-zstd", "bitshuffle-zstd", "bitshuffle-lz4")
ROWS, REPEATS = 16_384, 5

Images = NDArray[np.uint8]


def rate(work: Callable[[], object], n_images: int) -> float:
    """Images a second: the median of REPEATS runs after one to warm up."""
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return round(n_images / statistics.median(taken[1:]))


def chunk_row(images: Images, rows: int, path: Path) -> dict[str, object]:
    """Writing (and syncing), and reading all chunks in random order in three ways."""
    out, starts = np.empty_like(images), np.random.default_rng(0).permutation(len(images) // rows) * rows

    def write() -> None:
        with h5py.File(path, "w", libver=("v110", "v110")) as file:
            file.create_dataset("images", data=images, chunks=(rows, *images.shape[1:]))
        with path.open("rb+") as raw:
            os.fsync(raw.fileno())

    def reading(read: Callable[[h5py.Dataset, int, slice], None]) -> Callable[[], None]:
        def all_chunks() -> None:
            with h5py.File(path, "r") as file:
                dataset = file["images"]
                for place, start in enumerate(starts.tolist()):
                    read(dataset, start, slice(place * rows, (place + 1) * rows))

        return all_chunks

    def slices(dataset: h5py.Dataset, start: int, place: slice) -> None:
        out[place] = dataset[start : start + rows]

    def directly(dataset: h5py.Dataset, start: int, place: slice) -> None:
        dataset.read_direct(out, slice(start, start + rows), place)

    def raw_chunks(dataset: h5py.Dataset, start: int, place: slice) -> None:
        _, content = dataset.id.read_direct_chunk((start, 0, 0, 0))
        out[place] = np.frombuffer(content, np.uint8).reshape(rows, *images.shape[1:])

    return {
        "images in a chunk": rows,
        "write": rate(write, len(images)),
        "read by slices": rate(reading(slices), len(images)),
        "read_direct": rate(reading(directly), len(images)),
        "read_direct_chunk": rate(reading(raw_chunks), len(images)),
    }


def compression_row(block: store.Block, name: str, compression: str, folder: Path) -> dict[str, object]:
    """Size, writing with hashing and syncing, and reading with checking, of one shard."""
    path = folder / "set"
    with store.Writer(path, {"kind": "bench"}, bounds=[(0, len(block))], compression=compression) as writer:
        written = rate(lambda: writer.write(0, block), len(block))
    images = store.ImageSet(path)
    size = sum(shard.stat().st_size for shard in path.iterdir())
    return {
        "images": name,
        "compression": compression,
        "size": round(size / block.images.nbytes, 3),
        "write": written,
        "read, checked": rate(images.verify, len(block)),
    }


def first_rows(path: Path) -> store.Block:
    block = next(store.ImageSet(path).blocks())
    return block.select(np.arange(len(block)) < ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=Path, nargs="+", default=[Path("data/clean"), Path("data/adversarial/clean/pgd")])
    blocks = {path.name: first_rows(path) for path in parser.parse_args().sets}
    random = np.random.default_rng(0).integers(0, 256, (ROWS, 3, 32, 32), dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        chunks = [chunk_row(random, rows, folder / "chunks.h5") for rows in CHUNKS]
        compressions = [compression_row(block, name, kind, folder) for name, block in blocks.items() for kind in COMPRESSIONS]
    files.write_json(RESULT, {"machine": machine(), "rows": ROWS, "repeats": REPEATS, "chunks": chunks, "compressions": compressions})
    print(markdown(chunks), markdown(compressions), sep="\n\n")


if __name__ == "__main__":
    main()
