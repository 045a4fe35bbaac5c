import subprocess
import sys

import pytest

from pipeline.base import starting
from tests.conftest import ROOT


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["pipeline", "pipeline.prepare"])
def test_a_python_without_the_libraries_is_one_line(module):
    done = run("-S", "-m", module, "results")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sys.executable}: no library ")
    assert done.stderr.endswith(
        " in this Python; run `make repro`, or activate the project's environment first"
        " (`. .venv/bin/activate`)\n"
    )
    assert done.stderr.count("\n") == 1


def test_an_interruption_of_the_imports_is_one_line():
    begin = "import sys; sys.argv = ['-m']; import pipeline; raise KeyboardInterrupt"
    assert run("-c", begin).stderr == "interrupted before it began\n"


def test_a_bug_keeps_its_traceback_and_other_programs_their_own(capsys):
    error = ModuleNotFoundError("no such", name="pipeline.nothing")
    starting.explain(ModuleNotFoundError, error, None)
    assert "ModuleNotFoundError: no such" in capsys.readouterr().err
    assert "Traceback" in run("-c", "import pipeline; import nothing").stderr
