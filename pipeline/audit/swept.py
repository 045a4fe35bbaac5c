"""Check the grid, the curves and their pictures against the metrics and against each other.

Nothing is attacked. Every check takes a project and yields rows.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.audit.evaluated import judged_images
from pipeline.audit.margins import TIGHT, margins_of
from pipeline.audit.project import Project, Row, differing, judged
from pipeline.base import files
from pipeline.evaluate import pictures
from pipeline.evaluate.sweeps import WORST, guesses
from pipeline.networks import scores

Line = dict[str, Any]


def sweeps(project: Project, path: str) -> Iterator[Row]:
    """Check the grid and the curves of one model, and that the pictures show them."""
    outs = {Path(out).name: out for out in project.made(path).outs}
    metrics = project.metrics(path)
    grid, curves = (
        files.read_csv(project.root / outs[name]) for name in ("grid.csv", "curves.csv")
    )
    yield judged(
        "grid",
        "; ".join(list(_wrong_grid(project, grid, metrics["grid"]))[:2]),
        f"{len(grid)} lines, as the metrics have them",
        f"{outs['grid.csv']}, {path}",
    )
    yield judged(
        "curves",
        "; ".join(list(_wrong_curves(project, path, curves, metrics["diagnostics"]))[:2]),
        f"{len(curves)} lines, as the metrics have them",
        f"{outs['curves.csv']}, {path}",
    )
    with tempfile.TemporaryDirectory() as folder:
        threat = project.settings.evaluate.curves.threat
        pictures.draw(Path(folder), Path(path).stem, grid, curves, threat)
        for name in pictures.NAMES:
            differs = _pixels(Path(folder, name)) != _pixels(project.root / outs[name])
            yield _picture(outs[name], differs, metrics)


def _picture(path: str, differs: bool, metrics: Mapping[str, Any]) -> Row:
    key, here, table = "versions.matplotlib", version("matplotlib"), path.replace(".png", ".csv")
    if differs and metrics.get(key) != here:
        text = f"other pixels; made with {key} {metrics.get(key)} (here {here})"
        return Row(f"picture {Path(path).name}", text, path, "not comparable")
    problem = f"not the picture of {table}" if differs else ""
    return judged(f"picture {Path(path).name}", problem, f"that of {table}", path)


def _pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path, formats=["PNG"]) as image:
        return image.size, image.convert("RGBA").tobytes()


def _wrong_intervals(lines: Sequence[Line], n: int) -> Iterator[str]:
    """Yield the lines whose number of images or interval is not that of their accuracy."""
    for number, line in enumerate(lines, 2):
        if line["n"] != n:
            yield f"line {number}: n: recorded {line['n']}, params.yaml gives {n}"
        else:
            found = scores.interval(np.arange(n) < round(line["accuracy"] * n))
            for problem in differing(line, found, f"of {n} images is"):
                yield f"line {number}: {problem}"


def _wrong_grid(
    project: Project, lines: Sequence[Line], recorded: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield what is wrong with the grid, or with the metrics about it."""
    settings = project.settings.evaluate.grid
    if settings is None or recorded is None:
        if lines or settings is not None or recorded is not None:
            yield "in one place only: params.yaml, the metrics or the file have no grid"
        return
    n_judged = len(judged_images(project, project.clean))
    n = min(settings.n_eval, n_judged)
    yield from _wrong_intervals(lines, n)
    guessed = [line for line in lines if line["guess"] != WORST]
    worst = [line for line in lines if line["guess"] == WORST]
    wanted = {
        "n": n,
        "guesses": len(guessed),
        "lowest": min(guessed, key=lambda line: float(line["accuracy"])),
        "highest": max(guessed, key=lambda line: float(line["accuracy"])),
    }
    yield from differing(recorded, wanted, "the file gives")
    eps = [round(eps, 6) for eps in settings.eps]
    asked = [guess for eps in settings.eps for guess in guesses(settings, eps)]
    found = [{key: line[key] for key in asked[0]} for line in guessed]
    if found != asked or [line["eps"] for line in worst] != eps:
        yield "other guesses than those of params.yaml"
    for line in worst:
        of_eps = [guess["accuracy"] for guess in guessed if guess["eps"] == line["eps"]]
        yield from _wrong_joint(f"{WORST} at eps {line['eps']}", line["accuracy"], of_eps)
    of_all = [line["accuracy"] for line in worst]
    yield from _wrong_joint("worst", recorded["worst"]["accuracy"], of_all)


def _wrong_joint(name: str, accuracy: float, others: Sequence[float]) -> Iterator[str]:
    """Yield that an accuracy under several attacks is not possible with that under each."""
    least, most = 1 - sum(1 - other for other in others), min(others)
    if not least - 1e-5 <= accuracy <= most + 1e-5:
        yield f"{name}: recorded {accuracy}, the others allow {max(0.0, least):g} to {most:g}"


def _wrong_curves(
    project: Project, path: str, lines: Sequence[Line], recorded: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what is wrong with the curves, or with the checks that are made from them."""
    settings, block = project.settings.evaluate, judged_images(project, project.clean)
    rows = scores.sample(block, settings.curves.n_eval, settings.seed)
    yield from _wrong_intervals(lines, len(rows))
    threat = settings.threats[settings.curves.threat]
    values = {
        "eps": [0.0, *(round(eps, 6) for eps in settings.curves.eps)],
        "steps": sorted({*settings.curves.steps, threat.parameters["steps"]}),
        "restarts": [*range(1, settings.curves.restarts + 1)],
    }
    points = [(name, value) for name, found in values.items() for value in found]
    if [(line["curve"], line["value"]) for line in lines] != points:
        yield "other points than those of params.yaml"
        return
    accuracy = {
        name: [line["accuracy"] for line in lines if line["curve"] == name] for name in values
    }
    for name in ("eps", "restarts"):
        if accuracy[name] != sorted(accuracy[name], reverse=True):
            yield f"{name}: the accuracy rises, although a lost image stays lost"
    (model,) = project.checkpoints(project.made(path).deps)
    margins = margins_of(project.network(model), block.select(rows))
    tight = int((np.abs(margins) <= TIGHT).sum())
    right = accuracy["eps"][0] * len(rows)
    if abs(right - int((margins > 0).sum())) > tight + 1e-3:
        yield f"eps 0: recorded {accuracy['eps'][0]}, is {(margins > 0).mean():.6f}"
    steps = accuracy["steps"]
    rises = [later - min(steps[:place]) for place, later in enumerate(steps[1:], 1)]
    for name, allowed in (
        ("stands_at_eps_1", accuracy["eps"][-1:]),
        ("more_steps_raise_accuracy", rises),
    ):
        value = recorded["checks"][name]["value"]
        if not any(abs(value - one) < 1e-5 for one in allowed):
            yield f"{name}: recorded {value}, the file gives {max(allowed):g}"
