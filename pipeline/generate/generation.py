"""Attack every image of the clean set, and store the results shard by shard."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import attacks
from pipeline.attacks.params import Attack, Generate
from pipeline.attacks.stored import identity
from pipeline.base import console, store
from pipeline.base.ahead import one_ahead
from pipeline.base.values import greatest
from pipeline.cluster.opened import Workers
from pipeline.generate.attacker import Attacking, Run
from pipeline.networks.precision import is_worse, precision_for, recorded
from pipeline.networks.torchvision_models import models

# Images on which both precisions are tried: this share of the set, within these bounds.
SAMPLE_SHARE, SAMPLE = 0.05, (256, 1024)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The precision of attacks, and what a trial of both found."""

    precision: str
    recorded: str
    trial: str = "none"

    def say(self) -> None:
        """Say that the trial refused bf16, if it did."""
        if self.precision == "fp32" and self.trial != "none":
            console.say(f"{self.trial}: continuing with fp32")


@dataclasses.dataclass(frozen=True)
class _Choosing:
    """The choice of the precision, made where the attacks will run."""

    job: Attacking

    def on(self, device: torch.device) -> Callable[[store.Block], Choice]:
        return lambda sample: choose(self.job, sample, device)


def generate(
    clean: store.ImageSet,
    network: models.ResNet,
    model_sha256: str,
    spec: Attack,
    settings: Generate,
    *,
    name: str,
    out: Path,
    workers: Workers,
) -> store.ImageSet:
    """Store adversarial images for all rows of `clean`, made against `network`.

    The rows are those of the train and the validation split. Rows, labels, ids and split are those
    of the clean set. Batches start at every shard's first row and have their own seeds. An
    interrupted run therefore resumes with the same images. While a shard is attacked, the one
    before it is written and the one after it is read. The network is not changed. Raises
    Interrupted after Ctrl-C or SIGTERM, once the current batch is done, or at once on a cluster.
    Whole shards are kept.
    """
    job = Attacking(
        network=network,
        image_size=clean.image_shape[1],
        n_classes=len(clean.class_names),
        precision=settings.precision,
        spec=spec,
        settings=settings,
    )
    (choice,) = workers.map(_Choosing(job), [trial_sample(clean, settings.seed)])
    choice.say()
    job = dataclasses.replace(job, precision=choice.precision)
    attributes: store.Attributes = {
        "kind": "adversarial",
        "class_names": clean.attributes["class_names"],
        **identity(clean, model_sha256, name, spec, settings),
        "threat_model": "Linf",
        "eps.stored": attacks.eps_levels(greatest(spec.eps)) / 255,
        "device": workers.kind,
        "processor": workers.processors,
        "precision": choice.recorded,
        "precision.trial": choice.trial,
        **attacks.versions(),
    }
    with store.Writer(out, attributes, bounds=clean.bounds) as writer:
        _attack_missing(clean, writer, job, workers, f"attack with {name}")
    return store.ImageSet(out)


def trial_sample(clean: store.ImageSet, seed: int) -> store.Block:
    """Return the images on which both precisions are tried.

    They are drawn from all rows, because a source may be sorted by class.
    """
    least, most = SAMPLE
    n_images = min(len(clean), most, max(least, int(SAMPLE_SHARE * len(clean))))
    drawn = np.zeros(len(clean), dtype=bool)
    drawn[np.random.default_rng(seed).choice(len(clean), n_images, replace=False)] = True
    return store.join(
        [
            clean.block(index).select(drawn[start:stop])
            for index, (start, stop) in enumerate(clean.bounds)
            if drawn[start:stop].any()
        ]
    )


def choose(job: Attacking, sample: store.Block, device: torch.device) -> Choice:
    """Return the precision to attack in, of those that the job's settings allow.

    bf16 is taken where a training would take it. With `auto`, it is not taken if attacks on it fool
    the exact network less often. Both are tried on the same images; `is_worse` decides. Where bf16
    leaves so few images that it cannot be worse, fp32 is not tried.
    """
    fp32, bf16 = recorded("fp32", device), recorded("bf16", device)
    allowed = job.settings.precision
    if precision_for(allowed, device) != "bf16":
        return Choice("fp32", fp32)
    if allowed == "bf16":
        return Choice("bf16", bf16)
    by_bf16 = _fooled(dataclasses.replace(job, precision="bf16"), sample, device)
    trial = f"bf16 attacks fool {by_bf16.sum()} of {len(sample)} images"
    if not is_worse(np.ones_like(by_bf16), by_bf16):
        return Choice("bf16", bf16, f"{trial}, too many for fp32 ones to be better")
    by_fp32 = _fooled(dataclasses.replace(job, precision="fp32"), sample, device)
    trial += f", fp32 ones {by_fp32.sum()}, both the same {(by_fp32 & by_bf16).sum()}"
    if is_worse(by_fp32, by_bf16):
        return Choice("fp32", fp32, trial)
    return Choice("bf16", bf16, trial)


def attacked_again(
    images: store.ImageSet,
    original: store.Block,
    start: int,
    network: models.ResNet,
    spec: Attack,
    settings: Generate,
    *,
    device: torch.device,
) -> store.Block:
    """Return what a stored set should hold from row `start` on, where a batch begins.

    `original` is attacked once more, in the recorded precision.
    """
    job = Attacking(
        network=network,
        image_size=original.images.shape[2],
        n_classes=len(images.class_names),
        precision=str(images.attributes["precision"]),
        spec=spec,
        settings=settings,
    )
    return job.on(device)(Run(start, original))


def _attack_missing(
    clean: store.ImageSet, writer: store.Writer, job: Attacking, workers: Workers, text: str
) -> None:
    """Attack and write the shards that do not exist yet."""
    missing = writer.missing()
    writer.require_space(missing, clean.image_shape)
    n_missing = sum(end - start for start, end in missing)
    n_done = len(clean) - n_missing
    with (
        console.progress(len(clean), text, "images", n_done) as bar,
        console.stopping() as stop,
    ):
        found = workers.map(job, _runs(clean, missing, job.settings.batch_size, workers), stop)
        for start, end in missing:
            parts: list[store.Block] = []
            while (n_rows := sum(len(part) for part in parts)) < end - start:
                part = next(found, None)
                if part is None:
                    break
                parts.append(part)
                bar.update(len(part))
            if n_rows == end - start:
                writer.write_behind(start, store.join(parts))
                n_done += n_rows
            if stop.asked:
                writer.flush()
                raise console.Interrupted(f"{text}: {n_done} of {len(clean)} images are done")


def _runs(
    clean: store.ImageSet, missing: list[store.Run], batch_size: int, workers: Workers
) -> Iterator[Run]:
    """Yield runs of whole batches inside the shards that do not exist yet, in order."""
    n_left = sum(-(-(end - start) // batch_size) for start, end in missing)

    def read(run: store.Run) -> store.Block:
        return clean.block(clean.bounds.index(run))

    for (start, _), block in one_ahead(read, missing):
        first = 0
        while first < len(block):
            n_batches = workers.batches(n_left)
            rows = slice(first, min(first + n_batches * batch_size, len(block)))
            n_left -= -(-(rows.stop - first) // batch_size)
            yield Run(start + first, block.select(rows))
            first = rows.stop


def _fooled(job: Attacking, sample: store.Block, device: torch.device) -> NDArray[np.bool_]:
    """Return which attacked images (N,) of the first rows of a set the network gets wrong."""
    fooled = job.on(device)(Run(0, sample)).fooled
    assert fooled is not None
    return fooled
