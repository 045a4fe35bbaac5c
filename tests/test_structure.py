"""The folders of the code: what may import what, and what DVC is told of it."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
CODE = ROOT / "pipeline"
# Each folder may import those before it in its row's list, and itself.
MAY_IMPORT = {
    "base": set(),
    "networks": {"base"},
    "cluster": {"base", "networks"},
    "attacks": {"base", "networks"},
    "prepare": {"base"},
    "train": {"base", "networks", "cluster"},
    "generate": {"base", "networks", "attacks", "cluster"},
    "harden": {"base", "networks", "attacks", "cluster", "train"},
    "figures": set(),
    "evaluate": {"base", "networks", "attacks", "cluster", "figures"},
    "export": {"base", "networks"},
    "adopt": {"base", "networks"},
    "plan": {
        "audit",
        "base",
        "networks",
        "attacks",
        "prepare",
        "train",
        "generate",
        "harden",
        "evaluate",
        "export",
        "report",
        "document.py",
    },
    "audit": {
        "adopt",
        "base",
        "networks",
        "attacks",
        "prepare",
        "train",
        "generate",
        "harden",
        "evaluate",
        "export",
        "document.py",
    },
    "report": {"audit", "base", "evaluate", "export", "figures", "networks", "presets.py"},
}


def module(name: str) -> Path | None:
    """The file of a module of the project by its dotted name."""
    path = ROOT / name.replace(".", "/")
    return next(
        (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None
    )


def test_set_up_says_its_size_before_it_downloads():
    command = ["make", "--dry-run", "--always-make", "setup"]
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert shown.index("about 6 GB on the disk") < shown.index("uv pip sync")


@cache
def imports(path: Path) -> set[Path]:
    """The project's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {module(name) or module(str(node.module)) for name in names}
    return {path for path in found if path is not None}


@cache
def reached(path: Path) -> set[Path]:
    found, todo = {path}, [path]
    while todo:
        new = imports(todo.pop()) - found
        found |= new
        todo += new
    return found


def place(path: Path) -> str:
    """The folder of the code that a file is in; modules that are in none stand for themselves."""
    return path.relative_to(CODE).parts[0]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_folders_it_reaches(name):
    stage = STAGES[name].get("do", STAGES[name])
    listed = {dep for dep in stage["deps"] if dep.startswith("pipeline")}
    (command,) = re.findall(r"^pipeline/python -m ([\w.]+) ", stage["cmd"])
    start = ROOT / command.replace(".", "/")
    start = start / "__main__.py" if start.is_dir() else start.with_suffix(".py")
    assert listed == (
        {"pipeline"}
        if name in ("audit", "report")
        else {f"pipeline/{place(path)}" for path in reached(start)}
    )
    assert stage["desc"]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_folders_import_only_what_is_below_them(folder):
    for path in (CODE / folder).rglob("*.py"):
        assert {place(found) for found in imports(path)} <= {*MAY_IMPORT[folder], folder}, path


def test_every_folder_has_its_place():
    assert {
        path.name for path in CODE.iterdir() if path.is_dir() and path.name != "__pycache__"
    } == set(MAY_IMPORT)


def test_no_module_imports_itself_or_a_command():
    for path in CODE.rglob("*.py"):
        found = imports(path)
        assert not any(other.name == "__main__.py" for other in found), path
        assert path not in {again for other in found for again in reached(other)}, path


def test_functions_and_modules_stay_short():
    for path in CODE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, (path, node.name)


def test_only_the_audit_and_the_run_import_dvc():
    for path in CODE.rglob("*.py"):
        assert path in (CODE / "audit/lineage.py", CODE / "numbered.py") or not re.search(
            r"(import|from) dvc", path.read_text()
        ), path


@pytest.mark.parametrize(
    ("commands", "spared"),
    [
        (("__main__", "prepare.__main__", "base.store", "document"), "torch"),
        (("train.__main__", "harden.finetune"), "torchattacks"),
        (("generate.__main__", "evaluate.__main__", "report.__main__"), "torch._dynamo"),
    ],
)
def test_commands_do_not_wait_for_libraries_they_do_not_need(commands, spared):
    names = ", ".join(f"pipeline.{command}" for command in commands)
    program = f"import sys, {names}; sys.exit({spared!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
