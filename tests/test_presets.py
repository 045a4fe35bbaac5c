"""Presets as they are, except for small files and few epochs.

Each command that DVC would run is run in its order.
"""

import hashlib
import runpy
import shlex
import shutil
import sys

import dvc.repo
import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline import presets
from pipeline.audit.project import LAST
from pipeline.base import console
from pipeline.base import params as pipeline_params
from pipeline.evaluate import ensemble
from tests import samples, tiny_project
from tests.conftest import ROOT

yaml = YAML(typ="safe")
PRESETS = (
    "assignment",
    "cifar10-cpu",
)  # between them they have every kind of stage; the others differ in values alone


def small_source(data, folder, monkeypatch, n_classes):
    """A file of 90 images in the preset's own format, where the preset looks for it."""
    generator = np.random.default_rng(0)
    images, labels = (
        generator.integers(0, 256, (90, 32, 32, 3), dtype=np.uint8),
        [row % n_classes for row in range(90)],
    )
    path = folder / data["path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    match data["source"]:
        case "npz":
            np.savez(path, images=images.transpose(0, 3, 1, 2), labels=labels)
        case "task_dataset":
            samples.under_main(monkeypatch, samples.TaskDataset)
            samples.save_task_dataset(path, [*images[:80], *images[80:, :, :, 0]], labels)
        case "cifar10":
            samples.write_cifar(path, monkeypatch, "cifar10", images.reshape(90, -1), labels)


@pytest.mark.usefixtures("narrow_resnet18")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_on_small_files_of_its_kind(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = yaml.load(presets.complete(name))
    small_source(params["data"], tmp_path, monkeypatch, 10)
    n_test = 20 if params["data"]["n_test"] else 0
    params["data"].update(n_images=90, n_val=20, n_test=n_test)
    params["model"].update(
        architecture="resnet18"
    )  # the smallest: what is tested here are the presets
    params["training"].update(epochs=1, warmup_epochs=0)
    params["selection"].update(n_images=8, steps=1)
    for recipe in (params["clean"], *params["finetuned"].values(), *params["online"].values()):
        recipe.update(epochs=1, warmup_epochs=0)
    params["evaluate"].update(n_eval=4)
    params["evaluate"]["curves"].update(n_eval=2, eps=[1], steps=[1, 3], restarts=3, queries=2)
    params["evaluate"]["grid"].update(n_eval=2, eps=["8/255"], steps=[2])
    if params["evaluate"]["ensemble"]:
        params["evaluate"]["ensemble"].update(n_eval=2, iterations=2, targets=3)
    monkeypatch.setattr(ensemble, "QUERIES", 2)
    tiny_project.coarse_pictures(monkeypatch)
    for entry in [*params["attacks"].values(), *params["evaluate"]["threats"].values()]:
        entry.update({"steps": 2} if "steps" in entry else {})
    content = samples.state_dict_bytes(params["model"]["architecture"])
    cached = samples.replace_weights(
        monkeypatch, tmp_path / "home", params["model"]["architecture"], content, "127.0.0.1:1"
    )
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content)
    YAML().dump(params, tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(
        ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    for folder in ("data/raw", "data/adversarial/sources", "models/pretrained"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "run", lambda command: command())
    read = []
    load = pipeline_params.load
    monkeypatch.setattr(
        pipeline_params,
        "load",
        lambda path, kind, keys: read.append(set(keys)) or load(path, kind, keys),
    )
    for command, declared in commands(tmp_path):
        monkeypatch.setattr(sys, "argv", command[2:])
        runpy.run_module(command[2], run_name="__main__")
        assert read.pop() == declared, "a stage reads what dvc.yaml declares for it"
    submission = (tmp_path / "models/submission.pt").read_bytes()
    assert len(hashlib.sha256(submission).hexdigest()) == 64
    assert sorted(path.name for path in (tmp_path / "data/adversarial/clean").glob("[!.]*")) == [
        "fgsm",
        "pgd",
    ]


def commands(folder) -> list[tuple[list[str], set[str]]]:
    """Return the commands and params of each stage.

    The commands are those that `dvc repro` would run, stage by stage, with every value filled in.
    The params are those that each stage declares.
    """
    import networkx

    with dvc.repo.Repo.init(str(folder), no_scm=True) as repo:
        stages = [stage for stage in networkx.dfs_postorder_nodes(repo.index.graph) if stage.cmd]
        keys = {
            stage: {key for dep in stage.deps for key in getattr(dep, "params", [])}
            for stage in stages
        }
        # The audit reads what only DVC itself records, and the report shows what the audit found.
        return [
            (shlex.split(stage.cmd), keys[stage])
            for stage in stages
            if stage.addressing not in LAST
        ]
