"""Arrange where everything comes from: stages, parameters, hashes, versions and costs."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import figures, presets
from pipeline.audit import lineage
from pipeline.audit.project import Project
from pipeline.base import costs, files, params
from pipeline.base.errors import InputError
from pipeline.report.parts import Picture, picture
from pipeline.report.results import Results

PAGE = "report/index.html"  # which cannot hold its own SHA-256
AUDITED = "report/audit.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: its command, its parameters, its outputs with SHA-256, and what it needs."""

    name: str
    cmd: str
    needs: list[str]
    values: list[tuple[str, str]]
    outs: list[tuple[str, str]]


def stages(project: Project) -> list[Stage]:
    """Return the stages in the order in which they run, the one that writes the page included."""
    declared = project.declared
    needs = _needs(declared)
    values = lineage.flatten(project.values)
    return [
        Stage(
            name=name,
            cmd=declared[name].cmd,
            needs=needs[name],
            values=[
                (key, _text(value))
                for key, value in values.items()
                if any(f"{key}.".startswith(f"{asked}.") for asked in declared[name].params)
            ],
            outs=list(_outs(project, declared[name])),
        )
        for name in _ordered(needs)
    ]


def graph(found: list[Stage]) -> Picture:
    needs = {stage.name: stage.needs for stage in found}
    alt = "; ".join(
        f"{stage.name} needs {' and '.join(stage.needs)}" for stage in found if stage.needs
    )
    return picture(figures.graph(needs), alt)


def _needs(declared: dict[str, lineage.Declared]) -> dict[str, list[str]]:
    """Return the stages whose outputs each reads, without those that another one of them needs.

    The rest would only repeat in the picture what its other arrows say.
    """
    above = {name: set(lineage.upstream(name, declared)) for name in declared}
    deeper = {name: set().union(*(above[other] for other in above[name])) for name in declared}
    return {
        name: [other for other in declared if other in above[name] - deeper[name]]
        for name in declared
    }


def _ordered(needs: dict[str, list[str]]) -> list[str]:
    """Return stages so that each follows what it needs."""
    done: list[str] = []
    while len(done) < len(needs):
        done += sorted(name for name in needs if name not in done and set(needs[name]) <= set(done))
    return done


def _outs(project: Project, stage: lineage.Declared) -> Iterator[tuple[str, str]]:
    """Yield a stage's outputs with their SHA-256; that of an image set is its manifest's."""
    for out in stage.outs:
        if (project.root / out).is_file() and out != PAGE:
            yield out, project.sha256(out)
        for name in project.below(out):
            yield name, project.images(name).digest


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def preset_differences(project: Project) -> tuple[str, list[tuple[str, str, str]]]:
    """Return the preset that the params differ least from, and the keys that differ.

    A difference is a key, its value in the preset and its value here. Presets that cannot be read
    are left out.
    """
    own = lineage.flatten(project.values)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for name in presets.names():
        with suppress(InputError):
            found[name] = _differences(lineage.flatten(presets.values(name)), own)
    if not found:
        return "", []
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


def _differences(preset: dict[str, Any], own: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (key, _text(preset[key]) if key in preset else "–", _text(own[key]) if key in own else "–")
        for key in {**preset, **own}
        if preset.get(key, "") != own.get(key, "")
    ]


def versions(results: Results) -> list[tuple[str, str]]:
    """Return the libraries and processors that stages recorded, each with its value."""
    project = results.project
    recorded: dict[str, set[str]] = {}
    sources = [results.provenance(model) for model in results.trained()]
    sources += [
        project.images(name).attributes
        for stage in project.declared.values()
        for name in project.sets(stage.outs)
    ]
    for attributes in sources:
        for key, value in attributes.items():
            if key.startswith("versions.") or key in ("device", "processor", "precision"):
                recorded.setdefault(key.removeprefix("versions."), set()).add(str(value))
    return [(key, ", ".join(sorted(values))) for key, values in sorted(recorded.items())]


def audited(project: Project) -> dict[str, int]:
    """Return how many rows of the audit have each verdict."""
    found = project.metrics(AUDITED)
    return {key: found[key] for key in ("ok", "not_checked", "warning", "not_comparable", "failed")}


def spent(project: Project, found: list[Stage]) -> list[dict[str, Any]]:
    """Return what each stage took when it last ran here; None where no run was measured here."""
    return [
        {
            "stage": stage.name,
            **_measured(project.root / costs.FOLDER / f"{stage.name}.json"),
            "disk_bytes": sum(
                _size(project.root / out) for out in project.declared[stage.name].outs
            ),
        }
        for stage in found
    ]


def _measured(path: Path) -> dict[str, Any]:
    keys = ("seconds", "processor_seconds", "memory_bytes", "processor_joules")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in keys}
    except (OSError, ValueError, LookupError, TypeError):
        return dict.fromkeys(keys)


def _size(path: Path) -> int:
    inside = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in inside)


def hashes(project: Project) -> list[tuple[str, str]]:
    """Return the files that say everything else, with their SHA-256."""
    return [
        (name, files.sha256(project.root / name)) for name in (str(params.FILE), lineage.DECLARED)
    ]
