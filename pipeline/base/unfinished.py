"""Keeps unfinished work, so that an interrupted run resumes where it stopped.

Unfinished work is kept in hidden siblings of the output that it will become. DVC deletes a stage's
outputs before it runs the stage, but not files that it does not know. A sibling's name holds a
digest of everything that decides the content, including the code. A run with other params, data or
code therefore never resumes from it. When the output is written, the unfinished work is deleted.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

FOLDERS = (Path("data"), Path("models"))
# `path_for`, files and sets that are being replaced, and the folders of unpacked archives.
OWN = re.compile(r"\..+\.([0-9a-f]{16}|new|replaced)\.part")
UNPACKED = re.compile(r"\..+\.[0-9a-z_]{8}\.part")


def is_cached(out: str) -> bool:
    """Return whether an output is an image set or a model.

    DVC's cache keeps these. Other outputs are kept in Git.
    """
    return Path(out).parts[:1] in [folder.parts for folder in FOLDERS]


def path_for(out: Path, decides: Mapping[str, object]) -> Path:
    """Return where the unfinished work on `out` is kept.

    The path is `.NAME.DIGEST.part` beside `out`, and may become a file or a folder.
    """
    text = json.dumps({**decides, "code": code_sha256()}, sort_keys=True)
    return out.with_name(f".{out.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.part")


@cache
def code_sha256() -> str:
    """Return a SHA-256 over the project's own modules."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def left_behind(folders: Iterable[Path] = FOLDERS) -> list[Path]:
    """Return all unfinished work in some folders. Other files of such names are the user's."""
    return sorted(
        path
        for folder in folders
        for path in folder.rglob(".*.part")
        if OWN.fullmatch(path.name) or (UNPACKED.fullmatch(path.name) and path.is_dir())
    )


def clear(paths: Iterable[Path]) -> None:
    """Delete files and folders, and ignore those that do not exist."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
