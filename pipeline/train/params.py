"""Defines the settings of trainings.

These are the section `clean` of `params.yaml`, and the common part of all trainings.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.values import CLEAN, Count, Precision, Section, Seed
from pipeline.networks.params import Model

# What is compared: logits by their squared difference, or probabilities by their divergence.
Paired = Literal["logits", "probabilities"]


class Training(Section):
    """The settings of one run of the training loop.

    With `sync_batchnorm`, which may be left out, BatchNorm's statistics are those of the whole
    batch where several GPUs train together. Otherwise, they are those of each worker's part.
    """

    epochs: Count
    batch_size: Annotated[int, Field(ge=2, lt=2**31)]
    optimizer: Literal["sgd", "adamw"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "onecycle", "constant"]
    warmup_epochs: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    augment: Literal["none", "flip", "crop", "flip+crop"]
    sampling: Literal["natural", "balanced"]
    precision: Precision
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    patience: Count | None
    seed: Seed
    sync_batchnorm: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Images of each kind in one full batch, which are only clean ones here."""
        return {CLEAN: self.batch_size}

    @property
    def paired(self) -> "Paired | None":
        """The comparison of images in pairs that is part of the loss, if there is one."""
        return None

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs: expected at most epochs ({self.epochs}), "
                f"found {self.warmup_epochs}"
            )
        return self


class TrainParams(Section):
    """The params that the stage `train_clean` reads."""

    model: Model
    clean: Training
