"""Defines the kinds of values in `params.yaml`: distances, step sizes, names, counts, seeds."""

import difflib
import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

CLEAN = "clean"  # the name of the first model, and of the images that are not attacked
MIXED = "mixed"  # the name of the validation set of clean and stored adversarial images together


def parse_level(value: object) -> float:
    """Return a pixel distance from a number or a fraction such as "8/255".

    The unit is pixels in [0, 1]. Raises ValueError for anything that is not in (0, 1], with the
    hint to divide by 255.
    """
    return _part(value, ", in units of pixels in [0, 1] (write 8/255, not 8)")


def parse_share(value: object) -> float:
    """Return a share from a number, a fraction such as "1/3" or a percentage such as "25 %".

    Raises ValueError for anything that is not in (0, 1].
    """
    return _part(value, " (write 0.25, 1/4 or 25 %)")


def _part(value: object, hint: str) -> float:
    if isinstance(value, bool) or not 0 < (part := number(value)) <= 1:
        raise ValueError(f"expected more than 0 and at most 1{hint}, found {value!r}")
    return part


def number(value: object) -> float:
    """Return a number, a fraction or a percentage; NaN for anything else."""
    try:
        if not isinstance(value, str):
            return float(value)  # type: ignore[arg-type]
        text, percent, rest = value.partition("%")
        above, slash, below = text.partition("/")
        if rest.strip():
            return math.nan
        return float(above) / (float(below) if slash else 1) / (100 if percent else 1)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return math.nan


def parse_step(value: object) -> float | str:
    """Return a step size, which is a level or a share of eps such as "eps/4" or "eps/steps".

    Raises ValueError for anything else.
    """
    if isinstance(value, str) and value.startswith("eps"):
        divisor = value.replace(" ", "").removeprefix("eps/")
        try:
            if divisor == "steps" or 0 < float(divisor) < math.inf:
                return value.replace(" ", "")
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


Share = Annotated[float, BeforeValidator(parse_share)]
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

    It allows no unknown key, no missing key, no conversion between types and no infinities. The
    words that a key allows may be written in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        allowed = {key: _words(field.annotation) for key, field in cls.model_fields.items()}
        return {key: spelled(value, allowed.get(key, ())) for key, value in entry.items()}


def spelled(value: Any, words: Iterable[str]) -> Any:
    """Return the word that a value means in another case; the value itself where there is none."""
    if not isinstance(value, str):
        return value
    return {word.lower(): word for word in words}.get(value.lower(), value)


def suggestion(value: object, words: Iterable[str]) -> str:
    """Return "; did you mean …?" with the word that is most like a value, or nothing."""
    known = {word.lower(): word for word in words}
    word = str(value).lower()
    # fp16 is a format of its own, not a misspelt bf16.
    near = difflib.get_close_matches(word, known, 1) if word != "fp16" else []
    return f"; did you mean {known[near[0]]}?" if near else ""


def _words(annotation: Any) -> tuple[str, ...]:
    """Return the words that a type allows, which are those of a Literal in it."""
    if get_origin(annotation) is Literal:
        return tuple(word for word in get_args(annotation) if isinstance(word, str))
    return tuple(word for part in get_args(annotation) for word in _words(part))


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


# What pydantic's errors expect, in the words of `params.yaml`.
EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "keys with values (name: value)",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt:.15g}",
    "greater_than_equal": "at least {ge:.15g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "invalid_key": "a name",
    "less_than": "less than {lt:.15g}",
    "less_than_equal": "at most {le:.15g}",
    "list_type": "a list ([a, b])",
    "literal_error": "{expected}",
    "model_type": "keys with values (name: value)",
    "none_required": "null",
    "string_pattern_mismatch": "a name of small letters, digits and _ that begins with a letter",
    "string_type": "text",
    "string_unicode": "text of whole characters",
    "too_long": "at most {max_length} entries",
    "too_short": "{min_length} or more entries",
}


def explain(detail: Any, kind: type[Section] | None = None) -> str:
    """Return one line for one pydantic error: dotted key, expected, found.

    `kind` is the section that was checked. Its keys are suggested for a key that is misspelt.
    """
    key = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    match detail["type"]:
        case "missing":
            text = "expected a value, found none"
        case "extra_forbidden":
            known = suggestion(detail["loc"][-1], _keys_beside(kind, detail["loc"]))
            text = f"expected no such key, found one{known or ' (check its spelling)'}"
        case "value_error":
            text = str(detail["ctx"]["error"])
        case found:
            context = detail.get("ctx", {})
            expected = EXPECTED[found].format(**context).replace("'", "")
            words = expected.replace(" or ", ", ").split(", ") if found == "literal_error" else []
            given = detail["input"]
            near = suggestion(given, words) or _small(found, given)
            text = f"expected {expected}, found {reprlib.repr(given)}{near}"
    separator = ": " if text.startswith("expected") else "."
    return f"{key}{separator if key else ''}{text}"


def _small(error: str, found: object) -> str:
    """Return the name to write instead of one with capitals or other letters."""
    if error != "string_pattern_mismatch":
        return ""
    name = re.sub(r"[^a-z0-9]+", "_", str(found).lower()).strip("_")
    return f"; write {name}" if re.fullmatch(r"[a-z][a-z0-9_]*", name) else ""


def _keys_beside(kind: type[Section] | None, where: Sequence[Any]) -> Iterable[str]:
    """Return the keys of the section that holds the last key of a path."""
    for part in where[:-1]:
        if kind is not None and part in kind.model_fields:
            kind = _section(kind.model_fields[part].annotation)
    return kind.model_fields if kind is not None else ()


def _section(annotation: Any) -> type[Section] | None:
    """Return the section in a type such as `dict[str, Section] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inside = (_section(part) for part in get_args(annotation))
    return next((section for section in inside if section is not None), None)
