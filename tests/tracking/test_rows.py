"""Points on the short way, as rows or as JSON: to the last column what MLflow itself would have stored."""

from __future__ import annotations

import math
import sqlite3
import sys
from contextlib import closing

import pytest
from hypothesis import given, settings, strategies as st
from mlflow import MlflowClient

from mlpipeline.tracking import rows
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.records import Point
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.verdicts import Refused

TABLES = ("metrics", "latest_metrics")


def sink_of(uri):
    return MlflowSink(Destination(uri, uri))


def new_run(sink):
    return sink.create_run("0", None, 0, {"mlpipeline.uid": "one"}).info.run_id


def stored(uri, run_id):
    """What the tables of metrics hold of a run."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return [
            sorted(
                connection.execute(
                    f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = ?", [run_id]
                ).fetchall()
            )
            for table in TABLES
        ]


@pytest.fixture(scope="module")
def two_ways(tmp_path_factory, sqlite_template):
    """A sink that inserts rows, and one that asks MLflow's client: a store each."""
    from mlpipeline.testing.places import copied_store

    folder = tmp_path_factory.mktemp("rows")
    ours, theirs = (
        sink_of(copied_store(sqlite_template, folder / name, str(folder))) for name in ("a.db", "b.db")
    )
    new_run(ours), new_run(theirs)
    assert ours._rows is not None
    theirs._rows = None
    return ours, theirs


values = st.one_of(
    st.floats(), st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, sys.float_info.max])
)
points = st.builds(
    Point, st.sampled_from(["loss", "acc", "a/b c"]), values, st.integers(0, 3), st.integers(-2, 3)
)


@given(batches=st.lists(st.lists(points, min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_tables_are_those_of_mlflows_own_call(two_ways, batches):
    """Not finite, in any order, again and again, in one batch and across batches."""
    ours, theirs = two_ways
    tables = []
    for sink in (ours, theirs):
        run_id = new_run(sink)
        for batch in batches:
            sink.log_points(run_id, batch)
            sink.log_points(run_id, batch)
        tables.append(stored(sink.destination.tracking_uri, run_id))
    assert tables[1] == tables[0]


def test_mlflow_reads_what_was_inserted(store_uri):
    """Its client, its history and its search see no difference."""
    sink = sink_of(store_uri)
    run_id = new_run(sink)
    sink.log_points(run_id, [Point("loss", 1 / (step + 1), 1000 + step, step) for step in range(50)])
    client = MlflowClient(store_uri)
    assert 1 / 50 == client.get_run(run_id).data.metrics["loss"]
    history = client.get_metric_history(run_id, "loss")
    assert [(step, 1000 + step) for step in range(50)] == [(one.step, one.timestamp) for one in history]
    assert [run_id] == [run.info.run_id for run in client.search_runs(["0"], "metrics.loss < 0.021")]


@pytest.mark.parametrize(
    "point",
    [
        Point("a" * 251, 1.0, 1, 1),
        Point("no\x00name", 1.0, 1, 1),
        Point("..", 1.0, 1, 1),
        Point("a", 1.0, -1, 1),
    ],
)
def test_what_mlflow_refuses_is_refused_in_its_words(store_uri, point):
    """And nothing of the batch is stored."""
    sink = sink_of(store_uri)
    run_id = new_run(sink)
    with pytest.raises(Refused):
        sink.log_points(run_id, [Point("good", 1.0, 1, 1), point])
    assert [[], []] == stored(store_uri, run_id)


def test_a_deleted_run_takes_no_points(store_uri):
    """Its owner threw it away."""
    sink = sink_of(store_uri)
    run_id = new_run(sink)
    MlflowClient(store_uri).delete_run(run_id)
    with pytest.raises(Refused, match="must be in the 'active' state"):
        sink.log_points(run_id, [Point("loss", 1.0, 1, 1)])
    with pytest.raises(Refused, match="not found"):
        sink.log_points("0" * 32, [Point("loss", 1.0, 1, 1)])
    assert [[], []] == stored(store_uri, run_id)


def test_another_schema_takes_the_ordinary_way(store_uri, monkeypatch):
    """A newer MLflow may keep more of a point than we know."""
    monkeypatch.setattr(rows, "KNOWN_REVISIONS", frozenset({"another"}))
    sink = sink_of(store_uri)
    run_id = new_run(sink)
    sink.log_points(run_id, [Point("loss", 1.0, 1, 1)])
    assert sink._rows is None
    assert 1.0 == MlflowClient(store_uri).get_run(run_id).data.metrics["loss"]


def test_the_schema_of_this_mlflow_is_known():
    """When it changes, this module has to be held against it again."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    assert _get_latest_schema_revision() in rows.KNOWN_REVISIONS


@pytest.mark.server
def test_a_server_is_told_what_mlflows_client_tells_it(server):
    """Points skip its entities and messages on their way into JSON."""
    from mlflow.entities import Metric

    told = [
        Point("loss", value, 1000 + at, -at) for at, value in enumerate((1.5, math.nan, math.inf, -math.inf))
    ]
    sink, client = sink_of(server.uri), MlflowClient(server.uri)
    ours, theirs = new_run(sink), new_run(sink)
    sink.log_points(ours, told)
    client.log_batch(theirs, [Metric(one.key, one.value, one.timestamp_ms, one.step) for one in told])
    found = [
        sorted(
            (one.step, one.timestamp, repr(one.value)) for one in client.get_metric_history(run_id, "loss")
        )
        for run_id in (ours, theirs)
    ]
    assert found[1] == found[0]
    assert 4 == len(found[0])
