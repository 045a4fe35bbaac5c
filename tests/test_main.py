import re
import runpy
import shutil
import sys
import tomllib
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from pipeline import __main__ as command
from pipeline import place, presets, repro
from pipeline.base.errors import InputError
from pipeline.networks import downloads
from tests.conftest import ROOT

# DVC's own, in this process.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in (".git", ".dvc", "data/raw", "data/adversarial/sources", "models/pretrained"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
    return command.main()


def test_a_preset_replaces_params_and_keeps_ones_own(folder, monkeypatch):
    assert call(monkeypatch, "preset", "assignment") == "params.yaml is now the preset assignment"
    own = (folder / "params.yaml").read_text().replace("seed: 0 ", "seed: 10 ")
    (folder / "params.yaml").write_text(own)
    assert call(monkeypatch, "preset", "quickstart").endswith(
        "; your own is kept as params.yaml.bak"
    )
    (folder / "params.yaml").write_text(own.replace("seed: 10 ", "seed: 11 "))
    assert call(monkeypatch, "preset", "quickstart").endswith(
        "; your own is kept as params.yaml.bak2"
    )
    assert (folder / "params.yaml.bak").read_text() == own
    assert (folder / "params.yaml").read_bytes() == (ROOT / "presets/quickstart.yaml").read_bytes()


def test_an_unknown_preset_is_refused_with_those_there_are(folder, monkeypatch):
    with pytest.raises(
        InputError,
        match=(
            "NAME=nope: no such preset; there are assignment, assignment-2026, assignment-b, "
            "cifar10"
        ),
    ):
        call(monkeypatch, "preset", "nope")


def test_the_presets_are_named_in_any_folder_of_the_project(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder / "pipeline")
    with pytest.raises(SystemExit):
        call(monkeypatch, "preset", "--help")
    assert "one of assignment, assignment-2026," in capsys.readouterr().out


def test_presets_need_a_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("preset", "plan"):
        with pytest.raises(
            InputError, match=f"^{tmp_path}: not the project folder: no presets; change to the fol"
        ):
            call(monkeypatch, name, "cifar10")
    with pytest.raises(SystemExit):
        call(monkeypatch, "preset", "--help")
    assert "one of" not in capsys.readouterr().out


def test_a_plan_of_a_preset_names_the_preset(folder, monkeypatch):
    from pipeline.plan import planning

    asked = []
    monkeypatch.setattr(planning, "plan", lambda *_, **named: asked.append(named) or "")
    call(monkeypatch, "plan", "cifar10")
    call(monkeypatch, "plan")
    assert asked == [{"where": "the preset cifar10"}, {"keep": True}]


def test_a_plan_says_that_it_measures_no_cluster(folder, monkeypatch, capsys):
    from pipeline.plan import planning

    monkeypatch.setattr(command.connection, "wanted", lambda: "auto")
    monkeypatch.setattr(planning, "plan", lambda *_, **__: "planned")
    assert call(monkeypatch, "plan") == "planned"
    assert capsys.readouterr().out == (
        "warning: PIPELINE_CLUSTER is set, but a plan measures this machine alone; a run would use"
        " the cluster\n"
    )


def test_check_says_why_there_will_be_no_ranking(folder, monkeypatch, capsys):
    path = folder / "params.yaml"
    text = path.read_text().replace("score: {max_eps: *eps}", "score: {max_eps: 4/255}")
    path.write_text(re.sub("model: auto", "model: robust", text))
    assert call(monkeypatch, "check") == "params.yaml is sound"
    assert capsys.readouterr().out == (
        "params.yaml: export.score: no eps of evaluate.grid is up to max_eps 0.0156863, "
        "so the models are not ranked\n"
    )


def test_a_copy_of_whole_params_is_a_preset(folder, monkeypatch):
    own = (folder / "params.yaml").read_text().replace("seed: 0 ", "seed: 10 ")
    (folder / "presets/mine.yaml").write_text(own)
    assert call(monkeypatch, "preset", "mine") == "params.yaml is now the preset mine"
    assert (folder / "params.yaml").read_text() == own
    assert presets.settings("mine").seed == 10


def test_a_preset_may_change_what_a_threat_inherits(folder):
    (folder / "presets/mine.yaml").write_text(
        "attacks: {fgsm: {eps: 8/255}}\nevaluate: {threats: {fgsm: {eps: 4/255}}}"
    )
    settings = presets.settings("mine")
    assert settings.attacks["fgsm"].eps == settings.evaluate.threats["pgd"].eps == 8 / 255
    assert settings.evaluate.threats["fgsm"].eps == 4 / 255


def test_a_preset_changes_the_one_that_it_is_based_on(folder):
    (folder / "presets/mine.yaml").write_text("based_on: assignment-b\nselection: {eps: 4/255}")
    own, other = presets.values("mine"), presets.values("assignment-b")
    assert own["selection"].pop("eps") == "4/255"
    assert other["selection"].pop("eps") == 0.01
    assert own == other
    assert own["data"]["path"] == "data/raw/Train.pt"
    assert own["attacks"]["fgsm"]["eps"] == own["export"]["score"]["max_eps"] == 0.05


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "presets/mine.yaml: expected sections such as data and model, found 'None'"),
        (b"a: [", "presets/mine.yaml:1: not YAML: expected the node content, but found"),
        (b"\xff", "presets/mine.yaml: not YAML: 'utf-8' codec can't decode byte 0xff"),
        (b"attacks: {fgsm: {eps: null}}", "presets/mine.yaml: attacks.fgsm.eps: expected more t"),
        (b"attacks: {pgd: {steps: yes}}", "presets/mine.yaml: attacks.pgd.steps: expected .* fou"),
        (b"based_on: mine", "presets/mine.yaml: based_on: expected a preset that is not based on"),
        (b"based_on: other", "presets/mine.yaml: based_on: no such preset; there are assignment,"),
        (b"based_on: [mine]", "presets/mine.yaml: based_on: no such preset; there are assignment"),
    ],
)
def test_a_preset_that_cannot_be_used_is_refused(folder, content, message):
    (folder / "presets/mine.yaml").write_bytes(content)
    with pytest.raises(InputError, match=f"^{message}"):
        presets.settings("mine")


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff"])
def test_other_presets_work_beside_one_that_cannot_be_read(folder, monkeypatch, content):
    (folder / "presets/mine.yaml").write_bytes(content)
    (folder / "params.yaml").write_bytes(b"\xff")
    assert call(monkeypatch, "preset", "cifar10").endswith("; your own is kept as params.yaml.bak")
    assert (folder / "params.yaml.bak").read_bytes() == b"\xff"


def test_check_finds_a_missing_source_before_anything_runs(folder, monkeypatch):
    assert call(monkeypatch, "check") == "params.yaml is sound"
    call(monkeypatch, "preset", "cifar10-cpu")
    with pytest.raises(
        InputError,
        match=r"data.path: data/raw/cifar10.npz: no such file or folder; put the npz source there",
    ):
        call(monkeypatch, "check")


def test_check_reads_the_starting_weights_that_are_here(folder, monkeypatch, capsys):
    path = folder / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("weights: null", "weights: models/pretrained/own.pth"))
    with pytest.raises(
        InputError,
        match=(
            r"^params.yaml: model.weights: models/pretrained/own.pth: no such file; put it "
            r"there$"
        ),
    ):
        call(monkeypatch, "check")
    path.write_text(text.replace("weights: null", "weights: IMAGENET1K_V2"))
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.setattr(downloads, "urlopen", lambda *_, **__: refuse())
    message = (
        "params.yaml: model.weights: IMAGENET1K_V2: resnet50-11ad3fa6.pth cannot be downloaded (no "
        "network) from https://download.pytorch.org/models/resnet50-11ad3fa6.pth; put that file, "
        f"whose SHA-256 begins with 11ad3fa6, into {folder}/hub/checkpoints, or set weights to a "
        "file in models/pretrained, or to null to start from scratch"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(monkeypatch, "check")
    assert repro.check() == "params.yaml is sound", "what is in DVC's cache needs no weights"
    assert capsys.readouterr().out == f"warning: {message}\n"


def refuse():
    raise OSError("no network")


def test_the_home_of_a_user_that_is_not_there_is_one_line(folder, monkeypatch):
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("path: data/raw ", "path: ~nobody-here/raw "))
    line = "params.yaml: data.path: expected ~ or a user of this machine after it, found ~nobody-he"
    with pytest.raises(InputError, match=line):
        call(monkeypatch, "check")


def test_the_home_folder_is_written_out_for_dvc(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    path = folder / "params.yaml"
    text = path.read_text()
    path.write_text(text.replace("path: data/raw ", "path: ~/data/raw "))
    repro._write_home()
    assert path.read_text() == text.replace("path: data/raw ", f"path: {folder}/data/raw ")
    assert capsys.readouterr().out == (
        f"params.yaml: data.path: ~/data/raw is now {folder}/data/raw, since DVC does not know ~\n"
    )
    path.write_text(text.replace("path: data/raw ", "path: ~/data/raw  # ~/data/raw"))
    with pytest.raises(InputError, match=f"without ~, .*, found ~/data/raw; write {folder}/data"):
        repro._write_home()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PIPELINE_DEVICE", "cuda", "has no GPU. Unset it: a cluster's GPUs are used where there"),
        ("PIPELINE_DEVICE", "cup", "found 'cup'"),
        ("PIPELINE_DEVICE", "cuda:1", "found cuda:1. Write cuda."),
        ("PIPELINE_CLUSTER_CPUS", "0", "found '0'"),
        ("PIPELINE_TRAIN_WORKERS", "two", "found 'two'"),
    ],
)
def test_check_finds_what_no_cluster_can_use(folder, monkeypatch, name, value, message):
    monkeypatch.setenv("PIPELINE_CLUSTER", "auto")
    monkeypatch.setattr(repro.connection.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name}: .*{message}"):
        call(monkeypatch, "check")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_val: 200", "n_val: 1495", "data.n_val: expected from 10 to 1490 of 1500 images, found"),
        ("n_images: null", "n_images: 10", "data.n_images: expected at least 20 images, two for e"),
        ("n_images: null", "n_images: 2000", "data.n_images: expected at most 1797, all that the"),
    ],
)
def test_check_finds_choices_that_the_source_cannot_give(folder, monkeypatch, old, new, message):
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=f"^params.yaml: {message}"):
        call(monkeypatch, "check")


def test_check_says_what_is_seldom_meant(folder, monkeypatch, capsys):
    path = folder / "params.yaml"
    text = path.read_text().replace("alpha: &alpha 8/255", "alpha: &alpha 40/255")
    path.write_text(text.replace("\nattacks:", "\nattacks:\n  x: {attack: FGSM, eps: 8/255}\n#"))
    call(monkeypatch, "check")
    lines = capsys.readouterr().out.splitlines()
    more = "alpha 0.156863 is more than eps 0.12549, so every step leaves the eps ball and is cut"
    assert lines[0].startswith(f"params.yaml: attacks.pgd: {more}")
    assert lines[1].startswith(f"params.yaml: evaluate.threats.pgd: {more}")
    assert lines[2].startswith("params.yaml: attacks.x: in no mix, so its images are stored and no")


def test_check_says_which_stored_images_may_be_clean(folder, monkeypatch, capsys):
    path = folder / "params.yaml"
    apgd = (
        "{attack: APGD, eps: &eps 32/255, steps: 5, n_restarts: 1, loss: ce, eot_iter: 1, rho: 1}"
    )
    text = path.read_text().replace("{<<: *fgsm}", "{attack: FGSM, eps: *eps}")
    path.write_text(text.replace("&fgsm {attack: FGSM, eps: &eps 32/255}", apgd))
    call(monkeypatch, "check")
    assert "attacks.fgsm: APGD returns images that it does not fool" in capsys.readouterr().out


def test_check_names_the_words_of_an_attack(folder, monkeypatch):
    path = folder / "params.yaml"
    tifgsm = (
        "{attack: TIFGSM, eps: 8/255, alpha: 2/255, steps: 2, decay: 1, kernel_name: gaus, "
        "len_kernel: 5, nsig: 3,"
    )
    tifgsm += " resize_rate: 0.9, diversity_prob: 0.5, random_start: true}"
    path.write_text(path.read_text().replace("\nattacks:", f"\nattacks:\n  ti: {tifgsm}\n#"))
    with pytest.raises(
        InputError,
        match=(
            "^params.yaml: attacks.ti.kernel_name: expected gaussian, linear or uniform, found "
            r"'gaus'; did you mean gaussian\?$"
        ),
    ):
        call(monkeypatch, "check")


def test_check_counts_the_classes_that_a_loss_compares(folder, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    np.savez(folder / "data/raw/two.npz", images=images, labels=np.arange(8) % 2)
    path = folder / "params.yaml"
    text = (
        path.read_text()
        .replace("source: digits", "source: npz")
        .replace("path: data/raw ", "path: data/raw/two.npz ")
        .replace("n_val: 200", "n_val: 2")
        .replace("n_test: 297", "n_test: 0")
    )
    upgd = (
        "{attack: UPGD, eps: 8/255, alpha: 2/255, steps: 2, random_start: true, loss: LOSS, "
        "decay: 1.0, eot_iter: 1}"
    )
    text = text.replace("\nattacks:", f"\nattacks:\n  up: {upgd}\n#")
    path.write_text(text.replace("LOSS", "ce"))
    assert call(monkeypatch, "check") == "params.yaml is sound"
    path.write_text(text.replace("LOSS", "dlr"))
    with pytest.raises(
        InputError,
        match=(
            "^attacks.up: expected at least 3 classes, which the loss of UPGD compares, found 2; "
            "use another"
        ),
    ):
        call(monkeypatch, "check")


def test_check_prints_what_prepare_does(folder, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)
    np.savez(folder / "data/raw/two.npz", images=images, labels=np.array(["b", "a"] * 4))
    path = folder / "params.yaml"
    path.write_text(
        path.read_text()
        .replace("source: digits", "source: npz")
        .replace("path: data/raw ", "path: data/raw/two.npz ")
        .replace("n_val: 200", "n_val: 2")
        .replace("n_test: 297", "n_test: 0")
    )
    assert call(monkeypatch, "check") == "params.yaml is sound"
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "data/raw/two.npz: 8 images resized to 32 x 32",
        "data/raw/two.npz: 8 labels read as the names of classes",
        "data/raw/two.npz: classes 0 = a, 1 = b",
    ]


def test_a_tracked_source_that_is_missing_is_fetched_by_dvc(folder, monkeypatch):
    call(monkeypatch, "preset", "cifar10-cpu")
    (folder / "data/raw/cifar10.npz.dvc").touch()
    with pytest.raises(
        InputError, match="no such file or folder; `dvc pull data/raw/cifar10.npz` fetches it$"
    ):
        call(monkeypatch, "check")


def test_clean_partial_deletes_nothing_while_a_run_works_on_it(folder, monkeypatch, capsys):
    part = folder / "data/.clean.0123456789abcdef.part"
    part.mkdir()
    with (
        place.only_one(folder),
        pytest.raises(InputError, match="another `repro` is running in this folder"),
    ):
        call(monkeypatch, "clean-partial")
    assert part.exists()
    call(monkeypatch, "clean-partial")
    assert str(part.relative_to(folder)) in capsys.readouterr().out
    assert not part.exists()


def test_results_and_plans_need_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("results", "plan"):
        with pytest.raises(InputError, match="not the project folder: no dvc.yaml and no params"):
            call(monkeypatch, name)


def test_an_audit_without_a_path_is_of_the_project(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "audit_project", lambda path, robust: seen.append(path) or "")
    elsewhere = folder / "data/raw"
    for where, arguments in (
        (elsewhere, ["audit"]),
        (folder.parent, ["--project", str(folder), "audit"]),
        (elsewhere, ["audit", "../clean"]),
        (folder.parent, ["--project", str(folder), "audit", str(folder / "models")]),
    ):
        monkeypatch.chdir(where)
        call(monkeypatch, *arguments)
    assert [str(path) for path in seen] == [".", ".", "data/clean", "models"]


def test_a_path_is_found_where_the_project_is_a_link(folder, tmp_path_factory, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "audit_project", lambda path, robust: seen.append(path) or "")
    deeper = tmp_path_factory.mktemp("links") / "a/b"
    deeper.mkdir(parents=True)
    (deeper / "link").symlink_to(folder)
    (deeper / "other").mkdir()
    monkeypatch.chdir(deeper)
    for path in ("link/data/raw", str(folder / "data/raw"), "other"):
        call(monkeypatch, "--project", "link", "audit", path)
    assert [str(path) for path in seen[:2]] == ["data/raw"] * 2
    assert (folder / seen[2]).resolve() == deeper / "other"


def test_results_need_metrics(folder, monkeypatch):
    with pytest.raises(InputError, match="metrics: no metrics yet"):
        call(monkeypatch, "results")


@pytest.mark.parametrize(
    "stage",
    ["prepare", "train", "generate", "harden.finetune", "harden.train_online", "adopt", "evaluate",
     "export", "audit", "report"],
)  # fmt: skip
def test_every_stage_helps_outside_a_project(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"pipeline.{stage}", run_name="__main__", alter_sys=True)
    assert caught.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_the_installed_command_is_the_module(folder, monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    run = EntryPoint("hardening", scripts["hardening"], "console_scripts").load()
    monkeypatch.setattr(command.console.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["hardening", "preset", "quickstart"])
    run()
    assert capsys.readouterr().out.startswith("params.yaml is now the preset quickstart")
