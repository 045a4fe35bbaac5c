from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from torch import multiprocessing

from pipeline import networks
from pipeline.base.errors import InputError
from pipeline.cluster import connection, freight, slots, training
from tests import narrow, tiny_project
from tests.conftest import ROOT, make_block, write_set

ray = pytest.importorskip("ray", reason="Ray is not installed (`make cluster`)")


@pytest.fixture(scope="module")
def cluster(loopback, tmp_path_factory):
    """Three nodes of one core. The jobs kill one once, and leave a mark."""
    from ray.cluster_utils import Cluster

    mark = tmp_path_factory.mktemp("mark") / "killed"
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    head = nodes.head_node.node_id
    for _ in range(2):
        nodes.add_node(wait=False, num_cpus=1)
    nodes.wait_for_nodes()
    variables = {
        "PYTHONPATH": str(ROOT), "PIPELINE_TEST_MARK": str(mark), "PIPELINE_TEST_HEAD": head,
    }  # fmt: skip
    ray.init(
        nodes.address, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": variables},
    )  # fmt: skip
    yield mark
    ray.shutdown()
    nodes.shutdown()


ARGS = Namespace(
    clean=Path("data/clean"), out=Path("models/m.safetensors"), history=Path("plots/h.csv")
)


def make_project(folder):
    folder.mkdir()
    write_set(folder / "data/clean", make_block(80))
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    tiny_project.tiny(params)
    params["clean"]["epochs"] = 3
    YAML().dump(params, folder / "params.yaml")
    return folder


def made(project):
    files = [path for path in project.rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): path.read_bytes() for path in files}


@pytest.fixture
def train(cluster, tmp_path, monkeypatch):
    """Trains on workers of the cluster in a new project, which it returns with what was said."""
    from tests.cluster import training_jobs

    monkeypatch.setenv("PIPELINE_CLUSTER", "auto")
    monkeypatch.setattr(connection, "connected", lambda _: nullcontext())

    def trained(job, n_workers=2):
        project = make_project(tmp_path / job)
        (cluster.parent / "project").write_text(str(project))
        monkeypatch.chdir(project)
        monkeypatch.setenv(slots.WORKERS, str(n_workers))
        work = getattr(training_jobs, job)
        return training.train(work, ARGS, inputs=["clean"], outputs=["out", "history"]), project

    return trained


def test_a_training_that_loses_a_node_has_the_bytes_of_two_plain_processes(
    train, cluster, tmp_path, capsys
):
    from tests.cluster import training_jobs

    for name in ("project", "second"):
        make_project(tmp_path / name)
    multiprocessing.spawn(training_jobs.train_alone, (ARGS, tmp_path), 2)  # Ray bears no fork
    capsys.readouterr()
    done, project = train("dying_train")
    said = capsys.readouterr().out
    assert "training on 2 workers with 1 core each; their number is part of the result" in said
    assert "on 2 workers, each cpu (1 thread)" in done
    assert cluster.exists(), "a node was killed"
    assert said.count("a worker was lost") == 1
    assert "resuming after batch 0 of epoch 2" in said
    assert said.count("train the clean model: epoch 3 of 3") == 1
    assert made(project) == made(tmp_path / "project")
    with pytest.MonkeyPatch.context() as patch:
        narrow.replace_resnet18(patch)
        checkpoint = networks.load(Path("models/m.safetensors"), class_names=("a", "b", "c"))
    assert checkpoint.provenance["workers"] == 2


def test_what_a_stage_refuses_on_a_worker_is_one_line(train):
    with pytest.raises(InputError, match="t: the loss is nan after epoch 1; lower its lr"):
        train("refusing_train", n_workers=1)
    assert not Path("plots/h.csv").exists()


def test_a_cluster_without_room_says_so_and_ends(train, monkeypatch, capsys):
    monkeypatch.setattr(training, "PATIENCE", 0.5)
    monkeypatch.setattr(training, "WAIT", 1.0)
    with pytest.raises(InputError, match="no room for 9 workers with 1 core each in 1 s; start"):
        train("narrow_train", n_workers=9)
    assert "the cluster has no room for 9 workers with 1 core each" in capsys.readouterr().out


def test_without_a_cluster_the_stage_itself_runs(monkeypatch):
    monkeypatch.delenv("PIPELINE_CLUSTER", raising=False)
    args = Namespace()
    assert training.train(lambda given: str(given is args), args, inputs=[], outputs=[]) == "True"


def test_files_outside_the_project_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert freight.inside(tmp_path / "a/b") == Path("a/b")
    with pytest.raises(InputError, match="outside the project's folder .* move it there"):
        freight.inside(tmp_path.parent / "x")
