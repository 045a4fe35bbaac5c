"""Open a project folder after a run, for an audit, and define the rows of an audit.

An audit reads the folder's params, stages, image sets and models.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline import document, networks
from pipeline.audit import lineage
from pipeline.base import files, params, store
from pipeline.base.errors import InputError
from pipeline.base.values import CLEAN
from pipeline.networks.torchvision_models import models

LAST = {"audit", "report"}  # the stages that run last; an audit looks at what was there before
Verdict = Literal["ok", "not checked", "warning", "not comparable", "FAILED"]


@dataclass(frozen=True)
class Row:
    """One line of an audit: a value, where it is recorded, and the verdict on it.

    `number` is the value of a measure, and None for anything else. A row that a check yields gets
    its stage from the audit, unless it has one.
    """

    parameter: str
    value: str
    where: str
    verdict: Verdict
    number: float | None = None
    stage: str = ""


def judged(
    parameter: str, problem: str, value: str, where: str, number: float | None = None
) -> Row:
    """Return a row that is ok with its value, or FAILED with its problem."""
    return Row(parameter, problem or value, where, "FAILED" if problem else "ok", number)


def matches(parameter: str, recorded: object, found: object, where: str) -> Row:
    """Return a row that is ok if the SHA-256 that is recorded is the one that was found."""
    problem = "" if recorded == found else f"recorded {recorded}, is {found}"
    return judged(parameter, problem, f"SHA-256 {found}", where)


def differing(
    recorded: Mapping[str, Any], wanted: Mapping[str, Any], verb: str = "is"
) -> list[str]:
    """Return in words which of the wanted values are recorded differently."""
    return [
        f"{key}: recorded {recorded.get(key)}, {verb} {value}"
        for key, value in wanted.items()
        if recorded.get(key) != value
    ]


@dataclass(frozen=True)
class Project:
    """A project folder. Everything except images is read on first use and kept.

    Every check reads images again. Attacks and networks run on `device`. Raises InputError for what
    is missing or unreadable.
    """

    root: Path
    device: torch.device
    _opened: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def settings(self) -> document.Document:
        return document.load(self.root / params.FILE)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Return params.yaml as it is written."""
        return params.read(self.root / params.FILE)

    @cached_property
    def declared(self) -> dict[str, lineage.Declared]:
        return lineage.declared(self.root)

    @cached_property
    def recorded(self) -> dict[str, lineage.Recorded]:
        return lineage.recorded(self.root)

    @cached_property
    def stages(self) -> dict[str, lineage.Recorded]:
        """Return the stages that were run and are still declared, in the order of dvc.lock.

        The audit itself and the report, which shows its verdict, are left out.
        """
        return {
            name: stage
            for name, stage in self.recorded.items()
            if name in self.declared and name not in LAST
        }

    def made(self, path: str) -> lineage.Recorded:
        """Return the record of the stage that wrote an output."""
        return next(stage for stage in self.stages.values() if path in stage.outs)

    def md5(self, path: str) -> str:
        # abspath, for DVC resolves no links
        whole, root = (Path(os.path.abspath(each)) for each in (self.root / path, self.root))  # noqa: PTH100
        inside = whole.is_relative_to(root)
        return str(self._once("md5", path, partial(lineage.md5, inside=inside)))

    def sha256(self, path: str) -> str:
        return str(self._once("sha256", path, files.sha256))

    def images(self, path: str) -> store.ImageSet:
        found: store.ImageSet = self._once("images", path, store.ImageSet)
        return found

    def checkpoint(self, path: str) -> networks.Checkpoint:
        """Return a model of this project; its classes are those of the clean set."""
        architecture = self.settings.architecture_of(Path(path).stem)
        found: networks.Checkpoint = self._once(
            "checkpoint",
            path,
            partial(networks.load, architecture=architecture, class_names=self.class_names),
        )
        return found

    def network(self, path: str) -> models.ResNet:
        """Return a checkpoint's network on this project's device, in evaluation mode."""
        found: models.ResNet = self._once(
            "network", path, lambda _: self.checkpoint(path).network().to(self.device)
        )
        return found

    def metrics(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._once("metrics", path, files.read_json)
        return found

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return self.images(self.clean).class_names

    @cached_property
    def clean(self) -> str:
        """Return the path of the clean image set."""
        for stage in self.stages.values():
            for path in self.sets(stage.outs):
                if self.images(path).attributes["kind"] == CLEAN:
                    return path
        raise InputError(
            f"{self.root / lineage.RECORDED}: names no clean image set; `dvc repro` makes it"
        )

    def sets(self, paths: Iterable[str]) -> list[str]:
        """Return the recorded paths that are folders of shards."""
        return [path for path in paths if path in self.below(path)]

    def below(self, path: str) -> list[str]:
        """Return the recorded path if it is an image set, else the image sets in that folder."""
        folders = sorted({shard.parent for shard in (self.root / path).rglob("*.h5")})
        found = [folder.relative_to(self.root) for folder in folders]
        return [
            str(folder)
            for folder in found
            if not any(part.startswith(".") for part in folder.parts)
        ]

    def adversarial(self, paths: dict[str, str]) -> dict[str, str]:
        """Return the adversarial sets among the recorded paths, by their names in a mix.

        A set directly below a path is named after its attack. A deeper one is named after its model
        too. Raises InputError for two sets of one name.
        """
        found: dict[str, str] = {}
        for above, path in ((folder, below) for folder in paths for below in self.below(folder)):
            attributes = self.images(path).attributes
            if attributes["kind"] == "adversarial":
                deep = len(Path(path).relative_to(above).parts) > 1
                name = (
                    f"{Path(self.attacked(path)).stem}-{attributes['attack']}"
                    if deep
                    else str(attributes["attack"])
                )
                if name in found:
                    raise InputError(
                        f"{path}: made by {attributes['attack']}, as {found[name]} is; "
                        "run `dvc repro`"
                    )
                found[name] = path
        return found

    def attacked(self, path: str) -> str:
        """Return the model that an adversarial set was made against.

        The stage that wrote the set records that model. Raises InputError for a set that no stage
        wrote.
        """
        writers = [stage for stage in self.stages.values() if path in stage.outs]
        if not writers:
            raise InputError(f"{path}: no stage in {lineage.RECORDED} wrote it; run `dvc repro`")
        (model,) = self.checkpoints(writers[0].deps)
        return model

    @staticmethod
    def checkpoints(paths: Iterable[str]) -> list[str]:
        """Return the checkpoints among the recorded paths."""
        return [path for path in paths if path.endswith(".safetensors")]

    def _once(self, kind: str, path: str, read: Any) -> Any:
        if (kind, path) not in self._opened:
            self._opened[kind, path] = read(self.root / path)
        return self._opened[kind, path]
