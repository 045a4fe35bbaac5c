"""HDF5 files that cannot be opened, read or examined although they are whole.

Each is told apart from a damaged file.
"""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.base import store
from pipeline.base.errors import InputError
from pipeline.base.store import shards
from pipeline.base.untrusted import hdf5, hdf5_inspector
from pipeline.prepare import sources
from tests.conftest import ROOT, make_block, write_set

# Calls of the system that fail for HDF5 files with the number in FAIL, from the offset FROM on.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
static int fails(const char *call) {
  if (!getenv("CALL") || strcmp(getenv("CALL"), call)) return 0;
  errno = atoi(getenv("FAIL"));
  return 1;
}
static int is_hdf5(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return strstr(path, ".h5") || strstr(path, ".part/");
}
int flock(int fd, int operation) { return fails("flock") ? -1 : 0; }
int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int mode = va_arg(rest, int);
  va_end(rest);
  if (strstr(path, ".h5") && fails("open")) return -1;
  int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
  return real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  int mode = va_arg(rest, int);
  va_end(rest);
  return open(path, flags, mode);
}
ssize_t pread(int fd, void *into, size_t n, off_t from) {
  if (is_hdf5(fd) && getenv("FROM") && from >= atoi(getenv("FROM")) && fails("pread")) return -1;
  ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
  return real(fd, into, n, from);
}
ssize_t pread64(int fd, void *into, size_t n, off_t from) { return pread(fd, into, n, from); }
ssize_t pwrite(int fd, const void *from, size_t n, off_t to) {
  if (is_hdf5(fd) && fails("pwrite")) return -1;
  ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
  return real(fd, from, n, to);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off_t to) { return pwrite(fd, from, n, to); }
"""
READ = "store.ImageSet(Path('set')).load('train'); print('read')"
WRITE = """
with store.Writer(Path('new'), store.ImageSet(Path('set')).attributes, bounds=[(0, 16)]) as writer:
    writer.write(0, store.ImageSet(Path('set')).load('train').select(slice(16)))
print('written')
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if not shutil.which("cc"):
        pytest.skip("no C compiler to make calls of the system fail with")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(
        ["cc", "-w", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"],
        check=True,
    )
    return folder / "shim.so"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set", make_block(200, size=8))
    return tmp_path


def outcome(program, **environment):
    """Return the last line, which may be an error, of a command in a process of its own."""
    text = f"""
from pathlib import Path
from pipeline.base import console, store
def run():
    exec({program!r})
    return 'done'
console.run(run)
"""
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return (done.stderr or done.stdout.splitlines()[0]).strip()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_sets_are_written_and_read_on_a_disk_without_locks(folder, shim, number):
    failing = {"LD_PRELOAD": str(shim), "CALL": "flock", "FAIL": str(number)}
    assert outcome(READ, **failing) == "read"
    assert outcome(WRITE, **failing) == "written"


@pytest.mark.parametrize(
    ("call", "number", "reason", "offset"),
    [
        ("open", errno.EACCES, "Permission denied", 0),
        ("open", errno.EMFILE, "Too many open files", 0),
        ("pread", errno.EIO, "Input/output error", 0),
        ("pread", errno.EIO, "Input/output error", 1),
        ("pread", errno.ESTALE, "Stale file handle", 3000),
    ],
)
def test_a_reason_of_the_system_is_given_and_no_damage_claimed(
    folder, shim, call, number, reason, offset
):
    found = outcome(READ, LD_PRELOAD=str(shim), CALL=call, FAIL=str(number), FROM=str(offset))
    assert found == f"error: set/00000.h5: cannot be read: {reason}"


def test_a_write_that_fails_names_the_file_and_the_reason(folder, shim):
    found = outcome(WRITE, LD_PRELOAD=str(shim), CALL="pwrite", FAIL=str(errno.EIO))
    assert found.startswith("error: .new.")
    assert found.endswith("00000.part: Input/output error")


@pytest.fixture
def opened(folder, settings):
    with h5py.File("own.h5", "w", libver="latest") as file:
        file["images"], file["labels"] = np.full((6, 3, 8, 8), 200, "u1"), np.arange(6) % 2
    data = settings.data.model_copy(
        update={
            "source": "hdf5",
            "path": "own.h5",
            "image_size": 8,
        }
    )
    return lambda: sources.open_source(data).read(np.arange(3))


@pytest.mark.parametrize("path", ["own.h5", "set/00000.h5"])
def test_a_file_that_another_program_writes_is_locked(opened, path):
    read = opened if path == "own.h5" else lambda: store.ImageSet(Path("set")).load("train")
    with Path(path).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        read()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(
            InputError,
            match=(
                f"^{path}: locked: another program has it open for writing; close it there and "
                "run this again$"
            ),
        ):
            read()
    read()


@pytest.mark.parametrize("swmr", [False, True])
def test_a_file_whose_writer_died_is_marked(opened, swmr):
    text = (
        "import h5py, os; file = h5py.File('own.h5', 'r+', libver='latest'); file.swmr_mode = "
        f"{swmr}; file.flush(); os._exit(0)"
    )
    subprocess.run(
        [sys.executable, "-c", text if swmr else text.replace("file.swmr_mode = False; ", "")],
        check=True,
    )
    with pytest.raises(
        InputError,
        match=r"^own.h5: marked as open for writing: .* clear the mark with `h5clear -s FILE`",
    ) as caught:
        opened()
    assert "discard" not in str(caught.value)


def test_memory_that_does_not_suffice_is_no_damage(folder, monkeypatch):
    images = store.ImageSet(Path("set"))

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(shards, "_present", exhausted)
    with pytest.raises(
        InputError,
        match=r"00000.h5: not enough memory to read it; free some memory and run this again$",
    ):
        images.load("train")


def test_an_examination_may_run_under_a_limit_of_the_users(opened):
    request = {"path": "own.h5", "memory": 10**9, "datasets": ["images"]}
    program = f"""
import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
from pipeline.base.untrusted import hdf5; print(hdf5._answer({request}))
"""
    assert outcome(program) == "None"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            r"was ended \(status -9\), perhaps for want of memory; run this again$",
        ),
        (
            "sys",
            r"failed \(status 1: NameError: name .sys. is not defined\); fix that and run",
        ),
    ],
)
def test_an_examination_that_is_ended_shows_no_damage(
    opened, folder, monkeypatch, program, message
):
    walk = folder / "walk.py"
    walk.write_text(program)
    monkeypatch.setattr(hdf5_inspector, "__file__", str(walk))
    with pytest.raises(InputError, match=message):
        opened()


def test_an_examination_that_cannot_start_shows_no_damage(folder, monkeypatch):
    def too_many(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(subprocess, "Popen", too_many)
    with pytest.raises(
        InputError, match=r"no process can be started \(Too many open files\); raise that limit$"
    ):
        hdf5._answer({})


def test_an_examination_finds_the_modules_of_its_command(opened, folder, monkeypatch):
    (folder / "h5py.py").write_text("raise ImportError('of the user')")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(InputError, match=r"failed \(status 1: ImportError: of the user\); fix"):
        opened()


def test_an_examination_is_not_in_the_group_of_a_ctrl_c(folder, monkeypatch):
    walk = folder / "walk.py"
    walk.write_text("import os; print(f'{{\"contents\": {os.getpgid(0)}}}')")
    monkeypatch.setattr(hdf5_inspector, "__file__", str(walk))
    assert hdf5._answer({})["contents"] != os.getpgid(0)


def test_an_interrupted_examination_ends_and_leaves_no_answer(opened, monkeypatch):
    started = []

    def interrupted(process, *_, **__):
        started.append(process)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hdf5.contents(Path("set/00000.h5"), "save it again")
    assert started[0].returncode == -signal.SIGKILL
    assert hdf5.contents(Path("own.h5"), "save it again").keys() == {"images", "labels"}


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(folder, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):
        store.ImageSet(Path("set"))


def test_a_shard_behind_a_link_to_a_disk_that_is_away(folder):
    shard = folder / "set/00000.h5"
    shard.unlink()
    shard.symlink_to("/away/00000")
    with pytest.raises(
        InputError,
        match=r"00000.h5: a link to /away/00000, where there is no file; is its disk mounted\?$",
    ):
        store.ImageSet(folder / "set")


def test_damage_is_answered_by_the_command_that_deletes_it(folder):
    shard = folder / "set/00000.h5"
    for content in (b"", b"hello", shard.read_bytes()[:900]):
        shard.write_bytes(content)
        remedy = f"run `python -m pipeline discard {folder}/set`, then `dvc repro`"
        with pytest.raises(
            InputError, match=rf"00000.h5: its content does not match its SHA-256, .*; {remedy}$"
        ):
            store.ImageSet(folder / "set").load("train")
