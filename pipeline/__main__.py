"""`python -m pipeline repro | results | check | audit [PATH] | discard PATH | clean-partial | preset NAME`: the pipeline as a whole."""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline import params, place
from pipeline.base import console, files, unfinished
from pipeline.base.errors import InputError

ADVERSARIAL = Path("data/adversarial")
PRESETS = Path("presets")
METRICS = Path("metrics")


def main() -> str:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Offline adversarial hardening of an image classifier.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("repro", help="check params.yaml, run what is out of date with `dvc repro`, print the results")
    commands.add_parser("results", help="print the table of all evaluated models")
    commands.add_parser("clean-partial", help="list and delete the unfinished work of interrupted runs")
    commands.add_parser("check", help="check params.yaml and the source of images without running anything")
    auditing = commands.add_parser("audit", help="recompute what can be recomputed and hold it against what is recorded")
    auditing.add_argument("path", type=Path, nargs="?", default=Path(), help="project folder, or an image set in one; here, if left out")
    discarding = commands.add_parser("discard", help="delete an image set or a model that is damaged, in DVC's cache too")
    discarding.add_argument("path", type=Path, help="the image set or model, such as data/clean")
    preset = commands.add_parser("preset", help="copy a preset over params.yaml")
    preset.add_argument("name", help=f"one of {', '.join(_presets())}")
    args = parser.parse_args()
    match args.command:
        case "repro":
            return repro()
        case "results":
            return results()
        case "check":
            place.check(Path())
            return check()
        case "clean-partial":
            return clean_partial()
        case "audit":
            return audit_project(args.path)
        case "discard":
            from pipeline import discard

            return discard.discard(args.path)
        case _:
            return use_preset(args.name)


def repro() -> str:
    """Check the params before DVC deletes anything, run `dvc repro`, and print the results."""
    place.check(Path())
    with place.only_one(Path()):
        enter_models()
        check()
        remove_undeclared_sets(params.load(params.FILE))
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        dvc = [sys.executable, "-m", "dvc"]
        with console.stopping() as stop:
            failed = _run_and_pass_on_signals([*dvc, "repro"], environment, stop)
        if failed:
            # DVC deletes a stage's earlier outputs before it runs, except metrics and plots (`persist`). Its cache still has them.
            subprocess.run([*dvc, "checkout", "--quiet", "dvc.yaml"], env=environment, check=False, stderr=subprocess.DEVNULL)
            if stop.asked:
                raise console.Interrupted("earlier results are as they were")
            if _is_judged():
                console.say(results())
            raise InputError("a stage failed (see above); previous results were restored")
    return results()


def _is_judged() -> bool:
    """Return whether the metrics are those of the models that are here, as where only a stage after the evaluations failed."""
    try:
        metrics = {name: json.loads((METRICS / f"{name}.json").read_text("utf-8")) for name in params.load(params.FILE).evaluate.models}
        return all(found["sha256"] == files.sha256(Path("models", f"{name}.safetensors")) for name, found in metrics.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _run_and_pass_on_signals(command: list[str], environment: dict[str, str], stop: console.Stop) -> bool:
    """Run a command in a process group of its own; Ctrl-C and SIGTERM reach all of it, as Ctrl-C. Returns whether it failed.

    A second signal kills the group.
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


def results() -> str:
    from pipeline.evaluate import table

    return table.results(METRICS, list(params.load(params.FILE).evaluate.models))


def enter_models() -> None:
    """Give every model its entry under `evaluate.models`, in params.yaml, and say so.

    DVC names a stage after the keys of a dict and never after its values, so it cannot find out the models to judge by itself. A file
    that is wrong in any other way is left as it is, for `check` to explain.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    try:
        content = yaml.load(params.bounded_text(params.FILE))
        judged = content["evaluate"]["models"]
        attacked = {entry["next"]: model for model, entry in content["rounds"].items()}
        attacked |= {name: entry["of"] for name, entry in content["variants"].items()} | dict.fromkeys(content["online"], params.CLEAN)
        missing = {name: model for name, model in attacked.items() if name not in judged}
    except params.NOT_YAML:
        return
    for name, model in missing.items():
        judged[name] = CommentedMap(stored=model)
        judged[name].fa.set_flow_style()
    text = io.StringIO()
    yaml.dump(content, text)
    try:
        params.Params.model_validate(YAML(typ="safe").load(text.getvalue()))
    except params.NOT_YAML:
        return
    if missing:
        files.write_bytes(params.FILE, text.getvalue().encode())
        entered = ", ".join(f"{name}: {{stored: {model}}}" for name, model in missing.items())
        console.say(f"{params.FILE}: entered under evaluate.models: {entered}")


def check() -> str:
    settings = params.load(params.FILE)
    path = settings.data.path
    if settings.data.source != "digits" and not Path(path).exists():
        remedy = f"`dvc pull {path}` fetches it" if Path(f"{path}.dvc").exists() else f"put the {settings.data.source} source there"
        raise InputError(f"{params.FILE}: data.path: {path}: no such file or folder; {remedy}")
    _check_stages(settings)
    for where, model in settings.starts.items():
        if model.weights is not None:
            from pipeline import networks

            networks.expect_weights(model, f"{params.FILE}: {where}")
    _check_classes(settings)
    return f"{params.FILE} is sound"


def _check_stages(settings: params.Params) -> None:
    """Raise InputError for params that dvc.yaml cannot turn into stages whose inputs all exist or are made by another stage."""
    from dvc.dependency import ParamsDependency
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            index = repo.index
            index.check_graph()
            deps = {stage.addressing: [str(dep) for dep in stage.deps if not isinstance(dep, ParamsDependency)] for stage in index.stages}
            outs = [Path(str(out)) for out in index.outs]
    except DvcException as error:
        reason = " ".join(str(error).split()).partition(" Use `dvc")[0][:300]
        raise InputError(f"{params.FILE} and dvc.yaml do not go together: {reason}") from error
    for stage, paths in deps.items():
        for path in map(Path, paths):
            if not path.exists() and not any(path == out or path in out.parents or out in path.parents for out in outs):
                raise InputError(f"dvc.yaml: {stage}: needs {path}, which does not exist and which no stage makes")
    for variant in settings.variants:
        for name in settings.recipe(variant).mix:
            folder = f"{ADVERSARIAL}/{name.split('-')[0]}"
            if "-" in name and folder not in deps[f"variant@{variant}"]:
                raise InputError(
                    f"variants.{variant}.mix.{name}: the stage variant in dvc.yaml does not read {folder}; see docs/robustness.md"
                )


def _check_classes(settings: params.Params) -> None:
    """Raise InputError for an attack whose loss compares more classes than the source has; counts them only where one might."""
    if any(attack.fewest_classes > 2 for attack in settings.all_attacks.values()):
        from pipeline.prepare import sources

        params.expect_classes(settings.all_attacks, len(sources.open_source(settings.data).class_names))


def remove_undeclared_sets(settings: params.Params) -> None:
    """Delete the adversarial sets of models and attacks that params.yaml no longer names, and say so; DVC's cache keeps them."""
    for folder in sorted(ADVERSARIAL.glob("*/*/")):
        if not folder.name.startswith(".") and (folder.parent.name not in settings.rounds or folder.name not in settings.attacks):
            shutil.rmtree(folder)
            console.say(f"{folder}: removed, since {params.FILE} no longer asks for it (DVC's cache keeps it)")


def clean_partial() -> str:
    """Delete what interrupted runs left behind, name by name; no stage's output is touched."""
    found = unfinished.left_behind()
    for path in found:
        console.say(str(path))
    unfinished.clear(found)
    return f"{len(found)} deleted"


def audit_project(path: Path) -> str:
    """Audit a project folder, or one image set in it; prints the whole table and writes nothing."""
    from pipeline.audit import audit
    from pipeline.networks import device

    rows = audit.audit(path, device.choose())
    console.say(audit.table(rows))
    return audit.verdict(rows)


def use_preset(name: str) -> str:
    """Copy a preset over params.yaml; one that is no preset itself is kept beside it."""
    source = PRESETS / f"{name}.yaml"
    if name not in _presets():
        raise InputError(f"NAME={name}: no such preset; there are {', '.join(_presets())}")
    kept = ""
    if params.FILE.exists() and params.FILE.read_bytes() not in [path.read_bytes() for path in PRESETS.glob("*.yaml")]:
        backup = params.FILE.with_suffix(".yaml.bak")
        shutil.copyfile(params.FILE, backup)
        kept = f"; your own is kept as {backup}"
    shutil.copyfile(source, params.FILE)
    return f"{params.FILE} is now {source}{kept}"


def _presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def hardening() -> None:
    """Run the installed command `hardening`, which is `python -m pipeline`."""
    console.run(main)


if __name__ == "__main__":
    hardening()
