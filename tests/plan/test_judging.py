import pytest

from pipeline.evaluate import sweeps
from pipeline.plan import judging
from pipeline.plan.judging import Judging


@pytest.fixture(autouse=True)
def _all_right(monkeypatch):
    """Assume that all images are right without an attack, so that passes can be counted by hand."""
    monkeypatch.setattr(judging, "RIGHT", 1.0)


def passes(settings, stays, **changes):
    evaluate = settings.evaluate.model_copy(update=changes)
    work = list(Judging(evaluate, "resnet18", stays).work(297, 2, 10))
    return {
        name: sum(one.images for one in work if one.kind.name == name)
        for name in ("attack", "classify")
    }


def test_the_passes_of_the_quickstart(settings):
    threats = 297 + 297 * 20
    ensemble = 220 * 8 + 22 * 8 * 3
    grid = 4 * (32 + 32 * 10)
    by_eps, by_steps = 20 * (40 + 22 + 13 + 4 + 0), 40 * 40
    by_restarts = 20 * (40 + 2 * 4)
    checks = 297 + 4 * 201  # FGSM, and 200 queries of Square after the first one
    converged = 22 * 40 + 2 * 22 * 20
    total = threats + ensemble + grid + by_eps + by_steps + by_restarts + checks + converged
    assert passes(settings, 0.1)["attack"] == total == 16934


def test_images_that_stay_are_attacked_again(settings):
    every, no = (passes(settings, share)["attack"] for share in (1.0, 0.0))
    ensemble = 220 * 8 * 3
    by_eps, by_restarts = 20 * 40 * 4, 20 * 2 * 40
    assert every - no == ensemble + by_eps + by_restarts + 40 * 201 + 220 * (40 + 2 * 20)


def test_images_that_are_wrong_unattacked_are_not_attacked(settings, monkeypatch):
    every = passes(settings, 0.1)["attack"]
    monkeypatch.setattr(judging, "RIGHT", 0.5)
    assert passes(settings, 0.1)["attack"] == pytest.approx(every / 2, rel=0.01)


def test_parts_that_are_off_cost_nothing(settings):
    all_parts = passes(settings, 0.5)["attack"]
    without_grid = passes(settings, 0.5, grid=None)["attack"]
    assert all_parts - without_grid == 4 * (32 + 32 * 10)
    without_ensemble = passes(settings, 0.5, ensemble=None)["attack"]
    assert all_parts - without_ensemble == 220 * 8 + 110 * 8 * 3


def test_fewer_images_are_judged_with_n_eval(settings):
    fewer = passes(settings, 0.5, n_eval=100)["attack"]
    # The checks of convergence then have 100 images in place of 220.
    expected = 197 * 22 + (110 - 50) * 40 + 2 * (110 - 50) * 20
    assert passes(settings, 0.5)["attack"] - fewer == expected


def test_guesses_that_differ_in_steps_alone_share_a_run(settings):
    grid = settings.evaluate.grid.model_copy(update={"alphas": ["eps/4", "eps/steps"]})
    assert list(sweeps.grid_runs(grid, 0.2).values()) == [[5, 10], [5], [10]]
