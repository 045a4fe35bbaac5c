"""Watch over `params.yaml` while DVC runs, so that no result is recorded with other params.

DVC reads the file again when a stage ends. It would record the edited values for what the stage
made with the earlier ones.
"""

from pathlib import Path

from pipeline.audit import lineage
from pipeline.base import files, params
from pipeline.base.errors import InputError

LOCK = Path(lineage.RECORDED)


class Watch:
    """Notes whether the values in `params.yaml` change, and keeps `dvc.lock` from before that.

    `look` must be called again and again. Comments may be edited. Other values count once two looks
    find them: an editor that saves may leave no values for a moment. Between the two, `is_unsure`.
    """

    def __init__(self) -> None:
        self._values, self._seen = params.read(params.FILE), _stamp(params.FILE)
        self._lock, self._lock_seen = _content(LOCK), _stamp(LOCK)
        self.is_edited = self.is_unsure = False

    def look(self) -> None:
        """Look at both files once."""
        stamp = _stamp(params.FILE)
        if not self.is_edited and (self.is_unsure or stamp != self._seen):
            is_edited = self._has_other_values()
            self.is_edited = is_edited and self.is_unsure and stamp == self._seen
            self.is_unsure = is_edited and not self.is_edited
            self._seen = stamp
        if not self.is_edited and not self.is_unsure and _stamp(LOCK) != self._lock_seen:
            self._lock, self._lock_seen = _content(LOCK), _stamp(LOCK)

    def _has_other_values(self) -> bool:
        try:
            return params.read(params.FILE) != self._values
        except InputError:
            return True

    def restore(self) -> None:
        """Write `dvc.lock` as it was before the edit."""
        if self._lock is not None and self._lock != _content(LOCK):
            files.write_bytes(LOCK, self._lock)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced, or None without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
