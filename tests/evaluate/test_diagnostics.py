"""Every kind of network that an evaluation must tell apart, trained or built.

Each is checked against its verdict.
"""

import copy
import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import document
from pipeline.attacks.params import Attack, Generate, Threat
from pipeline.base import params
from pipeline.evaluate import diagnostics, judgement, sweeps, table, whitebox
from pipeline.evaluate.params import Curves, Evaluate
from pipeline.generate import generation
from pipeline.networks import scores
from tests import small_networks as small
from tests.conftest import write_set
from tests.small_networks import EPS

pytestmark = pytest.mark.usefixtures("one_thread")
FGSM = {"attack": "FGSM", "eps": EPS}
PGD = {"attack": "PGD", "eps": EPS, "alpha": EPS / 4, "steps": 10, "random_start": True}


@dataclasses.dataclass
class Bench:
    """Digits as a stored set, an undefended network, adversarial sets against it, and the judge."""

    clean: object
    undefended: torch.nn.Module
    stored: list
    settings: Evaluate

    def training(self):
        block = self.clean.load("train")
        return torch.from_numpy(block.images) / 255, torch.from_numpy(block.labels)

    def judge(self, network, sha256="another", **changes):
        settings = self.settings.model_copy(update=changes)
        torch.manual_seed(
            0
        )  # networks that draw random numbers draw the same ones in every run of the tests
        return judgement.judge(network, self.clean, self.stored, sha256, settings).metrics

    def diagnose(self, network, sha256="another", **changes):
        found = self.judge(network, sha256, **changes)["diagnostics"]
        return found["verdict"], set(found["failed"]), found["checks"]


def threats(eps):
    pgd = {**PGD, "eps": eps, "alpha": eps / 4, "steps": 20}
    return {
        name: Threat.model_validate({**entry, "eps": eps, "restarts": 1})
        for name, entry in (("fgsm", FGSM), ("pgd", pgd))
    }


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    names = str([str(digit) for digit in range(10)]).replace("'", '"')
    clean = write_set(folder / "clean", small.digits(), 1024, class_names=names)
    made = Bench(clean, small.network(), [], document.load(params.FILE).evaluate)
    small.train(made.undefended, *made.training(), epochs=8)
    generate = Generate(batch_size=256, precision="fp32", seed=0)
    for name, entry in (("fgsm", FGSM), ("pgd", PGD)):
        spec = Attack.model_validate(entry)
        made.stored.append(
            generation.generate(
                clean,
                made.undefended,
                "undefended",
                spec,
                generate,
                name=name,
                out=folder / name,
                device=torch.device("cpu"),
            )
        )
    curves = Curves(
        threat="pgd",
        n_eval=100,
        eps=[EPS / 4, EPS, 1.0],
        steps=[1, 5, 10, 50],
        restarts=3,
        queries=200,
    )
    made.settings = made.settings.model_copy(
        update={"threats": threats(EPS), "grid": None, "curves": curves}
    )
    return made


def test_undefended_is_measured_soundly(bench):
    metrics = bench.judge(bench.undefended, "undefended")
    assert metrics["diagnostics"]["verdict"] == "strong"
    assert metrics["robust"]["worst"]["accuracy"] < 0.4 < 0.9 < metrics["clean"]["accuracy"]
    assert metrics["diagnostics"]["checks"]["transfer_far_above_robust"]["verdict"] == "not run"
    assert metrics == bench.judge(bench.undefended, "undefended"), (
        "a second judgement gives the same numbers"
    )
    assert metrics["robust"]["worst"]["accuracy"] <= min(
        metrics["robust"][name]["accuracy"] for name in ("fgsm", "pgd", "apgd")
    )


def test_honest_adversarial_training_needs_apgd_to_be_strong(bench):
    trained = small.train(small.network(), *bench.training(), 8, small.pgd)
    metrics = bench.judge(trained)
    assert metrics["diagnostics"]["failed"] == []
    assert metrics["diagnostics"]["verdict"] == "strong"
    assert metrics["robust"]["worst"]["accuracy"] > 0.6
    assert metrics["robust"]["worst"]["over"] == ["fgsm", "pgd", "apgd"]
    assert bench.diagnose(trained, ensemble=None)[0] == "upper bound", "PGD alone shows no more"


def test_more_steps_are_compared_with_what_all_attacks_found(bench):
    weak = Threat.model_validate({**PGD, "alpha": EPS / 16, "steps": 2, "restarts": 1})
    few = {"threats": {"pgd": weak}}
    verdict, _, checks = bench.diagnose(bench.undefended, "undefended", ensemble=None, **few)
    assert (verdict, checks["more_steps_find_more"]["verdict"]) == ("suspect", "failed")
    assert checks["more_steps_find_more"]["value"] > 0.3
    verdict, _, checks = bench.diagnose(bench.undefended, "undefended", **few)
    assert checks["more_steps_find_more"] == {"value": 0.0, "limit": 0.01, "verdict": "passed"}, (
        "APGD has found them before"
    )


def test_a_loss_of_five_points_is_seen_on_enough_images():
    loss = np.arange(diagnostics.ENOUGH) < round(0.05 * diagnostics.ENOUGH)
    assert not diagnostics.share(loss, diagnostics.CONVERGED).passed
    assert diagnostics.share(np.arange(60) < 3, diagnostics.CONVERGED).passed, (
        "on 60 images it could be chance"
    )
    fails_at = next(
        k
        for k in range(99)
        if not diagnostics.share(np.arange(diagnostics.ENOUGH) < k, diagnostics.CONVERGED).passed
    )
    assert scipy.stats.binom.sf(fails_at - 1, diagnostics.ENOUGH, 0.05) > 0.9


def test_fine_tuning_on_stored_images_is_static_only(bench):
    clean, labels = bench.training()
    stored = [torch.from_numpy(images.load("train").images) / 255 for images in bench.stored]
    tuned = small.train(
        copy.deepcopy(bench.undefended), torch.cat([clean, clean, *stored]), labels.repeat(4), 8
    )
    metrics = bench.judge(tuned)
    assert metrics["transfer"]["pgd"]["accuracy"] > 0.9
    assert metrics["robust"]["pgd"]["accuracy"] < 0.3
    assert (metrics["diagnostics"]["verdict"], metrics["diagnostics"]["failed"]) == (
        "static only",
        ["transfer_far_above_robust"],
    )


def test_collapse_by_single_step_training_is_suspect(bench):
    eps = 124 / 255
    single_step = lambda *batch: small.pgd(*batch, eps=eps, steps=1, alpha=eps)  # noqa: E731
    collapsed = small.train(copy.deepcopy(bench.undefended), *bench.training(), 30, single_step)
    metrics = bench.judge(collapsed, threats=threats(eps))
    assert metrics["robust"]["fgsm"]["accuracy"] > 0.25
    assert metrics["robust"]["worst"]["accuracy"] < 0.05
    assert metrics["diagnostics"]["verdict"] == "suspect"
    # How far the model collapses depends on the processor's rounding.
    assert {"fgsm_above_clean", "fgsm_far_above_pgd"} & set(metrics["diagnostics"]["failed"])


def test_a_gradient_hidden_by_rounding_is_suspect(bench):
    verdict, failed, checks = bench.diagnose(small.Rounded(bench.undefended))
    assert verdict == "suspect"
    assert {"gradients_zero_or_not_finite", "black_box_finds_more", "transfer_finds_more"} <= failed
    assert checks["gradients_zero_or_not_finite"]["value"] == 1


def test_a_gradient_hidden_by_a_huge_temperature_is_suspect(bench):
    verdict, failed, _ = bench.diagnose(small.Scaled(bench.undefended))
    assert verdict == "suspect"
    assert {"gradients_zero_or_not_finite", "black_box_finds_more"} <= failed


def test_a_gradient_hidden_by_noise_is_suspect(bench):
    verdict, failed, checks = bench.diagnose(small.Noisy(bench.undefended))
    assert verdict == "suspect"
    assert "outputs_are_random" in failed
    assert checks["outputs_are_random"]["value"] == 1


def test_probabilities_instead_of_logits_are_suspect(bench):
    verdict, failed, _ = bench.diagnose(small.Probabilities(bench.undefended), "undefended")
    assert verdict == "suspect"
    assert "outputs_are_probabilities" in failed


def test_gradients_that_are_no_numbers_are_found(bench):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = bench.undefended

        def forward(self, images):
            return self.inner(images) + (images.sum((1, 2, 3)) * 0).sqrt()[:, None] * 0

    _, failed, _ = bench.diagnose(Broken())
    assert "gradients_zero_or_not_finite" in failed


def test_images_that_were_trained_on_are_found(bench):
    trained_on = bench.clean.load("train")
    block = trained_on.select(np.arange(len(trained_on)) < 20)
    target = whitebox.Target.of(bench.undefended, 10, batch_size=64, seed=0)
    threat = bench.settings.threats["pgd"]
    curves = sweeps.curves(target, block, threat, bench.settings.curves)
    checks = diagnostics.diagnose(target, block, curves, threat, 5, {})
    assert checks["judged_images_not_held_out"] == diagnostics.Check(
        value=20.0, limit=0.0, passed=False
    )
    assert checks["transfer_finds_more"] == diagnostics.NOT_RUN


def test_eps_in_other_units_are_found():
    assert diagnostics.units([8 / 255, 1 / 255]).passed
    assert diagnostics.units([8 / 255 / 255]) == diagnostics.Check(
        value=1.0, limit=0.0, passed=False
    )
    assert not diagnostics.units([0.6]).passed


def test_two_judgements_are_compared_on_the_same_images():
    standing, before = np.array([True] * 40 + [False] * 60), np.array([True] * 30 + [False] * 70)
    assert diagnostics.gain(standing, before) == diagnostics.Check(
        value=0.1, limit=0.02, passed=False
    )
    assert diagnostics.gain(before, standing).passed
    assert diagnostics.gain(before, before).value == 0
    few = np.arange(100) < 4
    assert diagnostics.gain(few, np.zeros(100, bool)).passed, "four images may change by chance"


@given(st.integers(1, 3000), st.floats(0, 1))
def test_tolerances_follow_the_number_of_images(n, part):
    found = np.arange(n) < round(part * n)
    check = diagnostics.share(found)
    assert check.passed or check.value > check.limit
    if part > check.limit + 4 * (check.limit / n) ** 0.5 + 4 / n:
        assert not check.passed
    rise = diagnostics.gain(found, np.zeros(n, bool))
    assert rise.passed or rise.value > rise.limit


def test_the_verdict_names_what_failed():
    good, bad = diagnostics.none_of(0), diagnostics.none_of(1)
    assert diagnostics.verdict({"a": good, "b": diagnostics.NOT_RUN}, True) == ("strong", [])
    assert diagnostics.verdict({"a": good, "b": diagnostics.NOT_RUN}, False) == ("upper bound", [])
    assert diagnostics.verdict({"a": bad, diagnostics.FAR_ABOVE: good}, True) == ("suspect", ["a"])
    for other in (good, bad):
        verdict, failed = diagnostics.verdict({"a": other, diagnostics.FAR_ABOVE: bad}, True)
        assert verdict == "static only", "whatever else failed"
        assert diagnostics.FAR_ABOVE in failed
    words = {
        diagnostics.STRONG,
        diagnostics.UPPER_BOUND,
        diagnostics.STATIC_ONLY,
        diagnostics.SUSPECT,
    }
    assert set(table.WORTH) == words


def result(accuracy, **more):
    return {"accuracy": accuracy, "low95": accuracy - 0.02, "high95": accuracy + 0.02, **more}


@pytest.mark.parametrize(
    ("transfer", "passed"),
    [
        (result(0.9, eps=8 / 255, made_against_this_model=False), False),
        (result(0.9, eps=7 / 255, made_against_this_model=False), False),
        (result(0.44, eps=8 / 255, made_against_this_model=False), True),
        (result(0.5, eps=8 / 255, made_against_this_model=False), False),
        (result(0.9, eps=8 / 255, made_against_this_model=True), None),
        (result(0.9, eps=2 / 255, made_against_this_model=False), None),
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
def test_transfer_far_above_robust(transfer, passed):
    assert (
        diagnostics.far_above(result(0.2), 8 / 255, {"pgd": transfer, "mixed": result(0.9)}).passed
        is passed
    )


def test_static_training_at_14_of_40_percent_is_static_only():
    accuracy = lambda percent: scores.interval(np.arange(300) < 3 * percent)  # noqa: E731
    transfer = {"pgd": {**accuracy(40), "eps": 8 / 255, "made_against_this_model": False}}
    assert diagnostics.far_above(accuracy(14), 8 / 255, transfer).passed is False
    assert diagnostics.far_above(accuracy(19), 8 / 255, transfer).passed is True, (
        "19 of 40 on 300 images may be chance"
    )
