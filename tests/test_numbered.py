import logging
import os
import sys

import pytest

from pipeline import numbered
from pipeline.base import remaining


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Running stage '%s':", "Running stage '%s' (%d of 11):"),
        ("Stage '%s' didn't change, skipping", "Stage '%s' (%d of 11) didn't change, skipping"),
        (
            "Stage '%s' is cached - skipping run, checking out outputs",
            "Stage '%s' (%d of 11) is cached - skipping run, checking out outputs",
        ),
    ],
)
def test_each_stage_has_its_number(message, shown):
    counting = numbered.Numbered(11, remaining.Expected({}))
    for name, number in (("prepare", 1), ("generate@clean-pgd", 2), ("prepare", 1)):
        record = logging.LogRecord("dvc", logging.INFO, "", 0, message, (name,), None)
        assert counting.filter(record)
        assert record.getMessage() == shown % (name, number)


@pytest.mark.parametrize(
    ("cause", "is_shown"),
    [("failed to run: python -m pipeline.train, exited with 1", False), ("no such stage", True)],
)
def test_the_reason_of_a_failed_stage_is_not_said_twice(cause, is_shown):
    error = RuntimeError("failed to reproduce 'train_clean'")
    error.__cause__ = RuntimeError(cause)
    info = (RuntimeError, error, None)
    record = logging.LogRecord("dvc", logging.ERROR, "", 0, "", (), info)
    assert numbered.Numbered(11, remaining.Expected({})).filter(record) is is_shown


@pytest.mark.parametrize(
    ("message", "is_shown"),
    [
        ("'data/refreshed/robust' is empty.", False),
        ("'data/clean' is empty.", True),
        ("Updating lock file 'dvc.lock'", True),
    ],
)
def test_only_the_warning_about_no_refreshed_sets_is_left_out(message, is_shown):
    record = logging.LogRecord("dvc", logging.WARNING, "", 0, message, (), None)
    assert numbered.Numbered(11, remaining.Expected({})).filter(record) is is_shown
    assert record.getMessage() == message


def test_a_stage_that_runs_tells_how_long_the_whole_run_takes(monkeypatch):
    monkeypatch.setenv(remaining.VARIABLE, "")
    expected = remaining.Expected({"prepare": 5.0, "train_clean": 70.0, "export": 20.0})
    counting = numbered.Numbered(3, expected)
    shown = []
    for message, name in (
        ("Stage '%s' didn't change, skipping", "prepare"),
        ("Running stage '%s':", "train_clean"),
    ):
        record = logging.LogRecord("dvc", logging.INFO, "", 0, message, (name,), None)
        counting.filter(record)
        shown.append(record.getMessage())
    assert shown == [
        "Stage 'prepare' (1 of 3) didn't change, skipping",
        "Running stage 'train_clean' (2 of 3; whole run: 1 min 30 s left):",
    ]
    assert os.environ[remaining.VARIABLE].endswith(" 20.0")


@pytest.mark.parametrize(("cluster", "seconds"), [(None, {"export": 20.0}), ("auto", {})])
def test_a_plan_counts_where_there_is_no_cluster(monkeypatch, cluster, seconds):
    monkeypatch.setattr(numbered.connection, "wanted", lambda: cluster)
    monkeypatch.setattr(remaining, "kept", lambda: {"export": 20.0})
    expected = []
    monkeypatch.setattr(remaining, "Expected", expected.append)
    monkeypatch.setattr("dvc.cli.main", lambda _: 0)
    monkeypatch.setattr(sys, "argv", ["numbered", "11", "repro"])
    assert numbered.main() == 0
    assert expected == [seconds]
