"""Folders, disks and repositories where a project cannot run as it is.

Each is reported in one line, before anything runs.
"""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc import cli
from dvc import lock as dvc_lock

from pipeline import __main__ as command
from pipeline import place
from pipeline.base.errors import InputError
from tests import tiny_project
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
)


def run(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return done.stdout


def dvc(*arguments):
    assert cli.main(list(arguments)) == 0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The project's own files, in a Git repository."""
    project = tmp_path / "project"
    (project / ".dvc").mkdir(parents=True)
    for name in (
        "params.yaml",
        "dvc.yaml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        "data/raw/README.md",
        "models/README.md",
        "pipeline/python",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, project / name)
    monkeypatch.chdir(project)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    run("git", "init", "-q")
    return project


def refused(monkeypatch, message):
    """Both `check` and `repro` say it, and nothing was begun."""
    monkeypatch.setattr(place, "ask_dvc", tiny_project.ask_dvc)
    for name in ("check", "repro"):
        monkeypatch.setattr(sys, "argv", ["pipeline", name])
        with pytest.raises(InputError, match=message):
            command.main()
    assert not Path(".dvc/tmp/repro.lock").exists()


def test_a_project_in_a_git_repository_can_run(folder):
    place.check(Path())
    (folder / ".git").rename(folder.parent / ".git")
    place.check(Path())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("params.yaml", "`cp presets/quickstart.yaml params.yaml` gives one to start from"),
        ("dvc.yaml", "change to the folder that holds them"),
    ],
)
def test_a_folder_that_is_no_project_is_named(folder, monkeypatch, name, remedy):
    (folder / name).unlink()
    refused(monkeypatch, f"project: not the project folder: no {name}; {remedy}")


def test_the_script_that_runs_the_stages_is_there_and_runs(folder, monkeypatch):
    (folder / "pipeline/python").chmod(0o644)
    refused(monkeypatch, "^pipeline/python: not executable; run `chmod [+]x pipeline/python`$")
    run("chmod", "+x", "pipeline/python")
    place.check(Path())
    (folder / "pipeline/python").unlink()
    refused(monkeypatch, "^pipeline/python: no such file.*`git checkout pipeline/python` brings it")


def test_without_git_either_command_that_is_named_helps(folder, monkeypatch):
    shutil.rmtree(".git")
    refused(
        monkeypatch,
        r"project: not in a Git repository; run `git init`, or `dvc config --local core.no_scm "
        r"true`",
    )
    assert cli.main(["status", "prepare"]) != 0, "which DVC needs"
    run("git", "init", "-q")
    place.check(Path())
    shutil.rmtree(".git")
    dvc("config", "--local", "core.no_scm", "true")
    place.check(Path())
    dvc("status", "prepare")


def test_without_dvcs_folder_the_commands_named_help(folder, monkeypatch):
    shutil.rmtree(".dvc")
    refused(
        monkeypatch, "project: no folder .dvc; copy it too, hidden as it is, or run `dvc init`$"
    )
    shutil.rmtree(".git")
    refused(monkeypatch, "or run `git init` and `dvc init`$")
    run("git", "init", "-q")
    dvc("init", "-q")
    place.check(Path())


@pytest.mark.parametrize("name", ["data", "models", "data/adversarial", ".dvc"])
def test_an_output_folder_that_is_a_link_out_is_refused(folder, monkeypatch, name):
    other = folder.parent / "other disk"
    (folder / name).mkdir(exist_ok=True)
    (folder / name).rename(other)
    (folder / name).symlink_to(other)
    refused(
        monkeypatch,
        f"{name}: a link out of the Git repository, to {other}, and DVC stores nothing through "
        "such a link; ",
    )
    if name != ".dvc":
        dvc("config", "--local", "core.no_scm", "True")
        place.check(Path())


def test_links_that_dvc_can_work_with(folder, tmp_path):
    for name, other in (
        ("data/raw", tmp_path / "raw"),
        ("models", folder / "own"),
        ("plots", tmp_path / "plots"),
    ):
        (folder / name).mkdir(exist_ok=True)
        (folder / name).rename(other)
        (folder / name).symlink_to(other)
    place.check(Path())


def test_a_cache_on_another_disk_as_the_line_says(folder):
    other = folder.parent / "other disk"
    shutil.move("data", other)
    Path("data").symlink_to(other)
    with pytest.raises(InputError) as caught:
        place.check(Path())
    commands = str(caught.value).split("`")[1]
    Path("data").unlink()
    Path("data").mkdir()
    run("bash", "-c", commands)
    assert place.ask_dvc(Path(), "cache", "dir") == str(other / "dvc-cache")
    Path("dvc.yaml").write_text(
        "stages: {prepare: {cmd: mkdir -p data/clean; echo x > data/clean/x, outs: [data/clean]}}"
    )
    dvc("repro", "-q")
    assert Path("data/clean/x").resolve().is_relative_to(other)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_told_from_a_second_repro(folder, monkeypatch, number):
    with (
        place.only_one(folder),
        pytest.raises(InputError, match="another `repro` is running in this folder"),
        place.only_one(folder),
    ):
        pass

    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    setting = "dvc config --local core.hardlink_lock true"
    reason = f"this disk has no file locks \\({os.strerror(number)}\\), which DVC needs"
    with (
        pytest.raises(InputError, match=rf"^/.*: {reason}; run `{setting}`$"),
        place.only_one(folder),
    ):
        pass
    if number != errno.ENOLCK:  # DVC itself, which waits for its lock, once is enough
        return
    monkeypatch.setattr(dvc_lock, "DEFAULT_TIMEOUT", 0.01)
    assert cli.main(["status", "prepare"]) != 0
    with (
        pytest.raises(
            InputError, match=rf"{reason}; run `{setting} && rm .dvc/tmp/lock`$"
        ) as caught,
        place.only_one(folder),
    ):
        pass
    run("bash", "-c", str(caught.value).split("`")[1])
    dvc("status", "prepare")
    with place.only_one(folder):
        pass


@pytest.mark.parametrize("where", ["data/raw", "data/raw/deep/below", "models/pretrained"])
def test_files_of_ones_own_are_tracked_and_never_committed(folder, where):
    photos, single = Path(where, "photos"), Path(where, "x.npz")
    (photos / "cats").mkdir(parents=True)
    for path in (photos / "cats/1.png", single, Path(where, "untracked.bin")):
        path.write_bytes(b"x")
    dvc("add", "-q", str(photos), str(single))
    visible = set(run("git", "status", "--short", "-uall", where).splitlines())
    tracked = {f"?? {photos}.dvc", f"?? {single}.dvc", f"?? {where}/.gitignore"}
    readme = {f"?? {path}" for path in Path(where).glob("README.md")}
    assert visible == tracked | readme
    run("git", "add", "-A")
    assert not [
        name
        for name in run("git", "ls-files").splitlines()
        if name.endswith((".png", ".npz", ".bin"))
    ]


def test_tracking_a_source_leaves_prepare_as_it_is(folder):
    Path("data/raw/x.npz").write_bytes(b"x")
    content = Path("params.yaml").read_text().replace("path: data/raw ", "path: data/raw/x.npz ")
    Path("params.yaml").write_text(content)
    Path("dvc.yaml").write_text(
        "stages: {prepare: {cmd: echo x > y, deps: ['${data.path}'], outs: [y]}}"
    )
    dvc("repro", "-q")
    dvc("add", "-q", "data/raw/x.npz")
    before = Path("dvc.lock").read_bytes()
    dvc("repro", "-q")
    assert Path("dvc.lock").read_bytes() == before
    assert place.ask_dvc(Path(), "status", "prepare") == "Data and pipelines are up to date."
