"""Real Ray on loopback: nodes of one core each."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from pipeline.attacks.params import Threat
from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.cluster import connection
from pipeline.cluster import opened as cluster
from pipeline.cluster.here import Here
from pipeline.evaluate import whitebox
from pipeline.evaluate.target import Target
from tests.cluster import job
from tests.cluster.job import Square
from tests.conftest import PGD, ROOT, make_block, write_set

ray = pytest.importorskip("ray", reason="Ray is not installed: make cluster")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

STEPS = 60


@pytest.fixture(scope="module")
def head(loopback):
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def nodes(head):
    """Two nodes beside the first one, which cannot be spared. Tests at the end kill them."""
    added = [head.add_node(wait=False, num_cpus=1) for _ in range(2)]
    head.wait_for_nodes()
    return added


@pytest.fixture(scope="module")
def opened(head, nodes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", head.address)
        patch.setenv(connection.VARIABLE, "auto")
        patch.setenv("PIPELINE_DEVICE", "cpu")
        with cluster.opened() as workers:
            yield workers


@pytest.fixture
def dying(opened, nodes):
    """Return a function that kills a node, with its worker, as soon as that computes an item."""
    opened._kinds()  # so that all nodes have a worker that is ready
    threads = []

    def kill():
        (raylet,) = nodes.pop().all_processes["raylet"]
        parent = str(raylet.process.pid)
        while subprocess.run(["pgrep", "-P", parent, "-f", "ray::run"], stdout=-3).returncode:
            time.sleep(0.02)
        # The worker first: it would otherwise finish its item before it misses its node.
        subprocess.run(["pkill", "-KILL", "-P", parent], check=True)
        raylet.process.kill()

    def kill_soon():
        threads.append(threading.Thread(target=kill))
        threads[-1].start()

    yield kill_soon
    threads[-1].join()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("clean") / "clean", make_block(160))


def content(images):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(images.path.glob("*.h5"))
    }


@pytest.fixture(scope="module")
def longer(clean, tmp_path_factory):
    """The same with many steps, so that there is time to disturb it."""
    here = Here(torch.device("cpu"))
    return content(job.generate(clean, tmp_path_factory.mktemp("longer") / "pgd", here, STEPS))


@pytest.fixture(scope="module")
def plain(clean, tmp_path_factory):
    return content(
        job.generate(clean, tmp_path_factory.mktemp("plain") / "pgd", Here(torch.device("cpu")))
    )


def test_results_keep_the_order_and_few_items_are_under_way(opened):
    sent = []

    def items():
        for number in range(40):
            sent.append(number)
            yield number

    for taken, square in enumerate(opened.map(Square(), items())):
        assert square == taken**2
        assert len(sent) - taken <= 6
    assert opened.processors == Here(torch.device("cpu")).processors
    assert opened.described == "cpu (1 thread)"


def test_a_set_made_on_three_nodes_has_the_same_bytes(opened, clean, plain, tmp_path):
    assert content(job.generate(clean, tmp_path / "pgd", opened)) == plain


def test_an_item_that_fails_ends_the_run_with_one_line(opened):
    found = opened.map(Square(fails_at=2), range(9))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(InputError, match=r"a task failed on a node \(.*no square of 2\)"):
        list(found)


def test_an_item_whose_workers_always_die_ends_the_run(opened, monkeypatch):
    monkeypatch.setattr("pipeline.cluster.nodes.ATTEMPTS", 2)
    with pytest.raises(InputError, match="the workers of one task died 2 times"):
        list(opened.map(Square(dies_at=0), range(3)))


def test_a_stop_cancels_what_runs(opened):
    stop = console.Stop()
    threading.Timer(1.0, lambda: setattr(stop, "asked", True)).start()
    start = time.monotonic()
    assert list(opened.map(Square(seconds=60.0), range(6), stop)) == []
    assert time.monotonic() - start < 20
    assert next(opened.map(Square(), [3])) == 9, "the slots are free again"


def test_a_cluster_without_a_free_slot_says_so(opened, monkeypatch):
    from pipeline.cluster import nodes as module

    monkeypatch.setattr(module, "FREE_WITHIN", 3.0)

    @ray.remote(num_cpus=1)
    class Busy:
        def ready(self):
            return True

    n_slots = sum(opened._slot.fits(ray.nodes()).values())
    busy = [Busy.remote() for _ in range(n_slots)]
    ray.get([one.ready.remote() for one in busy])
    with pytest.raises(
        InputError, match=rf"no slot became free within 3 s.*has {n_slots} such slots"
    ):
        module.Nodes()
    for one in busy:
        ray.kill(one)


def test_another_kind_of_processor_is_refused(opened, monkeypatch):
    monkeypatch.setattr(opened, "_allowed", {"cuda (another)"})
    with pytest.raises(InputError, match="a node computes on cpu .*, expected"):
        list(opened.map(Square(), [1]))


def test_a_cluster_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for name in ("auto", "ray://127.0.0.1:1"):
        with pytest.raises(InputError, match="cannot be reached"), connection.connected(name):
            pass


def start(head, clean, out):
    env = {
        **os.environ,
        "RAY_ADDRESS": head.address,
        connection.VARIABLE: "auto",
        "PIPELINE_DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "tests.cluster.job", clean.path, out, str(STEPS)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, cwd=ROOT, text=True, **pipes)


def wait_for_a_shard(folder):
    deadline = time.monotonic() + 300  # Ray gives its workers little of a busy machine
    while not list(folder.glob(".pgd*.part/00000.h5")) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_ctrl_c_keeps_whole_shards(opened, clean, longer, tmp_path):
    def press():
        wait_for_a_shard(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(console.Interrupted, match="images are done"):
        job.generate(clean, tmp_path / "pgd", opened, STEPS)
    pressing.join()
    assert list(tmp_path.glob(".pgd*.part/00000.h5"))
    here = Here(torch.device("cpu"))
    assert content(job.generate(clean, tmp_path / "pgd", here, STEPS)) == longer


def test_a_node_that_dies_in_generation_changes_nothing(
    opened, dying, clean, longer, tmp_path, capsys
):
    console.say_once.cache_clear()
    capsys.readouterr()
    dying()
    assert content(job.generate(clean, tmp_path / "pgd", opened, STEPS)) == longer
    assert capsys.readouterr().out.count("its work runs again elsewhere") == 1


def test_a_node_that_dies_in_judging_changes_nothing(opened, dying, capsys):
    block, network = make_block(96), job.network()
    threat = Threat.model_validate({**PGD, "steps": 60, "restarts": 2})
    here, there = (
        Target.of(network, 3, batch_size=8, seed=0, image_size=block.images.shape[2], workers=one)
        for one in (None, opened)
    )
    expected = whitebox.withstands(here, block, threat, "judge")
    dying()
    found = whitebox.withstands(there, block, threat, "judge")
    assert [mask.tolist() for mask in found.after] == [mask.tolist() for mask in expected.after]
    assert found.passes.as_metrics() == expected.passes.as_metrics()
    by_steps = [whitebox.by_steps(one, block, threat, [1, 4], "steps") for one in (here, there)]
    assert all((by_steps[0][count] == by_steps[1][count]).all() for count in (1, 4))


def test_a_killed_driver_resumes_at_its_whole_shards(head, nodes, clean, longer, tmp_path):
    running = start(head, clean, tmp_path / "pgd")
    wait_for_a_shard(tmp_path)
    running.kill()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == -signal.SIGKILL, errors
    assert list(tmp_path.glob(".pgd*.part/00000.h5"))
    here = Here(torch.device("cpu"))
    assert content(job.generate(clean, tmp_path / "pgd", here, STEPS)) == longer
