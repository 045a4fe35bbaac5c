"""The package as companies install it: a wheel, and the command `hardening` in any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser

import pytest

from tests.conftest import ROOT

BUILD = "from setuptools import build_meta; build_meta.build_wheel('.')"
HARDENING = "import sys; from pipeline.__main__ import hardening; sys.argv[0] = 'hardening'; "


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The files of the wheel, as an installation unpacks them."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


@pytest.fixture
def project(tmp_path):
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "deep/inside").mkdir(parents=True)
    return tmp_path


def run(installed, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", f"{HARDENING}hardening()", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    ).stderr


def test_the_wheel_holds_every_module_and_the_command(installed):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py")}
    found = {str(path.relative_to(installed)) for path in (installed / "pipeline").rglob("*.py")}
    assert found == modules
    assert (installed / "pipeline/py.typed").exists()
    commands = ConfigParser()
    commands.read(next(installed.glob("*.dist-info")) / "entry_points.txt")
    assert commands["console_scripts"]["hardening"] == "pipeline.__main__:hardening"


def test_hardening_works_in_every_folder(installed, project, tmp_path_factory):
    line = "error: metrics: no metrics yet; `dvc repro` makes them\n"
    assert run(installed, project / "deep/inside", "results") == line
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert run(installed, elsewhere, "--project", str(project), "results") == line
    missing = run(installed, elsewhere, "--project", "nope", "results")
    assert missing == "error: --project: nope: no such folder\n"
    audited = run(installed, project / "deep", "audit", "inside")
    assert audited.startswith("error: deep/inside: no project folder and not within one: no dvc.lo")
