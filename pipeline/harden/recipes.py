"""Make the batches that a recipe trains on."""

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.base.store import ImageSet
from pipeline.base.values import CLEAN
from pipeline.harden.moving_target import Target
from pipeline.harden.online_batches import OnlineBatches
from pipeline.harden.params import Finetune, Online
from pipeline.harden.refreshed_batches import RefreshedBatches
from pipeline.networks import precision
from pipeline.networks.torchvision_models import models
from pipeline.train import mixing
from pipeline.train.augmentation import AugmentedBatches
from pipeline.train.params import Training


def batches(
    recipe: Training,
    sets: Mapping[str, ImageSet],
    attacked: models.ResNet,
    device: torch.device,
    folder: Path,
) -> AugmentedBatches | OnlineBatches | RefreshedBatches:
    """Return the recipe's batches, whose attacks run against `attacked` as it is at that moment.

    `folder` is for the working copy of refreshed images.
    """

    def target() -> Target:
        dtype = precision.dtype_for(recipe.precision, device)
        return Target(attacked.to(device), sets[CLEAN].image_shape[2], dtype)

    if isinstance(recipe, Finetune) and recipe.refresh is not None:
        return RefreshedBatches(sets, recipe, target(), device, folder)
    mixed = mixing.training_batches(sets, recipe, device)
    if isinstance(recipe, Online):
        return OnlineBatches(mixed, recipe, target(), fixed=recipe.adversary.against == CLEAN)
    return AugmentedBatches(mixed, recipe.augment, recipe.seed)
