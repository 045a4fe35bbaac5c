"""Count the work of every stage from the params and the number of images. Nothing is measured."""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from pipeline import attacks
from pipeline.attacks.params import Attack
from pipeline.base.values import CLEAN, Spread
from pipeline.document import Document
from pipeline.export.params import AUTO
from pipeline.generate import generation
from pipeline.harden import refreshed_sets
from pipeline.harden.params import Finetune, Online
from pipeline.networks import precision, resnet
from pipeline.networks.device import multiplies_bfloat16
from pipeline.networks.prediction import BATCH_SIZE
from pipeline.plan.images import Images
from pipeline.plan.judging import FP32, STAYS_HARDENED, STAYS_OTHER, Judging
from pipeline.plan.work import PLAIN, Kind, Stage, Work, attacked, classified
from pipeline.report.gallery import SEARCHED
from pipeline.report.page import MOST_BYTES
from pipeline.train import checkpointed, mixing
from pipeline.train.params import Training

AUDITED = 128  # images of each adversarial set that the audit attacks again, at least


class Plan:
    """Counts the work of all stages on `device`."""

    def __init__(self, settings: Document, images: Images, device: torch.device) -> None:
        self._settings, self._images, self._device = settings, images, device

    def stages(self) -> list[Stage]:
        """Return the stages, in about the order in which they run."""
        return [
            self._prepare(),
            self._train(CLEAN, self._settings.clean, "train_clean"),
            *(self._online(name, recipe) for name, recipe in self._settings.online.items()),
            *(self._adopt(name) for name in self._settings.adopted),
            *self._generated(),
            *(self._finetune(name) for name in self._settings.models if self._is_tuned(name)),
            *(self._evaluate(name) for name in self._settings.evaluate.models),
            self._export(),
            self._audit(),
            self._report(),
        ]

    def _is_tuned(self, name: str) -> bool:
        return name in self._settings.finetuned

    def _prepare(self) -> Stage:
        n = self._images.n_images
        work = Work(kind=Kind(name="store"), images=n)
        disk = n * self._images.n_bytes
        return Stage(name="prepare", text=f"{n:,} images", work=(work,), disk=disk)

    def _train(self, name: str, recipe: Training, stage: str) -> Stage:
        """Return a training on clean images, scored on clean validation images."""
        per_epoch = epoch_images({CLEAN: self._images.n_train}, recipe.counts, recipe)
        score = self._classified(name, recipe.epochs * self._images.n_val)
        work = (self._trained(name, recipe, per_epoch * recipe.epochs), score)
        text = f"{per_epoch:,} images x {recipe.epochs} epochs"
        return self._training(stage, name, text, work)

    def _online(self, name: str, recipe: Online) -> Stage:
        plain = self._train(name, recipe, f"train_online@{name}")
        steps = recipe.adversary.steps
        if recipe.best_on == "robust":
            plain = self._training(
                plain.name, name, plain.text, (plain.work[0], *self._robust_scores(name, recipe))
            )
        return Stage(**{**vars(plain), "text": f"{plain.text} x {steps} steps"})

    def _finetune(self, name: str) -> Stage:
        recipe = self._settings.finetuned[name]
        counts, n_train = recipe.counts, self._images.n_train
        per_epoch = epoch_images(dict.fromkeys(counts, n_train), counts, recipe)
        text = f"{per_epoch:,} images x {recipe.epochs} epochs"
        refreshed = 0
        if recipe.refresh is not None:
            refreshed = -(-recipe.epochs // recipe.refresh.every)
            text += f", {per_epoch - n_train:,} of them x {recipe.refresh.steps} steps"
        plain = recipe.model_copy(update={"refresh": None})
        work = [
            self._trained(name, recipe, per_epoch * refreshed),
            self._trained(name, plain, per_epoch * (recipe.epochs - refreshed)),
            *self._scores(name, recipe),
        ]
        stage = self._training(f"finetune@{name}", name, text, tuple(work))
        return stage if recipe.refresh is None else self._with_sets(stage, name, recipe)

    def _with_sets(self, stage: Stage, name: str, recipe: Finetune) -> Stage:
        """Return a fine-tuning that also keeps, classifies and stores its refreshed sets."""
        images, n_sets = self._images, len(recipe.counts) - 1
        n_stored = n_sets * images.n_images
        batch = refreshed_sets.BATCH
        work = (
            classified(self._settings.architecture_of(name), n_stored, batch),
            Work(kind=Kind(name="store"), images=n_stored),
        )
        copy = (n_sets + 1) * images.n_train * 3 * images.size**2
        changed = {
            "work": (*stage.work, *work),
            "disk": stage.disk + n_stored * images.n_bytes,
            # The working copy, and the unfinished work with the copy in it, which is there twice
            # while it is replaced.
            "extra_disk": stage.extra_disk + 3 * copy,
            "held": stage.held + (0 if self._device.type == "cuda" else copy),
        }
        return Stage(**{**vars(stage), **changed})

    def _training(self, stage: str, name: str, text: str, work: tuple[Work, ...]) -> Stage:
        weights = weight_bytes(self._settings.architecture_of(name), self._images.n_classes)
        return Stage(
            name=stage,
            text=text,
            work=tuple(part for part in work if part.images),
            disk=weights,
            extra_disk=checkpointed.COPIES * weights,
            held=self._val_bytes,
        )

    def _trained(self, name: str, recipe: Training, n_images: int) -> Work:
        architecture = self._settings.architecture_of(name)
        about = recipe.model_dump(
            include={"batch_size", "optimizer", "precision", "augment", "sampling", "mix"}
        )
        about["ema"], about["paired"] = recipe.ema is not None, recipe.paired
        if isinstance(recipe, Finetune) and recipe.refresh is not None:
            about["refresh"] = recipe.refresh.model_dump(include={"steps", "warm_start"})
        if isinstance(recipe, Online):
            about["adversary"] = recipe.adversary.model_dump(include={"steps", "loss", "target"})
            about["clean"] = recipe.clean_weight > 0
        kind = Kind(
            name="train",
            architecture=architecture,
            about=json.dumps(about, sort_keys=True),
            recipe=recipe,
        )
        return Work(kind=kind, images=n_images)

    def _scores(self, name: str, recipe: Finetune) -> Iterator[Work]:
        """Yield the scores of all epochs of a fine-tuning."""
        if recipe.best_on == "robust":
            yield from self._robust_scores(name, recipe)
        else:
            n_val = self._images.n_val * len(recipe.mix)
            yield self._classified(name, recipe.epochs * n_val)

    def _robust_scores(self, name: str, recipe: Finetune | Online) -> Iterator[Work]:
        """Yield the scores of all epochs by FGSM and PGD."""
        spec, architecture = self._settings.selection, self._settings.architecture_of(name)
        n = recipe.epochs * min(spec.n_images, self._images.n_val)
        dtype = _name(precision.dtype_for(recipe.precision, self._device))
        for steps in (1, spec.steps):
            pgd = {**PLAIN, "eps": spec.eps, "alpha": spec.alpha, "steps": steps}
            yield attacked(architecture, Attack.model_validate(pgd), n, BATCH_SIZE, dtype)
        yield self._classified(name, 3 * n)

    def _generated(self) -> Iterator[Stage]:
        settings = self._settings
        groups = {"generate": settings.attacked, "generate_source": settings.sources}
        for prefix, models in groups.items():
            for model in models:
                for attack in settings.attacks:
                    yield self._generate(f"{prefix}@{model}-{attack}", model, attack)

    def _generate(self, stage: str, model: str, attack: str) -> Stage:
        spec, n = self._settings.attacks[attack], self._images.n_images
        steps = _steps(spec)
        work = [*self._once(model, spec, n, self._dtype), *self._trial(model, spec)]
        work.append(Work(kind=Kind(name="store"), images=n))
        disk = n * self._images.n_bytes
        shard = min(n, self._settings.store.shard_rows) * self._images.n_bytes
        return Stage(
            name=stage,
            text=f"{n:,} images" + (f" x {steps} steps" if steps else ""),
            work=tuple(work),
            disk=disk,
            held=5 * shard,
        )

    @property
    def _dtype(self) -> str:
        return _name(precision.dtype_for(self._settings.generate.precision, self._device))

    def _once(self, model: str, spec: Attack, n_images: int, dtype: str) -> Iterator[Work]:
        """Yield one attack on some images as `generate` runs it."""
        size = self._settings.generate.batch_size
        if isinstance(spec.eps, Spread):  # the images of each eps are a batch of their own
            low, high = map(attacks.eps_levels, spec.eps.bounds)
            size = max(1, size // (high - low + 1))
        architecture = self._settings.architecture_of(model)
        yield attacked(architecture, spec, n_images, size, dtype)
        yield classified(architecture, n_images, size)

    def _trial(self, model: str, spec: Attack) -> Iterator[Work]:
        """Yield the trial of both precisions.

        It is assumed that attacks of several steps fool all images of a model that is not hardened,
        so that fp32 is not tried.
        """
        is_auto = self._settings.generate.precision == "auto"
        if is_auto and multiplies_bfloat16(self._device):
            least, most = generation.SAMPLE
            share = int(generation.SAMPLE_SHARE * self._images.n_images)
            n = min(most, max(least, share), self._images.n_images)
            fools_all = stays(self._settings, model) == STAYS_OTHER and (_steps(spec) or 1) > 1
            for dtype in (self._dtype,) if fools_all else (FP32, self._dtype):
                yield from self._once(model, spec, n, dtype)

    def _adopt(self, name: str) -> Stage:
        weights = weight_bytes(self._settings.architecture_of(name), self._images.n_classes)
        return Stage(name=f"adopt@{name}", text="1 model", disk=weights)

    def _evaluate(self, name: str) -> Stage:
        settings = self._settings
        judging = Judging(settings.evaluate, settings.architecture_of(name), stays(settings, name))
        n_judged, n_stored = self._images.n_judged, len(settings.attacks)
        work = tuple(judging.work(n_judged, n_stored, self._images.n_classes))
        stage = Stage(name=f"evaluate@{name}", text="", work=work)
        text = f"{n_judged:,} images, {stage.images('attack'):,} attack passes"
        return Stage(**{**vars(stage), "text": text, "held": self._judged_bytes * (1 + n_stored)})

    @property
    def _submitted(self) -> str:
        """Return the model to submit; where only a run can tell, the last one that is judged."""
        name = self._settings.export.model
        return self._settings.evaluate.models[-1] if name == AUTO else name

    def _export(self) -> Stage:
        architecture = self._settings.architecture_of(self._submitted)
        disk = weight_bytes(architecture, self._images.n_classes)
        return Stage(name="export", text="1 model", disk=disk)

    def _audit(self) -> Stage:
        """Return the audit: a sample of each set is attacked again, each model is judged again."""
        settings, work = self._settings, list[Work]()
        n_sets = len(settings.attacks)
        n = min(self._images.n_images, max(AUDITED, settings.generate.batch_size))
        for model in (*settings.attacked, *settings.sources):
            for spec in settings.attacks.values():
                work += self._once(model, spec, n, self._dtype)
        for model in settings.models:
            n_parts = 1 + n_sets + len(settings.mix_of(model))
            work.append(self._classified(model, self._images.n_judged * n_parts))
        text = f"{len(settings.models)} models, {n_sets} attacks"
        return Stage(name="audit", text=text, work=tuple(work), held=self._judged_bytes)

    def _report(self) -> Stage:
        """Return the report: images to show are searched for in every stored set."""
        settings = self._settings
        n = min(SEARCHED, self._images.n_judged) * (1 + len(settings.attacks))
        work = (self._classified(self._submitted, n),)
        return Stage(name="report", text="1 page", work=work, disk=MOST_BYTES)

    def _classified(self, model: str, n_images: int) -> Work:
        return classified(self._settings.architecture_of(model), n_images, BATCH_SIZE)

    @property
    def _judged_bytes(self) -> int:
        return self._images.n_judged * self._images.n_bytes

    @property
    def _val_bytes(self) -> int:
        return self._images.n_val * self._images.n_bytes


def _steps(spec: Attack) -> int | None:
    """Return the steps of an attack that has them."""
    steps: int | None = (spec.model_extra or {}).get("steps")
    return steps


def stays(settings: Document, model: str) -> float:
    """Return the assumed share of the images that withstand attacks on a model."""
    recipe = settings.finetuned.get(model)
    is_static = model == CLEAN or (recipe is not None and recipe.refresh is None)
    return STAYS_OTHER if is_static else STAYS_HARDENED


def epoch_images(n_rows: Mapping[str, int], counts: Mapping[str, int], recipe: Training) -> int:
    """Return the images of one epoch over streams of so many rows."""
    labels = {name: np.zeros(n, dtype=np.int64) for name, n in n_rows.items()}
    return mixing.MixSampler(labels, counts, recipe.seed).n_images


def weight_bytes(architecture: str, n_classes: int) -> int:
    """Return the size of a network's tensors."""
    return sum(tensor.nbytes for tensor in resnet.expected(architecture, n_classes).values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
