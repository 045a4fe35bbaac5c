import numpy as np
import pytest

from pipeline.evaluate import sweeps
from pipeline.evaluate.params import Curves, Grid
from pipeline.evaluate.target import Target
from pipeline.networks import scores
from tests.conftest import make_block
from tests.evaluate.test_whitebox import LEVELS, Brightness, grey_block

pytestmark = pytest.mark.usefixtures("one_thread")
GRID = Grid(
    n_eval=9, eps=[2 / 255, 8 / 255, 0.05], alphas=["eps/2", "eps/steps", 1 / 255], steps=[2, 16]
)
CURVES = Curves(
    threat="pgd", n_eval=9, eps=[2 / 255, 8 / 255, 1.0], steps=[1, 2, 40], restarts=3, queries=5
)


@pytest.fixture
def target():
    return Target.of(Brightness(), 2, batch_size=4, seed=0)


def exact(eps):
    return np.mean([abs(level - 127.5) / 255 > eps for level in LEVELS])


def test_every_guess_of_a_grader_has_its_score(target):
    rows, metrics = sweeps.grid(target, grey_block(LEVELS), GRID)
    assert [tuple(row) for row in rows] == [sweeps.GRID_COLUMNS] * len(rows)
    assert metrics["guesses"] == 3 * (1 + 3 * 2) == len(rows) - 3
    for row in rows:
        assert row["accuracy"] >= round(float(exact(row["eps"])), 6), (
            "no guess beats the best attack"
        )
        if not row["steps"] or row["alpha"] * row["steps"] >= 2 * row["eps"]:
            assert row["accuracy"] == round(float(exact(row["eps"])), 6), row
    assert (
        metrics["worst"]["accuracy"]
        == metrics["lowest"]["accuracy"]
        == round(float(exact(0.05)), 6)
    )
    assert {row["guess"] for row in rows if row["eps"] == 0.05 and row["alpha"] == 0.025} == {
        "PGD, alpha eps/2, 2 steps",
        "PGD, alpha eps/2, 16 steps",
        "PGD, alpha eps/steps, 2 steps",
    }


def test_curves_are_exact_where_they_are_known(target):
    curves = sweeps.curves(target, grey_block(LEVELS), sweeps.pgd(8 / 255, 2 / 255, 20), CURVES)
    assert {eps: standing.mean() for eps, standing in curves.eps.items()} == {
        0.0: 1.0,
        2 / 255: exact(2 / 255),
        8 / 255: exact(8 / 255),
        1.0: 0.0,
    }
    assert list(curves.steps) == [1, 2, 20, 40]
    assert curves.steps[20].mean() == curves.steps[40].mean() == exact(8 / 255)
    assert list(curves.restarts) == [1, 2, 3]
    rows = curves.rows()
    assert [tuple(row) for row in rows] == [sweeps.CURVE_COLUMNS] * (4 + 4 + 3)
    assert rows[0] == {"curve": "eps", "value": 0.0, "n": 9, **scores.interval(np.ones(9, bool))}


def test_a_step_of_more_than_the_whole_range_is_the_whole_range(network):
    target = Target.of(network, 3, batch_size=8, seed=0)
    rows, _ = sweeps.grid(
        target, make_block(8), Grid(n_eval=8, eps=[0.9], alphas=["eps/0.5"], steps=[1])
    )
    assert rows[1]["alpha"] == 1
