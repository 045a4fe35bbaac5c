"""Check `dvc.lock` against `dvc.yaml`, the disk, `params.yaml` and what the artefacts record.

Nothing here is recomputed from images; other modules of this folder do that. Every check takes a
project and yields rows.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.audit import lineage
from pipeline.audit.project import LAST, Project, Row, judged
from pipeline.base import params, unfinished
from pipeline.base.errors import discarding
from pipeline.base.values import CLEAN, number
from pipeline.base.words import counted

CODE = "pipeline"  # the folder of the code
# Dotted key of params.yaml, where else the parameter is recorded, and the value there.
Held = list[tuple[str, str, Any]]


def stage_names(project: Project) -> Iterator[Row]:
    """Check that every declared stage was run, and warn of recorded stages that are not declared.

    dvc.lock keeps stages of an earlier configuration.
    """
    names = {
        "declared": project.declared.keys() - LAST,
        "recorded": project.recorded.keys() - LAST,
    }
    for name in sorted(names["declared"] - names["recorded"]):
        row = judged("stage", "never run: not in dvc.lock", "", "dvc.yaml, params.yaml")
        yield replace(row, stage=name)
    for name in sorted(names["recorded"] - names["declared"]):
        text = "left over: params.yaml no longer asks for it; not audited"
        yield Row("stage", text, "dvc.lock", "warning", stage=name)


def command(project: Project, stage: str) -> Iterator[Row]:
    """Check that the recorded command, dependencies and outputs are the declared ones.

    `dvc.yaml` and `params.yaml` declare them.
    """
    wanted, found = project.declared[stage], project.recorded[stage]
    where = "dvc.yaml, dvc.lock"
    changed = "" if wanted.cmd == found.cmd else f"dvc.yaml: {wanted.cmd}; dvc.lock: {found.cmd}"
    yield judged("command", changed, found.cmd, where)
    for kind, declared, recorded in (
        ("dependencies", wanted.deps, found.deps),
        ("outputs", wanted.outs, found.outs),
    ):
        differing = sorted(set(declared) ^ recorded.keys())
        yield judged(
            kind,
            f"in one file only: {', '.join(differing)}" if differing else "",
            counted(len(recorded), "path"),
            where,
        )


def hashes(project: Project, stage: str) -> Iterator[Row]:
    """Check that a stage read what an earlier one wrote, and that the disk still holds both.

    Code files are counted, and named where they differ.
    """
    entry = project.recorded[stage]
    code = {path: md5 for path, md5 in entry.deps.items() if path.split("/")[0] == CODE}
    faults = [path for path, md5 in code.items() if _differs(project, path, md5)]
    yield judged(
        "code",
        f"other than it was run: {', '.join(faults)}" if faults else "",
        counted(len(code), "path"),
        "dvc.lock",
    )
    for path, md5 in {**entry.deps, **entry.outs}.items():
        if path not in code:
            role = "output" if path in entry.outs else "input"
            fault = _differs(project, path, md5) or (
                _other_origin(project, path, md5) if role == "input" else ""
            )
            if (
                fault
                and role == "output"
                and unfinished.is_cached(path)
                and (project.root / path).exists()
            ):
                fault += f"; {discarding(project.root / path)}"
            yield judged(f"{role} {path}", fault, f"MD5 {md5[:12]}", "dvc.lock")


def _differs(project: Project, path: str, md5: str) -> str:
    if not (project.root / path).exists():
        return "no such file or folder"
    found = project.md5(path)
    return "" if found == md5 else f"dvc.lock: MD5 {md5[:12]}, on the disk: {found[:12]}"


def _other_origin(project: Project, path: str, md5: str) -> str:
    """Return what is wrong with an input that another stage wrote differently."""
    for name, entry in project.stages.items():
        if entry.outs.get(path, md5) != md5:
            return f"read with MD5 {md5[:12]}, but {name} wrote {entry.outs[path][:12]}"
    return ""


def parameters(project: Project, stage: str) -> Iterator[Row]:
    """Check that every parameter of a stage has one value wherever it is recorded.

    The places are dvc.lock, params.yaml, and what the stage made.
    """
    recorded, written = project.recorded[stage].params, lineage.flatten(project.values)
    wanted = {
        key
        for key in written
        if any(f"{key}.".startswith(f"{prefix}.") for prefix in project.declared[stage].params)
    }
    held = held_parameters(project, stage)
    for key in sorted({*recorded, *wanted}):
        places = [
            ("dvc.lock", recorded.get(key)),
            (str(params.FILE), written.get(key)),
            *((where, v) for name, where, v in held if name == key),
        ]
        found = {where: _plain(value) for where, value in places}
        differing = len(set(map(repr, found.values()))) > 1
        problem = (
            "; ".join(f"{where}: {_shown(value)}" for where, value in places) if differing else ""
        )
        yield judged(key, problem, _shown(written.get(key)), ", ".join(found))
    for key, where, value in held:
        if key not in recorded:
            yield judged(key, f"{where}: {_shown(value)}; dvc.lock: no such parameter", "", where)


def held_parameters(project: Project, stage: str) -> Held:
    """Return the parameters that a stage's own image sets, checkpoints and metrics record."""
    outs, recorded = project.recorded[stage].outs, project.recorded[stage].params
    held: Held = []
    for path in project.sets(outs):
        held += _held_by_set(path, project.images(path).attributes, recorded)
    for path in project.checkpoints(outs):
        checkpoint = project.checkpoint(path)
        own = [
            key for key in recorded if re.fullmatch(r"(.*\.start|adopted\..*)\.architecture", key)
        ]
        held += [
            (key, path, checkpoint.architecture)
            for key in own or ["model.architecture"]
            if key in recorded
        ]
        held += [
            (key, path, checkpoint.provenance.get("file"))
            for key in recorded
            if re.fullmatch(r"adopted\..*\.file", key)
        ]
        held += _held_by_checkpoint(path, checkpoint.provenance, recorded)
    for path in outs:
        if path.endswith(".json"):
            held += _held_by_metrics(path, project.metrics(path), recorded)
    return held


def _held_by_set(path: str, attributes: Mapping[str, Any], recorded: Mapping[str, Any]) -> Held:
    held: Held = []
    if attributes["kind"] == CLEAN:
        names = {"source": "data.source", "split.n_val": "data.n_val", "seed": "seed"}
        if recorded.get("data.image_size") is not None:  # else the images have their own size
            names["image_size"] = "data.image_size"
    else:
        prefix = f"attacks.{attributes['attack']}"
        names = {
            "attack.class": f"{prefix}.attack",
            "batch_size": "generate.batch_size",
            "seed": "seed",
        }
        attack = {
            key.removeprefix("attack."): _parsed(value)
            for key, value in attributes.items()
            if key.startswith("attack.") and key not in names
        }
        held += [(f"{prefix}.{key}", path, value) for key, value in lineage.flatten(attack).items()]
    return held + [(key, path, attributes.get(name)) for name, key in names.items()]


def _held_by_checkpoint(
    path: str, provenance: Mapping[str, Any], recorded: Mapping[str, Any]
) -> Held:
    name = Path(path).stem
    training = {
        key.removeprefix("training."): _parsed(value)
        for key, value in provenance.items()
        if key.startswith("training.")
    }
    held: Held = []
    for key, value in lineage.flatten(training).items():
        own = (f"{section}.{key}" for section in (name, f"finetuned.{name}", f"online.{name}"))
        written = next(
            (place for place in (*own, f"training.{key}", key) if place in recorded),
            f"training.{key}",
        )
        held.append((written, path, value))
    return held


def _parsed(value: Any) -> Any:
    """Return a value of a checkpoint's provenance or of a set's attributes, parsed.

    Both store everything except strings and numbers as JSON.
    """
    return (
        json.loads(value)
        if isinstance(value, str) and (value.startswith(("{", "[")) or value == "null")
        else value
    )


def _held_by_metrics(path: str, metrics: Mapping[str, Any], recorded: Mapping[str, Any]) -> Held:
    found = {
        f"evaluate.threats.{key}": value
        for key, value in lineage.flatten(metrics.get("robust", {})).items()
    }
    return [(key, path, value) for key, value in found.items() if key in recorded]


def _plain(value: Any) -> Any:
    """Return a value in a form that can be compared.

    Numbers, `8/255` and `25 %` become floats. Words are in small letters, as in any other case.
    """
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bool) or value is None:
        return value
    found = number(value)
    if not math.isnan(found):
        return round(found, 12)
    return value.replace(" ", "").lower() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
