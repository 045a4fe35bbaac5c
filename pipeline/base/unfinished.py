"""Unfinished work, kept so that a run goes on where it stopped: hidden siblings of what they are to become.

DVC deletes a stage's outputs before it runs the stage, but not what it does not know. A sibling's name holds a digest of everything that
decides the content, the code included, so that work under other params, data or code never goes on from it.

Work that is finished stays too until DVC has recorded it: if DVC is killed between a stage's end and the entry in `dvc.lock`, it will run
the stage again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

FOLDERS = (Path("data"), Path("models"))
RECORD = Path("dvc.lock")
FINISHED = ".finished.part"


def is_cached(out: str) -> bool:
    """Whether an output is an image set or a model, which DVC's cache keeps; others are kept in Git."""
    return Path(out).parts[:1] in [folder.parts for folder in FOLDERS]


def path_for(out: Path, decides: Mapping[str, object]) -> Path:
    """Where the unfinished work on `out` is kept: `.NAME.DIGEST.part` beside it, a file or a folder."""
    text = json.dumps({**decides, "code": code_sha256()}, sort_keys=True)
    return out.with_name(f".{out.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.part")


def resume(part: Path) -> None:
    """Take up again what is finished and was never recorded, as the unfinished work `part`; what was recorded beside it is deleted."""
    forget_recorded([part.parent])
    kept = finished(part)
    if kept.exists() and not part.exists():
        kept.replace(part)


def finished(part: Path) -> Path:
    """Where finished work is kept until it is recorded."""
    return part.with_name(part.name.removesuffix(".part") + FINISHED)


def keep_links(part: Path) -> None:
    """Keep a finished folder by hard links, which take no space. Where the disk knows none, it is not kept."""
    clear([finished(part)])
    with contextlib.suppress(OSError):
        shutil.copytree(part, finished(part), copy_function=os.link)


def forget_recorded(folders: Iterable[Path] = FOLDERS) -> None:
    """Delete the finished work that DVC has recorded since: it writes `dvc.lock` when a stage has ended, before it begins another one."""
    recorded = RECORD.stat().st_mtime_ns if RECORD.exists() else 0
    clear(path for path in left_behind(folders) if path.name.endswith(FINISHED) and path.stat().st_mtime_ns <= recorded)


@cache
def code_sha256() -> str:
    """A SHA-256 over the project's own modules."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def left_behind(folders: Iterable[Path] = FOLDERS) -> list[Path]:
    """All unfinished work in some folders, and the finished work that is still kept there."""
    return sorted(path for folder in folders for path in folder.rglob(".*.part"))


def clear(paths: Iterable[Path]) -> None:
    """Delete files and folders, those that are there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
