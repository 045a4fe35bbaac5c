import numpy as np
import pytest
import torch

from pipeline import networks
from pipeline.evaluate.target import Part, Target
from pipeline.networks import device, precision
from tests import small_networks

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "asked", "expected"),
    [
        ((9, 0), "auto", "bf16"),
        ((8, 0), "bf16", "bf16"),
        ((8, 0), "fp32", "fp32"),
        ((7, 5), "auto", "fp16"),
        ((7, 0), "bf16", "fp16"),
        ((7, 5), "fp32", "fp32"),
        ((6, 1), "auto", "fp32"),
        ((6, 1), "bf16", "fp32"),
    ],
)
def test_a_gpu_trains_in_what_its_generation_multiplies(monkeypatch, capability, asked, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.precision_for(asked, GPU) == expected
    attacked = torch.bfloat16 if expected == "bf16" else torch.float32
    assert precision.dtype_for(asked, GPU) == attacked


@pytest.mark.parametrize(("multiplies", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_cpu_is_bf16_where_it_is_multiplied(monkeypatch, multiplies, expected):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda _: multiplies)
    assert precision.precision_for("auto", CPU) == expected
    assert precision.precision_for("bf16", CPU) == "bf16"
    assert precision.precision_for("fp32", CPU) == "fp32"


@pytest.mark.parametrize(
    ("capability", "computed", "expected"),
    [
        ((8, 0), "fp32", "tf32"),
        ((8, 0), "bf16", "bf16"),
        ((7, 5), "fp32", "fp32"),
        ((7, 5), "fp16", "fp16"),
    ],
)
def test_tf32_is_recorded_where_it_is_allowed(monkeypatch, capability, computed, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert precision.recorded(computed, GPU) == expected
    assert precision.recorded(computed, CPU) == computed


def test_only_gpus_multiply_float16():
    assert not device.multiplies_float16(CPU)


def settings():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_tf32_is_set_inside_and_restored_outside():
    before = settings()
    with precision.tensor_floats():
        assert settings() == ("tf32", "tf32")
        with precision.exact():
            assert settings() == ("ieee", "ieee")
        assert settings() == ("tf32", "tf32")
    assert settings() == before


def test_tf32_is_restored_after_an_error():
    before = settings()
    with pytest.raises(ValueError, match="inside"), precision.exact():
        raise ValueError("inside")
    assert settings() == before


def test_a_target_computes_in_full_wherever_it_is():
    target = Target.of(small_networks.network(), 10, batch_size=4, seed=0)
    found = []
    with precision.tensor_floats():
        compute = target.on(torch.device("cpu"))
        compute(Part(lambda *_: found.append(settings()), 0, None, ()))
    assert found == [("ieee", "ieee")]


def test_predictions_are_exact():
    seen = []

    class Noting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def forward(self, images):
            seen.append(settings())
            return images.flatten(1)[:, :3]

    images = np.zeros((2, 3, 4, 4), np.uint8)
    networks.predict(Noting(), images)
    networks.is_right(Noting(), torch.zeros(2, 3, 4, 4), torch.zeros(2))
    assert seen == [("ieee", "ieee")] * 2


@pytest.mark.parametrize(
    ("lost", "gained", "worse"),
    [(3, 0, False), (6, 0, False), (7, 0, True), (20, 2, True), (20, 18, False), (0, 20, False)],
)
def test_bf16_is_refused_only_where_chance_does_not_explain_it(lost, gained, worse):
    by_fp32, by_bf16 = np.zeros(256, dtype=bool), np.zeros(256, dtype=bool)
    by_fp32[:lost] = by_bf16[lost : lost + gained] = True
    by_fp32[100:], by_bf16[100:] = True, True
    assert precision.is_worse(by_fp32, by_bf16) == worse


def test_a_precision_that_finds_nothing_is_worse():
    assert precision.is_worse(np.ones(1024, dtype=bool), np.zeros(1024, dtype=bool))


def test_equal_precisions_are_seldom_told_apart():
    generator = np.random.default_rng(0)
    fooled = generator.random((2000, 2, 1024)) < 0.02
    assert np.mean([precision.is_worse(*pair) for pair in fooled]) < 0.01
