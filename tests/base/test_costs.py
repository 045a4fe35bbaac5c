import json

import pytest

from pipeline.base import console, costs


def counter(folder, count, last=999):
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{count}\n")
    (folder / "max_energy_range_uj").write_text(f"{last}\n")


def test_a_stage_records_what_it_took_and_only_where_dvc_runs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    console.run(lambda: "done")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("DVC_STAGE", "generate@clean-pgd")
    console.run(lambda: "done")
    found = json.loads((tmp_path / "report/costs/generate@clean-pgd.json").read_text())
    assert found["seconds"] >= 0
    assert found["memory_bytes"] > 2**20


def test_time_and_processor_time_begin_together(monkeypatch):
    clock, processor = iter([100.0, 103.0]), iter([50.0, 54.5])  # the start of a process took some
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(costs, "_processor_seconds", lambda: next(processor))
    found = costs.Meter().read()
    assert (found["seconds"], found["processor_seconds"]) == (3.0, 4.5)


def test_a_stage_that_fails_records_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "prepare")

    def fail():
        raise OSError(2, "No such file or directory", "raw")

    with pytest.raises(SystemExit):
        console.run(fail)
    assert not list(tmp_path.iterdir())


def test_energy_is_that_of_all_packages_even_when_a_counter_starts_again(tmp_path):
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        counter(tmp_path / name, 900_000_000, 999_999_999)
    meter = costs.Meter(tmp_path)
    counter(tmp_path / "intel-rapl:0", 400_000_000, 999_999_999)  # 500 J further, past 999
    counter(tmp_path / "intel-rapl:1", 950_000_000, 999_999_999)
    counter(tmp_path / "intel-rapl:0:0", 901_000_000, 999_999_999)
    assert meter._joules() == 550.0
    assert costs.Meter(tmp_path / "none").read()["processor_joules"] is None


def test_a_counter_that_may_not_be_read_gives_no_energy(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    assert costs.Meter(tmp_path).read()["processor_joules"] is None
