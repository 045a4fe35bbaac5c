"""The real `dvc repro` in a clean copy of the repository, at a tiny size.

Also checks what `dvc.yaml` must hold.
"""

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
import torch
from ruamel.yaml import YAML
from torchvision import models

from tests import samples
from tests.conftest import ROOT

yaml = YAML(typ="safe")
STAGES = yaml.load((ROOT / "dvc.yaml").read_text())["stages"]


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
    tiny = Project(folder)
    tiny.change(
        lambda params: (
            params["data"].update(n_images=400, n_val=100),
            params["store"].update(shard_rows=150),
            params["model"].update(architecture="resnet18"),
            params["training"].update(epochs=1, warmup_epochs=0, batch_size=32),
            params["clean"].update(epochs=6, batch_size=32),
            params["selection"].update(n_images=50, steps=2),
            params["attacks"]["pgd"].update(steps=2),
            params["evaluate"]["threats"]["pgd"].update(steps=2),
            params["evaluate"]["curves"].update(
                n_eval=10, eps=["32/255", 1], steps=[1, 4], restarts=2, queries=5
            ),
            params["evaluate"].update(grid=None),
            params["evaluate"]["ensemble"].update(n_eval=8, iterations=2, targets=3),
        )
    )
    tiny.first_output = tiny.repro().stdout
    return tiny


class Project:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first_output = ""

    def change(self, edit) -> None:
        path = self.folder / "params.yaml"
        content = yaml.load(path.read_text())
        edit(content)
        YAML().dump(content, path)

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            **more,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIPELINE_DEVICE": "cpu",
        }
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def repro(self) -> subprocess.CompletedProcess[str]:
        done = self.run("pipeline", "repro")
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ran(self, output: str) -> set[str]:
        return {
            line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")
        }

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
    "generate@clean-fgsm",
    "generate@clean-pgd",
    "finetune@robust",
    "finetune@refreshed",
    "evaluate@clean",
    "evaluate@robust",
    "evaluate@refreshed",
    "export",
    "audit",
}


def test_a_fresh_copy_gives_exactly_the_outputs_and_the_table(project):
    assert project.ran(project.first_output) == ALL
    made = {
        str(path.relative_to(project.folder))
        for name in OUTPUTS
        for path in (project.folder / name).rglob("*")
        if path.is_file() and path.name not in ("README.md", ".gitkeep")
    }
    shards = {"00000.h5", "00001.h5", "00002.h5", "manifest.json"}
    sets = {
        "data/clean",
        *(
            f"data/{folder}{name}"
            for folder in ("adversarial/clean/", "refreshed/refreshed/")
            for name in ("fgsm", "pgd")
        ),
    }
    names = ("clean", "robust", "refreshed")
    assert made == {
        *(f"{folder}/{shard}" for folder in sets for shard in shards),
        *(
            f"models/{name}"
            for name in (
                *(f"{name}.safetensors" for name in names),
                "submission.pt",
                "submission.classes.csv",
            )
        ),
        *(f"metrics/{name}.json" for name in (*names, "audit")),
        *(
            f"plots/{name}/{plot}.csv"
            for name in names
            for plot in ("history", "confusion", "curves", "grid")
        ),
        *(f"plots/{name}/{plot}.png" for name in names for plot in ("curves", "grid")),
    }
    assert "transfer: accuracy on stored adversarial images" in project.first_output
    with h5py.File(project.folder / "data/adversarial/clean/pgd/00002.h5") as file:
        assert file["images"].shape == (100, 3, 32, 32)
        assert file.attrs["rows"] == 400
    metrics = json.loads((project.folder / "metrics/robust.json").read_text())
    assert metrics["transfer"]["mixed"]["n"] == 300
    assert metrics["diagnostics"]["verdict"] in project.first_output
    assert "checks of what pgd measured, on 10 images:" in project.first_output
    assert len((project.folder / "plots/clean/history.csv").read_text().splitlines()) == 7
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


def test_changes_rerun_exactly_what_depends_on_them(project):
    assert project.ran(project.repro().stdout) == set(), "an unchanged project runs nothing"

    project.change(lambda params: params["attacks"]["pgd"].update(eps="12/255"))
    assert project.ran(project.repro().stdout) == ALL - {
        "prepare",
        "train_clean",
        "generate@clean-fgsm",
    }

    def add_attack(params):
        params["attacks"]["bim"] = {"attack": "BIM", "eps": "8/255", "alpha": "4/255", "steps": 2}
        params["mix"] = {"clean": 0.5, "bim": 0.5}

    project.change(add_attack)
    reads_sets = ALL - {"prepare", "train_clean", "generate@clean-fgsm", "generate@clean-pgd"}
    assert project.ran(project.repro().stdout) == {"generate@clean-bim"} | reads_sets, (
        "a new attack and its share are two entries"
    )
    assert "bim" in json.loads((project.folder / "metrics/robust.json").read_text())["transfer"]

    def only_pgd(params):
        params["attacks"] = {"pgd": params["attacks"]["pgd"]}
        params["mix"] = {"clean": 0.5, "pgd": 0.5}

    project.change(only_pgd)
    output = project.repro().stdout
    assert project.ran(output) == reads_sets
    for name in ("bim", "fgsm"):
        assert (
            f"data/adversarial/clean/{name}: removed, since params.yaml no longer asks for it"
            in output
        )

    def as_before(params):
        params["attacks"]["fgsm"] = {"attack": "FGSM", "eps": "32/255"}
        params["mix"] = {"clean": 0.5, "fgsm": 0.25, "pgd": 0.25}

    project.change(as_before)
    assert project.ran(project.repro().stdout) == set(), "DVC's cache still has all of it"

    def second_round(params):
        params["attacked"].append("robust")
        params["finetuned"]["robust2"] = {"of": "robust", "best_on": "mixed", "refresh": None}

    project.change(second_round)
    missing = project.run("pipeline", "repro")
    assert missing.stderr == (
        "error: params.yaml: evaluate.models: expected every model, 'robust2' is missing (add it)\n"
    )
    project.change(lambda params: params["evaluate"]["models"].append("robust2"))
    output = project.repro().stdout
    assert project.ran(output) == {
        "generate@robust-fgsm",
        "generate@robust-pgd",
        "finetune@robust2",
        "evaluate@robust2",
        "audit",
    }
    assert any(line.split()[:1] == ["robust2"] for line in output.splitlines())


def test_mistakes_are_one_line_and_leave_earlier_results_as_they_were(project, tmp_path):
    before, params = project.contents(), (project.folder / "params.yaml").read_bytes()

    def refused(edit, message):
        project.change(edit)
        done = project.run("pipeline", "repro")
        (project.folder / "params.yaml").write_bytes(params)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert project.contents() == before
        return done.stderr

    errors = refused(
        lambda params: params["attacks"]["pgd"].update(eps=8.0),
        "params.yaml: attacks.pgd.eps: expected more than 0 and at most 1",
    )
    assert errors.count("\n") == 1
    refused(
        lambda params: params["data"].update(source="npz", path="data/raw/none.npz"),
        "no such file or folder",
    )

    def takes_a_name(params):
        params["finetuned"]["audit"] = params["finetuned"].pop("refreshed")
        judged = params["evaluate"]["models"]
        judged[judged.index("refreshed")] = params["export"]["model"] = "audit"

    refused(takes_a_name, "dvc.yaml: DVC cannot read the stages: output 'metrics/audit.json' is")
    # Found by a stage only, after DVC has deleted its earlier outputs: they come back.
    refused(
        lambda params: params["data"].update(n_val=399),
        "error: data.n_val: expected from 10 to 390 of 400 images, found 399",
    )
    refused(lambda params: params["clean"].update(lr=1e30), "lower its lr in params.yaml")
    apgdt = {
        "attack": "APGDT",
        "eps": 0.1,
        "steps": 2,
        "n_restarts": 1,
        "eot_iter": 1,
        "rho": 0.75,
        "restarts": 1,
    }
    refused(
        lambda params: params["evaluate"]["threats"].update(x={**apgdt, "n_restarts": 0}),
        "n_restarts: expected a whole number",
    )
    refused(
        lambda params: params["evaluate"].update(seed=-1),
        "evaluate.seed: expected no such key, seed alone holds for it",
    )


def test_a_killed_dvc_repro_goes_on_and_ends_with_the_same_bytes(project, tmp_path):
    folders = []
    for name in ("calm", "killed"):
        copy = Project(shutil.copytree(project.folder, tmp_path / name, symlinks=True))
        copy.change(lambda params: params["clean"].update(seed=77, epochs=8))
        folders.append(copy)
    calm, killed = folders
    assert calm.run("dvc", "repro", "train_clean").returncode == 0
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PIPELINE_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "dvc", "repro", "train_clean"]
    with subprocess.Popen(
        command,
        cwd=killed.folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as running:
        while not list((killed.folder / "models").glob(SAVED)):
            assert running.poll() is None, "it ended before an epoch was saved"
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
    assert not (killed.folder / "models/clean.safetensors").exists()
    again = killed.run("dvc", "repro", "train_clean")
    assert again.returncode == 0, again.stderr
    assert "going on after batch 0 of epoch" in again.stdout
    for name in ("models/clean.safetensors", "plots/clean/history.csv"):
        assert (killed.folder / name).read_bytes() == (calm.folder / name).read_bytes()
    assert not list((killed.folder / "models").glob(SAVED))


def test_a_second_repro_is_refused_and_ctrl_c_lets_the_batch_end(project, tmp_path):
    copy = Project(shutil.copytree(project.folder, tmp_path / "copy", symlinks=True))
    copy.change(lambda params: params["clean"].update(seed=78, epochs=50))
    environment = {**os.environ, "PIPELINE_DEVICE": "cpu"}
    command = [sys.executable, "-m", "pipeline", "repro"]
    with subprocess.Popen(
        command,
        cwd=copy.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not list((copy.folder / "models").glob(SAVED)):
            assert running.poll() is None, running.communicate()
            time.sleep(0.02)
        second = copy.run("pipeline", "repro")
        assert second.returncode == 1
        assert "error: another `repro` is running in this folder" in second.stderr
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert re.search(
        r"interrupted \(train the clean model: batch \d+ of epoch \d+ is done\); the same command "
        r"goes on from here",
        errors,
    )
    assert "interrupted (earlier results are as they were)" in errors
    assert (copy.folder / "models/clean.safetensors").exists(), "the earlier one is back"
    left = copy.run("pipeline", "clean-partial").stdout
    assert re.search(r"models/\.clean\.safetensors\.[0-9a-f]{16}\.part\n1 deleted", left)


def test_a_stage_by_itself_refuses_inputs_that_do_not_belong_together(project):
    """Without DVC in between: each stage checks what it is given."""

    def refused(stage, *arguments, **environment):
        done = project.run(f"pipeline.{stage}", *arguments, **environment)
        assert done.returncode == 1, done.stdout
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr

    finetune = ["--clean", "data/clean", "--history", "x.csv", "--refreshed", "x"]
    sets = ["--adversarial", "data/adversarial/clean", "--sources", "data/adversarial/sources"]
    robust = [*finetune, "--out", "robust.safetensors"]
    assert "against another model" in refused(
        "harden.finetune", *robust, "--model", "models/robust.safetensors", *sets
    )
    assert "nope.safetensors: no such model" in refused(
        "harden.finetune", *robust, "--model", "models/nope.safetensors", *sets
    )
    missing = "data/clean/fgsm: no such image set, which finetuned.robust mixes (found none)"
    nothing = ["--adversarial", "data/clean", "--sources", "data/adversarial/sources"]
    assert missing in refused(
        "harden.finetune", *robust, "--model", "models/clean.safetensors", *nothing
    )
    message = "finetuned.nope: expected a model of that name in params.yaml, found none"
    assert message in refused(
        "harden.finetune",
        *finetune,
        "--out",
        "nope.safetensors",
        "--model",
        "models/clean.safetensors",
        *sets,
    )
    online = [
        "--clean",
        "data/clean",
        "--model",
        "models/clean.safetensors",
        "--out",
        "nope.safetensors",
        "--history",
        "x.csv",
    ]
    assert "online.nope: expected a model of that name in params.yaml, found none" in refused(
        "harden.train_online", *online
    )
    attack = [
        "--clean",
        "data/clean",
        "--out",
        "x",
        "--model",
        "models/clean.safetensors",
        "--attack",
    ]
    assert "attacks.nope: expected an attack of that name in params.yaml, found none" in refused(
        "generate", *attack, "nope"
    )
    assert not list(project.folder.glob("x*")) + list(project.folder.glob("*.safetensors"))


def test_a_replaced_file_of_starting_weights_trains_again(project, tmp_path):
    copy = Project(shutil.copytree(project.folder, tmp_path / "copy", symlinks=True))
    own = copy.folder / "models/pretrained/own.pth"

    def start(params):
        weights = {"architecture": "resnet18", "weights": "models/pretrained/own.pth"}
        params["model"].update(weights)
        params["clean"].update(epochs=1)
        adversary = {
            "eps": "8/255",
            "eps_per": "image",
            "alpha": "8/255",
            "steps": 1,
            "random_start": True,
            "loss": "cross_entropy",
        }
        more = {
            "adversary": {**adversary, "target": "none", "against": "self"},
            "clean_weight": 1,
            "adv_weight": 1.0,
            "best_on": "clean",
        }
        params["online"] = {"x": {"start": weights, **more}}
        params["evaluate"]["models"].append("x")

    def ran():
        done = copy.run("dvc", "repro", "train_clean", "train_online@x")
        assert done.returncode == 0, done.stderr
        return copy.ran(done.stdout)

    copy.change(start)
    for content in (samples.state_dict("resnet18"), models.resnet18().state_dict()):
        torch.save(content, own)
        assert ran() == {"train_clean", "train_online@x"}
        assert ran() == set()
    own.unlink()
    check = copy.run("pipeline", "check")
    assert check.stderr == (
        "error: params.yaml: model.weights: models/pretrained/own.pth: no such file; put it there\n"
    )
