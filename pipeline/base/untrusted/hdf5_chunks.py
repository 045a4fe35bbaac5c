"""Unpacks every chunk of an HDF5 dataset, inside the process of the HDF5 inspector.

libhdf5 does not compare the size of an unpacked chunk with the size that it should have. It fills a
chunk that is too short with whatever is in memory. Some filters also read past the end of what they
unpack. Here each chunk is therefore unpacked several times, and the results must be the same.

First, its bytes are put into a dataset in memory, which has the same filters and a probe before and
after each. A probe is a filter that notes how many bytes arrive, and puts other bytes after them
each time. Last, the file's own dataset is read, as its reader will. New memory has other content
each time, too, so that memory in a result shows.
"""

import ctypes
import itertools
import math
import struct
from functools import cache
from typing import Any

import h5py
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from pipeline.base.untrusted.hdf5_bounds import Refusal, more_time
from pipeline.base.untrusted.hdf5_storage import OF_PLUGIN, is_variable_text, item_size

# Filters that stop at the end of what they unpack: gzip, shuffle, fletcher32 and lzf.
BOUNDED = (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32, h5z.FILTER_LZF)
# Filters whose values libhdf5 computes from the dataset: szip, nbit and scale-offset.
COMPUTED = (h5z.FILTER_SZIP, h5z.FILTER_NBIT, h5z.FILTER_SCALEOFFSET)
PROBE, PLACEHOLDER = 400, 401  # numbers that HDF5 leaves to tests
PROBE_NAME = b"probe"
M_PERTURB = -6  # of glibc's malloc.h
FIRST, SECOND = 0x11, 0x33
PADDING = 2**16  # bytes after those of a chunk
MAX_TEXT = 2**28  # bytes of a dataset of text
TEXT_ROWS = 1024
NO_SIZE = 2**48  # a filter that returned an error code as a size

state = {"fill": FIRST, "bytes": 0}  # of the probes: what to put after bytes, and how many arrived
numbers = itertools.count()


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
    pipelines: dict[int, _Pipeline] = {}
    try:
        for offset, skipped in found:
            more_time()
            if skipped not in pipelines:
                pipelines[skipped] = _Pipeline(path, dataset, skipped)
            unpacked = pipelines[skipped].unpack(dataset.read_direct_chunk(offset)[1])
            if not is_variable_text(dataset):
                _compare(path, dataset, offset, unpacked)
    finally:
        for pipeline in pipelines.values():
            pipeline.close()


def _compare(path: str, dataset: h5d.DatasetID, offset: tuple[int, ...], unpacked: Any) -> None:
    """Read a chunk as its reader will, and compare it with what was unpacked in memory."""
    more_time(unpacked.nbytes)
    _fill_memory(SECOND)
    chunk = dataset.get_create_plist().get_chunk()
    places = tuple(slice(first, first + step) for first, step in zip(offset, chunk, strict=True))
    part = h5py.Dataset(dataset)[places]
    if part.tobytes() != unpacked[tuple(map(slice, part.shape))].tobytes():
        raise _unequal(path)


def _unequal(path: str) -> Refusal:
    return Refusal(f"{path} has a damaged chunk, which unpacks to other values each time")


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
        self._fills = [FIRST, SECOND]
        if {number for number, _, _ in self._filters} <= set(BOUNDED):
            self._fills.remove(SECOND)
        kind = dataset.get_type().copy()
        if is_variable_text(dataset):  # the addresses mean nothing in another file
            kind, plan = h5t.create(h5t.OPAQUE, item_size(dataset)), h5p.create(h5p.DATASET_CREATE)
        self._file = _in_memory()
        created = h5d.create(
            self._file, b"x", kind, h5s.create_simple(self._chunk), self._plan(plan.copy())
        )
        self._check_values(created.get_create_plist())
        del created
        self._put_plugins()
        access = h5p.create(h5p.DATASET_ACCESS)
        access.set_chunk_cache(1, 0, 1.0)  # none, for a chunk is unpacked more than once
        self._dataset = h5d.open(self._file, b"x", access)

    def close(self) -> None:
        """Free the memory."""
        del self._dataset
        self._file.close()

    def _plan(self, plan: Any) -> Any:
        """Return the filters in their order, each after a probe, and a last probe.

        A filter of a plugin would change its values here, so it gets a placeholder.
        """
        plan.remove_filter(h5z.FILTER_ALL)
        plan.set_chunk(self._chunk)
        plan.set_filter(_registered(PROBE), h5z.FLAG_OPTIONAL, (1,))
        for number, _, values in self._filters:
            known = _registered(PLACEHOLDER) if number in OF_PLUGIN else number
            plan.set_filter(known, h5z.FLAG_OPTIONAL, values)
            plan.set_filter(PROBE, h5z.FLAG_OPTIONAL, (0,))
        return plan

    def _check_values(self, plan: Any) -> None:
        """Compare the values of filters with those that libhdf5 has just computed.

        They are sizes that these filters trust.
        """
        for place, (number, _, values) in enumerate(self._filters):
            if number in COMPUTED and values != plan.get_filter(2 * place + 1)[2]:
                raise Refusal(f"{self._path} has a filter made for another kind of dataset")

    def _put_plugins(self) -> None:
        """Put the numbers of the plugins' filters into the places held for them."""
        plugins = [(number, values) for number, _, values in self._filters if number in OF_PLUGIN]
        if not plugins:
            return
        h5f.flush(self._file)
        image = bytearray(self._file.get_file_image())
        self._file.close()
        for number, values in plugins:
            place = image.index(_stored_filter(PLACEHOLDER, len(values)))
            image[place : place + 2] = struct.pack("<H", number)
        self._file = _in_memory(bytes(image))

    def unpack(self, packed: bytes) -> Any:
        """Return a chunk of the dataset. Raises Refusal where its size or its values vary."""
        self._dataset.write_direct_chunk((0,) * len(self._chunk), packed)
        unpacked = None
        for fill in self._fills:
            more_time(self._size)
            found = self._unpacked(fill)
            if unpacked is not None and found.tobytes() != unpacked.tobytes():
                raise _unequal(self._path)
            unpacked = found
        return unpacked

    def _unpacked(self, fill: int) -> Any:
        state["fill"], state["bytes"] = fill, NO_SIZE
        _fill_memory(fill)
        try:
            unpacked = h5py.Dataset(self._dataset)[...]
        except OSError as error:
            raise Refusal(f"{self._path} has a damaged chunk, which does not unpack") from error
        if state["bytes"] >= NO_SIZE:
            raise Refusal(f"{self._path} has a damaged chunk, which does not unpack")
        if state["bytes"] != self._size:
            raise Refusal(
                f"{self._path} has a chunk that unpacks to {state['bytes']:,} bytes, "
                f"not to {self._size:,}"
            )
        return unpacked


def _in_memory(image: bytes | None = None) -> Any:
    """Return an HDF5 file in memory, which may have the content `image`."""
    access, name = h5p.create(h5p.FILE_ACCESS), b"in memory %d" % next(numbers)
    access.set_fapl_core(2**20, False)
    access.set_libver_bounds(h5f.LIBVER_EARLIEST, h5f.LIBVER_LATEST)  # without checksums
    if image is None:
        return h5f.create(name, h5f.ACC_TRUNC, fapl=access)
    access.set_file_image(image)
    return h5f.open(name, h5f.ACC_RDWR, fapl=access)


def _stored_filter(number: int, n_values: int) -> bytes:
    """Return how a filter of this module begins in an object header of version 1."""
    name = PROBE_NAME.ljust(8, b"\0")
    return struct.pack("<HHHH", number, len(name), h5z.FLAG_OPTIONAL, n_values) + name


def _note(_flags: int, _n_values: int, values: Any, n_bytes: int, size: Any, buffer: Any) -> int:
    """Put bytes after those that a filter will read, and after the unpacked chunk."""
    if values[0]:  # the last probe on the way out of the file
        state["bytes"] = n_bytes
    if n_bytes >= NO_SIZE:
        return 0
    libc, old = _libc(), buffer[0]
    new = libc.malloc(n_bytes + PADDING)
    if not new:
        return 0
    ctypes.memmove(new, old, n_bytes)
    ctypes.memset(new + n_bytes, state["fill"], PADDING)
    libc.free(old)
    buffer[0], size[0] = new, n_bytes  # nbit returns this size where it packs nothing
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


@cache
def _class(number: int) -> _Class:
    return _Class(1, number, 1, 1, PROBE_NAME, None, None, _Filter(_note))


@cache
def _registered(number: int) -> int:
    """Return the number of a filter of this module, which libhdf5 then knows."""
    h5z.register_filter(ctypes.addressof(_class(number)))
    return number


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    return libc


def _fill_memory(value: int) -> None:
    """Let malloc fill new and freed memory with bytes made from `value`, where it can (glibc)."""
    if hasattr(_libc(), "mallopt"):
        _libc().mallopt(M_PERTURB, value)
