"""Check what an evaluation recorded against the model's own predictions.

Networks run again on all judged images. Every check takes a project and yields rows.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.margins import TIGHT, guesses_of, margins_of
from pipeline.audit.project import Project, Row, differing, judged, matches
from pipeline.base import files, store
from pipeline.base.values import CLEAN, MIXED
from pipeline.base.words import counted
from pipeline.evaluate import judgement
from pipeline.networks import scores


def judged_images(project: Project, path: str) -> store.Block:
    """Return those images of a set that evaluations judge."""
    return project.images(path).load(project.images(project.clean).judged)


def evaluated_model(project: Project, path: str) -> Iterator[Row]:
    """Check that the judged model gives the recorded predictions on the stored images.

    These are clean and transfer accuracy, and the confusion of classes.
    """
    entry, metrics = project.made(path), project.metrics(path)
    (model,) = project.checkpoints(entry.deps)
    sha256 = project.sha256(model)
    yield matches(f"judges {model}", metrics["sha256"], sha256, path)
    yield _data_set(project, path)
    yield from _stored_accuracies(project, path, model)
    for name, source in project.adversarial(entry.deps).items():
        block = judged_images(project, source)
        about = judgement.of_stored(project.images(source), block, sha256)
        is_own, eps = about["made_against_this_model"], about["eps"]
        yield judged(
            f"kind of {name}",
            "; ".join(differing(metrics["transfer"].get(name, {}), {"eps.least": None, **about})),
            f"{'made against this very model' if is_own else 'transfer'}, eps {eps * 255:.4g}/255",
            f"{path}, {source}",
        )
    for out in entry.outs:
        if Path(out).name == "confusion.csv":
            yield _confusion(project, out, model)


def _data_set(project: Project, path: str) -> Row:
    """Check that the metrics name the clean set and its source."""
    recorded = project.metrics(path)["data_set"]
    wanted = judgement.data_set(project.images(project.clean))
    value = f"{wanted['source']}, {wanted['n']} images, SHA-256 {wanted['sha256']}"
    return judged(
        "data set", "; ".join(differing(recorded, wanted)[:2]), value, f"{path}, {project.clean}"
    )


def _stored_accuracies(project: Project, path: str, model: str) -> Iterator[Row]:
    """Compare the recorded accuracy on each stored set with the model's predictions on it.

    `path` is the file of the metrics. The last row is about all images together.
    """
    metrics, network = project.metrics(path), project.network(model)
    recorded = {CLEAN: metrics["clean"], **metrics["transfer"]}
    pooled: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    stored = project.adversarial(project.made(path).deps)
    for name, source in {CLEAN: project.clean, **stored}.items():
        block = judged_images(project, source)
        margins = margins_of(network, block)
        pooled.append((margins, block.labels))
        where = f"{path}, {source}"
        text = f"accuracy on {name}"
        yield _accuracy(project, text, recorded.get(name, {}), *pooled[-1], where)
    margins, labels = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
    mixed, text, n_images = recorded.get(MIXED, {}), f"accuracy on {MIXED}", len(pooled[0][1])
    yield _accuracy(project, text, mixed, margins, labels, path, n_images)


def _accuracy(
    project: Project,
    what: str,
    recorded: Mapping[str, Any],
    margins: NDArray[np.float64],
    labels: NDArray[np.int64],
    where: str,
    n_images: int | None = None,
) -> Row:
    """Check an accuracy against the network's own predictions.

    Where all predictions are clear, its interval and classes must agree too. `n_images` is that of
    `scores.summarise`.
    """
    found = scores.summarise(margins > 0, labels, len(project.class_names), n_images)
    tight = int((np.abs(margins) <= TIGHT).sum())
    if not tight or recorded.get("accuracy") == found["accuracy"]:
        problems = differing(recorded, found)
    else:
        off = abs(recorded.get("accuracy", math.inf) - found["accuracy"])
        is_near = off * len(labels) <= tight + 1e-3
        problems = [] if is_near else differing(recorded, {"accuracy": found["accuracy"]})
    return judged(what, "; ".join(problems[:2]), f"{found['accuracy']:.4f}", where)


def _confusion(project: Project, out: str, model: str) -> Row:
    """Compare each line of the confusion with the model's prediction on that image."""
    block, names = judged_images(project, project.clean), project.class_names
    guesses, leads = guesses_of(project.network(model), block.images)
    read = files.read_csv(project.root / out)
    lines = [(line["actual"], line["predicted"]) for line in read]
    wanted = [
        (names[label], names[guess]) for label, guess in zip(block.labels, guesses, strict=True)
    ]
    problem = (
        ""
        if len(lines) == len(wanted)
        else f"{counted(len(lines), 'line')} for {counted(len(wanted), 'image')}"
    )
    if not problem:
        wrong = [
            number
            for number, (line, expected) in enumerate(zip(lines, wanted, strict=True))
            if line[0] != expected[0] or (line != expected and leads[number] > TIGHT)
        ]
        if wrong:
            found, expected = (" as ".join(pairs[wrong[0]]) for pairs in (lines, wanted))
            line = wrong[0] + 2
            problem = f"{counted(len(wrong), 'line')}, the first is {line}: {found}, is {expected}"
    return judged("confusion", problem, f"{len(wanted)} predictions", f"{out}, {model}")
