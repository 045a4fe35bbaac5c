"""Define the sections `finetuned`, `online` and `selection` of `params.yaml`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from pipeline.attacks.params import Attack, Generate
from pipeline.base.values import (
    CLEAN,
    Count,
    Eps,
    Level,
    Name,
    Part,
    Section,
    Seed,
    Share,
    Step,
    explain,
)
from pipeline.networks.params import Model
from pipeline.train.params import Paired, Training


class Refresh(Section):
    """How stored adversarial images are updated against the model while it trains.

    `regularise` is the weight of the squared difference between the logits of the image that an
    attack began at and of the image that it made. After every `reset` epochs, the stored
    perturbations are replaced by random noise. Both may be left out.
    """

    every: Count
    steps: Count
    alpha: Step
    warm_start: bool
    regularise: Annotated[float, Field(gt=0)] | None = None
    reset: Count | None = None


class Adversarial(Training):
    """A run of the training loop on adversarial images that follow the model.

    With `loss: trades`, the loss of an adversarial image is that of TRADES: the cross-entropy of
    its original, and `beta` times the divergence between the two. Both keys may be left out.
    """

    loss: Literal["cross_entropy", "trades"] = "cross_entropy"
    beta: Annotated[float, Field(gt=0)] | None = None

    @property
    def paired(self) -> Paired | None:
        """The comparison of images in pairs that is part of the loss, if there is one."""
        return "probabilities" if self.loss == "trades" else None

    @model_validator(mode="after")
    def _check_beta(self) -> Self:
        if (self.loss == "trades") != (self.beta is not None):
            raise ValueError(
                f"beta: expected a number with loss: trades, and none without it, "
                f"found {self.beta} with loss: {self.loss}"
            )
        return self


class Finetune(Adversarial):
    """A run of the training loop on batches that mix clean and stored adversarial images.

    Training starts from the model `of`. Each part of `mix` names an image set. `<attack>` is the
    set of that attack against the model `of`. `<model>-<attack>` is a set against a model of
    `sources`.
    """

    of: Name
    best_on: Literal["mixed", "robust"]
    refresh: Refresh | None
    mix: dict[Part, Share]

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of each kind in a full batch; the sum is exactly `batch_size`."""
        return batch_counts(self.mix, self.batch_size)

    @property
    def paired(self) -> Paired | None:
        """The comparison of images in pairs that is part of the loss, if there is one."""
        regularised = self.refresh is not None and self.refresh.regularise is not None
        return "logits" if regularised else super().paired

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.loss == "trades" and (self.refresh is None or self.refresh.regularise is not None):
            raise ValueError(
                "loss: expected cross_entropy where the stored images are not refreshed, or where "
                "refresh.regularise compares them already, found trades"
            )
        return self

    @model_validator(mode="after")
    def _check_mix(self) -> Self:
        batch_counts(self.mix, self.batch_size)
        return self


class Adversary(Section):
    """The attack inside online adversarial training.

    It takes signed-gradient steps against the current weights of the model, or against the clean
    model, as `against` says. `noise` may be left out. With it, the random start reaches so many
    eps, and the result is not cut back to eps (de Jorge et al., "Make Some Noise", NeurIPS 2022).
    """

    eps: Eps
    eps_per: Literal["image", "batch", "epoch"]
    alpha: Step
    steps: Count
    random_start: bool
    loss: Literal["cross_entropy", "margin"]
    target: Literal["none", "least_likely"]
    against: Literal["self", "clean"]
    noise: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        if self.noise is not None and not self.random_start:
            raise ValueError(
                f"noise: expected random_start: true with it, found noise: {self.noise} without"
            )
        return self


def parse_start(value: object) -> object:
    """Return the start of a training: the clean model, or a new network.

    A new network is described by its architecture and weights. Raises ValueError for anything
    else.
    """
    if value == CLEAN:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected {CLEAN} or {{architecture: …, weights: …}}, found {value!r}")
    try:
        return Model.model_validate(value)
    except ValidationError as error:
        raise ValueError("; ".join(explain(detail) for detail in error.errors()[:3])) from error


class Online(Adversarial):
    """A run of the training loop on adversarial images that are made again for every batch."""

    start: Annotated[Literal["clean"] | Model, BeforeValidator(parse_start)]
    adversary: Adversary
    clean_weight: Annotated[float, Field(ge=0)]
    adv_weight: Annotated[float, Field(gt=0)]
    best_on: Literal["clean", "robust"]

    @model_validator(mode="after")
    def _check_clean_weight(self) -> Self:
        if self.loss == "trades" and self.clean_weight > 0:
            raise ValueError(
                "clean_weight: expected 0 with loss: trades, in which every adversarial image "
                f"brings its clean one, found {self.clean_weight}"
            )
        return self


class Selection(Section):
    """The held-out images and the PGD attack for scoring epochs.

    They estimate the robust accuracy of each epoch during training.
    """

    n_images: Count
    eps: Level
    alpha: Step
    steps: Count
    seed: Seed


def batch_counts(mix: dict[str, float], batch_size: int) -> dict[str, int]:
    """Return how many images of each kind are in a batch of `batch_size`.

    All streams except clean are rounded. Clean takes the remainder, so the counts always sum
    exactly. Raises ValueError for fractions that do not sum to 1, for a mix without clean images,
    and for a kind that would get no image.
    """
    if CLEAN not in mix:
        raise ValueError(
            f"mix: expected a fraction of {CLEAN} images, found {', '.join(mix) or 'none'}"
        )
    if abs(sum(mix.values()) - 1) > 1e-9:
        raise ValueError(
            "mix: expected fractions that sum to 1, "
            f"found {' + '.join(map(str, mix.values()))} = {sum(mix.values()):g}"
        )
    counts = {name: round(fraction * batch_size) for name, fraction in mix.items()}
    counts[CLEAN] = batch_size - sum(count for name, count in counts.items() if name != CLEAN)
    for name, count in counts.items():
        if count < 1:
            raise ValueError(
                f"mix.{name}: expected at least one image in a batch of {batch_size}, "
                f"found {mix[name]} of it = {count}"
            )
    return counts


class Held(Section):
    """The section that decides on which images a model in training is scored.

    They are other images than those of the evaluation, where there are enough.
    """

    selection: Selection


class FinetuneParams(Held):
    """The sections that the stage `finetune@<model>` reads."""

    attacks: dict[Name, Attack]
    generate: Generate
    finetuned: dict[Name, Finetune]


class OnlineParams(Held):
    """The sections that the stage `train_online@<model>` reads."""

    online: dict[Name, Online]
