"""Train on the workers of a Ray cluster, which no disk is shared with.

The work is that of the stage itself. Unfinished work comes back after it was saved. So a training
resumes after the loss of a worker, of a node or of this process, and ends with the same bytes.
"""

import time
import uuid
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import networks
from pipeline.base import console, files, params
from pipeline.base.errors import InputError
from pipeline.cluster import connection, freight, launch, slots, worker
from pipeline.networks import device
from pipeline.networks.params import Model

FAILURES = 3  # in a row, without new unfinished work
PATIENCE = 5.0  # seconds without a slot before a line says so
WAIT = 600.0  # seconds to wait for slots
ENDING = 15.0  # seconds in which Ray Train ends by itself
CLEANING = 30.0  # seconds


def train(
    work: Callable[[Namespace], str],
    args: Namespace,
    *,
    inputs: Sequence[str],
    start: Model | None = None,
    where: str = "model",
    outputs: Sequence[str],
) -> str:
    """Return what `work` returns for `args`, computed here or on the workers of a cluster.

    `inputs` and `outputs` name the paths in `args` that it reads and writes. It also reads the
    weights of `start`, whose dotted key is `where`. The first output is its checkpoint, with the
    unfinished work beside it. The second is its history. Raises InputError for what the stage
    refuses, and where there is no room for the workers.
    """
    name = connection.wanted()
    # One machine without GPUs is one worker, which needs no Ray.
    if name is None or (
        name == "local" and not slots.asked(slots.WORKERS) and device.choose().type == "cpu"
    ):
        return work(args)
    with connection.connected(name):
        import ray

        slot, n_workers = slots.for_training(ray.nodes())
        if n_workers == 1 and name == "local":
            return work(args)
        console.say(
            f"training on {n_workers} workers with {slot.words} each;"
            f" their number is part of the result (set {slots.WORKERS} to choose it)"
        )
        weights = None
        if start is not None:
            networks.pretrained_weights(start, where)  # downloaded once, for all nodes
            weights = networks.weights_file(start)
        return _Training(work, args, slot, n_workers, inputs, weights, outputs).run()


class _Training:
    """A training on the workers of a cluster, seen from the driver."""

    def __init__(
        self,
        work: Callable[[Namespace], str],
        args: Namespace,
        slot: slots.Slot,
        n_workers: int,
        inputs: Sequence[str],
        weights: Path | None,
        outputs: Sequence[str],
    ) -> None:
        paths = {
            name: freight.inside(path) if isinstance(path, Path) else path
            for name, path in vars(args).items()
        }
        self._slot, self._n_workers = slot, n_workers
        self._out: Path = paths[outputs[0]]
        self._unfinished = f"{self._out.parent}/.{self._out.name}.*.part"
        self._received: set[Path] = set()
        self._pieces: dict[str, list[Any]] = {}
        self._outcome: tuple[str, str] | None = None
        self._saved = False
        self._job = worker.Job(
            name=uuid.uuid4().hex[:12],
            train=work,
            args=Namespace(**paths),
            inputs=[
                *freight.packed([params.FILE, *(paths[name] for name in inputs)]),
                *freight.weights(weights),
            ],
            unfinished=[],
            outputs=[str(paths[name]) for name in outputs],
            changing=[self._unfinished, *(str(paths[name]) for name in outputs[1:2])],
            threads=slot.cores,
            mailbox=None,
        )

    def run(self) -> str:
        """Train until the end, on other workers if some are lost, and return what to print."""
        failures = 0
        try:
            while True:
                self._saved = False
                self._wait_for_slots()
                reason = self._attempt()
                if self._outcome is not None:
                    break
                failures = 0 if self._saved else failures + 1
                if failures == FAILURES:
                    raise InputError(
                        f"{self._out}: the workers failed {failures} times without saving anything "
                        f"(last: {reason}); see Ray's logs on their nodes"
                    )
                console.say(f"a worker was lost ({reason}): resuming from the last saved epoch")
            kind, text = self._outcome
            if kind == "refused":
                raise InputError(text)
        except BaseException:
            for path in self._received:
                if path.suffix != ".part":
                    path.unlink(missing_ok=True)
            raise
        finally:
            self._clean()
        return text

    def _wait_for_slots(self) -> None:
        """Return once the cluster has room for all workers, and say so if it has none.

        Raises InputError after WAIT seconds.
        """
        import ray.util

        group = ray.util.placement_group([self._slot.bundle] * self._n_workers)
        try:
            if group.wait(PATIENCE):
                return
            wanted = f"{self._n_workers} workers with {self._slot.words} each"
            console.say(f"the cluster has no room for {wanted}: waiting up to {WAIT:.0f} s")
            if not group.wait(WAIT):
                raise InputError(
                    f"{self._out}: no room for {wanted} in {WAIT:.0f} s; start more nodes, or set"
                    f" {slots.WORKERS} to another number, which starts the training anew"
                )
        finally:
            ray.util.remove_placement_group(group)

    def _attempt(self) -> str:
        """Train on one set of workers, until the end or a failure, whose reason is returned."""
        import ray

        with launch.mailbox() as mailbox:
            self._pieces.clear()
            job = replace(
                self._job,
                mailbox=mailbox,
                unfinished=freight.packed(sorted(Path().glob(self._unfinished))),
            )
            fit = ray.remote(launch.fit).options(num_cpus=0, max_retries=0, **launch.here())
            running = fit.remote(job, self._slot, self._n_workers)
            try:
                while not ray.wait([running], timeout=0)[0]:
                    self._read(mailbox, wait=0.5)
                    if self._outcome is not None:
                        return ""
                self._read(mailbox, wait=0)
                try:
                    ray.get(running)
                except ray.exceptions.RayError as error:
                    return connection.last_line(error)
                return "it ended without a result"
            finally:
                self._end(running)

    def _end(self, running: Any) -> None:
        """End a run of Ray Train. It releases what it reserved, unless it has to be killed."""
        import ray

        if self._outcome is not None and ray.wait([running], timeout=ENDING)[0]:
            return
        ray.cancel(running)
        if not ray.wait([running], timeout=ENDING)[0]:
            ray.cancel(running, force=True)

    def _read(self, mailbox: Any, wait: float) -> None:
        """Handle the messages that have come, and wait for the first of them."""
        import ray.util.queue

        try:
            while self._outcome is None:
                self._handle(*mailbox.get(timeout=wait or 0.01))
        except ray.util.queue.Empty:
            return
        except ray.exceptions.RayActorError:
            time.sleep(wait)  # its node was lost, and the workers end, too

    def _handle(self, kind: str, text: str, content: Any = None) -> None:
        """Handle a message of `worker`."""
        path = Path(text)
        if kind == "line":
            console.say(text)
        elif kind == "folder":
            path.mkdir(parents=True, exist_ok=True)
        elif kind == "gone":
            path.unlink(missing_ok=True)
        elif kind == "piece":
            self._pieces.setdefault(text, []).append(content)
        elif kind == "file":
            received = self._pieces.pop(text, [])
            assert len(received) == content
            with files.replacing(path) as file:
                for piece in received:
                    file.write(piece.data)
            self._received.add(path)
            self._saved = self._saved or path.suffix == ".part"
        else:
            self._outcome = kind, text

    def _clean(self) -> None:
        """Delete what the nodes hold of this training."""
        import ray

        clean = ray.remote(worker.forget)
        on_each = [
            clean.options(num_cpus=0, **launch.on(node["NodeID"])).remote(self._job.name)
            for node in ray.nodes()
            if node["Alive"]
        ]
        ray.wait(on_each, num_returns=len(on_each), timeout=CLEANING)
