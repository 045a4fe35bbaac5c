import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluate import checks, table
from pipeline.networks import scores


def test_a_loss_of_five_points_is_seen_on_enough_images():
    def result(count, n=checks.ENOUGH):
        return checks.share(np.arange(n) < count, checks.CONVERGED).result

    assert result(round(0.05 * checks.ENOUGH)) == "failed"
    assert result(3, 60) == "inconclusive", "on 60 images it could be chance"
    fails_at = next(count for count in range(99) if result(count) == "failed")
    assert scipy.stats.binom.sf(fails_at - 1, checks.ENOUGH, 0.05) > 0.9


@pytest.mark.parametrize(
    ("count", "n", "result"),
    [
        (0, 1, "inconclusive"),
        (0, 16, "inconclusive"),
        (0, 24, "passed"),
        (1, 40, "passed"),
        (3, 40, "inconclusive"),
        (4, 40, "failed"),
        (0, 0, "not run"),
    ],
)
def test_a_share_is_decided_by_its_images(count, n, result):
    assert checks.share(np.arange(n) < count).result == result


def test_eps_in_other_units_are_found():
    assert checks.units([8 / 255, 1 / 255]).result == "passed"
    wrong = checks.Check(value=1.0, limit=0.0, result="failed")
    assert checks.units([8 / 255 / 255]) == wrong
    assert checks.units([0.6]) == wrong


def test_two_judgements_are_compared_on_the_same_images():
    standing, before = np.array([True] * 40 + [False] * 60), np.array([True] * 30 + [False] * 70)
    assert checks.gain(standing, before) == checks.Check(
        value=0.1, limit=0.02, result="failed", n=100
    )
    assert checks.gain(before, standing).result == "passed"
    assert checks.gain(before, before).value == 0
    few, none = np.arange(100) < 4, np.zeros(100, bool)
    assert checks.gain(few, none).result == "passed", "four images may change by chance"


def test_a_rise_of_three_of_eight_images_decides_nothing():
    rise = checks.gain(np.arange(8) < 3, np.zeros(8, bool))
    assert (rise.value, rise.result) == (0.375, "inconclusive")


@given(st.integers(1, 3000), st.floats(0, 1))
def test_tolerances_follow_the_number_of_images(n, part):
    found = np.arange(n) < round(part * n)
    for check in (checks.share(found), checks.gain(found, np.zeros(n, bool))):
        if check.result == "failed":
            assert check.value > check.limit
        if check.result == "passed":
            assert check.value < check.limit + checks.ROOM
            assert n >= 24
        if part > check.limit + 4 * (check.limit / n) ** 0.5 + 4 / n:
            assert check.result != "passed" or n > 40
    if part > checks.LIMIT + 4 * (checks.LIMIT / n) ** 0.5 + 4 / n:
        assert checks.share(found).result == "failed"


def test_the_verdict_names_what_failed():
    good, bad, unclear, none = "passed", "failed", "inconclusive", "not run"
    assert checks.verdict({"a": good, "b": none}, True) == ("strong", [])
    assert checks.verdict({"a": good, "b": none}, False) == ("upper bound", [])
    assert checks.verdict({"a": good, "b": unclear}, True) == ("too few images", [])
    assert checks.verdict({"a": bad, "b": unclear, checks.FAR_ABOVE: good}, True) == (
        "suspect",
        ["a"],
    )
    for other in (good, bad):
        verdict, failed = checks.verdict({"a": other, checks.FAR_ABOVE: bad}, True)
        assert verdict == "static only", "whatever else failed"
        assert checks.FAR_ABOVE in failed
    guesses = {checks.HARDLY_ABOVE_GUESSING: bad, checks.FAR_ABOVE: bad}
    assert checks.verdict(guesses, True)[0] == "near chance"
    assert set(table.WORTH) == {
        checks.STRONG,
        checks.UPPER_BOUND,
        checks.STATIC_ONLY,
        checks.SUSPECT,
        checks.TOO_FEW,
        checks.NEAR_CHANCE,
    }


@pytest.mark.parametrize(
    ("right", "n", "n_classes", "result"),
    [
        (30, 300, 10, "failed"),
        (57, 300, 10, "inconclusive"),
        (90, 300, 10, "passed"),
        (3, 4, 10, "inconclusive"),
        (1, 2, 10, "inconclusive"),
        (160, 300, 2, "inconclusive"),
        (200, 300, 2, "passed"),
    ],
)
def test_a_clean_accuracy_is_compared_with_guessing(right, n, n_classes, result):
    labels = np.arange(n) % n_classes
    assert checks.above_guessing(np.arange(n) < right, labels).result == result


@pytest.mark.parametrize(
    ("robust", "is_confirmed"),
    [
        ({"pgd": {"eps": 0.03}}, False),
        ({"pgd": {"eps": 0.03}, "apgd": {"eps": 0.03}, "worst": {}}, True),
        ({"pgd": {"eps": 0.01}, "apgd": {"eps": 0.03}}, True),
        ({"fgsm": {"eps": 0.05}, "apgd": {"eps": 0.03}}, False),
        ({"fgsm": {"eps": 0.05}, "ensemble": {"eps": 0.03}}, False),
        ({"apgd": {"eps": 0.03, "left_out": "apgd_t"}}, False),
        ({"ensemble": {"eps": 0.03, "left_out": "apgd_t"}}, True),
    ],
)
def test_apgd_confirms_if_both_of_it_were_tried_at_the_largest_eps(robust, is_confirmed):
    bounds = {"low95": 0.3, "high95": 0.4}
    results = {name: {**bounds, **result} for name, result in robust.items()}
    assert checks.confirmed(results) is is_confirmed


def test_an_ensemble_that_finds_less_than_a_threat_confirms_nothing():
    weak = {"eps": 0.03, "low95": 0.15, "high95": 0.28}
    for high, is_confirmed in ((0.14, False), (0.16, True)):
        pgd = {"eps": 0.03, "low95": 0.05, "high95": high}
        worst = {"low95": 0.05, "high95": 0.1}  # of both together
        assert checks.confirmed({"pgd": pgd, "apgd": weak, "worst": worst}) is is_confirmed


def result(accuracy, **more):
    return {
        "accuracy": accuracy,
        "low95": accuracy - 0.02,
        "high95": accuracy + 0.02,
        "n": 1000,
        **more,
    }


@pytest.mark.parametrize(
    ("transfer", "expected"),
    [
        (result(0.9, eps=8 / 255, made_against_this_model=False), "failed"),
        (result(0.9, eps=7 / 255, made_against_this_model=False), "failed"),
        (result(0.44, eps=8 / 255, made_against_this_model=False), "passed"),
        (result(0.5, eps=8 / 255, made_against_this_model=False), "failed"),
        (result(0.9, eps=8 / 255, made_against_this_model=True), "not run"),
        (result(0.9, eps=2 / 255, made_against_this_model=False), "not run"),
    ],
    ids=[
        "far above",
        "0.03 is stored as 7/255",
        "half within chance",
        "below half",
        "no transfer",
        "another eps",
    ],
)
def test_transfer_far_above_robust(transfer, expected):
    found = checks.far_above(result(0.2), 8 / 255, {"pgd": transfer, "mixed": result(0.9)})
    assert found.result == expected


def test_a_set_of_drawn_eps_is_compared_by_its_least():
    drawn = {**result(0.9), "eps": 8 / 255, "eps.least": 1 / 255, "made_against_this_model": False}
    assert checks.far_above(result(0.2), 8 / 255, {"pgd": drawn}) == checks.NOT_RUN
    near = {**drawn, "eps.least": 7 / 255}
    assert checks.far_above(result(0.2), 8 / 255, {"pgd": near}).result == "failed"


def test_static_training_at_14_of_40_percent_is_static_only():
    def accuracy(percent, n=300):
        return {**scores.interval(np.arange(n) < n * percent // 100), "n": n}

    transfer = {"pgd": {**accuracy(40), "eps": 8 / 255, "made_against_this_model": False}}
    assert checks.far_above(accuracy(14), 8 / 255, transfer).result == "failed"
    assert checks.far_above(accuracy(19), 8 / 255, transfer).result == "passed", (
        "19 of 40 on 300 images may be chance"
    )
    assert checks.far_above(accuracy(20, 10), 8 / 255, transfer).result == "inconclusive"
