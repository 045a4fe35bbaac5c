"""What a run on a cluster refuses, with Ray's answers replaced: no cluster is started."""

from types import SimpleNamespace

import pytest

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.cluster import on_worker
from tests.cluster.test_here import node

ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster")
from pipeline.cluster import nodes, training, worker  # noqa: E402

OWN = tuple(f"{name} {on_worker.version(name)}" for name in on_worker.LIBRARIES)


@pytest.fixture
def answers(monkeypatch):
    """A cluster of one node whose kinds a test chooses."""
    found = [on_worker.Kind("cpu (AVX512)", "cpu (2 threads)", OWN)]
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    monkeypatch.delenv(nodes.MIXED, raising=False)
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [node(CPU=2.0)])
    monkeypatch.setattr(nodes.Nodes, "_expect_free", lambda _: None)
    monkeypatch.setattr(nodes.Nodes, "_kinds", lambda _: found)
    return found


def test_several_kinds_of_processors_are_refused_unless_they_are_allowed(answers, monkeypatch):
    answers.append(on_worker.Kind("cpu (AVX2)", "cpu (2 threads)", OWN))
    with pytest.raises(InputError, match=r"kinds of processors.*cpu \(AVX2\); cpu \(AVX512"):
        nodes.Nodes()
    monkeypatch.setenv(nodes.MIXED, "1")
    assert nodes.Nodes().processors == "cpu (AVX2) + cpu (AVX512)"


def test_nodes_with_other_libraries_are_refused(answers):
    answers[0] = answers[0]._replace(versions=("numpy 1.0", *OWN[1:]))
    with pytest.raises(InputError, match=r"a node has numpy 1\.0.*expected numpy"):
        nodes.Nodes()


def test_nodes_that_come_late_are_checked(answers, monkeypatch):
    opened = nodes.Nodes()
    with pytest.raises(InputError, match=r"computes on cpu \(AVX2\).*Remove it, or run again with"):
        opened._expect_allowed("cpu (AVX2)")
    monkeypatch.setenv(nodes.MIXED, "1")
    with pytest.raises(InputError, match="It came after the start. Run again, so that"):
        opened._expect_allowed("cpu (AVX2)")


def test_no_node_that_answers_is_one_line(answers, monkeypatch):
    opened = nodes.Nodes()
    monkeypatch.undo()
    task = SimpleNamespace(options=lambda **_: task, remote=lambda *_: "reference")
    fake = SimpleNamespace(
        remote=lambda _: task,
        nodes=lambda: [node("ab" * 28, CPU=2.0)],
        wait=lambda *_, **__: ([], ["reference"]),
        cancel=lambda *_, **__: None,
    )
    monkeypatch.setattr(nodes, "ray", fake)
    with pytest.raises(InputError, match="no node answers"):
        opened._kinds()


def test_a_node_that_cannot_compute_is_one_line(monkeypatch):
    def fail(_):
        raise ray.exceptions.RayTaskError("kind", "ModuleNotFoundError: no torch", None)

    monkeypatch.setattr(nodes.ray, "get", fail)
    with pytest.raises(InputError, match=r"a node cannot compute.*no torch"):
        nodes._kind("reference")


def test_no_node_that_is_left_is_one_line(answers, monkeypatch):
    opened = nodes.Nodes()
    task = SimpleNamespace(options=lambda **_: task, remote=lambda *_: "reference")
    monkeypatch.setattr(nodes.ray, "remote", lambda _: task)
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [node(alive=False, CPU=2.0)])
    monkeypatch.setattr(nodes.ray, "wait", lambda *_, **__: ([], []))
    monkeypatch.setattr(nodes, "FREE_WITHIN", -1.0)
    flight = nodes._Flight("job", opened._slot)
    flight.send("item", 1)
    with pytest.raises(InputError, match="no node is left"):
        flight.first(console.Stop())


def test_a_training_whose_workers_always_die_ends_with_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    job = training._Training.__new__(training._Training)
    job._out, job._outcome, job._received = tmp_path / "m.safetensors", None, set()
    monkeypatch.setattr(training._Training, "_wait_for_slots", lambda _: None)
    monkeypatch.setattr(training._Training, "_attempt", lambda _: "a node died")
    monkeypatch.setattr(training._Training, "_clean", lambda _: None)
    with pytest.raises(InputError, match=r"failed 3 times without saving.*last: a node died"):
        job.run()


def test_workers_of_several_kinds_do_not_train_together(monkeypatch):
    def gathered(kinds, own):
        kinds[:] = [own, "cuda (another), torch 2.11"]

    monkeypatch.setattr(worker.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(worker.distributed, "all_gather_object", gathered)
    with pytest.raises(InputError, match=r"workers are of several kinds.*cuda \(another\)"):
        worker._expect_one_kind()


def test_only_what_a_worker_changes_itself_is_sent_back(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "INTERVAL", 0.01)
    given, own, other = (tmp_path / f".m.{name}.part" for name in ("given", "own", "other"))
    for path in (given, other):
        path.write_bytes(b"as the driver sent it")
    messages = []
    job = SimpleNamespace(changing=[".m.*.part"], mailbox=SimpleNamespace(put=messages.append))
    with worker._reporting(job):
        own.write_bytes(b"saved")
        given.unlink()
    assert messages.count(("gone", given.name)) == 1
    assert [message[:2] for message in messages if message[0] == "file"] == [("file", own.name)]
    driver = training._Training.__new__(training._Training)
    given.write_bytes(b"the driver's own")
    driver._handle("gone", given.name)
    assert not given.exists()
    assert other.exists()
