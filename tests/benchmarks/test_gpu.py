import sys

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import checks, job, measure
from pipeline.base.errors import InputError

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("narrow_resnet18", "one_thread")


def run(monkeypatch, *arguments):
    monkeypatch.setenv("PIPELINE_DEVICE", "cpu")
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *arguments])
    return command.main()


def test_a_tiny_job_runs_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "RESULT", tmp_path / "gpu.json")
    said = run(monkeypatch, "--tiny")
    assert said == "nothing was written: only the full size on a GPU is"
    assert not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    for phase in ("clean training", "fgsm", "pgd", "mixed training", "evaluation", "validation"):
        assert f"| {phase} |" in out


def test_a_whole_job_measures_every_image():
    for phase in job.Job(job.TINY, CPU).phases():
        assert phase.run(None).n_images == phase.n_images, phase.name


def test_the_full_size_asks_for_a_gpu(monkeypatch):
    with pytest.raises(InputError, match=r"expected a GPU, found cpu \(.*\). Use --tiny."):
        run(monkeypatch)


def test_the_checks_pass_at_a_tiny_size(monkeypatch, capsys):
    assert run(monkeypatch, "--tiny", "--check") == "all checks passed"
    out = capsys.readouterr().out
    assert [f"{name}: ok" in out for name in ("accuracy", "resume", "attack again")] == [True] * 3


def test_a_failed_check_is_named(monkeypatch):
    monkeypatch.setattr(checks, "_tiny", lambda: None)
    monkeypatch.setattr(checks, "accuracy", lambda *_: (False, "0.60 points apart"))
    for name in ("resume", "attack_again"):
        monkeypatch.setattr(checks, name, lambda *_: (True, "equal"))
    with pytest.raises(SystemExit, match="error: not as expected: accuracy"):
        run(monkeypatch, "--tiny", "--check")


@pytest.mark.parametrize(
    ("of_bf16", "passed"),
    [
        ([0.40, 0.42, 0.41, 0.43, 0.44], True),
        ([0.39, 0.41, 0.40, 0.42, 0.43], False),
        ([0.38, 0.45, 0.40, 0.42, 0.41], True),
        ([0.30, 0.47, 0.40, 0.42, 0.38], False),
    ],
)
def test_bf16_may_cost_little_more_than_chance_explains(monkeypatch, of_bf16, passed):
    accuracies = {"fp32": [0.40, 0.42, 0.41, 0.43, 0.44], "auto": of_bf16}

    class Fit:
        def __init__(self, accuracy):
            self.history = [{"val_accuracy": accuracy}]

    monkeypatch.setattr(checks, "_fitted", lambda *of, seed: Fit(accuracies[of[2]][seed]))
    assert checks.accuracy(None, CPU)[0] is passed


def test_the_checks_ask_for_cifar10():
    with pytest.raises(InputError, match=r"--data: expected the path of an .npz of CIFAR-10"):
        checks.failed(None, CPU, tiny=False)


def test_the_checks_read_an_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", images=images, labels=np.arange(200) % 10)
    trial = checks._trial(tmp_path / "cifar10.npz", tiny=True)
    assert trial.train.images.shape == (64, 3, 32, 32)
    assert len(trial.val) == 32
    assert not set(trial.train.ids) & set(trial.val.ids)


def test_the_work_of_a_layer_is_counted():
    layer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5, bias=False))
    forward, training = measure.work_of(layer, torch.rand(2, 3, 2, 2))
    assert forward.flops == 2 * 12 * 5
    assert training.flops == 2 * forward.flops, "nothing asks for the images' gradient"
    assert forward.n_bytes == 4 * (2 * (12 + 12 + 12 + 5) + 60) / 2
