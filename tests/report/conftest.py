"""A tiny run with hostile class names, whose measured numbers are replaced by fixed ones."""

import contextlib
import csv
import json

import numpy as np
import pytest
import torch

from pipeline.audit.project import Project
from pipeline.base import files
from pipeline.base.untrusted.limits import MAX_NAME
from pipeline.evaluate import meanings
from pipeline.report import page
from tests import narrow, tiny_project
from tests.tiny_project import reproduce

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    '"><img src=https://localhost/x onerror=alert(1)>',
    "חתול",
    "猫",
    "x" * MAX_NAME,
    "{{ 7 * 7 }}",
    "$plain & simple$",
)
MODELS = ("clean", "robust", "refreshed")


@pytest.fixture(scope="package")
def project(tmp_path_factory):
    """The folder of a tiny project after a run by the real DVC, with fixed results."""
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        patch.setenv("MPLBACKEND", "agg")
        yield tiny_project.made_once(tmp_path_factory, "report", _make) / "project"


def _make(shared):
    """Make the project, and its page beside it."""
    folder = shared / "project"
    folder.mkdir()
    tiny_project.create(folder)
    labels = np.arange(140) % len(HOSTILE)
    images = np.random.default_rng(0).integers(0, 256, (140, 3, 16, 16), dtype=np.uint8)
    np.savez(folder / "data/raw/x.npz", images=images, labels=np.array(HOSTILE)[labels])
    tiny_project.change_params(folder, _params)
    reproduce(folder)
    _fix_results(folder)
    (shared / "index.html").write_bytes(render(folder))


@pytest.fixture(scope="package")
def rendered(project):
    """The page of the tiny project."""
    return (project.parent / "index.html").read_bytes()


def render(folder) -> bytes:
    with contextlib.chdir(folder):
        return page.render(Project(folder, torch.device("cpu")))


def _params(content):
    content["data"].update(source="npz", path="data/raw/x.npz", n_images=None, n_val=21, n_test=35)
    content["evaluate"]["grid"].update(eps=[0.1], steps=[2])
    content["export"].update(model="refreshed")


def _fix_results(folder):
    """Write results that no processor changes."""
    for place, model in enumerate(MODELS):
        found = json.loads((folder / f"metrics/{model}.json").read_text())
        results = [found["clean"], *found["transfer"].values(), *found["robust"].values()]
        for number, result in enumerate(results):
            share = round(1 - 0.1 * number - 0.05 * place, 6)
            result.update(accuracy=share, low95=share - 0.04, high95=share + 0.02)
            result["per_class"] = [share] * len(HOSTILE)
        for name, check in found["diagnostics"]["checks"].items():
            check.update(value=0.01, limit=0.02, n=8, verdict="passed")
            assert name in meanings.FAILED
        found["diagnostics"].update(verdict="strong" if place else "suspect", failed=[])
        lowest = {"guess": "FGSM", "eps": 0.1, "accuracy": 0.2, "low95": 0.1, "high95": 0.3, "n": 4}
        found["grid"]["lowest"].update(lowest)
        files.write_json(folder / f"metrics/{model}.json", found)
        _fix_plots(folder / "plots" / model)
    cost = {"seconds": 12.5, "processor_seconds": 20.0, "memory_bytes": 2**30}
    files.write_json(folder / "report/costs/prepare.json", {**cost, "processor_joules": 7200.0})


def _fix_plots(folder):
    fixed = {"accuracy": 0.5, "low95": 0.4, "high95": 0.6}
    for name in ("curves", "grid"):
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = [{**row, **fixed} for row in csv.DictReader(file)]
        files.write_csv(folder / f"{name}.csv", rows)
    confusion = [{"actual": name, "predicted": name} for name in HOSTILE]
    files.write_csv(folder / "confusion.csv", confusion)
