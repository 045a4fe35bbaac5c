"""The real commands, each in its own process, in a clean copy of the repository at a tiny size."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from tests import tiny_project
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A clean copy of the repository with tiny params, run once."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    made = Project(folder)
    made.change(tiny_project.tiny)
    made.change(smallest)
    done = made.run("pipeline", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is empty" not in done.stderr
    made.first_output = done.stdout
    return made


def smallest(params):
    """The stages that are left stand for the other sets and models, which test_repro.py makes."""
    del params["finetuned"]["refreshed"], params["attacks"]["fgsm"]
    params.update(mix={"clean": 0.5, "pgd": 0.5})
    params["evaluate"]["models"].remove("refreshed")
    params["evaluate"].update(n_eval=4, ensemble=None, grid=None)
    params["evaluate"]["curves"].update(eps=[1], steps=[1, 3])


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first_output = ""

    def change(self, edit) -> None:
        tiny_project.change_params(self.folder, edit)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "PIPELINE_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        # The many processes of the copy share their bytecode, as a user's do.
        return {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": ""}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Begin a command in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def wait_for_the_lock(self, running: subprocess.Popen[str]) -> None:
        """Wait until a `repro` has locked the project."""
        lock = self.folder / ".dvc/tmp/repro.lock"
        while not lock.exists() or str(running.pid) not in lock.read_text().split():
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)

    def wait_for_a_saved_epoch(self, running: subprocess.Popen[str]) -> None:
        """Wait until a training has saved its progress once more."""
        before = self.saved()
        while self.saved() == before:
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)

    def saved(self) -> list[int]:
        """The times at which unfinished work was saved."""
        return [path.stat().st_mtime_ns for path in (self.folder / "models").glob(SAVED)]

    def contents(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for name in OUTPUTS
            for path in (self.folder / name).rglob("*")
            if path.is_file()
        }


SAVED = f".clean.safetensors.{'[0-9a-f]' * 16}.part"  # what is left of an interrupted training
OUTPUTS = ("data", "models", "metrics", "plots")
ALL = {
    "prepare",
    "train_clean",
    "generate@clean-pgd",
    "finetune@robust",
    "evaluate@clean",
    "evaluate@robust",
    "export",
    "audit",
    "report",
}


def test_a_fresh_copy_gives_exactly_the_outputs_and_the_table(project):
    lines = project.first_output.splitlines()
    assert {line.split("'")[1] for line in lines if line.startswith("Running stage")} == ALL
    made = {
        str(path.relative_to(project.folder))
        for name in OUTPUTS
        for path in (project.folder / name).rglob("*")
        if path.is_file() and path.name not in ("README.md", ".gitkeep")
    }
    shards = {"00000.h5", "00001.h5", "00002.h5", "manifest.json"}
    sets = {
        "data/clean",
        "data/adversarial/clean/pgd",
    }
    names = ("clean", "robust")
    assert made == {
        *(f"{folder}/{shard}" for folder in sets for shard in shards),
        *(
            f"models/{name}"
            for name in (
                *(f"{name}.safetensors" for name in names),
                "submission.pt",
                "submission.classes.csv",
                "submission.md",
            )
        ),
        *(f"metrics/{name}.json" for name in names),
        *(
            f"plots/{name}/{plot}.csv"
            for name in names
            for plot in ("history", "confusion", "curves", "grid")
        ),
        *(f"plots/{name}/{plot}.png" for name in names for plot in ("curves", "grid")),
    }
    assert "Running stage 'prepare' (1 of 9):" in lines
    assert "(9 of 9):" in project.first_output
    assert "data set: digits, 120 images of 16x16 in 10 classes, 30 of them judged" in (
        project.first_output
    )
    assert "transfer: accuracy on stored adversarial images" in project.first_output
    assert "report/index.html: all of this as a page" in lines[-1]
    assert json.loads((project.folder / "report/audit.json").read_text())["failed"] == 0
    assert b"<h1>Hardening report</h1>" in (project.folder / "report/index.html").read_bytes()
    with h5py.File(project.folder / "data/adversarial/clean/pgd/00002.h5") as file:
        assert file["images"].shape == (20, 3, 16, 16)
        assert file.attrs["rows"] == 120
    metrics = json.loads((project.folder / "metrics/robust.json").read_text())
    assert metrics["transfer"]["mixed"]["n"] == 60
    assert metrics["diagnostics"]["verdict"] in project.first_output
    assert "checks of what pgd measured:" in project.first_output
    assert len((project.folder / "plots/clean/history.csv").read_text().splitlines()) == 3
    assert (
        "R"
        not in subprocess.run(
            ["git", "status", "--short"],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_a_stage_that_fails_leaves_earlier_results_as_they_were(project):
    """DVC has deleted the stage's earlier outputs by then."""
    before, params = project.contents(), (project.folder / "params.yaml").read_bytes()
    project.change(lambda params: params["data"].update(n_val=115))
    done = project.run("pipeline", "repro")
    (project.folder / "params.yaml").write_bytes(params)
    assert done.returncode == 1
    assert "error: data.n_val: expected from 10 to 110 of 120 images, found 115" in done.stderr
    assert "failed to run" not in done.stderr, "the stage itself has said why"
    assert "Traceback" not in done.stdout + done.stderr
    assert project.contents() == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_and_killed_run_ends_with_the_same_bytes(project, tmp_path, capsys):
    calm, disturbed = (
        Project(shutil.copytree(project.folder, tmp_path / name, symlinks=True))
        for name in ("calm", "disturbed")
    )
    for copy in (calm, disturbed):
        copy.change(lambda params: params["clean"].update(seed=77, epochs=6))
    assert tiny_project.reproduce(calm.folder, "train_clean") == {"train_clean"}

    with disturbed.start("pipeline", "repro") as running:
        disturbed.wait_for_the_lock(running)
        second = disturbed.run("pipeline", "repro")
        assert second.returncode == 1
        holder = f"error: another `repro` is running in this folder (PID {running.pid})"
        assert holder in second.stderr
        disturbed.wait_for_a_saved_epoch(running)
        running.send_signal(signal.SIGHUP)  # as if its terminal were closed
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert re.search(
        r"interrupted \(train the clean model: batch \d+ of epoch \d+ is done\); the same command "
        r"resumes from here",
        errors,
    )
    assert "interrupted (earlier results are as they were)" in errors
    assert (disturbed.folder / "models/clean.safetensors").exists(), "the earlier one is back"

    (disturbed.folder / ".venv").symlink_to(sys.prefix)  # which is not activated
    with disturbed.start("dvc", "repro", "train_clean", PATH=os.defpath) as running:
        disturbed.wait_for_a_saved_epoch(running)
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
    assert not (disturbed.folder / "models/clean.safetensors").exists()
    assert tiny_project.reproduce(disturbed.folder, "train_clean") == {"train_clean"}
    assert "resuming after batch 0 of epoch" in capsys.readouterr().out
    for name in ("models/clean.safetensors", "plots/clean/history.csv"):
        assert (disturbed.folder / name).read_bytes() == (calm.folder / name).read_bytes()
    assert not list((disturbed.folder / "models").glob(SAVED))
