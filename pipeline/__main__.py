"""`python -m pipeline repro | results | check | preset NAME`: the pipeline as a whole."""

import argparse
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline import console, files, params
from pipeline.errors import InputError

PRESETS = Path("presets")
METRICS = Path("metrics")
UNCACHED = (METRICS, Path("plots"))  # kept in Git, not in DVC's cache


def main() -> str:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Offline adversarial hardening of an image classifier.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("repro", help="check params.yaml, run what is out of date with `dvc repro`, print the results")
    commands.add_parser("results", help="print the table of all evaluated models")
    commands.add_parser("check", help="check params.yaml and the source of images without running anything")
    preset = commands.add_parser("preset", help="copy a preset over params.yaml")
    preset.add_argument("name", help=f"one of {', '.join(_presets())}")
    args = parser.parse_args()
    match args.command:
        case "repro":
            return repro()
        case "results":
            return results()
        case "check":
            return check()
        case _:
            return use_preset(args.name)


def repro() -> str:
    """Check the params before DVC deletes anything, run `dvc repro`, and print the results."""
    enter_models()
    check()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    dvc = [sys.executable, "-m", "dvc"]
    small = {path: path.read_bytes() for folder in UNCACHED for path in folder.rglob("*") if path.is_file()}
    if subprocess.run([*dvc, "repro"], env=environment, check=False).returncode:
        # DVC deletes a stage's earlier outputs before it runs. They come back from its cache, and what it does not cache from here.
        subprocess.run([*dvc, "checkout", "--quiet", "dvc.yaml"], env=environment, check=False, stderr=subprocess.DEVNULL)
        for path in small:
            if not path.exists():
                files.write_bytes(path, small[path])
        raise InputError("a stage failed, its reason stands above; earlier results are as they were")
    return results()


def results() -> str:
    from pipeline import report

    return report.results(METRICS, list(params.load(params.FILE).evaluate.models))


def enter_models() -> None:
    """Give every model of `rounds` its entry under `evaluate.models`, in params.yaml, and say so.

    DVC names a stage after the keys of a dict and never after its values, so it cannot take the models to judge from `rounds` alone. A file
    that is wrong in any other way is left as it is, for `check` to explain.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
    try:
        content = yaml.load(params.bounded_text(params.FILE))
        judged = content["evaluate"]["models"]
        missing = {entry["next"]: attacked for attacked, entry in content["rounds"].items() if entry["next"] not in judged}
    except params.NOT_YAML:
        return
    for name, attacked in missing.items():
        judged[name] = CommentedMap(stored=attacked)
        judged[name].fa.set_flow_style()
    text = io.StringIO()
    yaml.dump(content, text)
    try:
        params.Params.model_validate(YAML(typ="safe").load(text.getvalue()))
    except params.NOT_YAML:
        return
    if missing:
        files.write_bytes(params.FILE, text.getvalue().encode())
        entered = ", ".join(f"{name}: {{stored: {attacked}}}" for name, attacked in missing.items())
        console.say(f"{params.FILE}: entered under evaluate.models: {entered}")


def check() -> str:
    settings = params.load(params.FILE)
    if settings.data.source != "digits" and not Path(settings.data.path).exists():
        raise InputError(
            f"{params.FILE}: data.path: {settings.data.path}: no such file or folder; put the {settings.data.source} source there"
        )
    return f"{params.FILE} is sound"


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


if __name__ == "__main__":
    console.run(main)
