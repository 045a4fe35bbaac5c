import pytest
import torch

from pipeline.base import console
from pipeline.base.errors import InputError
from pipeline.networks import captured, precision
from pipeline.networks.captured import WARM_UP, Captured, CapturedNetwork
from pipeline.networks.memory_fit import InParts
from tests.recorded_graphs import Recorded


class Sum:
    """A step that adds up its inputs, and counts its calls."""

    def __init__(self):
        self.total, self.n_calls = torch.zeros(()), 0

    def __call__(self, values, factor):
        self.n_calls += 1
        self.total += values.sum() * factor
        return self.total.clone()


def batch(size, value=1.0):
    return torch.full((size,), value), torch.tensor(2.0)


def test_a_step_is_captured_after_its_warm_up():
    graphs, step = Recorded(), Sum()
    run = Captured(step, "a step", graphs)
    outputs = [run(*batch(4, float(number))) for number in range(WARM_UP + 2)]
    assert graphs.calls == ["warm up"] * WARM_UP + ["capture", "replay", "replay"]
    assert step.n_calls == len(outputs), "every call does the work once"
    assert [float(output) for output in outputs] == [0.0, 8.0, 24.0, 48.0, 80.0]


def test_a_smaller_batch_runs_outside_the_graph():
    graphs, step = Recorded(), Sum()
    run = Captured(step, "a step", graphs)
    for size in [4] * (WARM_UP + 1) + [3] * (WARM_UP + 1) + [4]:
        run(*batch(size))
    assert graphs.calls == ["warm up"] * WARM_UP + ["capture", "replay", "replay"]
    assert float(step.total) == 2 * (4 * (WARM_UP + 2) + 3 * (WARM_UP + 1))


def test_a_small_batch_seen_first_is_not_captured():
    graphs = Recorded()
    run = Captured(Sum(), "a step", graphs)
    for size in [3] + [4] * (WARM_UP + 1) + [3]:
        run(*batch(size))
    assert graphs.calls == ["warm up"] * (WARM_UP + 1) + ["capture", "replay"]


def test_inputs_are_the_caller_s_own():
    run = Captured(lambda values, factor: values.add_(factor), "a step", Recorded())
    for _ in range(WARM_UP):
        run(*batch(1))
    own = batch(1)
    run(*own)
    assert float(own[0]) == 1.0, "a graph works on its own copy"


@pytest.mark.parametrize(
    "error", [RuntimeError("operation not\npermitted"), torch.OutOfMemoryError("full")]
)
def test_a_step_that_cannot_be_captured_runs_as_it_is(capsys, error):
    console.say_once.cache_clear()
    graphs, step = Recorded(error), Sum()
    run = Captured(step, "a step", graphs)
    for _ in range(WARM_UP + 3):
        run(*batch(4))
    assert graphs.calls == ["warm up"] * WARM_UP + ["capture"]
    assert step.n_calls == WARM_UP + 3
    said = capsys.readouterr().out
    reason = " ".join(str(error).split())
    expected = f"a step cannot be captured in a CUDA graph ({reason}): continuing without a graph\n"
    assert said == expected


def test_other_errors_of_a_step_are_not_hidden():
    run = Captured(Sum(), "a step", Recorded(ValueError("wrong")))
    for _ in range(WARM_UP):
        run(*batch(4))
    with pytest.raises(ValueError, match="wrong"):
        run(*batch(4))


def test_a_step_on_a_cpu_is_left_as_it_is():
    step, cpu = Sum(), torch.device("cpu")
    assert captured.graphs_for(cpu) is None
    assert captured.captured(step, "a step", None) is step
    assert not captured.is_capturing(cpu)


def network():
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers).requires_grad_(False)


def passes(attacked, images):
    """Return the logits of images, and the gradient of a loss of them."""
    images = images.clone().requires_grad_()
    logits = attacked(images)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient


def captured_one(n_images=4):
    """Return a network and its captured form, which has seen enough to be captured."""
    graphs, plain = Recorded(), network()
    attacked = CapturedNetwork(plain, graphs)
    for _ in range(WARM_UP + 1):
        passes(attacked, torch.rand(n_images, 3, 2, 2))
    assert graphs.calls.count("capture") == 2, "a forward and a backward pass"
    graphs.calls.clear()
    return plain, attacked, graphs


@pytest.mark.parametrize("n_images", [4, 3])
def test_a_captured_network_has_the_same_logits_and_gradients(n_images):
    plain, attacked, graphs = captured_one()
    for _ in range(3):
        images = torch.rand(n_images, 3, 2, 2)
        for found, expected in zip(passes(attacked, images), passes(plain, images), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected)
    assert set(graphs.calls) == {"replay"}, "3 images fill a part of the graph for 4"


def test_a_gradient_is_that_of_its_own_images():
    plain, attacked, _ = captured_one()
    first, second = (torch.rand(4, 3, 2, 2).requires_grad_() for _ in range(2))
    logits = [attacked(images).square().sum() for images in (first, second)]
    for images, loss in zip((first, second), logits, strict=True):
        (found,) = torch.autograd.grad(loss, images)
        torch.testing.assert_close(found, passes(plain, images.detach())[1])


def test_one_forward_pass_serves_several_backward_passes():
    plain, attacked, graphs = captured_one()
    images = torch.rand(4, 3, 2, 2).requires_grad_()
    logits = attacked(images)
    for place in range(3):
        (found,) = torch.autograd.grad(logits[:, place].sum(), images, retain_graph=True)
        (expected,) = torch.autograd.grad(plain(images)[:, place].sum(), images)
        torch.testing.assert_close(found, expected)
    assert graphs.calls == ["replay"] * 4


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_captured_network_needs_no_gradient(without):
    plain, attacked, _ = captured_one()
    images = torch.rand(4, 3, 2, 2)
    with without():
        found = attacked(images)
        attacked(torch.rand(4, 3, 2, 2))
        torch.testing.assert_close(found, plain(images))


def test_other_numbers_of_images_have_other_graphs():
    _, attacked, graphs = captured_one()
    for n_images in [5, 8, 7, 6, 1]:
        passes(attacked, torch.rand(n_images, 3, 2, 2))
    assert graphs.calls == ["warm up"] * 2 + ["capture"] * 2 + ["replay"] * 2


def test_a_network_that_cannot_be_captured_runs_as_it_is(capsys):
    console.say_once.cache_clear()
    plain = network()
    attacked = CapturedNetwork(plain, Recorded(RuntimeError("not permitted")))
    images = torch.rand(4, 3, 2, 2)
    for _ in range(WARM_UP + 3):
        assert torch.equal(passes(attacked, images)[1], passes(plain, images)[1])
    said = capsys.readouterr().out
    assert not attacked._passes
    expected = "a network cannot be captured in a CUDA graph (not permitted): continuing without"
    assert said == f"{expected} a graph\n"


def test_larger_batches_run_as_they_are(monkeypatch):
    monkeypatch.setattr(captured, "MOST_PIXELS", 8 * 4)
    plain, graphs, sizes = network(), Recorded(), []
    plain.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    attacked = CapturedNetwork(plain, graphs)
    for _ in range(WARM_UP + 2):
        passes(attacked, torch.rand(9, 3, 2, 2))
    assert sizes == [9] * (WARM_UP + 2)
    assert not graphs.calls


def test_batches_are_filled_up_before_they_are_captured_too():
    plain, sizes = network(), []
    plain.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    images = torch.rand(3, 3, 2, 2)
    found = passes(CapturedNetwork(plain, Recorded()), images)
    assert sizes == [4]
    for ours, expected in zip(found, passes(plain, images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_captured_precision_serves_no_other():
    _, attacked, graphs = captured_one()
    images = torch.rand(4, 3, 2, 2)
    with precision.exact():
        passes(attacked, images)
    assert graphs.calls == []
    passes(attacked, images)
    assert graphs.calls == ["replay"] * 2


def test_parts_of_a_batch_that_does_not_fit_are_not_captured():
    plain, graphs = network(), Recorded()
    parts, images = InParts(CapturedNetwork(plain, graphs)), torch.rand(8, 3, 2, 2)
    passes(parts, images)
    parts.halve(torch.device("cpu"))
    for _ in range(WARM_UP + 2):
        for found, expected in zip(passes(parts, images), passes(plain, images), strict=True):
            torch.testing.assert_close(found, expected)
    assert parts.most == 4
    assert not graphs.calls


def test_gradients_of_gradients_are_refused():
    _, attacked, _ = captured_one()
    images = torch.rand(4, 3, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(attacked(images).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_network_on_a_cpu_is_left_as_it_is():
    plain = network()
    assert captured.captured_network(plain, torch.device("cpu")) is plain


def test_the_variable_that_turns_graphs_off_is_0_or_1(monkeypatch):
    monkeypatch.setattr(captured, "CudaGraphs", lambda device: device)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv(captured.VARIABLE, raising=False)
    assert captured.graphs_for(gpu) == gpu
    assert captured.graphs_for(cpu) is None
    monkeypatch.setenv(captured.VARIABLE, "0")
    assert captured.graphs_for(gpu) is None
    monkeypatch.setenv(captured.VARIABLE, "off")
    with pytest.raises(InputError, match="PIPELINE_CUDA_GRAPHS: expected 0 or 1, found 'off'"):
        captured.graphs_for(cpu)
