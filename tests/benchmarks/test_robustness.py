import json
import subprocess
import sys
import time

import pytest
from ruamel.yaml import YAML

from benchmarks.robustness import __main__ as command
from benchmarks.robustness import recipes, results
from pipeline import document, presets
from pipeline.base import files
from pipeline.base.errors import InputError
from tests.conftest import ROOT

SETTING = {
    "images": 45_000,
    "epochs": 10,
    "clean_epochs": 12,
    "judged": 1_000,
    "ensemble": {"members": "all", "iterations": 100, "targets": 9, "n_eval": 1_000},
    "code": "abc",
}
# What stands for `dvc` here: it writes the metrics of a stage that is called evaluate@….
FAKE = """
import json, pathlib, sys
target = sys.argv[-1]
pathlib.Path("calls").open("a").write(target + "\\n")
found = {"accuracy": 0.5, "low95": 0.4, "high95": 0.6, "n": 10}
if target.startswith("evaluate@"):
    pathlib.Path("metrics").mkdir(exist_ok=True)
    metrics = {
        "attack_passes": 1_470_000, "clean": found,
        "diagnostics": {"verdict": "strong", "failed": []},
        "robust": {"fgsm": found, "pgd": found, "ensemble": {**found, "accuracy": 0.3}},
    }
    name = target.removeprefix("evaluate@")
    pathlib.Path("metrics", name + ".json").write_text(json.dumps(metrics))
"""
STOPPED = """
import pathlib, time
try:
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("saved").touch()
"""


def test_every_row_is_a_sound_model_of_the_preset(tmp_path):
    (tmp_path / "params.yaml").touch()
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(recipes.content(SETTING, [0, 1]), file)
    settings = document.load(tmp_path / "params.yaml")
    assert len(settings.finetuned) + len(settings.online) == 2 * len(recipes.RECIPES)
    plain, regularised = (
        settings.finetuned[recipes.model(row, 1)] for row in ("refreshed", "refreshed + regularise")
    )
    assert (plain.seed, plain.refresh.regularise, regularised.refresh.regularise) == (1, None, 10)
    assert plain.ema == pytest.approx(0.999, abs=1e-4)
    assert regularised.model_dump(exclude={"refresh"}) == plain.model_dump(exclude={"refresh"})
    assert settings.data.n_val + settings.data.n_test == 1_500
    assert settings.online["online_nfgsm_0"].adversary.noise == 2


def test_one_row_is_the_preset_at_its_own_size():
    row = recipes.content(SETTING, [0])["finetuned"]["refreshed_as_in_the_preset_0"]
    preset = YAML(typ="safe").load(presets.complete("cifar10-cpu"))["finetuned"]["refreshed"]
    assert row == {**preset, "seed": 0}


def test_an_average_scales_with_the_steps():
    ema = recipes.content({**SETTING, "epochs": 2}, [0])["finetuned"]["refreshed_0"]["ema"]
    assert 1 / (1 - ema) == pytest.approx(200, rel=0.02)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A scratch project in which `dvc` is another program."""
    monkeypatch.setattr(results, "RESULT", tmp_path / "robustness.json")
    monkeypatch.setattr(results, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(command, "DVC", (sys.executable, "-c", FAKE))
    monkeypatch.chdir(ROOT)
    (tmp_path / "page.md").write_text("before\n" + "\n".join(results.MARKERS) + "\nafter\n")
    (tmp_path / "project").mkdir()
    with (tmp_path / "project/params.yaml").open("w") as file:
        YAML().dump(recipes.content(SETTING, [0]), file)
    return tmp_path / "project"


def test_a_finished_row_is_kept_and_not_made_again(project, tmp_path):
    for _ in range(2):
        command._add(project, "refreshed + trades", 0, SETTING, time.monotonic() + 60)
    assert (project / "calls").read_text().split() == [
        "finetune@refreshed_trades_0",
        "evaluate@refreshed_trades_0",
    ]
    (row,) = json.loads(results.RESULT.read_text())["rows"]
    assert row["recipe"]["beta"] == 6
    page = (tmp_path / "page.md").read_text()
    assert page.startswith(f"before\n{results.MARKERS[0]}\n\n45,000 training images, 10 epochs")
    assert "1,000 by the ensemble (all members, 100 iterations, 9 targets)" in page
    line = "| refreshed + trades | 0 | 50.0 ±10.0 | 50.0 ±10.0 | 50.0 ±10.0 | 30.0 ±10.0 | 1,47"
    assert page.count(line) == 1
    assert page.endswith(f"{results.MARKERS[1]}\nafter\n")


def test_other_settings_and_newer_results_have_their_place(project):
    def row(seconds, **changes):
        found = {"accuracy": 0.5, "low95": 0.4, "high95": 0.6}
        return {
            "row": "static", "seed": 0, "setting": {**SETTING, **changes}, "machine": "m",
            "clean": found, "robust": {"fgsm": found, "pgd": found, "apgd": found},
            "attack_gradients": 5, "seconds": seconds, "cpu_seconds": 2.0, "verdict": "strong",
        }  # fmt: skip

    text = results.tables([row(100.0), row(300.0), row(700.0, epochs=2)])
    assert text.count("| row |") == 2
    assert [cell in text for cell in ("| 100 |", "| 300 |", "| 700 |")] == [False, True, True]


def test_seconds_are_added_over_attempts(project):
    for _ in range(2):
        command._note(project, "finetune@x", {"seconds": 1.5, "cpu_seconds": 1.0})
    assert command._spent(project)["finetune@x"] == {"seconds": 3.0, "cpu_seconds": 2.0}


def test_a_stage_is_stopped_when_the_budget_is_spent(project, monkeypatch):
    monkeypatch.setattr(command, "DVC", (sys.executable, "-c", STOPPED))
    with pytest.raises(subprocess.TimeoutExpired):
        command._repro(project, ["finetune@x"], time.monotonic() + 2)
    assert (project / "saved").exists()
    assert command._spent(project)["finetune@x"]["seconds"] >= 2
    with pytest.raises(subprocess.TimeoutExpired):
        command._repro(project, ["finetune@x"], time.monotonic())


def test_a_stage_that_fails_is_named(project, monkeypatch):
    monkeypatch.setattr(command, "DVC", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(InputError, match="dvc repro finetune@x: failed"):
        command._repro(project, ["finetune@x"], time.monotonic() + 60)


def test_a_page_without_markers_is_refused(project):
    files.write_bytes(results.PAGE, b"text")
    with pytest.raises(InputError, match="expected the lines <!-- benchmarks.robustness: begin"):
        results.write_page([])


def test_the_images_are_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robustness", "none.npz", "--budget", "1"])
    with pytest.raises(InputError, match=r"none.npz: no such file. Give the .npz with CIFAR-10"):
        command.main()


def test_a_project_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "cifar10.npz").write_bytes(b"images")
    first, again = (
        command._project(tmp_path / "scratch", tmp_path / "cifar10.npz", SETTING, seeds)
        for seeds in ([0], [0, 1])
    )
    assert first == again
    assert (first / "data/raw/cifar10.npz").read_bytes() == b"images"
    assert (first / ".dvc").is_dir()
    assert "refreshed_1:" in (first / "params.yaml").read_text()
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [first.name]
