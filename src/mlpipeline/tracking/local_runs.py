"""A run that is only here yet, read from its journal: what MLflow will have of it, before it is delivered.

::

    local-<uid> ─► runs/<uid>/*.seg ─ JournalReader ─► MLflowRunInfo, and the points of its metrics
         └─ delivered: MLflow's id ─ Queries ────────► the same
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlpipeline.tracking import names
from mlpipeline.tracking.account import LOCAL_PREFIX, resolved_run_id
from mlpipeline.tracking.queries import MLflowRunInfo, original_names
from mlpipeline.tracking.reading import JournalReader
from mlpipeline.tracking.records import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.queries import History, Queries


@dataclass(frozen=True)
class LocalRun:
    """A run as its journals have it.

    Attributes:
        info: The same as of a run in MLflow, under its local id. It has no experiment's id, and no artifacts.
        points: Per metric, by original name, its points by step, then time.
    """

    info: MLflowRunInfo
    points: dict[str, History]


def local_run(home: Home, run_id: str) -> LocalRun | None:
    """Return a run of which MLflow has nothing yet.

    Args:
        home: The journal home.
        run_id: Its local id, ``local-…``.

    Returns:
        None where the home has no such run, or MLflow has it: then a part of its journal may be gone.
    """
    uid = run_id.removeprefix(LOCAL_PREFIX)
    folder = home.run(uid)
    if _is_in_mlflow(home, uid) or not folder.writers():
        return None
    read = _Reading()
    for writer in folder.writers():
        reader = JournalReader(folder, writer)
        read.is_live |= reader.look() and reader.is_alive()
        while frames := reader.read(is_final=False):
            for frame in frames:
                with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError):  # damage
                    read.take(reader, frame)
        if reader.header and (read.header is None or reader.header.get("role") == "opener"):
            read.header = reader.header
    # Delivered meanwhile, it was taken away while it was read.
    return None if _is_in_mlflow(home, uid) else read.run(run_id)


def _is_in_mlflow(home: Home, uid: str) -> bool:
    state = home.state(uid)
    return state is not None and state.run_id is not None


class RunsAnywhere:
    """Runs in MLflow, and those that are only here yet.

    Args:
        queries: MLflow's.
        home: The journal home.
    """

    def __init__(self, queries: Queries, home: Home) -> None:
        self._queries = queries
        self._home = home
        self._here: dict[str, LocalRun] = {}

    def infos(self, run_ids: Sequence[str]) -> list[MLflowRunInfo]:
        """Return the runs in their order, each once; one that MLflow has, under MLflow's id.

        Raises:
            UsageError: There is no such run.
        """
        ids = self._ids(run_ids)
        there = [run_id for run_id in ids if run_id not in self._here]
        found = {run.run_id: run for run in self._queries.get_runs(there)} if there else {}
        return [self._here[run_id].info if run_id in self._here else found[run_id] for run_id in ids]

    def histories(self, run_ids: Sequence[str], key: str, *, points: int | None = None) -> dict[str, History]:
        """Return a metric of the runs that have it, by the ids of `infos`; see `Queries.metric_histories`."""
        ids = self._ids(run_ids)
        there = [run_id for run_id in ids if run_id not in self._here]
        found = self._queries.metric_histories(there, key, points=points) if there else {}
        here = (run_id for run_id in ids if run_id in self._here and key in self._here[run_id].points)
        return found | {run_id: self._here[run_id].points[key] for run_id in here}

    def _ids(self, run_ids: Sequence[str]) -> list[str]:
        found: list[str] = []
        for run_id in run_ids:
            if run_id.startswith(LOCAL_PREFIX) and run_id not in self._here:
                if (run := local_run(self._home, run_id)) is None:
                    found.append(resolved_run_id(self._home, run_id))
                    continue
                self._here[run_id] = run
            found.append(run_id)
        return list(dict.fromkeys(found))


class _Reading:
    """What the frames of a run's journals come to."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.is_live = False
        self._params: dict[str, tuple[int, str]] = {}
        self._tags: dict[str, tuple[int, str]] = {}
        self._points: dict[str, History] = {}
        self._end: dict[str, Any] | None = None

    def take(self, reader: JournalReader, frame: Any) -> None:
        if frame.kind in (Kind.METRICS, Kind.METRICS_STEPS):
            for point in reader.points(frame):
                self._points.setdefault(point.key, []).append((point.step, point.timestamp_ms, point.value))
        elif frame.kind is Kind.PARAMS:
            content = frame.json()
            for key, value in content["params"].items():  # the first value of a param stands
                self._params[key] = min(self._params.get(key, (content["ms"], value)), (content["ms"], value))
        elif frame.kind is Kind.TAGS:
            content = frame.json()
            for key, value in content["tags"].items():  # the newest value of a tag stands
                if content["ms"] >= self._tags.get(key, (0, ""))[0]:
                    self._tags[key] = content["ms"], value
        elif frame.kind is Kind.END:
            content = frame.json()
            if self._end is None or content["ms"] >= self._end["ms"]:
                self._end = content

    def run(self, run_id: str) -> LocalRun:
        header = self.header or {}
        early = {**header.get("source", {}), **header.get("tags", {})}
        tags = {**early, **{key: value for key, (_, value) in self._tags.items()}}
        params = {key: value for key, (_, value) in self._params.items()}
        points = {key: sorted(found) for key, found in self._points.items()}
        end = {} if self.is_live or self._end is None else self._end
        info = MLflowRunInfo(
            run_id=run_id,
            experiment_id="",
            run_name=header.get("run_name") or "",
            status="RUNNING" if self.is_live else str(end.get("status", "KILLED")),
            start_time=header.get("start_ms"),
            end_time=end.get("end_ms", end.get("ms")),
            artifact_uri="",
            lifecycle_stage="active",
            user_id=tags.get("mlflow.user", ""),
            tags=original_names(tags, tags),
            params=original_names(params, tags),
            # The same one as in MLflow: greatest by step, time, value.
            metrics=original_names({key: found[-1][2] for key, found in points.items()}, tags),
        )
        return LocalRun(
            info, {names.original_name(key, tags): found for key, found in sorted(points.items())}
        )
