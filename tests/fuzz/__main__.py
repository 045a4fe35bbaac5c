"""`python -m tests.fuzz [--inputs N] [--seed N] [READER ...]`, or `make fuzz`.

It gives every reader thousands of changed files. The only outcomes allowed are a correct read and
the project's own error, within 5 s and 1 GiB, with nothing written or started elsewhere. Every
input that breaks this is kept under tests/fuzz/kept/, where the tests replay it.
"""

import argparse
import ast
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.worker import BROKEN

KEPT = Path(__file__).with_name("kept")
TITLE = (
    f"{'reader':<14}{'inputs':>8}{'read':>8}{'refused':>9}{'failures':>10}"
    f"{'slowest s':>11}{'peak MiB':>10}{'minutes':>9}"
)


def main():
    from tests.fuzz.readers import READERS

    parser = argparse.ArgumentParser(description="Read changed files by the thousand.")
    parser.add_argument(
        "readers", nargs="*", default=list(READERS), metavar="READER", help=", ".join(READERS)
    )
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(TITLE, flush=True)
    failures = [
        fuzz(name, READERS[name], arguments.inputs, arguments.seed)
        for name in arguments.readers or READERS
    ]
    sys.exit(1 if sum(failures) else 0)


def fuzz(name, reader, inputs, seed):
    """Print one row; returns the number of failures."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        while (first := len(answers(folder))) < inputs:
            run_worker(name, seed, first, inputs, folder)
            if len(answers(folder)) == first:
                raise SystemExit(f"{name}: the worker does not start")
        rows = answers(folder)
        for number, _, _, outcome in rows:
            if outcome not in ("read", "refused"):
                keep(name, reader, (folder / f"failed-{number}").read_bytes(), outcome)
    outcomes = [outcome for *_, outcome in rows]
    n_read, n_refused = outcomes.count("read"), outcomes.count("refused")
    failures = len(rows) - n_read - n_refused
    slowest, peak, minutes = (
        max(row[1] for row in rows),
        max(row[2] for row in rows),
        (time.monotonic() - started) / 60,
    )
    print(
        f"{name:<14}{len(rows):>8}{n_read:>8}{n_refused:>9}{failures:>10}"
        f"{slowest:>11.2f}{peak:>10}{minutes:>9.1f}",
        flush=True,
    )
    return failures


def run_worker(name, seed, first, last, folder):
    """Read from the input `first` to the last one, or to one that ends the process.

    An input that ends the process gets its answer here.
    """
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.worker",
        name,
        str(seed + first),
        str(first),
        str(last),
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    log = folder / "log"
    with log.open("w") as output:
        status = subprocess.run(
            command, env=environment, stdout=output, stderr=output, check=False
        ).returncode
    number = len(answers(folder))
    if status == 0 or number >= last:
        return
    if status == BROKEN or not (folder / "input").exists():
        raise SystemExit(log.read_text()[-3000:])
    ended = (
        "took more than 5 s"
        if status == -signal.SIGALRM
        else f"ended the process with status {status}: {' '.join(log.read_text()[-300:].split())}"
    )
    shutil.copyfile(folder / "input", folder / f"failed-{number}")
    with (folder / "answers").open("a") as file:
        file.write(f"{number}\t0\t0\t{ended!a}\n")


def answers(folder):
    path = folder / "answers"
    rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
    return [
        (int(number), float(seconds), int(peak), ast.literal_eval(outcome))
        for number, seconds, peak, outcome in rows
    ]


def keep(name, reader, content, outcome):
    path = KEPT / name / f"{hashlib.sha256(content).hexdigest()[:12]}{Path(reader.name).suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"  {path.relative_to(KEPT.parent)}: {outcome}", flush=True)


if __name__ == "__main__":
    main()
