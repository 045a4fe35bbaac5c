"""Stores image sets as folders of HDF5 shards, each complete in itself.

A set also says how it was made. Shard `00000.h5` holds the first rows, `00001.h5` the next, and so
on. All datasets have n rows:

    images uint8 (n, 3, H, W)
    labels int64 (n,)
    ids    int64 (n,)
    split  uint8 (n,; 0 train, 1 val, 2 test)

Adversarial sets also have:

    eps    float32 (n,; the bound that the stored image keeps, in units of pixels in [0, 1])
    fooled bool    (n,; the source model gets the stored image wrong)

Datasets are neither compressed nor cut into chunks, so a shard can be mapped into memory.

`manifest.json` holds the set's attributes (how it was made), `fingerprint` (a SHA-256 over them),
and the rows and the SHA-256 of every shard's file. It is written last. A shard is opened only after
its file was checked against it. Every shard also holds the attributes, its rows and the
fingerprint. The SHA-256 of the manifest identifies the whole content.

A set appears under its name only when all its shards are complete. Until then, they are written to
a hidden sibling, whose name depends on the fingerprint and the code. An interrupted run therefore
resumes where it stopped, and a changed one starts from scratch.
"""

from pipeline.base.store.blocks import SPLITS, Block, Split, join
from pipeline.base.store.image_set import ImageSet, clean, paths_below
from pipeline.base.store.manifest import Attributes, Run, Value
from pipeline.base.store.shards import ROW_BYTES, shard_bounds, shard_name
from pipeline.base.store.writer import Writer

__all__ = [
    "ROW_BYTES",
    "SPLITS",
    "Attributes",
    "Block",
    "ImageSet",
    "Run",
    "Split",
    "Value",
    "Writer",
    "clean",
    "join",
    "paths_below",
    "shard_bounds",
    "shard_name",
]
