"""Read what the evaluations and trainings wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.audit.project import Project
from pipeline.base import files
from pipeline.base.values import MIXED
from pipeline.export import ranking

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The results of a project's judged models.

    Everything is read on first use. Raises InputError for what is missing or unreadable.
    """

    project: Project

    @property
    def models(self) -> list[str]:
        """Return the judged models, in the order of `evaluate.models`."""
        return list(self.project.settings.evaluate.models)

    @cached_property
    def ranked(self) -> list[ranking.Ranked]:
        """Return the models by the rule of `export.score`; none without a grid."""
        grids = ranking.read_grids(self.project.root / "plots", self.models)
        return ranking.rank(self.project.settings.export, self.metrics, grids)

    @cached_property
    def submitted(self) -> str:
        return ranking.chosen(self.project.settings.export, self.ranked)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return {model: self.project.metrics(f"metrics/{model}.json") for model in self.models}

    @property
    def threat(self) -> str:
        """Return the threat whose curves were drawn."""
        return self.project.settings.evaluate.curves.threat

    def accuracies(self, model: str) -> list[tuple[str, str, Mapping[str, Any]]]:
        """Return a model's accuracies: kind (clean, transfer or robust), name, and result.

        A star marks the name of a stored set that was made against the model itself.
        """
        found = self.metrics[model]
        stored = [
            ("transfer", f"{name}*" if result["made_against_this_model"] else name, result)
            for name, result in found["transfer"].items()
            if name != MIXED
        ]
        return [
            ("clean", "clean", found["clean"]),
            *stored,
            *(("robust", name, result) for name, result in found["robust"].items()),
        ]

    def rows(self, model: str, name: str) -> list[Row]:
        """Return the rows of `plots/<model>/<name>.csv`."""
        return files.read_csv(self.project.root / "plots" / model / f"{name}.csv")

    def trained(self) -> list[str]:
        """Return the models that were trained here, in the order of `evaluate.models`."""
        return [model for model in self.models if model not in self.project.settings.adopted]

    def provenance(self, model: str) -> dict[str, Any]:
        return self.project.checkpoint(path_of(model)).provenance


def path_of(model: str) -> str:
    """Return the path of a model's checkpoint in the project."""
    return str(Path("models", f"{model}.safetensors"))
