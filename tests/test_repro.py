"""`pipeline repro` in a tiny project: what runs again, and what is refused.

DVC and the stages run in this process.
"""

import hashlib
import json
import shutil
import subprocess
import sys

import dvc.repo
import numpy as np
import pytest
import torch
from dvc import cli

from pipeline import __main__ as command
from pipeline import earlier, networks, repro
from pipeline.audit import lineage, records
from pipeline.audit.project import Project
from pipeline.base import remaining, store
from pipeline.base.errors import InputError
from tests import narrow, samples, tiny_project
from tests.conftest import ROOT
from tests.tiny_project import change_params, here, reproduce, run_here

pytestmark = [
    pytest.mark.usefixtures("narrow_resnet18", "read_once"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
    ),
]
OUTPUTS = ("data", "models", "metrics", "plots", "report")
READS_SETS = {
    "finetune@robust",
    "finetune@refreshed",
    "evaluate@clean",
    "evaluate@robust",
    "evaluate@refreshed",
    "export",
    "audit",
}


DIGITS = tuple("0123456789")


def _below(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


@pytest.fixture
def folder(made, tmp_path):
    """A tiny project after its first run, for one test to change."""
    return tiny_project.copy(made, tmp_path / "project")


def call(folder, command_line, *targets):
    """Run a command of `python -m pipeline`; gives the stages that ran, for these targets only."""
    ran = set()

    def run(*_: object) -> bool:
        ran.update(reproduce(folder, *targets))
        return False

    with here(folder) as patch:
        patch.setattr(sys, "argv", ["pipeline", *command_line.split()])
        patch.setattr(repro, "_run_and_pass_on_signals", run)
        command.main()
    return ran


def contents(folder):
    return {
        str(path): path.read_bytes()
        for name in OUTPUTS
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def test_an_unchanged_project_runs_nothing(folder):
    assert call(folder, "repro") == set()


def test_a_changed_attack_makes_its_own_set_again(folder):
    change_params(folder, lambda params: params["attacks"]["pgd"].update(eps="12/255"))
    sets = ("generate@clean-fgsm", "generate@clean-pgd")
    assert reproduce(folder, *sets) == {"generate@clean-pgd"}


def test_results_of_a_stage_that_did_not_end_are_restored_together(folder):
    before, stages = contents(folder), lineage.declared(folder)
    own = folder / "data/adversarial/mine/pgd/00000.h5"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"no run made this")
    with here(folder):
        small = earlier.small_results()
        model = folder / "models/refreshed.safetensors"
        tiny_project.replace(model, lambda new: new.write_bytes(b"of the run that did not end"))
        shutil.rmtree(folder / "data/refreshed/refreshed")
        history = folder / "plots/refreshed/history.csv"
        tiny_project.replace(history, lambda new: new.write_text("of the run that did not end"))
        grid = folder / "plots/clean/grid.csv"  # of a stage whose other results are small, too
        tiny_project.replace(grid, lambda new: new.write_text("of the run that did not end"))
        for lost in ("metrics/clean.json", "report/audit.json"):
            (folder / lost).unlink()
        assert earlier.restore(stages, small, repro.environment()) == []
        earlier.remove_undeclared_sets(stages)
    after = contents(folder)
    assert after.pop(str(own)) == b"no run made this"
    assert after == before


def test_results_that_the_cache_lacks_are_named(folder):
    model = folder / "models/refreshed.safetensors"
    md5 = hashlib.md5(model.read_bytes(), usedforsecurity=False).hexdigest()
    model.unlink()
    (folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    with here(folder):
        lost = earlier.restore(lineage.declared(folder), {}, repro.environment())
    assert lost == ["models/refreshed.safetensors"]


def test_a_new_attack_is_one_entry_and_its_share(folder, capsys):
    def add_attack(params):
        params["attacks"]["bim"] = {"attack": "BIM", "eps": "8/255", "alpha": "4/255", "steps": 2}
        params["mix"] = {"clean": 0.5, "bim": 0.5}

    change_params(folder, add_attack)
    ran = {"generate@clean-bim", "evaluate@clean"}
    assert call(folder, "repro", "evaluate@clean") == ran
    assert "bim" in json.loads((folder / "metrics/clean.json").read_text())["transfer"]
    with here(folder), dvc.repo.Repo(str(folder)) as repo:
        assert repo.status().keys() == READS_SETS - {"evaluate@clean"}
    shares = {"clean": 0.5, "fgsm": 0.25, "bim": 0.25}
    change_params(folder, lambda params: params.update(mix=shares))
    assert reproduce(folder, "finetune@robust") == {"finetune@robust"}

    def as_before(params):
        del params["attacks"]["bim"]
        params["mix"] = {"clean": 0.5, "fgsm": 0.25, "pgd": 0.25}

    change_params(folder, as_before)
    assert call(folder, "repro") == set(), "DVC's cache still has all of it"
    assert (
        "data/adversarial/clean/bim: removed, since params.yaml no longer asks for it"
        in capsys.readouterr().out
    )


def test_a_second_round_is_one_entry_per_list_of_models(folder):
    def second_round(params):
        params["attacked"].append("robust")
        params["finetuned"]["robust2"] = {"of": "robust", "best_on": "mixed", "refresh": None}

    change_params(folder, second_round)
    with pytest.raises(
        InputError, match=r"evaluate.models: expected every model, 'robust2' is missing \(add it\)"
    ):
        call(folder, "repro")
    change_params(folder, lambda params: params["evaluate"]["models"].append("robust2"))
    assert reproduce(folder, "finetune@robust2") == {
        "generate@robust-fgsm",
        "generate@robust-pgd",
        "finetune@robust2",
    }


def test_what_only_the_evaluation_reads_trains_nothing(folder):
    for name in ("attacks", "evaluate"):
        path = folder / "pipeline" / name / "__init__.py"
        text = path.read_text() + "# changed\n"
        tiny_project.replace(path, lambda new, text=text: new.write_text(text))
    threat = {"attack": "FGSM", "eps": "8/255", "restarts": 1}
    change_params(folder, lambda params: params["evaluate"]["threats"].update(more=threat))
    assert reproduce(folder, "train_clean") == set()
    path = folder / "pipeline/attacks/__init__.py"
    tiny_project.replace(
        path, lambda new: new.write_bytes((ROOT / path.relative_to(folder)).read_bytes())
    )
    assert reproduce(folder, "finetune@refreshed", "evaluate@clean") == {"evaluate@clean"}


JUDGES = {f"evaluate@{name}" for name in ("clean", "robust", "refreshed")}
TRAINS = {"finetune@robust", "finetune@refreshed"}


@pytest.mark.parametrize(
    ("edit", "stages"),
    [
        (lambda params: params["evaluate"]["curves"].update(n_eval=5), JUDGES),
        (lambda params: params["evaluate"]["ensemble"].update(n_eval=5), JUDGES),
        (lambda params: params["evaluate"].update(grid=None, ensemble=None), JUDGES),
        (lambda params: params["evaluate"]["threats"]["pgd"].update(steps=1), JUDGES),
        (lambda params: params["evaluate"].update(n_eval=9), JUDGES),
        (lambda params: params["selection"].update(steps=3), TRAINS),
        (lambda params: params["export"].update(min_clean=0.9), {"export"}),
        (lambda params: params["export"].update(model="refreshed"), {"export"}),
    ],
    ids=["curves", "ensemble", "grid", "threats", "n_eval", "selection", "min_clean", "model"],
)
def test_a_cheap_change_runs_only_what_it_decides(folder, edit, stages):
    change_params(folder, edit)
    with here(folder), dvc.repo.Repo(str(folder)) as repo:
        assert repo.status().keys() - {"audit"} == stages


def run_without_dvc(folder, act):
    """Run `repro` with `act` in place of DVC."""
    with here(folder) as patch:
        patch.setattr(sys, "argv", ["pipeline", "repro"])
        patch.setattr(repro, "_run_and_pass_on_signals", act)
        command.main()


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_threads_wait_for_a_moment_unless_the_user_has_chosen(monkeypatch, own, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert repro.environment().get("GOMP_SPINCOUNT") == expected


def test_params_that_are_edited_meanwhile_end_the_run_with_one_line(folder):
    before, lock = contents(folder), (folder / "dvc.lock").read_bytes()

    def edit(command, variables, stop, watch, lock):
        change_params(folder, lambda params: params["attacks"]["pgd"].update(eps="12/255"))
        tiny_project.replace(folder / "dvc.lock", lambda path: path.write_text("stages: {}\n"))
        watch.look()
        watch.look()
        return True

    with pytest.raises(InputError) as caught:
        run_without_dvc(folder, edit)
    assert str(caught.value) == (
        "params.yaml: edited while the pipeline ran, so the run was stopped; finished stages are"
        " kept. Run it again with the new values, or undo the edit first to resume the stage that"
        " was stopped"
    )
    assert (folder / "dvc.lock").read_bytes() == lock, "what ended after the edit is not recorded"
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("in_terminal", "is_changed", "is_planned"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_a_run_is_planned_first_where_somebody_watches(
    tmp_path, monkeypatch, capsys, in_terminal, is_changed, is_planned
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0")
    monkeypatch.setattr("sys.stdout.isatty", lambda: in_terminal)
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        error = "error: data.n_images: not known before data/raw is read; write --images N\n"
        return subprocess.CompletedProcess(command, int(is_changed), stderr=error)

    monkeypatch.setattr(subprocess, "run", run)
    repro._plan()
    assert (["-m", "pipeline", "plan"] in commands) is is_planned
    unknown = "it is not known how long the run takes: data.n_images: not known before data/raw is"
    assert (unknown in capsys.readouterr().out) is is_planned
    commands.clear()
    with monkeypatch.context() as patch:
        patch.setattr(repro.connection, "wanted", lambda: "auto")
        repro._plan()  # which measures this machine alone
    assert not commands
    remaining.keep({"prepare": 1.0})
    repro._plan()  # a kept plan is used
    assert not commands


def test_a_damaged_set_is_not_called_finished_and_the_remedy_works(folder):
    shard = folder / "data/clean/00001.h5"
    whole = shard.read_bytes()
    (cached,) = [
        path
        for path in (folder / ".dvc/cache").rglob("*")
        if path.is_file() and path.read_bytes() == whole
    ]
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    for path in (shard, cached):  # as a hard link from the one to the other is
        tiny_project.replace(path, lambda new: new.write_bytes(damaged))
    remedy = "python -m pipeline discard data/clean"
    with pytest.raises(InputError) as caught:
        run_without_dvc(folder, lambda *_: False)
    assert str(caught.value) == (
        f"data/clean: damaged: not what dvc.lock records; run `{remedy}`, then `dvc repro`"
    )
    call(folder, remedy.removeprefix("python -m pipeline "))
    assert reproduce(folder) == {"prepare"}
    assert shard.read_bytes() == whole
    run_without_dvc(folder, lambda *_: False)


def test_a_changed_file_of_metrics_is_made_again_by_its_stage(folder):
    path = folder / "metrics/robust.json"
    tiny_project.replace(path, lambda new: new.write_text("{}"))
    with pytest.raises(InputError, match=r"run `dvc repro --force --single-item evaluate@robust`$"):
        run_without_dvc(folder, lambda *_: False)


def test_the_script_of_the_docs_runs_as_written(folder, capsys):
    text = (ROOT / "docs/library.md").read_text().split("```python\n")[1].split("```")[0]
    assert 15 <= len([line for line in text.splitlines() if line]) <= 22
    with here(folder):
        exec(compile(text, "docs/library.md", "exec"), {})
    metrics = json.loads((folder / "metrics/robust.json").read_text())
    first, last = capsys.readouterr().out.splitlines()
    assert first.endswith("% of 30 images withstand PGD")
    worst, verdict = metrics["robust"]["worst"]["accuracy"], metrics["diagnostics"]["verdict"]
    assert last == f"worst: {worst:.1%}, evidence: {verdict}"


APGDT = {"attack": "APGDT", "eps": 0.1, "steps": 2, "n_restarts": 0, "eot_iter": 1, "rho": 0.75}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda params: params["attacks"]["pgd"].update(eps=8.0),
            "params.yaml: attacks.pgd.eps: expected more than 0 and at most 1",
        ),
        (
            lambda params: params["data"].update(source="npz", path="data/raw/none.npz"),
            "no such file or folder",
        ),
        (
            lambda params: params["evaluate"]["threats"].update(x={**APGDT, "restarts": 1}),
            "n_restarts: expected a whole number",
        ),
        (
            lambda params: params["evaluate"].update(seed=-1),
            "evaluate.seed: expected no such key, seed alone holds for it",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_runs(folder, edit, message):
    before = contents(folder)
    change_params(folder, edit)
    with pytest.raises(InputError) as caught:
        call(folder, "repro")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before


FINETUNE = {
    "module": "harden.finetune",
    "clean": "data/clean",
    "model": "models/clean.safetensors",
    "adversarial": "data/adversarial/clean",
    "sources": "data/adversarial/sources",
    "out": "robust.safetensors",
    "history": "x.csv",
    "refreshed": "x",
}
ONLINE = {
    "module": "harden.train_online",
    "clean": "data/clean",
    "model": "models/clean.safetensors",
    "out": "nope.safetensors",
    "history": "x.csv",
}
EVALUATE = {
    "module": "evaluate",
    "clean": "data/clean",
    "model": "models/clean.safetensors",
    "stored": "data/nope",
    "metrics": "x.json",
    "plots": "x",
}
GENERATE = {
    "module": "generate",
    "clean": "data/clean",
    "out": "x",
    "model": "models/clean.safetensors",
    "attack": "nope",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**FINETUNE, "model": "models/robust.safetensors"}, "against another model"),
        ({**FINETUNE, "model": "models/nope.safetensors"}, "nope.safetensors: no such model"),
        (
            {**FINETUNE, "adversarial": "data/clean"},
            "data/clean/fgsm: no such image set, which finetuned.robust mixes (found none)",
        ),
        (
            {**FINETUNE, "out": "nope.safetensors"},
            "finetuned.nope: expected an entry of that name in params.yaml, found none",
        ),
        (ONLINE, "online.nope: expected an entry of that name in params.yaml, found none"),
        (GENERATE, "attacks.nope: expected an entry of that name in params.yaml, found none"),
        (
            {**FINETUNE, "clean": "data/adversarial/clean/fgsm"},
            "clean/fgsm: expected a set of clean images, found one of kind adversarial",
        ),
        (EVALUATE, "data/nope: expected stored image sets, found none"),
    ],
)
def test_a_stage_alone_refuses_inputs_of_different_runs(folder, arguments, message):
    """Without DVC in between: each stage checks what it is given."""
    module, *paths = arguments.items()
    line = f"python -m pipeline.{module[1]} " + " ".join(f"--{key} {path}" for key, path in paths)
    with here(folder), pytest.raises(InputError) as caught:
        run_here(line)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("x*")) + list(folder.glob("*.safetensors"))


def test_a_replaced_file_of_starting_weights_trains_again(folder):
    own = folder / "models/pretrained/own.pth"

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

    change_params(folder, start)
    stages = {"train_clean", "train_online@x"}
    for content in (samples.state_dict("resnet18"), narrow.NarrowResNet().state_dict()):
        torch.save(content, own)
        assert reproduce(folder, *stages) == stages
        assert reproduce(folder, *stages) == set()
        rows = list(records.parameters(Project(folder, torch.device("cpu")), "train_online@x"))
        assert {row.verdict for row in rows} == {"ok"}
    own.unlink()
    with pytest.raises(
        InputError,
        match=(
            "^params.yaml: model.weights: models/pretrained/own.pth: no such file; put it there$"
        ),
    ):
        call(folder, "check")


def test_sets_of_one_machine_are_used_on_another(folder, tmp_path):
    with here(folder):
        assert cli.main(["remote", "add", "--default", "shared", str(tmp_path / "remote")]) == 0
        assert cli.main(["push", "--quiet"]) == 0
    other = tiny_project.copy(folder, tmp_path / "other")
    shutil.rmtree(other / ".dvc/cache")
    for out in ("data/clean", "data/adversarial/clean", "data/refreshed"):
        shutil.rmtree(other / out)
    for model in other.glob("models/*.safetensors"):
        model.unlink()
    with here(other):
        assert cli.main(["pull", "--quiet"]) == 0
    assert [*contents(other).values()] == [*contents(folder).values()]
    change_params(other, lambda params: params["finetuned"]["robust"].update(lr=0.02))
    assert call(other, "repro") == {"finetune@robust", "evaluate@robust", "export", "audit"}


def test_a_model_trained_elsewhere_is_judged_and_attacked(folder):
    torch.manual_seed(3)
    tensors = narrow.NarrowResNet(10).state_dict()
    mine = {"module.0.std": torch.full((3,), 0.25), "module.0.mean": torch.zeros(3)}
    mine |= _below("module.1.", tensors)
    torch.save({"model": mine, "epoch": 3}, folder / "data/raw/mine.pth")

    def adopt(params):
        file = {"architecture": "resnet18", "file": "data/raw/mine.pth"}
        params["adopted"] = {"mine": file}
        params["finetuned"]["after"] = {"of": "mine", "best_on": "mixed", "refresh": None}
        params["evaluate"]["models"] += ["mine", "after"]
        params["attacked"].append("mine")

    change_params(folder, adopt)
    assert reproduce(folder) == {
        "prepare",
        "adopt@mine",
        "generate@mine-fgsm",
        "generate@mine-pgd",
        "finetune@after",
        "evaluate@mine",
        "evaluate@after",
        "export",
        "audit",
    }
    assert reproduce(folder) == set()
    network = networks.load(folder / "models/mine.safetensors", class_names=DIGITS).network()
    assert torch.equal(network.conv1.weight, tensors["conv1.weight"] / 0.25)
    for name in ("mine", "after"):
        metrics = json.loads((folder / f"metrics/{name}.json").read_text())
        assert metrics["attack_passes"] is None, "nobody knows those of the adopted model"
    assert json.loads((folder / "report/audit.json").read_text())["failed"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": torch.zeros(1)}, "its tensors are not those of a resnet18"),
        (
            narrow.NarrowResNet(9).state_dict(),
            "a last layer for the 10 classes .*, found one for 9",
        ),
        (
            {"0.mean": torch.ones(3), **_below("1.", narrow.NarrowResNet(10).state_dict())},
            r"found 0.mean 1, 1, 1, which conv1 .*; a model is judged on images in \[0, 1\], so tr",
        ),
    ],
)
def test_a_model_of_another_kind_is_not_adopted(folder, content, message):
    torch.save(content, folder / "data/raw/mine.pth")

    def adopt(params):
        params["adopted"] = {"mine": {"architecture": "resnet18", "file": "data/raw/mine.pth"}}
        params["evaluate"]["models"].append("mine")

    change_params(folder, adopt)
    where = "adopted.mine.file: data/raw/mine.pth: "
    with here(folder), pytest.raises(InputError, match=f"^{where}.*{message}"):
        run_here(
            "python -m pipeline.adopt --clean data/clean --file data/raw/mine.pth "
            "--out models/mine.safetensors"
        )
    with pytest.raises(InputError, match=f"^params.yaml: {where}.*{message}"):
        call(folder, "repro")
    (folder / "data/raw/mine.pth").unlink()
    with pytest.raises(InputError, match=r"^params.yaml: adopted.mine.file: needs data/raw/mine"):
        call(folder, "check")


@pytest.mark.parametrize("name", ["PIPELINE_DEVICE", "PIPELINE_CLUSTER"])
def test_an_environment_that_is_not_there_stops_a_run_before_it_begins(folder, name):
    with here(folder) as patch:
        patch.setenv(name, "nonsense")
        with pytest.raises(InputError, match=f"^{name}: .*found 'nonsense'"):
            repro.repro()


def test_grey_images_of_28_pixels_and_their_own_split(tmp_path):
    tiny_project.create(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    labels = np.arange(60)[:, None] % 3 + 1
    parts = {"train": slice(0, 40), "val": slice(40, 52), "test": slice(52, 60)}
    arrays = {f"{part}_images": images[rows] for part, rows in parts.items()}
    arrays |= {f"{part}_labels": labels[rows] for part, rows in parts.items()}
    np.savez(tmp_path / "data/raw/own.npz", **arrays)

    def own(params):
        params["data"].update(source="npz", path="data/raw/own.npz", image_size=None)
        params["data"].update(n_images=None, n_val="from_source", n_test="from_source")
        del params["finetuned"]["refreshed"], params["attacks"]["fgsm"]
        params.update(mix={"clean": 0.5, "pgd": 0.5})
        params["evaluate"]["models"].remove("refreshed")
        params["evaluate"].update(n_eval=4)
        params["evaluate"]["ensemble"] = None

    change_params(tmp_path, own)
    reproduce(tmp_path)
    clean = store.ImageSet(tmp_path / "data/clean")
    assert (clean.load("val").images[:, 2] == images[40:52]).all()
    assert (clean.load("test").images[:, 2] == images[52:]).all()
    assert clean.class_names == ("1", "2", "3")
    assert json.loads((tmp_path / "report/audit.json").read_text())["failed"] == 0
    assert "0,1\n" in (tmp_path / "models/submission.classes.csv").read_text()
