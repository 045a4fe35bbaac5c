"""Checks how an HDF5 dataset is stored, inside the process of the HDF5 inspector."""

import math

import h5py
from h5py import h5d, h5t, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, shown

MAX_CHUNK = 2**26
HONEST_RATIO = 20  # images never pack more tightly, but empty data does
# The filters that are read, in the order in which a chunk is packed. A chunk has one of the last
# two at most. fletcher32, which adds a checksum, may stand anywhere, for programs disagree.
ORDER = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, h5z.FILTER_LZF)


def check(path: str, dataset: h5d.DatasetID, *, text: bool, file_size: int, memory: int) -> None:
    """Raise Refusal unless the file itself holds all of a dataset, of numbers or `text`.

    `memory` is the number of bytes that may be filled.
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
    _check_size(path, dataset, file_size, memory)


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


def _check_size(path: str, dataset: h5d.DatasetID, file_size: int, memory: int) -> None:
    """Check what the dataset claims to be against what the file holds of it."""
    n_bytes = math.prod(dataset.shape) * item_size(dataset)
    layout, stored = dataset.get_create_plist().get_layout(), dataset.get_storage_size()
    if layout == h5d.CHUNKED:
        stored = _stored_in_chunks(path, dataset, file_size)
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


def _stored_in_chunks(path: str, dataset: h5d.DatasetID, file_size: int) -> int:
    """Return the bytes that all chunks take in the file.

    Every chunk must exist exactly once, and inside the file.
    """
    plan, chunks = dataset.get_create_plist(), list[h5d.StoreInfo]()
    chunk = plan.get_chunk()
    chunk_bytes = math.prod(chunk) * item_size(dataset)
    if chunk_bytes > MAX_CHUNK:
        raise Refusal(f"{path} has chunks of {chunk_bytes:,} bytes, more than {MAX_CHUNK:,}")
    dataset.chunk_iter(chunks.append)
    stored = sum(int(info.size) for info in chunks)
    inside = all(
        info.byte_offset is not None and info.byte_offset + info.size <= file_size
        for info in chunks
    )
    whole = plan.get_nfilters() > 0 or all(info.size == chunk_bytes for info in chunks)
    if stored > file_size or not inside or not whole:
        raise Refusal(
            f"{path} has chunks that lie outside the file, or are of another size than they claim"
        )
    _check_places(path, dataset, chunks)
    return stored


def _check_places(path: str, dataset: h5d.DatasetID, chunks: list[h5d.StoreInfo]) -> None:
    extents, chunk = dataset.shape, dataset.get_create_plist().get_chunk()
    places = math.prod(-(-extent // step) for extent, step in zip(extents, chunk, strict=True))
    found = {info.chunk_offset for info in chunks}
    in_place = all(
        place % step == 0 and place < extent
        for offset in found
        for place, step, extent in zip(offset, chunk, extents, strict=True)
    )
    if len(found) != places or not in_place:
        raise Refusal(f"{path} has {len(found)} chunks of the {places} that its shape asks for")
