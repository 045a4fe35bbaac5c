"""Defines the one exception for the user's mistakes, and the remedy for damaged results."""

import shlex
from pathlib import Path

from pipeline.base.words import printable


class InputError(ValueError):
    """Something that the user gave and that cannot be used.

    The text is one line that says what is wrong, where, and what to do. Command lines print it and
    exit with 1. Line breaks, control characters and terminal sequences can come from a file's own
    names. They are written as escapes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(printable(text))


def discarding(path: Path) -> str:
    """Return the remedy for a damaged image set or model.

    The remedy is the commands that delete it and make it again.
    """
    return f"run `python -m pipeline discard {shlex.quote(str(path))}`, then `dvc repro`"
