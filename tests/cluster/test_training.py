from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline import networks
from pipeline.base.errors import InputError
from pipeline.cluster import connection, freight, training
from tests import narrow, tiny_project
from tests.conftest import ROOT, make_block, write_set

ray = pytest.importorskip("ray", reason="Ray is not installed (`make cluster`)")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two cores of this machine."""
    mark = tmp_path_factory.mktemp("mark") / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        variables = {"PYTHONPATH": str(ROOT), "PIPELINE_TEST_MARK": str(mark)}
        ray.init(
            "local", num_cpus=2, include_dashboard=False, log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": variables},
        )  # fmt: skip
        yield mark
        ray.shutdown()


@pytest.fixture
def train(cluster, tmp_path, monkeypatch):
    """Trains on two workers in a new project, with the files that it made by name."""
    from tests.cluster import training_jobs

    monkeypatch.setenv("PIPELINE_CLUSTER", "local")
    monkeypatch.setenv(training.VARIABLE, "2")
    monkeypatch.setattr(connection, "connected", lambda _: nullcontext())

    def trained(job, folder, epochs=3):
        project = tmp_path / folder
        project.mkdir()
        write_set(project / "data/clean", make_block(80))
        params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
        tiny_project.tiny(params)
        params["clean"]["epochs"] = epochs
        YAML().dump(params, project / "params.yaml")
        monkeypatch.chdir(project)
        args = Namespace(
            clean=Path("data/clean"), out=Path("models/m.safetensors"), history=Path("plots/h.csv")
        )
        done = training.train(
            getattr(training_jobs, job), args, inputs=["clean"], outputs=["out", "history"]
        )
        made = [path for path in project.rglob("*") if path.is_file()]
        return done, {str(path.relative_to(project)): path.read_bytes() for path in made}

    return trained


def test_a_training_that_loses_a_worker_ends_with_the_same_bytes(train, cluster, capsys):
    done, whole = train("narrow_train", "whole")
    said = capsys.readouterr().out
    assert "training on 2 workers with 1 core each; their number is part of the result" in said
    assert said.count("train the clean model: epoch") == 3
    assert "on 2 workers, each cpu (1 threads)" in done
    assert not [name for name in whole if name.endswith(".part")]
    _, disturbed = train("dying_train", "disturbed")
    said = capsys.readouterr().out
    assert cluster.exists(), "a worker was killed"
    assert said.count("a worker was lost") == 1
    assert "resuming after batch 0 of epoch 2" in said
    assert disturbed == whole
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        checkpoint = networks.load(Path("models/m.safetensors"), class_names=("a", "b", "c"))
    assert checkpoint.provenance["workers"] == 2


def test_what_a_stage_refuses_on_a_worker_is_one_line(train):
    with pytest.raises(InputError, match="t: the loss is nan after epoch 1; lower its lr"):
        train("refusing_train", "refused")
    assert not Path("plots/h.csv").exists()


def test_a_cluster_without_room_says_so_and_ends(train, monkeypatch, capsys):
    monkeypatch.setenv(training.VARIABLE, "9")
    monkeypatch.setattr(training, "PATIENCE", 0.5)
    monkeypatch.setattr(training, "WAIT", 1.0)
    with pytest.raises(InputError, match="no room for 9 workers with 1 core each in 1 s; start"):
        train("narrow_train", "crowded")
    assert "the cluster has no room for 9 workers with 1 core each" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["0", "two", "-1"])
def test_another_number_of_workers_is_refused(train, monkeypatch, asked):
    monkeypatch.setenv(training.VARIABLE, asked)
    with pytest.raises(InputError, match="PIPELINE_TRAIN_WORKERS: expected a whole number from 1"):
        train("narrow_train", "x")


def test_without_a_cluster_the_stage_itself_runs(monkeypatch):
    monkeypatch.delenv("PIPELINE_CLUSTER", raising=False)
    args = Namespace()
    assert training.train(lambda given: str(given is args), args, inputs=[], outputs=[]) == "True"


def test_files_outside_the_project_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert freight.inside(tmp_path / "a/b") == Path("a/b")
    with pytest.raises(InputError, match="outside the project's folder .* move it there"):
        freight.inside(tmp_path.parent / "x")
