"""The history of a training, and the choice of the epoch that is kept."""

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
# What to warn of after an epoch, or nothing, from the history so far.
Watch = Callable[[Sequence[Row]], str]
# Whether the last epoch of a history is kept in place of another one, whose row is given.
Keep = Callable[[Sequence[Row], Row], bool]


def more_accurate(history: Sequence[Row], kept: Row) -> bool:
    """Return whether the last epoch has a better validation accuracy than the kept one."""
    return bool(history[-1]["val_accuracy"] > kept["val_accuracy"])


def kept_epoch(history: Sequence[Row], keep: Keep) -> Row:
    """Return the row of the epoch that a training with this history keeps."""
    kept = history[0]
    for end in range(2, len(history) + 1):
        if keep(history[:end], kept):
            kept = history[end - 1]
    return kept
