"""Arrange what the evaluations found: the answer, curves, the hidden grader, checks, classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import figures
from pipeline.base import store
from pipeline.evaluate import table
from pipeline.export import ranking, submission
from pipeline.export.params import AUTO
from pipeline.figures import in_pixels
from pipeline.report.parts import Picture, percent, picture
from pipeline.report.results import Results

SURVIVED = (0.3, 0.4, 0.5)  # accuracies that a grader might ask for
MOST_CLASSES = 100  # that a confusion matrix is drawn for


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the models are worth: the table, the picture of it, and the verdict in words."""

    picture: Picture
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[tuple[str, str]], str, str]]
    worth: str
    submitted: str
    why: str
    ranked: list[tuple[str, str, str, bool]]
    alike: list[str]
    expected: list[tuple[str, str]]


def answer(results: Results) -> Answer:
    found = {model: results.accuracies(model) for model in results.models}
    verdicts = {
        model: metrics["diagnostics"]["verdict"] for model, metrics in results.metrics.items()
    }
    columns = list(dict.fromkeys(_column(one) for points in found.values() for one in points))
    rows = []
    for model, points in found.items():
        cells = {_column(one): _cell(one) for one in points}
        passes = table.passes(results.metrics[model]["attack_passes"])
        filled = [cells.get(column, ("–", "")) for column in columns]
        rows.append((model, filled, passes, verdicts[model]))
    alt = "; ".join(
        f"{model}: clean {percent(metrics['clean']['accuracy'])} %, "
        f"robust (worst) {percent(metrics['robust']['worst']['accuracy'])} %"
        for model, metrics in results.metrics.items()
    )
    return Answer(
        picture=picture(figures.gap(found), alt),
        columns=columns,
        rows=rows,
        worth=table.worth(verdicts),
        submitted=results.submitted,
        why=_why(results),
        ranked=[_ranked(one) for one in results.ranked],
        alike=ranking.alike(results.ranked) if results.ranked else [],
        expected=[
            (name, _interval(result))
            for name, result in submission.named(results.metrics[results.submitted]).items()
        ],
    )


def _why(results: Results) -> str:
    if results.project.settings.export.model == AUTO:
        return "the best one by the rule of export.score"
    return "named by export.model"


def _ranked(one: ranking.Ranked) -> tuple[str, str, str, bool]:
    """Return a model, its score with the interval, what the score is made of, and the floor."""
    low, high = map(percent, one.interval)
    parts = ", ".join(f"{name} {percent(part['accuracy'])}" for name, part in one.parts.items())
    return one.model, f"{percent(one.score)} ({low} to {high})", parts, one.is_high


def _column(point: tuple[str, str, Any]) -> tuple[str, str]:
    kind, name, _ = point
    return kind, name.rstrip("*")


def _cell(point: tuple[str, str, Mapping[str, Any]]) -> tuple[str, str]:
    """Return an accuracy, with a star for images of the model's own, and its interval."""
    _, name, result = point
    star = "*" if name.endswith("*") else ""
    return f"{percent(result['accuracy'])}{star}", _range(result)


def _interval(result: Mapping[str, Any]) -> str:
    return f"{percent(result['accuracy'])} % ({_range(result)}, n = {result['n']:,})"


def _range(result: Mapping[str, Any]) -> str:
    return f"{percent(result['low95'])} to {percent(result['high95'])}"


def curves(results: Results) -> Picture:
    rows = {model: results.rows(model, "curves") for model in results.models}
    alt = "; ".join(f"{model}: {_at_most_steps(found)}" for model, found in rows.items())
    return picture(figures.curves(rows, results.threat), alt)


def _at_most_steps(rows: list[dict[str, Any]]) -> str:
    last = max((row for row in rows if row["curve"] == "steps"), key=lambda row: row["value"])
    return f"{percent(last['accuracy'])} % after {last['value']:.0f} steps"


def histories(results: Results) -> Picture | None:
    """Return all trainings in one figure; None where no model was trained here."""
    kept = {model: int(results.provenance(model)["best.epoch"]) for model in results.trained()}
    if not kept:
        return None
    alt = "; ".join(f"{model}: epoch {epoch} kept" for model, epoch in kept.items())
    rows = {model: (results.rows(model, "history"), epoch) for model, epoch in kept.items()}
    return picture(figures.histories(rows), alt)


@dataclass(frozen=True, kw_only=True)
class Guessed:
    """What a hidden grader finds of one model.

    `survived` has, for each of SURVIVED, the number of guesses at which the model keeps more.
    """

    model: str
    picture: Picture
    lowest: str
    survived: list[int]
    n_guesses: int
    n_images: int


def grader(results: Results) -> list[Guessed]:
    """Return what each model keeps under every guess at the grader's attack."""
    found = []
    for model in results.models:
        rows, metrics = results.rows(model, "grid"), results.metrics[model]["grid"]
        if metrics is None:
            continue
        guesses = [row for row in rows if row["steps"] != "" or row["guess"] == "FGSM"]
        lowest = f"{_guess(metrics['lowest'])}: {_interval(metrics['lowest'])}"
        found.append(
            Guessed(
                model=model,
                picture=picture(figures.heat_map(rows, f"{model}: fresh attacks"), lowest),
                lowest=lowest,
                survived=[sum(row["accuracy"] > least for row in guesses) for least in SURVIVED],
                n_guesses=len(guesses),
                n_images=metrics["n"],
            )
        )
    return found


def _guess(row: Mapping[str, Any]) -> str:
    return f"{row['guess']}, eps {in_pixels(row['eps'])}"


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Accuracy by class: images to train, to validate and to test; each model's clean and worst."""

    rows: list[tuple[str, list[int], list[str]]]
    models: list[str]
    confusions: list[Picture]


def classes(results: Results) -> Classes:
    project = results.project
    images, names = project.images(project.clean), project.class_names
    labels, split = images.column("labels"), images.column("split")
    counts = [
        np.bincount(labels[split == number], minlength=len(names)).tolist()
        for number in store.SPLITS.values()
    ]
    kinds = [
        result
        for metrics in results.metrics.values()
        for result in (metrics["clean"], metrics["robust"]["worst"])
    ]
    rows = [
        (
            name,
            [count[label] for count in counts],
            [percent(result["per_class"][label]) for result in kinds],
        )
        for label, name in enumerate(names)
    ]
    return Classes(
        rows=rows,
        models=results.models,
        confusions=[_confusion(results, model) for model in results.models]
        if len(names) <= MOST_CLASSES
        else [],
    )


def _confusion(results: Results, model: str) -> Picture:
    rows = results.rows(model, "confusion")
    wrong = sum(row["actual"] != row["predicted"] for row in rows)
    drawn = figures.confusion(rows, results.project.class_names, f"{model}: clean images")
    return picture(drawn, f"{model}: {wrong} of {len(rows)} clean images get a wrong class")
