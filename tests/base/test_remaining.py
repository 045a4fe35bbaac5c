import time

import pytest

from pipeline.base import remaining
from pipeline.base.remaining import Expected


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    return tmp_path


def test_a_plan_is_kept_for_the_params_that_it_was_made_for(project):
    assert remaining.kept() == {}
    remaining.keep({"prepare": 1.26, "export": 3})
    assert remaining.kept() == {"prepare": 1.3, "export": 3.0}
    (project / "params.yaml").write_text("seed: 1\n")
    assert remaining.kept() == {}


def test_a_plan_is_kept_for_the_processor_that_it_was_made_on(project, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    remaining.keep({"prepare": 1.0})
    assert remaining.kept() == {"prepare": 1.0}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert remaining.kept() == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"planned": 1, "seconds": {"a": "b"}}', "5"])
def test_a_plan_that_cannot_be_read_is_none(project, text):
    remaining.keep({"prepare": 1.0})
    remaining.FILE.write_text(text)
    assert remaining.kept() == {}


def test_what_is_left_follows_what_the_stages_took():
    now = [0.0]
    left = Expected({"a": 60.0, "b": 20.0, "c": 30.0, "d": 40.0}, clock=lambda: now[0])
    assert left.begin("a") == (60.0, 90.0)
    now[0] = 180.0  # three times as long as expected
    assert left.begin("b") == (40.0, 140.0)
    now[0] = 200.0  # as expected: 200 s in place of 80 s so far
    left.end(skipped="c")
    now[0] = 300.0  # time in which no stage ran does not count
    assert left.begin("d") == pytest.approx((40.0 * 260 / 140, 0.0))


def test_a_short_stage_says_little():
    now = [0.0]
    left = Expected({"a": 1.0, "b": 600.0}, clock=lambda: now[0])
    left.begin("a")
    now[0] = 4.0
    assert left.begin("b") == pytest.approx((600.0 * 64 / 61, 0.0))


def test_a_stage_that_nobody_planned_tells_nothing():
    left = Expected({"a": 10.0})
    assert left.begin("b") is None
    assert left.begin("a") == (10.0, 0.0)


def test_a_stage_is_told_what_is_left_of_the_run(monkeypatch):
    monkeypatch.setenv(remaining.VARIABLE, "")
    assert remaining.of_run(5.0) is None
    remaining.pass_on(50.0, 100.0)
    now = time.monotonic()
    monkeypatch.setattr(remaining.time, "monotonic", lambda: now + 20)
    assert remaining.of_run(5.0) == pytest.approx(130.0, abs=1)
    assert remaining.of_run(500.0) == 600.0  # the bar knows better
