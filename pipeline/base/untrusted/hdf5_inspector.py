"""Examines HDF5 files in a process of its own.

`pipeline.base.untrusted.hdf5` starts this script and sends it requests. libhdf5 is written in C and
trusts much of what a file says. Damaged files make it crash, loop endlessly or allocate what they
ask for. Here this ends a process that does nothing else, with bounded memory and time.

Each line of standard input is a request, a JSON object. Each line of standard output is the answer
as JSON: null for a file that is safe to read, text for what was found, or an object
{"unavailable": text} for what was found where that shows no damage.
"""

import errno
import json
import math
import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
from h5py import h5a, h5d, h5l, h5o, h5t

MEMORY = 768 * 2**20  # bytes that one examination may take
# Computing time after which the process is ended. It restarts for every object and chunk.
SECONDS = 1
MAX_OBJECTS = 10_000
MAX_ATTRIBUTE = 2**16
MAX_CHUNK = 2**26
HONEST_RATIO = 20  # images never pack more tightly, but empty data does
# libhdf5 causes these system errors itself when a damaged file sends it to impossible places.
OF_CONTENT = (0, errno.EINVAL, errno.EFAULT, errno.EOVERFLOW)
SHUFFLE = h5py.h5z.FILTER_SHUFFLE
FLETCHER = h5py.h5z.FILTER_FLETCHER32


class Refusal(Exception):  # noqa: N818 - an answer, not an error
    """A reason why a file is not read."""


def main() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - importing pathlib slows every start
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + MEMORY if hard == resource.RLIM_INFINITY else min(used + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        _more_time()
        print(json.dumps(examine(json.loads(line))), flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def open_file(path: Any, mode: str = "r", **options: Any) -> h5py.File:
    """Return an open HDF5 file, which libhdf5 does not lock where the disk has no locks.

    Raises OSError as h5py does.
    """
    try:
        return h5py.File(path, mode, **options)
    except OSError as error:
        if "unable to lock file" not in str(error) or error.errno == errno.EAGAIN:
            raise
    return h5py.File(path, mode, locking=False, **options)


def unavailable(error: BaseException) -> str | None:
    """Return why a file could not be opened or read although it may be whole, and what to do.

    Returns None where the file's content is at fault.
    """
    text = str(error)
    if "consistency flags" in text:
        return (
            "marked as open for writing: a program has it open, or ended without closing it; "
            "close that program, or if there is none, "
            "clear the mark with `h5clear -s FILE` (of the HDF5 tools)"
        )
    number = getattr(error, "errno", None) or next(map(int, re.findall(r"errno = (\d+)", text)), 0)
    if number == errno.EAGAIN:
        return "locked: another program has it open for writing; close it there and run this again"
    return None if number in OF_CONTENT else f"cannot be read: {os.strerror(number)}"


def examine(request: dict[str, Any]) -> str | dict[str, str] | None:
    """Return the reason not to read a file, or None if it is safe to read.

    A reason that shows no damage is an object {"unavailable": text}. `request` holds `path`, the
    numbers of the allowed `filters`, the names of the `datasets` that will be read, and `memory`,
    the bytes that may be filled.
    """
    try:
        size = os.path.getsize(request["path"])  # noqa: PTH202 - as above
        with open_file(request["path"]) as file:
            for name, dataset in _datasets(file):
                _check_dataset(name, dataset, request["filters"])
                if name.strip("/") in [wanted.strip("/") for wanted in request["datasets"]]:
                    _check_storage(name, dataset, size, request["memory"])
                    _decode(name, dataset)
    except Refusal as refusal:
        return str(refusal)
    except MemoryError:
        return {
            "unavailable": f"refused: it takes more than {MEMORY:,} bytes to look through; "
            "free some memory and run this again"
        }
    except Exception as error:  # h5py raises errors of every kind for libhdf5
        if reason := unavailable(error):
            return {"unavailable": reason}
        return f"not a readable HDF5 file, perhaps cut short ({' '.join(str(error).split())[:200]})"
    return None


def _more_time() -> None:
    """Let SIGPROF end this process, which alone stops C code, once it has computed for SECONDS."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Yield all datasets that hard links reach, and check every link and attribute on the way."""
    groups, soft = [("/", h5o.open(file.id, b"/"))], []
    seen = {h5o.get_info(file.id).addr}
    while groups:
        path, group = groups.pop()
        _check_attributes(path, group)
        for name in group:
            child_path = path + name.decode(errors="backslashreplace")
            if not _is_hard(group, name, child_path):
                soft.append((group, name, child_path))
                continue
            child = h5o.open(group, name)
            _more_time()
            address = h5o.get_info(child).addr
            if address in seen:
                raise Refusal(f"{child_path} is a second link to an object, or links in a circle")
            seen.add(address)
            if len(seen) > MAX_OBJECTS:
                raise Refusal(f"more than {MAX_OBJECTS:,} objects")
            if isinstance(child, h5py.h5g.GroupID):
                groups.append((child_path + "/", child))
            elif isinstance(child, h5d.DatasetID):
                yield child_path, child
    for group, name, path in soft:
        _check_soft(group, name, path)


def _is_hard(group: h5py.h5g.GroupID, name: bytes, path: str) -> bool:
    kind = group.links.get_info(name).type
    if kind == h5l.TYPE_EXTERNAL:
        raise Refusal(f"{path} is an external link, into another file")
    if kind not in (h5l.TYPE_HARD, h5l.TYPE_SOFT):
        raise Refusal(f"{path} is a user-defined link")
    return bool(kind == h5l.TYPE_HARD)


def _check_soft(group: h5py.h5g.GroupID, name: bytes, path: str) -> None:
    """Raise Refusal for a soft link that leads out of the file or to nothing.

    The file has no external link, so a soft link cannot lead to another file.
    """
    try:
        h5o.open(group, name)
    except (KeyError, RuntimeError, OSError, ValueError) as error:
        raise Refusal(f"{path} is a soft link out of the file, or to nothing in it") from error


def _check_attributes(path: str, owner: Any) -> None:
    total = 0
    for index in range(h5a.get_num_attrs(owner)):
        attribute = h5a.open(owner, index=index)
        if attribute.get_type().detect_class(h5t.REFERENCE):
            raise Refusal(f"an attribute of {path} holds object references")
        total += attribute.get_storage_size()
        if total > MAX_ATTRIBUTE:
            raise Refusal(f"the attributes of {path} take more than {MAX_ATTRIBUTE:,} bytes")
    # Reading the attributes can hang, too.
    dict((h5py.Dataset if isinstance(owner, h5d.DatasetID) else h5py.Group)(owner).attrs.items())


def _check_dataset(path: str, dataset: h5d.DatasetID, allowed: list[int]) -> None:
    _check_attributes(path, dataset)
    plan = dataset.get_create_plist()
    if plan.get_external_count():
        raise Refusal(f"{path} has external storage, in other files")
    if plan.get_layout() == h5d.VIRTUAL:
        raise Refusal(f"{path} is a virtual dataset, of parts of other files")
    if dataset.get_type().detect_class(h5t.REFERENCE):
        raise Refusal(f"{path} holds object references")
    for number, _, _, name in (plan.get_filter(index) for index in range(plan.get_nfilters())):
        if number not in allowed:
            raise Refusal(
                f"{path} needs the filter {name.decode(errors='replace') or 'without a name'} "
                f"(number {number})"
            )


def _check_storage(path: str, dataset: h5d.DatasetID, file_size: int, memory: int) -> None:
    """Check what the dataset claims to be against what the file holds of it."""
    numbers = dataset.get_type().get_class() in (h5t.INTEGER, h5t.FLOAT, h5t.ENUM)
    if not numbers or dataset.get_space().get_simple_extent_type() != h5py.h5s.SIMPLE:
        raise Refusal(f"{path} is no array of numbers")
    n_bytes = math.prod(dataset.shape) * dataset.get_type().get_size()
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
    chunk_bytes = math.prod(chunk) * dataset.get_type().get_size()
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
    extents = dataset.shape
    places = math.prod(-(-extent // step) for extent, step in zip(extents, chunk, strict=True))
    found = {info.chunk_offset for info in chunks}
    in_place = all(
        place % step == 0 and place < extent
        for offset in found
        for place, step, extent in zip(offset, chunk, extents, strict=True)
    )
    if len(found) != places or not in_place:
        raise Refusal(f"{path} has {len(found)} chunks of the {places} that its shape asks for")
    return stored


def _decode(path: str, dataset: h5d.DatasetID) -> None:
    """Read a part of the dataset, as its reader will, and unpack every filtered chunk once.

    Each chunk is also unpacked here and checked against its size. libhdf5 fills a chunk that is too
    short with whatever is in memory.
    """
    plan = dataset.get_create_plist()
    if plan.get_layout() != h5d.CHUNKED or not plan.get_nfilters():
        h5py.Dataset(dataset)[:1]
        return
    offsets: list[tuple[int, ...]] = []
    dataset.chunk_iter(lambda info: offsets.append(info.chunk_offset))
    for offset in offsets:
        _more_time()
        _check_chunk(path, dataset, offset)
        _more_time()
        ends = zip(offset, plan.get_chunk(), strict=True)
        h5py.Dataset(dataset)[tuple(slice(first, first + step) for first, step in ends)]


def _check_chunk(path: str, dataset: h5d.DatasetID, offset: tuple[int, ...]) -> None:
    plan = dataset.get_create_plist()
    expected = math.prod(plan.get_chunk()) * dataset.get_type().get_size()
    skipped, packed = dataset.read_direct_chunk(offset)
    for index in reversed(range(plan.get_nfilters())):
        number = plan.get_filter(index)[0]
        if skipped & 1 << index or number == SHUFFLE:
            continue
        packed = packed[:-4] if number == FLETCHER else _inflated(path, packed, expected)
    if len(packed) != expected:
        raise Refusal(
            f"{path} has a chunk that unpacks to {len(packed):,} bytes, not to {expected:,}"
        )


def _inflated(path: str, packed: bytes, expected: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, expected + 5)
    except zlib.error as error:
        raise Refusal(f"{path} has a damaged chunk ({error})") from error


if __name__ == "__main__":
    main()
