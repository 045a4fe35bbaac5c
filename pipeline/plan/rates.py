"""Measure a few real steps of each kind of work on this machine, on random images."""

import contextlib
import dataclasses
import gc
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import attacks, networks
from pipeline.attacks.params import Attack
from pipeline.base.store import Block
from pipeline.evaluate import whitebox
from pipeline.evaluate.target import Passes, Target
from pipeline.networks import matrix_products, precision
from pipeline.networks.memory_fit import InParts
from pipeline.plan import training_steps, trial_sets
from pipeline.plan.images import Images
from pipeline.plan.work import Kind, Work, passes
from pipeline.train.params import Training

SIZES = (32, 256)  # batches on which attacks and predictions are measured
FEW = 4  # images of the first batch, which tells whether the others take too long
SECONDS = 0.5  # of each measurement, after a run that is not counted
LONGEST = 1.5  # seconds of one run; a batch that would take longer is made smaller
BUDGET = 15.0  # seconds without starts; from then on each measurement is a single run
EXACT = ("", "float32")  # dtypes of networks that judge, or that are attacked to be judged
STORED = 4096  # images that are written to measure the store
SHORT = {"steps": 2, "n_queries": 5}  # of an attack that is measured
# So small that no image falls: an attack skips the images that have fallen.
EPS = 1e-6
STARTS = {
    "prepare": "pipeline.prepare.__main__",
    "": "pipeline.evaluate.__main__, torchattacks, scipy.stats, matplotlib.pyplot",
}
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """What work of one kind costs: seconds per image and per batch, and bytes at its peak."""

    per_image: float
    per_batch: float = 0.0
    memory: int = 0
    gpu_memory: int = 0

    def seconds(self, work: Work) -> float:
        return work.images * self.per_image + work.batches * self.per_batch


class Rates:
    """Measures each kind of work once."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self._images, self._device = images, device
        self._began = time.perf_counter()
        self._found: dict[Kind, Rate] = {}
        self._starts: dict[str, float] = {}
        self._targets: dict[str, Target] = {}

    def start_up(self, stage: str) -> float:
        """Return the seconds in which the process of a stage starts."""
        modules = imports(stage)
        if modules not in self._starts:
            started = time.perf_counter()
            self._starts[modules] = start_up(modules)
            self._began += time.perf_counter() - started
        return self._starts[modules]

    def of(self, kind: Kind) -> Rate:
        """Return what a kind of work costs."""
        if kind not in self._found:
            measure = {
                "store": self._store,
                "classify": self._classify,
                "attack": self._attack,
                "train": self._train,
            }[kind.name]
            _forget_peaks(self._device)
            per_image, per_batch = measure(kind)
            memory, gpu_memory = _peaks(self._device)
            self._found[kind] = Rate(
                per_image=per_image, per_batch=per_batch, memory=memory, gpu_memory=gpu_memory
            )
        return self._found[kind]

    def _store(self, _: Kind) -> tuple[float, float]:
        """Write images to the store, and read them back."""
        n = min(STORED, self._images.n_images)
        block = trial_sets.block(n, self._images.size, self._images.n_classes)
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            started = time.perf_counter()
            trial_sets.write(Path(folder, "set"), block, self._images.n_classes)
            return (time.perf_counter() - started) / n, 0.0

    def _classify(self, kind: Kind) -> tuple[float, float]:
        """Predict classes by the network itself."""
        network = self._target(kind).network
        images = self._block(max(SIZES)).images
        return self._line(lambda n: networks.predict(network, images[:n]), max(SIZES))

    def _attack(self, kind: Kind) -> tuple[float, float]:
        """Attack batches as the evaluation does, or in another precision."""
        target, spec = self._target(kind), shortened(kind.recipe)
        # One target costs as much as any other, so a targeted attack is given two classes.
        n_classes = 2 if kind.targets > 1 else self._images.n_classes
        attack = attacks.build(spec, target.attacked, n_classes)
        block = self._block(self._affordable(kind.architecture))
        images = networks.pixels(block.images, self._device).contiguous()
        labels = torch.from_numpy(networks.predict(target.network, block.images)).to(self._device)
        counter = Passes()
        allowed = precision.exact if kind.dtype in EXACT else precision.tensor_floats

        @allowed()
        def run(n: int) -> object:
            return whitebox.perturb(attack, images[:n], labels[:n], EPS, counter, 0)

        per_image, per_batch = self._line(run, len(images))
        n_passes = passes(spec)
        return per_image / n_passes, per_batch / n_passes

    def _train(self, kind: Kind) -> tuple[float, float]:
        """Take real steps of the training loop."""
        recipe = kind.recipe
        classify = self.of(Kind(name="classify", architecture=kind.architecture))
        steps = 3 * (1 + _attack_steps(recipe))
        affordable = int(LONGEST / (classify.per_image * steps))
        recipe = _with_batches(recipe, max(16, affordable))
        batch_size = recipe.batch_size
        with tempfile.TemporaryDirectory(prefix="plan-") as name:
            folder, n_classes = Path(name), self._images.n_classes
            n_steps = training_steps.STEPS + training_steps.untimed(self._device)
            stored = trial_sets.write(folder / "set", self._block(n_steps * batch_size), n_classes)
            network = training_steps.new_network(kind.architecture, n_classes)
            seconds = 2 * SECONDS if self._has_time else 0.0
            per_image = training_steps.per_image(
                recipe, network, stored, folder, self._device, seconds
            )
        return per_image, 0.0

    def _block(self, n_images: int) -> Block:
        return trial_sets.block(n_images, self._images.size, self._images.n_classes)

    def _target(self, kind: Kind) -> Target:
        """Return the network as the evaluation attacks it, or as `generate` does in bfloat16."""
        exact = self._exact(kind.architecture)
        if kind.dtype in EXACT:
            return exact
        dtype = getattr(torch, kind.dtype)
        fast = matrix_products.for_attacks(exact.network.network, self._images.size, dtype)
        return dataclasses.replace(exact, attacked=InParts(fast))

    def _exact(self, architecture: str) -> Target:
        if architecture not in self._targets:
            n_classes, size = self._images.n_classes, self._images.size
            network = training_steps.new_network(architecture, n_classes).to(self._device)
            self._targets[architecture] = Target.of(
                network, n_classes, batch_size=max(SIZES), seed=0, image_size=size
            )
        return self._targets[architecture]

    def _affordable(self, architecture: str) -> int:
        """Return how many images at most may be attacked at once while this is measured."""
        classify = self.of(Kind(name="classify", architecture=architecture))
        return max(2 * FEW, min(max(SIZES), int(LONGEST / classify.per_image)))

    def _line(self, run: Callable[[int], object], most: int) -> tuple[float, float]:
        """Return the seconds per image and per batch of work on batches of two sizes.

        None has more than `most` images.
        """
        run(FEW)
        affordable = int(LONGEST * FEW / self._timed(run, FEW))
        large = max(2 * FEW, min(most, affordable))
        small = min(min(SIZES), large // 2)
        first, second = self._timed(run, small), self._timed(run, large)
        slope = max((second - first) / (large - small), second / large / 2)
        return slope, max(0.0, second - slope * large)

    def _timed(self, run: Callable[[int], object], n_images: int) -> float:
        """Return the mean seconds of some runs on so many images."""
        n_before = training_steps.untimed(self._device)
        if n_before > 1 or (self._has_time and n_images > FEW):
            for _ in range(n_before):
                run(n_images)
        training_steps.wait_for(self._device)
        count, started = 0, time.perf_counter()
        while count == 0 or (self._has_time and time.perf_counter() - started < SECONDS / 2):
            run(n_images)
            training_steps.wait_for(self._device)
            count += 1
        return (time.perf_counter() - started) / count

    @property
    def _has_time(self) -> bool:
        return time.perf_counter() - self._began < BUDGET


def imports(stage: str) -> str:
    """Return the modules that a stage imports when it starts, as Python lists them."""
    return STARTS.get(stage, STARTS[""])


def start_up(modules: str) -> float:
    """Return the seconds in which a process starts that imports some modules.

    They are processor time. The first start after a while also waits for the disk, which the starts
    of a run then do not.
    """
    before = _children_seconds()
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    return _children_seconds() - before


def shortened(spec: Attack) -> Attack:
    """Return the same attack with few steps, at an eps that makes no image fall."""
    entry = spec.model_dump()
    fewer = {key: min(entry[key], most) for key, most in SHORT.items() if key in entry}
    return type(spec).model_validate({**entry, **fewer, "eps": EPS})


def _with_batches(recipe: Training, size: int) -> Training:
    """Return the recipe with batches of at most `size` images, or of as few as its mix allows."""
    for batch_size in range(min(size, recipe.batch_size), recipe.batch_size):
        smaller = recipe.model_copy(update={"batch_size": batch_size})
        with contextlib.suppress(ValueError):
            if smaller.counts:
                return smaller
    return recipe


def _attack_steps(recipe: object) -> int:
    """Return the steps of the attack inside a training."""
    inner = getattr(recipe, "refresh", None) or getattr(recipe, "adversary", None)
    return getattr(inner, "steps", 0)


def _children_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _forget_peaks(device: torch.device) -> None:
    """Begin to count the peak of the memory again."""
    gc.collect()
    with contextlib.suppress(OSError):  # not allowed everywhere; peaks then only rise
        Path("/proc/self/clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> tuple[int, int]:
    """Return the peak bytes of main memory and of a GPU's memory."""
    found = PEAK.search(Path("/proc/self/status").read_text())
    main = 1024 * int(found[1]) if found else 0
    return main, torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
