"""Plan a run: count its work, measure each kind of work once, and print what it costs."""

import time
from collections.abc import Sequence
from datetime import datetime

from pipeline.base import console, params, remaining
from pipeline.document import Document
from pipeline.networks import device as devices
from pipeline.plan import images as image_counts
from pipeline.plan import table
from pipeline.plan.rates import Rates
from pipeline.plan.stages import Plan
from pipeline.plan.work import Stage


def plan(
    settings: Document,
    n_images: int | None = None,
    *,
    keep: bool = False,
    where: str = str(params.FILE),
) -> str:
    """Print what a run of these params costs on this machine, and return what it took to know.

    `n_images` is the number of images, where it is not known otherwise. `keep` keeps what each
    stage costs for the next run of `params.yaml`. `where` names what the params are from.
    """
    started, device = time.perf_counter(), devices.choose()
    images = image_counts.known(settings.data, n_images, where)
    costs = measured(Plan(settings, images, device).stages(), Rates(images, device))
    console.say(table.table(costs, device, datetime.now()))
    for line in table.advice(costs, settings, device):
        console.say(line)
    if keep:
        remaining.keep({cost.stage.name: cost.seconds for cost in costs})
    return (
        f"{images.n_images:,} images ({images.origin}), {images.size} pixels per side, "
        f"on {devices.describe(device)}; measured in {time.perf_counter() - started:.0f} s"
    )


def measured(stages: Sequence[Stage], rates: Rates) -> list[table.Cost]:
    """Return what each stage costs; its process starts once, and its work follows."""
    return [_cost(stage, rates) for stage in stages]


def _cost(stage: Stage, rates: Rates) -> table.Cost:
    found = [(work, rates.of(work.kind)) for work in stage.work]
    seconds = rates.start_up(stage.name) + sum(rate.seconds(work) for work, rate in found)
    return table.Cost(
        stage=stage,
        seconds=seconds,
        memory=stage.held + max((rate.memory for _, rate in found), default=0),
        gpu_memory=max((rate.gpu_memory for _, rate in found), default=0),
    )
