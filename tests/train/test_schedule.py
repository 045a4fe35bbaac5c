import operator

import pytest
import torch
from torch import nn

from pipeline.train import schedule
from tests.train.conftest import Tiny


def test_learning_rate_schedules(recipe):
    cosine = [schedule.learning_rate(epoch, recipe) for epoch in (0, 0.5, 1, 2.5, 4)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0])
    constant = recipe.model_copy(update={"schedule": "constant", "warmup_epochs": 0.0})
    assert {schedule.learning_rate(epoch, constant) for epoch in (0, 1, 4)} == {1.0}


def test_onecycle_rises_and_falls_linearly(recipe):
    recipe = recipe.model_copy(update={"schedule": "onecycle"})
    rates = [schedule.learning_rate(epoch, recipe) for epoch in (0, 0.5, 1, 1.75, 4)]
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0])


def averaged(decay, n_steps):
    """What is judged of an average, and what it is without its first weights and with them."""
    network = Tiny()
    average, values = schedule.Average(network, decay), []
    for number in range(n_steps):
        with torch.no_grad():
            for tensor in (network.layers[1].bias, network.layers[1].running_var):
                tensor.fill_(number + 1.0)
        average.update(network)
        average.count()
        values.append(number + 1.0)
    shares = [(1 - decay) * decay**age for age in range(n_steps)][::-1]
    later = sum(map(operator.mul, shares[1:], values[1:]))
    network.layers[1].num_batches_tracked.fill_(n_steps)
    judged = average.judged(network)
    assert judged.layers[1].num_batches_tracked == n_steps
    return judged, later / sum(shares[1:]), later + decay ** (n_steps - 1) * values[0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_moves_weights_alike_wherever_their_channels_are(recipe, name):
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        generator = torch.Generator().manual_seed(0)
        layer = nn.Conv2d(8, 16, 3).to(memory_format=memory_format)
        before = torch.randn(16, 8, 3, 3, generator=generator)
        layer.weight.data.copy_(before)
        optimizer = schedule.optimizer(layer, recipe.model_copy(update={"optimizer": name}))
        for _ in range(3):
            gradient = torch.randn(16, 8, 3, 3, generator=generator)
            layer.weight.grad = gradient.to(memory_format=memory_format)
            layer.bias.grad = gradient.sum((1, 2, 3))
            optimizer.step()
        assert (layer.weight - before).abs().min() > 0
        assert all(
            value.is_contiguous() for state in optimizer.state.values() for value in state.values()
        )
        found.append(layer.weight.detach().contiguous())
    torch.testing.assert_close(*found)


def test_a_short_average_does_not_hold_the_first_weights():
    judged, expected, _ = averaged(0.99, 20)
    for name in ("layers.1.bias", "layers.1.running_var"):
        tensor = judged.state_dict()[name]
        assert torch.allclose(tensor, torch.full((4,), expected), rtol=1e-4), name


def test_a_long_average_is_judged_as_it_is():
    judged, _, expected = averaged(0.5, 9)
    assert torch.allclose(judged.layers[1].bias, torch.full((4,), expected))


def test_an_average_begins_with_a_copy_of_the_network():
    network = Tiny()
    average = schedule.Average(network, 0.999)
    with torch.no_grad():
        network.layers[1].bias.fill_(1)
    average.update(network)
    average.count()
    assert average.judged(network).layers[1].bias.tolist() == [1.0] * 4
