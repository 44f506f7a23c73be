"""The table of what goes wrong: one `Scenario` per row, with what the training and its records are promised."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness import pictures
from harness.trying import STEPS, Stage
from mlpipeline.testing import faults

if TYPE_CHECKING:
    from collections.abc import Callable

LONGER_AT_MOST_S = 2.0
"""In all; a step, too, may take no longer than that."""

LONG = 120
"""Steps of a training in whose middle a server is restarted."""

ALL = ("tracker", "lightning", "xgboost", "optuna", "sklearn", "keras", "torch")
TRACKER = ("tracker",)


def nothing(stage):
    """Do nothing."""


@dataclass(frozen=True)
class Scenario:
    """One fault.

    Attributes:
        key: Its name.
        title: Its row in the table.
        says: What happens, in a line.
        during: Gives the block in which the fault is there; leaving it heals.
        integrations: Whose trainings are tried.
        place: Where they record to; see `Stage`.
        strike: How the training ends itself in the middle; None lets it end.
        status: What its run is to be; None where there can be none.
        steps: How many steps it takes.
        lasts: The fault goes on while its records are sent.
        settles: Also wait until no twin can appear any more.
        courier_s: The courier is to do it all by itself, within so many seconds.
        longer_at_most_s: By how much the fault may make the training longer.
        sync_code: The exit code of the last `mlpipeline sync`.
        drops: Records may be dropped, if each is counted.
        is_run_gone: The run may be gone, and its records listed.
        afterwards: What is done before the counting.
        fluent: What became of MLflow's own client; see docs/reliability.md.
        theirs: What became of MLflow's or the framework's own integration.
    """

    key: str
    title: str
    says: str
    during: Callable[[Stage], contextlib.AbstractContextManager]
    integrations: tuple[str, ...] = TRACKER
    place: str = "server"
    strike: str | None = None
    status: str | None = "FINISHED"
    steps: int = STEPS
    lasts: bool = False
    settles: bool = False
    courier_s: float = 0.0
    sync_code: int = 0
    drops: bool = False
    is_run_gone: bool = False
    longer_at_most_s: float = LONGER_AT_MOST_S
    afterwards: Callable[[Stage], None] = nothing
    fluent: str = ""
    theirs: str = ""


# --- the network -------------------------------------------------------------------------------------


def network(make):
    """A fault of the proxy, from before the training until it is healed; *make* makes it anew each time."""

    @contextlib.contextmanager
    def during(stage):
        stage.proxy.fault = make()
        yield
        stage.proxy.fault = faults.passed

    return during


@contextlib.contextmanager
def absent(stage):
    """No server from start to end."""
    stage.proxy.down()
    yield
    stage.proxy.up()


@contextlib.contextmanager
def away_10_s(stage):
    """No server for ten seconds, from the third step on."""
    back = threading.Timer(10, stage.proxy.up)

    def go():
        stage.proxy.down()
        back.start()

    stage.at_step(3, go)
    yield
    back.join()


@contextlib.contextmanager
def black_hole_later(stage):
    """The server answers until the middle of the training."""
    stage.at_step(STEPS // 2, partial(setattr, stage.proxy, "fault", faults.unanswered))
    yield
    stage.proxy.fault = faults.passed


def posts(fault):
    """Meet only what changes something on the server."""
    return lambda exchange: (fault if exchange.method == "POST" else faults.passed)(exchange)


def each_kind(fault):
    """Meet the first request of each kind: of its method and its path, but for ids in it."""
    met = set()

    def chosen(exchange):
        path = exchange.path.partition("?")[0]
        kind = exchange.method, re.sub(r"[0-9a-f]{8,}|m-[0-9a-f]+|tracker-\w+", "ID", path)
        is_first = kind not in met
        met.add(kind)
        (fault if is_first else faults.passed)(exchange)

    return chosen


def creates(fault):
    """Meet each kind of create once: run, model and version."""
    paths = ("/runs/create", "/mlflow/logged-models", "/model-versions/create")
    met = {path: faults.first(1, fault) for path in paths}

    def chosen(exchange):
        for path, once in met.items():
            if exchange.path.endswith(path) and exchange.method == "POST":
                once(exchange)
                return
        faults.passed(exchange)

    return chosen


# --- processes ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def undisturbed(stage):
    """Nothing: what happens to the training it does itself."""
    yield


@contextlib.contextmanager
def couriers_killed(stage):
    """Every courier is killed as soon as it is there, for a while; then they are let live."""
    is_over = threading.Event()

    def kill():
        while not is_over.wait(0.3):
            stage.kill_couriers()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    is_over.set()
    killer.join()


# --- disks -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_for_a_while(stage, has_quota=False):
    """Where the journals are there is no room from the tenth step on, for two seconds."""
    disk = stage.under_quota() if has_quota else stage.on_small_disk()
    stage.at_step(10, disk.fill)
    stage.at_step(30, disk.free)
    yield


@contextlib.contextmanager
def read_only(stage):
    """Nothing can be written where the journals are to be."""
    stage.on_small_disk(is_read_only=True)
    yield


# --- the store ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(stage, for_s=45):
    """Somebody else holds the database."""
    is_over = threading.Event()
    other = sqlite3.connect(stage.store, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")

    def let_go():
        is_over.wait(for_s)
        other.execute("ROLLBACK")
        other.close()

    holder = threading.Thread(target=let_go, daemon=True)
    holder.start()
    yield
    holder.join()


@contextlib.contextmanager
def restarted(stage):
    """The server is stopped and started again while the training records."""

    def restart():
        stage.await_points(10)
        stage.stop_server()
        stage.start_server()

    stage.at_step(1, restart)
    yield


@contextlib.contextmanager
def taken_back(stage, *, has_run):
    """The server's database is replaced by an older copy, which has the run or not."""
    copy = stage.folder / "older.db"

    def keep():
        now, older = sqlite3.connect(stage.store), sqlite3.connect(copy)
        with contextlib.closing(now), contextlib.closing(older):
            now.backup(older)

    if not has_run:
        keep()

    def replace():
        if has_run:
            stage.await_points(5)
            keep()
        stage.await_points(30)
        stage.proxy.down()
        before = stage.look().facts
        stage.stop_server()
        for path in stage.folder.glob("mlflow.db*"):
            path.unlink()
        copy.rename(stage.store)
        stage.start_server()
        stage.taken_back = pictures.without_run(before - stage.look().facts)
        stage.proxy.up()
        stage.go_on()

    # Its end must not come before: delivered is delivered, and the older copy would say RUNNING for ever.
    stage.stands_at = LONG // 2
    stage.at_step(1, replace)
    yield


@contextlib.contextmanager
def deleted(stage):
    """The run's owner deletes it while the training records."""
    stage.at_step(1, lambda: client_of(stage).delete_run(stage.await_points(10).info.run_id))
    yield


def client_of(stage):
    """Return plain MLflow's client."""
    from mlflow import MlflowClient

    return MlflowClient(stage.plain_uri, stage.plain_uri)


def restore_run(stage):
    """Take back what the run's owner did, so that it can be counted."""
    from mlflow.entities import ViewType

    client = client_of(stage)
    experiment = client.get_experiment_by_name(stage.name)
    for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY):
        client.restore_run(run.info.run_id)


SCENARIOS = (
    Scenario(
        "refused",
        "Server absent from start to end",
        "Its port refuses connections, from before the training until after its end.",
        absent,
        ALL,
        fluent="crash before step 0, all lost",
        theirs="Lightning, Optuna: crash; autolog: all lost, exit 0",
    ),
    Scenario(
        "away",
        "Server away for 10 s",
        "Its port refuses connections for ten seconds in the middle of the training.",
        away_10_s,
        fluent="stall 13.5 s, 0 lost",
        theirs="stall 12-16 s, 0 lost",
    ),
    Scenario(
        "black-hole",
        "Black hole",
        "The server accepts every connection and never answers.",
        network(lambda: faults.unanswered),
        ALL,
        fluent="crash, RUNNING for ever",
        theirs="Lightning, Optuna: crash; autolog: 12 s a step",
    ),
    Scenario(
        "black-hole-later",
        "Black hole from the middle on",
        "The same, from the middle of the training on.",
        black_hole_later,
    ),
    Scenario(
        "503",
        "30 % of answers 503",
        "Three requests of ten are answered with 503, until all is delivered.",
        network(lambda: faults.sometimes(0.3, faults.answered(503))),
        lasts=True,
        fluent="stall 0.4 s, 0 lost",
        theirs="stall 0.5 s, 0 lost",
    ),
    Scenario(
        "503-retry-after",
        "503 with Retry-After",
        "The first five requests are answered with 503 and Retry-After: 2.",
        network(lambda: faults.first(5, faults.answered(503, ("Retry-After", "2")))),
        lasts=True,
    ),
    Scenario(
        "429",
        "429, three times",
        "The first three requests are answered with 429, without Retry-After.",
        network(lambda: faults.first(3, faults.answered(429))),
        lasts=True,
    ),
    Scenario(
        "429-retry-after",
        "429 with Retry-After: 1, three times",
        "The first three requests are answered with 429 and Retry-After: 1.",
        network(lambda: faults.first(3, faults.answered(429, ("Retry-After", "1")))),
        lasts=True,
        fluent="stall 3.1 s, 0 lost",
    ),
    Scenario(
        "delay",
        "Every request half a second late",
        "Each request waits for 0.5 s before it goes on.",
        network(lambda: faults.delayed(0.5)),
        lasts=True,
        fluent="training 7.4 -> 23.5 s, 0 lost",
    ),
    Scenario(
        "cut-creates",
        "The answers to creates are cut",
        "The server makes the run, the model and the version, and of each the first answer never arrives.",
        network(lambda: creates(faults.cut)),
        ALL,
        lasts=True,
        fluent="ghost run, RUNNING for ever; 2nd model, 2 versions",
        theirs="the same, each of them",
    ),
    Scenario(
        "cut-each",
        "The first answer of every kind is cut",
        "The server takes each kind of request, and of the first one the answer never arrives.",
        network(lambda: each_kind(faults.cut)),
        ALL,
        lasts=True,
    ),
    Scenario(
        "cut",
        "30 % of answers cut after processing",
        "Of three requests of ten that change something the answer never arrives, until all is delivered.",
        network(lambda: posts(faults.sometimes(0.3, faults.cut))),
        ("tracker", "optuna"),
        lasts=True,
        fluent="training 7.4 -> 22.8 s, 0 lost",
    ),
    Scenario(
        "truncated",
        "30 % of answers truncated",
        "Three answers of ten end in the middle, until all is delivered.",
        network(lambda: faults.sometimes(0.3, faults.truncated)),
        lasts=True,
        fluent="crash at the 2nd param, rest lost",
    ),
    Scenario(
        "drip",
        "Answers a byte at a time",
        "Each answer drips, a byte every millisecond.",
        network(lambda: faults.dripped(0.001)),
        lasts=True,
    ),
    Scenario(
        "late",
        "Creates committed late",
        "Of run, model and version the first create is cut, and taken by the server three seconds later.",
        network(lambda: creates(faults.late(3))),
        ("tracker", "optuna"),
        lasts=True,
        settles=True,
    ),
    Scenario(
        "sigkill",
        "kill -9, server up",
        "The training kills itself in the middle.",
        undisturbed,
        ALL,
        strike="sigkill",
        status="KILLED",
        courier_s=60,
        fluent="0 of 20 lost, RUNNING for ever",
        theirs="XGBoost autolog: 12 of 20 lost; all RUNNING for ever",
    ),
    Scenario(
        "sigkill-absent",
        "kill -9, server absent",
        "The same, while the server's port refuses connections.",
        absent,
        ALL,
        strike="sigkill",
        status="KILLED",
        fluent="async: 10 of 20 lost",
    ),
    Scenario(
        "sigterm",
        "SIGTERM",
        "As batch systems and containers stop a process.",
        undisturbed,
        ALL,
        strike="sigterm",
        status="KILLED",
        fluent="1 of 20 lost, RUNNING for ever",
        theirs="Lightning: exit code 0, FAILED",
    ),
    Scenario(
        "sigint",
        "Ctrl-C",
        "SIGINT in the middle of a step.",
        undisturbed,
        ALL,
        strike="sigint",
        status="KILLED",
        fluent="FAILED",
        theirs="Lightning: 1 lost, FAILED",
    ),
    Scenario(
        "os-exit",
        "os._exit",
        "The process leaves in the middle, with exit code 7, without Python's own ending.",
        undisturbed,
        ALL,
        strike="os._exit",
        status="KILLED",
    ),
    Scenario(
        "segfault",
        "Segmentation fault",
        "A library reads where there is nothing.",
        undisturbed,
        ALL,
        strike="segfault",
        status="KILLED",
    ),
    Scenario(
        "exception",
        "An exception of the user's",
        "It is raised in the middle of a step, and goes up to the top.",
        undisturbed,
        ALL,
        strike="exception",
        status="FAILED",
        fluent="own error, FAILED",
        theirs="Optuna: the failing trial is lost",
    ),
    Scenario(
        "exception-absent",
        "The same, server absent",
        "It must be the last thing that is shown, whatever we have to say.",
        absent,
        ALL,
        strike="exception",
        status="FAILED",
        fluent="async: error buried, 10 of 20 lost, RUNNING",
    ),
    Scenario(
        "courier-killed",
        "The courier killed, again and again",
        "As the kernel does when memory runs out: every courier, from start to end of the training.",
        couriers_killed,
        ALL,
    ),
    Scenario(
        "disk-full",
        "Disk full for 2 s",
        "A disk of 2 MB that holds the journals is filled up in the middle of the training, and freed.",
        full_for_a_while,
        # The others write less than a page meanwhile, which tmpfs may have free; a quota meets each write.
        ("tracker", "optuna"),
        drops=True,
        fluent="store's disk: crash, 29 of 40 lost, RUNNING",
    ),
    Scenario(
        "quota",
        "Quota used up for 2 s",
        "Journals in a btrfs subvolume of at most 2 MB, which is used up in the middle of the training; the limit is raised.",
        partial(full_for_a_while, has_quota=True),
        ("tracker", "lightning", "xgboost", "optuna", "keras", "torch"),
        drops=True,
    ),
    Scenario(
        "disk-read-only",
        "Journals on a read-only disk",
        "Nothing can be written down, so nothing arrives: one warning says so.",
        read_only,
        ALL,
        status=None,
        drops=True,
    ),
    Scenario(
        "sqlite-locked",
        "SQLite locked for 45 s",
        "Somebody else holds the database, from before the training until long after its end.",
        locked,
        ("tracker", "xgboost"),
        place="sqlite",
        fluent="20 s per call, 2 of 20 lost",
    ),
    Scenario(
        "restarted",
        "Server restarted",
        "A real server is stopped in the middle of the training, and another one started at its port.",
        restarted,
        ("tracker", "lightning"),
        place="own server",
        steps=LONG,
    ),
    Scenario(
        "older-copy",
        "Database restored from a copy of before",
        "The server comes back with its database as it was some steps ago; the run is in it.",
        partial(taken_back, has_run=True),
        place="own server",
        steps=LONG,
    ),
    Scenario(
        "older-copy-without",
        "The same, without the run",
        "The copy is from before the training: MLflow knows no such run any more.",
        partial(taken_back, has_run=False),
        place="own server",
        steps=LONG,
        status=None,
        sync_code=3,
        is_run_gone=True,
    ),
    Scenario(
        "deleted",
        "Run deleted by hand",
        "Its owner deletes it while the training records; restored for the counting.",
        deleted,
        steps=LONG,
        status="RUNNING",
        sync_code=3,
        is_run_gone=True,
        afterwards=restore_run,
    ),
)
