"""Format the table at the end of a run.

It shows a model's accuracy on clean images, on stored attacks and under fresh ones.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.evaluate.checks import NEAR_CHANCE, STATIC_ONLY, STRONG, SUSPECT, TOO_FEW, UPPER_BOUND

NOTE = (
    "attacks:  gradients of single images that attacks took to train the model,"
    " stored sets included.\n"
    "transfer: accuracy on stored adversarial images (* made against this very model)."
    " It says nothing about an attacker of this model.\n"
    "robust:   accuracy under white-box attacks run freshly against the model itself."
    " worst: under all of them together.\n"
    "evidence: how well the robust accuracy was tested,"
    " not how robust the model is (docs/evaluation.md)."
)
KEYS = ("attack_passes", "data_set", "clean", "transfer", "robust", "diagnostics")
JUDGED = {"test": "test images", "val": "validation images, which also chose the kept epochs"}
WORTH = {
    STRONG: "worst of {models} was found with APGD,"
    " and more iterations, targets or images may lower it a little",
    UPPER_BOUND: "worst of {models} was found without both APGD-CE and targeted APGD at its largest"
    " eps, or they found less than a threat, so it is only an upper bound",
    STATIC_ONLY: "robust accuracy of {models} is less than half of transfer accuracy,"
    " so expect worst from an attacker, never transfer",
    SUSPECT: "a check of {models} failed, so worst may be far too high",
    TOO_FEW: "a check of {models} had too few images to decide, so worst may be far too high",
    NEAR_CHANCE: "clean accuracy of {models} is hardly above guessing,"
    " so its accuracy under attack says nothing",
}


def results(
    folder: Path, models: Sequence[str], outdated: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a text table of the models that have metrics in a folder, one row per model.

    Other models' metrics in the folder are left out. `outdated` tells by model why its results are
    not those of the present params. Raises InputError if there are no metrics, or damaged ones.
    """
    paths = {model: folder / f"{model}.json" for model in models}
    missing = [model for model, path in paths.items() if not path.exists()]
    if len(missing) == len(paths):
        raise InputError(f"{folder}: no metrics yet; `dvc repro` makes them")
    metrics = {model: _read(path) for model, path in paths.items() if model not in missing}
    marked = {model: why for model, why in outdated.items() if model in metrics}
    return "\n".join(
        [
            *_lines(metrics, marked),
            *(
                [f"! {', '.join(missing)}: no metrics yet; `make repro` makes them"]
                if missing
                else []
            ),
            *_warnings(marked),
        ]
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the metrics of a model. Raises InputError where their lines cannot be made."""
    content = files.read_json(path, *KEYS)
    try:
        _lines({path.stem: content}, ())
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not as this version writes metrics; `dvc repro evaluate@{path.stem}` makes it"
            " again"
        ) from error
    return content


def _lines(metrics: Mapping[str, Any], marked: Container[str]) -> list[str]:
    """Return the table, what was judged, and what the numbers are worth."""
    reasons = [
        f"{model}: {_reasons(content['diagnostics'])}"
        for model, content in metrics.items()
        if _undecided(content["diagnostics"])
    ]
    verdicts = {model: content["diagnostics"]["verdict"] for model, content in metrics.items()}
    return [*_table(metrics, marked), *_subjects(metrics), NOTE, *reasons, worth(verdicts)]


def _subjects(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was judged: the data set, and the images and eps of each attack."""
    for key, title in ((_data_set, "data set"), (_attacked, "attacked")):
        texts: dict[str, list[str]] = {}
        for model, content in metrics.items():
            texts.setdefault(key(content), []).append(model)
        for text, models in texts.items():
            if text:
                yield f"{title}:{' ' * (9 - len(title))}{text}{_of(models, metrics)}"


def _of(models: Sequence[str], metrics: Mapping[str, Any]) -> str:
    return "" if len(models) == len(metrics) else f" ({', '.join(models)})"


def _data_set(content: Mapping[str, Any]) -> str:
    found = content["data_set"]
    size = found["image_size"]
    return (
        f"{found['source']}, {found['n']:,} images of {size}x{size} in {found['classes']} classes,"
        f" {content['clean']['n']:,} of them judged ({JUDGED[found['judged']]});"
        f" SHA-256 {found['sha256'][:12]}"
    )


def _attacked(content: Mapping[str, Any]) -> str:
    """Return the number of images and the eps of each attack."""
    groups: dict[str, list[str]] = {}
    for name, result in content["robust"].items():
        if "eps" in result:
            text = f"{result['n']:,} images at eps {result['eps'] * 255:.4g}/255"
            groups.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(names)} on {text}" for text, names in groups.items())


def _warnings(outdated: Mapping[str, str]) -> Iterator[str]:
    """Yield which results are of other params or of earlier outputs."""
    for reason in dict.fromkeys(outdated.values()):
        models = [model for model, why in outdated.items() if why == reason]
        yield (
            f"! {', '.join(models)}: not of this project as it is now: {reason};"
            " `make repro` makes it again"
        )


def _table(metrics: Mapping[str, Any], marked: Container[str]) -> list[str]:
    """Return the lines of the table: two of heads, and one for each model."""
    columns = {
        kind: list(dict.fromkeys(name for content in metrics.values() for name in content[kind]))
        for kind in ("transfer", "robust")
    }
    attacked = [(kind, name) for kind, names in columns.items() for name in names]
    heads = [("", "model"), ("", "attacks"), ("", "clean"), *attacked, ("", "evidence")]
    rows = [
        [
            f"! {model}" if model in marked else model,
            passes(content["attack_passes"]),
            _percent(content["clean"]),
            *(_percent(content[kind].get(name)) for kind, name in attacked),
            content["diagnostics"]["verdict"],
        ]
        for model, content in metrics.items()
    ]
    widths = [
        max(len(text) for text in (*head, *cells)) + 2
        for head, *cells in zip(heads, *rows, strict=True)
    ]
    shown_kinds = [
        kind if kind != before else ""
        for (kind, _), (before, _) in zip(heads, [("", ""), *heads], strict=False)
    ]
    lines = [shown_kinds, [name for _, name in heads], *rows]
    return [
        "".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def worth(verdicts: Mapping[str, str]) -> str:
    """Return one sentence on what the robust accuracies are worth.

    `verdicts` hold the verdict on each model's robust accuracy.
    """
    clauses = []
    for verdict, clause in WORTH.items():
        if models := [model for model, found in verdicts.items() if found == verdict]:
            clauses.append(clause.format(models=", ".join(models)))
    return f"What the numbers are worth: {'; '.join(clauses)}."


def checks(found: Mapping[str, Any]) -> str:
    """Return the checks of one model's measurement as text.

    Each line has a check's number, limit, number of images and result. The last line has the
    verdict over all.
    """
    lines = [
        f"  {name:<30} {number(check['value']):>8}  ({limit(check)}{_images(check)})"
        f"  {check['verdict']}"
        for name, check in found["checks"].items()
    ]
    head = f"checks of what {found['threat']} measured:"
    return "\n".join([head, *lines, f"  evidence: {found['verdict']}"])


def _reasons(found: Mapping[str, Any]) -> str:
    """Return the verdict, and the checks that decided it, with their numbers."""
    named = ", ".join(
        f"{name} ({number(check['value'])}, {limit(check)}{_images(check)})"
        for name, check in _undecided(found).items()
    )
    return f"{found['verdict']}: {named}"


def _undecided(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checks that failed, or those that could not decide where none failed."""
    of = {
        result: {
            name: check for name, check in found["checks"].items() if check["verdict"] == result
        }
        for result in ("failed", "inconclusive")
    }
    return of["failed"] or of["inconclusive"]


def limit(check: Mapping[str, Any]) -> str:
    return f"limit {check['sign']} {number(check['limit'])}"


def _images(check: Mapping[str, Any]) -> str:
    return f", n = {check['n']}" if check.get("n") else ""


def passes(count: int | None) -> str:
    """Return one cell: the gradients that attacks took, unknown for a model trained elsewhere."""
    return "?" if count is None else f"{count / 1e6:.2f}M"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(result: Mapping[str, Any] | None) -> str:
    """Return one cell: the accuracy with half the width of its 95 % interval.

    Where that would go below 0 or above 100, the cell has the interval itself.
    """
    if result is None:
        return "-"
    mark = "*" if result.get("made_against_this_model") else ""
    accuracy, low, high = (100 * result[key] for key in ("accuracy", "low95", "high95"))
    half = (high - low) / 2
    if half <= min(accuracy, 100 - accuracy):
        return f"{accuracy:.1f}{mark} ±{half:.1f}"
    return f"{accuracy:.1f}{mark} ({round(low, 1):g} to {round(high, 1):g})"
