"""Run the phases of the full-size job, whole or on a few batches of it.

The job: 100,000 images of 32x32 in 10 classes, ResNet-50, 100 clean epochs on 95,000 of them, FGSM
and PGD-14 on all, 45 epochs of mixed batches of 128, and an evaluation of both models. The images
are random and are kept where training keeps them, so neither the store nor start-ups are measured.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchattacks
from torch import Tensor, nn
from torchvision import models

from benchmarks import naive
from benchmarks.gpu.measure import Work, seconds, synchronize, work_of
from pipeline import attacks, document, networks
from pipeline.attacks.params import Attack
from pipeline.base import params
from pipeline.networks import matrix_products, precision
from pipeline.networks.memory_fit import InParts
from pipeline.train import augmentation, loop, mixing
from pipeline.train.images import HeldImages
from pipeline.train.params import Training

EPOCHS_MEASURED = 3  # of which the first, which warms up and captures, is left out


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work the job is, and how much of it is measured.

    `attack_batch` images are attacked at once, as `generate.batch_size` says. A phase is measured
    on `batches` batches, and the usual way on `naive_batches`.
    """

    architecture: str = "resnet50"
    image_size: int = 32
    n_images: int = 100_000
    n_val: int = 5_000
    clean_epochs: int = 100
    mixed_epochs: int = 45
    batch: int = 128
    steps: int = 14
    attack_batch: int = 1_024
    eval_batch: int = 256
    batches: int = 100
    naive_batches: int = 20

    @property
    def n_train(self) -> int:
        return self.n_images - self.n_val


FULL = Size()
TINY = Size(
    architecture="resnet18", image_size=8, n_images=96, n_val=32, clean_epochs=2, mixed_epochs=1,
    batch=8, steps=2, attack_batch=16, eval_batch=16, batches=4, naive_batches=2,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How long some images of a phase took."""

    n_images: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of the job: its number of images, one image's work, and two ways to run it.

    `run` takes the number of batches, or None for all. `usual` runs as many in the usual way.
    """

    name: str
    n_images: int
    work: Work
    run: Callable[[int | None], Timed]
    usual: Callable[[int], Timed]


class Job:
    """The images, the network and the phases of a job of some size."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self._device = size, device
        torch.manual_seed(0)
        shape = (size.n_images, 3, size.image_size, size.image_size)
        clean = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self._images = {name: clean.clone() for name in ("clean", "fgsm", "pgd")}
        self._labels = torch.randint(0, 10, (size.n_images,), device=device)
        self._network = models.get_model(size.architecture, num_classes=10).to(device)
        # The loop changes the layout of the network that it trains.
        self._usual = copy.deepcopy(self._network)
        self._recipe = document.load(params.FILE).clean.model_copy(
            update={"warmup_epochs": 0.0, "augment": "flip+crop", "batch_size": size.batch}
        )

    def phases(self) -> list[Phase]:
        """Return the phases in their order."""
        size = self.size
        forward, training = work_of(self._network, self._images["clean"][: size.batch] / 255)
        gradient = training.times(2 / 3)
        per_batch = size.batch // 4
        mix = {"clean": size.batch - 2 * per_batch, "fgsm": per_batch, "pgd": per_batch}
        n_mixed = size.n_train * size.batch // mix["clean"]
        return [
            self._training("clean training", {"clean": size.batch}, size.clean_epochs, training),
            self._attack("fgsm", {"attack": "FGSM"}, gradient),
            self._attack("pgd", self._pgd, gradient.times(size.steps)),
            self._training("mixed training", mix, size.mixed_epochs, training, n_mixed),
            Phase(
                name="evaluation",
                n_images=2 * size.n_val,
                work=gradient.times(size.steps + 1),
                run=self._judged,
                usual=self._judged_as_usual,
            ),
            Phase(
                name="validation",
                n_images=self._passes * size.n_val,
                work=forward,
                run=self._validated,
                usual=self._validated_as_usual,
            ),
        ]

    @property
    def _passes(self) -> int:
        """How often the trainings predict the validation images, which are three sets in a mix."""
        return self.size.clean_epochs + 3 * self.size.mixed_epochs

    @property
    def _pgd(self) -> dict[str, object]:
        return {"attack": "PGD", "alpha": "2/255", "steps": self.size.steps, "random_start": True}

    def _training(
        self, name: str, counts: dict[str, int], epochs: int, work: Work, n_epoch: int | None = None
    ) -> Phase:
        per_epoch = self.size.n_train if n_epoch is None else n_epoch

        def run(batches: int | None) -> Timed:
            if batches is None:
                taken = self._epochs(counts, self.size.n_train, epochs)
                return Timed(n_images=per_epoch * epochs, seconds=sum(taken))
            n_clean = min(batches * counts["clean"], self.size.n_train)
            taken = self._epochs(counts, n_clean, EPOCHS_MEASURED)[1:]
            n_images = n_clean * self.size.batch // counts["clean"]
            return Timed(n_images=n_images * len(taken), seconds=sum(taken))

        return Phase(
            name=name, n_images=per_epoch * epochs, work=work, run=run, usual=self._trained_as_usual
        )

    def _epochs(self, counts: dict[str, int], n_clean: int, epochs: int) -> list[float]:
        """Return the seconds of every epoch of a training, without validation."""
        held = HeldImages(
            torch.cat([self._images[name][:n_clean] for name in counts]), self._device
        )
        labels = self._labels[:n_clean].cpu().numpy()
        mixed = mixing.MixedBatches(held, dict.fromkeys(counts, labels), counts, 0, self._device)
        batches = augmentation.AugmentedBatches(mixed, self._recipe.augment, seed=0)
        recipe: Training = self._recipe.model_copy(update={"epochs": epochs})
        synchronize(self._device)
        ends = [time.perf_counter()]

        def validate(_: nn.Module) -> dict[str, float]:
            synchronize(self._device)
            ends.append(time.perf_counter())
            return {"val_accuracy": 0.0}

        loop.fit(self._network, batches, validate, recipe, text="train", device=self._device)
        return np.diff(ends).tolist()

    def _attack(self, name: str, entry: dict[str, object], work: Work) -> Phase:
        spec = Attack.model_validate({"eps": "8/255", **entry})
        n_images = self.size.n_images

        def run(batches: int | None) -> Timed:
            exact = networks.frozen_copy(self._network)
            dtype = precision.dtype_for("auto", self._device)
            fast = matrix_products.for_attacks(exact, self.size.image_size, dtype)
            attack, judge = attacks.build(spec, InParts(fast), 10), InParts(exact)

            def attack_batch(rows: slice) -> None:
                images, labels = self._images["clean"][rows], self._labels[rows]
                with precision.tensor_floats():
                    found = attacks.perturb(attack, images / 255, labels, rows.start)
                stored = attacks.quantise(found, images, 8 / 255)
                self._images[name][rows] = stored
                networks.is_right(judge, stored / 255, labels)

            return self._batchwise(attack_batch, n_images, self.size.attack_batch, batches)

        def usual(batches: int) -> Timed:
            def attack_batch(rows: slice) -> None:
                self._torchattack(name)(self._images["clean"][rows] / 255, self._labels[rows])

            return self._batchwise(attack_batch, n_images, self.size.batch, batches)

        return Phase(name=name, n_images=n_images, work=work, run=run, usual=usual)

    def _batchwise(
        self, work: Callable[[slice], None], n_images: int, size: int, batches: int | None
    ) -> Timed:
        """Run some batches after a first one that is not measured, or all."""
        slices = [slice(start, min(start + size, n_images)) for start in range(0, n_images, size)]
        if batches is not None:
            work(slices[0])
        measured = slices[1:][:batches] if batches is not None else slices

        def run() -> None:
            for rows in measured:
                work(rows)

        taken = seconds(run, self._device)
        return Timed(n_images=measured[-1].stop - measured[0].start, seconds=taken)

    def _torchattack(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        self._usual.eval()
        if name == "fgsm":
            return torchattacks.FGSM(self._usual, eps=8 / 255)  # type: ignore[no-any-return]
        return torchattacks.PGD(  # type: ignore[no-any-return]
            self._usual, eps=8 / 255, alpha=2 / 255, steps=self.size.steps
        )

    def _trained_as_usual(self, batches: int) -> Timed:
        optimizer = torch.optim.SGD(self._usual.parameters(), lr=0.01, momentum=0.9)
        self._usual.train()

        def step(rows: slice) -> None:
            images = self._images["clean"][rows] / 255
            naive.training_step(self._usual, optimizer, images, self._labels[rows])

        return self._batchwise(step, self.size.n_train, self.size.batch, batches)

    def _judged(self, batches: int | None) -> Timed:
        """Attack validation images of two models afresh, in exact fp32, as `evaluate` does."""
        exact = networks.frozen_copy(self._network)
        fast = matrix_products.for_attacks(exact, self.size.image_size, torch.float32)
        specs = [
            Attack.model_validate({"eps": "8/255", **entry})
            for entry in ({"attack": "FGSM"}, self._pgd)
        ]
        built, judge = [attacks.build(spec, InParts(fast), 10) for spec in specs], InParts(exact)

        def judge_batch(rows: slice) -> None:
            images, labels = self._images["clean"][rows] / 255, self._labels[rows]
            with precision.exact():
                for attack in built:
                    found = attacks.perturb(attack, images, labels, rows.start)
                    networks.is_right(judge, found, labels)

        return self._twice(judge_batch, batches)

    def _judged_as_usual(self, batches: int) -> Timed:
        def judge_batch(rows: slice) -> None:
            images, labels = self._images["clean"][rows] / 255, self._labels[rows]
            for name in ("fgsm", "pgd"):
                self._usual(self._torchattack(name)(images, labels)).argmax(1).cpu()

        return self._batchwise(judge_batch, self.size.n_val, self.size.batch, batches)

    def _twice(self, work: Callable[[slice], None], batches: int | None) -> Timed:
        """Run batches of the validation images, for both models if it is all of them."""
        size = self.size
        once = self._batchwise(work, size.n_val, size.eval_batch, batches)
        if batches is not None:
            return once
        again = self._batchwise(work, size.n_val, size.eval_batch, None)
        return Timed(n_images=2 * size.n_val, seconds=once.seconds + again.seconds)

    def _validated(self, batches: int | None) -> Timed:
        """Predict all validation images, once or as often as the trainings do."""
        val = self._images["clean"][: self.size.n_val].cpu().numpy()
        networks.predict(self._network, val[: self.size.batch])
        passes = 1 if batches is not None else self._passes

        def predict() -> None:
            for _ in range(passes):
                networks.predict(self._network, val)

        return Timed(n_images=passes * len(val), seconds=seconds(predict, self._device))

    def _validated_as_usual(self, batches: int) -> Timed:
        self._usual.eval()

        def predict(rows: slice) -> None:
            with torch.no_grad():
                self._usual(self._images["clean"][rows] / 255).argmax(1).cpu()

        return self._batchwise(predict, self.size.n_val, self.size.batch, batches)
