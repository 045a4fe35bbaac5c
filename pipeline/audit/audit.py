"""Audit a run: find out again what can be found out, and check it against the run's records."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.audit import (
    adopted_models,
    adversarial_sets,
    clean_set,
    comparisons,
    lineage,
    records,
    trained,
)
from pipeline.audit.project import Project, Row, judged
from pipeline.base import files
from pipeline.base.errors import InputError

VERDICTS = ("ok", "warning", "not comparable", "FAILED")
Made = Callable[[Project, str, str], Iterator[Row]]


def audit(path: Path, device: torch.device) -> list[Row]:
    """Audit a project folder, or a single image set in one, and return the rows, failures last.

    What cannot be read is a failure of the check that reads it. Raises InputError for a folder that
    is neither.
    """
    root, only = _locate(path)
    project = Project(root, device)
    settings, stages = project.settings, project.stages
    assert settings
    rows = [] if only else _tried(records.stage_names(project), "all stages", "stage names")
    for stage in stages:
        if only is None or only in stages[stage].outs:
            rows += _stage(project, stage)
    if only is None:
        rows += _tried(comparisons.threat_models(project), "threat models", "comparison")
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
    widths = [min(max(len(line[column]) for line in lines), 60) for column in range(4)]
    return "\n".join(
        "  ".join(
            text.ljust(width) for text, width in zip(line, (*widths, 0), strict=True)
        ).rstrip()
        for line in lines
    )


def verdict(rows: Sequence[Row]) -> str:
    """Return the number of rows of each verdict in one line.

    Raises InputError where a check failed; its message names the failed rows.
    """
    counts = ", ".join(
        f"{sum(row.verdict == verdict for row in rows)} {verdict}" for verdict in VERDICTS
    )
    if failed := [f"{row.stage}: {row.parameter}" for row in rows if row.verdict == "FAILED"]:
        raise InputError(f"audit: {counts}: {'; '.join(failed)}")
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
    """Return the project folder, and the path within it if `path` is an image set."""
    for root in (path, *path.resolve().parents):
        if (root / lineage.RECORDED).is_file():
            return root, None if root == path else path.resolve().relative_to(root).as_posix()
    raise InputError(
        f"{path}: no project folder and not within one: no {lineage.RECORDED}; "
        "`dvc repro` writes it"
    )


def _stage(project: Project, stage: str) -> list[Row]:
    """Return all rows about one stage: its record, its parameters, and what it made."""
    entry = project.stages[stage]
    rows = _tried(records.command(project, stage), stage, "command")
    rows += _tried(records.hashes(project, stage), stage, "hashes")
    rows += _tried(records.parameters(project, stage), stage, "parameters")
    for path in entry.outs:
        if check := _check_of(project, stage, path):
            rows += _tried(check(project, stage, path), stage, path)
    return rows


def _check_of(project: Project, stage: str, path: str) -> Made | None:
    """Return the check that recomputes the output at `path`, chosen by the stage's record."""
    entry = project.stages[stage]
    if entry.outs[path].endswith(".dir"):
        if project.checkpoints(entry.outs):
            return adversarial_sets.refreshed_sets
        return (
            adversarial_sets.adversarial_set
            if project.checkpoints(entry.deps)
            else clean_set.clean_set
        )
    if project.checkpoints([path]):
        is_adopted = Path(path).stem in project.settings.adopted
        return adopted_models.adopted_model if is_adopted else trained.trained_model
    if path.endswith(".pt"):
        return trained.submission
    return trained.evaluated_model if path.endswith(".json") else None


def _tried(rows: Iterator[Row], stage: str, what: str) -> list[Row]:
    """Return the rows of a check, with a failure in place of those that it could not yield."""
    found: list[Row] = []
    try:
        found.extend(rows)
    except InputError as error:
        found.append(judged(stage, what, str(error), "", what))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(judged(stage, what, f"cannot be checked: {reason}", "", what))
    return found
