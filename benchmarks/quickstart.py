"""Compare `dvc repro` with the usual way, from raw digits to the fine-tuned network.

Run `python -m benchmarks.quickstart`. Both ways do the quickstart's work up to the robust model,
including start-up, and alternate. Results are the medians of PAIRS pairs. Judging, refreshing and
auditing are left out, because only the pipeline has them. The benchmark works in a clone of the
last commit.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tables import machine, markdown
from pipeline.base import files

RESULT = Path(__file__).parent / "results" / "quickstart.json"
STAGE = "finetune@robust"  # the last stage of what both ways do
PAIRS = 5


def seconds(*arguments: str, folder: Path) -> float:
    """Return the seconds that a Python module takes in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def main() -> None:
    taken: dict[str, list[float]] = {"pipeline": [], "usual way": []}
    with tempfile.TemporaryDirectory() as parent:
        folder, scratch = Path(parent, "clone"), Path(parent, "scratch")
        subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)  # noqa: S607
        scratch.mkdir()
        for _ in range(PAIRS):
            taken["pipeline"].append(seconds("dvc", "repro", "--force", STAGE, folder=folder))
            taken["usual way"].append(seconds("benchmarks.naive", str(scratch), folder=folder))
    medians = {name: round(statistics.median(times), 1) for name, times in taken.items()}
    figures = {**medians, "ratio": round(medians["usual way"] / medians["pipeline"], 2)}
    files.write_json(RESULT, {"machine": machine(), "pairs": PAIRS, "seconds": figures})
    print(
        f"{machine()}; medians of {PAIRS} pairs, seconds\n\n"
        f"{markdown([{'what': 'quickstart up to the robust model', **figures}])}"
    )


if __name__ == "__main__":
    main()
