"""Couriers that come and go beside writers: nobody is taken for dead, and nobody is left unserved."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.tracking import courier, liveness
from mlpipeline.tracking.courier import Courier
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

pytestmark = pytest.mark.process

SEED = int(os.environ.get("MLPIPELINE_TEST_SEED", random.SystemRandom().randrange(2**31)))


@contextlib.contextmanager
def program(code, *arguments, **environ):
    """Run a program that is driven by lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process, line):
    """Tell a program a line, and return the next one it says."""
    print(line, file=process.stdin, flush=True)
    return process.stdout.readline().strip()


COURIERS = """
    import os, random, signal, sys, time
    import mlflow.tracking, mlflow.store.tracking.sqlalchemy_store  # once, for all that are forked
    from mlpipeline.tracking.courier import Courier
    from mlpipeline.tracking.home import Home
    moments = random.Random(int(sys.argv[2]))
    for _ in range(int(sys.argv[1])):
        child = os.fork()
        if child == 0:
            Courier(Home.at(), mode="thread").run()
            os._exit(0)
        time.sleep(moments.uniform(0.05, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""

BESIDE = """
    import os, sys, threading, time
    from mlpipeline import MLflowConfig
    from mlpipeline.tracking.opening import open_run
    run = open_run(MLflowConfig(experiment_name="alive", run_name="live", delivery="offline"))
    is_over, steps = threading.Event(), 0
    threading.Thread(target=lambda: (sys.stdin.readline(), is_over.set()), daemon=True).start()
    while not is_over.wait(0.002):
        run.log_metrics({"loss": steps / 7}, step=steps)
        steps += 1
    run.end()
    print(steps, flush=True)
"""


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.faults)])
def test_couriers_that_are_killed_beside_a_live_run_never_end_it(kills, store_uri, deliver):
    """Whoever reads the store meanwhile sees it RUNNING; in the end it is FINISHED with each point once."""
    path = store_uri.removeprefix("sqlite:///")
    seen = set()

    def look():
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            seen.update(status for (status,) in connection.execute("SELECT status FROM runs"))

    with program(BESIDE, MLFLOW_TRACKING_URI=store_uri) as process:
        with program(COURIERS, str(kills), str(SEED)) as couriers:
            while couriers.poll() is None:
                look()
                time.sleep(0.02)
        assert 0 == couriers.returncode
        deliver()
        look()
        assert {"RUNNING"} == seen, f"seed {SEED}"
        steps = int(answer(process, "over"))
    deliver()
    client = MlflowClient(store_uri)
    (found,) = client.search_runs(["1"])
    points = client.get_metric_history(found.info.run_id, "loss")
    assert "FINISHED" == found.info.status
    assert list(range(steps)) == sorted(point.step for point in points)


WRITER = """
    import sys
    from mlpipeline import MLflowConfig
    from mlpipeline.tracking import dispatch
    from mlpipeline.tracking.opening import open_run
    started = []
    # What it would start is started by the test, which has MLflow imported already.
    dispatch.Dispatch._spawn = lambda self: started.append(self)
    for line in sys.stdin:
        started.clear()
        dispatch._dispatches.clear()
        run = open_run(MLflowConfig(experiment_name="races"))
        run.log_metrics({"loss": 0.5}, step=0)
        run.end()
        print(run.uid, bool(started), flush=True)
"""

GAPS = (
    "after the last look",
    "before the release",
    "after the release",
    "after the last scan",
    "before it is gone",
)


class Leaving(Courier):
    """A courier at whose door somebody knocks in one of the gaps of its departure, once."""

    def __init__(self, home, gap, knock):
        super().__init__(home)
        self._gap = gap
        self._knock = knock
        self.has_released = False

    def at(self, gap):
        if gap == self._gap:
            self._gap = None
            self._knock()

    def _look(self):
        super()._look()
        self.at("after the last look")

    def _find_new(self):
        found = super()._find_new()
        if self.has_released:
            self.at("after the last scan")
        return found

    def _leave(self):
        self.at("before it is gone")
        super()._leave()


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("races", [6, pytest.param(200, marks=pytest.mark.faults)])
def test_a_writer_that_comes_while_the_courier_leaves_is_served(gap, races, store_uri, home, monkeypatch):
    """By the courier, which turns back, or by one that the writer starts; nobody has to call sync."""
    monkeypatch.setattr(courier, "LINGER_S", 0.0)
    released, place = liveness.release, Home(home)
    said = []

    def release(path):
        if path == place.post().lock:
            leaving.at("before the release")
            released(path)
            leaving.has_released = True
            leaving.at("after the release")
        else:
            released(path)

    monkeypatch.setattr(liveness, "release", release)
    with program(WRITER, MLFLOW_TRACKING_URI=store_uri) as writer:
        for _ in range(races):
            said.clear()
            leaving = Leaving(place, gap, lambda: said.append(answer(writer, "open").split()))
            leaving.run()
            ((uid, has_started),) = said
            if has_started == "True":
                place.hurry_file.touch()
                leaving = Leaving(place, None, None)
                leaving.run()
            state = place.done_state(uid)
            assert (True, []) == (state is not None and state.is_ended, list(place.runs()))
    client = MlflowClient(store_uri)
    runs = client.search_runs(["1"], max_results=1000)
    assert {"FINISHED"} == {run.info.status for run in runs}
    assert races == len(runs)


def test_a_writer_that_comes_back_to_an_undeliverable_run_keeps_the_courier(home):
    """Its run is not new; but whoever has just seen the courier's lock held will not start another one."""
    run = open_run(MLflowConfig(tracking_uri="http://127.0.0.1:9", delivery="offline"))
    run.end()
    leaving = Courier(Home(home))
    leaving._look()
    leaving._workers.clear()
    assert not leaving._has_company()
    run.resume()
    assert leaving._has_company()
    run.end()
    leaving.stop()
