"""Defines the section `export` of `params.yaml`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline.base.values import Level, Name, Section

AUTO = "auto"
Weight = Annotated[float, Field(ge=0, le=1000)]


class Score(Section):
    """The rule by which models are ranked.

    A score is the weighted mean of clean accuracy and of the accuracies under the worst FGSM and
    the worst PGD of `evaluate.grid`, among those whose eps is from the first to the last of `eps`;
    None takes all.
    """

    clean: Weight = 1.0
    fgsm: Weight = 1.0
    pgd: Weight = 1.0
    eps: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {"clean": self.clean, "fgsm": self.fgsm, "pgd": self.pgd}

    def covers(self, eps: float) -> bool:
        """Return whether an eps in [0, 1] is in the range."""
        return self.eps is None or self.eps[0] - 1e-6 <= eps <= self.eps[1] + 1e-6

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("expected a weight above 0, found none")
        if self.eps is not None and self.eps[0] > self.eps[1]:
            raise ValueError(f"eps: expected the smaller one first, found {self.eps}")
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
