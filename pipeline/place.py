"""Check whether a project can run in its folder.

The checks cover its files, its Git repository, its folders and the locks of its disk. DVC notices
such problems late, after hours of work, or reports another reason than the true one.
"""

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.audit import lineage
from pipeline.base import params
from pipeline.base.errors import InputError

DVC = Path(".dvc")
INTERPRETER = Path("pipeline", "python")  # the script that dvc.yaml runs the stages with


def check(root: Path) -> None:
    """Raise InputError unless `dvc repro` can run in a project folder and store what it makes."""
    expect_project(root)
    _check_interpreter(root / INTERPRETER)
    git = lineage.nearest(root.absolute(), ".git")
    if not (root / DVC).is_dir():
        begin = "`dvc init`" if git else "`git init` and `dvc init`"
        raise InputError(
            f"{root.absolute()}: no folder {DVC}; copy it too, hidden as it is, or run {begin}"
        )
    if git is None and not _is_set(root, "core.no_scm"):
        raise InputError(
            f"{root.absolute()}: not in a Git repository; run `git init`, "
            "or `dvc config --local core.no_scm true`"
        )
    for folder in [DVC, *lineage.output_folders(root)]:
        _check_link(root, folder, git)


def expect_project(root: Path) -> None:
    """Raise InputError unless a folder is that of a project."""
    missing = [name for name in (lineage.DECLARED, str(params.FILE)) if not (root / name).is_file()]
    if missing:
        remedy = (
            params.remedy(params.FILE)
            if missing == [str(params.FILE)]
            else "change to the folder that holds them"
        )
        raise InputError(
            f"{root.absolute()}: not the project folder: no {' and no '.join(missing)}; {remedy}"
        )


def project_above(folder: Path) -> Path:
    """Return the nearest project folder at or above a folder, or that folder if there is none."""
    above = (each for each in (folder, *folder.absolute().parents) if is_project(each))
    return next(above, folder)


def is_project(folder: Path) -> bool:
    return (folder / lineage.DECLARED).is_file() and (folder / params.FILE).is_file()


def ask_dvc(root: Path, *arguments: str) -> str:
    """Return what a command of DVC prints in a project folder.

    The result is empty where the command fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode else done.stdout.strip()


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[IO[str]]:
    """Refuse to run beside another `repro` in the same folder.

    Yields the file of the lock, which holds the PID of this process. The lock is released at the
    end of the block, whoever has inherited the file. If this process is killed, it is released when
    all those have ended, too. On a disk without locks, only DVC's own lock protects the folder.
    Raises InputError where another `repro` is running, and where DVC's own lock does not work
    either.
    """
    lock = root / DVC / "tmp" / "repro.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(_running(file.read())) from None
        except OSError as error:
            _expect_other_locks(root, error)
        file.truncate(0)
        note(file, os.getpid())
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def note(lock: IO[str], pid: int) -> None:
    """Add the PID of a process to the file of a lock."""
    lock.write(f"{pid}\n")
    lock.flush()


def _check_interpreter(script: Path) -> None:
    if not script.is_file():
        raise InputError(
            f"{script}: no such file, and the stages run with it; "
            f"`git checkout {INTERPRETER}` brings it back, or copy it again"
        )
    if not os.access(script, os.X_OK):
        raise InputError(f"{script}: not executable; run `chmod +x {shlex.quote(str(script))}`")


def _running(pids: str) -> str:
    """Return what holds the lock: a `repro`, or the DVC that a killed one left behind."""
    alive = [int(pid) for pid in pids.split() if Path("/proc", pid).exists()]
    named, stop = "", "Ctrl-C in its terminal"
    if alive:
        is_left = alive[0] != int(pids.split()[0])
        named = f" (PID {alive[0]}{', left behind by a killed one' if is_left else ''})"
        # DVC leads a group of processes, which ends the stage with it.
        stop = f"`kill -INT {f'-- -{alive[0]}' if is_left else alive[0]}`"
    return f"another `repro` is running in this folder{named}; wait for it, or stop it with {stop}"


def _expect_other_locks(root: Path, error: OSError) -> None:
    """Raise InputError unless DVC can lock by hard links.

    DVC must be set to do so, and no lock file of the other kind may be left that prevents it.
    """
    left = DVC / "tmp" / "lock"
    commands = (
        []
        if _is_set(root, "core.hardlink_lock")
        else ["dvc config --local core.hardlink_lock true"]
    )
    if (root / left).exists() and (root / left).stat().st_nlink == 1:
        commands.append(f"rm {left}")
    if commands:
        disk = next(folder for folder in (root / left).resolve().parents if os.path.ismount(folder))
        raise InputError(
            f"{disk}: this disk has no file locks ({error.strerror}), which DVC needs; "
            f"run `{' && '.join(commands)}`"
        ) from error


def _is_set(root: Path, option: str) -> bool:
    """Return whether an option of DVC is true, in any case, as DVC reads it."""
    return ask_dvc(root, "config", option).lower() == "true"


def _check_link(root: Path, folder: Path, git: Path | None) -> None:
    """Raise InputError where a folder is a link out of the Git repository.

    Such links are accepted where DVC is set to use no repository.
    """
    path = root / folder
    if (
        git is None
        or not path.is_symlink()
        or path.resolve().is_relative_to(git.resolve())
        or _is_set(root, "core.no_scm")
    ):
        return
    keep = (
        ""
        if folder == DVC
        else f"keep {folder} a folder of the project and put DVC's cache on that disk: "
    )
    cache = shlex.quote(str(path.resolve() / "dvc-cache"))
    raise InputError(
        f"{folder}: a link out of the Git repository, to {path.readlink()}, "
        f"and DVC stores nothing through such a link; {keep}"
        f"`dvc config --local cache.dir {cache} && dvc config --local cache.type symlink`"
    )
