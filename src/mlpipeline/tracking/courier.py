"""The courier: the loop that takes journals to MLflow.

::

    Courier (one per journal home)            holds courier.lock, writes courier.json
      └─ Worker (one per destination)         two threads: records, and files
           └─ RunDelivery (one per run)       journals -> sink -> state.json

A run that fails is tried again later and later, by itself. A failure that may be the destination's closes
the worker's door: one turn at a time is tried, more and more rarely however many runs wait, until one passes.

The same loop runs as a process of its own (`main`), as a thread where processes are not to be had,
and in the foreground as ``mlpipeline sync``. The journal home is all it shares with the trainers.

It is a guest on the training's machine: while a writer on this host lives, each worker keeps to a
share of one core, and sends the backlog when the writers end or somebody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core import credentials
from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking import liveness
from mlpipeline.tracking.delivery import NotYet, RunDelivery
from mlpipeline.tracking.home import Home, replace_file
from mlpipeline.tracking.sink import Destination, MlflowSink, Unavailable, quiet_mlflow

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("mlpipeline")

CPU_SHARE = 0.05
"""Part of one core that a worker may use while a writer on this host lives."""

LINGER_S = 10.0
"""How long the courier stays after the last run is done: the next one need not start another."""

UNDELIVERABLE_STAY_S = 600.0
"""How long it stays with nothing but what cannot be delivered; the next writer or sync resumes."""

BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 60.0
DENIED_RETRY_S = 300.0

_DOOR_FIRST_S = 0.1
_JITTER = 0.25
"""What is asked for in seconds is exceeded by up to this part of it, and never cut short."""

_ANSWERED_WEIGHT = 0.3
"""What a failure counts for at the door where the same turn got answers before it: most often it passes soon."""

_Kind = Literal["records", "files"]
_KINDS: tuple[_Kind, ...] = ("records", "files")
"""What a turn is about; each has a thread of its own."""

_FAILURES_OF_STUCK = 3
_FAILURES_OF_CLOSED = 6
_QUIET_S = 1.0
_MAKING_ROOM_S = 60.0  # what a request under way may take at most, twice
_LONG_REST_S = 15.0
_STARTING_AT_MOST_S = 90.0
_LOOK_EVERY_S = 0.1
_DELIVER_EVERY_S = 0.2
_HURRIED_EVERY_S = 0.02
_HURRY_S = 3.0
_WORKING_CPU_S = 0.03
"""Processor time within one look (`_LOOK_EVERY_S`) that means work, not just looking."""

_CONNECTING_CPU_S = 0.01
"""The same while MLflow is imported and a store made, which wait for the disk, too."""

_GUEST_READ_BYTES = 16 * 2**10
_GUEST_EVERY_S = 0.5
_NICENESS = 5
"""Taken on after the first delivery; at 10 on a busy machine, importing MLflow took 23 s instead of 3."""


class Allowance:
    """A share of one core: what is spent is earned back with time.

    Args:
        share: Core-seconds earned per second.
        saved_s: Core-seconds that may be saved up.
    """

    def __init__(self, share: float = CPU_SHARE, saved_s: float = 0.3) -> None:
        self._share = share
        self._saved_s = saved_s
        self._have_s = saved_s
        self._at_s = time.monotonic()

    def spend(self, cpu_s: float) -> None:
        """Take note of processor time used."""
        self._earn()
        self._have_s -= cpu_s

    def wait_s(self) -> float:
        """Return how long to wait until something may be spent again."""
        self._earn()
        return max(0.0, -self._have_s / self._share)

    def _earn(self) -> None:
        now_s = time.monotonic()
        self._have_s = min(self._saved_s, self._have_s + (now_s - self._at_s) * self._share)
        self._at_s = now_s


class Backoff:
    """When to try again: exponentially later, with jitter, so that many do not come at once.

    Args:
        first_s: How long to wait after a first failure, at most.
        clock: Tells the time.

    Attributes:
        failures: How often in a row it failed.
    """

    def __init__(
        self,
        first_s: float = BACKOFF_FIRST_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0.0
        self._first_s = first_s
        self._clock = clock
        self._not_before_s = 0.0
        self._rests_until_s = 0.0

    def is_due(self) -> bool:
        """Tell whether it is time to try."""
        return self._clock() >= max(self._not_before_s, self._rests_until_s)

    def rest_s(self) -> float:
        """Return how long the server still wants to be left alone."""
        return max(0.0, self._rests_until_s - self._clock())

    def failed(self, error: Unavailable, weight: float = 1.0, *, denied_after: int = 1) -> None:
        """Take note of a failure.

        Args:
            error: What went wrong.
            weight: It may count for less than a whole one.
            denied_after: After so many, one for lack of credentials makes it wait for `DENIED_RETRY_S`.
        """
        self.failures += weight
        now_s = self._clock()
        growth: float = 2 ** min(max(0.0, self.failures - 1), 10)
        wait_s = min(BACKOFF_LONGEST_S, self._first_s * growth) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if error.is_denied and self.failures >= denied_after:
            wait_s = _at_least(DENIED_RETRY_S)
        self._not_before_s = now_s + wait_s
        if error.retry_after_s is not None:
            self._rests_until_s = max(self._rests_until_s, now_s + _at_least(error.retry_after_s))

    def succeeded(self) -> None:
        """Start afresh, but let a server rest that has asked for it."""
        self.failures = 0.0
        self._not_before_s = 0.0

    def now(self) -> None:
        """Try at once, if the server does not rest: somebody waits, or asked for it."""
        self._not_before_s = 0.0


def _at_least(seconds: float) -> float:
    return seconds * random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - jitter, not a secret


class _Standing:
    """How one run fares at its destination."""

    def __init__(self, delivery: RunDelivery, clock: Callable[[], float]) -> None:
        self.delivery = delivery
        self.backoffs = {kind: Backoff(clock=clock) for kind in _KINDS}
        self.is_denied = False
        self.waits: set[_Kind] = set()  # had a turn, and found nothing to do, or not yet

    @property
    def failures(self) -> float:
        return max(backoff.failures for backoff in self.backoffs.values())

    @property
    def is_stuck(self) -> bool:
        stuck: set[_Kind] = {
            kind for kind, backoff in self.backoffs.items() if backoff.failures >= self._patience
        }
        return bool(stuck) and stuck | self.waits == set(_KINDS)

    @property
    def _patience(self) -> float:
        return 1 if self.is_denied else _FAILURES_OF_STUCK


class Worker:
    """Serves one destination, so that none blocks another.

    Args:
        courier: Whose worker it is.
        destination: What it serves.
        clock: Tells the time.
    """

    def __init__(
        self, courier: Courier, destination: Destination, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.destination = destination
        self.problem: str | None = None
        self.is_down = False
        self.is_denied = False
        self.is_starting = True
        self.started_s = clock()
        self.told_ms = 0
        self._courier = courier
        self._clock = clock
        self._runs: dict[str, _Standing] = {}
        self._door = Backoff(_DOOR_FIRST_S, clock=clock)
        # Of the artifact store, which may be down while the tracking server is well.
        self._file_door = Backoff(_DOOR_FIRST_S, clock=clock)
        self._trial = threading.Lock()
        self._has_knocked = False
        self._at_work: set[_Kind] = set()
        self._gives_way: _Kind | None = (
            None  # what failed last: the other thread tries next, unless it is busy
        )
        self._allowance = Allowance()
        self._sinks: list[MlflowSink] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(kind,), daemon=True, name=f"mlpipeline-{kind}")
            for kind in _KINDS
        ]

    def join(self) -> None:
        """Wait until both threads have seen that the courier stops."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def add(self, delivery: RunDelivery) -> None:
        """Take on a run; the first one sets the worker to work."""
        is_first = not self._runs
        self._runs = {**self._runs, delivery.folder.uid: _Standing(delivery, self._clock)}
        if is_first:
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()

    def remove(self, uid: str) -> None:
        """Let go of a run that is done."""
        self._runs = {key: run for key, run in self._runs.items() if key != uid}

    def retry_now(self) -> None:
        """Forget about waiting: somebody asks for delivery."""
        for backoff in (self._door, self._file_door):
            backoff.now()
        self._retry_runs()

    def _retry_runs(self) -> None:
        for run in self._runs.values():
            for backoff in run.backoffs.values():
                backoff.now()

    @property
    def is_closed(self) -> bool:
        """Whether nothing arrives there for now: nobody answers, credentials are refused, or all that was tried failed."""
        door = self._door
        return self.is_down or door.rest_s() > _LONG_REST_S or door.failures >= _FAILURES_OF_CLOSED

    def is_stuck(self, uid: str) -> bool:
        """Tell whether a run cannot be delivered for now: a failure or two are taken for a passing trouble."""
        run = self._runs.get(uid)
        return self.is_closed or (run is not None and run.is_stuck)

    def waits(self, uid: str) -> bool:
        """Tell whether a run has nothing to do before another one is delivered."""
        run = self._runs.get(uid)
        return not self._door.failures and run is not None and len(run.waits) == len(_KINDS)

    @property
    def is_connecting(self) -> bool:
        """Whether MLflow is still being imported, or a store made: seconds without a record delivered."""
        is_late = self._clock() - self.started_s > _STARTING_AT_MOST_S
        return self.is_starting and not is_late and not any(sink.is_connected for sink in self._sinks)

    def _serve(self, kind: _Kind) -> None:
        courier = self._courier
        sink = MlflowSink(
            self.destination, owns_process=courier.owns_process, is_for_anybody=courier.is_for_anybody
        )
        self._sinks.append(sink)
        while not self._courier.is_stopping():
            if self.round(kind, sink):
                wait_s = 0.0
            else:
                wait_s = _HURRIED_EVERY_S if self._courier.is_hurried() else _DELIVER_EVERY_S
            if self._courier.is_guest():
                wait_s = max(_GUEST_EVERY_S, min(self._allowance.wait_s(), 30.0))
            self._courier.pause(wait_s)

    def round(self, kind: _Kind, sink: MlflowSink) -> bool:
        """Give every run its turn; return whether anything moved."""
        if self.is_starting:
            with self._trial:
                if not self._knock():  # before MLflow is imported
                    return False
        if not self._door.is_due() or (self._gives_way == kind and self._at_work <= {kind}):
            return False
        self._at_work.add(kind)
        try:
            return self._turns(kind, sink)
        finally:
            self._at_work.discard(kind)
            if self._gives_way != kind:
                self._gives_way = None

    def _turns(self, kind: _Kind, sink: MlflowSink) -> bool:
        runs = list(self._runs.values())
        if any(door.failures for door in self._doors(kind)):
            # Who has failed already would fail again: another one tells whether it is the destination.
            runs.sort(key=lambda run: (run.failures, random.random()))  # noqa: S311 - any of them
        has_moved = False
        for run in runs:
            has_moved |= self._turn(run, kind, sink)
        return has_moved

    def _doors(self, kind: _Kind) -> list[Backoff]:
        return [self._door, self._file_door] if kind == "files" else [self._door]

    def _turn(self, run: _Standing, kind: _Kind, sink: MlflowSink) -> bool:
        doors = self._doors(kind)
        if not run.backoffs[kind].is_due() or not all(door.is_due() for door in doors):
            return False
        if not any(door.failures for door in doors):
            return self._take(run, kind, sink)
        if not self._trial.acquire(blocking=False):
            return False
        try:
            # The other thread's trial may have just failed.
            if not all(door.is_due() for door in doors) or not self._knock():
                return False
            return self._take(run, kind, sink)
        finally:
            self._trial.release()

    def _take(self, run: _Standing, kind: _Kind, sink: MlflowSink) -> bool:
        delivery, backoff = run.delivery, run.backoffs[kind]
        before_s, was_starting, answered = time.thread_time(), self.is_starting, sink.answered
        run.waits.discard(kind)
        try:
            has_moved = self._deliver(delivery, sink) if kind == "records" else self._upload(delivery, sink)
            self.is_starting &= not has_moved
        except NotYet:
            has_moved = False
        except Unavailable as error:
            self.is_starting = False
            run.is_denied = error.is_denied
            backoff.failed(error)
            if error.is_general or error.retry_after_s is not None:
                was_denied, self.is_denied = self.is_denied, error.is_denied
                self._has_knocked = False
                self._gives_way = kind
                weight = _ANSWERED_WEIGHT if sink.answered > answered else 1.0
                # Others may be let in, unless there are none; records, where files are not.
                alone = min(_FAILURES_OF_CLOSED, len(self._runs))
                is_all = kind == "records" or was_denied
                self._door.failed(error, weight, denied_after=alone if is_all else _FAILURES_OF_CLOSED)
                if kind == "files":
                    self._file_door.failed(error, weight, denied_after=alone)
            elif sink.answered > answered:
                self._open(kind)
            self._tell(str(error), delivery)
            return False
        except Exception:  # the courier must outlive any one run's trouble
            self.is_starting = False
            backoff.failed(Unavailable("unexpected"))
            logger.exception("run %s", delivery.folder.uid)
            with contextlib.suppress(Unavailable):
                delivery.set_problem("the courier failed unexpectedly; see courier.log")
            return False
        finally:
            if not was_starting:  # importing MLflow is paid once and cannot be rationed
                self._allowance.spend(time.thread_time() - before_s)
        if sink.answered > answered:
            self._open(kind)
        if has_moved:
            if backoff.failures:
                backoff.succeeded()
                self.problem, run.is_denied = None, False
            if not run.failures:
                delivery.set_problem(None)
            self._courier.moved()
        else:
            run.waits.add(kind)
        return has_moved

    def _open(self, kind: _Kind) -> None:
        if self._door.failures:
            self.problem = None
        was_long = any(door.failures >= _FAILURES_OF_CLOSED for door in self._doors(kind))
        for door in self._doors(kind):
            door.succeeded()
        self.is_down = self.is_denied = False
        self._gives_way = None
        if was_long:
            self._retry_runs()

    def _deliver(self, delivery: RunDelivery, sink: MlflowSink) -> bool:
        was_ended = delivery.state.is_ended
        if self._courier.is_guest():
            count = delivery.deliver(sink, _GUEST_READ_BYTES)
            delivery.deliver_latest(sink)
        else:
            count = delivery.deliver(sink)
        return bool(count) or delivery.state.is_ended != was_ended

    def _upload(self, delivery: RunDelivery, sink: MlflowSink) -> bool:
        try:
            has_moved = delivery.upload(sink)
        except Unavailable:
            delivery.upload_failures += 1
            raise
        delivery.upload_failures = 0
        return has_moved

    def _knock(self) -> bool:
        """Tell whether the destination's port answers; asked once before each thing that is tried there."""
        if self._has_knocked and not self.is_starting:
            return True
        if not self._door.is_due():
            return False
        try:
            self.destination.probe()
        except Unavailable as error:
            self.is_down, self.is_starting = True, False
            self._door.failed(error)
            self._tell(str(error))
            return False
        if self.is_down:
            self.is_down, self.problem = False, None
            self._retry_runs()
        self._has_knocked = True
        return True

    def _tell(self, problem: str, delivery: RunDelivery | None = None) -> None:
        """Write down what stands in the way: of one run, and where it is the destination's trouble of all."""
        self.told_ms = time.time_ns() // 1_000_000
        if problem != self.problem:
            self.problem = problem
            logger.warning("%s: %s", public_uri(self.destination.tracking_uri), problem)
        is_for_all = delivery is None or self._door.failures >= _FAILURES_OF_STUCK or self._door.rest_s() > 0
        with contextlib.suppress(Unavailable):
            for run in self._runs.values():
                if run.delivery is delivery or (is_for_all and not run.delivery.is_idle):
                    run.delivery.set_problem(problem)


class Courier:
    """Takes the journals of one home to their destinations.

    Args:
        home: The journal home.
        identity: Whose runs, see `Destination.identity`; other couriers serve the others.
        secret: Fingerprint of the password or token that this process shows; ``""`` for none.
        owns_process: This process is the courier's alone.
        mode: What `mlpipeline status` calls it: "process", "thread" or "sync".
        is_for_anybody: It shows its credentials also for what was recorded without any.
    """

    def __init__(
        self,
        home: Home,
        identity: str = "",
        *,
        secret: str = "",
        owns_process: bool = False,
        mode: str = "thread",
        is_for_anybody: bool = False,
    ) -> None:
        self.is_for_anybody = is_for_anybody
        self.home = home
        self._identity = identity
        self._secret = secret
        self._post = home.post(identity)
        self.owns_process = owns_process
        self._mode = mode
        self._stop = threading.Event()
        self._workers: dict[str, Worker] = {}
        self._deliveries: dict[str, tuple[RunDelivery, Worker | None]] = {}
        self._others: dict[str, RunDelivery] = {}  # runs of other identities: only their lives count here
        self._progress = 0
        self._moves = 0
        self._moved_s = -1e9
        self._cpu_s = time.process_time()
        self._written: dict[str, Any] = {}
        self._has_live_writer = False
        self._is_hurried = False
        self._retried_s = -1e9
        self._told: dict[str, str] = {}

    # --- what workers ask ------------------------------------------------------------------------

    def is_stopping(self) -> bool:
        """Tell whether the workers are to end."""
        return self._stop.is_set()

    def is_guest(self) -> bool:
        """Tell whether a training on this host runs that the courier must not disturb."""
        return self._has_live_writer and not self._is_hurried and self._mode != "sync"

    def is_hurried(self) -> bool:
        """Tell whether somebody waits for delivery."""
        return self._is_hurried

    def pause(self, wait_s: float) -> None:
        """Wait, but not longer than until the courier stops or somebody waits for it."""
        end_s = time.monotonic() + wait_s
        was_guest = self.is_guest()
        while not self._stop.is_set() and (left_s := end_s - time.monotonic()) > 0:
            self._stop.wait(min(left_s, 0.1))
            if was_guest and not self.is_guest():
                return

    def moved(self) -> None:
        """Take note that something was delivered."""
        self._progress += 1
        self._moved_s = time.monotonic()
        if self.owns_process and self._mode == "process" and self._moves == 0:
            _be_nice()
        self._moves += 1

    # --- the loop --------------------------------------------------------------------------------

    def run(self, *, until_idle: bool = False) -> bool:
        """Serve until there is nothing left to do.

        Args:
            until_idle: Leave as soon as everything is delivered or stuck, rather than linger.

        Returns:
            False when another courier serves this home already.
        """
        self.home.create()
        if not self._take_post():
            return False
        try:
            self._report("serving")
            self.home.forget_done()
            while True:
                self._serve(until_idle=until_idle)
                if self._post.successor.exists():
                    self._leave()
                    return True
                # A writer that probed the lock a moment ago believed itself served: look again
                # after the lock is free, and take it back if somebody came.
                liveness.release(self._post.lock)
                if self._stop.is_set() or until_idle or not self._find_new():
                    return True
                if not liveness.acquire(self._post.lock):
                    return True
        finally:
            self._leave()

    def _take_post(self) -> bool:
        """Take the lock, which one who was asked to make room gives back soon."""
        end_s = time.monotonic() + _MAKING_ROOM_S
        while not liveness.acquire(self._post.lock):
            if not self._post.successor.exists() or time.monotonic() > end_s:
                return False
            time.sleep(_LOOK_EVERY_S)
        self._post.successor.unlink(missing_ok=True)
        return True

    def _leave(self) -> None:
        self._stop.set()
        for worker in self._workers.values():
            worker.join()
        self._report("gone")
        liveness.release(self._post.lock)

    def stop(self) -> None:
        """Ask the loop to leave soon."""
        self._stop.set()

    def _serve(self, *, until_idle: bool) -> None:
        idle_since_s: float | None = None
        while not self._stop.is_set():
            self._look()
            self._report("serving")
            now_s = time.monotonic()
            if self._post.successor.exists():
                return
            if until_idle:
                if self._is_caught_up() or self._is_stuck():
                    self._look()  # puts away what was finished since, and finds journals of children
                    if self._is_caught_up() or self._is_stuck():
                        return
            elif self._deliveries and (self._has_live_writer or not self._is_stuck()):
                idle_since_s = None
            else:
                idle_since_s = idle_since_s or now_s
                stay_s = UNDELIVERABLE_STAY_S if self._deliveries else LINGER_S
                if now_s - idle_since_s >= stay_s:
                    return
            self._stop.wait(_LOOK_EVERY_S)

    def _is_caught_up(self) -> bool:
        return all(delivery.is_idle for delivery, _ in self._deliveries.values())

    def _find_new(self) -> list[RunDelivery]:
        found = []
        for folder in self.home.runs():
            if folder.uid not in self._deliveries and folder.uid not in self._others:
                delivery = RunDelivery(self.home, folder)
                if folder.writers():
                    found.append(delivery)
        return found

    def _look(self) -> None:
        for delivery in self._find_new():
            self._deliveries[delivery.folder.uid] = (delivery, None)
        is_live = False
        for uid, (delivery, worker) in list(self._deliveries.items()):
            try:
                is_live |= self._look_at(uid, delivery, worker)
            except Unavailable as error:
                if self._is_news(uid, error):
                    logger.warning("run %s: %s", uid, error)
            except Exception as error:  # the courier must outlive any one run's trouble
                if self._is_news(uid, error):
                    logger.exception("run %s", uid)
        self._others = {uid: other for uid, other in self._others.items() if other.folder.path.exists()}
        self._has_live_writer = is_live or any(other.is_live() for other in self._others.values())
        self._is_hurried = _is_fresh(self.home.hurry_file, _HURRY_S)
        if not self._is_hurried:
            self._retried_s = -1e9
        elif time.monotonic() - self._retried_s > _HURRY_S:
            # Again and again, as long as somebody waits, but not whenever one more does.
            self._retried_s = time.monotonic()
            for worker in self._workers.values():
                worker.retry_now()

    def _look_at(self, uid: str, delivery: RunDelivery, worker: Worker | None) -> bool:
        """Bring a run on its way, or to its end; return whether somebody writes to it."""
        if worker is None:
            if not delivery.look():
                return False
            if delivery.destination().identity != self._identity:
                self._others[uid] = delivery
                del self._deliveries[uid]
                return False
            worker = self._worker(delivery.destination())
            worker.add(delivery)
            self._deliveries[uid] = (delivery, worker)
        if delivery.is_finished and delivery.finish():
            worker.remove(uid)
            del self._deliveries[uid]
            self.moved()
            return False
        return delivery.is_live()

    def _is_news(self, uid: str, error: Exception) -> bool:
        """Tell whether it is the first time that this stands in a run's way: a look comes every moment."""
        before, self._told[uid] = self._told.get(uid), str(error)
        return before != str(error)

    def _worker(self, destination: Destination) -> Worker:
        worker = self._workers.get(destination.key)
        if worker is None:
            worker = self._workers[destination.key] = Worker(self, destination)
        return worker

    def _is_stuck(self) -> bool:
        """Tell whether nothing that is left can be delivered for now."""
        now_s = time.monotonic()
        left = {
            uid: worker
            for uid, (delivery, worker) in self._deliveries.items()
            if worker is not None and not delivery.is_idle
        }
        stuck = {
            uid
            for uid, worker in left.items()
            if worker.is_stuck(uid) or (worker.is_starting and now_s - worker.started_s > _STARTING_AT_MOST_S)
        }
        # Who waits for a run that is stuck is stuck with it; a parent that has just arrived is none.
        is_quiet = bool(stuck) and now_s - self._moved_s > _QUIET_S
        return all(uid in stuck or (is_quiet and worker.waits(uid)) for uid, worker in left.items())

    def _report(self, phase: str) -> None:
        is_connecting = any(worker.is_connecting for worker in self._workers.values())
        cpu_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        # At work without a record delivered: importing what a first model needs, packing a batch. Waiting
        # for a server that does not answer costs no processor time, and is no progress. In a training's
        # own process nobody knows whose time it was.
        is_working = cpu_s > (_CONNECTING_CPU_S if is_connecting else _WORKING_CPU_S)
        self._progress += is_working if self.owns_process else is_connecting
        content = {
            "pid": os.getpid(),
            "mode": self._mode,
            "phase": phase,
            "progress": self._progress,
            "secret": self._secret,
            "destinations": {
                key: {
                    "tracking_uri": public_uri(worker.destination.tracking_uri),
                    "problem": worker.problem,
                    # Nothing arrives there for now: nobody answers, or our credentials are refused.
                    "is_closed": worker.is_down or worker.is_denied,
                    "told_ms": worker.told_ms,
                    "is_starting": worker.is_starting,
                }
                for key, worker in self._workers.items()
            },
        }
        if content != self._written:
            self._written = content
            try:
                replace_file(self._post.report, content)
            except OSError as error:
                logger.warning("cannot report progress: %s", error)


def _be_nice() -> None:
    """Lower the priority of every thread there is, those that they start inherit it."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        # Linux keeps it per thread, whatever POSIX says of processes: setpriority(2), "C library/kernel differences".
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        threads = [0]
    for thread in threads:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(own + _NICENESS, 19))


def _is_fresh(path: Path, age_s: float) -> bool:
    try:
        return time.time() - path.stat().st_mtime < age_s
    except OSError:
        return False


def main(home: str, identity: str = "", secret: str = "") -> None:
    """Run a courier as a process of its own; what `mlpipeline.tracking.dispatch` starts."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    os.umask(0o077)
    quiet_mlflow()
    credentials.take_over(os.environ.pop(credentials.VARIABLE, ""))
    Courier(Home(Path(home)), identity, secret=secret, owns_process=True, mode="process").run()


if __name__ == "__main__":
    main(*sys.argv[1:])
