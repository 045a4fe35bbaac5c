"""Explains in one line what stops a command while it imports its libraries."""

import sys
from types import TracebackType


def explain(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an interruption and a missing library as one line, anything else as Python does."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted before it began", file=sys.stderr)
    elif isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("pipeline"):
        print(
            f"error: {sys.executable}: no library {error.name} in this Python; run `make repro`,"
            " or activate the project's environment first (`. .venv/bin/activate`)",
            file=sys.stderr,
        )
    else:
        sys.__excepthook__(kind, error, traceback)
