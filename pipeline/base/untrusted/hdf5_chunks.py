"""Reads the chunks of an HDF5 dataset, inside the process of the HDF5 inspector.

libhdf5 does not compare the size of an unpacked chunk with the size that it should have. It fills a
chunk that is too short with whatever is in memory. So the size is found here before it reads one.
"""

import math
import zlib
from typing import Any

import h5py
from h5py import h5d, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, more_time
from pipeline.base.untrusted.hdf5_storage import is_variable_text, item_size

CHECKSUM = 4  # bytes that fletcher32 adds
MAX_TEXT = 2**28  # bytes of a dataset of text
TEXT_ROWS = 1024


def read(path: str, dataset: h5d.DatasetID, chunks: list[h5d.StoreInfo]) -> None:
    """Read all filtered chunks of a dataset as its reader will, or a part of one without filters.

    `chunks` are the places that `hdf5_storage.check` found. All of a variable-length text is read.
    """
    plan = dataset.get_create_plist()
    is_filtered = plan.get_layout() == h5d.CHUNKED and plan.get_nfilters() > 0
    if is_filtered:
        _read_chunks(path, dataset, chunks)
    if is_variable_text(dataset):
        _read_text(path, dataset)
    elif not is_filtered:
        h5py.Dataset(dataset)[:1]


def _read_chunks(path: str, dataset: h5d.DatasetID, chunks: list[h5d.StoreInfo]) -> None:
    """Raise Refusal unless every chunk unpacks to its size."""
    plan, readable = dataset.get_create_plist(), h5py.Dataset(dataset)
    filters = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())]
    shape = plan.get_chunk()
    size, is_text = math.prod(shape) * item_size(dataset), is_variable_text(dataset)
    for info in chunks:
        more_time(size)
        applied = [
            number for index, number in enumerate(filters) if not info.filter_mask & 1 << index
        ]
        packed = dataset.read_direct_chunk(info.chunk_offset)[1]
        if not _is_whole(applied, packed, size):
            raise Refusal(f"{path} has a damaged chunk, which does not unpack to {size:,} bytes")
        if is_text:
            continue
        places = tuple(
            slice(first, first + step) for first, step in zip(info.chunk_offset, shape, strict=True)
        )
        try:
            readable[places]
        except OSError as error:
            raise Refusal(f"{path} has a damaged chunk, which does not unpack") from error


def _is_whole(filters: list[int], packed: bytes, size: int) -> bool:
    """Return whether the bytes of a chunk unpack to `size` bytes.

    `filters` are in the order in which the chunk was packed. `hdf5_storage` knows their orders.
    """
    for place, number in enumerate(filters):
        if number == h5z.FILTER_FLETCHER32:
            size += CHECKSUM
        elif number in UNPACKERS:
            checksums = CHECKSUM * filters[place:].count(h5z.FILTER_FLETCHER32)
            return UNPACKERS[number](packed[: len(packed) - checksums], size)
    return len(packed) == size


def _is_gzip_of(packed: bytes, size: int) -> bool:
    unpacker = zlib.decompressobj()
    try:
        return len(unpacker.decompress(packed, size + 1)) == size and unpacker.eof
    except zlib.error:
        return False


def _is_lzf_of(packed: bytes, size: int) -> bool:
    """Return whether LibLZF unpacks so many bytes.

    Each of its steps copies bytes that follow, or bytes that came out before.
    """
    unpacked = at = 0
    try:
        while at < len(packed):
            control = packed[at]
            if control < 32:
                at += control + 2
                unpacked += control + 1
            else:
                is_long = control >> 5 == 7
                unpacked += (control >> 5) + 2 + (packed[at + 1] if is_long else 0)
                at += 3 if is_long else 2
    except IndexError:
        return False
    return at == len(packed) and unpacked == size


UNPACKERS = {h5z.FILTER_DEFLATE: _is_gzip_of, h5z.FILTER_LZF: _is_lzf_of}


def _read_text(path: str, dataset: h5d.DatasetID) -> None:
    """Raise Refusal for a text that is too large to be names."""
    texts: Any = h5py.Dataset(dataset)
    total = 0
    for first in range(0, len(texts), TEXT_ROWS):
        more_time()
        total += sum(map(len, texts[first : first + TEXT_ROWS].tolist()))
        if total > MAX_TEXT:
            raise Refusal(f"{path} holds more than {MAX_TEXT:,} bytes of text")
