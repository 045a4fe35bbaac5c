"""The harness at a size that every change can afford.

It runs in its own process, because forked children need a parent without threads.
"""

import re
import subprocess
import sys

from tests.conftest import ROOT

KILLS = 2


def test_disturbed_runs_end_with_the_bytes_of_undisturbed_ones():
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.faults",
        "--kills",
        str(KILLS),
        "--narrow",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) of them ended a stage", done.stdout)[1]) >= KILLS
    assert all(kind in done.stdout for kind in ("cut short", "killed", "too large", "unwritable"))
    assert "files lost: 0" in done.stdout
    assert "differences: 0" in done.stdout
