"""The courier: the loop that takes journals to MLflow.

::

    Courier (one per journal home)            holds courier.lock, writes courier.json
      └─ Worker (one per destination)         two threads: records, and files
           └─ RunDelivery (one per run)       journals -> sink -> state.json

The same loop runs as a process of its own (`main`), as a thread where processes are not to be had,
and in the foreground as ``mlpipeline sync``. The journal home is all it shares with the trainers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core import credentials
from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking import liveness
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.home import Home, replace_file
from mlpipeline.tracking.sink import quiet_mlflow
from mlpipeline.tracking.verdicts import Unavailable
from mlpipeline.tracking.worker import STARTING_AT_MOST_S, Worker

if TYPE_CHECKING:
    from mlpipeline.tracking.destination import Destination

logger = logging.getLogger("mlpipeline")

LINGER_S = 10.0
"""How long the courier stays after the last run is done: the next one need not start another."""

UNDELIVERABLE_STAY_S = 600.0
"""How long it stays with nothing but what cannot be delivered; the next writer or sync resumes."""

_QUIET_S = 1.0
_MAKING_ROOM_S = 60.0  # what a request under way may take at most, twice
_LOOK_EVERY_S = 0.1
_HURRY_S = 3.0
_WORK_CPU_S = 0.05
_WORK_WITHIN_S = 1.0
"""So much processor time of the workers within so long is progress. Threads that wait for an answer and look around
meanwhile use a third of it; on a machine with five busy processes work gets three times as much."""

_NICENESS = 5
"""Taken on after the first delivery; at 10 on a busy machine, importing MLflow took 23 s instead of 3."""


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
        self._hiring = threading.Lock()
        self._deliveries: dict[str, tuple[RunDelivery, Worker | None]] = {}
        self._others: dict[str, RunDelivery] = {}  # runs of other identities: only their lives count here
        self._progress = 0
        self._moves = 0
        self._moved_s = -1e9
        self._worked = (0.0, -1e9)  # processor time of the workers, and when we looked at it
        self._written: dict[str, Any] = {}
        self._has_live_writer = False
        self._is_hurried = False
        self._retried_s = -1e9
        self._told: dict[str, str] = {}
        # What somebody who leaves when it is sent has met, and where its journals ended then. None: serves all.
        self._met: dict[str, dict[str, list[int]]] | None = None

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
                if self._post.successor.exists() or not liveness.still_holds(self._post.lock):
                    self._leave()
                    return True
                # A writer that probed the lock a moment ago believed itself served: look again
                # after the lock is free, and take it back if somebody came.
                liveness.release(self._post.lock)
                if self._stop.is_set() or until_idle or not self._has_company():
                    return True
                if not liveness.acquire(self._post.lock):
                    return True
        finally:
            self._leave()

    def _has_company(self) -> bool:
        """Tell whether somebody came just now: with a new run, or back to one that could not be delivered."""
        known = [delivery.folder for delivery, _ in self._deliveries.values()]
        return bool(self._find_new()) or any(
            liveness.is_held(folder.lock(writer)) for folder in known for writer in folder.writers()
        )

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

    def expect(self, destination: Destination) -> None:
        """Make ready for a destination; for a courier that is a thread, from another one.

        By the time that it looks, the interpreter may be at its exit, where some Pythons start no thread.

        Raises:
            RuntimeError: There are no more threads to be had.
        """
        self._worker(destination).start()

    def _serve(self, *, until_idle: bool) -> None:
        idle_since_s: float | None = None
        has_met_children = False
        while not self._stop.is_set():
            self._look()
            now_s = time.monotonic()
            if not liveness.still_holds(self._post.lock):
                return  # the home was deleted; in one made again, another courier serves
            self._report("serving")
            if self._post.successor.exists():
                return
            if until_idle:
                if self._met is None:
                    self._meet()
                if self._is_caught_up() or self._is_stuck():
                    self._look()  # puts away what was finished since, and finds journals of children
                    if not has_met_children:
                        has_met_children = True
                        self._meet()
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

    def _meet(self) -> None:
        self._met = {uid: delivery.folder.ends() for uid, (delivery, _) in self._deliveries.items()}

    def _is_caught_up(self) -> bool:
        return not any(self._owes(uid, delivery) for uid, (delivery, _) in self._deliveries.items())

    def _owes(self, uid: str, delivery: RunDelivery) -> bool:
        """Tell whether something of a run waits; for who leaves, something that was there when it was met.

        Where somebody records without a pause there is always something that came since.
        """
        if delivery.is_idle or self._met is None:
            return not delivery.is_idle
        return uid in self._met and not (delivery.is_live() and delivery.has_sent(self._met[uid]))

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
        if self._is_hurried and time.monotonic() - self._retried_s > _HURRY_S:
            # Again and again, as long as somebody waits, but not whenever one more does.
            self._retried_s = time.monotonic()
            for worker in self._workers.values():
                worker.retry_now()

    def _look_at(self, uid: str, delivery: RunDelivery, worker: Worker | None) -> bool:
        """Bring a run on its way, or to its end; return whether somebody writes to it."""
        if not delivery.folder.path.exists():  # deleted by hand: nothing is left to deliver
            if worker is not None:
                worker.remove(uid)
            del self._deliveries[uid]
            return False
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
        with self._hiring:
            worker = self._workers.get(destination.key)
            if worker is None:
                worker = Worker(self, destination)
                # Another thread may go through them.
                self._workers = {**self._workers, destination.key: worker}
            return worker

    def _is_stuck(self) -> bool:
        """Tell whether nothing that is left can be delivered for now."""
        now_s = time.monotonic()
        left = {
            uid: worker
            for uid, (delivery, worker) in self._deliveries.items()
            if worker is not None and self._owes(uid, delivery)
        }
        stuck = {
            uid
            for uid, worker in left.items()
            if worker.is_stuck(uid) or (worker.is_starting and now_s - worker.started_s > STARTING_AT_MOST_S)
        }
        # Who waits for a run that is stuck is stuck with it; a parent that has just arrived is none.
        is_quiet = bool(stuck) and now_s - self._moved_s > _QUIET_S
        return all(uid in stuck or (is_quiet and worker.waits(uid)) for uid, worker in left.items())

    def _has_worked(self) -> bool:
        worked_s, now_s = self._worker_cpu_s(), time.monotonic()
        before_s, at_s = self._worked
        is_work = worked_s - before_s >= _WORK_CPU_S
        if is_work or now_s - at_s > _WORK_WITHIN_S:
            self._worked = (worked_s, now_s)
        return is_work

    def _worker_cpu_s(self) -> float:
        """Return the processor time of the workers so far; called in the loop's own thread, which does not count."""
        if self.owns_process:
            return time.process_time() - time.thread_time()  # MLflow has threads of its own for files
        return sum(worker.cpu_s() for worker in self._workers.values())

    def _report(self, phase: str) -> None:
        # At work without a record delivered: importing what a first model needs, packing a batch. Waiting
        # for a server that does not answer costs no processor time, and is no progress.
        if self._has_worked():
            self._progress += 1
        elif not self.owns_process and any(worker.is_connecting for worker in self._workers.values()):
            self._progress += 1  # also where the system does not tell one thread's time
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
                    "lost_s": round(worker.lost_s, 1),
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
