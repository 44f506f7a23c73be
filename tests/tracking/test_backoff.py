"""When a courier asks a destination that fails: on a simulated clock, minutes in a moment.

::

    Worker.round ─ every 0.2 s of the clock ─► Faithful (a run) ─ asks ─► Trouble (a destination), which notes when
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mlpipeline.tracking.courier import Courier
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.verdicts import Unavailable
from mlpipeline.tracking.worker import BACKOFF_LONGEST_S, DENIED_RETRY_S, Backoff, Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_S = 0.2
OUTAGE_S = 600.0


class Clock:
    """A clock that is set forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Trouble(Destination):
    """A destination that fails as it is told; `asked` are the times at which somebody asked it."""

    fault: Callable[[str], Unavailable | None]
    is_refusing: bool
    asked: list[float]
    clock: Clock

    def probe(self, timeout_s: float = 3.0) -> None:
        """Refuse a connection, if there is to be none."""
        if self.is_refusing:
            self.asked.append(self.clock())
            raise Unavailable("does not answer")

    def ask(self, uid: str, sink: Any) -> None:
        """Take a call of a run, or fail."""
        self.asked.append(self.clock())
        if (error := self.fault(uid)) is not None:
            raise error
        sink.answered += 1


class Faithful:
    """A run with one call to make for its records, and one for its files."""

    def __init__(self, uid: str, where: Trouble) -> None:
        self.folder = SimpleNamespace(uid=uid)
        self.state = SimpleNamespace(is_ended=False)
        self.upload_failures = 0
        self.left = {"records", "files"}
        self.where = where
        self.problem: str | None = None

    @property
    def is_idle(self) -> bool:
        return not self.left

    def deliver(self, sink: Any) -> int:
        return int(self._send("records", sink))

    def upload(self, sink: Any) -> bool:
        return self._send("files", sink)

    def set_problem(self, problem: str | None) -> None:
        self.problem = problem

    def _send(self, what: str, sink: Any) -> bool:
        if what not in self.left:
            return False
        self.where.ask(self.folder.uid, sink)
        self.left.remove(what)
        return True


class Scene:
    """A destination, and the worker of each of some couriers with its runs."""

    def __init__(self, home: Path, *, couriers: int = 1, runs: int = 1) -> None:
        self.clock = Clock()
        self.where = self.well()
        self.workers = [self._worker(home, runs) for _ in range(couriers)]

    def well(self) -> Trouble:
        where = Trouble("http://127.0.0.1:9", "http://127.0.0.1:9")
        for name, value in (("is_refusing", False), ("asked", []), ("clock", self.clock)):
            object.__setattr__(where, name, value)
        object.__setattr__(where, "fault", lambda _: None)
        return where

    def set(self, error: Callable[[str], Unavailable | None], *, is_refusing: bool = False) -> None:
        """Let it fail from now on."""
        object.__setattr__(self.where, "fault", error)
        object.__setattr__(self.where, "is_refusing", is_refusing)

    def _worker(self, home: Path, runs: int) -> Worker:
        worker = Worker(Courier(Home(home)), self.where, self.clock)
        worker._threads = []  # its rounds are made here
        for number in range(runs):
            worker.add(Faithful(str(number), self.where))  # type: ignore[arg-type]  # what a worker knows of it
        return worker

    def go(self, for_s: float) -> None:
        """Let time pass."""
        end_s = self.clock.now_s + for_s
        sinks = [SimpleNamespace(answered=0, load=lambda: None) for _ in self.workers]
        while self.clock.now_s < end_s:
            for worker, sink in zip(self.workers, sinks, strict=True):
                worker.round("records", sink)  # type: ignore[arg-type]  # the same
                worker.round("files", sink)  # type: ignore[arg-type]
            self.clock.now_s += LOOK_S

    def runs(self, worker: int = 0) -> list[Any]:
        """The runs of a worker."""
        return [run.delivery for run in self.workers[worker]._runs.values()]


def busy(status: int, **about: Any) -> Callable[[str], Unavailable]:
    """Answers of one kind to everybody."""
    return lambda _: Unavailable(f"the server answers {status}", status=status, **about)


@pytest.fixture(autouse=True)
def drawn() -> None:
    """The same draws every time."""
    random.seed(5)


@pytest.mark.parametrize("runs", [1, 100])
@pytest.mark.parametrize(
    ("error", "is_refusing"),
    [(busy(503, is_unclear=True), False), (busy(429), False), (busy(503), True)],
    ids=["503", "429", "refused"],
)
def test_a_destination_that_fails_is_asked_once_per_interval(
    home: Path, runs: int, error: Callable[[str], Unavailable], is_refusing: bool
) -> None:
    """Each interval is twice the last one, up to a minute, however many runs wait."""
    scene = Scene(home, runs=runs)
    scene.set(error, is_refusing=is_refusing)
    scene.go(OUTAGE_S)
    least_s = [min(BACKOFF_LONGEST_S, 0.1 * 2**number) / 2 for number in range(100)]
    gaps_s = [after - before for before, after in pairwise(scene.where.asked)]
    assert 10 < len(gaps_s)
    assert all(gap >= least - 1e-6 for gap, least in zip(gaps_s, least_s, strict=False)), gaps_s


@pytest.mark.parametrize("runs", [1, 100])
def test_refused_credentials_are_shown_six_times_and_then_every_five_minutes(home: Path, runs: int) -> None:
    """Not by every run: a server may lock out who is wrong too often."""
    scene = Scene(home, runs=runs)
    scene.set(busy(403, is_denied=True))
    scene.go(10)
    assert len(scene.where.asked) <= 6
    before = len(scene.where.asked)
    scene.go(4 * DENIED_RETRY_S)
    gaps_s = [after - before for before, after in pairwise(scene.where.asked[before:])]
    assert 2 <= len(gaps_s)
    assert all(gap >= DENIED_RETRY_S for gap in gaps_s)


def test_refused_credentials_leave_a_run_stuck_before_its_files_had_a_turn(home: Path) -> None:
    """Nothing is tried for minutes, and whoever waits for the run would wait as long."""
    scene = Scene(home)
    scene.set(busy(401, is_denied=True))
    worker = scene.workers[0]
    worker.round("records", SimpleNamespace(answered=0, load=lambda: None))  # type: ignore[arg-type]
    assert worker.is_stuck("0")


@pytest.mark.parametrize("runs", [1, 100])
def test_nobody_asks_earlier_than_a_server_wants_to_be_asked(home: Path, runs: int) -> None:
    """Neither another run, nor somebody who waits, nor a thread whose own call has just passed."""
    scene = Scene(home, runs=runs)
    scene.set(busy(429, retry_after_s=60.0))
    for _ in range(100):
        scene.go(3)
        scene.workers[0].retry_now()
        scene.workers[0]._open("records")
    gaps_s = [after - before for before, after in pairwise(scene.where.asked)]
    assert 3 <= len(gaps_s)
    assert 60.0 <= min(gaps_s)
    assert max(gaps_s) <= 60.0 * 1.25 + 2 * 3


@pytest.mark.parametrize("about", [{}, {"retry_after_s": 60.0}], ids=["503", "retry-after"])
def test_a_hundred_couriers_come_back_one_by_one(home: Path, about: dict[str, Any]) -> None:
    """After ten minutes that began for all at once, no second sees more than a tenth of them."""
    scene = Scene(home, couriers=100)
    scene.set(busy(503, is_unclear=True, **about))
    scene.go(OUTAGE_S)
    asked = len(scene.where.asked)
    scene.set(lambda _: None)
    healed_s = scene.clock.now_s
    first_s: dict[int, float] = {}
    while len(first_s) < 100 and scene.clock.now_s < healed_s + 120:
        scene.go(LOOK_S)
        for number in range(100):
            if number not in first_s and not all(
                run.left == {"records", "files"} for run in scene.runs(number)
            ):
                first_s[number] = scene.clock.now_s
    assert 100 == len(first_s), "all of them, in two minutes"
    assert max(Counter(int(second) for second in first_s.values()).values()) <= 10
    assert asked <= 100 * 25


def test_one_run_that_fails_holds_up_no_other(home: Path) -> None:
    """Nor do a third of them: each takes itself out of the way."""
    scene = Scene(home, runs=30)
    bad = {str(number) for number in range(10)}
    scene.set(lambda uid: Unavailable("failed", status=500, is_unclear=True) if uid in bad else None)
    scene.go(60)
    assert bad == {run.folder.uid for run in scene.runs() if run.left}
    assert {True} == {scene.workers[0].is_stuck(uid) for uid in bad}
    assert len(scene.where.asked) <= 2 * 20 + 2 * 10 * 9


def test_three_requests_of_ten_that_fail_cost_seconds(home: Path) -> None:
    """A passing trouble does not make the courier slow."""
    scene = Scene(home, runs=50)
    scene.set(lambda _: Unavailable("busy", status=503, is_unclear=True) if random.random() < 0.3 else None)
    scene.go(30)
    assert [] == [run.folder.uid for run in scene.runs() if run.left]


def test_one_run_without_permission_leaves_the_others_alone(home: Path) -> None:
    """They are delivered, and its own problem is told at it."""
    scene = Scene(home, runs=21)
    scene.set(lambda uid: Unavailable("denied", status=403, is_denied=True) if uid == "0" else None)
    scene.go(5)
    assert ["0"] == [run.folder.uid for run in scene.runs() if run.left]
    assert ["denied"] == [run.problem for run in scene.runs() if run.problem]
    assert not scene.workers[0].is_denied


def test_waits_have_jitter(home: Path) -> None:
    """What a server asks for is exceeded, by a quarter at most, and never cut short."""
    clock = Clock()
    waits_s = []
    for error in (Unavailable("", retry_after_s=60.0), Unavailable("", is_denied=True)):
        for _ in range(200):
            backoff, began_s = Backoff(clock=clock), clock.now_s
            backoff.failed(error)
            while not backoff.is_due():
                clock.now_s += 0.5
            waits_s.append(clock.now_s - began_s)
    for asked_s, found_s in ((60.0, waits_s[:200]), (DENIED_RETRY_S, waits_s[200:])):
        assert asked_s <= min(found_s)
        assert max(found_s) <= asked_s * 1.25 + 0.5
        assert 20 < len(set(found_s))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="only Linux tells the time of one thread")
def test_work_without_a_record_delivered_is_progress_in_a_training_too(home: Path) -> None:
    """Who waits for delivery waits on while a thread packs a batch, and not while one waits for an answer."""
    destination = Destination("http://nobody", "http://nobody")
    worker, is_over = Worker(Courier(Home(home)), destination), threading.Event()

    def work() -> None:
        while not is_over.is_set():
            sum(range(1000))

    assert 0 == worker.cpu_s()
    for doing, is_progress in ((is_over.wait, False), (work, True)):
        is_over.clear()
        worker._threads = [threading.Thread(target=doing)]
        worker._threads[0].start()
        time.sleep(0.5)
        assert is_progress is (worker.cpu_s() > 0.02)
        is_over.set()
        worker._threads[0].join()
