"""Every kind of network that an evaluation must tell apart, trained or built.

Each is checked against its verdict.
"""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline import document, networks
from pipeline.attacks.params import Attack, Generate, Threat
from pipeline.base import params, seeds
from pipeline.cluster.here import Here
from pipeline.evaluate import checks, diagnostics, judgement, sweeps
from pipeline.evaluate.params import Curves, Evaluate
from pipeline.evaluate.target import Target
from pipeline.generate import generation
from tests import small_networks as small
from tests.conftest import make_block, write_set
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
                workers=Here(torch.device("cpu")),
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
    found = checks["more_steps_find_more"]
    assert (found["value"], found["verdict"]) == (0, "passed"), "APGD has found them before"


def test_further_restarts_follow_those_of_the_threat(monkeypatch):
    block = make_block(4, size=8)
    block = dataclasses.replace(block, labels=networks.predict(small.network(), block.images, 4))
    restarts = []
    monkeypatch.setattr(
        seeds, "batch_seed", lambda _, restart, __: restarts.append(restart) or restart
    )
    harmless = {"eps": 1e-6, "alpha": 1e-6, "restarts": 2}
    threat = Threat.model_validate({**PGD, **harmless})
    curves = Curves(threat="pgd", n_eval=4, eps=[1.0], steps=[1, 2], restarts=4, queries=1)
    target = Target.of(small.network(), 10, batch_size=4, seed=0)
    diagnostics.converged(target, block, np.ones(4, dtype=bool), threat, curves)
    assert restarts == [0, 2, 3], "one of more steps, then two that the threat did not have"


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


def test_a_gradient_that_attacks_can_follow_is_not_called_hidden(bench):
    class Sure(torch.nn.Module):
        """Its gradient of the cross-entropy is too small for float32, unless it is scaled."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1e-6))

        def forward(self, images):
            behind = self.weight * images.mean((1, 2, 3)) - 85
            return torch.nn.functional.pad(behind[:, None], (1, 0))

    block = bench.clean.load("val")
    block = block.select(block.labels == 0)
    target = Target.of(Sure(), 2, batch_size=64, seed=0)
    assert not diagnostics._without_gradient(target, block).any()


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
    target = Target.of(bench.undefended, 10, batch_size=64, seed=0)
    threat = bench.settings.threats["pgd"]
    curves = sweeps.curves(target, block, threat, bench.settings.curves)
    standing = curves.restarts[1]
    found = diagnostics.diagnose(target, block, standing, block, curves, threat, 5, {})
    assert found["transfer_finds_more"] == checks.NOT_RUN
    right = np.ones(20, dtype=bool)
    found = diagnostics.of_clean(bench.clean, block, right)
    assert found["judged_images_not_held_out"] == checks.Check(
        value=1.0, limit=checks.LIMIT, result="failed", n=20
    )
    held_out = bench.clean.load("val")
    found = diagnostics.of_clean(bench.clean, held_out, np.ones(len(held_out), dtype=bool))
    assert found["judged_images_not_held_out"].value == 0


def test_stored_images_beyond_the_threat_do_not_count(bench):
    val = bench.clean.load("val")
    block = val.select(np.arange(len(val)) < 20)
    target = Target.of(bench.undefended, 10, batch_size=64, seed=0)
    threat = bench.settings.threats["pgd"]
    curves = sweeps.curves(target, block, threat, bench.settings.curves)
    eps = np.where(np.arange(20) < 5, 2 * threat.eps, threat.eps).astype(np.float32)
    grey = dataclasses.replace(block, images=np.full_like(block.images, 128), eps=eps)
    stands = np.ones(20, dtype=bool)
    found = diagnostics.diagnose(target, block, stands, block, curves, threat, 5, {"pgd": grey})
    lost = ~target.is_right(grey)
    assert lost[:5].any()
    assert lost[5:].any()
    assert found["transfer_finds_more"].value == pytest.approx(lost[5:].sum() / 20)


def test_the_threats_images_decide_what_needs_no_more_attacks(bench):
    found = bench.judge(bench.undefended, "undefended", n_eval=120)["diagnostics"]["checks"]
    of_threat = {name for name, check in found.items() if check["n"] == 120}
    assert of_threat == {
        "fgsm_stronger_than_pgd",
        "fgsm_above_clean",
        "transfer_finds_more",
        "gradients_zero_or_not_finite",
        "outputs_are_probabilities",
        "outputs_are_random",
        "more_steps_find_more",
        "more_restarts_find_more",
    }
    assert found["black_box_finds_more"]["n"] == found["stands_at_eps_1"]["n"] == 100


@pytest.mark.parametrize("n_eval", [1, 8, 16])
def test_no_verdict_is_given_on_too_few_images(bench, n_eval):
    curves = bench.settings.curves.model_copy(update={"n_eval": n_eval})
    verdict, failed, found = bench.diagnose(bench.undefended, "undefended", curves=curves)
    assert (verdict, failed) == ("too few images", set())
    assert found["stands_at_eps_1"]["verdict"] == "inconclusive"
    assert found["fgsm_stronger_than_pgd"]["verdict"] == "passed", "it has the threats' images"


def test_a_network_that_guesses_is_never_called_well_tested(bench):
    torch.manual_seed(1)
    guessing = small.network()
    for parameter in guessing[-1].parameters():
        torch.nn.init.normal_(parameter)
    metrics = bench.judge(guessing)
    assert metrics["clean"]["accuracy"] < 0.2
    assert metrics["diagnostics"]["verdict"] == "near chance"


def test_further_restarts_start_at_random_where_the_threat_does_not(monkeypatch):
    tried = {}

    def withstands(target, block, attack, text, found, *, earlier):
        tried[text.removeprefix("check: ")] = attack.parameters["random_start"]
        return SimpleNamespace(standing=found)

    monkeypatch.setattr(diagnostics.whitebox, "withstands", withstands)
    threat = Threat.model_validate({**PGD, "random_start": False})
    curves = SimpleNamespace(restarts=3, steps=[20])
    diagnostics.converged(None, None, np.ones(4, dtype=bool), threat, curves)
    assert tried == {"more_steps_find_more": False, "more_restarts_find_more": True}
