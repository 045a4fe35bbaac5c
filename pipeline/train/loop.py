"""Runs the one training loop.

It takes the steps, keeps the model of the best epoch, and resumes after an interruption.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.base import console, files
from pipeline.base.errors import InputError
from pipeline.networks import precision, torch_files
from pipeline.networks.captured import graphs_for
from pipeline.networks.device import processor
from pipeline.networks.scores import Validate
from pipeline.train import group, params, schedule
from pipeline.train.batches import ALPHA_SCALE, Batches
from pipeline.train.history import Keep, Row, Watch, more_accurate
from pipeline.train.step import Step

SOFTER = 0.5  # of the attack's step size after a collapse
PLAIN = ("epoch", "batch", "history", "best", "collapsed")  # values that unfinished work keeps
SAVING = 0.1  # the greatest share of the time that goes into saving unfinished work


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A finished training.

    It holds the tensors of the best epoch, that epoch's row of the history, and the history of all
    epochs. A row holds `epoch` (from 1), `lr` of its first batch, `train_loss` and `train_accuracy`
    over its images, and what `validate` gave. `collapsed` is the epoch after which training went
    back to the best one, and 0 if it never did. If it did, a row also holds `alpha_scale`.
    `processors` are those that took part, in order.
    """

    state_dict: dict[str, Tensor]
    best: Row
    history: list[Row]
    collapsed: int
    processors: list[str]


def fit(
    network: nn.Module,
    batches: Batches,
    validate: Validate,
    settings: params.Training,
    *,
    text: str,
    device: torch.device,
    part: Path | None = None,
    watch: Watch = lambda _: "",
    keep: Keep = more_accurate,
) -> Fit:
    """Train `network` in place, and keep the epoch that `keep` chooses.

    `validate` gives `val_accuracy`, in [0, 1]. Training ends after `settings.epochs`, or after
    `settings.patience` epochs without a better one. `watch` reads the history after every epoch and
    returns what to warn of, or nothing. The first time that it warns, training goes back to the
    kept epoch, with smaller steps of the attack in `batches`, if there is one. Patience then counts
    from there.

    With `part`, unfinished work is kept there and resumed. The result is then the same to the bit,
    on the same machine and build. Raises InputError when the loss is no longer finite. Raises
    Interrupted after Ctrl-C or SIGTERM, once the current batch is done and saved.

    Several workers that train together return the same. The first of them writes `part`, which all
    of them read. A signal ends them at once, because they cannot agree on a batch.
    """
    run = _Run(network, batches, settings, device, keep)
    if part is not None and part.exists():
        run.load(part)
    done = run.epoch * len(batches) + run.batch
    with (
        console.progress(settings.epochs * len(batches), text, "batches", done) as bar,
        console.stopping() if run.group.size == 1 else nullcontext(console.Stop()) as stop,
    ):
        saved = _Saver(run, part)
        while not run.is_finished:
            _train_epoch(run, saved, bar, stop, text)
            with precision.exact():
                run.close_epoch(validate(run.taken.judged))
            bar.set_postfix_str(
                f"loss {run.history[-1]['train_loss']:.3f}, best {run.best['val_accuracy']:.4f}"
            )
            if warning := watch(run.followed):
                console.say(f"{text}: {warning}{run.go_back()}")
            saved.after_epoch()
    return run.fitted()


def _train_epoch(
    run: "_Run", saved: "_Saver", bar: console.Bar, stop: console.Stop, text: str
) -> None:
    """Train on the batches that are left of the epoch, until a signal asks to stop.

    Raises InputError where the loss is no longer finite.
    """
    with precision.tensor_floats():
        for batch in run.batches.epoch(run.epoch, run.batch):
            run.step(*batch)
            bar.update(1)
            if stop.asked:
                saved.now()
                raise console.Interrupted(
                    f"{text}: batch {run.batch} of epoch {run.epoch + 1} is done"
                )
    if not math.isfinite(loss := float(run.taken.totals[0])):
        raise InputError(
            f"{text}: the loss is {loss} after epoch {run.epoch + 1}; "
            f"lower its lr in params.yaml (now {run.settings.lr})"
        )


class _Run:
    """A training in progress."""

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        settings: params.Training,
        device: torch.device,
        keep: Keep,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.batches, self.settings, self._keep = batches, settings, keep
        self.group, self._device = group.current(), device
        self.taken = Step(self.network, settings, device, graphs_for(device))
        self.epoch, self.batch = 0, 0
        self.history: list[Row] = []
        self.best: Row = {}
        self.best_state: dict[str, Tensor] = {}
        self.collapsed = 0
        self.processors = [processor(device)]

    @property
    def rows(self) -> list[Row]:
        """The history, with the factor on the attack's step size if that ever changed."""
        if not self.collapsed:
            return self.history
        return [
            {**row, ALPHA_SCALE: SOFTER if row["epoch"] > self.collapsed else 1.0}
            for row in self.history
        ]

    @property
    def followed(self) -> list[Row]:
        """The history without the epoch after which training went back."""
        return [row for row in self.history if row["epoch"] != self.collapsed]

    @property
    def is_finished(self) -> bool:
        patience = self.settings.patience or math.inf
        last_better = max(self.best.get("epoch", self.epoch), self.collapsed)
        return self.epoch == self.settings.epochs or self.epoch - last_better >= patience

    def fitted(self) -> Fit:
        """Return what the finished training gives."""
        return Fit(
            state_dict={name: tensor.cpu() for name, tensor in self.best_state.items()},
            best=self.best,
            history=self.rows,
            collapsed=self.collapsed,
            processors=self.processors,
        )

    def step(self, *batch: Tensor) -> None:
        """Train on one batch."""
        self.taken(*batch, lr=self._lr(self.batch + 0.5))
        self.batch += 1

    def close_epoch(self, scores: dict[str, float]) -> None:
        """Add the epoch to the history, and keep its tensors if it is chosen."""
        loss, n_right, n_images = self.taken.totals.tolist()
        row = {
            "lr": self._lr(0.5),
            "train_loss": loss / n_images,
            "train_accuracy": n_right / n_images,
            **scores,
        }
        rounded = {key: round(value, 6) for key, value in row.items()}
        self.history.append({"epoch": self.epoch + 1, **rounded})
        # Both are rounded: 1/3 is more than 0.333333.
        if not self.best or self._keep(self.history, self.best):
            self.best = self.history[-1]
            self.best_state = {
                name: tensor.detach().clone()
                for name, tensor in self.taken.judged.state_dict().items()
            }
        self.epoch, self.batch = self.epoch + 1, 0
        self.taken.totals.zero_()

    def go_back(self) -> str:
        """Return to the kept epoch, with smaller steps of the attack, and return what to say.

        This happens once, and only if epochs and an attack are left. Otherwise nothing changes, and
        the result is empty.
        """
        scale = self.batches.state.get(ALPHA_SCALE)
        if scale is None or self.collapsed or self.is_finished:
            return ""
        scale.fill_(SOFTER)
        self.collapsed = self.epoch
        self.taken.restart(self.best_state)
        return f"; training goes back to epoch {self.best['epoch']}, with alpha times {SOFTER}"

    def _lr(self, batch: float) -> float:
        return self.settings.lr * schedule.learning_rate(
            self.epoch + batch / len(self.batches), self.settings
        )

    def save(self, path: Path) -> None:
        """Write all that the rest of the run depends on.

        At the end of the run, this is little. All workers must call this. The first one writes, and
        its `batches` then hold the rows of all.
        """
        for tensor in self.batches.state.values():
            if tensor.dim():
                self.group.gather_rows(tensor, self._device)
        if not self.group.is_first:
            return
        parts = {} if self.is_finished else self.taken.parts()
        content = {name: part.state_dict() for name, part in parts.items()} | {
            "batches": self.batches.state,
            "totals": self.taken.totals,
            "best_state": self.best_state,
        }
        with files.replacing(path) as file:
            torch.save(content | {key: getattr(self, key) for key in (*PLAIN, "processors")}, file)

    def load(self, path: Path) -> None:
        """Resume from what `save` wrote.

        A file that cannot be read, or whose bytes have changed, is deleted, and the run starts from
        its beginning.
        """
        try:
            torch_files.check_sums(path)
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except torch_files.UNREADABLE:
            console.say(f"{path}: unfinished work that cannot be read; starting from the beginning")
            path.unlink()
            return
        for name, part in self.taken.parts().items():
            if name in content:
                part.load_state_dict(content[name])
        for name, tensor in self.batches.state.items():
            tensor.copy_(content["batches"][name])
        self.taken.totals.copy_(content["totals"])
        self.best_state = content["best_state"]
        for key in PLAIN:
            setattr(self, key, content[key])
        own = [] if self.is_finished else self.processors
        self.processors = list(dict.fromkeys([*content["processors"], *own]))
        what = f"resuming after batch {self.batch} of epoch {self.epoch + 1}"
        console.say(f"all {self.epoch} epochs were done before" if self.is_finished else what)


class _Saver:
    """A saver of a run after its epochs, which spends at most a tenth of the time on it."""

    def __init__(self, run: _Run, path: Path | None) -> None:
        self._run, self._path = run, path
        self._since, self._took = time.perf_counter(), 0.0

    def now(self) -> None:
        if self._path is not None:
            started = time.perf_counter()
            self._run.save(self._path)
            self._since = time.perf_counter()
            self._took = self._since - started

    def after_epoch(self) -> None:
        is_time = time.perf_counter() - self._since >= self._took / SAVING
        if self._run.is_finished or self._run.group.decide(is_time):
            self.now()
