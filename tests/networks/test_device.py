import subprocess
import sys

import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.networks import device


def test_the_device_is_the_one_asked_for(monkeypatch):
    monkeypatch.setenv(device.VARIABLE, "cpu")
    assert device.choose() == torch.device("cpu")
    assert "thread" in device.describe(device.choose())


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.delenv(device.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.choose().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.choose().type == "cpu"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "cuda was asked for, but torch sees 0 CUDA devices; set it to cpu or auto"),
        ("gpu", "found 'gpu'"),
        ("meta", "found 'meta'"),
    ],
)
def test_a_device_that_is_not_there_is_refused(monkeypatch, name, message):
    monkeypatch.setenv(device.VARIABLE, name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=f"PIPELINE_DEVICE: .*{message}"):
        device.choose()


def test_the_name_of_a_device_is_read_without_torch():
    program = "import sys; from pipeline.cluster import slots; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_number_that_torch_would_count_down_is_refused(monkeypatch):
    monkeypatch.setenv(device.VARIABLE, "cuda:256")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="cuda:256 was asked for, but torch sees 1 CUDA"):
        device.choose()


def test_the_processor_is_named_by_what_decides_its_bits(monkeypatch):
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda _: True)
    kind = torch.backends.cpu.get_cpu_capability()
    with device.threads_of("cpu (3 threads)"):
        assert device.processor(torch.device("cpu")) == f"cpu ({kind}, bf16, 3 threads)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    assert device.processor(torch.device("cuda")) == "cuda (NVIDIA H100)"


@pytest.mark.parametrize(
    ("recorded", "threads"),
    [
        ("cpu (AVX2, 1 thread)", 1),
        ("cpu (AVX2, 3 threads) + cpu (AVX512, bf16, 3 threads)", 3),
        ("cuda (NVIDIA H100)", None),
        ("cpu (AVX512, bf16)", None),
    ],
)
def test_as_many_threads_as_recorded_compute(recorded, threads):
    before = torch.get_num_threads()
    with device.threads_of(recorded):
        assert torch.get_num_threads() == (threads or before)
    assert torch.get_num_threads() == before
