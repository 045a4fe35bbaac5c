"""Audit a run: find out again what can be found out, and check it against the run's records."""

import csv
import itertools
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.audit import (
    adopted_models,
    adversarial_sets,
    checked,
    clean_set,
    comparisons,
    evaluated,
    exported,
    lineage,
    records,
    robustness,
    swept,
    trained,
)
from pipeline.audit.project import Project, Row, judged
from pipeline.base import files, unfinished
from pipeline.base.errors import InputError

VERDICTS = ("ok", "not checked", "warning", "not comparable", "FAILED")
WIDTH, GAP = 120, "  "  # of the table, and between its columns
NAMED = 5  # failures that the last line names
Check = Callable[[Project, str], Iterator[Row]]  # of the output at a path
EXPORTED: dict[str, Check] = {
    ".pt": exported.state_dict,
    ".classes.csv": exported.class_names,
    ".md": exported.model_card,
}
# What files raise that were changed by others: a PNG raises SyntaxError.
DAMAGED = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SyntaxError,
    csv.Error,
)


def audit(path: Path, device: torch.device, *, robust: bool = False) -> list[Row]:
    """Audit a project folder, or a single result in one, and return the rows, failures last.

    What cannot be read is a failure of the check that reads it. With `robust`, every model is
    attacked again. Raises InputError for a path that is neither, and where nothing was run yet.
    """
    root, only = _locate(path)
    project = Project(root, device)
    settings, stages = project.settings, project.stages
    assert settings
    _expect_outputs(project, path, only)
    rows = [] if only else _tried(records.stage_names(project), "all stages", "stage names")
    for stage in stages:
        if only is None or only in stages[stage].outs:
            rows += _stage(project, stage, robust)
    if only is None:
        for check in (comparisons.threat_models, comparisons.unjudged_sets):
            rows += _tried(check(project), "threat models", "comparison")
        rows += _tried(comparisons.versions(project), "versions", "comparison")
    return sorted(rows, key=lambda row: row.verdict == "FAILED")


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, one per line.

    The columns are stage, parameter, value, where the value is recorded, and verdict.
    """
    lines = [
        ("stage", "parameter", "value", "recorded in", "verdict"),
        *((r.stage, r.parameter, r.value, r.where, r.verdict) for r in rows),
    ]
    widths = _widths([max(len(line[column]) for line in lines) for column in range(5)])
    return "\n".join(text for line in lines for text in _wrapped(line, widths))


def _widths(widths: list[int]) -> list[int]:
    """Return the widths of columns that fit WIDTH; only the widest ones are made narrower."""
    spare = WIDTH - len(GAP) * (len(widths) - 1)
    most = max(widths)
    while sum(min(width, most) for width in widths) > spare:
        most -= 1
    return [min(width, most) for width in widths]


def _wrapped(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of text that the cells of one row take."""
    cells = [
        textwrap.wrap(text, width, break_on_hyphens=False) or [""]
        for text, width in zip(line, widths, strict=True)
    ]
    for parts in itertools.zip_longest(*cells, fillvalue=""):
        yield GAP.join(
            text.ljust(width) for text, width in zip(parts, widths, strict=True)
        ).rstrip()


def verdict(rows: Sequence[Row]) -> str:
    """Return the number of rows of each verdict in one line.

    Raises InputError where a check failed; its message names the failed rows.
    """
    counts = ", ".join(
        f"{sum(row.verdict == verdict for row in rows)} {verdict}" for verdict in VERDICTS
    )
    if failed := [f"{row.stage}: {row.parameter}" for row in rows if row.verdict == "FAILED"]:
        more = f"; and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        raise InputError(f"audit: {counts}: {'; '.join(failed[:NAMED])}{more}")
    return f"audit: {counts}"


def measures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the audit as flat keys, which are the same from run to run.

    They hold the number of rows of each verdict, the failures, and every measure.
    """
    counts = {
        verdict.replace(" ", "_").lower(): sum(row.verdict == verdict for row in rows)
        for verdict in VERDICTS
    }
    failed = {f"failed.{_key(row)}": row.value for row in rows if row.verdict == "FAILED"}
    return {
        **counts,
        **failed,
        **{_key(row): row.number for row in sorted(rows, key=_key) if row.number is not None},
    }


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write the measures as JSON."""
    files.write_json(path, measures(rows))


def _key(row: Row) -> str:
    return f"{row.stage}.{row.parameter}".replace(" ", "_")


def _locate(path: Path) -> tuple[Path, str | None]:
    """Return the project folder, and the path within it if `path` is not that folder."""
    # Not resolved: results may be links into DVC's cache.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    root = lineage.nearest(absolute, lineage.RECORDED)
    if root is None:
        raise InputError(
            f"{path}: no project folder and not within one: no {lineage.RECORDED}; "
            "`dvc repro` writes it"
        )
    relative = absolute.relative_to(root).as_posix()
    return (path, None) if relative == "." else (root, relative)


def _expect_outputs(project: Project, path: Path, only: str | None) -> None:
    """Raise InputError for a path that no stage writes, and where no result is on the disk."""
    outs = {out for stage in project.stages.values() for out in stage.outs}
    if only is not None and only not in outs:
        known = ", ".join(sorted(filter(unfinished.is_cached, outs)))
        raise InputError(f"{path}: no result that {lineage.RECORDED} records; there are {known}")
    made = [out for out in outs if unfinished.is_cached(out)]
    if made and not any((project.root / out).exists() for out in made):
        raise InputError(
            f"{path}: nothing was run here yet: {lineage.RECORDED} records {len(made)} image sets "
            "and models, and none of them is here; `dvc pull` fetches them if they were shared, "
            "else `dvc repro` makes them"
        )


def _stage(project: Project, stage: str, robust: bool = False) -> list[Row]:
    """Return all rows about one stage: its record, its parameters, and what it made."""
    entry = project.stages[stage]
    rows = _tried(records.command(project, stage), stage, "command")
    rows += _tried(records.hashes(project, stage), stage, "hashes")
    rows += _tried(records.parameters(project, stage), stage, "parameters")
    for path in entry.outs:
        for check in _checks_of(project, stage, path, robust):
            rows += _tried(check(project, path), stage, path)
    return rows


def _checks_of(project: Project, stage: str, path: str, robust: bool) -> list[Check]:
    """Return the checks that recompute the output at `path`, chosen by the stage's record."""
    entry = project.stages[stage]
    if entry.outs[path].endswith(".dir"):
        if project.checkpoints(entry.outs):
            return [adversarial_sets.refreshed_sets]
        is_adversarial = project.checkpoints(entry.deps)
        return [adversarial_sets.adversarial_set if is_adversarial else clean_set.clean_set]
    if project.checkpoints([path]):
        is_adopted = Path(path).stem in project.settings.adopted
        return [adopted_models.adopted_model if is_adopted else trained.trained_model]
    if exported_as := [check for ending, check in EXPORTED.items() if path.endswith(ending)]:
        return exported_as
    if not path.endswith(".json"):
        return []
    found: list[Check] = [
        evaluated.evaluated_model,
        robustness.robust_results,
        checked.verdict,
        swept.sweeps,
    ]
    return [*found, robustness.attacked_again] if robust else found


def _tried(rows: Iterator[Row], stage: str, what: str) -> list[Row]:
    """Return the rows of a check, with a failure in place of those that it could not yield.

    They are of `stage`, unless they name another one.
    """
    found: list[Row] = []
    try:
        found.extend(rows)
    except InputError as error:
        found.append(judged(what, str(error), "", what))
    except DAMAGED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(judged(what, f"cannot be checked: {reason}", "", what))
    return [replace(row, stage=row.stage or stage) for row in found]
