import pytest
import torch

from pipeline.base import console
from pipeline.networks import captured
from pipeline.networks.captured import WARM_UP, Captured
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
