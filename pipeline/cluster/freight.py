"""Send files to the nodes of a cluster, through its object store.

Every file is stored once, in pieces, and travels to a node once however many workers it has.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.errors import InputError

PIECE = 2**26  # bytes


@dataclass(frozen=True)
class File:
    """A file or a folder in the object store: its path in the project, and its pieces.

    A folder has None.
    """

    path: str
    pieces: list[Any] | None


def inside(path: Path) -> Path:
    """Return a path as it is found from the project's folder, which is the current one.

    Raises InputError for a path outside it, where other nodes cannot have it.
    """
    try:
        return path.absolute().relative_to(Path.cwd())
    except ValueError as error:
        raise InputError(
            f"{path}: outside the project's folder (expected a path in {Path.cwd()}), and only its "
            "files are sent to the nodes of a cluster; move it there, or train without a cluster"
        ) from error


def pieces(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a file, a piece at a time, also if it is replaced meanwhile."""
    with path.open("rb") as file:
        while len(piece := np.fromfile(file, np.uint8, PIECE)):
            yield piece


def packed(paths: Iterable[Path]) -> list[File]:
    """Put files and folders into the object store.

    Paths that do not exist are left out, and so is what is hidden in a folder: unfinished work.
    """
    found = []
    for path in paths:
        inner = (each for each in sorted(path.rglob("*")) if not _is_hidden(each, path))
        for each in (path, *inner) if path.is_dir() else (path,):
            if each.is_dir():
                found.append(File(str(inside(each)), None))
            elif each.is_file():
                found.append(_packed(each, inside(each)))
    return found


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(name.startswith(".") for name in path.relative_to(folder).parts)


def weights(path: Path | None) -> list[File]:
    """Put the file of a network's first weights into the object store, if there is one.

    One in torch's hub folder is sent to that of the workers, which is in their own folders.
    """
    if path is None:
        return []
    hub = Path(torch.hub.get_dir())
    return [
        _packed(path, Path("hub") / path.relative_to(hub) if hub in path.parents else inside(path))
    ]


def _packed(path: Path, place: Path) -> File:
    import ray

    return File(str(place), [ray.put(piece) for piece in pieces(path)])


def unpack(sent: Iterable[File], folder: Path) -> None:
    """Write what `packed` has sent into a folder, a piece at a time."""
    import ray

    for each in sent:
        path = folder / each.path
        if each.pieces is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in each.pieces:
                file.write(ray.get(piece).data)


def linked(folder: Path, own: Path) -> Path:
    """Return a folder of one's own with the same files, which take no more space on the disk."""
    shutil.rmtree(own, ignore_errors=True)
    return Path(shutil.copytree(folder, own, copy_function=os.link))
