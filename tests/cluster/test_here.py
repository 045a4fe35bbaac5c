import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.cluster import connection, freight, slots, training
from pipeline.cluster.here import Here
from tests.cluster.job import Square

CPU = torch.device("cpu")


def node(name="a", alive=True, **resources):
    return {"NodeID": name, "Alive": alive, "Resources": resources}


def test_without_the_variable_this_process_works_and_ray_is_not_imported(monkeypatch):
    program = (
        "import sys; from pipeline.cluster import opened; from tests.cluster.job import Square\n"
        "with opened.opened() as workers: print(list(workers.map(Square(), range(3))))\n"
        "sys.exit('ray' in sys.modules)"
    )
    env = {**os.environ, connection.VARIABLE: ""}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout == "[0, 1, 4]\n"


def test_items_are_computed_one_by_one_until_a_stop():
    taken, stop = [], console.Stop()

    def items():
        for number in range(5):
            taken.append(number)
            yield number

    found = Here(CPU).map(Square(), items(), stop)
    assert next(found) == 0
    assert taken == [0]
    stop.asked = True
    assert list(found) == []
    assert Here(CPU).batches(100) == 1


@pytest.mark.parametrize("name", ["remote", "ray://host", "http://host:1", "10.0.0.1:6379"])
def test_other_clusters_are_refused(monkeypatch, name):
    monkeypatch.setenv(connection.VARIABLE, name)
    with pytest.raises(InputError, match=r"expected local, auto or ray://HOST:PORT, found"):
        connection.wanted()


def test_a_missing_ray_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv(connection.VARIABLE, "local")
    monkeypatch.setattr(connection.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="Ray is not installed. Run `make cluster`."):
        connection.wanted()


def test_one_machine_without_gpus_trains_without_ray(monkeypatch):
    monkeypatch.setenv(connection.VARIABLE, "local")
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    monkeypatch.delenv(slots.WORKERS, raising=False)
    monkeypatch.setattr(connection.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(connection, "connected", None)
    done = training.train(lambda args: args.text, Namespace(text="done"), inputs=[], outputs=[])
    assert done == "done"


def test_a_slot_is_a_gpu_or_some_cores(monkeypatch):
    monkeypatch.delenv("PIPELINE_DEVICE", raising=False)
    mixed = [node("a", CPU=16.0), node("b", CPU=8.0, GPU=2.0), node("c", alive=False, CPU=64.0)]
    slot = slots.choose(mixed)
    assert (slot.kind, slot.words, slot.fits(mixed)) == ("cuda", "a GPU and 1 core", {"b": 2})
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    slot = slots.choose(mixed)
    assert (slot.words, slot.fits(mixed)) == ("4 cores", {"a": 4, "b": 2})
    assert slots.choose([node(CPU=2.0)]).cores == 2
    monkeypatch.setenv(slots.CORES, "3")
    assert slots.choose(mixed).fits(mixed) == {"a": 5, "b": 2}


def test_a_training_has_a_worker_for_each_gpu_or_node(monkeypatch):
    monkeypatch.delenv("PIPELINE_DEVICE", raising=False)
    monkeypatch.delenv(slots.WORKERS, raising=False)
    mixed = [node("a", CPU=16.0), node("b", CPU=8.0, GPU=2.0), node("c", alive=False, CPU=64.0)]
    slot, n_workers = slots.for_training(mixed)
    assert (slot.bundle, n_workers) == ({"CPU": 1, "GPU": 1}, 2)
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    slot, n_workers = slots.for_training(mixed)
    assert (slot.bundle, n_workers) == ({"CPU": 8}, 2)
    monkeypatch.setenv(slots.WORKERS, "5")
    slot, n_workers = slots.for_training(mixed)
    assert (slot.bundle, n_workers) == ({"CPU": 4}, 5)


def test_a_slot_is_free_where_resources_are():
    cores, gpu = slots.Slot("cpu", 4), slots.Slot("cuda", 1)
    found = [cores.is_free({"CPU": n}) for n in (3.0, 4.0)]
    found += [gpu.is_free(free) for free in ({"CPU": 9.0}, {"GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0})]
    assert found == [False, True, False, False, True]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PIPELINE_DEVICE", "cuda", "no node of the cluster has a GPU"),
        ("PIPELINE_DEVICE", "cup", "expected auto, cpu, cuda or cuda:N, found 'cup'"),
        ("PIPELINE_DEVICE", "cuda:1", "every free GPU, found cuda:1. Write cuda."),
        (slots.CORES, "many", "expected a whole number from 1 on, found"),
        (slots.CORES, "0", "expected a whole number from 1 on, found"),
        (slots.CORES, "9", "a task of 9 cores fits on no node .the largest has 4."),
    ],
)
def test_slots_that_no_node_has_are_refused(monkeypatch, name, value, message):
    monkeypatch.delenv("PIPELINE_DEVICE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        slots.choose([node(CPU=4.0)])


def test_a_training_needs_a_node_with_a_core(monkeypatch):
    monkeypatch.delenv("PIPELINE_DEVICE", raising=False)
    for nodes in ([], [node(CPU=0.0)]):
        with pytest.raises(InputError, match="PIPELINE_CLUSTER: no node has a core yet"):
            slots.for_training(nodes)


def test_a_file_that_is_replaced_while_it_is_sent_is_sent_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(freight, "PIECE", 4)
    path = tmp_path / "a"
    path.write_bytes(b"the earlier")
    sent = freight.pieces(path)
    first = bytes(next(sent))
    (tmp_path / "b").write_bytes(b"a later one")
    (tmp_path / "b").replace(path)
    assert first + b"".join(map(bytes, sent)) == b"the earlier"


@pytest.mark.parametrize("value", ["0", "two", "-1"])
def test_another_number_of_workers_is_refused(monkeypatch, value):
    monkeypatch.setenv(slots.WORKERS, value)
    with pytest.raises(InputError, match="PIPELINE_TRAIN_WORKERS: expected a whole number from 1"):
        slots.for_training([node(CPU=4.0)])


def test_unfinished_work_in_a_folder_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(freight, "_packed", lambda _, place: freight.File(str(place), []))
    for name in ("data/fgsm/00000.h5", "data/.pgd.0123.part/00000.h5"):
        Path(name).parent.mkdir(parents=True)
        Path(name).touch()
    sent = [each.path for each in freight.packed([Path("data"), Path("data/.pgd.0123.part")])]
    finished, unfinished = ["data/fgsm", "data/fgsm/00000.h5"], "data/.pgd.0123.part"
    assert sent == ["data", *finished, unfinished, f"{unfinished}/00000.h5"]
