"""Check robust accuracies without an attack, as far as that goes, and with attacks on demand.

Every check takes a project and yields rows.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.elsewhere import made_elsewhere
from pipeline.audit.evaluated import judged_images
from pipeline.audit.project import Project, Row, Verdict, differing, judged
from pipeline.base import files
from pipeline.evaluate import ensemble, judgement
from pipeline.evaluate.judgement import WORST
from pipeline.networks import scores
from pipeline.networks.device import threads_of

Counts = NDArray[np.int64]  # of images, by class


def robust_results(project: Project, path: str) -> Iterator[Row]:
    """Check each robust accuracy against its sample, its classes and the other ones.

    Only an attack can tell whether the accuracy itself is right.
    """
    results, labels = project.metrics(path)["robust"], _labels(project)
    alone = sorted(results.keys() ^ labels.keys())
    yield judged(
        "robust accuracies",
        f"in one place only: {', '.join(alone)}" if alone else "",
        f"{len(results)}, those that params.yaml asks for",
        path,
    )
    for name in results.keys() & labels.keys():
        problem = _inconsistent(results[name], labels[name], len(project.class_names))
        value = f"{results[name]['accuracy']:.4f}: only `audit --robust` attacks again"
        yield Row(
            f"robust accuracy, {name}",
            problem or value,
            path,
            "FAILED" if problem else "not checked",
        )
    settings = project.settings.evaluate
    if settings.ensemble is not None:
        name, eps = ensemble.name(settings.ensemble), settings.threats[settings.curves.threat].eps
        found = results.get(name, {})
        wanted = ensemble.recorded(settings.ensemble, eps, len(project.class_names))
        problem = "; ".join(differing(found, {"left_out": None, **wanted}))
        yield judged(f"settings of {name}", problem, wanted["attack"], path)
    yield judged(
        "worst against the attacks",
        _wrong_worst(results, labels),
        f"{results[WORST]['accuracy']:.4f}, as the others allow",
        path,
    )


def attacked_again(project: Project, path: str) -> Iterator[Row]:
    """Judge the model again with all attacks, and compare everything that they found."""
    entry, metrics = project.made(path), project.metrics(path)
    (model,) = project.checkpoints(entry.deps)
    with threads_of(str(metrics.get("processor"))):
        again = judgement.judge(
            project.network(model),
            project.images(project.clean),
            [project.images(source) for source in project.adversarial(entry.deps).values()],
            project.sha256(model),
            project.settings.evaluate,
        )
        others = made_elsewhere(metrics, project.device)
    for name, result in again.metrics["robust"].items():
        recorded = metrics["robust"].get(name, {})
        same = all(recorded.get(key) == value for key, value in result.items())
        near = result["low95"] <= recorded.get("accuracy", -1) <= result["high95"]
        difference = f"recorded {recorded.get('accuracy')}, is {result['accuracy']}"
        verdict: Verdict = "FAILED"
        if same:
            verdict, difference = "ok", f"{result['accuracy']:.4f}"
        elif near and others:
            verdict, difference = "not comparable", f"{difference}; {others}"
        yield Row(f"attacked again, {name}", difference, f"{path}, {model}", verdict)
    grid, curves = (
        next(out for out in entry.outs if Path(out).name == name)
        for name in ("grid.csv", "curves.csv")
    )
    for name, where, earlier, now in (
        ("grid", path, metrics.get("grid"), again.metrics["grid"]),
        ("diagnostics", path, metrics.get("diagnostics"), again.metrics["diagnostics"]),
        ("grid.csv", grid, files.read_csv(project.root / grid), again.grid),
        ("curves.csv", curves, files.read_csv(project.root / curves), again.curves),
    ):
        verdict, value = "ok", "the same numbers"
        if earlier != now:
            verdict = "not comparable" if others else "FAILED"
            value = f"differs from the recorded one; {others}".removesuffix("; ")
        yield Row(f"{name} again", value, where, verdict)


def _labels(project: Project) -> dict[str, NDArray[np.int64]]:
    """Return the labels of the images that each attack of `params.yaml` is tried on."""
    settings, block = project.settings.evaluate, judged_images(project, project.clean)
    sizes = dict.fromkeys(settings.threats, settings.n_eval)
    if settings.ensemble is not None:
        sizes[ensemble.name(settings.ensemble)] = settings.ensemble.n_eval
    sizes[WORST] = min(len(block) if n is None else n for n in sizes.values())
    return {name: block.labels[scores.sample(block, n, settings.seed)] for name, n in sizes.items()}


def _inconsistent(result: Mapping[str, Any], labels: NDArray[np.int64], n_classes: int) -> str:
    """Return what is wrong with an accuracy that its sample or its own classes contradict."""
    counts, right = _of_class(labels, n_classes), np.zeros(len(labels), dtype=bool)
    for label, n_right in enumerate(_rights(result, counts)):
        right[np.flatnonzero(labels == label)[:n_right]] = True
    found = scores.summarise(right, labels, n_classes)
    return "; ".join(differing(result, found, "its classes give"))


def _of_class(labels: NDArray[np.int64], n_classes: int) -> Counts:
    return np.bincount(labels, minlength=n_classes)


def _rights(result: Mapping[str, Any], counts: Counts) -> Counts:
    """Return the number of right images of each class."""
    shares = [share or 0.0 for share in result["per_class"]]
    return np.round(shares * counts).astype(np.int64)


def _wrong_worst(results: Mapping[str, Any], labels: Mapping[str, NDArray[np.int64]]) -> str:
    """Return what is wrong with the joint accuracy, class by class.

    An image that withstands all attacks withstands each of them. An image that does not is lost to
    one of them. Other attacks may have been tried on more images than the joint accuracy has.
    """
    others = [name for name in results if name != WORST]
    if results[WORST]["over"] != others:
        return f"over: recorded {results[WORST]['over']}, there are {others}"
    n_classes = len(results[WORST]["per_class"])
    of_worst = _of_class(labels[WORST], n_classes)
    least, most = of_worst.copy(), of_worst.copy()
    for name in others:
        counts = _of_class(labels[name], n_classes)
        rights = _rights(results[name], counts)
        most = np.minimum(most, rights)
        least = least - np.minimum(counts - rights, of_worst)
    found = _rights(results[WORST], of_worst)
    wrong = np.flatnonzero((found < least) | (found > most))
    return (
        f"class {wrong[0]}: {found[wrong[0]]} withstand all,"
        f" the attacks allow {max(0, least[wrong[0]])} to {most[wrong[0]]}"
        if len(wrong)
        else ""
    )
