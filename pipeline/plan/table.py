"""Print what a run costs, and what would shorten it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import torch

from pipeline.base import words
from pipeline.document import Document
from pipeline.plan.work import Stage

DAY = 24 * 3600
HEAD = ("stage", "work", "time", "disk", "memory", "GPU")
LARGE = 0.2  # share of the whole time above which a kind of stage is worth shortening


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage costs: seconds, and bytes at the peak of its process."""

    stage: Stage
    seconds: float
    memory: int
    gpu_memory: int


def table(costs: Sequence[Cost], device: torch.device, now: datetime) -> str:
    """Return the costs as text, with their total and the time at which they would end."""
    rows = [HEAD, *(_row(cost, device) for cost in costs), _total(costs, device)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [_line(row, widths) for row in rows]
    seconds = sum(cost.seconds for cost in costs)
    end = now + timedelta(seconds=seconds)
    extra = max(cost.stage.extra_disk for cost in costs)
    return "\n".join(
        [
            *lines,
            f"begun now, it would end on {end:%A %d %B at %H:%M}",
            f"while a training runs, unfinished work needs up to {size(extra)} more disk",
        ]
    )


def advice(costs: Sequence[Cost], settings: Document, device: torch.device) -> Iterator[str]:
    """Yield what would shorten a run of more than a day, and nothing for a shorter one."""
    seconds = sum(cost.seconds for cost in costs)
    if seconds <= DAY:
        return
    yield f"this is {seconds / DAY:.1f} days; what would shorten it:"
    if device.type != "cuda":
        yield "  a GPU: PIPELINE_DEVICE=auto uses it if torch sees one"
    if settings.model.architecture == "resnet50":
        yield "  model.architecture: resnet18"
    hints = {
        ("train", "finetune"): "fewer epochs in {stage}",
        ("generate",): "fewer steps of the attack of {stage}",
        ("evaluate",): "fewer images and iterations in evaluate.n_eval, ensemble, curves and grid, "
        "for {stage}",
    }
    for prefixes, hint in hints.items():
        own = [cost for cost in costs if cost.stage.name.startswith(prefixes)]
        share = sum(cost.seconds for cost in own) / seconds
        if share > LARGE:
            longest = max(own, key=lambda cost: cost.seconds)
            words = hint.format(stage=longest.stage.name)
            yield f"  {words} ({share:.0%} of the time is such work)"


def size(n_bytes: int) -> str:
    """Return a number of bytes in words, such as "94 MB"."""
    if n_bytes < 1e6:
        return "-" if not n_bytes else "<1 MB"
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e10 else f"{n_bytes / 1e9:,.1f} GB"


def _row(cost: Cost, device: torch.device) -> tuple[str, ...]:
    gpu = size(cost.gpu_memory) if device.type == "cuda" else "-"
    stage = cost.stage
    return (
        stage.name,
        stage.text,
        words.duration(cost.seconds),
        size(stage.disk),
        size(cost.memory),
        gpu,
    )


def _total(costs: Sequence[Cost], device: torch.device) -> tuple[str, ...]:
    gpu = max(cost.gpu_memory for cost in costs)
    return (
        "total",
        "",
        words.duration(sum(cost.seconds for cost in costs)),
        size(sum(cost.stage.disk for cost in costs)),
        size(max(cost.memory for cost in costs)),
        size(gpu) if device.type == "cuda" else "-",
    )


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    words = [text.ljust(width) for text, width in zip(row[:2], widths, strict=False)]
    numbers = [text.rjust(width) for text, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join([*words, *numbers]).rstrip()
