"""The results of a project: what they are about, and whether they are those of its params."""

import json
import re
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from pipeline import results
from pipeline.audit import lineage
from pipeline.base import files
from pipeline.base.errors import InputError
from tests.conftest import ROOT
from tests.evaluate.test_table import diagnosed, result

MODELS = ["clean", "robust"]
DATA = {
    "source": "digits",
    "source_sha256": "a" * 64,
    "sha256": "b" * 64,
    "n": 1797,
    "judged": "test",
    "classes": 10,
    "image_size": 32,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with two judged models and what DVC recorded of them."""
    shutil.copy(ROOT / "presets/quickstart.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    robust = {"pgd": result(0.4, n=297, eps=32 / 255), "worst": result(0.4, n=297)}
    (tmp_path / "models").mkdir()
    for name in MODELS:
        (tmp_path / f"models/{name}.safetensors").write_text(name)
        files.write_json(
            tmp_path / f"metrics/{name}.json",
            {
                "sha256": files.sha256(tmp_path / f"models/{name}.safetensors"),
                "attack_passes": 0,
                "data_set": DATA,
                "clean": result(0.9, n=297),
                "transfer": {},
                "robust": robust,
                "diagnostics": diagnosed(),
            },
        )
    written = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())
    stages = {
        "train_clean": entry(written, ["clean", "training"], [], "models/clean.safetensors"),
        "generate@clean-pgd": entry(
            written, ["attacks.pgd"], ["models/clean.safetensors"], "data/adversarial/clean/pgd"
        ),
        "finetune@robust": entry(
            written, ["mix"], ["data/adversarial/clean"], "models/robust.safetensors"
        ),
    }
    for name in MODELS:
        stages[f"evaluate@{name}"] = entry(
            written, ["evaluate.threats"], [f"models/{name}.safetensors"], f"metrics/{name}.json"
        )
    with (tmp_path / "dvc.lock").open("w") as file:
        YAML().dump({"stages": stages}, file)
    return tmp_path


def entry(written, keys, deps, out):
    path = results.Path(out)
    return {
        "cmd": "x",
        "deps": [{"path": dep, "md5": "0"} for dep in deps],
        "params": {"params.yaml": {key: results._value(written, key) for key in keys}},
        "outs": [{"path": out, "md5": lineage.md5(path) if path.is_file() else "0"}],
    }


def change(folder, edit):
    content = YAML(typ="safe").load((folder / "params.yaml").read_text())
    content["finetuned"].pop("refreshed")
    content["export"]["model"] = "robust"
    content["evaluate"]["models"] = MODELS
    edit(content)
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)


def test_results_name_the_data_set_the_images_and_the_eps(folder):
    lines = results.results().splitlines()
    assert max(map(len, lines)) <= 120
    assert (
        "data set: digits, 1,797 images of 32x32 in 10 classes, 297 of them judged"
        " (test images); SHA-256 bbbbbbbbbbbb"
    ) in lines
    assert "attacked: pgd on 297 images at eps 32/255" in lines
    assert results.outdated(MODELS) == {}


def change_much(params):
    params["clean"].update(batch_size=9)
    params["training"].update(epochs=1)
    for pgd in (params["attacks"]["pgd"], params["evaluate"]["threats"]["pgd"]):
        pgd.update(eps="8/255")


def unwrapped(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("edit", "outdated"),
    [
        (lambda params: params["export"].update(min_clean=0.9), {}),
        (
            lambda params: params["evaluate"]["threats"]["pgd"].update(steps=3),
            dict.fromkeys(MODELS, "made with another evaluate.threats in params.yaml"),
        ),
        (
            lambda params: params["evaluate"]["threats"].update(
                more={"attack": "FGSM", "eps": "8/255", "restarts": 1}
            ),
            dict.fromkeys(MODELS, "made with another evaluate.threats in params.yaml"),
        ),
        (
            lambda params: params["attacks"]["pgd"].update(eps="8/255"),
            {"robust": "made with another attacks.pgd in params.yaml"},
        ),
        (
            lambda params: params["clean"].update(batch_size=9),
            dict.fromkeys(MODELS, "made with another clean in params.yaml"),
        ),
        (
            change_much,
            {
                "clean": "made with another clean, training, evaluate.threats in params.yaml",
                "robust": (
                    "made with another clean, training, attacks.pgd and 1 more in params.yaml"
                ),
            },
        ),
    ],
)
def test_results_of_other_params_are_marked(folder, edit, outdated):
    change(folder, edit)
    assert results.outdated(MODELS) == outdated
    text = results.results()
    for name in MODELS:
        assert (f"! {name} " in text) == (name in outdated)
    below = unwrapped(text)
    for name, reason in outdated.items():
        found = re.search(rf"! ([a-z, ]+): [^!]*{re.escape(reason)}; `make repro` makes it", below)
        assert name in found[1].split(", ")


def test_results_of_another_model_or_run_are_marked(folder):
    (folder / "models/robust.safetensors").write_text("another")
    path = folder / "metrics/clean.json"
    path.write_text(path.read_text() + "\n")
    assert results.outdated([*MODELS, "new"]) == {
        "clean": "not what dvc.lock records",
        "robust": "made with another models/robust.safetensors",
        "new": "not in dvc.lock",
    }
    path.unlink()
    assert "clean" not in results.outdated(MODELS), "the table leaves it out"
    (folder / "dvc.lock").unlink()
    assert results.outdated(["clean"]) == {"clean": "not in dvc.lock"}


def test_a_model_without_metrics_is_named(folder):
    assert "! refreshed: no metrics yet; `make repro` makes them" in results.results().splitlines()


def test_results_need_no_git(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    assert "Commit" not in results.results()


def test_results_name_their_commit(folder):
    def git(*arguments):
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert results.results().splitlines()[-1] == "Commit: none yet of metrics/."
    git("add", "-A")
    git("commit", "-qm", "results")
    commit = git("log", "-1", "--format=%h")
    assert results.results().splitlines()[-1] == f"Commit: {commit}."
    (folder / "metrics/new.json").write_text("{}")
    assert results.results().splitlines()[-1] == "Commit: none yet of metrics/."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", ""),
        ("3", ""),
        ("[]", r" \(no attack_passes\)"),
        ("{}", r" \(no attack_passes\)"),
        ('{"attack_passes": 1}', r" \(no data_set\)"),
    ],
)
def test_damaged_metrics_are_one_line(folder, text, problem):
    (folder / "metrics/robust.json").write_text(text)
    message = rf"^metrics/robust.json: cannot be read{problem}; `dvc repro` makes it$"
    with pytest.raises(InputError, match=message) as caught:
        results.results()
    assert "\n" not in str(caught.value)


def test_metrics_of_another_version_are_one_line(folder):
    path = folder / "metrics/robust.json"
    before, content = lineage.md5(path), json.loads(path.read_text())
    lock = (folder / "dvc.lock").read_text()
    unlike = "not as this version writes metrics; `dvc repro evaluate@robust` makes it again"
    for kept, message in (
        ({**content, "diagnostics": {"verdict": "strong"}}, unlike),
        ({**content, "clean": 0.9}, unlike),
        ({key: content[key] for key in content if key != "sha256"}, r"cannot be read \(no sha256"),
    ):
        path.write_text(json.dumps(kept))
        (folder / "dvc.lock").write_text(lock.replace(before, lineage.md5(path)))
        with pytest.raises(InputError, match=f"^metrics/robust.json: {message}"):
            results.results()
