"""Tell how long the rest of a run will take.

`make plan` keeps what it expects of each stage. `make repro` compares that with what the stages of
the run took so far, and passes the rest on to the stage that begins. Nothing here decides a result.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.base import costs, files, params

FILE = costs.FOLDER / "plan.json"
VARIABLE = "PIPELINE_REMAINING"
# Variables of the environment that choose the processor or its threads.
CHOOSING = ("PIPELINE_DEVICE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
TRUST = 60.0  # seconds of a run that count as much as the plan: short stages say little


def keep(seconds: Mapping[str, float]) -> None:
    """Keep the seconds that each stage is expected to take with today's params and processor."""
    found = {name: round(number, 1) for name, number in seconds.items()}
    files.write_json(FILE, {"planned": _planned(), "seconds": found})


def kept() -> dict[str, float]:
    """Return what was kept for today's params and processor, or nothing."""
    try:
        found = json.loads(FILE.read_text(encoding="utf-8"))
        if found["planned"] != _planned():
            return {}
        return {str(name): float(number) for name, number in found["seconds"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _planned() -> dict[str, Any]:
    """Return what a plan is for."""
    return {
        "params": files.sha256(params.FILE),
        "cores": len(os.sched_getaffinity(0)),
        **{name: os.environ.get(name) for name in CHOOSING},
    }


class Expected:
    """What is left of a run, of whose stages each is expected to take some seconds."""

    def __init__(
        self, seconds: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._left, self._clock = dict(seconds), clock
        self._running = 0.0  # seconds expected of the stage that runs
        self._since = 0.0
        self._expected = self._took = 0.0  # of all stages that ran

    def begin(self, stage: str) -> tuple[float, float] | None:
        """Return the seconds expected of a stage that begins, and of those after it.

        They are corrected by what the stages of this run took so far. Stages that did not run yet
        count, even if they turn out to be up to date. Return None for a stage that nobody planned.
        """
        self.end()
        if stage not in self._left:
            return None
        self._running, self._since = self._left.pop(stage), self._clock()
        factor = (TRUST + self._took) / (TRUST + self._expected)
        return factor * self._running, factor * sum(self._left.values())

    def end(self, skipped: str = "") -> None:
        """Note that no stage runs any more, and that one did not need to run."""
        if self._running:
            self._expected += self._running
            self._took += self._clock() - self._since
            self._running = 0.0
        self._left.pop(skipped, None)


def pass_on(stage: float, after: float) -> None:
    """Tell the processes that this one starts what is expected of a stage and of those after it.

    The stage begins now.
    """
    os.environ[VARIABLE] = f"{time.monotonic() + stage:.1f} {after:.1f}"


def of_run(bar: float) -> float | None:
    """Return the seconds that the whole run still takes, or None if nobody planned it.

    `bar` are the seconds that a progress bar expects of its part of the stage.
    """
    try:
        end, after = map(float, os.environ.get(VARIABLE, "").split())
    except ValueError:
        return None
    return max(end - time.monotonic(), bar) + after
