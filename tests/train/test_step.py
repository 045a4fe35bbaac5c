import pytest
import torch

from pipeline.networks.captured import WARM_UP
from pipeline.train import step
from tests.narrow import NarrowResNet
from tests.recorded_graphs import Recorded
from tests.train.conftest import CPU, Tiny


def trained(recipe, batches, graphs, n_epochs=2):
    network = Tiny()
    run = step.Step(network, recipe, CPU, graphs)
    for number in range(n_epochs):
        for batch in batches.epoch(number):
            run(*batch, lr=0.1 / (number + 1))
    return run, network


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw"}, {"ema": 0.9}])
def test_a_captured_step_trains_like_a_plain_one(batches, recipe, changes):
    recipe, graphs = recipe.model_copy(update=changes), Recorded()
    plain, _ = trained(recipe, batches, None)
    run, _ = trained(recipe, batches, graphs)
    assert graphs.calls[WARM_UP] == "capture"
    assert graphs.calls.count("replay") == 2 * 4 - WARM_UP
    assert torch.allclose(run.totals, plain.totals, atol=1e-4)
    expected = plain.judged.state_dict()
    for name, tensor in run.judged.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_an_average_begins_again_with_the_kept_weights(batches, recipe):
    recipe = recipe.model_copy(update={"ema": 0.9})
    run, network = trained(recipe, batches, None)
    run.restart({name: tensor.clone() for name, tensor in network.state_dict().items()})
    weights = []
    for batch, _ in zip(batches.epoch(0), range(2), strict=False):
        run(*batch, lr=0.1)
        weights.append(network.layers[1].bias.detach().clone())
    # As a captured step does it, which cannot copy the network after the first step.
    expected = (0.09 * weights[0] + 0.1 * weights[1]) / 0.19
    assert torch.allclose(run.judged.layers[1].bias, expected, atol=1e-6)


def test_a_resnet_in_fp32_is_trained_like_its_own_forward(recipe, monkeypatch):
    images, labels = torch.rand(8, 3, 32, 32, generator=torch.manual_seed(0)), torch.arange(8) % 3
    recipe, trained_networks = recipe.model_copy(update={"precision": "fp32"}), []
    for forward in (step._forward, lambda network, *_: network):
        monkeypatch.setattr(step, "_forward", forward)
        torch.manual_seed(0)
        network = NarrowResNet(num_classes=3)
        run = step.Step(network, recipe, CPU, None)
        for _ in range(2):
            run(images, labels, torch.full((8,), 1 / 8), lr=0.1)
        trained_networks.append(network)
    ours, theirs = trained_networks
    for (name, found), expected in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture
def half(recipe, monkeypatch):
    """A recipe that is computed in fp16, as on a GPU before Ampere."""
    monkeypatch.setattr(step, "precision_for", lambda *_: "fp16")
    return recipe


def test_fp16_training_follows_fp32(batches, recipe, monkeypatch):
    sums = {}
    for precision in ("fp32", "fp16"):
        monkeypatch.setattr(step, "precision_for", lambda *_, found=precision: found)
        run, network = trained(recipe, batches, None)
        assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
        sums[precision] = float(run.totals[0])
    assert sums["fp16"] == pytest.approx(sums["fp32"], rel=0.02)
    assert sums["fp16"] != sums["fp32"]


def test_the_scale_of_fp16_belongs_to_the_resume_point(batches, half):
    run, _ = trained(half, batches, None, n_epochs=1)
    scaler = run.parts()["scaler"]
    scaler.update(128.0)
    again = step.Step(Tiny(), half, CPU, None)
    again.parts()["scaler"].load_state_dict(scaler.state_dict())
    images, labels, shares = next(batches.epoch(0))
    again(images, labels, shares, lr=0.1)
    assert again.parts()["scaler"].get_scale() == 128.0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_no_trace(batches, half, optimizer):
    recipe = half.model_copy(update={"optimizer": optimizer})
    network = Tiny()
    run = step.Step(network, recipe, CPU, None)
    scaler = run.parts()["scaler"]
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
    before = [weights.detach().clone() for weights in network.parameters()]
    run(*next(batches.epoch(0)), lr=0.1)
    assert all(map(torch.equal, before, network.parameters()))
    assert scaler.get_scale() == 2.0**59
    for state in run.parts()["optimizer"].state.values():
        assert all(not tensor.any() for tensor in state.values())


def test_other_precisions_have_no_scaler(batches, recipe):
    run, _ = trained(recipe, batches, None)
    assert set(run.parts()) == {"network", "optimizer"}
