"""Checks how an HDF5 dataset is stored, inside the process of the HDF5 inspector."""

import importlib
import math
import sys

import h5py
from h5py import h5d, h5t, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, Unavailable, more_time, shown

MAX_CHUNK = 2**26
HONEST_RATIO = 20  # images never pack more tightly, but empty data does
# By their registered numbers: gzip, shuffle, fletcher32, szip, nbit, scale-offset, and h5py's lzf.
BUILT_IN = (1, 2, 3, 4, 5, 6, 32000)
PLUGIN = "hdf5plugin"
# bzip2, Blosc, LZ4, bitshuffle, ZFP, Zstandard, SZ, FCIDECOMP, SZ3, Blosc2, SPERR, HTJ2K
OF_PLUGIN = (307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028, 32033)
MAX_FILTERS = 8


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


def needs_plugin(dataset: h5d.DatasetID) -> bool:
    """Return whether a dataset can be read only where the package PLUGIN is imported."""
    plan = dataset.get_create_plist()
    numbers = {plan.get_filter(index)[0] for index in range(plan.get_nfilters())}
    return PLUGIN in sys.modules and not numbers.isdisjoint(OF_PLUGIN)


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
    if plan.get_nfilters() > MAX_FILTERS:
        raise Refusal(f"{path} has {plan.get_nfilters()} filters, more than {MAX_FILTERS}")
    for number, _, _, name in (plan.get_filter(index) for index in range(plan.get_nfilters())):
        label = f"the filter {shown(name) or 'without a name'} (number {number})"
        if number not in OF_PLUGIN and not (number in BUILT_IN and _can_decode(number)):
            raise Refusal(f"{path} needs {label}")
        if number in OF_PLUGIN and not _can_decode(number) and not _plugin_decodes(number):
            raise Unavailable(
                f"{path} needs {label}, which is not installed; install {PLUGIN} (a package)"
            )


def _can_decode(number: int) -> bool:
    return bool(
        h5z.filter_avail(number) and h5z.get_filter_info(number) & h5z.FILTER_CONFIG_DECODE_ENABLED
    )


def _plugin_decodes(number: int) -> bool:
    more_time()
    try:
        importlib.import_module(PLUGIN)
    except ImportError:
        return False
    return _can_decode(number)


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
