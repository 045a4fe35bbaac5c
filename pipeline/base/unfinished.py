"""Unfinished work, kept so that a run resumes where it stopped: hidden siblings of what they are to become.

DVC deletes a stage's outputs before it runs the stage, but not what it does not know. A sibling's name holds a digest of everything that
decides the content, the code included, so that work under other params, data or code never resumes from it. When the output is
written, the unfinished work is deleted.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

FOLDERS = (Path("data"), Path("models"))


def is_cached(out: str) -> bool:
    """Whether an output is an image set or a model, which DVC's cache keeps; others are kept in Git."""
    return Path(out).parts[:1] in [folder.parts for folder in FOLDERS]


def path_for(out: Path, decides: Mapping[str, object]) -> Path:
    """Where the unfinished work on `out` is kept: `.NAME.DIGEST.part` beside it, a file or a folder."""
    text = json.dumps({**decides, "code": code_sha256()}, sort_keys=True)
    return out.with_name(f".{out.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.part")


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
    """Return all unfinished work in some folders."""
    return sorted(path for folder in folders for path in folder.rglob(".*.part"))


def clear(paths: Iterable[Path]) -> None:
    """Delete files and folders, those that are there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
