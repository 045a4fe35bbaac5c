"""The params are edited while a pipeline runs."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline import place, presets, repro, watch
from pipeline.base import console
from pipeline.base.errors import InputError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    shutil.copy(ROOT / "presets/quickstart.yaml", tmp_path / "params.yaml")
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.lock").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(folder, old, new):
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace(old, new))


def test_comments_may_be_edited_and_values_not(folder):
    watching = watch.Watch()
    edit(folder, "# of everything random", "# of all that is random")
    watching.look()
    assert not watching.is_edited
    edit(folder, "seed: 0 ", "seed: 1 ")
    watching.look()
    assert watching.is_unsure
    watching.look()
    assert watching.is_edited


def test_a_moment_without_values_is_no_edit(folder):
    watching, path = watch.Watch(), folder / "params.yaml"
    content = path.read_text()
    path.write_text("")
    watching.look()
    path.write_text(content.replace("# of everything random", "# of all that is random"))
    watching.look()
    watching.look()
    assert not watching.is_edited
    assert not watching.is_unsure


@pytest.mark.parametrize("content", [None, "seed: ["])
def test_params_that_cannot_be_read_are_edited(folder, content):
    watching = watch.Watch()
    (folder / "params.yaml").unlink()
    if content:
        (folder / "params.yaml").write_text(content)
    watching.look()
    watching.look()
    assert watching.is_edited


def test_what_was_recorded_after_the_edit_is_undone(folder):
    watching, lock = watch.Watch(), folder / "dvc.lock"
    lock.write_text("stages: {a: {cmd: x}}\n")
    watching.look()
    edit(folder, "seed: 0 ", "seed: 1 ")
    lock.write_text("stages: {a: {cmd: x}, b: {cmd: y}}\n")
    watching.look()
    watching.look()
    watching.restore()
    assert lock.read_text() == "stages: {a: {cmd: x}}\n"


WAIT = "import signal, time; signal.signal(signal.SIGINT, lambda *_: exit(1)); time.sleep(60)"


def test_an_edit_stops_the_run(folder):
    watching = watch.Watch()
    editing = threading.Timer(0.5, edit, (folder, "seed: 0 ", "seed: 1 "))
    editing.start()
    started = time.perf_counter()
    with place.only_one(folder) as lock, console.stopping() as stop:
        command = [sys.executable, "-c", WAIT]
        assert repro._run_and_pass_on_signals(command, os.environ, stop, watching, lock)
    editing.join()
    assert watching.is_edited
    assert time.perf_counter() - started < 50


def test_an_edit_while_the_machine_is_measured_stops_the_run(folder, monkeypatch):
    for name in ("_write_home", "check"):
        monkeypatch.setattr(repro, name, lambda: None)
    monkeypatch.setattr(repro.place, "check", lambda _: None)
    monkeypatch.setattr(repro.lineage, "declared", lambda _: {})
    monkeypatch.setattr(repro, "_plan", lambda: edit(folder, "seed: 0 ", "seed: 1 "))
    run, command = repro._run_and_pass_on_signals, [sys.executable, "-c", WAIT]
    monkeypatch.setattr(repro, "_run_and_pass_on_signals", lambda _, *given: run(command, *given))
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"^params.yaml: edited while the pipeline ran"):
        repro.repro()
    assert time.perf_counter() - started < 50


def test_a_preset_is_refused_while_a_repro_runs(folder):
    before = (folder / "params.yaml").read_bytes()
    with place.only_one(folder):
        line = (
            rf"^another `repro` is running in this folder \(PID {os.getpid()}\); wait for it, or "
        )
        with pytest.raises(InputError, match=rf"{line}stop it with `kill -INT {os.getpid()}`$"):
            presets.use("assignment")
    assert (folder / "params.yaml").read_bytes() == before
    presets.use("assignment")


def test_a_lock_is_released_whoever_has_inherited_its_file(folder):
    with place.only_one(folder) as lock:
        heir = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    with place.only_one(folder):
        assert heir.poll() is None
    heir.kill()
    heir.wait()


def is_free(folder):
    try:
        with place.only_one(folder):
            return True
    except InputError:
        return False


KILLED = """
import os, pathlib, signal, subprocess
from pipeline import place
with place.only_one(pathlib.Path()) as lock:
    left = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()], process_group=0)
    place.note(lock, left.pid)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_repro_left_behind_is_named(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    left = int((folder / ".dvc/tmp/repro.lock").read_text().split()[-1])
    named = rf"\(PID {left}, left behind by a killed one\).* `kill -INT -- -{left}`$"
    with pytest.raises(InputError, match=named), place.only_one(folder):
        pass
    os.kill(left, signal.SIGKILL)
    give_up = time.monotonic() + 30
    while not is_free(folder):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert "Ctrl-C in its terminal" in place._running("")
