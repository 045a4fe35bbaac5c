"""Compare recipes for robust models on CIFAR-10: the table in docs/robustness.md.

Run `python -m benchmarks.robustness cifar10.npz --budget 60`. The file holds CIFAR-10's training
images, as `data.source: npz` reads them. Every row is a model of its own that starts from the same
clean model. DVC trains and judges it in a scratch project, which is the preset `cifar10-cpu` with
the recipes of `recipes.py`. The judged images have chosen no epoch, except of the clean model.

Every finished row is added to docs/results/robustness.json. The same command resumes after an
interruption or when the budget is spent.
"""

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.robustness import results
from benchmarks.robustness.recipes import RECIPES, content, model
from benchmarks.tables import machine
from pipeline.base import console, files, unfinished
from pipeline.base.errors import InputError
from pipeline.evaluate import ensemble

PROJECT = ("dvc.yaml", ".dvcignore", "pipeline")
DVC = (sys.executable, "-m", "dvc")
GRACE = 60  # seconds for a stage to save its work


def main() -> str:
    args = _parser().parse_args()
    if not args.data.is_file():
        raise InputError(f"{args.data}: no such file. Give the .npz with CIFAR-10's images.")
    setting = {
        "images": args.images,
        "epochs": args.epochs,
        "clean_epochs": args.clean_epochs,
        "judged": args.judged,
        "ensemble": {**ensemble.STANDARD, "members": args.members, "n_eval": args.ensemble_images},
        "code": unfinished.code_sha256(),
    }
    project = _project(args.folder, args.data, setting, args.seeds)
    stop_at = time.monotonic() + 60 * args.budget
    try:
        for target in ("generate@clean-fgsm", "generate@clean-pgd"):
            _repro(project, [target], stop_at)
        for seed in args.seeds:
            for row in args.rows:
                _add(project, row, seed, setting, stop_at)
    except subprocess.TimeoutExpired:
        console.say(f"the budget of {args.budget:g} minutes is spent; the same command resumes")
    rows = results.rows()
    results.write_page(rows)
    return f"{results.RESULT}: {len(rows)} rows"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the .npz with CIFAR-10's training images")
    parser.add_argument("--budget", type=float, required=True, help="minutes")
    parser.add_argument("--folder", type=Path, default=Path("data/robustness"), help="for scratch")
    parser.add_argument("--images", type=int, default=45_000, help="images to train on")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of every row")
    parser.add_argument("--clean-epochs", type=int, default=12, help="epochs of the clean model")
    parser.add_argument("--judged", type=int, default=1_000, help="images to judge on")
    parser.add_argument("--ensemble-images", type=int, default=1_000, help="of them, by ensemble")
    parser.add_argument("--members", choices=["first_two", "all"], default="all", help="of it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    parser.add_argument("--rows", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    return parser


def _project(folder: Path, data: Path, setting: Mapping[str, Any], seeds: Sequence[int]) -> Path:
    """Make the scratch project of a setting, or find it again, and return its folder."""
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:12]
    project = folder / digest
    if not project.exists():
        part = _empty(project)
        for name in ("data/raw", "data/adversarial/sources", "models/pretrained"):
            (part / name).mkdir(parents=True)
        for name in PROJECT:
            copied = shutil.copytree if Path(name).is_dir() else shutil.copy
            copied(name, part / name)
        shutil.copy(data, part / "data/raw/cifar10.npz")
        subprocess.run([*DVC, "init", "--no-scm", "--quiet"], cwd=part, check=True)
        part.rename(project)
    text = io.StringIO()
    YAML().dump(content(setting, seeds), text)
    files.write_bytes(project / "params.yaml", text.getvalue().encode())
    return project


def _empty(project: Path) -> Path:
    """Return an empty folder that becomes a project once it is complete."""
    part = project.with_name(f".{project.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _add(project: Path, row: str, seed: int, setting: Mapping[str, Any], stop_at: float) -> None:
    """Train and judge the model of a row, unless that was done, and keep the result."""
    about = {"row": row, "seed": seed, "setting": setting}
    if any(about.items() <= old.items() for old in results.rows()):
        return
    name = model(row, seed)
    stage = "train_online" if RECIPES[row][0] == "online" else "finetune"
    _repro(project, ["--single-item", f"{stage}@{name}"], stop_at)
    _repro(project, ["--single-item", f"evaluate@{name}"], stop_at)
    metrics = json.loads((project / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
    params = YAML(typ="safe").load((project / "params.yaml").read_text(encoding="utf-8"))
    found = {
        **about,
        "recipe": {**params["finetuned"], **params["online"]}[name],
        "machine": machine(),
        **_spent(project)[f"{stage}@{name}"],
        "attack_gradients": metrics["attack_passes"],
        "clean": metrics["clean"],
        "robust": metrics["robust"],
        "verdict": metrics["diagnostics"]["verdict"],
        "failed": metrics["diagnostics"]["failed"],
    }
    results.keep(found)
    console.say(results.line(found))


def _spent(project: Path) -> dict[str, dict[str, float]]:
    """Return the seconds that each target took so far, over all attempts."""
    path = project / "seconds.json"
    if not path.exists():
        return {}
    found: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _repro(project: Path, arguments: Sequence[str], stop_at: float) -> None:
    """Run `dvc repro` in a project and note its seconds.

    Raises TimeoutExpired when the budget is spent, after the stage has saved its work, and
    InputError when a stage fails.
    """
    command = [*DVC, "repro", *arguments]
    if time.monotonic() >= stop_at:
        raise subprocess.TimeoutExpired(command, 0)
    started, cpu = time.monotonic(), _cpu_seconds()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    # Otherwise, the stages of a command that a shell runs in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, cwd=project, env=environment, process_group=0) as process:
        try:
            process.wait(stop_at - time.monotonic())
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGINT)
            process.wait(GRACE)
            raise
        finally:
            taken = {"seconds": time.monotonic() - started, "cpu_seconds": _cpu_seconds() - cpu}
            _note(project, arguments[-1], taken)
    if process.returncode:
        raise InputError(f"{project}: dvc repro {' '.join(arguments)}: failed (see above)")


def _note(project: Path, target: str, taken: Mapping[str, float]) -> None:
    """Add the seconds of one attempt to those of a target."""
    spent = _spent(project)
    before = spent.get(target, {})
    spent[target] = {key: round(before.get(key, 0) + taken[key], 1) for key in taken}
    files.write_json(project / "seconds.json", spent)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    console.run(main)
