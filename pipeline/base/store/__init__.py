"""The image store: a folder of HDF5 shards, each complete in itself, that says how it was made.

Shard `00000.h5` holds the first rows, `00001.h5` the next, and so on. Datasets, all of n rows:

    images uint8 (n, 3, H, W)     labels int64 (n,)     ids int64 (n,)     split uint8 (n,; 0 train, 1 val)

and in adversarial sets also

    eps    float32 (n,; the bound that the stored image keeps, in units of pixels in [0, 1])
    fooled bool    (n,; the source model gets the stored image wrong)

Datasets are neither compressed nor cut into chunks, so a shard can be mapped into memory.

Every shard carries the set's attributes (how it was made), its own rows, `fingerprint` (a SHA-256 over the set's attributes) and
`content_sha256` (over the fingerprint, the rows and every dataset). A set appears under its name only when all its shards are
complete: they are written to a hidden sibling keyed by the fingerprint and the code, so an interrupted run goes on where it stopped and
a changed one starts anew.
"""

from pipeline.base.store.blocks import SPLITS, Block, Split, join
from pipeline.base.store.image_set import ImageSet, paths_below
from pipeline.base.store.shards import ROW_BYTES, Attributes, Run, Value, shard_bounds, shard_name
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
    "join",
    "paths_below",
    "shard_bounds",
    "shard_name",
]
