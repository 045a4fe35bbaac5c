"""Check what was exported: the submission, the names of its classes, and its card.

Every check takes a project and yields rows.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.audit.project import Project, Row, judged
from pipeline.base import files
from pipeline.base.errors import InputError, discarding
from pipeline.export import card, ranking, submission
from pipeline.networks import torch_files


def state_dict(project: Project, path: str) -> Iterator[Row]:
    """Check that the submission file holds exactly the tensors of the model to export."""
    model = f"models/{_chosen(project)[0]}.safetensors"
    wanted = project.checkpoint(model).state_dict
    try:
        found = torch.load(project.root / path, map_location="cpu", weights_only=True)
        differing = sorted(
            name
            for name in wanted.keys() | found.keys()
            if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
        )
    except torch_files.UNREADABLE as error:
        raise InputError(f"{path}: not a state_dict; {discarding(Path(path))}") from error
    such = f", such as {differing[0]}" if differing else ""
    yield judged(
        "submission",
        such and f"differs from {model} in {len(differing)} tensors{such}",
        f"SHA-256 {project.sha256(path)}, the tensors of {model}",
        f"{path}, {model}",
    )


def class_names(project: Project, path: str) -> Iterator[Row]:
    """Check the name of every output of the submission."""
    names = project.images(project.clean).class_names
    is_same = files.read_csv(project.root / path) == submission.class_rows(names)
    fault = "" if is_same else f"not the {len(names)} classes of {project.clean} in their order"
    yield judged("class names", fault, f"{len(names)} classes", f"{path}, {project.clean}")


def model_card(project: Project, path: str) -> Iterator[Row]:
    """Write the card again, and compare it."""
    name, among = _chosen(project)
    checkpoint = project.checkpoint(f"models/{name}.safetensors")
    origin = card.origin(
        checkpoint, lambda parent: project.checkpoint(f"models/{parent}.safetensors")
    )
    clean, metrics = project.images(project.clean), project.metrics(f"metrics/{name}.json")
    wanted = card.text(name, checkpoint, origin, metrics, clean, among)
    is_same = (project.root / path).read_text(encoding="utf-8") == wanted
    fault = "" if is_same else "not what the model, its metrics and its images give"
    yield judged("model card", fault, f"of {name}, as written again", path)


def _chosen(project: Project) -> tuple[str, int]:
    """Return the model to export, and from how many the judged images chose it.

    `export.model` names that model, or the ranking does, which is made again.
    """
    judged_models, rule = project.settings.evaluate.models, project.settings.export
    metrics = {name: project.metrics(f"metrics/{name}.json") for name in judged_models}
    grids = ranking.read_grids(project.root / "plots", judged_models)
    ranked = ranking.rank(rule, metrics, grids)
    return ranking.chosen(rule, ranked), ranking.n_candidates(rule, ranked)
