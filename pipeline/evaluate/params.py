"""The section `evaluate` of `params.yaml`: the attacks that a model is judged by."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.attacks.params import Threat
from pipeline.base.values import Count, Level, Name, Section, Seed, Step

RESERVED_THREATS = {
    "worst",
    "apgd",
    "ensemble",
}  # names of results that are made from several attacks


class Ensemble(Section):
    """AutoAttack's attacks, at the eps of the threat that the curves vary: APGD-CE and targeted APGD, or all four.

    `iterations` of each gradient attack, towards each of the `targets` likeliest wrong classes where it is targeted; the standard's are 100
    and 9.
    """

    members: Literal["first_two", "all"]
    n_eval: Count
    iterations: Count
    targets: Annotated[
        int, Field(ge=3, lt=2**31)
    ]  # the loss of targeted APGD compares four classes


class Grid(Section):
    """A hidden grader's possible choices: FGSM at every eps, and PGD at every eps, alpha and number of steps."""

    n_eval: Count
    eps: Annotated[list[Level], Field(min_length=1)]
    alphas: Annotated[list[Step], Field(min_length=1)]
    steps: Annotated[list[Count], Field(min_length=1)]


class Curves(Section):
    """A PGD threat, by name, that is varied by eps, by steps and by restarts; and Square's queries, for each image that it leaves standing.

    The checks that tell a false result are made from these.
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
                f"eps: expected 1, at which every image must fall, as the last value, found {self.eps[-1]}"
            )
        return self


class Evaluate(Section):
    """The attacks that a model is judged by, and on how many images."""

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
                f"threats.{name}: expected another name, {name!r} stands for a result over several attacks"
            )
        varied = self.threats.get(self.curves.threat)
        if varied is None or varied.attack != "PGD":
            of_pgd = (
                ", ".join(name for name, threat in self.threats.items() if threat.attack == "PGD")
                or "there is none"
            )
            raise ValueError(
                f"curves.threat: expected a threat whose attack is PGD ({of_pgd}), found {self.curves.threat!r}"
            )
        if self.curves.restarts <= varied.restarts:
            raise ValueError(
                f"curves.restarts: expected more than that threat's own {varied.restarts}, found {self.curves.restarts}"
            )
        own = varied.parameters["steps"]
        if self.curves.steps[-1] <= own:
            raise ValueError(
                f"curves.steps: expected more than that threat's own {own} as the last value, found {self.curves.steps[-1]}"
            )
        return self


class Evaluated(Evaluate):
    """The whole section: `models` are judged; the stored images made against `stored` give transfer accuracy."""

    models: list[Name]
    stored: Name


class EvaluateParams(Section):
    """What the stage `evaluate@<model>` reads."""

    evaluate: Evaluate
