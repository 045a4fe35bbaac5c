"""Run a command of DVC with its stages numbered: `python -m pipeline.numbered TOTAL repro`.

DVC does not say how many stages there are, nor how long they will take. It also warns of each
fine-tuned model without refreshed sets that the folder of these sets is empty, which is meant. When
a stage fails, it adds the exit code to what the stage itself has said.
"""

import logging
import sys

from pipeline.base import remaining, words
from pipeline.cluster import connection


class Numbered(logging.Filter):
    """Adds the number of a stage, of `total`, to DVC's line about it.

    Every stage has one line: it runs, it comes from DVC's cache, or it did not change. Where the
    run was planned, the line of a stage that runs also has the time that is left.
    """

    def __init__(self, total: int, expected: remaining.Expected) -> None:
        super().__init__()
        self._total, self._expected = total, expected
        self._seen: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and "failed to run: " in str(error.__cause__):
            return False
        if text.startswith("'data/refreshed/") and text.endswith("' is empty."):
            return False
        if "tage '" in text:
            name = text.split("'")[1]
            if name not in self._seen:
                self._seen.append(name)
            left = self._left(name, runs=text.startswith("Running stage"))
            number = f"({self._seen.index(name) + 1} of {self._total}{left})"
            record.msg, record.args = text.replace(f"'{name}'", f"'{name}' {number}"), ()
        return True

    def _left(self, name: str, *, runs: bool) -> str:
        """Return the time that is left in words, and tell the stage about it."""
        if not runs:
            self._expected.end(skipped=name)
            return ""
        found = self._expected.begin(name)
        if found is None:
            return ""
        remaining.pass_on(*found)
        return f"; whole run: {words.duration(sum(found))} left"


def main() -> int:
    from dvc import cli

    total, *arguments = sys.argv[1:]
    # A plan says nothing about a cluster.
    expected = remaining.Expected({} if connection.wanted() else remaining.kept())
    for handler in logging.getLogger("dvc").handlers:
        handler.addFilter(Numbered(int(total), expected))
    return int(cli.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
