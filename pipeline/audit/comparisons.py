"""Compare what a run trained on with what it is judged by, and its library versions with these."""

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import attacks
from pipeline.audit import lineage
from pipeline.audit.project import Project, Row, Verdict
from pipeline.base import params
from pipeline.base.values import parse_level


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
            is_warning = problem or not others
            yield Row(
                stage="threat models",
                parameter=name,
                value=f"{_in_words(spec)}; {verb} {counterparts or 'nothing'}{problem}",
                where=str(params.FILE),
                verdict="warning" if is_warning else "ok",
            )


def unjudged_sets(project: Project) -> Iterator[Row]:
    """Warn of adversarial sets that models are trained on and that no evaluation reads."""
    judges, trainings = (
        {
            name: stage.deps
            for name, stage in project.stages.items()
            if any(out.endswith(ending) for out in stage.outs)
        }
        for ending in (".json", ".safetensors")
    )
    judged = {
        project.images(path).digest
        for deps in judges.values()
        for path in project.adversarial(deps).values()
    }
    trained: dict[str, list[str]] = {}
    for stage, deps in trainings.items():
        (model,) = (Path(out).stem for out in project.checkpoints(project.stages[stage].outs))
        for name, path in project.adversarial(deps).items():
            if name in project.settings.mix_of(model):
                trained.setdefault(path, []).append(model)
    for path, models in sorted(trained.items()):
        is_judged = project.images(path).digest in judged
        trainees = f"trained on by {', '.join(models)}"
        yield Row(
            stage="threat models",
            parameter=path,
            value=trainees if is_judged else f"{trainees}; judged by no evaluation",
            where=lineage.RECORDED,
            verdict="ok" if is_judged else "warning",
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
