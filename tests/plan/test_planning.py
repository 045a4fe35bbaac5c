import json
import sys

import pytest
import torch
from ruamel.yaml import YAML

from pipeline import __main__ as command
from pipeline import document
from pipeline.base import remaining
from pipeline.base.errors import InputError
from pipeline.plan import planning, rates, training_steps
from pipeline.plan.images import Images
from pipeline.plan.rates import Rate, Rates
from pipeline.plan.work import Kind, Stage, Work
from tests import tiny_project
from tests.conftest import ROOT

CPU = torch.device("cpu")
pytestmark = [pytest.mark.usefixtures("narrow_resnet18", "one_thread")]


@pytest.fixture
def tiny(raw_params, tmp_path, monkeypatch):
    """Tiny params of a narrow network, whose processes start at once."""
    tiny_project.tiny(raw_params)
    YAML().dump(raw_params, tmp_path / "params.yaml")
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setattr(rates, "STARTS", {"prepare": "json", "": "json"})
    monkeypatch.setattr(rates, "SECONDS", 0.01)
    monkeypatch.setattr(rates, "SIZES", (4, 16))
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    return command.main()


def test_a_plan_measures_every_stage(tiny, monkeypatch, capsys):
    line = call(monkeypatch, "plan")
    rows = capsys.readouterr().out.splitlines()
    assert line.startswith("120 images (data.n_images of params.yaml), 16 pixels per side, on cpu")
    assert rows[0].split() == ["stage", "work", "time", "disk", "memory", "GPU"]
    assert [row.split()[0] for row in rows[1:14]] == [
        "prepare", "train_clean", "generate@clean-fgsm", "generate@clean-pgd", "finetune@robust",
        "finetune@refreshed", "evaluate@clean", "evaluate@robust", "evaluate@refreshed", "export",
        "audit", "report", "total",
    ]  # fmt: skip
    assert all(row.endswith("-") for row in rows[1:14])
    assert not (tiny / "models").exists()
    assert {path.name for path in tiny.iterdir()} == {"dvc.yaml", "params.yaml", "report"}
    assert set(remaining.kept()) == {row.split()[0] for row in rows[1:13]}


def test_every_kind_is_measured_once(tiny, monkeypatch):
    measured = []
    monkeypatch.setattr(Rates, "_train", lambda _, kind: measured.append(kind) or (0.001, 0.0))
    settings = document.load(tiny / "params.yaml")
    three = {**settings.finetuned, "again": settings.finetuned["robust"]}
    judged = [*settings.evaluate.models, "again"]
    evaluate = settings.evaluate.model_copy(update={"models": judged})
    planning.plan(settings.model_copy(update={"finetuned": three, "evaluate": evaluate}))
    assert len(measured) == 3


def test_a_preset_is_planned_without_params(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = []
    monkeypatch.setattr(planning, "plan", lambda *given, **_: seen.append(given) or "planned")
    before = (ROOT / "params.yaml").read_bytes()
    assert call(monkeypatch, "plan", "cifar10-cpu", "--images", "900") == "planned"
    ((settings, n_images),) = seen
    assert (settings.model.architecture, n_images) == ("resnet18", 900)
    assert (ROOT / "params.yaml").read_bytes() == before


def test_what_cannot_be_planned_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="^plan nope: no such preset; there are assignment, "):
        call(monkeypatch, "plan", "nope")
    with pytest.raises(InputError, match="^--images: expected 1 or more, found 0$"):
        call(monkeypatch, "plan", "--images", "0")


def test_seconds_are_those_of_images_and_batches():
    work = Work(kind=Kind(name="attack"), images=100, batches=4)
    assert Rate(per_image=0.01, per_batch=0.5).seconds(work) == pytest.approx(3)


def test_a_stage_costs_its_start_and_its_work(monkeypatch):
    image_counts = Images(n_images=40, n_val=10, size=16, n_classes=3, origin="a test")
    found = Rates(image_counts, CPU)
    monkeypatch.setattr(found, "start_up", lambda _: 2.0)
    monkeypatch.setattr(found, "of", lambda _: Rate(per_image=0.1, memory=50, gpu_memory=7))
    work = (Work(kind=Kind(name="train"), images=30),) * 2
    stage = Stage(name="train_clean", text="", work=work, held=5)
    (cost,) = planning.measured([stage], found)
    assert (cost.seconds, cost.memory, cost.gpu_memory) == (pytest.approx(8), 55, 7)


def test_waiting_for_the_disk_at_the_first_start_is_not_counted(monkeypatch):
    image_counts = Images(n_images=40, n_val=10, size=16, n_classes=3, origin="a test")
    monkeypatch.setattr(rates, "STARTS", {"": "time; time.sleep(1.5)"})
    monkeypatch.setattr(rates, "BUDGET", 1.0)
    found = Rates(image_counts, CPU)
    assert 0 < found.start_up("export") < 1
    assert found._has_time


def test_work_that_takes_long_is_measured_on_small_batches(monkeypatch):
    image_counts = Images(n_images=40, n_val=10, size=16, n_classes=3, origin="a test")
    found, sizes = Rates(image_counts, CPU), []
    monkeypatch.setattr(found, "_timed", lambda _, n: sizes.append(n) or 1.0 + n)
    assert found._line(lambda _: None, 256) == pytest.approx((1.0, 1.0))
    assert sizes == [4, 4, 8]


def test_a_batch_is_not_made_smaller_than_its_mix_allows(settings):
    recipe = settings.finetuned["robust"].model_copy(
        update={"mix": {"clean": 0.96, "fgsm": 0.02, "pgd": 0.02}, "batch_size": 128}
    )
    smaller = rates._with_batches(recipe, 16)
    assert smaller.batch_size == 26
    assert min(smaller.counts.values()) == 1
    assert rates._with_batches(recipe, 200) == recipe


def test_a_short_attack_is_the_same_attack(settings):
    pgd = rates.shortened(settings.evaluate.threats["pgd"])
    assert json.loads(pgd.model_dump_json()) == {
        "attack": "PGD",
        "eps": 1e-6,
        "alpha": 8 / 255,
        "steps": 2,
        "random_start": True,
        "restarts": 1,
    }


class Nine:
    """Nine batches."""

    def __init__(self):
        self.state = {}

    def __len__(self):
        return 9

    def epoch(self, number, first=0):
        yield from range(9)


@pytest.mark.parametrize(("graphs", "n_before"), [(None, 1), ("graphs", 5)])
def test_the_loop_is_timed_without_the_steps_that_prepare_it(monkeypatch, graphs, n_before):
    monkeypatch.setattr(training_steps, "graphs_for", lambda _: graphs)
    timed = training_steps.Timed(Nine(), 100.0, CPU)
    clock = iter([*range(1, n_before), 10.0, 11.0, 13.0, 13.5, 14.0])
    monkeypatch.setattr(training_steps.time, "perf_counter", lambda: next(clock))
    assert list(timed.epoch(0)) == list(range(n_before + 4))
    assert timed.seconds == 1.0
    assert len(timed) == 9


def test_slow_steps_are_few(monkeypatch):
    timed = training_steps.Timed(Nine(), 0.5, CPU)
    clock = iter([10.0, 11.0])
    monkeypatch.setattr(training_steps.time, "perf_counter", lambda: next(clock))
    assert list(timed.epoch(0)) == [0, 1]
    assert timed.seconds == 1.0
