"""Follows the links of an HDF5 file, inside the process of the HDF5 inspector."""

from collections import deque
from typing import Any

import h5py
from h5py import h5d, h5g, h5l, h5o, h5t

from pipeline.base.untrusted.hdf5_bounds import Refusal, more_time, shown

MAX_SOFT = 16  # soft links on the way to one dataset, as libhdf5 allows
MAX_OBJECTS = 10_000  # opened to list the datasets of a file
MAX_LISTED = 1_000
MAX_DEPTH = 32
KINDS = {
    h5t.STRING: "text",
    h5t.COMPOUND: "compound",
    h5t.REFERENCE: "references",
    h5t.VLEN: "lists of different lengths",
    h5t.ARRAY: "arrays",
    h5t.OPAQUE: "opaque",
    h5t.BITFIELD: "bits",
    h5t.TIME: "times",
}

Contents = dict[str, tuple[tuple[int, ...], str]]


def find(file: h5py.File, name: str) -> h5d.DatasetID | None:
    """Return a dataset, after checking every link on the way to it; None where there is none.

    Hard links and the soft links inside the file are followed. Raises Refusal for all others.
    """
    root = h5o.open(file.id, b"/")
    here, path, soft = root, "", list[str]()
    parts = deque(name.encode(errors="surrogateescape").split(b"/"))
    while parts:
        part = parts.popleft()
        if part in (b"", b"."):
            continue
        if not isinstance(here, h5g.GroupID) or not here.links.exists(part):
            if soft:
                raise Refusal(f"{soft[-1]} is a soft link out of the file, or to nothing in it")
            return None
        path = f"{path}/{shown(part)}"
        target = _soft_target(here, part, path)
        if target is None:
            here = h5o.open(here, part)
            continue
        soft.append(path)
        if len(soft) > MAX_SOFT:
            raise Refusal(f"{soft[0]} leads through more than {MAX_SOFT} soft links")
        here = root if target.startswith(b"/") else here
        path = "" if target.startswith(b"/") else path.rpartition("/")[0]
        parts.extendleft(reversed(target.split(b"/")))
    return here if isinstance(here, h5d.DatasetID) else None


def _soft_target(group: h5g.GroupID, name: bytes, path: str) -> bytes | None:
    """Return what a soft link says, or None for a hard link."""
    kind = group.links.get_info(name).type
    if kind == h5l.TYPE_HARD:
        return None
    if kind == h5l.TYPE_SOFT:
        return bytes(group.links.get_val(name))
    if kind == h5l.TYPE_EXTERNAL:
        raise Refusal(f"{path} is an external link, into another file")
    raise Refusal(f"{path} is a user-defined link")


def contents(file: h5py.File) -> Contents:
    """Return the shape and kind of the datasets that hard links reach, by name.

    Names are printable and at most MAX_SHOWN letters for each group. At most MAX_LISTED datasets
    are listed, of at most MAX_OBJECTS objects that are looked at.
    """
    found: Contents = {}
    groups = deque([("", h5o.open(file.id, b"/"), 0)])
    seen = {h5o.get_info(file.id).addr}
    while groups:
        path, group, depth = groups.popleft()
        for name in names(group):
            more_time()
            child = _opened(group, name)
            address = child and h5o.get_info(child).addr
            if child is None or address in seen:
                continue
            seen.add(address)
            if isinstance(child, h5d.DatasetID):
                found[path + shown(name)] = (child.shape or (), kind_of(child))
            elif isinstance(child, h5g.GroupID) and depth < MAX_DEPTH:
                groups.append((f"{path}{shown(name)}/", child, depth + 1))
            if len(found) >= MAX_LISTED or len(seen) >= MAX_OBJECTS:
                return found
    return found


def names(group: h5g.GroupID) -> list[bytes]:
    """Return the names of the links of a group, at most MAX_OBJECTS."""
    found: list[bytes] = []

    def take(name: bytes) -> bool | None:
        found.append(name)
        return len(found) >= MAX_OBJECTS or None

    group.links.iterate(take)
    return found


def _opened(group: h5g.GroupID, name: bytes) -> Any:
    """Return the object that a hard link leads to; None for other links and damaged objects."""
    try:
        hard = group.links.get_info(name).type == h5l.TYPE_HARD
        return h5o.open(group, name) if hard else None
    except (KeyError, RuntimeError, OSError, ValueError):
        return None


def kind_of(dataset: h5d.DatasetID) -> str:
    """Return a word for what a dataset holds, such as uint8, bool or text."""
    if dataset.shape is None:
        return "empty"
    kind = dataset.get_type()
    if (known := KINDS.get(kind.get_class())) is not None:
        return known
    try:
        return str(kind.dtype.name)
    except (TypeError, ValueError, RuntimeError):
        return "numbers of an unusual kind"
