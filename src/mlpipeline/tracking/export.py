"""What a monitoring system is told: newest metrics of the models in use, runs, and what is on its way.

::

    MLflow ── refresh(), once per interval ──► Figures ─┐
                                                        ├─ collect() ──► OpenMetrics: a file, or a scrape
    journal home ── looked at per scrape ───────────────┘

A scrape never asks MLflow: it gets what the last `Exporter.refresh` found, and no figures of MLflow's
at all while that failed, so that an alert hears ``mlpipeline_up == 0`` and not old values. What
waits in the journals is told in any case.
"""

from __future__ import annotations

import math
import os
import re
import time
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking import names
from mlpipeline.tracking.account import accounts, lag_s
from mlpipeline.tracking.verdicts import Refused, Unavailable, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mlflow import MlflowClient
    from prometheus_client import Metric

    from mlpipeline.tracking.destination import Destination
    from mlpipeline.tracking.home import Home

TIMEOUT_S = 3.0
"""Longest wait for one answer."""

COUNT_EVERY_S = 300.0
"""How often runs are counted through a server, which has no count: all pages are read for it."""

_PAGE = 1000


@dataclass(frozen=True)
class ModelMetric:
    """The newest value of one metric of the version that an alias points to."""

    model: str
    alias: str
    version: int
    metric: str
    value: float


@dataclass(frozen=True)
class RunCount:
    """How many runs of an experiment have a status."""

    experiment: str
    status: str
    count: int


@dataclass(frozen=True)
class Figures:
    """What MLflow has.

    Attributes:
        models: Metrics of the versions that aliases point to.
        runs: How many active runs each experiment has, by status.
        problem: Why MLflow could not be asked, without credentials; None where it could.
    """

    models: tuple[ModelMetric, ...] = ()
    runs: tuple[RunCount, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Backlog:
    """What a journal home holds.

    Attributes:
        pending: Records that MLflow has not got.
        refused: Records that MLflow refused for good.
        dropped: Records that the disk did not take.
        lag_s: Age of the oldest record that MLflow has not got; 0 where it has all.
    """

    pending: int
    refused: int
    dropped: int
    lag_s: float

    @classmethod
    def of(cls, home: Home) -> Backlog:
        """Look at a home; one that does not exist holds nothing."""
        counts = [account.counts for account in accounts(home)]
        return cls(
            sum(count.pending for count in counts),
            sum(count.refused for count in counts),
            sum(count.dropped for count in counts),
            lag_s(home),
        )


class Exporter:
    """Collects the figures of one destination and one journal home, as ``prometheus_client`` asks for them.

    Register it with a ``CollectorRegistry``. It is up from the first `refresh` on.

    Args:
        destination: Whose figures.
        home: The journal home.
        timeout_s: How long MLflow may take for one answer.
        max_age_s: Figures that are older, because a refresh hangs, count as none.
    """

    def __init__(
        self,
        destination: Destination,
        home: Home,
        *,
        timeout_s: float = TIMEOUT_S,
        max_age_s: float = math.inf,
    ) -> None:
        self._destination = destination
        self._home = home
        self._timeout_s = timeout_s
        self._max_age_s = max_age_s
        self._client: MlflowClient | None = None
        self._figures = Figures(problem="not asked yet")
        self._refreshed_s = -math.inf
        self._counts: tuple[RunCount, ...] = ()
        self._counted_s = -math.inf

    def refresh(self) -> str | None:
        """Ask MLflow, and return what stands in the way; None if nothing does."""
        try:
            if self._client is None:
                self._client = self._destination.client(self._timeout_s)
            else:
                self._destination.probe(self._timeout_s)
            found = Figures(tuple(_model_metrics(self._client)), self._run_counts(self._client))
        except Exception as error:  # noqa: BLE001 - MLflow's own, of any kind; told as mlpipeline_up 0
            self._client = None
            verdict = error if isinstance(error, (Unavailable, Refused)) else judged(error)
            found = Figures(problem=str(verdict))
        self._figures, self._refreshed_s = found, time.monotonic()
        return found.problem

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain types."""
        figures = self._current()
        return {
            "destination": public_uri(self._destination.tracking_uri),
            "is_up": figures.problem is None,
            **asdict(figures),
            **asdict(Backlog.of(self._home)),
        }

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; asks nobody."""
        from prometheus_client.core import GaugeMetricFamily

        figures, backlog = self._current(), Backlog.of(self._home)
        up = GaugeMetricFamily("mlpipeline_up", "Whether MLflow answers.", labels=["destination"])
        up.add_metric([public_uri(self._destination.tracking_uri)], float(figures.problem is None))
        yield up
        if figures.problem is None:
            models = GaugeMetricFamily(
                "mlpipeline_model_metric",
                "Newest value of a metric of the model version that an alias points to.",
                labels=["model", "alias", "version", "metric"],
            )
            for one in figures.models:
                models.add_metric([one.model, one.alias, str(one.version), one.metric], one.value)
            yield models
            runs = GaugeMetricFamily(
                "mlpipeline_runs", "Active runs of an experiment by status.", labels=["experiment", "status"]
            )
            for count in figures.runs:
                runs.add_metric([count.experiment, count.status], count.count)
            yield runs
        for name, text, value in (
            ("pending_records", "Records in the journals that MLflow has not got.", backlog.pending),
            ("refused_records", "Records that MLflow refused for good.", backlog.refused),
            ("dropped_records", "Records that the disk did not take.", backlog.dropped),
            ("delivery_lag_seconds", "Age of the oldest record that MLflow has not got.", backlog.lag_s),
        ):
            yield GaugeMetricFamily(f"mlpipeline_{name}", text, value=value)

    def _current(self) -> Figures:
        if time.monotonic() - self._refreshed_s > self._max_age_s:
            return Figures(problem="MLflow takes too long to answer")
        return self._figures

    def _run_counts(self, client: MlflowClient) -> tuple[RunCount, ...]:
        store = client._tracking_client.store  # noqa: SLF001 - the client cannot count
        if hasattr(store, "ManagedSessionMaker"):
            return tuple(_counted_by_database(store))
        if time.monotonic() - self._counted_s > COUNT_EVERY_S:
            self._counts, self._counted_s = tuple(_counted_by_pages(client)), time.monotonic()
        return self._counts


def exposition(exporter: Exporter) -> bytes:
    """Return everything in the OpenMetrics text format."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.openmetrics.exposition import generate_latest

    registry = CollectorRegistry()
    registry.register(exporter)
    return bytes(generate_latest(registry))  # type: ignore[no-untyped-call]  # its own


def write(path: Path, content: bytes) -> None:
    """Replace a file so that a reader sees the old content or the new one; everybody may read it.

    Raises:
        OSError: The folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # no .prom: a collector would read it
    try:
        part.write_bytes(content)
        part.chmod(0o644)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _model_metrics(client: MlflowClient) -> Iterator[ModelMetric]:
    found: dict[tuple[str, int], dict[str, float]] = {}
    for model in _pages(client.search_registered_models, 100):
        for alias, number in sorted(model.aliases.items()):
            key = model.name, int(number)
            if key not in found:
                found[key] = _newest(client, client.get_model_version(model.name, str(number)))
            for metric, value in sorted(found[key].items()):
                yield ModelMetric(model.name, alias, int(number), metric, value)


def _newest(client: MlflowClient, version: Any) -> dict[str, float]:
    """Return the newest value of each metric of a version: its logged model's, else its run's.

    A run may hold several models, so what was logged to the model itself counts first.
    """
    from mlflow.exceptions import MlflowException

    def got(get: Callable[[str], Any], id_: str | None) -> Any:
        try:
            return get(id_) if id_ else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    run = got(client.get_run, version.run_id)
    found = _original(run.data.metrics.items(), run.data.tags) if run is not None else {}
    named = re.search(r"\bm-\w+\b", f"{version.model_id or ''} {version.source or ''}")
    model = got(client.get_logged_model, named and named[0])
    if model is not None:
        points = sorted(model.metrics or (), key=lambda point: (point.timestamp, point.step))
        found |= _original(((point.key, point.value) for point in points), model.tags)
    return found


def _original(metrics: Iterable[tuple[str, float]], tags: dict[str, str]) -> dict[str, float]:
    return {names.original_name(key, tags): float(value) for key, value in metrics}


def _counted_by_database(store: Any) -> Iterator[RunCount]:
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun
    from sqlalchemy import func

    with store.ManagedSessionMaker() as session:
        rows = (
            session.query(SqlExperiment.name, SqlRun.status, func.count())
            .join(SqlExperiment, SqlRun.experiment_id == SqlExperiment.experiment_id)
            .filter(SqlRun.lifecycle_stage == "active", SqlExperiment.lifecycle_stage == "active")
            .group_by(SqlExperiment.name, SqlRun.status)
            .order_by(SqlExperiment.name, SqlRun.status)
            .all()
        )
    for experiment, status, count in rows:
        yield RunCount(str(experiment), str(status), int(count))


def _counted_by_pages(client: MlflowClient) -> Iterator[RunCount]:
    experiments = {one.experiment_id: one.name for one in _pages(client.search_experiments, _PAGE)}
    if not experiments:
        return
    counts = Counter(
        (experiments[run.info.experiment_id], run.info.status)
        for run in _pages(client.search_runs, _PAGE, experiment_ids=list(experiments))
    )
    for (experiment, status), count in sorted(counts.items()):
        yield RunCount(experiment, status, count)


def _pages(call: Any, size: int, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = call(max_results=size, page_token=token, **options)
        yield from page
        if not (token := page.token):
            return
