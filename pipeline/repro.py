"""Run the pipeline once.

The run is checked before it starts and stops cleanly. Earlier results are restored if it fails.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pipeline import document, place
from pipeline.attacks.params import expect_classes
from pipeline.audit import lineage
from pipeline.base import console, files, params
from pipeline.base.errors import InputError
from pipeline.document import Document
from pipeline.results import METRICS, results

ADVERSARIAL = Path("data/adversarial")
SOURCES = ADVERSARIAL / "sources"
REPORT = Path("report/index.html")
UNCACHED = (METRICS, Path("plots"))  # kept in Git, not in DVC's cache


def repro() -> str:
    """Check the params before DVC deletes anything, run `dvc repro`, and print the results."""
    place.check(Path())
    SOURCES.mkdir(parents=True, exist_ok=True)
    with place.only_one(Path()):
        _write_home()
        check()
        remove_undeclared_sets(document.load(params.FILE))
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        dvc = [sys.executable, "-m", "dvc"]
        small = {
            path: path.read_bytes()
            for folder in UNCACHED
            for path in folder.rglob("*")
            if path.is_file()
        }
        with console.stopping() as stop:
            failed = _run_and_pass_on_signals([*dvc, "repro"], environment, stop)
        if failed:
            # DVC deletes a stage's earlier outputs before it runs the stage. Cached outputs come
            # back from DVC's cache, and the others from `small`. (`persist: true` would keep those
            # too. But DVC would then never take such a stage from its run cache: it would train
            # again.)
            subprocess.run(
                [*dvc, "checkout", "--quiet", "dvc.yaml"],
                env=environment,
                check=False,
                stderr=subprocess.DEVNULL,
            )
            for path in small:
                if not path.exists():
                    files.write_bytes(path, small[path])
            if stop.asked:
                raise console.Interrupted("earlier results are as they were")
            if _is_judged():
                console.say(results())
            raise InputError("a stage failed (see above); previous results were restored")
    return f"{results()}\n{REPORT}: all of this as a page, with pictures; open it in a browser"


def _write_home() -> None:
    """Write `~` in `data.path` out, since DVC looks for a folder of that name.

    Raises InputError where the path is in `params.yaml` more than once.
    """
    path = document.load(params.FILE).data.path
    if not path.startswith("~"):
        return
    home, text = str(Path(path).expanduser()), params.FILE.read_text("utf-8")
    if text.count(path) != 1:
        raise InputError(
            f"{params.FILE}: data.path: expected a path without ~, which DVC does not know, "
            f"found {path}; write {home}"
        )
    files.write_bytes(params.FILE, text.replace(path, home).encode())
    console.say(f"{params.FILE}: data.path: {path} is now {home}, since DVC does not know ~")


def _is_judged() -> bool:
    """Return whether the stored metrics belong to the stored models.

    This is the case where only a stage after the evaluations failed.
    """
    try:
        metrics = {
            name: json.loads((METRICS / f"{name}.json").read_text("utf-8"))
            for name in document.load(params.FILE).evaluate.models
        }
        return all(
            found["sha256"] == files.sha256(Path("models", f"{name}.safetensors"))
            for name, found in metrics.items()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _run_and_pass_on_signals(
    command: list[str], environment: dict[str, str], stop: console.Stop
) -> bool:
    """Run a command in its own process group, and return whether it failed.

    Ctrl-C and SIGTERM are passed on to the whole group, both as Ctrl-C. A second signal kills the
    group.
    """
    passed_on = False
    with subprocess.Popen(command, env=environment, process_group=0) as process:
        try:
            while process.poll() is None:
                if stop.asked and not passed_on:
                    os.killpg(process.pid, signal.SIGINT)
                    passed_on = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode != 0


def check(*, with_source: bool = False) -> str:
    """Check `params.yaml`, and that what it names is there.

    `with_source` also reads the source of images, chooses the images and splits them, as `prepare`
    does.
    """
    settings = document.load(params.FILE)
    path = Path(settings.data.path).expanduser()
    if settings.data.source != "digits" and not path.exists():
        remedy = (
            f"`dvc pull {path}` fetches it"
            if Path(f"{path}.dvc").exists()
            else f"put the {settings.data.source} source there"
        )
        raise InputError(f"{params.FILE}: data.path: {path}: no such file or folder; {remedy}")
    for line in document.remarks(settings):
        console.say(f"{params.FILE}: {line}")
    _check_stages()
    for where, model in settings.starts.items():
        if model.weights is not None:
            from pipeline import networks

            networks.expect_weights(model, f"{params.FILE}: {where}")
    if with_source or any(attack.fewest_classes > 2 for attack in settings.all_attacks.values()):
        _check_source(settings)
    return f"{params.FILE} is sound"


def _check_stages() -> None:
    """Raise InputError for params that dvc.yaml cannot turn into stages.

    Each input of a stage must exist or be made by another stage.
    """
    stages = lineage.declared(Path())
    outs = [Path(out) for stage in stages.values() for out in stage.outs]
    for name, stage in stages.items():
        for path in map(Path, stage.deps):
            if not path.exists() and not any(
                path == out or path in out.parents or out in path.parents for out in outs
            ):
                raise InputError(
                    f"dvc.yaml: {name}: needs {path}, which does not exist and which no stage makes"
                )


def _check_source(settings: Document) -> None:
    """Raise InputError for a source that `prepare` would refuse.

    Also for an attack whose loss compares more classes than the source has.
    """
    from pipeline.prepare import preparation, sources

    source = sources.open_source(settings.data)
    try:
        rows = preparation.choose_rows(source.labels, settings.data)
        preparation.split_of(source, rows, settings.data)
    except InputError as error:
        raise InputError(f"{params.FILE}: {error}") from error
    expect_classes(settings.all_attacks, len(source.class_names))


def remove_undeclared_sets(settings: Document) -> None:
    """Delete the adversarial sets of models and attacks that params.yaml no longer names.

    Print the path of each. DVC's cache keeps them.
    """
    wanted = {
        ADVERSARIAL / model / attack for model in settings.attacked for attack in settings.attacks
    }
    wanted |= {
        SOURCES / model / attack for model in settings.sources for attack in settings.attacks
    }
    own = [folder for folder in ADVERSARIAL.glob("[!.]*/[!.]*/") if folder.parent != SOURCES]
    for folder in sorted([*own, *SOURCES.glob("[!.]*/[!.]*/")]):
        if folder not in wanted:
            shutil.rmtree(folder)
            console.say(
                f"{folder}: removed, since {params.FILE} no longer asks for it (DVC's cache keeps "
                "it)"
            )
