"""What an audit holds against what: `dvc.lock` against `dvc.yaml`, the disk, `params.yaml` and the words that artefacts carry.

Nothing is recomputed from images here: `sets.py` and `trained.py` do that. Every check takes a project and yields rows.
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
Held = list[
    tuple[str, str, Any]
]  # dotted key of params.yaml, where else it is recorded, the value there


def stage_names(project: Project) -> Iterator[Row]:
    """Every stage that dvc.yaml declares was run, and dvc.lock keeps none of another configuration."""
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
    """The recorded command, dependencies and outputs are the ones that dvc.yaml and params.yaml give."""
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
    """What the stage read is what an earlier one wrote; both are what lies on the disk. Code is counted, and named where it differs."""
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
    """What is wrong with an input that another stage did not write as it was read."""
    for name, entry in project.stages.items():
        if entry.outs.get(path, md5) != md5:
            return f"read with MD5 {md5[:12]}, but {name} wrote {entry.outs[path][:12]}"
    return ""


def parameters(project: Project, stage: str) -> Iterator[Row]:
    """Every parameter of a stage has one value: in dvc.lock, in params.yaml, and in what the stage made."""
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
    """The parameters that a stage's image sets, checkpoints and metrics carry themselves."""
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
    """A value of a checkpoint's provenance, which holds all but words and numbers as JSON."""
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
    """The attacks trained on and the attacks judged by, side by side; a warning where no attack on the other side has the same eps."""
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
    """The attacks among the parameters of the stages that make models (those in the mix) or metrics, by dotted key."""
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
    """The library versions that sets and checkpoints record, against those installed here."""
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
    """A value in the one form in which it can be compared: `8/255` as a number, whole numbers as numbers."""
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
