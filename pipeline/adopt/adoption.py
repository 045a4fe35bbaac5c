"""Turn a file of tensors into a model of this pipeline."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipeline import networks
from pipeline.adopt.params import Adopted
from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.networks import resnet


def adopted(
    recipe: Adopted, path: Path, class_names: Sequence[str], where: str
) -> networks.Checkpoint:
    """Return the network in a file as a checkpoint, for images in [0, 1].

    Its outputs are taken to be the classes of the data in their order. Raises InputError as
    `tensors` does.
    """
    taken = tensors(recipe, path, len(class_names), where)
    network = resnet.stock(recipe.architecture, len(class_names))
    return networks.Checkpoint(
        architecture=recipe.architecture,
        class_names=list(class_names),
        state_dict={**network.state_dict(), **taken},
        provenance={"file": recipe.file, "file.sha256": files.sha256(path)},
    )


def tensors(recipe: Adopted, path: Path, n_classes: int, where: str) -> dict[str, Tensor]:
    """Return the tensors in a file by name.

    A normalisation in front of the network is folded into it if that is exact. Raises InputError,
    which begins with `where`, for another network, for another number of classes and for a
    normalisation that cannot be folded.
    """
    taken = networks.read_network(
        path,
        recipe.architecture,
        where,
        keep_head=True,
        ignore_normalisation=False,
        remedy="a model is judged on images in [0, 1], so train it further without the "
        "normalisation (model.weights, with model.ignore_normalisation: true)",
    )
    if (n_outputs := len(taken["fc.bias"])) != n_classes:
        raise InputError(
            f"{where}: {path}: expected a last layer for the {n_classes} classes of the "
            f"data, found one for {n_outputs}"
        )
    return taken
