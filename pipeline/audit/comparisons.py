"""Compare what a run trained on with what it is judged by, and its library versions with these."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import attacks
from pipeline.audit import lineage
from pipeline.audit.project import Project, Row, Verdict
from pipeline.base import params
from pipeline.base.values import parse_level

# The dotted key of an attack's eps. Of one that is drawn from a distribution, that of its bounds.
EPS = re.compile(r"(?P<of>.+)\.eps(\.uniform|\.within)?")
ADVERSARY = ".adversary"  # ends the dotted key of an attack of online training
UNITS = ": written in other units"


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
                name,
                f"{_in_words(spec)}; {verb} {counterparts or 'nothing'}{problem}",
                str(params.FILE),
                "warning" if is_warning else "ok",
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
            path,
            trainees if is_judged else f"{trainees}; judged by no evaluation",
            lineage.RECORDED,
            "ok" if is_judged else "warning",
        )


def _specs(project: Project, makes: str) -> dict[str, dict[str, Any]]:
    """Return the attacks among the parameters of stages that make models or metrics, by dotted key.

    For models, only the attacks in a mix are returned, and those of online training. An eps that is
    drawn is a list of its bounds.
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
        for key, eps in stage.params.items():
            found = EPS.fullmatch(key)
            if made and found and found["of"] not in unmixed:
                attack = _attack(stage.params, found["of"])
                if attack:
                    specs[found["of"].removesuffix(ADVERSARY)] = {"attack": attack, "eps": eps}
    return dict(sorted(specs.items()))


def _attack(values: Mapping[str, Any], of: str) -> str:
    """Return the attack that dotted keys beginning with `of` describe, or an empty text."""
    if not of.endswith(ADVERSARY):
        return str(values.get(f"{of}.attack", ""))
    if values[f"{of}.steps"] > 1:
        return "PGD"
    return "FFGSM" if values[f"{of}.random_start"] else "FGSM"


def _mismatch(spec: Mapping[str, Any], others: list[dict[str, Any]]) -> str:
    low, high = _bounds(spec["eps"])
    same = [
        other
        for other in others
        if max(low, _bounds(other["eps"])[0]) <= min(high, _bounds(other["eps"])[1])
    ]
    if same:
        return "" if any(_unit(spec["eps"]) == _unit(other["eps"]) for other in same) else UNITS
    return ": another eps" if others else ""


def _in_words(spec: Mapping[str, Any]) -> str:
    if isinstance(spec["eps"], list):
        return f"{spec['attack']} eps {' to '.join(map(str, spec['eps']))}"
    eps = parse_level(spec["eps"])
    stored = attacks.eps_levels(eps)
    exact = abs(eps * 255 - stored) < 1e-6
    return f"{spec['attack']} eps {spec['eps']}" + (
        "" if exact else f" ({eps * 255:.4g}/255, stored as {stored}/255)"
    )


def _bounds(eps: object) -> tuple[float, float]:
    """Return the least and the greatest of what `eps` may be."""
    levels = [round(parse_level(one), 9) for one in (eps if isinstance(eps, list) else [eps])]
    return min(levels), max(levels)


def _unit(eps: object) -> str:
    first = eps[0] if isinstance(eps, list) else eps
    return "fraction" if isinstance(first, str) and "/" in first else "decimal"


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
        yield Row(library, value, _listed(where), verdict)


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
