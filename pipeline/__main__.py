"""Run the commands that concern the pipeline as a whole.

`python -m pipeline repro | results | check | audit [PATH] | discard PATH | clean-partial |
preset NAME | plan [PRESET]`.
"""

import argparse
import contextlib
import os
from pathlib import Path

from pipeline import document, place, presets, repro, results
from pipeline.base import console, params, unfinished
from pipeline.base.errors import InputError
from pipeline.cluster import connection


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Offline adversarial hardening of an image classifier.",
    )
    parser.add_argument(
        "--project",
        type=Path,
        help="folder of the project; this folder or the nearest one above, if left out",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "repro",
        help="check params.yaml, run what is out of date with `dvc repro`, print the results",
    )
    commands.add_parser("results", help="print the table of all evaluated models")
    commands.add_parser(
        "clean-partial", help="list and delete the unfinished work of interrupted runs"
    )
    commands.add_parser(
        "check", help="check params.yaml and the source of images without running anything"
    )
    auditing = commands.add_parser(
        "audit", help="recompute what can be recomputed, and compare it with what is recorded"
    )
    auditing.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="project folder, or a result in one, such as data/clean; this project, if left out",
    )
    auditing.add_argument(
        "--robust",
        action="store_true",
        help="attack every model again, which takes as long as its evaluation",
    )
    discarding = commands.add_parser(
        "discard", help="delete an image set or a model that is damaged, in DVC's cache too"
    )
    discarding.add_argument("path", type=Path, help="the image set or model, such as data/clean")
    preset = commands.add_parser("preset", help="write the params.yaml of a preset, keep your own")
    known = ", ".join(presets.names(place.project_above(Path())))
    preset.add_argument("name", help=f"one of {known}" if known else "a file of presets/, no .yaml")
    planning = commands.add_parser("plan", help="measure a few steps, print what a run will cost")
    planning.add_argument("preset", nargs="?", help="a preset; params.yaml, if left out")
    planning.add_argument("--images", type=int, help="number of images, where it is not known")
    return parser


def main() -> str:
    """Run the command that the arguments name, in the folder of the project."""
    args = _parser().parse_args()
    project = args.project or place.project_above(Path())
    if not project.is_dir():
        raise InputError(f"--project: {project}: no such folder")
    if getattr(args, "path", None) is not None:
        args.path = _seen_from(project, args.path)
    with contextlib.chdir(project):
        return _run(args)


def _seen_from(project: Path, path: Path) -> Path:
    """Return a path as it is called in a project folder, which may be given as a link."""
    found = Path(os.path.relpath(path, project))
    return found if ".." not in found.parts else Path(os.path.relpath(path, project.resolve()))


def _run(args: argparse.Namespace) -> str:
    match args.command:
        case "repro":
            return repro.repro()
        case "results":
            place.expect_project(Path())
            return results.results()
        case "check":
            place.check(Path())
            return repro.check(with_source=True)
        case "clean-partial":
            return clean_partial()
        case "audit":
            return audit_project(args.path or Path(), robust=args.robust)
        case "discard":
            from pipeline import discard

            return discard.discard(args.path)
        case "plan":
            return plan(args.preset, args.images)
        case _:
            return presets.use(args.name)


def clean_partial() -> str:
    """Delete the unfinished work of interrupted runs, and print the path of each.

    No stage's output is touched. Raises InputError while a run works on it.
    """
    place.check(Path())
    with place.only_one(Path()):
        found = unfinished.left_behind()
        for path in found:
            console.say(str(path))
        unfinished.clear(found)
    return f"{len(found)} deleted"


def plan(preset: str | None, n_images: int | None) -> str:
    """Print what a run of `params.yaml` or of a preset will cost on this machine."""
    if n_images is not None and n_images < 1:
        raise InputError(f"--images: expected 1 or more, found {n_images}")
    os.environ.update(repro.environment())  # what torch reads of it, it reads when it is imported
    from pipeline.plan import planning

    if connection.wanted():
        console.say(
            f"warning: {connection.VARIABLE} is set, but a plan measures this machine alone;"
            " a run would use the cluster"
        )
    if preset is None:
        place.expect_project(Path())
        return planning.plan(document.load(params.FILE), n_images, keep=n_images is None)
    return planning.plan(presets.settings(preset), n_images, where=f"the preset {preset}")


def audit_project(path: Path, *, robust: bool) -> str:
    """Audit a project folder, or one result in it.

    Print the whole table and write nothing. With `robust`, attack every model again.
    """
    from pipeline.audit import audit
    from pipeline.networks import device

    rows = audit.audit(path, device.choose(), robust=robust)
    console.say(audit.table(rows))
    return audit.verdict(rows)


def hardening() -> None:
    """Run the installed command `hardening`, which is `python -m pipeline`."""
    console.run(main)


if __name__ == "__main__":
    hardening()
