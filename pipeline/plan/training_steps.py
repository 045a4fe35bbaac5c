"""Take a few real steps of the training loop, and time them."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipeline import networks
from pipeline.base import store
from pipeline.harden import recipes
from pipeline.networks.captured import WARM_UP, graphs_for
from pipeline.networks.params import Model
from pipeline.networks.torchvision_models import models
from pipeline.train import loop
from pipeline.train.batches import Batches
from pipeline.train.params import Training

STEPS = 4  # that are timed


def untimed(device: torch.device) -> int:
    """Return how many steps come before those that are timed.

    The first one prepares the others. Where steps are captured, WARM_UP come before that, one is
    captured, and one more lets the allocator settle.
    """
    return 1 if graphs_for(device) is None else WARM_UP + 2


class Timed:
    """Batches of one short epoch that note when the loop asks for the next one.

    It ends after STEPS timed steps, or once they took `seconds`.
    """

    def __init__(self, batches: Batches, seconds: float, device: torch.device) -> None:
        self._batches, self._seconds, self._device = batches, seconds, device
        self.state = batches.state
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        for batch in self._batches.epoch(number, first):
            yield batch
            wait_for(self._device)
            self._times.append(time.perf_counter())
            n_timed = len(self._times) - untimed(self._device)
            spent = self._times[-1] - self._times[-1 - max(n_timed, 0)]
            if n_timed > 0 and (n_timed >= STEPS or spent > self._seconds):
                return

    @property
    def seconds(self) -> float:
        """Return the mean time of the steps that are timed."""
        times = self._times[untimed(self._device) - 1 :]
        return (times[-1] - times[0]) / (len(times) - 1)


def per_image(
    recipe: Training,
    network: models.ResNet,
    images: store.ImageSet,
    folder: Path,
    device: torch.device,
    seconds: float,
) -> float:
    """Return the seconds that the training loop takes for one image of a batch.

    `images` are used for every stream of the mix. The network is trained. `folder` is for the
    working copy of a refreshed mix.
    """
    short = recipe.model_copy(
        update={"epochs": 1, "warmup_epochs": 0.0, "patience": None, "lr": 1e-6}
    )
    sets = dict.fromkeys(recipe.counts, images)
    batches = recipes.batches(short, sets, network, device, folder)
    timed = Timed(batches, seconds, device)
    loop.fit(network, timed, lambda _: {"val_accuracy": 0.0}, short, text="measure", device=device)
    return timed.seconds / recipe.batch_size


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def new_network(architecture: str, n_classes: int) -> models.ResNet:
    """Return a network with random weights."""
    model = Model.model_validate({"architecture": architecture, "weights": None})
    return networks.build(model, n_classes, 0)
