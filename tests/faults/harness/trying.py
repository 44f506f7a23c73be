"""Try a training under a fault: run it, heal the fault, sync, and count by plain MLflow.

::

    Bench   one per session: a migrated store, a shared server, undisturbed trainings to compare with
    Stage   one per try: a journal home, a proxy or a store, the training's notes
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import pictures
from harness.disks import Quota, SmallDisk
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.testing.places import clean_environ, copied_store, free_port, serving
from mlpipeline.tracking.account import accounts, courier_reports
from mlpipeline.tracking.home import Home

if TYPE_CHECKING:
    from harness.pictures import Picture

STEPS = 40
STEP_S = 0.1
_TRAINING_AT_MOST_S = 200
_SYNC_AT_MOST_S = 150
_PROGRAM = Path(__file__).with_name("trainings.py")


@dataclass(frozen=True)
class Trained:
    """How a training's process ended, and what it noted."""

    exit_code: int
    stderr: str
    wall_s: float
    result: str | None
    step_s: list[float] = field(repr=False)

    @property
    def steps(self):
        """How many steps it began."""
        return len(self.step_s)

    @property
    def longest_step_s(self):
        """The longest time from one step to the next."""
        return max(
            (after - before for before, after in zip(self.step_s, self.step_s[1:], strict=False)), default=0.0
        )


@dataclass(frozen=True)
class Undisturbed:
    """A training without a fault, and how many records it comes to."""

    trained: Trained
    picture: Picture
    delivered: int


@dataclass
class Outcome:
    """What became of one training under one fault.

    Attributes:
        exit_codes: That of the training, and that of the same one without recording.
        is_same_result: It came to the same numbers.
        longer_s: How much longer its process took than that of an undisturbed one.
        longest_step_s: How much longer the longest step took than a step takes.
        lost: Records that are neither in MLflow nor told of.
        taken_back: Records that MLflow had, before its owner took its database back.
        doubled: What is there more often than it was recorded.
        statuses: Of the run, one of each run there is.
        open_children: Names of the runs under it that are RUNNING.
        sync_codes: Exit codes of `mlpipeline sync`, until all was settled.
        stderr: Of the training.
        told: Records that are not in MLflow, and listed as refused or counted as dropped.
        refused: Letters in the home.
        dropped: Records that no disk took, as the home counts them, exactly.
        tagged: The same, as the run says in MLflow; None without a run.
    """

    exit_codes: tuple[int, int]
    is_same_result: bool
    longer_s: float
    longest_step_s: float
    lost: Counter
    doubled: Counter
    statuses: list[str]
    open_children: list[str]
    sync_codes: list[int]
    stderr: str
    told: int = 0
    taken_back: int = 0
    refused: int = 0
    dropped: int = 0
    tagged: int | None = None

    def row(self):
        """It as plain values, for the page."""
        return {
            "exit_codes": list(self.exit_codes),
            "is_same_result": self.is_same_result,
            "longer_s": round(self.longer_s, 1),
            "longest_step_s": round(self.longest_step_s, 2),
            "lost": self.lost.total(),
            "doubled": self.doubled.total(),
            "told": self.told,
            "taken_back": self.taken_back,
            "dropped": self.dropped,
            "refused": self.refused,
            "statuses": self.statuses,
            "sync_codes": self.sync_codes,
        }


class Bench:
    """What the tries of a session share.

    Args:
        folder: An empty folder.
        migrated: An empty store to copy.
        server: Returns a real server, which starts with the first who asks.
    """

    def __init__(self, folder, migrated, server):
        self.folder = folder
        self.migrated = migrated
        self.server = server
        self._undisturbed = {}
        self._until_now = {}
        self._unrecorded = {}

    def stage(self, integration, *, place="server"):
        """A place for one training."""
        return Stage(self, integration, place)

    def undisturbed(self, integration, steps, place):
        """The same training, recorded, with nothing in its way; of three the one in the middle."""
        key = integration, steps, place
        if key not in self._undisturbed:
            tries = []
            for _ in range(3 if steps == STEPS else 1):
                with self.stage(integration, place=place) as stage:
                    trained = stage.train(steps=steps)
                    stage.sync()
                    delivered = sum(state.delivered for state in stage.states())
                    tries.append(Undisturbed(trained, stage.look(), delivered))
            self._undisturbed[key] = sorted(tries, key=lambda one: one.trained.wall_s)[len(tries) // 2]
            assert tries[0].picture.facts, "nothing was recorded"
            for one in tries:
                assert one.picture.facts == tries[0].picture.facts, _differences(one, tries[0])
        return self._undisturbed[key]

    def until_struck(self, integration, steps):
        """What an undisturbed training has recorded when it comes to the step in which others are struck."""
        key = integration, steps
        if key not in self._until_now:
            with self.stage(integration) as stage:
                stage.stands_at = steps // 2
                process = stage.start(steps=steps)
                try:
                    stage.await_step(stage.stands_at)
                    assert 0 == stage.sync()[-1]
                    self._until_now[key] = stage.look().facts
                finally:
                    process.kill()
                    process.wait()
        return self._until_now[key]

    def unrecorded(self, integration, steps, strike):
        """The same training, struck in the same way, with nothing recorded."""
        key = integration, steps, strike
        if key not in self._unrecorded:
            with self.stage(integration) as stage:
                self._unrecorded[key] = stage.train(steps=steps, strike=strike, is_recorded=False)
        return self._unrecorded[key]


def _differences(one, other):
    return [one.picture.facts - other.picture.facts, other.picture.facts - one.picture.facts]


class Stage:
    """Where one training runs: a context manager.

    Args:
        bench: What it shares with others.
        integration: Which training.
        place: "server": the session's, behind a proxy of its own; "own server", which may be stopped, behind
            one too; "sqlite": a store of its own.

    Attributes:
        uri: Where the training records to.
        plain_uri: Where to look what has arrived.
        proxy: Between the training and a server; None with SQLite.
        home: The journal home.
        disk: A small one for the journal home; None takes what there is.
        stands_at: The step in which the training waits until it may `go_on`; None where it does not.
        taken_back: What a server had, and has not any more.
    """

    def __init__(self, bench, integration, place):
        self.name = f"{integration}-{uuid.uuid4().hex[:12]}"
        self.folder = bench.folder / self.name
        self.home = self.folder / "home"
        self.store = self.folder / "mlflow.db"
        self.proxy = None
        self.disk = None
        self.stands_at = None
        self.taken_back = Counter()
        self._bench = bench
        self._integration = integration
        self._place = place
        self._stack = contextlib.ExitStack()
        self._acts = []
        self._errors = []
        self._port = 0

    def __enter__(self):
        (self.folder / "cwd").mkdir(parents=True)
        if self._place == "server":
            self.plain_uri = self._bench.server().uri
        else:
            artifacts = "mlflow-artifacts:" if self._place == "own server" else str(self.folder / "mlruns")
            self.plain_uri = copied_store(self._bench.migrated, self.store, artifacts)
            if self._place == "own server":
                self._port = free_port()
                self.start_server()
                self.plain_uri = f"http://127.0.0.1:{self._port}"
        self.uri = self.plain_uri
        if self._place != "sqlite":
            self.proxy = self._stack.enter_context(FaultyProxy(self.plain_uri))
            self.uri = self.proxy.uri
        return self

    def __exit__(self, *_):
        self.kill_couriers()
        self._stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def on_small_disk(self, **how):
        """Put the journal home on a small disk."""
        self.disk = self._stack.enter_context(SmallDisk(self.home, **how))
        return self.disk

    def under_quota(self):
        """Put the journal home where no more than a quota can be kept."""
        if not Quota.is_possible:
            pytest.skip("a quota is set by root, with btrfs-progs")
        self.disk = self._stack.enter_context(Quota(self.home))
        return self.disk

    @property
    def _prefix(self):
        if self.disk is None or not self.disk.prefix:
            return []
        # Who enters a mount namespace stands in its root, and would leave checkpoints there.
        return [*self.disk.prefix, "env", f"--chdir={self.folder / 'cwd'}"]

    @property
    def seen_home(self):
        """The home, as this process sees it."""
        return Home(self.disk.seen if self.disk else self.home)

    # --- the server of its own ----------------------------------------------------------------------

    def start_server(self):
        """Start the server of this stage, at the port where it always was."""
        self._server = serving(self.folder, f"sqlite:///{self.store}", port=self._port)
        self._server.__enter__()
        self._stack.callback(self.stop_server)

    def stop_server(self):
        """Stop it."""
        if self._server is not None:
            self._server.__exit__(None, None, None)
            self._server = None

    # --- the training -------------------------------------------------------------------------------

    @property
    def environ(self):
        """The environment of its commands."""
        return {**clean_environ(), "MLPIPELINE_HOME": str(self.home), "MLFLOW_TRACKING_URI": self.uri}

    def start(self, *, steps=STEPS, strike=None, is_recorded=True, step_s=STEP_S):
        """Start the training."""
        order = {
            "integration": self._integration,
            "name": self.name,
            "notes": str(self.folder / "notes"),
            "steps": steps,
            "step_s": step_s,
            "strike": strike,
            "stand": self.stands_at,
            "go": str(self.folder / "go"),
            "is_recorded": is_recorded,
        }
        (self.folder / "order.json").write_text(json.dumps(order))
        environ = {**self.environ, "MLFLOW_EXPERIMENT_NAME": self.name}
        with (self.folder / "stderr").open("wb") as stderr:
            return subprocess.Popen(
                [*self._prefix, sys.executable, str(_PROGRAM), str(self.folder / "order.json")],
                cwd=self.folder / "cwd",
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )

    def train(self, **how):
        """Train, to the end."""
        began_s = time.monotonic()
        process = self.start(**how)
        try:
            process.wait(_TRAINING_AT_MOST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        wall_s = time.monotonic() - began_s
        for act in self._acts:
            act.join()
        self.raise_errors()
        notes = self.notes()
        return Trained(
            exit_code=process.returncode,
            stderr=(self.folder / "stderr").read_text("utf-8", "replace"),
            wall_s=wall_s - sum(note.get("stood_s", 0.0) for note in notes),
            result=next((note["result"] for note in notes if "result" in note), None),
            step_s=[note["s"] for note in notes if "step" in note],
        )

    def notes(self):
        """What the training has noted so far."""
        try:
            lines = (self.folder / "notes").read_text().splitlines()
        except OSError:
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def await_step(self, step):
        """Wait until the training has come to a step; an earlier end counts too."""
        self.wait_until(
            lambda: any(note.get("step", -1) >= step or "result" in note for note in self.notes()),
            _TRAINING_AT_MOST_S,
            every_s=0.02,
        )

    def go_on(self):
        """Let the training go on that stands."""
        (self.folder / "go").touch()

    def at_step(self, step, act):
        """Call *act* when the training has come to a step, from a thread; an earlier end counts too."""

        def wait():
            try:
                self.await_step(step)
                act()
            except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
                self._errors.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self._acts.append(thread)

    def run(self):
        """The run, as plain MLflow has it now; None where there is none, or no server."""
        found = self.runs()
        return found[0] if found else None

    def runs(self):
        """The run and those under it."""
        from mlflow import MlflowClient

        client = MlflowClient(self.plain_uri, self.plain_uri)
        experiment = client.get_experiment_by_name(self.name)
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def await_points(self, count):
        """Wait until so many steps of the run are in MLflow, and return the run."""
        self.wait_until(lambda: (run := self.run()) is not None and _last_step(run) >= count)
        return self.run()

    def raise_errors(self):
        """Raise what went wrong in a thread of `at_step`."""
        if self._errors:
            raise self._errors[0]

    # --- afterwards ---------------------------------------------------------------------------------

    def command(self, *arguments):
        """Run `mlpipeline …` to its end: its exit code and what it printed."""
        done = subprocess.run(
            [*self._prefix, sys.executable, "-m", "mlpipeline", *arguments],
            cwd=self.folder / "cwd",
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SYNC_AT_MOST_S,
        )
        return done.returncode, done.stdout + done.stderr

    def sync(self, within_s=_SYNC_AT_MOST_S, *, until_away=False):
        """Run `mlpipeline sync` until nothing waits any more, and return its exit codes.

        Args:
            within_s: Give up after so long.
            until_away: Until every run is put away: creates in doubt are settled, too.
        """
        codes, deadline_s = [], time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            codes.append(self.command("sync")[0])
            if codes[-1] != 1 and not (until_away and list(self.seen_home.runs())):
                break
            time.sleep(1 if codes[-1] == 1 else 8)
        return codes

    def look(self):
        """Look what is in MLflow."""
        return pictures.picture(self.plain_uri, self.name)

    def stored_files(self):
        """How many files of runs a server of its own has, whether it knows the run or not."""
        return sum(path.is_file() for path in (self.folder / "artifacts").glob("*/*/artifacts/**/*"))

    def account(self):
        """What the home knows of its runs."""
        return accounts(self.seen_home)

    def states(self):
        """What the home knows of its runs, also of those that are put away."""
        done = [path.stem for path in (self.seen_home.path / "done").glob("*.json")]
        states = map(self.seen_home.state, {*done, *(folder.uid for folder in self.seen_home.runs())})
        return [state for state in states if state is not None]

    def dropped(self):
        """How many records its disk could not take, as the home counts them; of one that took none, as is told."""
        if states := self.states():
            return sum(state.dropped for state in states)
        told = (self.folder / "stderr").read_text()
        assert told.count("cannot write the journal") <= 1, "told once per cause"
        found = re.findall(r"(\d+) records of run \w+ could not be written to disk", told)
        return sum(map(int, found))

    def tagged(self):
        """How many were dropped, as the run and those under it say in MLflow; None without a run."""
        runs = self.runs()
        return sum(int(run.data.tags.get("mlpipeline.dropped", 0)) for run in runs) if runs else None

    def couriers(self):
        """Process ids of the couriers of this home that live."""
        return [report["pid"] for report in courier_reports(self.seen_home) if report.get("pid")]

    def kill_couriers(self):
        """Kill them, as the kernel does when memory runs out."""
        for pid in self.couriers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until(self, holds, within_s=60.0, *, every_s=0.1):
        """Wait until something holds."""
        deadline_s = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline_s:
                raise AssertionError(f"it did not hold within {within_s} s")
            time.sleep(every_s)


def _last_step(run):
    return max((metric.step for metric in run.data._metric_objs), default=-1)


def attempt(bench, scenario, integration):
    """Try a scenario with an integration."""
    reference = bench.undisturbed(integration, scenario.steps, scenario.place)
    plain = bench.unrecorded(integration, scenario.steps, scenario.strike)
    with bench.stage(integration, place=scenario.place) as stage:
        with scenario.during(stage):
            trained = stage.train(steps=scenario.steps, strike=scenario.strike)
            codes = stage.sync(until_away=scenario.settles) if scenario.lasts else []
        if scenario.courier_s:

            def is_away():
                return not list(stage.seen_home.runs())

            stage.wait_until(is_away, scenario.courier_s)
        codes += stage.sync(until_away=scenario.settles)
        scenario.afterwards(stage)
        found = stage.look()
        letters = pictures.letters(stage.seen_home)
        dropped, tagged = stage.dropped(), stage.tagged() if scenario.drops else None
        delivered = sum(state.delivered for state in stage.states())
        refused = sum(account.counts.refused for account in stage.account())
        taken_back, stored = stage.taken_back, stage.stored_files()
    whole = reference.picture.facts
    must = whole if scenario.strike is None else bench.until_struck(integration, scenario.steps)
    missing = pictures.without_run(must - found.facts) - taken_back
    lost = missing - letters
    if scenario.is_run_gone:
        lost = Counter({fact: count for fact, count in lost.items() if fact[0] not in {"run", "alias"}})
        # A server takes a file for a run that it does not know any more: there it stands, delivered.
        lost -= Counter({("artifact",): stored - taken_back["artifact",]})
    if scenario.drops:
        # A run that is lost whole is counted record by record, and no version without its model.
        versions = sum(count for fact, count in must.items() if fact[0] == "version")
        by_record = reference.delivered - delivered - (0 if scenario.status else versions)
        if dropped == (by_record if lost["run",] else lost.total()):
            lost = Counter()
    own_s = (
        0.0
        if scenario.strike is None
        else plain.wall_s - bench.unrecorded(integration, scenario.steps, None).wall_s
    )
    return Outcome(
        exit_codes=(trained.exit_code, plain.exit_code),
        is_same_result=trained.result == plain.result,
        longer_s=trained.wall_s - reference.trained.wall_s - own_s,
        longest_step_s=trained.longest_step_s - STEP_S,
        lost=lost,
        doubled=_doubled(found.facts, whole, is_struck=scenario.strike is not None),
        statuses=found.statuses.pop("training", []),
        open_children=sorted(name for name, statuses in found.statuses.items() if "RUNNING" in statuses),
        sync_codes=codes,
        stderr=trained.stderr,
        told=missing.total() - lost.total(),
        taken_back=taken_back.total(),
        refused=refused,
        dropped=dropped,
        tagged=tagged,
    )


def _doubled(found, whole, *, is_struck):
    """What is there more often than in an undisturbed training.

    A tag is there once, and its value may be a newer or an older one. A training that was struck may have
    more to say than one that was not, such as which trial failed; once.
    """

    def named(facts):
        by_name = Counter()
        for fact, count in facts.items():
            size = {"tag": 3, "metric": 4 if is_struck else 5}.get(fact[0], len(fact))
            by_name[fact[:size]] += count
        return by_name

    there = named(found)
    more = there - named(whole)
    return Counter({fact: count for fact, count in more.items() if not is_struck or there[fact] > 1})
