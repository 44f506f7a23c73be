"""Reading runs back: one run, a search, a comparison, a metric's history.

::

    Queries(tracking_uri)
      get_run_info(id) ─────────► MLflowRunInfo            MlflowClient, and nothing of the journal:
      search_runs(ids, filter) ─► [MLflowRunInfo, …]       what MLflow has, not what is on its way
      compare_runs([id, …]) ────► DataFrame, a row a run
      metric_history(id, key) ──► [(step, time, value), …]     metric_histories: of many runs at once

Names go both ways as the user wrote them (`names.metric_key`): ``ndcg@3`` is a key of `MLflowRunInfo.metrics`
and, in backticks, a name in a filter. What only the user can put right (an unknown run, a filter
that MLflow refuses) raises `UsageError`; a server that does not answer raises MLflow's own exception.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import comparison, names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd
    from mlflow import MlflowClient

    from mlpipeline.tracking.comparison import Aggregate, Metrics

PAGE_RUNS = 1000  # MLflow's default page; it takes up to 50 000, at the price of a very long request
CHUNK_RUNS = 100  # run ids in one filter
MOST_NARROWED = 100  # runs wanted, up to which they are found by narrowing

_NEWEST_FIRST = ("attributes.start_time DESC",)
_RUN_ID = re.compile(r"[A-Za-z0-9][\w\-]{0,255}")
# A quoted value, to be skipped, or a quoted name after its kind.
_QUOTED = re.compile(
    r"(?P<value>'[^']*'|(?<!\.)\"[^\"]*\")"
    r"|(?P<kind>\b(?:metrics?|params?|parameters?|tags?)\.)(?P<name>`[^`]*`|\"[^\"]*\")"
)

# An order by one metric alone.
_BY_METRIC = re.compile(
    r"\s*(?P<key>metrics?\.(?:`[^`]+`|\"[^\"]+\"|[\w./\-]+))(?:\s+(?P<way>asc|desc))?\s*", re.IGNORECASE
)

History = list[tuple[int, int, float]]
"""Points of a metric: (step, milliseconds since the epoch, value)."""


@dataclass(frozen=True)
class MLflowRunInfo:
    """One run as MLflow has it.

    Args:
        run_id: MLflow's id.
        experiment_id: Its experiment's id.
        run_name: Name shown in MLflow's pages.
        status: ``RUNNING``, ``SCHEDULED``, ``FINISHED``, ``FAILED`` or ``KILLED``.
        start_time: Milliseconds since the epoch; None if unknown.
        end_time: Milliseconds since the epoch; None while it runs.
        artifact_uri: Folder of its artifacts.
        lifecycle_stage: ``active`` or ``deleted``.
        user_id: Who started it.
        tags: Tags by original name, MLflow's own among them.
        params: Params by original name, as the text that was logged.
        metrics: Latest value (of the greatest step) by original name.
    """

    run_id: str
    experiment_id: str
    run_name: str
    status: str
    start_time: int | None
    end_time: int | None
    artifact_uri: str
    lifecycle_stage: str
    user_id: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]

    @classmethod
    def from_mlflow(cls, run: Any) -> MLflowRunInfo:
        """The same run from an ``mlflow.entities.Run``, with the names as they were given."""
        tags = dict(run.data.tags)
        return cls(
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            run_name=run.info.run_name or "",
            status=run.info.status,
            start_time=run.info.start_time,
            end_time=run.info.end_time,
            artifact_uri=run.info.artifact_uri or "",
            lifecycle_stage=run.info.lifecycle_stage,
            # info.user_id is "unknown" for every run that a client made; MLflow's pages show the tag.
            user_id=tags.get("mlflow.user") or run.info.user_id or "",
            tags=original_names(tags, tags),
            params=original_names(run.data.params, tags),
            metrics=original_names(run.data.metrics, tags),
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as a copy."""
        return dataclasses.asdict(self)


def original_names(values: Mapping[str, Any], tags: Mapping[str, str]) -> dict[str, Any]:
    """Values by the names as they were given, in order.

    Args:
        values: By MLflow's keys.
        tags: The run's tags by MLflow's keys; see `names.original_name`.
    """
    return {names.original_name(key, tags): value for key, value in sorted(values.items())}


def quoted(name: str) -> str:
    """A metric's, param's or tag's name as it may stand in a filter: ``f"metrics.{quoted(name)} > 0.9"``.

    Args:
        name: The original name, as it was logged.

    Returns:
        The key under which MLflow has it, in backticks.

    Raises:
        UsageError: *name* holds a quote or a backtick, with which it could become part of the filter.
    """
    found = sorted({character for character in name if character in "'\"`"})
    if found:
        raise UsageError(
            f"the name {name!r} holds {' '.join(found)} and cannot stand in a filter. "
            f"If a run really has that name, its key there is {names.metric_key(name)!r}."
        )
    return f"`{names.metric_key(name)}`"


@dataclass(frozen=True)
class Queries:
    """Reads runs of one tracking server or store; holds nothing open and may be pickled.

    Args:
        tracking_uri: Where the runs are.
        registry_uri: Where the models are; None means *tracking_uri*.
    """

    tracking_uri: str
    registry_uri: str | None = None

    def get_run_info(self, run_id: str) -> MLflowRunInfo:
        """One run, also a deleted one.

        Raises:
            UsageError: There is no such run.
        """
        return MLflowRunInfo.from_mlflow(self.get_run(run_id))

    def get_run(self, run_id: str) -> Any:
        """The ``mlflow.entities.Run``, with its keys as MLflow has them, its inputs and its outputs.

        Raises:
            UsageError: There is no such run.
        """
        from mlflow import MlflowException

        if not _RUN_ID.fullmatch(run_id):
            raise self._unknown(run_id)
        try:
            return self._client().get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise self._unknown(run_id) from error
            raise

    def experiment_ids(self, experiment_names: Sequence[str]) -> list[str]:
        """Ids of the experiments of these names that exist, in that order."""
        client = self._client()
        found = [client.get_experiment_by_name(name) for name in experiment_names]
        return [experiment.experiment_id for experiment in found if experiment is not None]

    def search_runs(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        max_results: int = 100,
        order_by: Sequence[str] | None = None,
    ) -> list[MLflowRunInfo]:
        """Active runs of some experiments that match a filter.

        The first few by a metric are found by narrowing the filter: on SQLite, MLflow's own order takes
        the square of the number of runs, 5 s for 10 000 of them.

        Args:
            experiment_ids: Ids, not names. An experiment that does not exist has no runs.
            filter_string: MLflow's filter language, such as ``metrics.accuracy > 0.9 and params.depth =
                '3'``. Odd names stand in backticks, as they were logged: ``metrics.`ndcg@3` > 0.5``.
            max_results: How many at most, also beyond MLflow's page size.
            order_by: Such as ``["metrics.loss ASC"]``; None means newest first.

        Raises:
            UsageError: MLflow refuses the filter, the order or an id; or *max_results* is not positive.
        """
        if max_results < 1:
            raise UsageError(f"max_results is {max_results}; give the number of runs wanted, 1 or more.")
        if isinstance(experiment_ids, str):
            raise UsageError(f"experiment_ids is the string {experiment_ids!r}; give a list of ids.")
        if not experiment_ids:
            return []
        query, order = _with_keys(filter_string), [_with_keys(clause) for clause in order_by or _NEWEST_FIRST]
        by_metric = _BY_METRIC.fullmatch(order[0]) if len(order) == 1 else None
        if by_metric is not None and max_results <= MOST_NARROWED:
            found = self._first_by(by_metric, experiment_ids, query, max_results)
            if found is not None:
                return [MLflowRunInfo.from_mlflow(run) for run in found]
        return [
            MLflowRunInfo.from_mlflow(run) for run in self._search(experiment_ids, query, max_results, order)
        ]

    def _search(
        self, experiment_ids: Sequence[str], query: str, max_results: int, order: Sequence[str]
    ) -> list[Any]:
        from mlflow import MlflowException

        found: list[Any] = []
        token: str | None = None
        client = self._client()
        while True:
            try:
                page = client.search_runs(
                    list(experiment_ids),
                    query,
                    max_results=min(PAGE_RUNS, max_results - len(found)),
                    order_by=list(order),
                    page_token=token,
                )
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # some servers, for an experiment
                    return []
                if error.error_code == "INVALID_PARAMETER_VALUE":
                    raise UsageError(
                        f"MLflow refuses the search (filter {query!r}, order {list(order)}, experiments "
                        f"{list(experiment_ids)}): {error.message} Comparisons are joined with 'and' only; "
                        "values of params and tags are quoted, as in params.depth = '3'; odd names stand in "
                        "backticks, as in metrics.`val loss` < 0.5; experiments are given by id."
                    ) from error
                raise
            found += page
            token = page.token
            if not token or len(found) >= max_results:
                return found

    def _first_by(
        self, by_metric: re.Match[str], experiment_ids: Sequence[str], query: str, count: int
    ) -> list[Any] | None:
        """Find the first runs by a metric in a few quick searches; None where MLflow has to order them.

        Of the newest that match, so many are at least as good as the last that could be among the first:
        what is worse need not be looked at, until all that is left comes in one answer.
        """
        key, name = by_metric["key"], by_metric["key"].partition(".")[2].strip('`"')
        is_falling = (by_metric["way"] or "asc").lower() == "desc"
        most, narrowed = 4 * count + 60, query
        while True:
            sample = self._search(experiment_ids, narrowed, most, _NEWEST_FIRST)
            if len(sample) < most:
                return sorted(sample, key=lambda run: _rank(run, name, is_falling=is_falling))[:count]
            values = [
                value for run in sample if not math.isnan(value := run.data.metrics.get(name, math.nan))
            ]
            if len(values) < count:
                return None
            bound = sorted(values, reverse=is_falling)[count - 1]
            # MLflow's filters know no exponents.
            limit = f"{key} {'>=' if is_falling else '<='} {Decimal(repr(bound)):f}"
            before, narrowed = narrowed, f"{query} and {limit}" if query.strip() else limit
            if narrowed == before:  # as many are equal
                return None

    def compare_runs(
        self,
        run_ids: Sequence[str],
        *,
        only_differences: bool = False,
        aggregate: Aggregate = "last",
        metrics: Metrics = None,
        only_diff: bool = False,
    ) -> pd.DataFrame:
        """A table to compare runs by: one row per run, in the order given; see `comparison.compared`.

        Args:
            run_ids: Which runs; deleted ones too. A repeated id counts once.
            only_differences: Leave out the params and metrics that are the same in all these runs.
            aggregate: Which value of a metric: ``last``, that of the greatest step; or the ``best``, ``min`` or
                ``max`` of its history, which is fetched for the metrics asked for.
            metrics: Which metrics, or by metric the direction of better, ``"min"`` or ``"max"``; None is all.
            only_diff: The older name of *only_differences*.

        Raises:
            UsageError: There is no such run; it names the first one missing. Or no run has a metric that is
                asked for, or its direction is not known.
        """
        return comparison.compared(
            self.get_runs(run_ids),
            self.metric_histories,
            only_differences=only_differences or only_diff,
            aggregate=aggregate,
            metrics=metrics,
        )

    def metric_history(self, run_id: str, key: str) -> History:
        """All points of one metric as (step, milliseconds since the epoch, value), by step, then time.

        Args:
            run_id: Which run.
            key: The metric's name as it was logged.

        Returns:
            Empty if the run has no such metric.

        Raises:
            UsageError: There is no such run.
        """
        points = self._client().get_metric_history(run_id, names.metric_key(key))
        if not points:
            self.get_run_info(run_id)  # MLflow answers an unknown run with an empty list too
        return sorted((point.step, point.timestamp, point.value) for point in points)

    def metric_histories(
        self, run_ids: Sequence[str], key: str, *, points: int | None = None
    ) -> dict[str, History]:
        """One metric of many runs, as `metric_history` has it of one: a request for 100 runs, where possible.

        Args:
            run_ids: Which runs.
            key: The metric's name as it was logged.
            points: At most so many per run, evenly chosen, the first and the last among them; None is all.

        Returns:
            By run id, without the runs that have no such metric.
        """
        from mlpipeline.tracking.histories import fetched

        found = fetched(self._client(), list(dict.fromkeys(run_ids)), names.metric_key(key), points)
        return {run_id: sorted(history) for run_id, history in found.items()}

    def find_runs(self, run_ids: Sequence[str]) -> dict[str, MLflowRunInfo]:
        """Those runs of these ids that exist, by id; deleted ones too.

        Compared runs mostly share an experiment: one is got by id, the others of its experiment are
        searched by theirs. 100 runs on SQLite: 0.2 s, a get_run each 0.4 to 1.1 s; over HTTP 2 requests
        instead of 100.
        """
        from mlflow.entities import ViewType

        found: dict[str, MLflowRunInfo] = {}
        # What is no id must not stand in a filter.
        missing = [run_id for run_id in dict.fromkeys(run_ids) if _RUN_ID.fullmatch(run_id)]
        while missing:
            try:
                first = found[missing[0]] = self.get_run_info(missing[0])
            except UsageError:
                del missing[0]
                continue
            for chunk in _chunks(missing[1:], CHUNK_RUNS):
                ids = ", ".join(f"'{run_id}'" for run_id in chunk)
                for run in self._client().search_runs(
                    [first.experiment_id],
                    f"attributes.run_id IN ({ids})",
                    run_view_type=ViewType.ALL,
                    max_results=len(chunk),
                ):
                    found[run.info.run_id] = MLflowRunInfo.from_mlflow(run)
            missing = [run_id for run_id in missing if run_id not in found]
        return found

    def get_runs(self, run_ids: Sequence[str]) -> list[MLflowRunInfo]:
        """The runs of these ids, in their order; deleted ones too. A repeated id counts once.

        Raises:
            UsageError: There is no such run; it names the first one missing.
        """
        found = self.find_runs(run_ids)
        for run_id in run_ids:
            if run_id not in found:
                raise self._unknown(run_id)
        return [found[run_id] for run_id in dict.fromkeys(run_ids)]

    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri, self.registry_uri or self.tracking_uri)

    def _unknown(self, run_id: str) -> UsageError:
        where = public_uri(self.tracking_uri)
        return UsageError(f"run {run_id!r} is unknown at {where}; search_runs() lists those that are there.")


def _rank(run: Any, name: str, *, is_falling: bool) -> tuple[int, float, int, str]:
    """Return what MLflow orders runs by: numbers, then NaN, then none; the newest first where they are equal."""
    value = run.data.metrics.get(name)
    kind = 2 if value is None else int(math.isnan(value))
    number = 0.0 if kind else float(value)
    return kind, -number if is_falling else number, -(run.info.start_time or 0), run.info.run_id


def _with_keys(clause: str) -> str:
    """A filter or an order with the quoted names that MLflow would refuse replaced by their keys."""

    def key(match: re.Match[str]) -> str:
        if match["value"] is not None or names.is_accepted(match["name"][1:-1]):
            return match[0]
        return f"{match['kind']}`{names.metric_key(match['name'][1:-1])}`"

    return _QUOTED.sub(key, clause)


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
