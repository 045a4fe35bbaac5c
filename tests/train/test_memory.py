import pytest
import torch

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits
from pipeline.train import memory


def test_the_limit_is_the_one_asked_for_or_a_share_of_what_is_free(monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "300")
    assert memory.limit() == 300 * 2**20
    assert memory.stream_buffer() == 300 * 2**20
    monkeypatch.delenv(memory.VARIABLE)
    assert 0 < memory.limit() < limits.available_memory()


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    for name, content in (("MEMINFO", "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n"), ("CONTAINER_LIMIT", "max\n")):
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(limits, name, tmp_path / name)
    assert limits.available_memory() == 4096 * 1024
    (tmp_path / "CONTAINER_LIMIT").write_text("1048576\n")
    assert limits.available_memory() == 2**20
    monkeypatch.setattr(limits, "CONTAINER_LIMIT", tmp_path / "none")
    assert limits.available_memory() == 4096 * 1024


def test_images_must_fit_twice_in_memory_and_on_a_gpu_in_half_of_it(monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "100")
    mib = 2**20
    assert memory.obstacle(50 * mib, torch.device("cpu")) == ""
    assert memory.obstacle(51 * mib, torch.device("cpu")).endswith("is more than the 100 MiB that images may take")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * mib, 80 * mib))
    assert memory.obstacle(30 * mib, torch.device("cuda")) == ""
    assert memory.obstacle(31 * mib, torch.device("cuda")) == "that is more than the 30 MiB of the GPU that images may take"


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "2G", "²"])
def test_a_limit_that_is_no_number_of_mib_is_refused(monkeypatch, value):
    monkeypatch.setenv(memory.VARIABLE, value)
    with pytest.raises(InputError, match=f"PIPELINE_MEMORY: expected a whole number of MiB, at least 1, found '{value}'"):
        memory.limit()
