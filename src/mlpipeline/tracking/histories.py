"""One metric of many runs: in one request per hundred runs, where the store has the calls of MLflow's pages.

::

    every point      get_metric_history_bulk            GET …/metrics/get-history-bulk
    some per run     get_metric_history_bulk_interval   GET …/metrics/get-history-bulk-interval
    neither there    MlflowClient.get_metric_history, run by run

MLflow's client has no call for either, so the store is asked, or the server. The server cuts an answer
with all points after 25 000 of them, without a word: whoever came last is asked for again.
"""

# mypy: disallow-untyped-calls = False
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow import MlflowClient

    from mlpipeline.tracking.queries import History

RUNS_PER_REQUEST = 100
POINTS_PER_ANSWER = 25_000
POINTS_PER_RUN = 2_500
"""MLflow's limits (mlflow/server/handlers.py)."""

_Bulk = dict[str, "History"]


def fetched(client: MlflowClient, run_ids: list[str], key: str, points: int | None) -> dict[str, History]:
    """Return the points of a metric by run, in no order.

    Args:
        client: MLflow's.
        run_ids: Different ones.
        key: MLflow's key of the metric.
        points: At most so many per run, evenly chosen; None is all.
    """
    ask = _bulk(client, key, None if points is None else max(2, min(points, POINTS_PER_RUN)))
    found: dict[str, History] = {}
    waiting = sorted(run_ids)
    while waiting and ask is not None:
        asked = waiting[:RUNS_PER_REQUEST]
        answer = ask(asked)
        if answer is None:
            break
        waiting = waiting[RUNS_PER_REQUEST:]
        if points is None and sum(map(len, answer.values())) >= POINTS_PER_ANSWER:
            last = max(answer)
            later = [run_id for run_id in asked if run_id >= last]
            if later == asked:  # it fills an answer alone, which MLflow's client asks for in pages
                answer = {last: _one(client, last, key)}
                later = later[1:]
            waiting = later + waiting
        found |= answer
    for run_id in waiting:
        if history := _one(client, run_id, key):
            found[run_id] = history
    return found


def _one(client: MlflowClient, run_id: str, key: str) -> History:
    return [(point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, key)]


def _bulk(client: MlflowClient, key: str, points: int | None) -> Callable[[list[str]], _Bulk | None] | None:
    """Return what asks for many runs at once; None where the store has no such call."""
    store = client._tracking_client.store  # noqa: SLF001 - the client has no such call
    if hasattr(store, "get_host_creds"):
        return lambda run_ids: _from_server(store.get_host_creds(), run_ids, key, points)
    if not hasattr(store, "get_metric_history_bulk"):
        return None

    def ask(run_ids: list[str]) -> _Bulk | None:
        if points is None:
            found = store.get_metric_history_bulk(run_ids, key, POINTS_PER_ANSWER)
        else:
            found = store.get_metric_history_bulk_interval(run_ids, key, points, None, None)
        return _by_run(entry.to_dict() for entry in found)

    return ask


def _from_server(creds: Any, run_ids: list[str], key: str, points: int | None) -> _Bulk | None:
    from mlflow.utils.rest_utils import http_request

    path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
    asked: dict[str, Any] = {"run_id": run_ids, "metric_key": key, "max_results": POINTS_PER_ANSWER}
    if points is not None:
        path, asked = f"{path}-interval", {"run_ids": run_ids, "metric_key": key, "max_results": points}
    response = http_request(creds, path, "GET", params=asked, raise_on_status=False)
    # A server of another make, or a proxy that lets only the public API through: run by run.
    return _by_run(response.json().get("metrics", ())) if response.status_code == 200 else None


def _by_run(entries: Any) -> _Bulk:
    found: _Bulk = {}
    for entry in entries:
        point = int(entry["step"]), int(entry["timestamp"]), float(entry["value"])
        found.setdefault(entry["run_id"], []).append(point)
    return found
