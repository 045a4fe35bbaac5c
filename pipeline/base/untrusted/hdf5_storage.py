"""Checks how an HDF5 dataset is stored, inside the process of the HDF5 inspector."""

import math
from typing import Any

import h5py
from h5py import h5d, h5t, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, more_time, shown

MAX_CHUNK = 2**26
MANY = 10_000  # chunks whose places are found in the time for one object
HONEST_RATIO = 20  # images never pack more tightly, but empty data does
# The filters that are read, in the order in which a chunk is packed. A chunk has one of the last
# two at most. fletcher32, which adds a checksum, may stand anywhere, for programs disagree.
ORDER = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_LZF)


def check(
    path: str, dataset: h5d.DatasetID, *, text: bool, file_size: int, memory: int
) -> list[h5d.StoreInfo]:
    """Return the places of a dataset's chunks, an empty list where it has none.

    Raises Refusal unless the file itself holds all of the dataset, of numbers or `text`. `memory`
    is the number of bytes that may be filled.
    """
    plan = dataset.get_create_plist()
    if plan.get_external_count():
        raise Refusal(f"{path} has external storage, in other files")
    if plan.get_layout() == h5d.VIRTUAL:
        raise Refusal(f"{path} is a virtual dataset, of parts of other files")
    if dataset.get_type().detect_class(h5t.REFERENCE):
        raise Refusal(f"{path} holds object references")
    _check_filters(path, plan)
    _check_kind(path, dataset, text)
    chunks = _chunks(path, dataset, file_size) if plan.get_layout() == h5d.CHUNKED else []
    _check_size(path, dataset, chunks, file_size, memory)
    return chunks


def is_variable_text(dataset: h5d.DatasetID) -> bool:
    """Return whether a dataset is text whose parts differ in length."""
    kind = dataset.get_type()
    return bool(kind.get_class() == h5t.STRING and kind.is_variable_str())


def item_size(dataset: h5d.DatasetID) -> int:
    """Return the bytes of one value in the file; of variable-length text, of its address there."""
    if is_variable_text(dataset):
        return 8 + int(h5py.h5i.get_file_id(dataset).get_create_plist().get_sizes()[0])
    return int(dataset.get_type().get_size())


def _check_filters(path: str, plan: h5py.h5p.PropDCID) -> None:
    """Raise Refusal unless a dataset has filters that can be checked, in an order that can."""
    found = [plan.get_filter(index) for index in range(plan.get_nfilters())]
    for number, _, _, name in found:
        if number not in (*ORDER, h5z.FILTER_FLETCHER32) or not h5z.filter_avail(number):
            label = f"the filter {shown(name) or 'without a name'} (number {number})"
            raise Refusal(f"{path} needs {label}; gzip, lzf and shuffle are read")
    numbers = [number for number, *_ in found if number != h5z.FILTER_FLETCHER32]
    if numbers != sorted(set(numbers), key=ORDER.index) or {*ORDER[1:]} <= {*numbers}:
        raise Refusal(f"{path} was packed more than once, or before its bytes were shuffled")


def _check_kind(path: str, dataset: h5d.DatasetID, text: bool) -> None:
    kind = dataset.get_type().get_class()
    is_text = text and kind == h5t.STRING
    numbers = kind in (h5t.INTEGER, h5t.FLOAT, h5t.ENUM)
    simple = dataset.get_space().get_simple_extent_type() == h5py.h5s.SIMPLE
    if not simple or not (numbers or is_text):
        raise Refusal(f"{path} is no array of numbers{' or text' if text else ''}")
    if is_text and len(dataset.shape) != 1:
        raise Refusal(f"{path} is text in {len(dataset.shape)} dimensions, not in one")


def _check_size(
    path: str,
    dataset: h5d.DatasetID,
    chunks: list[h5d.StoreInfo],
    file_size: int,
    memory: int,
) -> None:
    """Check what the dataset claims to be against what the file holds of it."""
    n_bytes = math.prod(dataset.shape) * item_size(dataset)
    layout, stored = dataset.get_create_plist().get_layout(), dataset.get_storage_size()
    if layout == h5d.CHUNKED:
        stored = sum(int(info.size) for info in chunks)
        if stored > file_size:
            raise Refusal(f"{path} has chunks that overlap: {stored:,} bytes of them")
    elif stored != n_bytes or (
        layout == h5d.CONTIGUOUS
        and n_bytes
        and (dataset.get_offset() or file_size) + stored > file_size
    ):
        raise Refusal(f"{path} claims {n_bytes:,} bytes, but the file holds fewer of it")
    if n_bytes > memory and n_bytes > HONEST_RATIO * stored:
        raise Refusal(
            f"{path} unpacks {stored:,} bytes to {n_bytes:,}, more than this machine's free memory"
        )


def _chunks(path: str, dataset: h5d.DatasetID, file_size: int) -> list[h5d.StoreInfo]:
    """Return the places of all chunks.

    Every chunk must exist exactly once, and inside the file. A place that comes again ends the
    search, for a damaged file can lead libhdf5 in a circle.
    """
    plan, extents = dataset.get_create_plist(), dataset.shape
    chunk, found = plan.get_chunk(), dict[Any, h5d.StoreInfo]()
    chunk_bytes = math.prod(chunk) * item_size(dataset)
    if chunk_bytes > MAX_CHUNK:
        raise Refusal(f"{path} has chunks of {chunk_bytes:,} bytes, more than {MAX_CHUNK:,}")
    is_filtered = plan.get_nfilters() > 0

    def add(info: h5d.StoreInfo) -> None:
        if len(found) % MANY == 0:
            more_time()
        inside = info.byte_offset is not None and info.byte_offset + info.size <= file_size
        if not inside or not (is_filtered or info.size == chunk_bytes):
            raise Refusal(
                f"{path} has chunks that lie outside the file, or are of another size than they "
                "claim"
            )
        places = zip(info.chunk_offset, chunk, extents, strict=True)
        if info.chunk_offset in found or any(
            place % step or place >= extent for place, step, extent in places
        ):
            raise Refusal(f"{path} has a chunk twice, or in no place of its shape")
        found[info.chunk_offset] = info

    dataset.chunk_iter(add)
    more_time()
    expected = math.prod(-(-extent // step) for extent, step in zip(extents, chunk, strict=True))
    if len(found) != expected:
        raise Refusal(f"{path} has {len(found)} chunks of the {expected} that its shape asks for")
    return [*found.values()]
