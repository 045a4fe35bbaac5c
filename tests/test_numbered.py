import logging

import pytest

from pipeline import numbered


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
    counting = numbered.Numbered(11)
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
    assert numbered.Numbered(11).filter(record) is is_shown


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
    assert numbered.Numbered(11).filter(record) is is_shown
    assert record.getMessage() == message
