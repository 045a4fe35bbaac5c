"""Define the section `evaluate` of `params.yaml`: the attacks that a model is judged by."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.attacks.params import Threat
from pipeline.base.values import Count, Level, Name, Section, Seed, Step

# Names of results that are made from several attacks.
RESERVED_THREATS = {"worst", "apgd", "ensemble"}


class Ensemble(Section):
    """AutoAttack's attacks, at the eps of the threat that the curves vary.

    `members` are APGD-CE and targeted APGD, or all four attacks. Each gradient attack takes
    `iterations`. A targeted one takes them towards each of the `targets` likeliest wrong classes.
    The standard's values are 100 iterations and 9 targets.
    """

    members: Literal["first_two", "all"]
    n_eval: Count
    iterations: Count
    # The loss of targeted APGD compares four classes.
    targets: Annotated[int, Field(ge=3, lt=2**31)]


class Grid(Section):
    """The attacks that a hidden grader might choose.

    These are FGSM at every eps, and PGD at every eps, alpha and number of steps.
    """

    n_eval: Count
    eps: Annotated[list[Level], Field(min_length=1)]
    alphas: Annotated[list[Step], Field(min_length=1)]
    steps: Annotated[list[Count], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_repeated(self) -> Self:
        for key, values in (("eps", self.eps), ("alphas", self.alphas), ("steps", self.steps)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: expected each value once, found {values}")
        return self


class Curves(Section):
    """The variations of one PGD threat by eps, by steps and by restarts.

    `threat` is its name. `queries` are Square's, for each image that the threat leaves standing.
    The checks that detect a false result are made from these curves.
    """

    threat: Name
    n_eval: Count
    eps: Annotated[list[Level], Field(min_length=1)]
    steps: Annotated[list[Count], Field(min_length=1)]
    restarts: Annotated[int, Field(ge=2, lt=2**31)]
    queries: Count

    @model_validator(mode="after")
    def _check_orders(self) -> Self:
        for key, values in (("eps", self.eps), ("steps", self.steps)):
            if values != sorted(set(values)):
                raise ValueError(f"{key}: expected rising values, found {values}")
        if self.eps[-1] != 1:
            raise ValueError(
                "eps: expected 1, at which every image must fall, as the last value,"
                f" found {self.eps[-1]}"
            )
        return self


class Evaluate(Section):
    """The attacks that a model is judged by, and the number of images for each."""

    n_eval: Count | None
    seed: Seed
    threats: Annotated[dict[Name, Threat], Field(min_length=1)]
    ensemble: Ensemble | None
    grid: Grid | None
    curves: Curves

    @model_validator(mode="after")
    def _check_threats(self) -> Self:
        for name in self.threats.keys() & RESERVED_THREATS:
            raise ValueError(
                f"threats.{name}: expected another name,"
                f" {name!r} stands for a result over several attacks"
            )
        varied = self.threats.get(self.curves.threat)
        if varied is None or varied.attack != "PGD":
            of_pgd = (
                ", ".join(name for name, threat in self.threats.items() if threat.attack == "PGD")
                or "there is none"
            )
            raise ValueError(
                f"curves.threat: expected a threat whose attack is PGD ({of_pgd}),"
                f" found {self.curves.threat!r}"
            )
        if self.curves.restarts <= varied.restarts:
            raise ValueError(
                f"curves.restarts: expected more than that threat's own {varied.restarts},"
                f" found {self.curves.restarts}"
            )
        own = varied.parameters["steps"]
        if self.curves.steps[-1] <= own:
            raise ValueError(
                f"curves.steps: expected more than that threat's own {own} as the last value,"
                f" found {self.curves.steps[-1]}"
            )
        return self


class Evaluated(Evaluate):
    """The whole section, with the models to judge.

    `models` are judged. The stored images made against the model `stored` give transfer accuracy.
    """

    models: list[Name]
    stored: Name


class EvaluateParams(Section):
    """The parameters that the stage `evaluate@<model>` reads."""

    evaluate: Evaluate
