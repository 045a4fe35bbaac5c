"""Attack a sample of an adversarial set again, and compare."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.attacks.params import Attack
from pipeline.audit.elsewhere import made_elsewhere
from pipeline.audit.margins import TIGHT, margins_of
from pipeline.audit.project import Project, Row, judged
from pipeline.audit.tally import Tally
from pipeline.base import store
from pipeline.document import Document
from pipeline.generate import generation
from pipeline.networks.device import threads_of
from pipeline.networks.torchvision_models import models

SAMPLE = 128  # images attacked again per adversarial set, in whole batches
# The largest share of an image's values that may differ when it is attacked again. A GPU adds in no
# fixed order, and a batch that passes through the network in parts is added in another order. Each
# gradient sign that this flips moves a pixel. Other random numbers would move most pixels.
SAME = {"cpu": 0.0, "cuda": 0.25}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Whole batches of a set, beginning at `rows.start`, with their clean originals."""

    rows: range
    shard: str
    original: store.Block
    stored: store.Block

    def compare(self, wrong: NDArray[np.bool_]) -> str:
        """Return what is wrong where some of its rows (n,) are wrong, else an empty text."""
        tally = Tally(n=len(self.rows))
        tally.blame("sample", wrong, self.rows, self.stored.ids, self.shard)
        return tally.problem("sample")


def sample_of(clean: store.ImageSet, images: store.ImageSet, settings: Document) -> Sample:
    """Return at least SAMPLE rows, in whole batches, fewer only where their shard has fewer.

    Only the set's content decides where the sample begins.
    """
    size = settings.generate.batch_size
    starts = [
        (shard, start)
        for shard, (first, stop) in enumerate(images.bounds)
        for start in range(0, max(1, stop - first - SAMPLE + 1), size)
    ]
    shard, start = starts[int(images.digest, 16) % len(starts)]
    original, stored = clean.block(shard), images.block(shard)
    stop = min(start + math.ceil(SAMPLE / size) * size, len(stored))
    taken = (np.arange(len(stored)) >= start) & (np.arange(len(stored)) < stop)
    first = images.bounds[shard][0]
    return Sample(
        rows=range(first + start, first + stop),
        shard=store.shard_name(shard),
        original=original.select(taken),
        stored=stored.select(taken),
    )


def checks(project: Project, path: str, model: str, sample: Sample) -> Iterator[Row]:
    """Show the sample's images to their source model again, and attack their originals again."""
    where = f"{path} (rows {sample.rows.start} to {sample.rows.stop - 1})"
    yield fooled_again(project, path, model, sample)
    yield _attacked_again(project, path, project.network(model), sample, where)


def fooled_again(project: Project, path: str, model: str, sample: Sample) -> Row:
    """Show the sample's images to the model that their `fooled` flags describe."""
    stored, network = sample.stored, project.network(model)
    assert stored.fooled is not None
    where = f"{path} (rows {sample.rows.start} to {sample.rows.stop - 1})"
    margins = margins_of(network, stored, project.settings.generate.batch_size)
    problem = sample.compare(((margins <= 0) != stored.fooled) & (np.abs(margins) > TIGHT))
    value = f"{(margins <= 0).mean():.2%} of {len(stored)} images, each as stored"
    return judged("fooled again", problem, value, f"{where}, {model}")


def _attacked_again(
    project: Project, path: str, network: models.ResNet, sample: Sample, where: str
) -> Row:
    """Make the sample's images again and compare them with the stored ones.

    The bytes are identical where the same libraries run on the same processor, with as many threads
    as the set records. On a GPU they are nearly identical.
    """
    attributes, settings, what = project.images(path).attributes, project.settings, "attacked again"
    if attributes["device"] != project.device.type:
        text = f"made on {attributes['device']}, this is {project.device.type}"
        return Row(what, text, where, "not comparable")
    spec = settings.attacks[str(attributes["attack"])]

    with threads_of(str(attributes.get("processor"))):
        shares = _differing(project, path, network, spec, sample)
        others = made_elsewhere(attributes, project.device)
    problem = sample.compare(shares > SAME[project.device.type])
    if problem and others:
        text = f"{problem}; {others}"
        return Row(what, text, where, "not comparable")
    same = (
        "the same bytes"
        if not shares.any()
        else f"{shares.mean():.2%} of their values differ, as sums on a GPU do"
    )
    return judged(what, problem, f"{len(sample.rows)} images, {same}", where)


def _differing(
    project: Project, path: str, network: models.ResNet, spec: Attack, sample: Sample
) -> NDArray[np.float64]:
    """Return the share of the values that differ in each image (n,) when it is attacked again.

    All differ where another eps is recorded than is drawn again.
    """
    again = generation.attacked_again(
        project.images(path),
        sample.original,
        sample.rows.start,
        network,
        spec,
        project.settings.generate,
        device=project.device,
    )
    differs = again.images != sample.stored.images
    if again.eps is not None:
        differs |= (again.eps != sample.stored.eps)[:, None, None, None]
    found: NDArray[np.float64] = differs.mean(axis=(1, 2, 3))
    return found
