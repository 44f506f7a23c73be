"""Where the rules of a contract are tried, and what has arrived in MLflow.

::

    Place ── store() ──► callback, train ──► journal ── deliver() ──► arrived() ──► Arrived: run, points
      │
      └─ children ──► Child, a process of its own: counted, killed, interrupted
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mlpipeline.testing.child import Child
from mlpipeline.testing.places import Server, copied_store
from mlpipeline.tracking import names
from mlpipeline.tracking.account import RunAccount, accounts
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.sync import send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlflow.entities import Run as MlflowRun

_ROUNDS = 60
"""Of delivery, each of which ends at a server's first fault."""


@dataclass(frozen=True)
class Arrived:
    """One run as MLflow has it.

    Attributes:
        run: The run.
        points: Per metric, under its original name, its (step, value) pairs by step.
    """

    run: MlflowRun
    points: Mapping[str, Sequence[tuple[int, float]]]

    def steps(self, name: str) -> list[int]:
        """Return the steps of a metric."""
        return [step for step, _ in self.points.get(name, ())]

    def values(self, name: str) -> list[float]:
        """Return the values of a metric."""
        return [value for _, value in self.points.get(name, ())]


class Place:
    """Where the trainings of one rule go: stores and servers of its own, an empty folder, a clean environment.

    Args:
        migrated: An empty store to copy; see `mlpipeline.testing.places.migrated_store`.
        folder: An empty folder.
        children: The processes of the class's rules.
        server: Returns a real server.
    """

    def __init__(
        self, migrated: Path, folder: Path, children: Children, server: Callable[[], Server] | None = None
    ) -> None:
        self.folder = folder
        self.children = children
        self.experiment = uuid.uuid4().hex
        self._migrated = migrated
        self._server = server
        self._stores = 0

    def store(self) -> str:
        """Return the URI of a new SQLite store."""
        self._stores += 1
        folder = self.folder / f"store-{self._stores}"
        folder.mkdir()
        return copied_store(self._migrated, folder / "mlflow.db", str(folder / "mlruns"))

    def server(self) -> Server:
        """Return a real MLflow server, which others use as well."""
        assert self._server is not None, "this place has no server"
        return self._server()

    def options(self, uri: str, **more: Any) -> dict[str, Any]:
        """Return a callback's options: record for *uri*, and wait for `deliver`."""
        mine = {"tracking_uri": uri, "experiment_name": self.experiment, "delivery": "offline"}
        return {**mine, "log_model": False, **more}

    def deliver(self, home: Path | None = None) -> None:
        """Send what the journals hold, as ``mlpipeline sync`` does, until all has arrived."""
        where, left = Home.at(home), []
        for _ in range(_ROUNDS):
            left = [account for account in accounts(where) if _is_left(where, account)]
            if not left:
                break
            where.hurry_file.touch()
            send_all(where)
        assert not left, f"not everything has arrived: {left}"
        refused = [account for account in accounts(where) if account.counts.refused or account.counts.dropped]
        assert not refused, f"records were refused or dropped: {refused}"

    def arrived(self, uri: str, under: Arrived | None = None) -> list[Arrived]:
        """Return the root runs of this place, in the order of their start; every other run has ended, too.

        Args:
            uri: Of the store or server.
            under: A run whose children are returned instead.
        """
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(self.experiment)
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        running = [run.info.run_name for run in found if run.info.status == "RUNNING"]
        assert not running, f"these runs are still RUNNING although the training is over: {running}"
        parent_id = under.run.info.run_id if under else None
        wanted = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent_id]
        wanted.sort(key=lambda run: int(run.info.start_time))
        return [Arrived(run, _points(client, run)) for run in wanted]

    def only(self, uri: str) -> Arrived:
        """Return the one root run there is."""
        found = self.arrived(uri)
        assert len(found) == 1, f"one training, one run; found {[one.run.info.run_name for one in found]}"
        return found[0]


def _is_left(home: Home, account: RunAccount) -> bool:
    is_there = home.run(account.uid).path.exists()
    return is_there and (account.counts.pending > 0 or not (account.is_live or account.is_ended))


def _points(client: Any, run: MlflowRun) -> dict[str, list[tuple[int, float]]]:
    found = {}
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        pairs = [(int(point.step), float(point.value)) for point in history]
        found[names.original_name(key, run.data.tags)] = sorted(pairs, key=lambda pair: pair[0])
    return found


class Children:
    """The processes in which rules of one class train, started together, ahead of the rules that ask.

    "count" and "kill" share one: loading a framework takes seconds, and a training that is killed can be
    the second of its process. Ctrl-C ends whatever is the last.

    Args:
        subject: The class.
        migrated: An empty store to copy.
        folder: An empty folder.
    """

    _TOGETHER: ClassVar[tuple[tuple[str, ...], ...]] = (("count", "kill"), ("interrupt",))

    def __init__(self, subject: type, migrated: Path, folder: Path) -> None:
        self._subject = subject
        self._migrated = migrated
        self._folder = folder
        self._started: dict[str, tuple[Child, Place, str]] = {}

    def start(self, *acts: str) -> None:
        """Start what is needed for some acts."""
        for together in self._TOGETHER:
            wanted = [act for act in together if act in acts and act not in self._started]
            if wanted:
                folder = self._folder / wanted[0]
                folder.mkdir()
                place = Place(self._migrated, folder, self)
                uri = place.store()
                child = Child(self._subject, folder, {act: place.options(uri) for act in wanted})
                self._started.update(dict.fromkeys(wanted, (child, place, uri)))

    def outcome(self, act: str) -> tuple[Child, Place, str]:
        """Wait for an act's process, and return it, its place and its store."""
        self.start(act)
        child, place, uri = self._started[act]
        child.wait()
        return child, place, uri

    def end(self) -> None:
        """End the processes."""
        for child, *_ in self._started.values():
            child.end()
