"""Runs that are over when they are recorded: one write, one run, whatever is killed or damaged on the way."""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun, ViewType

from mlpipeline import MLflowConfig
from mlpipeline.core.errors import UsageError
from mlpipeline.testing import record
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking import children, records
from mlpipeline.tracking.account import account_of, accounts, resolved_run_id
from mlpipeline.tracking.courier import Courier
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.journal import JournalWriter
from mlpipeline.tracking.opening import attached_run, open_child, open_run
from mlpipeline.tracking.reading import JournalReader
from mlpipeline.tracking.records import Kind, Point
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.sync import _are_done

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run

Deliver = Callable[[], None]

ENDED_MS = 2_000_000


@pytest.fixture
def config(store_uri: str) -> MLflowConfig:
    experiment = f"children-{uuid.uuid4().hex[:8]}"
    return MLflowConfig(tracking_uri=store_uri, experiment_name=experiment, delivery="offline")


def runs_of(config: MLflowConfig) -> dict[str, MlflowRun]:
    """All runs, by name; one name twice is a run twice."""
    client = MlflowClient(config.tracking_uri, config.tracking_uri)
    experiment = client.get_experiment_by_name(config.experiment_name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    by_name = {str(run.info.run_name): run for run in found}
    assert len(by_name) == len(found)
    return by_name


def history(config: MLflowConfig, run: MlflowRun, key: str) -> list[tuple[int, int, float]]:
    client = MlflowClient(config.tracking_uri, config.tracking_uri)
    points = client.get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.timestamp, point.value) for point in points)


def tell(parent: Run, name: str, value: float = 0.5) -> Run:
    """Record a child that is over: five records."""
    child = open_child(parent, f"child-{name}", name=name, start_ms=1_000_000, is_over=True)
    child.log_params({"lr": value})
    child.log_metrics({"loss": value, "acc": 1 - value}, 0, timestamp_ms=ENDED_MS)
    child.set_tags({"state": "COMPLETE"})
    child.end(end_ms=ENDED_MS)
    return child


def is_as_told(config: MLflowConfig, run: MlflowRun, value: float = 0.5) -> bool:
    return (("FINISHED", {"lr": str(value)}, "COMPLETE", 1_000_000, ENDED_MS, [(0, ENDED_MS, value)])) == (
        run.info.status,
        run.data.params,
        run.data.tags["state"],
        run.info.start_time,
        run.info.end_time,
        history(config, run, "loss"),
    )


def left(home: Path) -> list[Path]:
    """Whatever waits or was refused."""
    return [path for folder in ("runs", "dead") for path in (home / folder).iterdir()]


def frames_of(home: Path, uid: str) -> list[records.Frame]:
    """All frames in the journals of a run."""
    folder, found = Home(home).run(uid), []
    for writer in folder.writers():
        reader = JournalReader(folder, writer)
        while frames := reader.read(is_final=True):
            found += frames
    return found


# --- the same run -----------------------------------------------------------------------------------


def describe(child: Run) -> None:
    """Record what tries every rule on the way: names, values, filters, secrets, what is too long."""
    child.log_params(
        {"lr": 0.1, "net": {"layers": [1, 2]}, "password": "hunter2", "secret_x": 1, "long": "x" * 7000}
    )
    child.log_params({"lr": 0.2})
    child.log_metrics({"loss": 1 / 3, "a@b": 2, "hidden": 1}, 0, timestamp_ms=1_500_000)
    child.log_metrics({"n" * 300: 0.1}, 7, timestamp_ms=1_500_000)
    for value in (0.1, 0.1, 0.1):
        child.log_metrics({"twice": value}, 3, timestamp_ms=1_500_000)
    for value in (1.0, math.nan, -math.inf):
        child.log_metrics({"counted": value}, timestamp_ms=1_500_000)
    child.set_tags({"naïve": "价值", "long": "y" * 6000, "state": "first"})
    child.set_tag("state", "last")
    child.log_dataset(np.arange(6.0), name="train", context="training")
    child.log_text("hello", "notes/hello.txt")


def test_it_is_the_run_that_a_journal_of_its_own_makes(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """Filters, redaction, escaped and cut names, NaN, steps that are counted, long params, files."""
    parent = open_run(config.replace(run_name="parent", tags={"team": "a"}, exclude=["hidden"]))
    for name in ("live", "over"):
        child = open_child(
            parent,
            f"child-{name}",
            name=name,
            start_ms=1_000_000,
            tags={"number": 7, "long tag": "z" * 6000},
            is_over=name == "over",
        )
        describe(child)
        child.end("KILLED", end_ms=ENDED_MS)
    parent.end()
    deliver()
    assert [] == left(home)
    runs = runs_of(config)
    live, over = runs["live"], runs["over"]
    assert {"parent", "live", "over"} == set(runs)
    assert "[redacted]" == over.data.params["password"]
    assert "0.2" == over.data.tags["mlpipeline.drift.lr"]
    assert live.data.params == over.data.params
    own = ("mlpipeline.uid", "mlpipeline.attempt", "mlflow.runName")
    assert {key: text for key, text in live.data.tags.items() if key not in own} == {
        key: text for key, text in over.data.tags.items() if key not in own
    }
    assert live.data.metrics.keys() == over.data.metrics.keys()
    assert "hidden" not in over.data.metrics
    for key in over.data.metrics:
        assert repr(history(config, live, key)) == repr(history(config, over, key)), key
    assert 3 == len(history(config, over, "twice"))
    assert [0, 1, 2] == [step for step, *_ in history(config, over, "counted")]
    assert ("KILLED", 1_000_000, ENDED_MS) == (over.info.status, over.info.start_time, over.info.end_time)
    assert str(live.inputs.dataset_inputs) == str(over.inputs.dataset_inputs)
    client = MlflowClient(config.tracking_uri, config.tracking_uri)
    files = [[item.path for item in client.list_artifacts(run.info.run_id)] for run in (live, over)]
    assert [["notes", "params_full.json"]] * 2 == files


def test_in_memory_it_is_a_run_as_ever() -> None:
    """What a user's unit test sees."""
    with record() as recorded:
        parent = open_run(MLflowConfig())
        tell(parent, "0", 0.25)
        parent.end()
    assert ({"lr": "0.25"}, [0.25]) == (recorded.params, recorded.metrics["loss"])
    assert ["FINISHED", "FINISHED"] == recorded.statuses


def test_it_is_one_record_and_no_file(config: MLflowConfig, home: Path) -> None:
    """Until the courier comes there is nothing but the parent's journal."""
    parent = open_run(config)
    before = sorted(home.rglob("*"))
    for number in range(5):
        tell(parent, str(number))
    assert before == sorted(home.rglob("*"))
    kinds = [frame.kind for frame in frames_of(home, parent.uid)]
    assert [Kind.RUN] * 2 + [Kind.CHILD] * 5 == kinds
    parent.end()


def test_its_journal_is_private_and_has_no_living_writer(
    config: MLflowConfig, store_uri: str, home: Path
) -> None:
    """Whatever the umask; and it is complete as soon as it is there."""
    parent = open_run(config)
    child = tell(parent, "0")
    before = os.umask(0)
    try:
        delivery = RunDelivery(Home(home), Home(home).run(parent.uid))
        delivery.deliver(MlflowSink(Destination(store_uri, store_uri)))
    finally:
        os.umask(before)
    folder = Home(home).run(child.uid)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.path, *folder.path.iterdir())]
    assert [0o700, 0o600] == modes
    assert not account_of(Home(home), child.uid).is_live
    kinds = [frame.kind for frame in frames_of(home, child.uid)]
    assert [Kind.RUN, Kind.RUN, Kind.PARAMS, Kind.KEYS, Kind.METRICS, Kind.TAGS, Kind.END] == kinds
    parent.end()


def test_the_golden_one_becomes_its_journal() -> None:
    """What the first release of format 2 wrote of a child is read as it was meant, to the last bit."""
    data = (Path(__file__).parent / "golden" / "format-2.seg").read_bytes()
    *_, frame = records.scan(data[records.PREAMBLE.size :], records.PREAMBLE.size, is_final=True).frames
    segment = children.segment_of(frame.json(), "a-12", {"host": "h", "pid": 7, "role": "opener"})
    assert ("a-trial", "a-12", 0) == (segment.uid, segment.name, segment.damaged)
    assert records.preamble() == segment.data[: records.PREAMBLE.size]
    found = records.scan(segment.data[records.PREAMBLE.size :], 0, is_final=True).frames
    kinds = [Kind.RUN] * 2 + [
        Kind.PARAMS,
        Kind.TAGS,
        Kind.KEYS,
        Kind.METRICS,
        Kind.METRICS_STEPS,
        Kind.END,
    ]
    assert kinds == [frame.kind for frame in found]
    assert list(range(len(kinds))) == [frame.sequence for frame in found]
    header = found[0].json()
    assert ("a-12", "h", 7, "study") == (
        header["writer"],
        header["host"],
        header["pid"],
        header["parent"]["uid"],
    )
    assert {"params": {"lr": "0.1"}, "ms": 3} == found[2].json()
    assert {"tags": {"naïve": "价值"}, "ms": 3} == found[3].json()
    keys = records.KeySets()
    keys.learn(found[4])
    points = [point for frame in found[5:7] for point in keys.points(frame)]
    expected = [
        Point("loss", 0.1, 2000, 0),
        Point("acc", math.nan, 2000, 0),
        Point("loss", 0.25, 2001, 1),
        Point("acc", -math.inf, 2001, 4),
    ]
    assert repr(expected) == repr(points)
    assert {"status": "FINISHED", "end_ms": 2500, "ms": 3} == found[7].json()


# --- once -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.sync import send_all

ending, count = sys.argv[2], int(sys.argv[3])

def hook(event, arguments):
    global count
    if event == "os.rename" and str(arguments[1]).endswith(ending):
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
send_all(Home(Path(sys.argv[1])))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("ending", "count"),
    [
        (".seg", 2),  # one child's journal is there, of the next one a part
        ("study/state.json", 2),  # all are there, and none is acknowledged
        ("child-1/state.json", 2),  # a child's run is made, and what it recorded is not acknowledged
        ("done/child-1.json", 1),  # a child is about to be put away
    ],
)
def test_a_courier_that_is_killed_anywhere_doubles_and_loses_nothing(
    config: MLflowConfig, deliver: Deliver, home: Path, ending: str, count: int
) -> None:
    """``kill -9`` just before it renames a file; another one does the rest."""
    parent = open_run(config.replace(run_name="parent"), shared_uid="study")
    for number in range(3):
        tell(parent, str(number), number / 4)
    parent.end()
    code = [sys.executable, "-c", KILLED, str(home), ending, str(count)]
    assert -9 == subprocess.run(code, check=False, timeout=60).returncode
    deliver()
    runs = runs_of(config)
    assert {"parent", "0", "1", "2"} == set(runs)
    assert all(is_as_told(config, runs[str(number)], number / 4) for number in range(3))
    tags = {runs[str(number)].data.tags["mlflow.parentRunId"] for number in range(3)}
    assert {runs["parent"].info.run_id} == tags
    assert [] == left(home)
    assert [5] * 3 == [account_of(Home(home), f"child-{number}").counts.delivered for number in range(3)]


def test_a_record_read_again_finds_its_run_done(
    config: MLflowConfig, store_uri: str, deliver: Deliver, home: Path
) -> None:
    """Nothing is written then, also after the child was told, delivered and done a second time."""
    parent = open_run(config.replace(run_name="parent"))
    tell(parent, "0")
    deliver()
    for _ in range(2):
        done = Home(home).done_file("child-0")
        written = done.stat().st_mtime_ns
        Home(home).run(parent.uid).state_file.unlink()
        delivery = RunDelivery(Home(home), Home(home).run(parent.uid))
        delivery.deliver(MlflowSink(Destination(store_uri, store_uri)))
        assert not Home(home).run("child-0").path.exists()
        assert written == done.stat().st_mtime_ns
        tell(parent, "0")
        deliver()
    parent.end()
    deliver()
    runs = runs_of(config)
    assert {"parent", "0"} == set(runs)
    assert is_as_told(config, runs["0"])
    assert [] == left(home)


def test_two_who_tell_of_the_same_child_make_one_run(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """Two journals, as of two processes; and one that opened it live."""
    parent = open_run(config.replace(run_name="parent"))
    other = pickle.loads(pickle.dumps(parent))
    live = open_child(parent, "child-0", name="0", start_ms=1_000_000)
    live.log_metrics({"seen": 1.0}, 0)
    live.end(end_ms=ENDED_MS)
    for one in (parent, other):
        tell(one, "0")
    parent.end()
    other.end()
    deliver()
    runs = runs_of(config)
    assert {"parent", "0"} == set(runs)
    assert is_as_told(config, runs["0"])
    assert 1.0 == runs["0"].data.metrics["seen"]
    assert [] == left(home)


def test_it_can_be_added_to_before_the_courier_comes(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """By whoever knows its name, by its own handle, and as the parent of another run."""
    parent = open_run(config.replace(run_name="parent"))
    tell(parent, "0")
    again = tell(parent, "1")
    assert attached_run(parent.config, "child-0") is None
    assert attached_run(parent.config, "child-9", parent=parent) is None
    handle = attached_run(parent.config, "child-0", parent=parent)
    assert handle is not None
    below = handle.child("below")
    below.end()
    handle.log_metrics({"later": 2.0}, 0)
    again.resume()
    again.log_metrics({"later": 3.0}, 0)
    again.end(end_ms=ENDED_MS)
    parent.end()
    deliver()
    runs = runs_of(config)
    assert {"parent", "0", "1", "below"} == set(runs)
    assert runs["0"].info.run_id == runs["below"].data.tags["mlflow.parentRunId"]
    assert is_as_told(config, runs["0"])
    assert is_as_told(config, runs["1"])
    assert (2.0, 3.0) == tuple(runs[name].data.metrics["later"] for name in ("0", "1"))


def test_a_forked_copy_leaves_it_to_its_process(config: MLflowConfig, home: Path) -> None:
    """A fork in the middle of the recording: the child process ends what it knows, and nothing is told."""
    parent = open_run(config)
    child = open_child(parent, "child-0", is_over=True)
    child.log_metrics({"loss": 0.5}, 0)
    forked = os.fork()
    if not forked:
        child.end()
        os._exit(0)
    os.waitpid(forked, 0)
    child.end()
    parent.end()
    assert 1 == [frame.kind for frame in frames_of(home, parent.uid)].count(Kind.CHILD)


# --- what waits -------------------------------------------------------------------------------------


def test_what_waits_in_the_parents_journal_is_counted(
    config: MLflowConfig, store_uri: str, deliver: Deliver, home: Path
) -> None:
    """Wherever it is on its way: in the parent's journal, in its own, delivered."""
    parent = open_run(config)
    found = [tell(parent, str(number)) for number in range(3)]
    parent.set_tag("mine", 1)

    def pending() -> tuple[int, int, int]:
        own, child = parent.wait().pending, found[0].wait().pending
        return own, child, sum(account.counts.pending for account in accounts(Home(home)))

    assert (1 + 3 * 5, 5, 1 + 3 * 5) == pending()
    (account,) = accounts(Home(home))
    assert {"child-0", "child-1", "child-2"} == set(account.waiting)
    assert not any(run.is_delivered() for run in (parent, *found))
    with pytest.raises(UsageError, match="has not reached MLflow yet"):
        resolved_run_id(Home(home), "local-child-0")
    RunDelivery(Home(home), Home(home).run(parent.uid)).deliver(MlflowSink(Destination(store_uri, store_uri)))
    assert (0, 5, 3 * 5) == pending()
    assert not any(run.is_delivered() for run in found)
    deliver()
    assert (0, 0, 0) == pending()
    assert all(run.is_delivered() for run in found)
    assert found[0].run_id == resolved_run_id(Home(home), "local-child-0") == runs_of(config)["0"].info.run_id
    assert [5] * 3 == [run.counts().delivered for run in found]
    parent.end()


@pytest.mark.process
def test_sync_counts_what_comes_to_light_on_the_way(config: MLflowConfig) -> None:
    """Its children's records, and its own end."""
    parent = open_run(config)
    for number in range(3):
        tell(parent, str(number))
    parent.end()
    command = [sys.executable, "-m", "mlpipeline"]
    status = subprocess.run([*command, "status", "--json"], capture_output=True, check=True, text=True)
    (run,) = json.loads(status.stdout)["runs"]
    assert (16, 3) == (run["counts"]["pending"], len(run["waiting"]))
    for count in (16, 0):
        done = subprocess.run([*command, "sync"], capture_output=True, check=True, text=True)
        assert f"{count} records delivered, 0 pending, 0 refused\n" == done.stdout


def test_who_waits_for_another_courier_waits_for_children_too(
    config: MLflowConfig, store_uri: str, deliver: Deliver, home: Path
) -> None:
    """Their journals are not there yet when the wait begins, and their parent is done before they are."""
    parent = open_run(config)
    tell(parent, "0")
    parent.end()
    ends = {parent.uid: Home(home).run(parent.uid).ends()}
    assert not _are_done(Home(home), ends)
    delivery, sink = RunDelivery(Home(home), Home(home).run(parent.uid)), MlflowSink(parent.destination)
    while not delivery.is_finished:
        delivery.deliver(sink)
    assert delivery.finish()
    assert not _are_done(Home(home), ends)
    deliver()
    assert _are_done(Home(home), ends)


class SlowCourier(Courier):
    """One that is held up between looking for journals and asking whether all is delivered."""

    def _report(self, phase: str) -> None:
        if phase == "serving":
            wait_until(self._is_caught_up)
        super()._report(phase)


def test_sync_does_not_leave_while_they_get_their_journals(config: MLflowConfig, home: Path) -> None:
    """Their parent was delivered since the courier looked, and nobody has seen their folders yet."""
    parent = open_run(config.replace(run_name="parent"))
    tell(parent, "0")
    parent.end()
    assert SlowCourier(Home(home), mode="sync").run(until_idle=True)
    assert {"parent", "0"} == set(runs_of(config))
    assert [] == left(home)


EXITING = """
import sys
from mlflow import MlflowClient
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_child, open_run

MlflowClient(sys.argv[1]).search_experiments()  # loaded by then, in a training of some length
parent = open_run(MLflowConfig(
    tracking_uri=sys.argv[1], experiment_name=sys.argv[2], run_name="parent", delivery="thread"
))
for number in range(30):
    child = open_child(parent, f"child-{number}", name=str(number), is_over=True)
    child.log_metrics({"loss": number}, 0)
    child.end()
"""


@pytest.mark.process
def test_the_exit_waits_for_them(config: MLflowConfig, home: Path) -> None:
    """The courier is a thread of the process: what it has not sent by then, nobody sends."""
    code = [sys.executable, "-c", EXITING, str(config.tracking_uri), config.experiment_name]
    subprocess.run(code, check=True, capture_output=True, timeout=90)
    runs = runs_of(config)
    del runs["parent"]
    assert {str(number): number for number in range(30)} == {
        name: run.data.metrics["loss"] for name, run in runs.items()
    }
    assert {"FINISHED"} == {run.info.status for run in runs.values()}


# --- what goes wrong --------------------------------------------------------------------------------


def child_frame(number: int) -> bytes:
    content = {
        "uid": f"child-{number}",
        "header": {"role": "opener"},
        "records": [
            (Kind.TAGS, {"tags": {"n": "\ud800«Jä"}}),
            (Kind.METRICS, {"points": [("a", math.nan, 1, 0)]}),
        ],
    }
    return records.json_frame(number, Kind.CHILD, content)


def test_a_flipped_bit_costs_one_child_and_invents_nothing() -> None:
    """No part of what a damaged record holds is taken for a record of its parent."""
    frames = [child_frame(number) for number in range(3)]
    data = b"".join(frames)
    first, second = len(frames[0]), len(frames[0]) + len(frames[1])
    for bit in range(first * 8, second * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        found = records.scan(bytes(broken), 0, is_final=True)
        assert [0, 2] == [frame.sequence for frame in found.frames]
        assert 1 == found.damaged


def test_damage_in_one_record_costs_that_child_and_is_counted(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """The others arrive, and what the parent recorded."""
    parent = open_run(config.replace(run_name="parent"))
    for number in range(3):
        tell(parent, str(number))
    parent.set_tag("mine", "yes")
    parent.end()
    folder = Home(home).run(parent.uid)
    ((writer, _),) = folder.writers().items()
    path = folder.segment(writer, 1)
    data = bytearray(path.read_bytes())
    data[data.index(b"child-1") + 300] ^= 1
    path.write_bytes(data)
    deliver()
    runs = runs_of(config)
    assert {"parent", "0", "2"} == set(runs)
    assert all(is_as_told(config, runs[name]) for name in ("0", "2"))
    assert ("FINISHED", "yes") == (runs["parent"].info.status, runs["parent"].data.tags["mine"])
    done = Home(home).done_state(parent.uid)
    assert done is not None
    assert 1 == done.damaged
    assert [] == left(home)


@pytest.mark.parametrize(
    "hostile",
    [
        *({"uid": uid} for uid in ("../../escape", "/etc/escape", ".escape", "", "a\\b", None, "x" * 300)),
        {"header": {"role": "opener"}},
        {"header": {"role": "opener", "destination": []}},
        {"header": None},
        {"records": None},
    ],
    ids=str,
)
def test_a_hostile_record_makes_no_folder(
    config: MLflowConfig, deliver: Deliver, home: Path, hostile: dict[str, Any]
) -> None:
    """A journal is data: what it names must be a run with a place to go to, or it is damage."""
    parent = open_run(config)
    before = sorted(home.parent.rglob("*"))
    header = {**parent._header, "run_name": "hostile"}
    content = {"uid": "escape", "header": header, "records": [], **hostile}
    parent._append_child(records.json_payload(content))
    account_of(Home(home), parent.uid)
    deliver()
    made = {path.name for path in set(home.parent.rglob("*")) - set(before)}
    assert not any("escape" in name or "b" == name or "xxx" in name for name in made)
    assert 1 == len(runs_of(config))
    state = Home(home).state(parent.uid)
    assert state is not None
    assert 1 == state.damaged
    parent.end()


def test_one_unreadable_record_of_a_child_costs_that_record(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """A kind of the future, points that are none, a step that no journal holds."""
    parent = open_run(config.replace(run_name="parent"))
    header = {**parent._header, "run_name": "0", "parent": {"uid": parent.uid}}
    bad: list[Any] = [
        (99, {}),
        (Kind.METRICS, {"points": []}),
        (Kind.METRICS, {"points": [("loss", "high", 1, 0)]}),
        (Kind.METRICS, {"points": [("loss", 1.0, 1, 2**70)]}),
        (Kind.METRICS, {"points": [("loss", 1.0, 1, 0), ("acc", 1.0, 1, 1)]}),
        (Kind.METRICS, 3),
        "what",
    ]
    good = [
        (Kind.METRICS, {"points": [("loss", 0.5, 5, 2)]}),
        (Kind.END, {"status": "FINISHED", "ms": 2**60}),
    ]
    content = {"uid": "child-0", "header": header, "records": [*bad, *good]}
    assert parent._append_child(records.json_payload(content))
    assert len(good) <= account_of(Home(home), parent.uid).counts.pending
    parent.end()
    deliver()
    runs = runs_of(config)
    assert [(2, 5, 0.5)] == history(config, runs["0"], "loss")
    assert "FINISHED" == runs["0"].info.status
    done = Home(home).done_state(parent.uid)
    assert done is not None
    assert len(bad) == done.damaged


def test_what_is_too_large_for_a_frame_has_a_journal_of_its_own(
    config: MLflowConfig, deliver: Deliver, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, complete and without a lock; its neighbours stay records."""
    parent = open_run(config.replace(run_name="parent"))
    tell(parent, "0")
    monkeypatch.setattr(records, "MAX_PAYLOAD_BYTES", 500)
    child = tell(parent, "1")
    monkeypatch.undo()
    ((name, numbers),) = Home(home).run(child.uid).writers().items()
    assert [f"{name}.000001.seg"] == os.listdir(Home(home).run(child.uid).path)
    assert ([1], 5) == (numbers, child.counts().pending)
    assert 5 == account_of(Home(home), parent.uid).counts.pending
    parent.end()
    deliver()
    runs = runs_of(config)
    assert {"parent", "0", "1"} == set(runs)
    assert all(is_as_told(config, runs[name]) for name in ("0", "1"))
    assert [] == left(home)


def test_the_largest_record_is_read_and_a_larger_one_not_written(tmp_path: Path) -> None:
    """32 MB, at which a reader takes a length for damage."""
    where = {"tracking_uri": "http://x", "registry_uri": "http://x"}
    header = {"role": "opener", "run_id": "r", "destination": where}
    writer = JournalWriter(Home(tmp_path / "h"), "run", header, is_durable=False)
    payload = b'{"x":"' + b"y" * (records.MAX_PAYLOAD_BYTES - 8) + b'"}'
    assert writer.append_child(payload)
    assert writer.append_child(payload + b" ") is None
    writer.close()
    reader, found = JournalReader(writer.folder, writer.name), []
    while frames := reader.read(is_final=True, limit_bytes=2**14):
        found += [(frame.kind, len(frame.payload)) for frame in frames]
    assert [(Kind.CHILD, records.MAX_PAYLOAD_BYTES)] == [one for one in found if one[0] is Kind.CHILD]
    assert (0, 0) == (reader.damaged, writer.dropped)


def test_after_its_parents_end_it_has_a_journal_of_its_own(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """Another thread ended the parent between the two."""
    parent = open_run(config.replace(run_name="parent"))
    child = open_child(parent, "child-0", name="0", start_ms=1_000_000, is_over=True)
    parent.end()
    child.log_metrics({"loss": 0.5}, 0)
    child.end(end_ms=ENDED_MS)
    deliver()
    runs = runs_of(config)
    assert ({"parent", "0"}, {"loss": 0.5}) == (set(runs), runs["0"].data.metrics)
    assert [] == left(home)


_ON_A_FULL_DISK = """
import os, resource, signal, sys
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_child, open_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
where = {"tracking_uri": sys.argv[1], "experiment_name": sys.argv[2]}
parent = open_run(MLflowConfig(**where, run_name="parent", delivery="offline"))
room = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (room[0] if sys.argv[4] == "is over" else 100, room[1]))
children = [open_child(parent, f"child-{number}", is_over=sys.argv[4] == "is over") for number in range(3)]
resource.setrlimit(resource.RLIMIT_FSIZE, room)
if sys.argv[3] == "the parent ended before":
    parent.end()
resource.setrlimit(resource.RLIMIT_FSIZE, (100, room[1]))
for child in children:
    child.log_metrics({"loss": 0.5, "acc": 0.5}, 0)
    child.end()
    print(child.counts().dropped, os.path.exists(parent.home.path / "runs" / child.uid))
print(parent.counts().dropped)
resource.setrlimit(resource.RLIMIT_FSIZE, room)
parent.end()
"""


@pytest.mark.parametrize("child", ["is over", "is recorded as it goes"])
@pytest.mark.parametrize(
    ("parent", "counted", "told"),
    [
        # Two points and an end of each; who reads the parent's run learns of them.
        ("is there", 9, ["cannot write the journal in", "9 records of run"]),
        # Nobody is left who could say so later.
        ("the parent ended before", 0, [f"of run child-{number}" for number in range(3)]),
    ],
)
def test_a_disk_that_refuses_is_told_and_counted(
    parent: str, counted: int, told: list[str], child: str, config: MLflowConfig, home: Path, deliver: Deliver
) -> None:
    """RLIMIT_FSIZE stands for the full disk: no exception, no half of a journal, one warning for all of a search."""
    given = [config.tracking_uri, config.experiment_name, parent, child]
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, *map(str, given)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert ["3 False"] * 3 + [str(counted)] == done.stdout.splitlines()
    lines = [line for line in done.stderr.splitlines() if not line.startswith("mlpipeline: ")]
    if (parent, child) == ("the parent ended before", "is recorded as it goes"):
        told = ["cannot write the journal in", *told]  # while the parent was there
    elif parent == "the parent ended before":
        told = [f"cannot write the journal {of}" for of in told]
    assert len(told) == len(lines), done.stderr
    assert all(words in line for words, line in zip(told, lines, strict=True)), done.stderr
    assert children.is_kept(Home(home), "child-0", "any") is False
    deliver()
    runs = runs_of(config)
    assert {"parent"} == set(runs)
    assert str(counted) == runs["parent"].data.tags.get("mlpipeline.dropped", "0")
    assert counted == account_of(Home(home), runs["parent"].data.tags["mlpipeline.uid"]).counts.dropped
    assert [] == left(home)
