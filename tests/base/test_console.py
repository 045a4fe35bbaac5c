import os
import signal
import subprocess
import sys

import pytest
import torch

from pipeline.base import console, remaining
from pipeline.base.errors import InputError
from tests.conftest import ROOT


def test_a_command_says_what_it_did_and_how_long_it_took(capsys):
    console.run(lambda: "done")
    assert capsys.readouterr().out.startswith("done (0.")


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys):
    def fail():
        raise InputError("x: expected 1, found 2")

    with pytest.raises(SystemExit) as caught:
        console.run(fail)
    assert (
        caught.value.code == "error: x: expected 1, found 2"
    )  # Python prints a string to standard error and exits with 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_is_one_line(capsys, number):
    def interrupt():
        signal.raise_signal(number)

    endings = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in endings}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` lets it be ignored
    with pytest.raises(SystemExit) as caught:
        console.run(interrupt)
    for ending, handler in before.items():
        signal.signal(ending, handler)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_progress_is_quiet_without_a_terminal(capsys):
    with console.progress(3, "work", "items") as bar:
        bar.update(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("is_planned", [True, False])
def test_progress_tells_how_long_a_planned_run_takes(capsys, monkeypatch, is_planned):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv(remaining.VARIABLE, "")
    if is_planned:
        remaining.pass_on(0.0, 7200.0)
    with console.progress(3, "work", "items") as bar:
        bar.update(2)
        bar.refresh()
    assert ("], whole run: 2 h 00 min left" in capsys.readouterr().err) is is_planned


def test_the_first_signal_asks_and_the_second_stops():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with console.stopping() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_closed_terminal_asks_to_stop_except_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    with console.stopping() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked
    assert signal.getsignal(signal.SIGHUP) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with console.stopping() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
    signal.signal(signal.SIGHUP, before)


PRINT = "from pipeline.base import console; console.run(lambda: {})"


@pytest.mark.parametrize(
    ("text", "variables", "reader", "shown"),
    [
        ("'x\\n' * 100_000", {}, "head -n 1", "x\n"),
        ("'±1'", {"PYTHONIOENCODING": "ascii"}, "cut -d' ' -f1", "\\xb11\n"),
    ],
    ids=["head", "ascii"],
)
def test_a_reader_that_ends_and_a_poor_terminal_are_no_traceback(text, variables, reader, shown):
    command = f'"{sys.executable}" -c "{PRINT.format(text)}" | {reader}'
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (shown, "")


def test_a_finished_interruption_says_what_was_saved(capsys):
    def interrupt():
        raise console.Interrupted("train: batch 3 of epoch 2 is done")

    with pytest.raises(SystemExit) as caught:
        console.run(interrupt)
    assert caught.value.code == 130
    assert (
        capsys.readouterr().err
        == "interrupted (train: batch 3 of epoch 2 is done); the same command resumes from here\n"
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device"),
            "error: the disk is full ([Errno 28] No space left on device); free some space and "
            "run it",
        ),
        (
            PermissionError(13, "Permission denied", "models/clean.safetensors"),
            "error: models/clean.safetensors: Permission denied",
        ),
    ],
)
def test_system_errors_and_a_full_disk_are_one_line(error, line):
    with pytest.raises(SystemExit) as caught:
        console.run(lambda: fail(error))
    assert str(caught.value.code).startswith(line)


def fail(error):
    raise error


def test_a_full_gpu_is_one_line_and_bugs_keep_their_traceback():
    with pytest.raises(SystemExit) as caught:
        console.run(
            lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        )
    assert str(caught.value.code).startswith(
        "error: the GPU's memory is full; lower this stage's batch_size"
    )
    with pytest.raises(RuntimeError, match="shapes do not agree"):
        console.run(lambda: fail(RuntimeError("shapes do not agree")))
    with pytest.raises(OSError, match="Input/output"):
        console.run(lambda: fail(OSError(5, "Input/output error")))
