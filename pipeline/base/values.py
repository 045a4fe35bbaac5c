"""Defines the kinds of values in `params.yaml`: distances, step sizes, names, counts, seeds."""

import math
import reprlib
from fractions import Fraction
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

CLEAN = "clean"  # the name of the first model, and of the images that are not attacked
MIXED = "mixed"  # the name of the validation set of clean and stored adversarial images together


def parse_level(value: object) -> float:
    """Return a pixel distance from a number or a fraction such as "8/255".

    The unit is pixels in [0, 1]. Raises ValueError for anything that is not in (0, 1], with the
    hint to divide by 255.
    """
    try:  # Fraction would compute "1e-999999999" exactly, which takes hours
        level = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        level = float("nan")
    if isinstance(value, bool) or not 0 < level <= 1:
        raise ValueError(
            "expected more than 0 and at most 1, in units of pixels in [0, 1] "
            f"(write 8/255, not 8), found {value!r}"
        )
    return level


def parse_step(value: object) -> float | str:
    """Return a step size, which is a level or a share of eps such as "eps/4" or "eps/steps".

    Raises ValueError for anything else.
    """
    if isinstance(value, str) and value.startswith("eps"):
        divisor = value.removeprefix("eps/")
        try:
            if divisor == "steps" or 0 < float(divisor) < math.inf:
                return value
        except ValueError:
            pass
        raise ValueError(
            "expected a level (2/255), eps/steps, or eps divided by a number "
            f"(eps/4; eps/1 is all of it), found {value!r}"
        )
    return parse_level(value)


def step_size(step: float | str, eps: float, steps: int) -> float:
    """Return the step size that `parse_step` read, for one eps and number of steps.

    The unit is pixels in [0, 1].
    """
    if not isinstance(step, str):
        return step
    divisor = step.removeprefix("eps/")
    return eps / (steps if divisor == "steps" else float(divisor))


Level = Annotated[float, BeforeValidator(parse_level)]
Step = Annotated[float | str, BeforeValidator(parse_step)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# A part of a mix: an attack, or <model>-<attack>.
Part = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(-[a-z][a-z0-9_]*)?$")]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Precision = Literal["auto", "fp32", "bf16"]


class Section(BaseModel):
    """A part of `params.yaml`.

    It allows no unknown key, no missing key, no conversion between types and no infinities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Spread(Section):
    """A distribution of eps.

    It is `{uniform: [low, high]}`, or `{normal: [mean, std], within: [low, high]}`, which is cut
    off at both ends.
    """

    uniform: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None
    normal: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None
    within: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest eps."""
        low, high = self.within or self.uniform or (0.0, 0.0)
        return low, high

    def quantile(self, share: float) -> float:
        """Return the eps that this share of all draws stays below.

        If `share` is a uniform random number in [0, 1), the result is a draw.
        """
        low, high = self.bounds
        if self.normal is None:
            return low + (high - low) * share
        normal = NormalDist(*self.normal)
        inside = normal.cdf(low) + (normal.cdf(high) - normal.cdf(low)) * share
        return min(max(normal.inv_cdf(min(max(inside, 1e-12), 1 - 1e-12)), low), high)

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if (self.normal is None) != (self.within is None) or (self.normal is None) == (
            self.uniform is None
        ):
            raise ValueError(
                "expected {uniform: [low, high]} or {normal: [mean, std], within: [low, high]}"
            )
        low, high = self.bounds
        if low > high:
            raise ValueError(f"expected the lower bound first, found [{low}, {high}]")
        return self


def parse_eps(value: object) -> object:
    """Return one eps for all images, or the distribution of each image's own eps."""
    if not isinstance(value, dict):
        return parse_level(value)
    try:
        return Spread.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(explain(detail) for detail in error.errors()[:1])) from error


Eps = Annotated[float | Spread, BeforeValidator(parse_eps)]


def greatest(eps: float | Spread) -> float:
    """Return the eps that no image's own eps exceeds."""
    return eps.bounds[1] if isinstance(eps, Spread) else eps


def explain(detail: Any) -> str:
    """Return one line for one pydantic error: dotted key, expected, found."""
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    match detail["type"]:
        case "missing":
            text = "expected a value, found none"
        case "extra_forbidden":
            text = "expected no such key, found one (check its spelling)"
        case "value_error":
            text = str(detail["ctx"]["error"])
        case _:
            expected = detail["msg"].removeprefix("Input should be ")
            text = (
                f"expected {expected[0].lower()}{expected[1:]}, "
                f"found {reprlib.repr(detail['input'])}"
            )
    separator = ": " if text.startswith("expected") else "."
    return f"{key}{separator if key else ''}{text}"
