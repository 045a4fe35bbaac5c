"""A tiny pipeline that is disturbed, then compared byte by byte.

It is killed at random moments, its writes are refused, and its unfinished files are cut short. Each
stage runs as DVC runs it: its outputs are deleted first, but its unfinished files are not. Stages
run in forked children of one process, so that torch is imported only once. Linux only.
"""

import ctypes
import errno
import importlib
import mmap
import os
import random
import resource
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dvc.repo
import torch
from ruamel.yaml import YAML

from pipeline import attacks
from pipeline.audit import lineage
from pipeline.audit.project import LAST
from pipeline.base import files
from pipeline.train import loop
from tests.conftest import ROOT

# Imported once, before the children are forked.
SHARED = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "sklearn.datasets",
    "torchattacks",
)
OUTPUTS = ("data", "models", "metrics", "plots")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MOST_ATTEMPTS = 40  # of one stage: each fault leaves some work done, so it ends much sooner
HANGS = 120.0  # seconds


@dataclass
class Tally:
    """The outcome of a disturbed run.

    Work is counted in training steps and attacked batches. Only kills that ended a stage are
    counted.
    """

    faults: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    needed: int = 0
    done: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        injected = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        redone = 100 * (self.done - self.needed) / self.needed
        return (
            f"faults injected: {sum(self.faults.values())} ({injected}), {self.kills} of them "
            "ended a stage by a signal\n"
            f"work redone: {redone:.0f} % of one undisturbed run\n"
            f"files lost: {len(self.lost)} {self.lost[:3] or ''}\ndifferences: "
            f"{len(self.different)} {self.different[:3] or ''}"
        )


class Pipeline:
    """A copy of the project with tiny params in `folder`.

    It runs its stages one by one, as often as it takes.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self._random = folder, random.Random(seed)
        self._work = mmap.mmap(-1, 8)  # shared with the children
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copy(ROOT / name, folder)
        for name in ("data/raw", "data/adversarial/sources", "models/pretrained"):
            (folder / name).mkdir(parents=True)
        content = YAML(typ="safe").load((folder / "params.yaml").read_text())
        tiny(content)
        YAML().dump(content, folder / "params.yaml")
        dvc.repo.Repo.init(str(folder), no_scm=True).close()
        declared = lineage.declared(folder)
        self.stages = {name: stage for name, stage in declared.items() if name not in LAST}
        self.seconds: dict[str, float] = {}

    @property
    def work(self) -> int:
        """Training steps and attacked batches so far."""
        return int(struct.unpack("q", self._work[:8])[0])

    def undisturbed(self) -> dict[str, bytes]:
        """Run every stage once; gives the content of every output."""
        for name in self.stages:
            started = time.perf_counter()
            status = self.attempt(name)
            assert status == 0, (name, status, (self.folder / "log").read_text()[-2000:])
            self.seconds[name] = time.perf_counter() - started
        return self.contents()

    def disturbed(
        self,
        faults_per_stage: int,
        kinds: dict[str, "Fault"],
        tally: Tally,
        seconds: dict[str, float],
    ) -> None:
        """Run every stage with so many faults in it, and to its end."""
        for name in self.stages:
            earlier = self.contents()
            for number in range(MOST_ATTEMPTS):
                kind = self._drawn(kinds) if number < faults_per_stage else None
                if kind is None:
                    status = self.attempt(name)
                else:
                    status = kinds[kind](self, name, self._random, seconds[name])
                    tally.faults[kind] = tally.faults.get(kind, 0) + 1
                    tally.kills += kind in KILLS and status != 0
                tally.lost += [
                    path for path, content in earlier.items() if self._read(path) != content
                ]
                if status == 0 and kind is None:
                    break
            else:
                raise AssertionError(
                    f"{name} never came to its end: {(self.folder / 'log').read_text()[-2000:]}"
                )

    def _drawn(self, kinds: dict[str, "Fault"]) -> str:
        names = sorted(kinds)
        return self._random.choices(names, [WEIGHTS.get(name, 1) for name in names])[0]

    def attempt(
        self,
        name: str,
        before: Callable[[], None] = lambda: None,
        stop: tuple[int, float] | None = None,
    ) -> int:
        """Run a stage as DVC does, and return its exit status.

        `before` runs in the child. `stop` holds a signal, and the seconds after which it is sent.
        """
        for path in self.stages[name].outs:
            target = self.folder / path
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            self._in_child(name, before)
        if stop is not None:
            time.sleep(stop[1])
            os.kill(child, stop[0])
        return _wait(child)

    def _in_child(self, name: str, before: Callable[[], None]) -> None:
        """Never returns."""
        code = 1
        try:
            os.chdir(self.folder)
            log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # die with the harness
            self._count_work()
            words = shlex.split(self.stages[name].cmd)
            sys.argv = words[2:]
            before()
            runpy.run_module(words[2], run_name="__main__")
            code = 0
        except SystemExit as leaving:
            print(leaving.code, file=sys.stderr)
            code = leaving.code if isinstance(leaving.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)

    def _count_work(self) -> None:
        for owner, function in ((loop._Run, "step"), (attacks, "perturb")):
            setattr(owner, function, self._counted(getattr(owner, function)))

    def _counted(self, function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            self._work[:8] = struct.pack("q", self.work + 1)
            return function(*arguments, **named)

        return counted

    def contents(self) -> dict[str, bytes]:
        """Every finished file by its path."""
        paths = [
            path for name in OUTPUTS for path in (self.folder / name).rglob("*") if path.is_file()
        ]
        relative = [(path, path.relative_to(self.folder)) for path in paths]
        return {
            str(name): path.read_bytes()
            for path, name in relative
            if not any(part.startswith(".") for part in name.parts)
        }

    def unfinished(self) -> list[Path]:
        """The files of unfinished work."""
        parts = [part for name in OUTPUTS for part in (self.folder / name).rglob(".*.part")]
        return sorted(path for part in parts for path in (part, *part.rglob("*")) if path.is_file())

    def _read(self, path: str) -> bytes:
        file = self.folder / path
        return file.read_bytes() if file.is_file() else b"lost"


Fault = Callable[[Pipeline, str, random.Random, float], int]


def killed(pipeline: Pipeline, name: str, chance: random.Random, seconds: float) -> int:
    """A signal at a random moment."""
    return pipeline.attempt(name, stop=(chance.choice(SIGNALS), chance.uniform(0, seconds)))


def cut_short(pipeline: Pipeline, name: str, chance: random.Random, seconds: float) -> int:
    """Killed, and a file that was not finished loses its end, as after a loss of power."""
    status = killed(pipeline, name, chance, seconds)
    if found := pipeline.unfinished():
        path = chance.choice(found)
        os.truncate(path, chance.randrange(path.stat().st_size + 1))
    return status


def unwritable(pipeline: Pipeline, name: str, chance: random.Random, seconds: float) -> int:
    """The disk reports an error when a file is to be made safe."""
    countdown = chance.randrange(6)

    def before() -> None:
        sync, calls = files.sync, []

        def failing(file: object) -> None:
            calls.append(file)
            if len(calls) > countdown:
                raise OSError(errno.EIO, "Input/output error")
            sync(file)  # type: ignore[arg-type]

        files.sync = failing

    return pipeline.attempt(name, before)


def too_large(pipeline: Pipeline, name: str, chance: random.Random, seconds: float) -> int:
    """The system refuses to let any file grow beyond a size.

    Writes then fail in their middle, in HDF5 too.
    """
    limit = chance.randrange(1, 200_000)

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return pipeline.attempt(name, before)


def full(pipeline: Pipeline, name: str, chance: random.Random, seconds: float) -> int:
    """The disk fills up; afterwards there is room again.

    For a pipeline on a file system of its own, see `small_disk`.
    """
    disk = pipeline.folder.parent
    _remount(disk, shutil.disk_usage(disk).used + chance.randrange(4096, 4 * 2**20))
    try:
        return pipeline.attempt(name)
    finally:
        _remount(disk, ROOMY)


ROOMY = 2**30
KILLS = ("killed", "cut short")
WEIGHTS = {"killed": 3}  # against 1 for every other kind
ALWAYS: dict[str, Fault] = {
    "killed": killed,
    "cut short": cut_short,
    "unwritable": unwritable,
    "too large": too_large,
}


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at `folder`, if this user may make one; says whether."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", folder],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", folder], check=False)


def _remount(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True, capture_output=True)


def soak(folder: Path, n_kills: int, seed: int) -> Tally:
    """Run the pipeline undisturbed, then disturbed, and compare.

    It is disturbed until it was killed `n_kills` times, among other faults.
    """
    torch.set_num_threads(1)
    for name in SHARED:
        importlib.import_module(name)
    (folder / "calm").mkdir(parents=True)
    calm = Pipeline(folder / "calm", seed)
    expected, tally = calm.undisturbed(), Tally()
    with small_disk(folder / "disk") as has_disk:
        kinds = {**ALWAYS, "full disk": full} if has_disk else ALWAYS
        round_number = 0
        while tally.kills < n_kills:
            place = folder / "disk" / str(round_number)
            place.mkdir(parents=True)
            storm = Pipeline(place, seed + round_number)
            faults_per_stage = min(6, -(-2 * (n_kills - tally.kills) // len(storm.stages)))
            storm.disturbed(faults_per_stage, kinds, tally, calm.seconds)
            found = storm.contents()
            tally.different += [
                path
                for path in sorted(expected.keys() | found.keys())
                if expected.get(path) != found.get(path)
            ]
            tally.needed, tally.done = tally.needed + calm.work, tally.done + storm.work
            shutil.rmtree(place)
            round_number += 1
    return tally


def tiny(content: dict) -> None:
    """Params for a run of seconds that has every kind of stage."""
    content["data"].update(n_images=96, n_val=32, n_test=0)
    content["store"].update(shard_rows=40)
    content["model"].update(architecture="resnet18")
    content.update(precision="fp32", attacked=["clean"])
    content["training"].update(epochs=2, warmup_epochs=0, batch_size=16)
    content["clean"].update(epochs=3, augment="flip+crop", ema=0.9)
    content["generate"].update(batch_size=16)
    content["attacks"]["pgd"].update(steps=2)
    content["selection"].update(n_images=16, steps=2)
    content["evaluate"].update(n_eval=8)
    content["evaluate"]["threats"]["pgd"].update(steps=2)
    content["evaluate"]["ensemble"].update(n_eval=6, iterations=2)
    content["evaluate"]["curves"].update(
        n_eval=4, eps=[0.1, 1], steps=[1, 4], restarts=2, queries=4
    )
    content["evaluate"]["grid"].update(n_eval=4, eps=[0.1], steps=[2])
    refresh = {"every": 1, "steps": 1, "alpha": "eps/2", "warm_start": True}
    adversary = {
        "eps": "8/255",
        "eps_per": "image",
        "alpha": "eps/2",
        "steps": 2,
        "random_start": True,
        "loss": "cross_entropy",
    }
    weights = {"start": "clean", "clean_weight": 0.5, "adv_weight": 0.5, "best_on": "robust"}
    content["finetuned"] = {"refreshed": {"of": "clean", "refresh": refresh, "best_on": "robust"}}
    content["online"] = {
        "online": {
            "epochs": 3,
            **weights,
            "adversary": {**adversary, "target": "none", "against": "self"},
        }
    }
    content["evaluate"]["models"] = ["clean", "refreshed", "online"]


def _wait(child: int) -> int:
    """The exit status of a child; one that hangs is killed, which is a failure of its own."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"a stage did not end within {HANGS:.0f} s")
