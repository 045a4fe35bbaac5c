"""Unpacks every chunk of an HDF5 dataset, inside the process of the HDF5 inspector.

libhdf5 does not compare the size of an unpacked chunk with the size that it should have. It fills a
chunk that is too short with whatever is in memory. Here each chunk is therefore unpacked twice.

The first time, its bytes are put into a dataset in memory, which has the same filters and a probe
before and after each. A probe is a filter that changes nothing and notes how many bytes arrive. The
second time, the file's own dataset is read, as its reader will. The results must be the same.
New memory has other content each time, so that memory in a result shows.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import h5py
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, more_time
from pipeline.base.untrusted.hdf5_storage import is_variable_text, item_size

SZIP, NBIT, SCALEOFFSET = h5z.FILTER_SZIP, h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET
PROBE = 400  # a number that HDF5 leaves to tests
M_PERTURB = -6  # of glibc's malloc.h
FIRST, SECOND = 0x11, 0x33
MAX_TEXT = 2**28  # bytes of a dataset of text
TEXT_ROWS = 1024
SCALE_HEADER = 21  # bytes before the values of a scale-offset chunk
NBIT_ATOMIC = 1

noted: dict[int, tuple[int, int]] = {}  # by place: bytes that arrived, the first four as a number


def read(path: str, dataset: h5d.DatasetID) -> None:
    """Read a part of the dataset, as its reader will, and unpack every filtered chunk.

    All of a variable-length text is read.
    """
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5d.CHUNKED and plan.get_nfilters():
        _unpack(path, dataset)
    elif not is_variable_text(dataset):
        h5py.Dataset(dataset)[:1]
    if is_variable_text(dataset):
        _read_text(path, dataset)


def _unpack(path: str, dataset: h5d.DatasetID) -> None:
    found: list[tuple[tuple[int, ...], int]] = []
    dataset.chunk_iter(lambda info: found.append((info.chunk_offset, info.filter_mask)))
    chunk, pipelines = dataset.get_create_plist().get_chunk(), dict[int, _Pipeline]()
    for offset, skipped in found:
        more_time()
        if skipped not in pipelines:
            pipelines[skipped] = _Pipeline(path, dataset, skipped)
        unpacked = pipelines[skipped].unpack(dataset.read_direct_chunk(offset)[1])
        if is_variable_text(dataset):
            continue
        more_time()
        ends = zip(offset, chunk, strict=True)
        _fill_memory(SECOND)
        part = h5py.Dataset(dataset)[tuple(slice(first, first + step) for first, step in ends)]
        if part.tobytes() != unpacked[tuple(map(slice, part.shape))].tobytes():
            raise Refusal(f"{path} has a chunk that unpacks to different values each time")


def _read_text(path: str, dataset: h5d.DatasetID) -> None:
    texts, total = h5py.Dataset(dataset), 0
    for first in range(0, len(texts), TEXT_ROWS):
        more_time()
        _fill_memory(FIRST)
        part = texts[first : first + TEXT_ROWS].tolist()
        total += sum(map(len, part))
        if total > MAX_TEXT:
            raise Refusal(f"{path} holds more than {MAX_TEXT:,} bytes of text")
        _fill_memory(SECOND)
        if texts[first : first + TEXT_ROWS].tolist() != part:
            raise Refusal(f"{path} holds text with different letters each time")


class _Pipeline:
    """The filters of a dataset, less those that a chunk skipped, with probes in memory."""

    def __init__(self, path: str, dataset: h5d.DatasetID, skipped: int) -> None:
        self._path, plan = path, dataset.get_create_plist()
        self._chunk = plan.get_chunk()
        self._size = math.prod(self._chunk) * item_size(dataset)
        self._filters = [
            plan.get_filter(index)[:3]
            for index in range(plan.get_nfilters())
            if not skipped & 1 << index
        ]
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_fapl_core(2**20, False)
        self._file = h5f.create(b"in memory", h5f.ACC_TRUNC, fapl=access)
        kind = dataset.get_type().copy()
        if is_variable_text(dataset):  # the addresses mean nothing in another file
            kind, plan = h5t.create(h5t.OPAQUE, item_size(dataset)), h5p.create(h5p.DATASET_CREATE)
        space = h5s.create_simple(self._chunk)
        self._dataset = h5d.create(self._file, b"x", kind, space, self._plan(plan))
        self._check_values()

    def _plan(self, original: Any) -> Any:
        """Return the filters in their order, each after a probe, and a last probe."""
        plan = original.copy()
        plan.remove_filter(h5z.FILTER_ALL)
        plan.set_chunk(self._chunk)
        for place, (number, _, values) in enumerate(self._filters):
            plan.set_filter(_probe(), h5z.FLAG_OPTIONAL, (place,))
            plan.set_filter(number, h5z.FLAG_OPTIONAL, values)
        plan.set_filter(_probe(), h5z.FLAG_OPTIONAL, (len(self._filters),))
        return plan

    def _check_values(self) -> None:
        """Compare the values of HDF5's own filters with those that libhdf5 has just computed.

        They are sizes that these filters trust.
        """
        plan = self._dataset.get_create_plist()
        for place, (number, _, values) in enumerate(self._filters):
            computed = plan.get_filter(2 * place + 1)[2]
            if number in (SZIP, NBIT, SCALEOFFSET) and values != computed:
                raise Refusal(f"{self._path} has a filter made for another kind of dataset")

    def unpack(self, packed: bytes) -> Any:
        """Return a chunk of the dataset. Raises Refusal where its size is another."""
        self._dataset.write_direct_chunk((0,) * len(self._chunk), packed)
        noted.clear()
        _fill_memory(FIRST)
        try:
            unpacked = h5py.Dataset(self._dataset)[...]
        except OSError as error:
            raise Refusal(f"{self._path} has a damaged chunk, which does not unpack") from error
        n_bytes = noted[0][0]
        if n_bytes != self._size:
            raise Refusal(
                f"{self._path} has a chunk that unpacks to {n_bytes:,} bytes, not to {self._size:,}"
            )
        for place, (number, _, values) in enumerate(self._filters):
            if number in NEEDED and noted[place + 1][0] < NEEDED[number](values, *noted[place + 1]):
                raise Refusal(f"{self._path} has a chunk that is cut short")
        return unpacked


def _needed_by_nbit(values: tuple[int, ...], _n_bytes: int, _head: int) -> int:
    """Return the bytes that hold all values of a chunk; the filter reads them unchecked.

    The values of the filter are their own number, whether nothing is packed, the number of values
    in a chunk, their class, size in bytes, order and precision in bits.
    """
    if values[1] or values[3] != NBIT_ATOMIC:
        return values[2] * values[4]
    return -(-values[2] * values[6] // 8)


def _needed_by_scaleoffset(values: tuple[int, ...], _n_bytes: int, head: int) -> int:
    """Return the bytes that hold all values of a chunk; the filter may read them unchecked.

    The chunk begins with the number of bits that hold one value.
    """
    return SCALE_HEADER - (-values[2] * head // 8)


# Filters whose result has its full size even where the packed bytes are too few.
NEEDED: dict[int, Callable[[tuple[int, ...], int, int], int]] = {
    NBIT: _needed_by_nbit,
    SCALEOFFSET: _needed_by_scaleoffset,
}


def _note(_flags: int, _n_values: int, values: Any, n_bytes: int, _size: Any, buffer: Any) -> int:
    head = ctypes.string_at(buffer[0], min(4, n_bytes))
    noted[values[0]] = n_bytes, int.from_bytes(head, "little")
    return n_bytes


_Filter = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_void_p),
)


class _Class(ctypes.Structure):
    """H5Z_class2_t of H5Zpublic.h."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("filter", _Filter),
    )


kept: list[Any] = []  # what libhdf5 has the address of


@cache
def _probe() -> int:
    """Return the number of the filter that notes what arrives, which is registered once."""
    kept.append(_Class(1, PROBE, 1, 1, b"probe", None, None, _Filter(_note)))
    h5z.register_filter(ctypes.addressof(kept[0]))
    return PROBE


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _fill_memory(value: int) -> None:
    """Let malloc fill new and freed memory with bytes made from `value`, where it can (glibc)."""
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(M_PERTURB, value)
