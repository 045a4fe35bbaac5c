"""Defines the section `export` of `params.yaml`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.base.values import Level, Name, Section

AUTO = "auto"
Weight = Annotated[float, Field(ge=0, le=1000)]


class Score(Section):
    """The rule by which models are ranked.

    A score is the weighted mean of clean accuracy and of the accuracies under the worst FGSM and
    the worst PGD of `evaluate.grid`, among those whose eps is at most `max_eps`; None takes all.
    """

    clean: Weight = 1.0
    fgsm: Weight = 1.0
    pgd: Weight = 1.0
    max_eps: Level | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {"clean": self.clean, "fgsm": self.fgsm, "pgd": self.pgd}

    def covers(self, eps: float) -> bool:
        """Return whether a guess at an eps in [0, 1] counts."""
        return self.max_eps is None or eps <= self.max_eps + 1e-6

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("expected a weight above 0, found none")
        return self


class Export(Section):
    """Which model is submitted.

    `model` is its name, or `auto` for the best one by `score`. `min_clean` is the clean accuracy in
    [0, 1] that it must exceed to be submitted without a warning. `auto` takes a model below it only
    where all are.
    """

    model: Name
    min_clean: Annotated[float, Field(ge=0, lt=1)]
    score: Score = Score()


class JudgedModels(Section):
    """The names of the judged models, which is all that `export` reads of `evaluate`."""

    models: list[Name]


class ExportParams(Section):
    """The params that the stage `export` reads."""

    export: Export
    evaluate: JudgedModels
