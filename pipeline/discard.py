"""Delete a damaged result and its damaged objects in DVC's cache.

Afterwards `dvc repro` makes the result again. A result may be a hard link into the cache. Then
both are damaged at once, and DVC would restore the damaged one. DVC trusts cached objects that are
read-only, and files whose size and time have not changed. This module computes every MD5.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline import place
from pipeline.audit import lineage
from pipeline.base import console, unfinished
from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits

_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")


def discard(path: Path) -> str:
    """Delete a damaged image set or model, and its damaged objects in DVC's cache.

    `path` is the result itself or a part of it. A result is damaged where its MD5 is not the one
    in `dvc.lock`. A cached object is damaged where its MD5 is not the one in its name. Nothing
    else is deleted, and nothing is deleted before all of it was read. Raises InputError for a
    path that is no such result, and where nothing is damaged.
    """
    root, out, stages = _recorded(path)
    with place.only_one(root):
        result = root / out
        objects = [
            found for found in _objects(_cache(root), set(stages.values())) if _is_damaged(found)
        ]
        is_whole = os.path.lexists(result) and _md5(result) in stages.values()
        deleted = [result] if os.path.lexists(result) and not is_whole else []
        if not deleted and not objects and is_whole:
            again = (
                f"`dvc repro --force --single-item {next(iter(stages))}` makes it again all the "
                "same"
            )
            raise InputError(f"{out}: not damaged: it is as {lineage.RECORDED} records it; {again}")
        if not deleted and not objects:
            raise InputError(
                f"{out}: not there, and nothing of it in DVC's cache is damaged; "
                "`dvc repro` brings it back"
            )
        for each in (*objects, *deleted):
            console.say(str(each))
        unfinished.clear([*objects, *deleted])
    kept = "; the result itself is whole and was kept" if is_whole else ""
    return (
        f"{out}: deleted what was damaged: {len(deleted) + len(objects)} of the above{kept}; "
        "`dvc repro` makes it again"
    )


def _recorded(path: Path) -> tuple[Path, str, dict[str, str]]:
    """Return the project folder, the result, and the MD5 that each stage records of the result.

    The result is `path` itself or contains it.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - not resolved: results may be links into DVC's cache
    root = lineage.nearest(absolute, lineage.RECORDED)
    if root is None:
        raise InputError(
            f"{path}: not within a project folder: no {lineage.RECORDED} there or above"
        )
    wanted, recorded = absolute.relative_to(root), lineage.recorded(root)
    outs = {out for stage in recorded.values() for out in stage.outs if unfinished.is_cached(out)}
    found = [out for out in outs if wanted.is_relative_to(out)]
    if not found or ".." in Path(found[0]).parts:
        raise InputError(
            f"{path}: no image set or model that {lineage.RECORDED} records; "
            f"there are {', '.join(sorted(outs))}"
        )
    return (
        root,
        found[0],
        {name: stage.outs[found[0]] for name, stage in recorded.items() if found[0] in stage.outs},
    )


def _md5(result: Path) -> str:
    """Return the MD5 of a file or folder.

    Raises InputError for links whose disk is not there, and OSError for what cannot be read.
    """
    for file in lineage.files(result) if result.is_dir() else [result]:
        limits.regular(file, "restore it first")
    return lineage.md5(result)


def _cache(root: Path) -> Path:
    cache = place.ask_dvc(root, "cache", "dir")
    if not cache:
        raise InputError(f"{root}: DVC does not tell where its cache is; `dvc cache dir` says why")
    return root / cache / "files" / "md5"


def _objects(cache: Path, md5s: set[str]) -> Iterator[Path]:
    """Yield the cached objects of a result.

    Where the list of a folder's files is lost, yield all objects of the cache.
    """
    for md5 in md5s:
        own = _place(cache, md5)
        if own.is_file():
            yield own
        if md5.endswith(".dir") and (not own.is_file() or _is_damaged(own)):
            yield from (
                path for path in cache.glob("??/*") if _OBJECT.fullmatch(path.name) and path != own
            )
        elif md5.endswith(".dir"):
            files = {_place(cache, entry["md5"]) for entry in json.loads(own.read_bytes())}
            yield from sorted(path for path in files if path.is_file())


def _place(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _is_damaged(cached: Path) -> bool:
    """Return whether the content of a cached object has another MD5 than its name says."""
    return lineage.md5(cached) != f"{cached.parent.name}{cached.name.removesuffix('.dir')}"
