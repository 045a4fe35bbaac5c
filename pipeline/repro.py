"""Run the pipeline once.

The run is checked before it starts and stops cleanly. Earlier results are restored if it fails.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from pipeline import document, earlier, place
from pipeline.attacks.params import expect_classes
from pipeline.audit import lineage
from pipeline.base import console, files, params, remaining, unfinished
from pipeline.base.errors import InputError, discarding
from pipeline.cluster import connection, slots
from pipeline.document import Document
from pipeline.networks.device_name import VARIABLE as DEVICE
from pipeline.networks.params import Model
from pipeline.results import METRICS, results
from pipeline.watch import LOCK, Watch

REPORT = Path("report/index.html")
LOOK = 0.2  # seconds between two looks at a run


def repro() -> str:
    """Check the params before DVC deletes anything, run `dvc repro`, and print the results."""
    place.check(Path())
    earlier.SOURCES.mkdir(parents=True, exist_ok=True)
    with place.only_one(Path()) as lock:
        _write_home()
        watch = Watch()
        check()
        stages = lineage.declared(Path())
        earlier.remove_undeclared_sets(stages)
        small, audited = earlier.small_results(), earlier.recorded().get("audit")
        _plan()
        dvc = [sys.executable, "-m", "pipeline.numbered", str(len(stages)), "repro"]
        try:
            with console.stopping() as stop:
                failed = _run_and_pass_on_signals(dvc, environment(), stop, watch, lock)
        except KeyboardInterrupt:
            earlier.restore([], small, environment())
            raise
        if watch.is_edited:
            watch.restore()
        lost = earlier.restore(stages, small, environment()) if failed or watch.is_edited else []
        but = f", except {', '.join(lost)}, which DVC's cache lacks" if lost else ""
        if stop.asked:
            raise console.Interrupted(f"earlier results are as they were{but}")
        if watch.is_edited:
            raise InputError(
                f"{params.FILE}: edited while the pipeline ran, so the run was stopped; finished"
                " stages are kept. Run it again with the new values, or undo the edit first to"
                " resume the stage that was stopped"
            )
        if failed:
            if _is_judged():
                console.say(results())
            raise InputError(f"a stage failed (see above); previous results were restored{but}")
        if earlier.recorded().get("audit") == audited:  # else it ran, and read everything
            _expect_whole(set(stages))
    return f"{results()}\n{REPORT}: all of this as a page, with pictures; open it in a browser"


def _plan() -> None:
    """Measure how long a run will take, if somebody watches and something will run.

    The table of `make plan` is then printed first. A plan measures this machine alone, and says
    nothing about a cluster.
    """
    if not sys.stdout.isatty() or connection.wanted() or remaining.kept():
        return
    status = [sys.executable, "-m", "dvc", "status", "--quiet"]
    if subprocess.run(status, env=environment(), stderr=subprocess.DEVNULL, check=False).returncode:
        console.say("measuring this machine to tell how long the run takes:")
        plan = [sys.executable, "-m", "pipeline", "plan"]
        done = subprocess.run(
            plan, env=environment(), check=False, stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            reason = done.stderr.strip().removeprefix("error: ").partition(";")[0]
            console.say(f"it is not known how long the run takes: {reason}")


def environment() -> dict[str, str]:
    """Return the environment of the stages.

    Their Python is this one. OpenMP's threads wait for each other for a moment and then sleep,
    unless the user has chosen otherwise. Longer waits take the processor from other work, and to
    sleep at once costs more than the products of small images.
    """
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "10000"}
    return {**waiting, **os.environ, "PIPELINE_PYTHON": sys.executable}


def _expect_whole(stages: set[str]) -> None:
    """Raise InputError for results that are not what `dvc.lock` records.

    DVC takes a file for unchanged if its size and time are, and trusts its cache.
    """
    for name, stage in lineage.recorded(Path()).items():
        for out, md5 in stage.outs.items() if name in stages else ():
            if lineage.md5(Path(out)) != md5:
                remedy = (
                    discarding(Path(out))
                    if unfinished.is_cached(out)
                    else f"run `dvc repro --force --single-item {name}`"
                )
                raise InputError(f"{out}: damaged: not what {LOCK} records; {remedy}")


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
    command: list[str],
    variables: Mapping[str, str],
    stop: console.Stop,
    watch: Watch,
    lock: IO[str],
) -> bool:
    """Run a command in its own process group, and return whether it failed.

    The first signal, and an edit of the params, are passed on to the whole group as Ctrl-C. A
    second signal kills the group. The command holds the lock, also if this process is killed.
    """
    passed_on = False
    with subprocess.Popen(
        command, env=variables, process_group=0, pass_fds=[lock.fileno()]
    ) as process:
        place.note(lock, process.pid)
        try:
            while process.poll() is None:
                watch.look()
                if (stop.asked or watch.is_edited) and not passed_on:
                    os.killpg(process.pid, signal.SIGINT)
                    passed_on = True
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    watch.look()
    while watch.is_unsure:
        time.sleep(LOOK)
        watch.look()
    return process.returncode != 0


def check(*, with_source: bool = False) -> str:
    """Check `params.yaml`, and that what it names is there.

    `with_source` also reads the source of images, chooses the images and splits them, as `prepare`
    does.
    """
    _check_environment()
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
            _check_weights(model, f"{params.FILE}: {where}", is_needed=with_source)
    counts_classes = any(attack.fewest_classes > 2 for attack in settings.all_attacks.values())
    if with_source or counts_classes or settings.adopted:
        _check_source(settings)
    return f"{params.FILE} is sound"


def _check_environment() -> None:
    """Raise InputError for a variable of the environment that no stage can use.

    Only a processor that is named is looked for: that imports torch, which takes seconds. The
    first stage on a cluster finds whether it can be reached, and what it has.
    """
    if connection.wanted() is not None:
        slots.expect_sound()
    elif DEVICE in os.environ:
        from pipeline.networks import device

        device.choose()


def _check_weights(model: Model, where: str, *, is_needed: bool) -> None:
    """Check the weights that a training begins with.

    A run whose training is in DVC's cache does not need them. So it only says that they cannot be
    downloaded, unless `is_needed`.
    """
    from pipeline import networks
    from pipeline.networks.downloads import NotFoundError

    try:
        networks.expect_weights(model, where)
    except NotFoundError as error:
        if is_needed:
            raise
        console.say(f"warning: {error}")


def _check_stages() -> None:
    """Raise InputError for params that dvc.yaml cannot turn into stages.

    Each input of a stage must exist or be made by another stage.
    """
    stages = lineage.declared(Path())
    outs = [out for stage in stages.values() for out in stage.outs]
    for name, stage in stages.items():
        for path in stage.deps:
            if not Path(path).exists() and not any(lineage.overlap(path, out) for out in outs):
                # The one file of a user's own that dvc.yaml takes over from the params as it is.
                kind, _, model = name.partition("@")
                where = (
                    f"{params.FILE}: adopted.{model}.file"
                    if kind == "adopt"
                    else f"dvc.yaml: {name}"
                )
                raise InputError(
                    f"{where}: needs {path}, which does not exist and which no stage makes"
                )


def _check_source(settings: Document) -> None:
    """Raise InputError for a source that `prepare` would refuse.

    Also for an attack whose loss compares more classes than the source has, and for an adopted
    model of another number of classes. Print what `prepare` would convert and leave out.
    """
    from pipeline.adopt import adoption
    from pipeline.prepare import preparation, sources

    source = sources.open_source(settings.data)
    for line in preparation.told(source):
        console.say(f"{settings.data.path}: {line}")
    try:
        rows = preparation.choose_rows(source.labels, settings.data, source.class_names)
        preparation.split_of(source, rows, settings.data)
    except InputError as error:
        raise InputError(f"{params.FILE}: {error}") from error
    expect_classes(settings.all_attacks, len(source.class_names))
    for name, recipe in settings.adopted.items():
        if (file := Path(recipe.file)).exists():
            where = f"{params.FILE}: adopted.{name}.file"
            adoption.tensors(recipe, file, len(source.class_names), where)
