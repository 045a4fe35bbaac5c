"""`params.yaml`, read once, checked whole, and frozen.

Every key is required: `params.yaml` is the single truth, so nothing is filled in behind its back. This module imports no torch: a
mistake in the file is reported in a fraction of a second.
"""

import json
import math
import posixpath
import reprlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from statistics import NormalDist
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from pipeline.base.errors import InputError
from pipeline.base.untrusted import limits

FILE = Path("params.yaml")
CLEAN = "clean"  # the name of the first model and of the stream of unattacked images
RESERVED_THREATS = {"worst", "apgd", "ensemble"}  # names of results that are made from several attacks
# The folder of starting weights. DVC watches all of it: dvc.yaml cannot name a file that `weights: null` leaves out.
PRETRAINED = PurePosixPath("models/pretrained")
ENDINGS = (".pth", ".pt")
# What ruamel.yaml raises for what is not YAML, or for tags that do not fit their values.
NOT_YAML = (YAMLError, ValueError, TypeError, AttributeError, OverflowError, LookupError)
MAX_BYTES, MAX_DEPTH, MAX_LETTERS = 2**18, 20, 1000  # of the file, of its levels, of one value
MIXED = "mixed"  # the name of the validation set of clean and stored adversarial images together

# What each L-infinity attack of torchattacks 3.5.1 asks for. All of it must be written down, so that params.yaml tells the whole attack.
# `tests/test_params.py` holds this table to the constructors' signatures.
MOMENTUM = ("alpha", "steps", "decay")
ATTACK_PARAMETERS: dict[str, tuple[str, ...]] = {
    "FGSM": (),
    "FFGSM": ("alpha",),
    "RFGSM": ("alpha", "steps"),
    "BIM": ("alpha", "steps"),
    "PGD": ("alpha", "steps", "random_start"),
    "TPGD": ("alpha", "steps"),
    "EOTPGD": ("alpha", "steps", "eot_iter", "random_start"),
    "UPGD": ("alpha", "steps", "random_start", "loss", "decay", "eot_iter"),
    "MIFGSM": MOMENTUM,
    "NIFGSM": MOMENTUM,
    "SINIFGSM": (*MOMENTUM, "m"),
    "VMIFGSM": (*MOMENTUM, "N", "beta"),
    "VNIFGSM": (*MOMENTUM, "N", "beta"),
    "DIFGSM": (*MOMENTUM, "resize_rate", "diversity_prob", "random_start"),
    "TIFGSM": (*MOMENTUM, "kernel_name", "len_kernel", "nsig", "resize_rate", "diversity_prob", "random_start"),
    "Jitter": ("alpha", "steps", "scale", "std", "random_start"),
    "APGD": ("steps", "n_restarts", "loss", "eot_iter", "rho"),
    "APGDT": ("steps", "n_restarts", "eot_iter", "rho"),
    "FAB": ("steps", "n_restarts", "alpha_max", "eta", "beta", "multi_targeted"),
    "Square": ("n_queries", "n_restarts", "p_init", "loss", "resc_schedule"),
    "AutoAttack": ("version",),
    "PGDRS": ("alpha", "steps", "noise_type", "noise_sd", "noise_batch_size", "batch_max"),
    "PIFGSM": ("num_iter_set", "momentum", "amplification", "prob"),
    "PIFGSMPP": ("num_iter_set", "momentum", "amplification", "prob", "project_factor"),
    "SPSA": ("delta", "lr", "nb_iter", "nb_sample", "max_batch_size"),
}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers that a parameter of an attack may be; a bound that is infinite is none."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    kind: Literal["a number", "a whole number", "an odd number"] = "a number"

    def hold(self, value: object) -> bool:
        """Whether a value is one of these numbers."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
            return False
        if self.kind != "a number" and not isinstance(value, int):
            return False
        return self.least <= value <= self.most and self.above < value < self.below and (self.kind != "an odd number" or value % 2 == 1)

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        named = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        return f"{self.kind} {named}"


@dataclass(frozen=True)
class Words:
    """The words that a parameter of an attack may be."""

    words: tuple[str, ...]

    def hold(self, value: object) -> bool:
        """Whether a value is one of these words."""
        return value in self.words

    def __str__(self) -> str:
        return f"{', '.join(self.words[:-1])} or {self.words[-1]}"


class Flag:
    """True or false."""

    def hold(self, value: object) -> bool:
        """Whether a value is a truth value."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


COUNT, SHARE, POSITIVE = Numbers(least=1, kind="a whole number"), Numbers(least=0, most=1), Numbers(above=0)
# What each parameter may be for torchattacks 3.5.1 to run and to do what its paper says; by attack and name where attacks differ.
# A step size, `alpha`, is read by `parse_step`.
VALUES: dict[str | tuple[str, str], Numbers | Words | Flag] = {
    **dict.fromkeys(("steps", "n_restarts", "n_queries", "eot_iter", "N", "nb_iter", "nb_sample", "max_batch_size"), COUNT),
    **dict.fromkeys(("num_iter_set", "noise_batch_size", "batch_max"), COUNT),
    **dict.fromkeys(("random_start", "multi_targeted", "resc_schedule"), Flag()),
    **dict.fromkeys(("decay", "momentum", "diversity_prob", "prob", "alpha_max"), SHARE),
    **dict.fromkeys(("scale", "amplification", "lr"), POSITIVE),
    **dict.fromkeys(("std", "noise_sd", "project_factor"), Numbers(least=0)),
    **dict.fromkeys(("rho", "p_init"), Numbers(above=0, most=1)),
    "m": Numbers(least=1, most=62, kind="a whole number"),  # images are divided by powers of two, as 64-bit integers
    "len_kernel": Numbers(least=1, most=255, kind="an odd number"),  # an even kernel shifts the gradient
    "nsig": Numbers(above=0, most=10),
    "resize_rate": Numbers(least=0.125, below=1),  # at least one of 8 pixels; networks take no image larger than the data's
    "eta": Numbers(least=1),
    "delta": Numbers(least=1e-6, most=1),  # less is lost in float32
    "kernel_name": Words(("gaussian", "linear", "uniform")),
    "noise_type": Words(("gaussian", "guassian", "uniform")),  # the second is torchattacks' spelling of the first
    "version": Words(("standard", "plus", "rand")),
    ("APGD", "loss"): Words(("ce", "dlr")),
    ("UPGD", "loss"): Words(("ce", "dlr", "margin")),
    ("Square", "loss"): Words(("ce", "margin")),
    ("FAB", "beta"): Numbers(above=0, most=1),
    ("VMIFGSM", "beta"): Numbers(least=0),
    ("VNIFGSM", "beta"): Numbers(least=0),
}


def parse_level(value: object) -> float:
    """A pixel distance in [0, 1] from a number or a fraction such as "8/255".

    Raises ValueError for anything that is not in (0, 1], with the hint to divide by 255.
    """
    try:  # a Fraction of "1e-999999999" would be computed exactly, for hours
        level = float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        level = float("nan")
    if isinstance(value, bool) or not 0 < level <= 1:
        raise ValueError(f"expected more than 0 and at most 1, in units of pixels in [0, 1] (write 8/255, not 8), found {value!r}")
    return level


def parse_step(value: object) -> float | str:
    """A step size: a level, or a share of eps, "eps/4" or "eps/steps"."""
    if isinstance(value, str) and value.startswith("eps"):
        divisor = value.removeprefix("eps/")
        try:
            if divisor == "steps" or 0 < float(divisor) < math.inf:
                return value
        except ValueError:
            pass
        raise ValueError(f"expected a level (2/255), eps/steps, or eps divided by a number (eps/4; eps/1 is all of it), found {value!r}")
    return parse_level(value)


def step_size(step: float | str, eps: float, steps: int) -> float:
    """The step size that `parse_step` read, for one eps and number of steps, in units of pixels in [0, 1]."""
    if not isinstance(step, str):
        return step
    divisor = step.removeprefix("eps/")
    return eps / (steps if divisor == "steps" else float(divisor))


Level = Annotated[float, BeforeValidator(parse_level)]
Step = Annotated[float | str, BeforeValidator(parse_step)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Part = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(-[a-z][a-z0-9_]*)?$")]  # of a mix: an attack, or <model>-<attack>
Count = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of `params.yaml`: no unknown key, no missing key, no conversion between types, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Spread(Section):
    """A distribution of eps: `{uniform: [low, high]}`, or `{normal: [mean, std], within: [low, high]}`, cut off at both ends."""

    uniform: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None
    normal: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None
    within: Annotated[list[Level], Field(min_length=2, max_length=2)] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest eps."""
        low, high = self.within or self.uniform or (0.0, 0.0)
        return low, high

    def quantile(self, share: float) -> float:
        """The eps that this share of all draws stays below: a uniform random number in [0, 1) becomes a draw."""
        low, high = self.bounds
        if self.normal is None:
            return low + (high - low) * share
        normal = NormalDist(*self.normal)
        inside = normal.cdf(low) + (normal.cdf(high) - normal.cdf(low)) * share
        return min(max(normal.inv_cdf(min(max(inside, 1e-12), 1 - 1e-12)), low), high)

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if (self.normal is None) != (self.within is None) or (self.normal is None) == (self.uniform is None):
            raise ValueError("expected {uniform: [low, high]} or {normal: [mean, std], within: [low, high]}")
        low, high = self.bounds
        if low > high:
            raise ValueError(f"expected the lower bound first, found [{low}, {high}]")
        return self


def parse_eps(value: object) -> object:
    """One eps for all images, or the distribution that each image's own is drawn from."""
    if not isinstance(value, dict):
        return parse_level(value)
    try:
        return Spread.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(detail) for detail in error.errors()[:1])) from error


Eps = Annotated[float | Spread, BeforeValidator(parse_eps)]


def greatest(eps: float | Spread) -> float:
    """The eps that no image's own exceeds."""
    return eps.bounds[1] if isinstance(eps, Spread) else eps


class Hdf5(Section):
    """Names of the datasets in a user's own HDF5 file."""

    images: str
    labels: str


class Data(Section):
    source: Literal["digits", "npz", "hdf5", "task_dataset", "image_folder", "cifar10", "cifar100", "svhn"]
    path: str
    hdf5: Hdf5
    image_size: Annotated[int, Field(ge=8, le=1024)]
    n_images: Count | None
    n_val: Count
    seed: Seed


class Store(Section):
    shard_rows: Count


class Model(Section):
    """What is trained; `weights` are torchvision's by name, a state_dict in a file, or None for a start from scratch."""

    architecture: Literal["resnet18", "resnet34", "resnet50"]
    weights: str | None

    @property
    def file(self) -> Path | None:
        """The file in PRETRAINED that holds the weights; None for torchvision's, and for a start from scratch."""
        return Path(self.weights) if self.weights is not None and "/" in self.weights else None

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        names = ("IMAGENET1K_V1", "IMAGENET1K_V2") if self.architecture == "resnet50" else ("IMAGENET1K_V1",)
        if self.weights is None or self.weights in names:
            return self
        path = PurePosixPath(posixpath.normpath(self.weights))
        inside = PRETRAINED in path.parents and path.suffix in ENDINGS
        if not inside or str(path) != self.weights:
            remedy = f"write {path}" if inside else f"mv {shlex.quote(self.weights)} {PRETRAINED}/"
            raise ValueError(
                f"weights: expected {', '.join(names)}, null or, for {self.architecture}, a .pth or .pt file in {PRETRAINED}/, which DVC"
                f" watches, found {self.weights!r}{f' ({remedy})' if PurePosixPath(self.weights).suffix in ENDINGS else ''}"
            )
        return self


Precision = Literal["auto", "fp32", "bf16"]


class Training(Section):
    """One run of the training loop."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2, lt=2**31)]
    optimizer: Literal["sgd", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "constant"]
    warmup_epochs: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    augment: Literal["none", "flip", "crop", "flip+crop"]
    sampling: Literal["natural", "balanced"]
    precision: Precision
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    patience: Count | None
    seed: Seed

    @property
    def counts(self) -> dict[str, int]:
        """Images of each kind in one full batch: here, clean ones alone."""
        return {CLEAN: self.batch_size}

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs: expected at most epochs ({self.epochs}), found {self.warmup_epochs}")
        return self


class Refresh(Section):
    """How stored adversarial images are brought up to date with the model while it trains."""

    every: Count
    steps: Count
    alpha: Step
    warm_start: bool


class Finetune(Training):
    """A run of the training loop on batches that mix clean and stored adversarial images.

    A part of `mix` that an attack names is its set against the model that training starts from; `<model>-<attack>` is one against another.
    """

    best_on: Literal["mixed", "robust"]
    refresh: Refresh | None
    mix: dict[Part, Annotated[float, Field(gt=0, le=1)]]

    @property
    def counts(self) -> dict[str, int]:
        """Images of each kind in one full batch; they sum to `batch_size` exactly."""
        return batch_counts(self.mix, self.batch_size)

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        batch_counts(self.mix, self.batch_size)
        return self


class Variant(Section):
    """A further model fine-tuned on the stored sets of `of`; every other key replaces that of `finetune`."""

    model_config = ConfigDict(extra="allow")
    of: Name


class Adversary(Section):
    """The attack inside online adversarial training: signed-gradient steps against the model as it is at that moment."""

    eps: Eps
    eps_per: Literal["image", "batch", "epoch"]
    alpha: Step
    steps: Count
    random_start: bool
    loss: Literal["cross_entropy", "margin"]
    target: Literal["none", "least_likely"]
    against: Literal["self", "clean"]


def parse_start(value: object) -> object:
    """The clean model, or a fresh one with its architecture and weights."""
    if value == CLEAN:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected {CLEAN} or {{architecture: …, weights: …}}, found {value!r}")
    try:
        return Model.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(detail) for detail in error.errors()[:3])) from error


class Online(Training):
    """A run of the training loop on adversarial images made anew for every batch."""

    start: Annotated[Literal["clean"] | Model, BeforeValidator(parse_start)]
    adversary: Adversary
    clean_weight: Annotated[float, Field(ge=0)]
    adv_weight: Annotated[float, Field(gt=0)]
    best_on: Literal["clean", "robust"]


class Selection(Section):
    """The held-out images and the PGD attack by which an epoch's robust accuracy is estimated during training."""

    n_images: Count
    eps: Level
    alpha: Step
    steps: Count


class Attack(Section):
    """A torchattacks L-infinity attack with every parameter it takes; `ATTACK_PARAMETERS` names them."""

    model_config = ConfigDict(extra="allow")
    attack: str
    eps: Eps

    @property
    def parameters(self) -> dict[str, Any]:
        """What the attack's constructor is given, by its own names; of a distribution of eps, the greatest."""
        extra, eps = self.model_extra or {}, greatest(self.eps)
        step = {"alpha": step_size(extra["alpha"], eps, extra.get("steps", 1))} if "alpha" in extra else {}
        return {"eps": eps, **extra, **step}

    def at(self, eps: float) -> Self:
        """The same attack with one eps for all images."""
        return self.model_copy(update={"eps": eps})

    @property
    def fewest_classes(self) -> int:
        """How many classes the loss compares: the DLR loss divides by a difference to the third-largest logit, targeted to the fourth."""
        extra = self.model_extra or {}
        if self.attack == "APGDT" or extra.get("version") in ("standard", "plus"):
            return 4
        return 3 if extra.get("loss") == "dlr" or extra.get("version") == "rand" else 2

    @property
    def described(self) -> dict[str, str | int | float | bool]:
        """The parameters as plain values, to be kept with what the attack gives."""
        eps = json.dumps(self.eps.model_dump(exclude_none=True)) if isinstance(self.eps, Spread) else self.eps
        return {"eps": eps, **(self.model_extra or {})}

    @model_validator(mode="before")
    @classmethod
    def _check_parameters(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or "attack" not in entry:
            return entry
        wanted = ATTACK_PARAMETERS.get(entry["attack"]) if isinstance(entry["attack"], str) else None
        if wanted is None:
            raise ValueError(f"attack: expected one of {', '.join(ATTACK_PARAMETERS)}, found {entry['attack']!r}")
        known = {*wanted, *cls.model_fields}
        for key in entry.keys() - known:
            raise ValueError(f"{key}: expected only {', '.join(sorted(known))} for {entry['attack']}, found {key!r}")
        for key in wanted:
            if key not in entry:
                raise ValueError(f"{key}: expected a value, {entry['attack']} takes {', '.join(('eps', *wanted))}; found none")
        values = {key: _attack_value(entry["attack"], key, entry[key]) for key in wanted}
        if entry["attack"] == "PGDRS" and entry["batch_max"] < entry["noise_batch_size"]:
            least, found = entry["noise_batch_size"], entry["batch_max"]
            raise ValueError(f"batch_max: expected at least noise_batch_size ({least}), the noisy copies of one image, found {found}")
        return {**entry, **values}


class Threat(Attack):
    """An attack that a judge runs afresh against the judged model, `restarts` times; an image counts as robust if it withstands all."""

    eps: Level
    restarts: Count


class Generate(Section):
    batch_size: Count
    precision: Precision
    seed: Seed


class Round(Section):
    """A fine-tuning: which model comes out of attacking this one."""

    next: Name


class Judged(Section):
    """A model to evaluate: `stored` names the model whose stored adversarial images give the transfer accuracy."""

    stored: Name


class Ensemble(Section):
    """AutoAttack's attacks at one eps: the first two (APGD-CE and targeted APGD), or all four.

    `iterations` of each gradient attack, towards each of the `targets` likeliest wrong classes where it is targeted; the standard's are 100
    and 9.
    """

    members: Literal["first_two", "all"]
    eps: Level
    n_eval: Count
    iterations: Count
    targets: Annotated[int, Field(ge=3, lt=2**31)]  # the loss of targeted APGD compares four classes


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
            raise ValueError(f"eps: expected 1, at which every image must fall, as the last value, found {self.eps[-1]}")
        return self


class Evaluate(Section):
    models: dict[Name, Judged]
    n_eval: Count | None
    batch_size: Count
    seed: Seed
    threats: Annotated[dict[Name, Threat], Field(min_length=1)]
    ensemble: Ensemble | None
    grid: Grid | None
    curves: Curves

    @model_validator(mode="after")
    def _check_threats(self) -> Self:
        for name in self.threats.keys() & RESERVED_THREATS:
            raise ValueError(f"threats.{name}: expected another name, {name!r} stands for a result over several attacks")
        varied = self.threats.get(self.curves.threat)
        if varied is None or varied.attack != "PGD":
            of_pgd = ", ".join(name for name, threat in self.threats.items() if threat.attack == "PGD") or "there is none"
            raise ValueError(f"curves.threat: expected a threat whose attack is PGD ({of_pgd}), found {self.curves.threat!r}")
        if self.curves.restarts <= varied.restarts:
            raise ValueError(f"curves.restarts: expected more than that threat's own {varied.restarts}, found {self.curves.restarts}")
        own = varied.parameters["steps"]
        if self.curves.steps[-1] <= own:
            raise ValueError(f"curves.steps: expected more than that threat's own {own} as the last value, found {self.curves.steps[-1]}")
        return self


class Export(Section):
    """Which model is submitted, and the clean accuracy in [0, 1] that it must exceed to be submitted without a warning."""

    model: Name
    min_clean: Annotated[float, Field(ge=0, lt=1)]


class Audit(Section):
    """How much of each adversarial set an audit attacks again."""

    sample: Count


class Params(Section):
    """The whole of `params.yaml`."""

    data: Data
    store: Store
    model: Model
    clean: Training
    attacks: dict[Name, Attack]
    generate: Generate
    finetune: Finetune
    rounds: dict[Name, Round]
    variants: dict[Name, Variant]
    online: dict[Name, Online]
    selection: Selection
    evaluate: Evaluate
    export: Export
    audit: Audit

    def architecture_of(self, model: str) -> str:
        """The architecture of a model by its name: that of `model`, but for online training that starts from another one."""
        start = self.online[model].start if model in self.online else CLEAN
        return start.architecture if isinstance(start, Model) else self.model.architecture

    @property
    def starts(self) -> dict[str, Model]:
        """Every network that a training may begin with, by its dotted key."""
        own = {f"online.{name}.start": recipe.start for name, recipe in self.online.items()}
        return {"model": self.model, **{key: start for key, start in own.items() if isinstance(start, Model)}}

    @property
    def all_attacks(self) -> dict[str, Attack]:
        """Every attack and every threat, by its dotted key."""
        stored = {f"attacks.{name}": attack for name, attack in self.attacks.items()}
        return {**stored, **{f"evaluate.threats.{name}": threat for name, threat in self.evaluate.threats.items()}}

    def parent_of(self, model: str) -> str:
        """The model, by name, that another one's training is given to start from."""
        if model in self.variants:
            return self.variants[model].of
        return next((attacked for attacked, follower in self.rounds.items() if follower.next == model), CLEAN)

    def mix_of(self, model: str) -> dict[str, float]:
        """Return the shares of the stored sets that a model is fine-tuned on, by name; none for a model that is not fine-tuned."""
        if model in self.variants:
            return self.recipe(model).mix
        return self.finetune.mix if any(follower.next == model for follower in self.rounds.values()) else {}

    @staticmethod
    def section(variant: str | None) -> str:
        """Where in `params.yaml` a variant stands; without one, `finetune`."""
        return "finetune" if variant is None else f"variants.{variant}"

    def recipe(self, variant: str | None) -> Finetune:
        """The fine-tuning that a variant asks for; without one, `finetune` itself."""
        if variant is None:
            return self.finetune
        changes = self.variants[variant].model_extra or {}
        try:
            return Finetune.model_validate({**self.finetune.model_dump(), **changes})
        except ValidationError as error:
            raise ValueError("; ".join(f"{self.section(variant)}.{_explain(detail)}" for detail in error.errors()[:3])) from error

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.attacks or not self.rounds:
            raise ValueError(f"{'rounds' if self.attacks else 'attacks'}: expected at least one entry, found none")
        for name, attack in self.attacks.items():
            if name in (CLEAN, MIXED):
                raise ValueError(f"attacks.{name}: expected another name, {CLEAN!r} and {MIXED!r} mean other images, found {name!r}")
            lowest = attack.eps.bounds[0] if isinstance(attack.eps, Spread) else attack.eps
            if lowest < 1 / 255:
                raise ValueError(f"attacks.{name}.eps: expected at least 1/255, the step between stored pixels, found {lowest}")
        return self

    @model_validator(mode="after")
    def _check_mixes(self) -> Self:
        """Only a variant may mix another model's sets: `finetune` is every round's, and the first round's model comes before all others."""
        for variant in (None, *self.variants):
            others = [model for model in self.rounds if variant is not None and model != self.variants[variant].of]
            sets = [f"{model}-{attack}" for model in others for attack in self.attacks]
            for name in self.recipe(variant).mix.keys() - {CLEAN, *self.attacks, *sets}:
                raise ValueError(
                    f"{self.section(variant)}.mix.{name}: expected {CLEAN}, a name from attacks ({', '.join(self.attacks)}) or, in a"
                    f" variant, a set of another model of rounds ({', '.join(sets) or 'here none'}), found {name!r}"
                )
        return self

    @property
    def models(self) -> list[str]:
        """The names of all models, in the order in which they are made."""
        chain = [CLEAN]
        while (follower := self.rounds.get(chain[-1])) is not None and follower.next not in chain:
            chain.append(follower.next)
        return [*chain, *self.variants, *self.online]

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        followers = [CLEAN, *(follower.next for follower in self.rounds.values())]
        for attacked, follower in self.rounds.items():
            if followers.count(follower.next) > 1:
                raise ValueError(f"rounds.{attacked}.next: expected a new name, found {follower.next!r} again")
            if attacked not in self.models:
                raise ValueError(f"rounds.{attacked}: expected a chain that starts at {CLEAN}, found {attacked!r}")
        for section, entries in (("variants", self.variants), ("online", self.online)):
            for name in entries:
                if self.models.count(name) > 1:
                    raise ValueError(f"{section}.{name}: expected a name that no other model has, found {name!r} again")
        for name, variant in self.variants.items():
            if variant.of not in self.rounds:
                raise ValueError(f"variants.{name}.of: expected an attacked model ({', '.join(self.rounds)}), found {variant.of!r}")
        return self

    @model_validator(mode="after")
    def _check_evaluated(self) -> Self:
        known = ", ".join(self.models)
        for name in self.models:
            if name not in self.evaluate.models:
                raise ValueError(f"evaluate.models.{name}: expected an entry for every model, found none (add `{name}: {{stored: …}}`)")
        for name, judged in self.evaluate.models.items():
            if name not in self.models:
                raise ValueError(f"evaluate.models.{name}: expected a model of rounds, variants or online ({known}), found {name!r}")
            if judged.stored not in self.rounds:
                raise ValueError(
                    f"evaluate.models.{name}.stored: expected an attacked model ({', '.join(self.rounds)}), found {judged.stored!r}"
                )
        if self.export.model not in self.models:
            raise ValueError(f"export.model: expected a model of rounds, variants or online ({known}), found {self.export.model!r}")
        return self


def batch_counts(mix: dict[str, float], batch_size: int) -> dict[str, int]:
    """How many images of each kind make up a batch of `batch_size`.

    All streams but clean are rounded; clean takes the remainder, so the counts always sum exactly. Raises ValueError for fractions that
    do not sum to 1, a mix without clean images, and a kind that would get no image.
    """
    if CLEAN not in mix:
        raise ValueError(f"mix: expected a fraction of {CLEAN} images, found only {', '.join(mix)}")
    if abs(sum(mix.values()) - 1) > 1e-9:
        raise ValueError(f"mix: expected fractions that sum to 1, found {' + '.join(map(str, mix.values()))} = {sum(mix.values()):g}")
    counts = {name: round(fraction * batch_size) for name, fraction in mix.items()}
    counts[CLEAN] = batch_size - sum(count for name, count in counts.items() if name != CLEAN)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"mix.{name}: expected at least one image in a batch of {batch_size}, found {mix[name]} of it = {count}")
    return counts


def expect_classes(specs: Mapping[str, Attack], n_classes: int) -> None:
    """Check that each attack's loss finds the classes that it compares. Raises InputError with the attack's key in `specs`."""
    for where, spec in specs.items():
        if spec.fewest_classes > n_classes:
            raise InputError(
                f"{where}: expected at least {spec.fewest_classes} classes, which the loss of {spec.attack} compares, found {n_classes};"
                " use another loss or attack"
            )


def load(path: Path) -> Params:
    """The checked contents of a params file.

    Raises InputError with the dotted key, what was expected and what was found.
    """
    try:
        content = YAML(typ="safe", pure=True).load(bounded_text(path))
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not YAML: {error.problem}") from error
    except NOT_YAML as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from error
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(detail) for detail in error.errors()[:3])) from error


def bounded_text(path: Path) -> str:
    """The text of a YAML file that is safe to load: small, not nested deeply, no value of endless digits, nothing repeated by reference.

    Raises InputError with the line, and ruamel.yaml's errors for what is not YAML.
    """
    try:
        size = limits.regular(path, f"`cp presets/quickstart.yaml {path}` gives one to start from")
        text = path.read_bytes()[: MAX_BYTES + 1].decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if size > MAX_BYTES:
        raise InputError(f"{path}: expected at most {MAX_BYTES:,} bytes, found {size:,}")
    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        where = f"{path}:{event.start_mark.line + 1}"
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            raise InputError(f"{where}: expected every value written out, found a reference to *{event.anchor}")
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: expected at most {MAX_DEPTH} levels inside each other, found more")
        if isinstance(event, ScalarEvent) and len(event.value) > MAX_LETTERS:
            raise InputError(f"{where}: expected values of at most {MAX_LETTERS:,} letters, found one of {len(event.value):,}")
    return text


def _attack_value(attack: str, key: str, value: object) -> object:
    """One parameter of an attack, checked; a `Level` if it is a step size."""
    if key == "alpha":
        try:
            return parse_step(value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    allowed = VALUES.get((attack, key)) or VALUES[key]
    if not allowed.hold(value):
        raise ValueError(f"{key}: expected {allowed}, found {value!r}")
    return value


def _explain(detail: Any) -> str:
    """One line for one pydantic error: dotted key, expected, found."""
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
            text = f"expected {expected[0].lower()}{expected[1:]}, found {reprlib.repr(detail['input'])}"
    separator = ": " if text.startswith("expected") else "."
    return f"{key}{separator if key else ''}{text}"
