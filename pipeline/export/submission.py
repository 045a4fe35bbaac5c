"""Writes the submitted file, which is a plain state_dict of a stock torchvision ResNet.

The file is first tried as a grader would try it before accepting it.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline import networks
from pipeline.base import files
from pipeline.base.errors import InputError
from pipeline.base.store import Block
from pipeline.networks.torchvision_models import models


def export(checkpoint: networks.Checkpoint, val: Block, out: Path) -> float:
    """Write the checkpoint's tensors to `out`, and return their clean accuracy on `val`.

    The accuracy comes from repeating what a grader does with the file. The network takes raw images
    in [0, 1], so nothing is normalised outside it. Raises InputError, and writes nothing, for a
    model that holds numbers that are not finite.
    """
    for name, tensor in checkpoint.state_dict.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"export: {name} holds numbers that are not finite; "
                "train the model again with a lower lr"
            )
    buffer = io.BytesIO()
    torch.save(
        {name: tensor.contiguous() for name, tensor in checkpoint.state_dict.items()}, buffer
    )
    accuracy = graded(
        io.BytesIO(buffer.getvalue()), checkpoint.architecture, val, len(checkpoint.class_names)
    )
    files.write_bytes(out, buffer.getvalue())
    return accuracy


def write_classes(class_names: Sequence[str], out: Path) -> None:
    """Write the class of each of the network's outputs.

    The file is a CSV with the columns `output` and `class_name`.
    """
    files.write_csv(out, class_rows(class_names))


def class_rows(class_names: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of that CSV."""
    return [{"output": str(number), "class_name": name} for number, name in enumerate(class_names)]


def graded(file: io.BytesIO, architecture: str, val: Block, n_classes: int) -> float:
    """Do what a grader does with the file, and return the clean accuracy on `val`."""
    network = models.get_model(architecture, weights=None)
    network.fc = torch.nn.Linear(network.fc.in_features, n_classes)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True), strict=True)
    network.eval()
    return networks.accuracy(network, val.images, val.labels)


def expect_judged(path: Path, metrics: Mapping[str, Any], sha256: str) -> None:
    """Raise InputError, which names `path`, for metrics of another model than that one."""
    if metrics["sha256"] != sha256:
        raise InputError(f"{path}: judges another model; `dvc repro` makes it again")


def expectation(metrics: Mapping[str, Any]) -> list[str]:
    """Return the scores that the judged model is expected to reach, one per line.

    They are clean and robust accuracies, and the evidence for the latter. Transfer accuracy has no
    place here.
    """
    results = named(metrics)
    width = max(map(len, results))
    return [
        *(f"  {name:>{width}}: {_in_words(result)}" for name, result in results.items()),
        f"  evidence for the robust accuracy: {metrics['diagnostics']['verdict']}",
    ]


def named(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a model's clean and robust accuracies by what they are, with eps and steps."""
    robust = metrics["robust"].items()
    return {
        "clean": metrics["clean"],
        **{f"robust, {_named(name, result)}": result for name, result in robust},
    }


def _named(name: str, result: Mapping[str, Any]) -> str:
    """Return an attack's name with its eps and steps."""
    eps = f", eps {255 * result['eps']:.4g}/255" if "eps" in result else ""
    steps = f", {result['steps']} steps" if "steps" in result else ""
    return f"{name}{eps}{steps}"


def _in_words(result: Mapping[str, Any]) -> str:
    low, high = 100 * result["low95"], 100 * result["high95"]
    return f"{100 * result['accuracy']:5.1f} %  (95 %: {low:.1f} to {high:.1f}, n = {result['n']})"
