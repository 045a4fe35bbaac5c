"""Measure the full-size job on a GPU: `python -m benchmarks.gpu`.

Every phase is measured on some batches and extrapolated to all images. With `--whole`, the job is
run once whole. The usual way (benchmarks/naive.py, on images already on the device) is measured on
some batches in the same run, and so are the card's peaks. The results are written only if they come
from a GPU.

`--check --data CIFAR10.npz` checks the results of a GPU. `--tiny` does either at a tiny size.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import checks, measure
from benchmarks.gpu.job import FULL, TINY, Job, Phase, Size
from benchmarks.tables import machine, markdown, write_between
from pipeline.base import console, files
from pipeline.base.errors import InputError
from pipeline.networks import device

RESULT = Path(__file__).parents[1] / "results" / "gpu.json"
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
MARKERS = ("<!-- benchmarks.gpu: begin -->", "<!-- benchmarks.gpu: end -->")
PEAKS = {"side": 8_192, "n_bytes": 2**30}
TINY_PEAKS = {"side": 64, "n_bytes": 2**16}


def measured(size: Size, processor: torch.device, *, whole: bool) -> dict[str, Any]:
    """Return the figures of all phases and of the whole job, and the card's peaks."""
    best = measure.peaks(processor, **(PEAKS if size is FULL else TINY_PEAKS))
    job = Job(size, processor)
    phases = {phase.name: figures(phase, size, processor, best, whole) for phase in job.phases()}
    totals = {
        way: round(sum(phase[way] for phase in phases.values()), 3)
        for way in ("seconds", "usual_seconds")
    }
    totals["ratio"] = round(totals["usual_seconds"] / totals["seconds"], 2)
    return {"peaks": best, "phases": phases, "job": totals}


def figures(
    phase: Phase, size: Size, processor: torch.device, best: dict[str, float], whole: bool
) -> dict[str, Any]:
    """Return what a phase took, extrapolated to all its images, in both ways."""
    measure.forget_peak(processor)
    ours = phase.run(None if whole else size.batches)
    peak = measure.peak_mib(processor)
    usual = phase.usual(size.naive_batches)
    seconds, usual_seconds = (
        timed.seconds / timed.n_images * phase.n_images for timed in (ours, usual)
    )
    return {
        "images": phase.n_images,
        "measured_share": round(ours.n_images / phase.n_images, 6),
        "usual_measured_share": round(usual.n_images / phase.n_images, 6),
        "seconds": round(seconds, 3),
        "usual_seconds": round(usual_seconds, 3),
        "ratio": round(usual_seconds / seconds, 2),
        **measure.rates(phase.work.times(ours.n_images), ours.seconds, best),
        "peak_mib": peak,
    }


def benchmark(processor: torch.device, *, tiny: bool, whole: bool) -> str:
    """Measure, print the table, write the results of a GPU, and return what was done."""
    size = TINY if tiny else FULL
    found = {"machine": machine(), "whole": whole, **measured(size, processor, whole=whole)}
    console.say(table(found))
    if processor.type != "cuda" or tiny:
        return "nothing was written: only the full size on a GPU is"
    files.write_json(RESULT, found)
    write_between(PAGE, MARKERS, table(found))
    return str(RESULT)


def table(found: dict[str, Any]) -> str:
    """Return the machine and the figures of all phases as they are shown."""
    shares = {"of the peak TFLOP/s, %": "tflops_share", "of the peak GB/s, %": "gb_per_s_share"}
    rows = [
        {
            "phase": name,
            "images": phase["images"],
            "seconds": phase["seconds"],
            "usual way, seconds": phase["usual_seconds"],
            "ratio": phase["ratio"],
            **{title: 100 * phase[key] for title, key in shares.items()},
            "peak MiB": phase["peak_mib"] or "–",
        }
        for name, phase in found["phases"].items()
    ]
    job, best = found["job"], found["peaks"]
    return (
        f"{found['machine']}; {best['tflops']:.0f} TFLOP/s, {best['gb_per_s']:,.0f} GB/s; "
        f"{'the whole job' if found['whole'] else 'extrapolated from some batches'}:\n\n"
        f"{markdown(rows)}\n\n"
        f"In all {job['seconds']:,.0f} s, and {job['usual_seconds']:,.0f} s the usual way: "
        f"{job['ratio']} times.\n"
    )


def main() -> str:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="run the job once whole")
    parser.add_argument("--tiny", action="store_true", help="at a tiny size, on a CPU too")
    parser.add_argument("--check", action="store_true", help="check results, do not measure")
    parser.add_argument("--data", type=Path, help=".npz of CIFAR-10, for --check")
    args = parser.parse_args()
    processor = device.choose()
    if processor.type != "cuda" and not args.tiny:
        raise InputError(f"expected a GPU, found {device.describe(processor)}. Use --tiny.")
    if not args.check:
        return benchmark(processor, tiny=args.tiny, whole=args.whole)
    failed = checks.failed(args.data, processor, tiny=args.tiny)
    if failed:
        sys.exit(f"error: not as expected: {', '.join(failed)}")
    return "all checks passed"


if __name__ == "__main__":
    console.run(main)
