"""A tiny project whose stages the real DVC runs in this process, so that torch is imported once."""

import contextlib
import fcntl
import io
import json
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import dvc.dvcfile
import dvc.repo
import dvc.stage.run
import pytest
from dvc import cli
from dvc.utils.serialize import _common, parse_yaml
from ruamel.yaml import YAML
from sklearn import datasets

from pipeline import place
from pipeline.audit import lineage
from pipeline.base import console, files, params
from pipeline.evaluate import pictures
from pipeline.figures import style
from tests import narrow
from tests.conftest import ROOT


def create(folder: Path) -> None:
    """Write a project with tiny params and no results.

    It has no report: drawing one takes longer than all the rest of a tiny run.
    """
    for name in ("params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    stages = (ROOT / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(stages[: stages.index("  report:\n")])
    shutil.copytree(
        ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("data/raw", "data/adversarial/sources", "models/pretrained"):
        (folder / name).mkdir(parents=True)
        (folder / name / "README.md").write_text("files of the user's own")
    change_params(folder, tiny)
    dvc.repo.Repo.init(str(folder), no_scm=True).close()


def tiny(params: dict) -> None:
    """Three shards of small images, and the fewest epochs and steps that every stage takes."""
    params["data"].update(n_images=120, n_val=30, n_test=0, image_size=16)
    params["store"].update(shard_rows=50)
    params["model"].update(architecture="resnet18")
    params.update(precision="fp32")
    params["training"].update(epochs=1, warmup_epochs=0, batch_size=32)
    params["clean"].update(epochs=2, batch_size=32)
    params["selection"].update(n_images=16, steps=2)
    params["export"].update(model="robust")
    params["generate"].update(batch_size=16)
    params["attacks"]["pgd"].update(steps=2)
    params["evaluate"].update(n_eval=8)
    params["evaluate"]["grid"].update(n_eval=4, eps=[0.1, 0.2], steps=[1, 2])
    params["evaluate"]["ensemble"].update(n_eval=6, iterations=2, targets=3)
    params["evaluate"]["threats"]["pgd"].update(steps=2)
    params["evaluate"]["curves"].update(n_eval=4, eps=[0.1, 1], steps=[1, 4], restarts=2, queries=4)


def run_once(folder: Path) -> None:
    """Write a tiny project, and let DVC run every stage."""
    create(folder)
    reproduce(folder)


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None] = run_once
) -> Path:
    """Return a folder of that name that `make` fills once, with a narrow network, for all workers.

    Its files must stay as they are.
    """
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = shared / name
    with (shared / f"{name}.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            narrow.replace_resnet18(patch)
            unfinished = shared / f"unfinished_{name}"
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(made)
    return made


def copy(folder: Path, to: Path) -> Path:
    """Return a copy whose files are links to the same bytes until they are replaced.

    What DVC writes in place is copied.
    """

    def link(source: str, target: str) -> None:
        in_place = source.endswith("dvc.lock") or "/.dvc/tmp/" in source
        (shutil.copy2 if in_place else os.link)(source, target)

    return shutil.copytree(folder, to, copy_function=link, symlinks=True)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a new file in the place of one that another copy may share."""
    path.unlink(missing_ok=True)
    write(path)


def change_params(folder: Path, edit: Callable[[dict], object]) -> None:
    content = YAML(typ="safe").load((folder / "params.yaml").read_text())
    edit(content)
    replace(folder / "params.yaml", lambda path: YAML().dump(content, path))


def reproduce(folder: Path, *targets: str) -> set[str]:
    """Let DVC run what is out of date; gives the stages that it ran."""
    ran = set()

    def run(stage: Any, **_: object) -> None:
        ran.add(stage.addressing)
        run_here(stage.cmd)

    with here(folder) as patch, dvc.repo.Repo(str(folder)) as repo:
        patch.setattr(dvc.stage.run, "cmd_run", run)
        patch.setattr(dvc.dvcfile, "modify_yaml", _modify_yaml)
        repo.reproduce(list(targets) or None)
    return ran


@contextmanager
def _modify_yaml(path: str, fs: Any = None) -> Iterator[dict]:
    """Do what DVC does to `dvc.lock`, which takes it a second to keep comments."""
    with _common._modify_data(path, parse_yaml, _dump_yaml, fs=fs) as content:
        yield content


def _dump_yaml(content: dict, stream: Any) -> None:
    plain = YAML(typ="safe")
    plain.default_flow_style, plain.sort_base_mapping_type_on_output = False, False
    plain.dump(json.loads(json.dumps(content)), stream)


@contextmanager
def here(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Stages that are called run in the project, in this process, and raise what they refuse.

    Pictures are coarse.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PIPELINE_DEVICE", "cpu")
        patch.setattr(console, "run", lambda run: run())
        patch.setattr(place, "ask_dvc", ask_dvc)
        coarse_pictures(patch)
        yield patch


def coarse_pictures(patch: pytest.MonkeyPatch) -> None:
    """Let figures be drawn quickly: otherwise that takes longer than all that they show.

    Pictures of the same rows are drawn once.
    """
    patch.setattr(style, "DPI", 20)
    patch.setattr(style, "LAYOUT", None)
    patch.setattr(pictures, "draw", _draw_once)


def _draw_once(folder: Path, *rows: Any, draw: Callable[..., None] = pictures.draw) -> None:
    if (key := repr(rows)) not in _drawn:
        draw(folder, *rows)
        _drawn[key] = {name: (folder / name).read_bytes() for name in pictures.NAMES}
    for name, content in _drawn[key].items():
        files.write_bytes(folder / name, content)


_drawn: dict[str, dict[str, bytes]] = {}


def read_once(patch: pytest.MonkeyPatch) -> None:
    """Parse files of the same content once, and scikit-learn's digits too.

    An audit parses the same few files that the audit before it did, most of them in Python.
    """
    for owner, name, held in (
        (params, "read", ()),
        (lineage, "read_yaml", ()),
        (lineage, "declared", ("dvc.yaml", "params.yaml")),
    ):
        patch.setattr(owner, name, _by_content(getattr(owner, name), held))
    patch.setattr(datasets, "load_digits", cache(datasets.load_digits))


def _by_content(read: Callable[[Path], Any], names: tuple[str, ...]) -> Callable[[Path], Any]:
    """Return a reader of a file, or of a folder with files of these names, that remembers."""
    known: dict[tuple[bytes, ...], Any] = {}

    def remembered(path: Path) -> Any:
        files = [path / name for name in names] or [path]
        if not all(file.is_file() for file in files):
            return read(path)
        content = tuple(file.read_bytes() for file in files)
        if content not in known:
            known[content] = read(path)
        return deepcopy(known[content])

    return remembered


def ask_dvc(root: Path, *arguments: str) -> str:
    """Do what `place.ask_dvc` does, in this process."""
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()) as output:
        failed = cli.main(list(arguments))
    return "" if failed else output.getvalue().strip()


def run_here(line: str) -> None:
    """Run the command line of a stage."""
    words = shlex.split(line)
    with pytest.MonkeyPatch.context() as patch:  # DVC knows its own locks by the command line
        patch.setattr(sys, "argv", words[2:])
        runpy.run_module(words[2], run_name="__main__")
