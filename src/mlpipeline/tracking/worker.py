"""The worker: what a courier does for one destination, and when it tries again.

::

    records ─┐                                  ┌─ each run's own backoff
             ├─ round ─ turn of each run ─ door ─┤
    files ───┘                                  └─ the destination's trouble: one trial at a time

A run that fails is tried again later and later, by itself. A failure that may be the destination's closes
the worker's door: one turn at a time is tried, more and more rarely however many runs wait, until one passes.

A worker is a guest on the training's machine: while a writer on this host lives, it keeps to a share of one
core, and sends the backlog when the writers end or somebody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking.creation import NotYet
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.verdicts import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlpipeline.tracking.delivery import RunDelivery
    from mlpipeline.tracking.destination import Destination

logger = logging.getLogger("mlpipeline")

CPU_SHARE = 0.05
"""Part of one core that a worker may use while a writer on this host lives."""

BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 60.0
DENIED_RETRY_S = 300.0

STARTING_AT_MOST_S = 90.0
"""How long importing MLflow and making a store may take, before it counts as trouble."""

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
_LONG_WAIT_S = 15.0
_DELIVER_EVERY_S = 0.2
_HURRIED_EVERY_S = 0.02
_GUEST_READ_BYTES = 16 * 2**10
_GUEST_EVERY_S = 0.5
_SETTLING_S = 1.0
"""How long a new run is left alone while a writer on this host lives: making it is the costly part, and many
trainings are over by then."""


class Host(Protocol):
    """What a worker asks of its courier."""

    owns_process: bool
    is_for_anybody: bool

    def is_stopping(self) -> bool:
        """Tell whether the workers are to end."""

    def is_guest(self) -> bool:
        """Tell whether a training on this host runs that must not be disturbed."""

    def is_hurried(self) -> bool:
        """Tell whether somebody waits for delivery."""

    def pause(self, wait_s: float) -> None:
        """Wait, but not longer than until the courier stops or somebody waits for it."""

    def moved(self) -> None:
        """Take note that something was delivered."""


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

    def wait_s(self) -> float:
        """Return how long nothing will be tried."""
        return max(0.0, self._not_before_s - self._clock(), self.rest_s())

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


def _cpu_s(thread: threading.Thread) -> float:
    try:
        with open(f"/proc/self/task/{thread.native_id}/stat", "rb") as file:
            # After the name, which may hold anything: utime and stime are fields 14 and 15, proc_pid_stat(5).
            fields = file.read().rpartition(b")")[2].split()
    except OSError:  # not Linux, or the thread is gone
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Standing:
    """How one run fares at its destination."""

    def __init__(self, delivery: RunDelivery, clock: Callable[[], float]) -> None:
        self.delivery = delivery
        self.backoffs = {kind: Backoff(clock=clock) for kind in _KINDS}
        self.is_denied = False
        self.since_s = clock()
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
        self, courier: Host, destination: Destination, clock: Callable[[], float] = time.monotonic
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
        # What failed last: the other thread tries next, unless it is busy.
        self._gives_way: _Kind | None = None
        self._allowance = Allowance()
        self._sinks: dict[_Kind, MlflowSink] = {}
        self._starting = threading.Lock()
        self._has_runs = threading.Event()  # nothing to do costs nothing
        self._threads = [
            threading.Thread(target=self._serve, args=(kind,), daemon=True, name=f"mlpipeline-{kind}")
            for kind in _KINDS
        ]

    def join(self) -> None:
        """Wait until both threads have seen that the courier stops."""
        self._has_runs.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def cpu_s(self) -> float:
        """Return the processor time of both threads so far, in the system's steps of 10 ms; 0 where it does not tell."""
        return sum(_cpu_s(thread) for thread in self._threads)

    def add(self, delivery: RunDelivery) -> None:
        """Take on a run."""
        self.start()
        self._runs = {**self._runs, delivery.folder.uid: _Standing(delivery, self._clock)}
        self._has_runs.set()

    def start(self) -> None:
        """Start the threads, which wait for the first run; again changes nothing.

        Raises:
            RuntimeError: There are no more threads to be had, or the interpreter is at its exit.
        """
        with self._starting:
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()

    def remove(self, uid: str) -> None:
        """Let go of a run that is done."""
        self._runs = {key: run for key, run in self._runs.items() if key != uid}
        if not self._runs:
            self._has_runs.clear()

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
        # Refused credentials shut it for minutes, perhaps before the other thread has had its first turn.
        return self.is_down or door.wait_s() > _LONG_WAIT_S or door.failures >= _FAILURES_OF_CLOSED

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
        is_late = self._clock() - self.started_s > STARTING_AT_MOST_S
        return (
            self.is_starting
            and bool(self._runs)  # one that is only expected holds nobody
            and not is_late
            and not any(sink.is_connected for sink in list(self._sinks.values()))
        )

    @property
    def lost_s(self) -> float:
        """How much longer its answers took so far than those of a server beside us; see `Delay`."""
        return sum(sink.delay.lost_s for sink in list(self._sinks.values()))

    def _serve(self, kind: _Kind) -> None:
        courier = self._courier
        sink = MlflowSink(
            self.destination, owns_process=courier.owns_process, is_for_anybody=courier.is_for_anybody
        )
        self._sinks[kind] = sink
        while not self._courier.is_stopping():
            self._has_runs.wait()
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
        if self._courier.is_guest() and not self.is_starting and self._clock() - run.since_s < _SETTLING_S:
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
            sink.load()
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
