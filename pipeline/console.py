"""What a person sees while the pipeline runs: progress, one line a stage, and one line for a mistake of theirs."""

import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from tqdm import tqdm

from pipeline.errors import InputError

Bar: TypeAlias = "tqdm[Any]"


def progress(total: int, text: str, unit: str) -> Bar:
    """A progress bar that keeps quiet where there is no terminal."""
    return tqdm(total=total, desc=text, unit=f" {unit}", disable=None, dynamic_ncols=True, leave=False)


def say(text: str) -> None:
    """Print one line at once, without tearing a progress bar."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def run(command: Callable[[], str]) -> None:
    """Run a command to its end: print what it did and how long it took.

    An InputError or an interruption becomes one line on standard error and exit code 1 or 130; earlier results are not touched.
    """
    started = time.perf_counter()
    try:
        done = command()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    say(f"{done} ({time.perf_counter() - started:.1f} s)")
