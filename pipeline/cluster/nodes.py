"""Compute items on the nodes of a connected Ray cluster, whose nodes may come and go."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from pipeline.base import console
from pipeline.base.console import Stop
from pipeline.base.errors import InputError
from pipeline.cluster import launch, on_worker, slots
from pipeline.cluster.connection import VARIABLE, last_line
from pipeline.cluster.here import Item, Job, Result

MIXED = "PIPELINE_CLUSTER_MIXED"
FREE_WITHIN = 30.0  # seconds in which a slot must be free, when a run begins and while it waits
STARTED_WITHIN = 180.0  # seconds in which a free slot must start a process
IMPORTED_WITHIN = 120.0  # seconds in which nodes import torch; slower ones are checked later
AIM = 20.0  # seconds that one item should take
AHEAD = 2  # items per slot that are sent before the first of them is needed
POLL = 0.5  # seconds between looks at the nodes and at a request to stop
ATTEMPTS = 4  # of one item, whose workers die


class Nodes:
    """The slots of a connected cluster, as workers.

    Raises InputError if no slot becomes free in time, if the nodes' libraries are not those of this
    process, and if they compute on several kinds of processors, unless MIXED is 1.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self._slot = slots.choose(ray.nodes())
        self.kind: str = self._slot.kind
        self._expect_free()
        kinds = self._kinds()
        _expect_same_libraries(kind.versions for kind in kinds)
        found = sorted({kind.processor for kind in kinds})
        if len(found) > 1 and os.environ.get(MIXED) != "1":
            raise InputError(
                f"{VARIABLE}: nodes compute on several kinds of processors, which give different"
                f" bytes ({'; '.join(found)}). Use one kind, or set {MIXED}=1, which is recorded."
            )
        self._allowed = set(found)
        self.processors = " + ".join(found)
        self.described = " + ".join(sorted({kind.described for kind in kinds}))
        self._put: tuple[object, Any] | None = None
        self._pace = _Pace()

    def map(
        self, job: Job[Item, Result], items: Iterable[Item], stop: Stop | None = None
    ) -> Iterator[Result]:
        """Yield the result of every item, in order, until `stop` is asked for.

        An item whose worker or node dies is computed again elsewhere. Raises InputError for one
        that fails by itself, for one whose workers die ATTEMPTS times, and if no slot is left.
        What is not needed any more is cancelled.
        """
        self._pace = _Pace()
        flight = _Flight(self._reference(job), self._slot)
        rest = iter(items)
        try:
            while self._fill(flight, rest):
                sent = flight.first(stop)
                if sent is None:
                    return
                if isinstance(sent.done, InputError):
                    raise sent.done
                assert sent.done is not None
                self._expect_allowed(sent.done.processor)
                _expect_same_libraries([sent.done.versions])
                self._pace.saw(sent.batches, sent.done.seconds)
                yield sent.done.result
        finally:
            flight.cancel()

    def batches(self, n_left: int) -> int:
        """Return how many of the batches that are left make an item of about AIM seconds.

        Fewer are taken near the end, so that all slots have work until then.
        """
        fair = n_left // (AHEAD * max(1, _count(self._slot)))
        self._pace.asked = max(1, min(self._pace.batches(), fair))
        return self._pace.asked

    def _fill(self, flight: "_Flight", rest: Iterator[Any]) -> bool:
        """Send items until enough are under way. Return whether any is."""
        while len(flight) < AHEAD * max(1, _count(self._slot)):
            try:
                item = next(rest)
            except StopIteration:
                break
            flight.send(item, self._pace.asked)
        return len(flight) > 0

    def _reference(self, job: object) -> Any:
        """Return the reference of a job in the object store, where it is put once."""
        if self._put is None or self._put[0] is not job:
            self._put = job, ray.put(job)
        return self._put[1]

    def _expect_free(self) -> None:
        """Raise InputError unless a task starts in time: Ray would wait for ever, and not say so.

        See https://github.com/ray-project/ray/issues/44687.
        """
        # Where a slot is free, a late task is one whose process starts slowly, on a busy machine.
        patience = STARTED_WITHIN if self._slot.is_free(ray.available_resources()) else FREE_WITHIN
        probe = ray.remote(on_worker.ready).options(**self._slot.options).remote()
        try:
            ray.get(probe, timeout=patience)
        except GetTimeoutError:
            ray.cancel(probe, force=True)
            total = sum(self._slot.fits(ray.nodes()).values())
            raise InputError(
                f"{VARIABLE}: no slot became free within {patience:.0f} s (a task takes"
                f" {self._slot.words}; the cluster has {total} such slots, all in use)."
                " Wait for the other work, or add nodes; `ray status` shows what is in use."
            ) from None

    def _kinds(self) -> list[on_worker.Kind]:
        """Return the kinds of the nodes that have a free slot now. Others are checked later."""
        probe = ray.remote(on_worker.kind)
        probes = [
            probe.options(**launch.on(node), **self._slot.options).remote(
                self._slot.kind, self._slot.cores
            )
            for node in self._slot.fits(ray.nodes())
        ]
        ready, late = ray.wait(probes, num_returns=len(probes), timeout=FREE_WITHIN)
        if not ready:
            ready, late = ray.wait(probes, num_returns=1, timeout=IMPORTED_WITHIN)
        for reference in late:
            ray.cancel(reference, force=True)
        found = [_kind(reference) for reference in ready]
        kinds = [kind for kind in found if kind is not None]
        if not kinds:
            raise InputError(
                f"{VARIABLE}: no node answers. `ray status` shows the nodes; start the run again."
            )
        return kinds

    def _expect_allowed(self, processor: str) -> None:
        if processor not in self._allowed:
            remedy = (
                "It came after the start. Run again, so that it is recorded."
                if os.environ.get(MIXED) == "1"
                else f"Remove it, or run again with {MIXED}=1, which is recorded."
            )
            raise InputError(
                f"{VARIABLE}: a node computes on {processor}, expected {self.processors}. {remedy}"
            )


class _Pace:
    """What was measured of one map's items, to choose the size of the next ones."""

    def __init__(self) -> None:
        self.asked, self._batches, self._seconds = 1, 0, 0.0

    def saw(self, batches: int, seconds: float) -> None:
        self._batches, self._seconds = self._batches + batches, self._seconds + seconds

    def batches(self) -> int:
        if not self._batches:
            return 1
        return max(1, int(AIM * self._batches / max(self._seconds, 1e-6)))


@dataclass
class _Sent:
    """An item that is under way, and its result or its failure once that is there."""

    item: Any
    batches: int
    reference: Any
    deaths: int = 0
    done: on_worker.Done | InputError | None = None


class _Flight:
    """The items that were sent and whose results were not taken yet, in order."""

    def __init__(self, job: Any, slot: slots.Slot) -> None:
        self._job, self._slot = job, slot
        self._task = ray.remote(on_worker.run).options(**slot.options)
        self._sent: deque[_Sent] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, item: Any, batches: int) -> None:
        self._sent.append(_Sent(item, batches, self._remote(item)))

    def _remote(self, item: Any) -> Any:
        return self._task.remote([self._job], item, self._slot.kind, self._slot.cores)

    def first(self, stop: Stop | None) -> _Sent | None:
        """Return the first item with its result, or None if `stop` was asked for before.

        Meanwhile all items whose workers died are sent again. Results of other items are kept.
        """
        without_slot: float | None = None
        while self._sent[0].done is None:
            if stop is not None and stop.asked:
                return None
            self._collect()
            without_slot = None if _count(self._slot) else without_slot or time.monotonic()
            if without_slot is not None and time.monotonic() - without_slot > FREE_WITHIN:
                raise InputError(
                    f"{VARIABLE}: no node is left (a task takes {self._slot.words})."
                    " Add nodes, then run it again; it resumes."
                )
        return self._sent.popleft()

    def _collect(self) -> None:
        """Wait a moment for results, take those that are there, and send lost items again."""
        waiting = {sent.reference: sent for sent in self._sent if sent.done is None}
        ready, _ = ray.wait(list(waiting), timeout=POLL)
        for reference in ready:
            sent = waiting[reference]
            sent.done = self._result(sent)
            if sent.done is None:
                sent.reference = self._remote(sent.item)

    def _result(self, sent: _Sent) -> on_worker.Done | InputError | None:
        """Return a finished task's result or failure, or None if its worker or its node died."""
        try:
            done: on_worker.Done = ray.get(sent.reference)
        except RayTaskError as error:
            return InputError(
                f"{VARIABLE}: a task failed on a node ({last_line(error)})."
                " Unset the variable to see the whole error."
            )
        except RayError as error:
            sent.deaths += 1
            if sent.deaths >= ATTEMPTS:
                share = f": raise {slots.CORES}, so that fewer share a node"
                return InputError(
                    f"{VARIABLE}: the workers of one task died {ATTEMPTS} times"
                    f" ({type(error).__name__}). Give tasks more memory"
                    f"{share if self._slot.kind == 'cpu' else ''}."
                )
            console.say_once("a worker or node of the cluster died: its work runs again elsewhere")
            return None
        return done

    def cancel(self) -> None:
        """Cancel what is under way."""
        for sent in self._sent:
            if sent.done is None:
                ray.cancel(sent.reference, force=True)
        self._sent.clear()


def _count(slot: slots.Slot) -> int:
    """Return how many slots the cluster has now."""
    return sum(slot.fits(ray.nodes()).values())


def _kind(reference: Any) -> on_worker.Kind | None:
    """Return the kind of a node, or None if it died before it answered."""
    try:
        kind: on_worker.Kind = ray.get(reference)
    except RayTaskError as error:
        raise InputError(
            f"{VARIABLE}: a node cannot compute ({last_line(error)})."
            " Install the project's requirements there."
        ) from error
    except RayError:
        return None
    return kind


def _expect_same_libraries(found: Iterable[tuple[str, ...]]) -> None:
    """Raise InputError unless nodes have the versions that this process records."""
    own = on_worker.libraries()
    for versions in found:
        if versions != own:
            raise InputError(
                f"{VARIABLE}: a node has {', '.join(versions)}, expected {', '.join(own)}."
                " Install the same requirements on all nodes."
            )
