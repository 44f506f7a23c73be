"""The courier: the loop that takes journals to MLflow.

::

    Courier (one per journal home)            holds courier.lock, writes courier.json
      └─ Worker (one per destination)         two threads: records, and files
           └─ RunDelivery (one per run)       journals -> sink -> state.json

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
from typing import TYPE_CHECKING, Any

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

_FAILURES_OF_STUCK = 3
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
    """When to try again: exponentially later, with jitter, so that many do not come at once."""

    def __init__(self) -> None:
        self.failures = 0
        self._not_before_s = 0.0

    def is_due(self) -> bool:
        """Tell whether it is time to try."""
        return time.monotonic() >= self._not_before_s

    def failed(self, error: Unavailable) -> None:
        """Take note of a failure."""
        self.failures += 1
        longest = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2 ** min(self.failures - 1, 10))
        wait_s = longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if error.is_denied:
            wait_s = DENIED_RETRY_S
        self._not_before_s = time.monotonic() + wait_s

    def succeeded(self) -> None:
        """Start afresh."""
        self.failures = 0
        self._not_before_s = 0.0

    def now(self) -> None:
        """Try at once: somebody waits, or asked for it."""
        self._not_before_s = 0.0


class Worker:
    """Serves one destination, so that none blocks another.

    Args:
        courier: Whose worker it is.
        destination: What it serves.
    """

    def __init__(self, courier: Courier, destination: Destination) -> None:
        self.destination = destination
        self.problem: str | None = None
        self.is_down = False
        self.is_denied = False
        self.is_starting = True
        self.started_s = time.monotonic()
        self._courier = courier
        self._deliveries: dict[str, RunDelivery] = {}
        self._backoffs: dict[str, Backoff] = {}
        self._door = Backoff()
        self._allowance = Allowance()
        self.told_ms = 0
        self._rests_until_s = 0.0
        self._sinks: list[MlflowSink] = []
        self._threads = [
            threading.Thread(target=self._serve, args=(turn,), daemon=True, name=f"mlpipeline-{name}")
            for name, turn in (("records", self._deliver), ("files", self._upload))
        ]

    def join(self) -> None:
        """Wait until both threads have seen that the courier stops."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def add(self, delivery: RunDelivery) -> None:
        """Take on a run; the first one sets the worker to work."""
        is_first = not self._deliveries
        self._deliveries = {**self._deliveries, delivery.folder.uid: delivery}
        if is_first:
            for thread in self._threads:
                if thread.ident is None:
                    thread.start()

    def remove(self, uid: str) -> None:
        """Let go of a run that is done."""
        self._deliveries = {key: value for key, value in self._deliveries.items() if key != uid}

    def retry_now(self) -> None:
        """Forget about waiting: somebody asks for delivery."""
        for backoff in [self._door, *self._backoffs.values()]:
            backoff.now()

    @property
    def is_stuck(self) -> bool:
        """Whether nothing can be delivered for now: a failure or two are taken for a passing trouble."""
        if self.is_down or self.is_denied or self._rest_s() > _LONG_REST_S:
            return True
        return any(backoff.failures >= _FAILURES_OF_STUCK for backoff in self._backoffs.values())

    @property
    def is_connecting(self) -> bool:
        """Whether MLflow is still being imported, or a store made: seconds without a record delivered."""
        is_late = time.monotonic() - self.started_s > _STARTING_AT_MOST_S
        return self.is_starting and not is_late and not any(sink.is_connected for sink in self._sinks)

    def _rest_s(self) -> float:
        """Return how long the server still wants to be left alone."""
        return max(0.0, self._rests_until_s - time.monotonic())

    def _serve(self, turn: Callable[[RunDelivery, MlflowSink], bool]) -> None:
        courier = self._courier
        sink = MlflowSink(
            self.destination, owns_process=courier.owns_process, is_for_anybody=courier.is_for_anybody
        )
        self._sinks.append(sink)
        while not self._courier.is_stopping():
            has_moved = False
            if self._knock():
                for delivery in list(self._deliveries.values()):
                    has_moved |= self._turn(delivery, sink, turn)
            if has_moved:
                wait_s = 0.0
            else:
                wait_s = _HURRIED_EVERY_S if self._courier.is_hurried() else _DELIVER_EVERY_S
            if self._courier.is_guest():
                wait_s = max(_GUEST_EVERY_S, min(self._allowance.wait_s(), 30.0))
            self._courier.pause(wait_s)

    def _turn(
        self, delivery: RunDelivery, sink: MlflowSink, turn: Callable[[RunDelivery, MlflowSink], bool]
    ) -> bool:
        key = f"{delivery.folder.uid}/{threading.get_ident()}"
        backoff = self._backoffs.setdefault(key, Backoff())
        if not backoff.is_due() or self._rest_s():
            return False
        before_s, was_starting = time.thread_time(), self.is_starting
        try:
            has_moved = turn(delivery, sink)
            self.is_starting &= not has_moved
        except NotYet:
            return False
        except Unavailable as error:
            self.is_starting = False
            self.is_denied = error.is_denied
            backoff.failed(error)
            self._tell(str(error))
            if error.retry_after_s is not None:
                # Meant for whoever calls, not for this one run; nobody who waits here may hurry it.
                self._rests_until_s = time.monotonic() + error.retry_after_s
            elif backoff.failures > 1 or error.is_unclear:
                self._door.now()
                self._knock(is_asked=True)
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
        if has_moved:
            if backoff.failures:
                backoff.succeeded()
                self.problem, self.is_denied = None, False
            delivery.set_problem(None)
            self._courier.moved()
        return has_moved

    def _deliver(self, delivery: RunDelivery, sink: MlflowSink) -> bool:
        was_ended = delivery.state.is_ended
        if self._courier.is_guest():
            delivery.deliver_latest(sink)
            count = delivery.deliver(sink, _GUEST_READ_BYTES)
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

    def _knock(self, *, is_asked: bool = False) -> bool:
        """Tell whether the server's port answers; asks it only at the start and after failures."""
        if not (is_asked or self.is_down or self.is_starting):
            return True
        if not self._door.is_due():
            return not self.is_down
        try:
            self.destination.probe()
        except Unavailable as error:
            self.is_down = True
            self._door.failed(error)
            self.is_starting = False
            self._tell(str(error))
            return False
        if self.is_down:
            self.is_down, self.problem = False, None
            for backoff in self._backoffs.values():
                backoff.now()
        self._door.succeeded()
        return True

    def _tell(self, problem: str) -> None:
        self.told_ms = time.time_ns() // 1_000_000
        if problem != self.problem:
            self.problem = problem
            logger.warning("%s: %s", public_uri(self.destination.tracking_uri), problem)
        with contextlib.suppress(Unavailable):
            for delivery in self._deliveries.values():
                if not delivery.is_idle:
                    delivery.set_problem(problem)


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
        return all(
            delivery.is_idle
            or worker is None
            or worker.is_stuck
            or (worker.is_starting and now_s - worker.started_s > _STARTING_AT_MOST_S)
            for delivery, worker in self._deliveries.values()
        )

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
