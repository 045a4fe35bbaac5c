import pytest
import torch
from torch.nn import functional

from pipeline.networks.captured import WARM_UP
from pipeline.train import pairs, step
from tests.recorded_graphs import Recorded
from tests.train.conftest import CPU, Tiny

LOGITS = torch.tensor([[1.0, 2.0, 4.0], [0.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
WEIGHTS = torch.tensor([0.5, 0.0, 2.0])
PARTNERS = torch.tensor([1, 1, 0])


def test_logits_are_compared_by_their_mean_squared_difference():
    found = pairs.loss("logits", LOGITS, WEIGHTS, PARTNERS)
    assert found.item() == pytest.approx(0.5 * (1 + 0 + 9) / 3 + 2 * (4 + 1 + 1) / 3)


def test_probabilities_are_compared_by_their_divergence():
    logs = functional.log_softmax(LOGITS, 1)

    def divergence(own, other):
        return functional.kl_div(logs[own], logs[other].exp(), reduction="sum")

    found = pairs.loss("probabilities", LOGITS, WEIGHTS, PARTNERS)
    assert found.item() == pytest.approx((0.5 * divergence(0, 1) + 2 * divergence(2, 0)).item())


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_gradients_reach_both_images_of_a_pair(kind):
    logits = LOGITS.clone().requires_grad_()
    pairs.loss(kind, logits, WEIGHTS * torch.tensor([1, 0, 0]), PARTNERS).backward()
    assert (logits.grad.abs().sum(1) > 0).tolist() == [True, True, False]


def paired_batches(batches):
    for images, labels, shares in batches.epoch(0):
        n = len(labels)
        weights = torch.full((n,), 1 / n)
        yield images, labels, shares, weights, torch.arange(n).flip(0)


@pytest.mark.parametrize("graphs", [None, Recorded()])
def test_a_step_adds_the_comparison_of_pairs_to_the_loss(batches, recipe, graphs):
    class Paired(type(recipe)):
        @property
        def paired(self):
            return "logits"

    run = step.Step(Tiny(), Paired.model_validate(recipe.model_dump()), CPU, graphs)
    plain = step.Step(Tiny(), recipe, CPU, None)
    for batch in paired_batches(batches):
        run(*batch, lr=0.1)
        plain(*batch[:3], lr=0.1)
    assert run.totals[0] > plain.totals[0]
    if graphs is not None:
        assert graphs.calls.count("replay") == 4 - WARM_UP
