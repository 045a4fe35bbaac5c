import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.train import group, part, step
from tests.conftest import ROOT
from tests.train.conftest import CPU, Tiny
from tests.train.workers import SIZE


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What a process alone found, what each of a group found, and all they said as errors."""
    folder = tmp_path_factory.mktemp("group")
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.workers", str(folder)],
        cwd=ROOT,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    together = [torch.load(folder / "together" / f"{rank}.pt") for rank in range(SIZE)]
    return torch.load(folder / "alone" / "0.pt"), together, done.stderr


@pytest.fixture(scope="module")
def together(ran):
    return ran[1]


def test_gradients_of_workers_are_those_of_the_whole_batch(ran):
    alone, together, _ = ran
    expected = alone["gradients"]
    assert expected["sizes"] == [16, 16, 16, 2]
    for found in together:
        assert torch.allclose(found["gradients"]["totals"], expected["totals"], rtol=1e-5)
        for name, tensor in found["gradients"]["network"].items():
            assert torch.allclose(tensor, expected["network"][name], atol=1e-6), name


def test_small_parts_are_filled_up_and_all_workers_end_the_same(ran):
    _, found, said = ran
    assert [each["gradients"]["sizes"] for each in found] == [
        [6, 6, 6, 2],
        [5, 5, 5, 2],
        [5, 5, 5, 2],
    ]
    first = found[0]["tiny_parts"]["fits"]
    for others in found[1:]:
        for (state, history), (own, own_history) in zip(
            first, others["tiny_parts"]["fits"], strict=True
        ):
            assert history == own_history
            assert all(torch.equal(state[name], tensor) for name, tensor in own.items())
    (state, history), (again, again_history), _ = first
    assert history == again_history, "the same seeds and number of workers give the same bytes"
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert "Warning" not in said


def test_workers_share_the_images_to_validate_on(together):
    for each in together:
        for shared, alone in each["validated"]["found"]:
            assert shared == pytest.approx(alone)


def test_refreshed_rows_belong_to_workers_and_the_first_gathers_them(together):
    runs = [each["refreshed"]["whole"] for each in together]
    rows = np.arange(len(runs[0]["images"]))
    for rank, own in enumerate(runs):
        changed = (own["images"] != own["stored"]).flatten(1).any(1).numpy()
        if rank:
            assert set(rows[changed] % SIZE) == {rank}
        is_own = rows % SIZE == rank
        assert torch.equal(runs[0]["images"][is_own], own["images"][is_own])
    changed = (runs[0]["images"] != runs[0]["stored"]).flatten(1).any(1)
    assert changed[48:].all(), "three epochs draw every adversarial image"
    assert not changed[:48].any()


def test_workers_that_were_stopped_resume_to_the_same_bytes(together):
    first = together[0]["refreshed"]
    whole, resumed = first["whole"], first["resumed"]
    assert [name for name in resumed["kept"] if name.endswith(".part")]
    assert whole["epochs"] == 3
    assert resumed["epochs"] == 2 + 2, "the first epoch was kept"
    assert set(whole["files"]) == {"h.csv", "m.safetensors"}, "the first worker alone writes"
    assert resumed["files"] == whole["files"]
    assert torch.equal(resumed["images"], whole["images"])
    assert '\\"workers\\": 3' in whole["files"]["m.safetensors"]


def test_a_process_alone_is_a_group_of_one():
    alone = group.current()
    assert (alone.rank, alone.size, alone.is_first) == (0, 1, True)
    assert alone.decide("x") == "x"
    assert alone.all("x") == ["x"]
    tensor = torch.ones(3)
    assert alone.sum_(tensor) is tensor
    alone.follow([tensor])
    alone.gather_rows(tensor, CPU)
    assert tensor.tolist() == [1, 1, 1]


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_parts_make_up_the_batch(n, owned):
    batch = np.random.default_rng(n).permutation(1000)[:n]
    is_clean = np.arange(n) < max(1, n // 2)
    parts = [part.part_of(batch, is_clean, group.Group(rank, 4), owned=owned) for rank in range(4)]
    own = np.concatenate([each.rows[: each.n_own] for each in parts])
    assert sorted(own) == sorted(batch)
    shares = [each.shares(torch.zeros(len(each.rows))) for each in parts]
    assert float(torch.cat(shares).sum()) == pytest.approx(1)
    for rank, each in enumerate(parts):
        assert len(each.rows) >= part.FEWEST
        filling = each.rows[each.n_own :]
        assert set(filling) <= set(batch[is_clean])
        assert (each.counted(torch.zeros(len(each.rows))) < 0).sum() == len(filling)
        assert torch.equal(each.select(torch.from_numpy(batch)), torch.from_numpy(each.rows))
        if owned:
            assert set(each.rows[: each.n_own] % 4) <= {rank}
        else:
            assert each.n_own in (n // 4, n // 4 + 1)


def test_batchnorm_cannot_be_synchronised_on_a_cpu(recipe):
    with pytest.raises(InputError, match="sync_batchnorm: expected GPUs, found a CPU"):
        step.Step(Tiny(), recipe.model_copy(update={"sync_batchnorm": True}), CPU, None)
