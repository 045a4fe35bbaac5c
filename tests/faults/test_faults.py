"""The harness at the size that every change can afford, in a process of its own: forked children need a parent without threads."""

import re
import subprocess
import sys

from tests.conftest import ROOT

FAULTS = 80


def test_disturbed_runs_end_with_the_bytes_of_undisturbed_ones():
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--faults", str(FAULTS), "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    patterns = (r"injected: (\d+)", r"(\d+) killed", r"(\d+) cut short")
    injected, killed, cut_short = (int(re.search(pattern, done.stdout)[1]) for pattern in patterns)
    assert injected >= FAULTS
    assert killed + cut_short >= 30, "both kinds are kills"
    assert "files lost: 0" in done.stdout
    assert "differences: 0" in done.stdout
