"""Record what each stage cost, beside its outputs.

These records decide nothing: DVC does not know them, and a stage writes the same outputs without
them.
"""

import os
import resource
import time
from pathlib import Path
from typing import Any

from pipeline.base import files

FOLDER = Path("report/costs")
RAPL = Path("/sys/class/powercap")  # Intel's and AMD's energy counters, where Linux shows them


class Meter:
    """Measures this process from now on."""

    def __init__(self, counters: Path = RAPL) -> None:
        self._started, self._counters = time.perf_counter(), counters
        self._energy, self._used = _energy(counters), _processor_seconds()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def read(self) -> dict[str, Any]:
        """Return what the process took since then.

        That is its time and processor time in seconds, its greatest memory in bytes, and the energy
        of the machine's processors in joules. Energy is None where the machine does not tell it.
        """
        own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return {
            "seconds": round(self.seconds, 1),
            "processor_seconds": round(_processor_seconds() - self._used, 1),
            "memory_bytes": 1024 * max(own.ru_maxrss, children.ru_maxrss),
            "processor_joules": self._joules(),
        }

    def _joules(self) -> float | None:
        now = _energy(self._counters)
        if not now or now.keys() != self._energy.keys():
            return None
        used = 0
        for package, (count, size) in now.items():
            used += (count - self._energy[package][0]) % size
        return round(used / 1e6, 1)


def _processor_seconds() -> float:
    """Return the processor time of this process and of those that it started and that ended."""
    return sum(os.times()[:4])


def _energy(counters: Path) -> dict[str, tuple[int, int]]:
    """Return each processor package's counter in microjoules, and where it starts again at 0."""
    found = {}
    for package in sorted(counters.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") == 1:  # deeper ones are parts of a package
            try:
                count, last = (
                    int((package / name).read_text())
                    for name in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):
                continue  # on most machines, only root may read them
            found[package.name] = (count, last + 1)
    return found


def record(meter: Meter) -> None:
    """Write what this stage took, where DVC runs it."""
    if stage := os.environ.get("DVC_STAGE"):
        name = stage.rpartition(":")[2]  # DVC writes `path/dvc.yaml:name` for another folder
        files.write_json(FOLDER / f"{name}.json", meter.read())
