"""Print what large runs would take on GPUs: `python -m benchmarks.cluster_arithmetic`.

Nothing is measured here. The assumptions are the constants below. The figures of "On paper" in
docs/cluster.md are lines of the output.
"""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

GPUS = (1, 8, 64)
PEAK = 990e12  # dense bf16 FLOP per second of an H100 SXM, as its data sheet says
REACHED = {"32x32": 0.10, "224x224": 0.30}  # shares of the peak that are assumed
PASSES = 3  # a gradient costs a forward pass and a backward pass of twice its FLOP
NETWORK_BYTES = 94e6  # ResNet-50's weights in float32
LINK = 10e9 / 8  # bytes per second of the driver's network: 10 Gbit/s
DISK = 1e9  # bytes per second that the driver writes
TASK_SECONDS = 20.0  # a unit of work, which is never more than a shard
SHARD_ROWS = 4096  # as params.yaml has it
ENTRY_BYTES = 120  # of a shard in its set's manifest, which is written again after every shard


@dataclass(frozen=True)
class Case:
    """A set to be made: its images and the attack's steps."""

    name: str
    images: float
    size: int
    steps: int

    @property
    def forward_flop(self) -> float:
        """The FLOP of one image, as torch counts them in torchvision's ResNet-50."""
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            models.resnet50().eval()(torch.zeros(1, 3, self.size, self.size))
        return float(counter.get_total_flops())

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.size**2 + 32

    @property
    def gpu_hours(self) -> float:
        reached = PEAK * REACHED[f"{self.size}x{self.size}"]
        flop = self.forward_flop * (PASSES * self.steps + 1)  # one pass judges the stored image
        return self.images * flop / reached / 3600

    @property
    def images_per_gpu_second(self) -> float:
        return self.images / self.gpu_hours / 3600


CASES = (
    Case("10^9 images of 32x32, ResNet-50, PGD-10", 1e9, 32, 10),
    Case("ImageNet, 1.28 M of 224x224, ResNet-50, PGD-10", 1.28e6, 224, 10),
)


def lines(case: Case) -> list[str]:
    """Return what a case takes, one figure a line."""
    volume = case.images * case.bytes_per_image
    one = case.images_per_gpu_second
    rows = min(SHARD_ROWS, TASK_SECONDS * one)
    in_flight = 4 * rows * case.bytes_per_image  # two tasks, each with clean and attacked rows
    shards = case.images / SHARD_ROWS
    full_link = LINK / case.bytes_per_image / one
    full_disk = DISK / case.bytes_per_image / one
    found = [
        case.name,
        f"  GPU hours                     {case.gpu_hours:,.1f} ({one:,.0f} images per GPU second)",
        f"  disk, network each way        {volume / 1e9:,.0f} GB",
        f"  seconds per task              {rows / one:.1f} ({rows:,.0f} images)",
        f"  object store per GPU          {in_flight / 1e6:,.0f} MB",
        f"  shards                        {shards:,.0f}",
        f"  manifests written in all      {shards**2 / 2 * ENTRY_BYTES / 1e9:,.1f} GB",
        f"  weights per node              {NETWORK_BYTES / 1e6:.0f} MB, once",
        f"  the driver's network is full  at {full_link:,.0f} GPUs",
        f"  the driver's disk is full     at {full_disk:,.0f} GPUs",
    ]
    for gpus in GPUS:
        hours = max(case.gpu_hours / gpus, volume / LINK / 3600, volume / DISK / 3600)
        found.append(f"  time on {gpus:2} GPUs               {hours:,.2f} h")
    return found


def main() -> None:
    for case in CASES:
        print("\n".join(lines(case)))


if __name__ == "__main__":
    main()
