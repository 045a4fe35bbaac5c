"""Shows progress, one line per stage, and one line for each mistake of the user."""

import argparse
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from pipeline.base import costs, files, remaining, words
from pipeline.base.errors import InputError

Bar: TypeAlias = "tqdm[Any]"
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]{whole_run}"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP, raised once the current work was finished cleanly.

    The text says what was saved.
    """


class Stop:
    """A flag that tells whether the run was asked to stop."""

    asked = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a request to stop.

    Yields the `Stop` that the first signal sets. A second signal stops the run at once.
    """
    stop, earlier = Stop(), {}

    def ask(*_: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.signal(number, ask) for number in (signal.SIGINT, *_endings())}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _endings() -> list[signal.Signals]:
    """Return the signals, apart from Ctrl-C, that ask a run to end.

    SIGHUP tells that the terminal was closed. Under nohup it is ignored, and stays so.
    """
    return [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar that also tells how long the rest of the run takes, if that was planned."""

    @property
    def format_dict(self) -> Any:
        found = super().format_dict
        rate = found["rate"] or (found["n"] - found["initial"]) / max(found["elapsed"], 1e-9)
        bar = (found["total"] - found["n"]) / rate if rate else 0.0
        left = remaining.of_run(bar)
        found["whole_run"] = "" if left is None else f", whole run: {words.duration(left)} left"
        return found


def progress(total: int, text: str, unit: str, done: int = 0) -> Bar:
    """Return a progress bar that stays silent where there is no terminal."""
    return _Bar(
        total=total,
        initial=done,
        desc=text,
        unit=f" {unit}",
        bar_format=BAR,
        disable=None,
        dynamic_ncols=True,
        leave=False,
    )


def say(text: str) -> None:
    """Print one line at once, without breaking a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@cache
def say_once(text: str) -> None:
    """Print one line, unless this process has printed it before."""
    say(text)


def path_arguments(description: str | None, **paths: str) -> argparse.ArgumentParser:
    """Return the parser of a stage's command, with a required path for each keyword.

    `paths` gives the help of each by its name: `out="…"` is `--out PATH`.
    """
    parser = argparse.ArgumentParser(description=description)
    for name, text in paths.items():
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    return parser


def run(command: Callable[[], str]) -> None:
    """Run a command to its end, then print what it did and how long it took.

    Some errors become one line on standard error and exit code 1: an InputError, what the system
    says of a file, a full disk, and a GPU without memory. An interruption becomes such a line and
    exit code 130. Earlier results are not touched. If the reader of its output ends, such as
    `head`, the command ends silently.
    """
    meter = costs.Meter()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every letter
            stream.reconfigure(errors="backslashreplace")
    # SIGTERM and SIGHUP end the run in the same way as Ctrl-C.
    for number in _endings():
        signal.signal(number, signal.default_int_handler)
    try:
        done = command()
        costs.record(meter)
        say(f"{done} ({meter.seconds:.1f} s)")
    except BrokenPipeError:
        # Python would write what is left, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (InputError, OSError, RuntimeError) as error:
        if not (problem := in_words(error)):
            raise
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as interruption:
        where = (
            f" ({interruption}); the same command resumes from here" if str(interruption) else ""
        )
        print(f"interrupted{where}", file=sys.stderr)
        sys.exit(130)


def in_words(error: InputError | OSError | RuntimeError) -> str:
    """Return one line about what the user or the system did, or nothing for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        if files.is_full_disk(error):
            found = " ".join(str(error).split())[:150]
            return (
                f"the disk is full ({found}); free some space and run it again, "
                "it resumes from here"
            )
        return f"{error.filename2 or error.filename}: {error.strerror}" if error.filename else ""
    # This error is torch's. Comparing its name saves the import of torch.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "the GPU's memory is full; lower this stage's batch_size, "
            "or see what else uses the GPU, and run it again"
        )
    return ""
