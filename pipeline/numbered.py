"""Run a command of DVC with its stages numbered: `python -m pipeline.numbered TOTAL repro`.

DVC does not say how many stages there are. It also warns of each fine-tuned model without refreshed
sets that the folder of these sets is empty, which is meant. When a stage fails, it adds the exit
code to what the stage itself has said.
"""

import logging
import sys


class Numbered(logging.Filter):
    """Adds the number of a stage, of `total`, to DVC's line about it.

    Every stage has one line: it runs, it comes from DVC's cache, or it did not change.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self._total = total
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
            number = f"({self._seen.index(name) + 1} of {self._total})"
            record.msg, record.args = text.replace(f"'{name}'", f"'{name}' {number}"), ()
        return True


def main() -> int:
    from dvc import cli

    total, *arguments = sys.argv[1:]
    for handler in logging.getLogger("dvc").handlers:
        handler.addFilter(Numbered(int(total)))
    return int(cli.main(arguments))


if __name__ == "__main__":
    sys.exit(main())
