"""Check models that were trained elsewhere against the files that they came from."""

from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline.adopt import adoption
from pipeline.audit.project import Project, Row, judged, matches
from pipeline.base import files


def adopted_model(project: Project, path: str) -> Iterator[Row]:
    """Check that a checkpoint holds the tensors of the file that its stage read."""
    checkpoint, name = project.checkpoint(path), Path(path).stem
    recipe = project.settings.adopted[name]
    file = project.root / recipe.file
    recorded, found = checkpoint.provenance.get("file.sha256"), files.sha256(file)
    yield matches(f"made from {recipe.file}", recorded, found, path)
    wanted = adoption.adopted(recipe, file, project.class_names, f"adopted.{name}.file").state_dict
    differing = [
        key for key, tensor in wanted.items() if not torch.equal(tensor, checkpoint.state_dict[key])
    ]
    yield judged(
        "tensors",
        f"{len(differing)} differ, such as {differing[0]}" if differing else "",
        f"{len(wanted)}, those of the file",
        f"{path}, {recipe.file}",
    )
