"""The script `pipeline/python`: which Python the stages run in, whoever calls `dvc repro`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EMPTY = "/nonexistent"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pipeline").mkdir()
    shutil.copy(ROOT / "pipeline/python", tmp_path / "pipeline")
    return tmp_path


def run(project, path=EMPTY, **variables):
    tools = project / "tools"  # `dirname` alone, since a system may have a python beside it
    if not tools.exists():
        tools.mkdir()
        (tools / "dirname").symlink_to(shutil.which("dirname"))
    return subprocess.run(
        ["pipeline/python", "-c", "import sys; print(sys.prefix)"],
        cwd=project,
        env={"PATH": f"{tools}{os.pathsep}{path}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_project_s_own_environment_needs_no_activation(project):
    (project / ".venv").symlink_to(sys.prefix)
    assert run(project).stdout.strip() == str(project / ".venv")


def test_the_python_of_make_repro_goes_first(project):
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to("/bin/false")
    assert run(project, PIPELINE_PYTHON=sys.executable).stdout.strip() == sys.prefix


def test_without_an_own_environment_the_activated_one_is_used(project):
    assert run(project, str(Path(sys.executable).parent)).stdout.strip() == sys.prefix


def test_no_python_at_all_is_one_line_with_the_remedy(project):
    done = run(project)
    assert done.returncode == 1
    assert done.stderr == (
        "error: no Python for the stages (expected .venv, which `make setup` makes, or an "
        "activated environment). `dvc checkout` brings back what DVC removed before this stage.\n"
    )
