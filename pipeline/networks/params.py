"""Define the section `model` of `params.yaml`: the network to train, and its first weights."""

import posixpath
import shlex
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import field_validator, model_validator

from pipeline.base.values import Section, spelled

# The folder of starting weights. DVC watches all of it, because dvc.yaml cannot name a file that
# `weights: null` leaves out.
PRETRAINED = PurePosixPath("models/pretrained")
TORCHVISION = ("IMAGENET1K_V1", "IMAGENET1K_V2")  # the second for resnet50 only
ENDINGS = (".pth", ".pt", ".ckpt", ".pth.tar", ".safetensors")
Architecture = Literal["resnet18", "resnet34", "resnet50"]


class Model(Section):
    """The network to train, and the weights that it starts from.

    `weights` are torchvision's by name, a state_dict in a file, or None for a start from scratch.
    `keep_head` keeps the last layer of these weights too. `ignore_normalisation` takes weights that
    were trained with a normalisation in front of the network as they are.
    """

    architecture: Architecture
    weights: str | None
    keep_head: bool = False
    ignore_normalisation: bool = False

    @property
    def file(self) -> Path | None:
        """Return the file in PRETRAINED that holds the weights.

        It is None for torchvision's weights, and for a start from scratch.
        """
        return Path(self.weights) if self.weights is not None and "/" in self.weights else None

    @field_validator("weights", mode="before")
    @classmethod
    def _spell_weights(cls, value: object) -> object:
        return spelled(value, TORCHVISION)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        names = TORCHVISION if self.architecture == "resnet50" else TORCHVISION[:1]
        if self.weights is None or self.weights in names:
            return self
        path = PurePosixPath(posixpath.normpath(self.weights))
        inside = PRETRAINED in path.parents and _has_ending(path)
        if not inside or str(path) != self.weights:
            remedy = f"write {path}" if inside else f"mv {shlex.quote(self.weights)} {PRETRAINED}/"
            raise ValueError(
                f"weights: expected {', '.join(names)}, null or, for {self.architecture},"
                f" a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file in {PRETRAINED}/, which DVC"
                f" watches, found {self.weights!r}"
                f"{f' ({remedy})' if _has_ending(PurePosixPath(self.weights)) else ''}"
            )
        return self

    @model_validator(mode="after")
    def _check_head(self) -> Self:
        if self.keep_head and self.weights is None:
            raise ValueError(
                "keep_head: expected false with weights: null, which have no last layer to keep"
            )
        return self


def _has_ending(path: PurePosixPath) -> bool:
    return path.name.endswith(ENDINGS) and path.name not in ENDINGS
