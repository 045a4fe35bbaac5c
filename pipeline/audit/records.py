"""Check `dvc.lock` against `dvc.yaml`, the disk, `params.yaml` and what the artefacts record.

Nothing here is recomputed from images; `sets.py` and `trained.py` do that. Every check takes a
project and yields rows.
"""

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import attacks
from pipeline.audit import lineage
from pipeline.audit.project import OWN, Project, Row, Verdict, judged
from pipeline.base import params, unfinished
from pipeline.base.errors import discarding
from pipeline.base.values import CLEAN, parse_level

CODE = "pipeline"  # the folder of the code
# Dotted key of params.yaml, where else the parameter is recorded, and the value there.
Held = list[tuple[str, str, Any]]


def stage_names(project: Project) -> Iterator[Row]:
    """Check that every declared stage was run, and warn of recorded stages that are not declared.

    dvc.lock keeps stages of an earlier configuration.
    """
    names = {
        "declared": project.declared.keys() - {OWN},
        "recorded": project.recorded.keys() - {OWN},
    }
    for name in sorted(names["declared"] - names["recorded"]):
        yield judged(name, "stage", "never run: not in dvc.lock", "", "dvc.yaml, params.yaml")
    for name in sorted(names["recorded"] - names["declared"]):
        text = "left over: params.yaml no longer asks for it; not audited"
        yield Row(stage=name, parameter="stage", value=text, where="dvc.lock", verdict="warning")


def command(project: Project, stage: str) -> Iterator[Row]:
    """Check that the recorded command, dependencies and outputs are the declared ones.

    `dvc.yaml` and `params.yaml` declare them.
    """
    wanted, found = project.declared[stage], project.recorded[stage]
    where = "dvc.yaml, dvc.lock"
    changed = "" if wanted.cmd == found.cmd else f"dvc.yaml: {wanted.cmd}; dvc.lock: {found.cmd}"
    yield judged(stage, "command", changed, found.cmd, where)
    for kind, declared, recorded in (
        ("dependencies", wanted.deps, found.deps),
        ("outputs", wanted.outs, found.outs),
    ):
        differing = sorted(set(declared) ^ recorded.keys())
        yield judged(
            stage,
            kind,
            f"in one file only: {', '.join(differing)}" if differing else "",
            f"{len(recorded)} paths",
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
        stage,
        "code",
        f"other than it was run: {', '.join(faults)}" if faults else "",
        f"{len(code)} paths",
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
            yield judged(stage, f"{role} {path}", fault, f"MD5 {md5[:12]}", "dvc.lock")


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
        yield judged(stage, key, problem, _shown(written.get(key)), ", ".join(found))
    for key, where, value in held:
        if key not in recorded:
            yield judged(
                stage, key, f"{where}: {_shown(value)}; dvc.lock: no such parameter", "", where
            )


def held_parameters(project: Project, stage: str) -> Held:
    """Return the parameters that a stage's own image sets, checkpoints and metrics record."""
    outs, recorded = project.recorded[stage].outs, project.recorded[stage].params
    held: Held = []
    for path in project.sets(outs):
        held += _held_by_set(path, project.images(path).attributes)
    for path in project.checkpoints(outs):
        checkpoint = project.checkpoint(path)
        own = [key for key in recorded if key.endswith(".start.architecture")]
        held += [
            (key, path, checkpoint.architecture)
            for key in own or ["model.architecture"]
            if key in recorded
        ]
        held += _held_by_checkpoint(path, checkpoint.provenance, recorded)
    for path in outs:
        if path.endswith(".json"):
            held += _held_by_metrics(path, project.metrics(path), recorded)
    return held


def _held_by_set(path: str, attributes: Mapping[str, Any]) -> Held:
    if attributes["kind"] == CLEAN:
        names = {
            "source": "data.source",
            "split.n_val": "data.n_val",
            "seed": "seed",
            "image_size": "data.image_size",
        }
    else:
        prefix = f"attacks.{attributes['attack']}"
        own = {
            key: f"{prefix}.{key.removeprefix('attack.')}"
            for key in attributes
            if key.startswith("attack.")
        }
        names = {
            **own,
            "attack.class": f"{prefix}.attack",
            "batch_size": "generate.batch_size",
            "seed": "seed",
        }
    return [(key, path, attributes.get(name)) for name, key in names.items()]


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
    """Return a value of a checkpoint's provenance, parsed.

    Provenance stores everything except strings and numbers as JSON.
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


def threat_models(project: Project) -> Iterator[Row]:
    """Compare the attacks that models were trained on with the attacks that judge them.

    A row is a warning where no attack on the other side has the same eps.
    """
    trained, judges = _specs(project, "model"), _specs(project, "metrics")
    for ours, others, verb in ((trained, judges, "judged by"), (judges, trained, "trained on")):
        for name, spec in ours.items():
            others_of_class = {
                key: other for key, other in others.items() if other["attack"] == spec["attack"]
            } or others
            counterparts = ", ".join(
                f"{key.rsplit('.', 1)[1]} {_in_words(other)}"
                for key, other in others_of_class.items()
            )
            problem = _mismatch(spec, list(others_of_class.values()))
            yield Row(
                stage="threat models",
                parameter=name,
                value=f"{_in_words(spec)}; {verb} {counterparts or 'nothing'}{problem}",
                where=str(params.FILE),
                verdict="warning" if problem else "ok",
            )


def _specs(project: Project, makes: str) -> dict[str, dict[str, Any]]:
    """Return the attacks among the parameters of stages that make models or metrics, by dotted key.

    For models, only the attacks in a mix are returned.
    """
    specs: dict[str, dict[str, Any]] = {}
    settings = project.settings
    mixed = {name.split("-")[-1] for recipe in settings.finetuned.values() for name in recipe.mix}
    unmixed = {f"attacks.{name}" for name in settings.attacks.keys() - mixed}
    for stage in project.stages.values():
        made = (
            project.checkpoints(stage.outs)
            if makes == "model"
            else [path for path in stage.outs if path.endswith(".json")]
        )
        for key in stage.params:
            prefix = key.removesuffix(".eps")
            if (
                made
                and prefix != key
                and f"{prefix}.attack" in stage.params
                and prefix not in unmixed
            ):
                specs[prefix] = {
                    part: stage.params[f"{prefix}.{part}"] for part in ("attack", "eps")
                }
    return dict(sorted(specs.items()))


def _mismatch(spec: Mapping[str, Any], others: list[dict[str, Any]]) -> str:
    if any(_fraction(spec["eps"]) == _fraction(other["eps"]) for other in others):
        return (
            ""
            if any(_unit(spec["eps"]) == _unit(other["eps"]) for other in others)
            else ": written in other units"
        )
    return ": another eps" if others else ""


def _in_words(spec: Mapping[str, Any]) -> str:
    eps = parse_level(spec["eps"])
    stored = attacks.eps_levels(eps)
    exact = abs(eps * 255 - stored) < 1e-6
    return f"{spec['attack']} eps {spec['eps']}" + (
        "" if exact else f" ({eps * 255:.4g}/255, stored as {stored}/255)"
    )


def _fraction(eps: object) -> float:
    return round(parse_level(eps), 9)


def _unit(eps: object) -> str:
    return "fraction" if isinstance(eps, str) and "/" in eps else "decimal"


def versions(project: Project) -> Iterator[Row]:
    """Compare the library versions that sets and checkpoints record with those installed here."""
    places: dict[tuple[str, str], list[str]] = {}
    for stage in project.stages.values():
        records = {path: project.images(path).attributes for path in project.sets(stage.outs)}
        records |= {
            path: project.checkpoint(path).provenance for path in project.checkpoints(stage.outs)
        }
        for path, attributes in records.items():
            for key, value in attributes.items():
                if key.startswith("versions."):
                    places.setdefault((key.removeprefix("versions."), str(value)), []).append(path)
    for (library, recorded), where in sorted(places.items()):
        installed = _installed(library)
        value = recorded if recorded == installed else f"{recorded}; installed here: {installed}"
        verdict: Verdict = "ok" if recorded == installed else "warning"
        yield Row(
            stage="versions", parameter=library, value=value, where=_listed(where), verdict=verdict
        )


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")


def _plain(value: Any) -> Any:
    """Return a value in a form that can be compared: `8/255` and whole numbers become floats."""
    if isinstance(value, str) and "/" in value:
        try:
            return round(float(Fraction(value)), 12)
        except (ValueError, ZeroDivisionError):
            return value
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(float(value), 12)
    return value


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
