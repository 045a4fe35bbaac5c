import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluate import ensemble, sweeps, whitebox
from pipeline.evaluate.params import Ensemble
from pipeline.evaluate.target import Passes, Target
from tests import small_networks as small
from tests.conftest import make_block
from tests.small_networks import EPS

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(n_eval=40, **changes):
    return Ensemble.model_validate({**ensemble.STANDARD, "n_eval": n_eval, **changes})


def test_it_finds_at_least_what_pgd_100_with_10_restarts_finds(monkeypatch):
    """With a fifth of the standard's iterations and a tenth of its queries."""
    monkeypatch.setattr(ensemble, "QUERIES", 500)
    digits = small.digits()
    train = digits.select(digits.split == 0)
    images, labels = torch.from_numpy(train.images) / 255, torch.from_numpy(train.labels)
    network = small.train(small.network(), images, labels, 4, small.pgd)
    block = digits.select(np.arange(len(digits)) < 40)
    target = Target.of(network, 10, batch_size=256, seed=0)
    pgd = whitebox.withstands(
        target, block, sweeps.pgd(EPS, EPS / 4, 100).model_copy(update={"restarts": 10}), "t"
    ).standing
    standing, about = ensemble.withstands(target, block, settings(iterations=20), EPS)
    assert 0.2 < pgd.mean() < 0.9, (
        "a network that is neither lost nor safe, or the comparison says nothing"
    )
    assert standing.sum() <= pgd.sum()
    after = [about[f"after_{name}"] for name in ("apgd_ce", "apgd_t", "fab_t", "square")]
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(standing.mean(), abs=1e-6)
    assert about["forward_passes"] > 500 * standing.sum()
    few = settings(members="first_two", iterations=10, targets=3)
    first_two, about = ensemble.withstands(target, block, few, EPS)
    assert standing.sum() <= first_two.sum() <= standing.sum() + 2, (
        "the first two members find nearly all, also with few iterations"
    )
    assert (
        about["attack"] == "APGD-CE, APGD-T, 10 iterations, 3 target classes, through torchattacks"
    )


def test_the_settings_are_the_published_ones():
    assert ensemble.QUERIES == 5000
    assert (
        ensemble.described(settings())
        == "APGD-CE, APGD-T, FAB-T, Square at AutoAttack's standard settings, through torchattacks"
    )
    members = ensemble.threats(settings(), 8 / 255)
    assert list(members) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert list(ensemble.threats(settings(members="first_two"), 8 / 255)) == ["apgd_ce", "apgd_t"]
    assert {name: threat.parameters for name, threat in members.items()} == {
        "apgd_ce": {
            "eps": 8 / 255,
            "steps": 100,
            "n_restarts": 1,
            "loss": "ce",
            "eot_iter": 1,
            "rho": 0.75,
        },
        "apgd_t": {"eps": 8 / 255, "steps": 100, "n_restarts": 1, "eot_iter": 1, "rho": 0.75},
        "fab_t": {
            "eps": 8 / 255,
            "steps": 100,
            "n_restarts": 1,
            "alpha_max": 0.1,
            "eta": 1.05,
            "beta": 0.9,
            "multi_targeted": True,
        },
        "square": {
            "eps": 8 / 255,
            "n_queries": 5000,
            "n_restarts": 1,
            "p_init": 0.8,
            "loss": "margin",
            "resc_schedule": False,
        },
    }


class Linear(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(n_classes, 3 * 8 * 8, generator=torch.Generator().manual_seed(0))
        )

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


@pytest.mark.parametrize("n_classes", [2, 3, 4, 12])
def test_any_number_of_classes_will_do(n_classes, monkeypatch):
    monkeypatch.setattr(ensemble, "QUERIES", 3)
    target = Target.of(Linear(n_classes), n_classes, batch_size=8, seed=0)
    standing, about = ensemble.withstands(
        target, make_block(16, size=8, n_classes=n_classes), settings(iterations=3), 1 / 255
    )
    assert len(standing) == 16
    assert ("left_out" in about) == ("after_apgd_t" not in about) == (n_classes < 4)
    if n_classes < 4:
        assert about["left_out"] == f"apgd_t: its loss compares four classes, there are {n_classes}"


@pytest.mark.parametrize(
    ("n_classes", "targets", "expected"), [(100, 9, 10), (100, 3, 4), (5, 9, 5)]
)
def test_the_likeliest_wrong_classes_are_aimed_at(monkeypatch, n_classes, targets, expected):
    aimed = []
    monkeypatch.setattr(
        whitebox,
        "withstands",
        lambda target, block, *_: aimed.append(target.n_classes) or Nothing(block),
    )
    target = Target.of(Linear(n_classes), n_classes, batch_size=8, seed=0)
    ensemble.withstands(target, make_block(4, size=8), settings(targets=targets), 0.1)
    assert set(aimed) == {expected}


class Nothing:
    def __init__(self, block):
        self.standing, self.passes = np.ones(len(block), bool), Passes()
