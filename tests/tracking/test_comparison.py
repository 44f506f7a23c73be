"""Runs beside each other: values of their histories, what is fetched for them, tables and pages."""

from __future__ import annotations

import math
import sqlite3
import uuid
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.store.tracking.dbmodels.models import SqlMetric, SqlRun
from rich.console import Console
from sqlalchemy import event

from mlpipeline import MLflowTracker
from mlpipeline.core.errors import UsageError
from mlpipeline.testing import FaultyProxy, faults
from mlpipeline.tracking import histories, queries
from mlpipeline.tracking.charts import lines
from mlpipeline.tracking.comparison import as_html, as_table
from mlpipeline.tracking.names import metric_key
from mlpipeline.tracking.queries import Queries

NAN = float("nan")


class Store:
    """A store, with an experiment of this test's own."""

    def __init__(self, uri):
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.queries = Queries(uri)
        self.experiment = self.client.create_experiment(uuid.uuid4().hex)

    def log(self, histories=None, params=None, **options):
        """Make a run with a history per metric; return its id."""
        run_id = self.client.create_run(self.experiment, **options).info.run_id
        points = [
            Metric(metric_key(name), value, 1000 + step, step)
            for name, values in (histories or {}).items()
            for step, value in enumerate(values)
        ]
        self.client.log_batch(
            run_id, points, [Param(metric_key(key), str(value)) for key, value in (params or {}).items()]
        )
        return run_id


@pytest.fixture
def store(either_store):
    return Store(either_store)


@pytest.fixture
def sqlite_store(store_uri):
    return Store(store_uri)


# --- which value of a history ------------------------------------------------------------------------


def test_a_metric_is_compared_by_the_value_that_is_asked_for(store):
    """Best goes by the name of the metric, as it was logged."""
    ids = [
        store.log({"val_loss": [3.0, 1.0, 2.0], "ndcg@3": [0.1, 0.9, 0.2]}),
        store.log({"val_loss": [5.0], "ndcg@3": [NAN, 0.5, NAN]}),
    ]

    def compared(aggregate, name):
        return list(store.queries.compare_runs(ids, aggregate=aggregate)[name])

    assert [2.0, 5.0] == compared("last", "val_loss")
    assert [1.0, 5.0] == compared("best", "val_loss") == compared("min", "val_loss")
    assert [3.0, 5.0] == compared("max", "val_loss")
    assert [0.9, 0.5] == compared("best", "ndcg@3") == compared("max", "ndcg@3")
    assert [0.1, 0.5] == compared("min", "ndcg@3")


def test_the_caller_may_say_what_is_better(sqlite_store):
    """For a name that says nothing, or the wrong thing."""
    ids = [sqlite_store.log({"mine": [1.0, 3.0, 2.0], "loss": [1.0, 3.0, 2.0]})]
    compare = sqlite_store.queries.compare_runs
    frame = compare(ids, aggregate="best", metrics={"mine": "min", "loss": "max"})
    assert (1.0, 3.0) == (frame["mine"].iloc[0], frame["loss"].iloc[0])
    frame = compare(ids, aggregate="best", metrics={"mine": "max", "loss": None})
    assert (3.0, 1.0) == (frame["mine"].iloc[0], frame["loss"].iloc[0])
    with pytest.raises(UsageError, match="nothing in the name 'mine' tells whether more is better"):
        compare(ids, aggregate="best", metrics=["mine"])
    with pytest.raises(UsageError, match="'mine': 'most'}: say 'min' or 'max'"):
        compare(ids, aggregate="best", metrics={"mine": "most"})
    assert 2.0 == compare(ids, aggregate="best")["mine"].iloc[0], "nobody asked for it: the last value"
    with pytest.raises(UsageError, match="aggregate='mean': give one of 'best', 'last', 'min', 'max'"):
        compare(ids, aggregate="mean")


def test_a_metric_without_a_number_has_no_best(sqlite_store):
    """All NaN, or not there."""
    ids = [
        sqlite_store.log({"loss": [NAN, NAN]}),
        sqlite_store.log({"acc": [0.5]}),
        sqlite_store.log({"loss": [1.0]}),
    ]
    frame = sqlite_store.queries.compare_runs(ids, aggregate="best")
    assert [True, True, False] == list(frame["loss"].isna())


def test_only_the_metrics_that_are_asked_for_are_shown(sqlite_store):
    """In that order; params stay."""
    run_id = sqlite_store.log({"b": [1.0], "a": [2.0], "c": [3.0]}, {"lr": 0.1})
    frame = sqlite_store.queries.compare_runs([run_id], metrics=["b", "a"])
    assert ["lr", "b", "a"] == list(frame.columns[4:])
    assert ["lr", "c"] == list(sqlite_store.queries.compare_runs([run_id], metrics="c").columns[4:])
    with pytest.raises(UsageError, match="none of these runs has a metric 'acc'; there are: a, b, c"):
        sqlite_store.queries.compare_runs([run_id], metrics=["acc"])


def test_the_older_name_of_only_differences_works(sqlite_store):
    """Both leave out what is the same, of the values that are shown."""
    ids = [
        sqlite_store.log({"loss": [1.0, 2.0]}, {"seed": 1}),
        sqlite_store.log({"loss": [1.0, 3.0]}, {"seed": 1}),
    ]
    compare = sqlite_store.queries.compare_runs
    frame = compare(ids, only_differences=True)
    assert (["loss"], ["loss"]) == (list(frame.columns[4:]), frame.attrs["metrics"])
    assert ["loss"] == list(compare(ids, only_diff=True).columns[4:])
    frame = compare(ids, only_differences=True, aggregate="min")
    assert ([], []) == (list(frame.columns[4:]), frame.attrs["metrics"])


# --- histories ---------------------------------------------------------------------------------------


def test_histories_of_many_runs_come_together(store):
    """By step, under the name that was logged, without the runs that have none."""
    ids = [store.log({"ndcg@3": [float(i), NAN, -1e9]}) for i in range(3)]
    without = store.log({"other": [1.0]})
    found = store.queries.metric_histories([*ids, without], "ndcg@3")
    assert set(ids) == set(found)
    for i, run_id in enumerate(ids):
        assert [(0, 1000), (1, 1001), (2, 1002)] == [point[:2] for point in found[run_id]]
        assert (float(i), -1e9) == (found[run_id][0][2], found[run_id][2][2])
        assert math.isnan(found[run_id][1][2])
    assert {} == store.queries.metric_histories([], "ndcg@3")


def test_a_history_can_be_thinned(store):
    """Where it is drawn; its ends stay."""
    run_id = store.log({"loss": [float(step) for step in range(300)]})
    found = store.queries.metric_histories([run_id], "loss", points=20)[run_id]
    assert 20 >= len(found) > 10
    assert (0, 299) == (found[0][0], found[-1][0])


@pytest.mark.parametrize("lengths", [[4, 4, 4], [12, 1, 1], [1, 1, 12], [10, 10], [5, 5, 3], [30]])
def test_an_answer_that_is_cut_is_completed(store, lengths, monkeypatch):
    """A server stops after so many points without a word, in the middle of a run."""
    monkeypatch.setattr(histories, "POINTS_PER_ANSWER", 10)
    ids = [store.log({"loss": [float(step) for step in range(length)]}) for length in lengths]
    found = store.queries.metric_histories(ids, "loss")
    assert lengths == [len(found[run_id]) for run_id in ids]


def insert_runs(store, count, points=2):
    """Copy a run, as rows: 3000 create_run would take minutes."""
    template = store.log({"acc": [0.0] * points, "loss": [0.0] * points}, {"lr": 0.1})
    path = store.uri.removeprefix("sqlite:///")
    ids = [f"{i:032x}" for i in range(count)]
    with sqlite3.connect(path) as connection:
        for table, key in (
            ("runs", "run_uuid"),
            ("params", "run_uuid"),
            ("metrics", "run_uuid"),
            ("latest_metrics", "run_uuid"),
        ):
            columns = [row[1] for row in connection.execute(f"pragma table_info({table})") if row[1] != key]
            rows = connection.execute(
                f"select {', '.join(columns)} from {table} where {key} = ?", (template,)
            ).fetchall()
            marks = ", ".join("?" * (len(columns) + 1))
            connection.executemany(
                f"insert into {table} ({key}, {', '.join(columns)}) values ({marks})",
                [(run_id, *row) for run_id in ids for row in rows],
            )
        for table in ("metrics", "latest_metrics"):
            connection.executemany(
                f"update {table} set value = ? where key = 'acc' and run_uuid = ?",
                [((i * 7919) % count / count, run_id) for i, run_id in enumerate(ids)],
            )
    store.client.delete_run(template)
    return ids


class Watch:
    """What MLflow's store does: statements, and rows that become objects."""

    def __init__(self, store):
        self._engine = store.client._tracking_client.store.engine

    def __enter__(self):
        self.statements, self.runs, self.points = [], [], []
        self._hooks = [
            (
                self._engine,
                "before_cursor_execute",
                lambda c, cursor, statement, *_: self.statements.append(statement),
            ),
            (SqlRun, "load", lambda run, _: self.runs.append(run)),
            (SqlMetric, "load", lambda point, _: self.points.append(point.key)),
        ]
        for hook in self._hooks:
            event.listen(*hook)
        return self

    def __exit__(self, *_):
        for hook in self._hooks:
            event.remove(*hook)


def test_the_best_ten_of_thousands_are_found_in_a_few_looks(sqlite_store):
    """MLflow's own order by a metric compares every run with every other; a few hundred rows do."""
    insert_runs(sqlite_store, 3000)
    with Watch(sqlite_store) as watch:
        found = sqlite_store.queries.search_runs(
            [sqlite_store.experiment], order_by=["metrics.acc DESC"], max_results=10
        )
    assert 10 == len(found)
    assert [pytest.approx((2999 - i) / 3000) for i in range(10)] == [run.metrics["acc"] for run in found]
    assert len(watch.runs) <= 5 * 101, "one more tells MLflow whether there is another page"
    assert [] == watch.points
    assert not any("ORDER BY clause_1, anon_1.value" in statement for statement in watch.statements)
    with Watch(sqlite_store) as watch:
        newest = sqlite_store.queries.search_runs([sqlite_store.experiment], max_results=10)
    assert (10, 11) == (len(newest), len(watch.runs))
    assert [] == watch.points


@pytest.mark.parametrize("way", ["DESC", "ASC", ""])
@pytest.mark.parametrize("query", ["", "params.lr = '0.1'"])
def test_the_first_by_a_metric_are_those_of_mlflow(sqlite_store, way, query, monkeypatch):
    """Equal ones, NaN, infinities, small and negative numbers, and runs that have none."""
    values = [NAN, None, 1e-300, -1e-7, 3.0, 1.7976931348623157e308, -1.5e22, 0.1 + 0.2, 0.3, 0.0]
    ids = insert_runs(sqlite_store, 300)
    with sqlite3.connect(sqlite_store.uri.removeprefix("sqlite:///")) as connection:
        for i, run_id in enumerate(ids):
            value = values[i * i % len(values)] if i % 3 else float(i % 40)
            if value is None:
                connection.execute("delete from latest_metrics where key = 'acc' and run_uuid = ?", (run_id,))
            else:
                new = (0.0 if math.isnan(value) else value, math.isnan(value), run_id)
                connection.execute(
                    "update latest_metrics set value = ?, is_nan = ? where key = 'acc' and run_uuid = ?", new
                )
            connection.execute("update runs set start_time = ? where run_uuid = ?", (i % 7, run_id))
            connection.execute("update params set value = ? where run_uuid = ?", (0.1 * (1 + i % 2), run_id))

    def searched(count):
        found = sqlite_store.queries.search_runs(
            [sqlite_store.experiment], query, count, [f"metrics.acc {way}".strip()]
        )
        return [run.run_id for run in found]

    narrowed = {count: searched(count) for count in (1, 2, 5, 10, 14, 20, 100)}
    monkeypatch.setattr(queries, "MOST_NARROWED", 0)
    assert {count: searched(count) for count in narrowed} == narrowed


def test_many_equal_ones_are_left_to_mlflow(sqlite_store):
    """Nothing to narrow by."""
    ids = insert_runs(sqlite_store, 300)
    with sqlite3.connect(sqlite_store.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("update latest_metrics set value = 1 where key = 'acc'")
    for metric in ("acc", "none"):
        order = [f"metrics.{metric} DESC"]
        found = sqlite_store.queries.search_runs([sqlite_store.experiment], max_results=3, order_by=order)
        assert ids[:3] == [run.run_id for run in found]


def test_a_comparison_of_hundreds_asks_in_hundreds(sqlite_store):
    """Two filters for the runs; histories only of the metrics that are asked for, and only where needed."""
    ids = insert_runs(sqlite_store, 250)
    compare = sqlite_store.queries.compare_runs
    with Watch(sqlite_store) as watch:
        assert 250 == len(compare(ids))
    assert 250 == len(watch.runs)
    assert [] == watch.points, "last values come with the runs"
    assert len(watch.statements) < 60
    with Watch(sqlite_store) as watch:
        compare(ids, aggregate="best", metrics=["acc"])
    assert {"acc"} == set(watch.points)
    assert 500 == len(watch.points)
    with Watch(sqlite_store) as watch:
        sqlite_store.queries.metric_histories(ids, "acc")
    assert 3 == sum("FROM metrics" in statement for statement in watch.statements)
    rare = sqlite_store.log({"rare": [1.0]})
    with Watch(sqlite_store) as watch:
        compare([*ids, rare], aggregate="max", metrics=["rare"])
    assert 1 == sum("FROM metrics" in statement for statement in watch.statements)


def test_a_server_is_asked_once_for_a_hundred_histories(server):
    """By the call of MLflow's own pages."""
    store = Store(server.uri)
    ids = [store.log({"loss": [1.0, 2.0]}) for _ in range(3)]
    with FaultyProxy(server.uri) as proxy:
        found = Queries(proxy.uri).metric_histories(ids, "loss")
        assert 3 == len(Queries(proxy.uri).metric_histories(ids, "loss", points=5))
    assert [[1.0, 2.0]] * 3 == [[value for *_, value in found[run_id]] for run_id in ids]
    asked = [request.partition("?")[0].rpartition("/")[2] for request in proxy.requests]
    assert ["get-history-bulk", "get-history-bulk-interval"] == asked


def test_a_server_without_that_call_is_asked_run_by_run(server):
    """Another make, or a proxy in front that knows the public API only."""
    store = Store(server.uri)
    ids = [store.log({"loss": [1.0, 2.0]}) for _ in range(3)]
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = faults.only("/ajax-api/", faults.answered(404))
        found = Queries(proxy.uri).metric_histories(ids, "loss")
        assert [2.0] * 3 == list(Queries(proxy.uri).compare_runs(ids, aggregate="max")["loss"])
    assert [[1.0, 2.0]] * 3 == [[value for *_, value in found[run_id]] for run_id in ids]


def test_a_store_without_that_call_is_asked_run_by_run(tmp_path, monkeypatch):
    """MLflow's old file store."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = Store((tmp_path / "mlruns").as_uri())
    ids = [store.log({"loss": [1.0, 2.0]}) for _ in range(2)]
    assert [2.0, 2.0] == list(store.queries.compare_runs(ids, aggregate="max")["loss"])


# --- runs that are only here -------------------------------------------------------------------------

NOBODY = "http://127.0.0.1:9"


def record(**options):
    """Record a run that nobody takes; return its local id."""
    with MLflowTracker(
        **{"tracking_uri": NOBODY, "delivery": "offline", "tags": {"team": "a"}, **options}
    ) as tracker:
        tracker.log_params({"depth": 3, "odd@name": "x"})
        tracker.log_params({"depth": 4})
        tracker.set_tags({"team": "b", "n" * 300: "long"})
        for step, value in enumerate([0.1, 0.9, 0.5]):
            tracker.log_metrics({"acc": value, "ndcg@3": value}, step=step)
        tracker.log_metrics({"free": 1.0})
        return tracker.run_id


def test_runs_compare_before_they_are_delivered():
    """From their journals, while nobody answers."""
    ids = [record(run_name=name) for name in ("one", "two")]
    tracker = MLflowTracker(tracking_uri=NOBODY, delivery="offline")
    frame = tracker.compare_runs(ids, aggregate="best", metrics=["acc", "ndcg@3"])
    assert ids == list(frame.index)
    assert (["one", "two"], ["FINISHED"] * 2) == (list(frame["run_name"]), list(frame["status"]))
    assert ([3, 3], [0.9, 0.9], [0.9, 0.9]) == tuple(
        map(list, (frame["depth"], frame["acc"], frame["ndcg@3"]))
    )
    assert (frame["duration_s"] >= 0).all()
    assert ["acc", "ndcg@3"] == frame.attrs["metrics"]
    history = tracker.metric_histories(ids, ["acc"])["acc"][ids[0]]
    assert [(0, 0.1), (1, 0.9), (2, 0.5)] == [(step, value) for step, _, value in history]


def test_a_run_is_the_same_before_and_after_its_delivery(store_uri, deliver):
    """But for its id, and what only MLflow knows."""
    run_id = record(tracking_uri=store_uri, run_name="one", experiment_name="local")
    tracker = MLflowTracker(tracking_uri=store_uri, experiment_name="local", delivery="offline")
    before = tracker.get_run_info(run_id)
    histories_before = tracker.metric_histories([run_id], "ndcg@3")
    deliver()
    after = tracker.get_run_info(run_id)
    assert "local-" not in after.run_id
    for name in ("run_name", "status", "start_time", "end_time", "user_id", "params", "metrics"):
        assert getattr(before, name) == getattr(after, name), name
    assert before.tags.items() <= after.tags.items()
    histories_after = tracker.metric_histories([run_id], "ndcg@3")
    assert {"ndcg@3": {after.run_id: histories_before["ndcg@3"][run_id]}} == histories_after
    assert [after.run_id] == list(tracker.compare_runs([run_id, after.run_id]).index), "it is one run"


def test_runs_here_and_there_stand_beside_each_other(sqlite_store):
    """Each is read where it is."""
    there = sqlite_store.log({"acc": [0.2, 0.7, 0.3]}, {"depth": 5})
    here = record(tracking_uri=sqlite_store.uri)
    tracker = MLflowTracker(tracking_uri=sqlite_store.uri, delivery="offline")
    frame = tracker.compare_runs([here, there], aggregate="max", metrics="acc")
    assert ([here, there], [0.9, 0.7]) == (list(frame.index), list(frame["acc"]))
    assert {here, there} == set(tracker.metric_histories([there, here], "acc", points=2)["acc"])


def test_a_run_that_is_open_is_running():
    """Until it has ended, also where it goes on after that."""
    tracker = MLflowTracker(tracking_uri=NOBODY, delivery="offline")
    run_id = tracker.start_run()
    tracker.log_metrics({"acc": 0.5})
    info = MLflowTracker(tracking_uri=NOBODY).get_run_info(run_id)
    assert ("RUNNING", None, {"acc": 0.5}) == (info.status, info.end_time, info.metrics)
    run = tracker.active_run
    tracker.end_run("FAILED")
    run.resume()
    info = MLflowTracker(tracking_uri=NOBODY).get_run_info(run_id)
    assert ("RUNNING", None) == (info.status, info.end_time), "it goes on"
    run.end("FAILED")
    assert "FAILED" == MLflowTracker(tracking_uri=NOBODY).get_run_info(run_id).status


def test_a_local_run_that_is_nowhere_says_so():
    """Another machine's, or another journal home's."""
    with pytest.raises(UsageError, match="run local-nothing has not reached MLflow yet"):
        MLflowTracker(tracking_uri=NOBODY).compare_runs(["local-nothing"])


# --- showing it --------------------------------------------------------------------------------------


def printed(shown):
    console = Console(width=400)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def test_a_few_runs_are_columns_and_many_are_rows(sqlite_store):
    """Whichever is longer goes down; markup in names is text."""
    ids = [sqlite_store.log({"loss": [1 / 3]}, {"[red]lr": i}, run_name=f"run{i}") for i in range(7)]
    few = printed(as_table(sqlite_store.queries.compare_runs(ids[:2])))
    assert any(
        line.split("│")[1:4] and "[red]lr" in line and " 0 " in line and " 1 " in line
        for line in few.splitlines()
    )
    assert "0.333333" in few
    many = printed(as_table(sqlite_store.queries.compare_runs(ids)))
    (head,) = [line for line in many.splitlines() if "run_id" in line]
    assert "[red]lr" in head
    assert 7 == sum("0.333333" in line for line in many.splitlines())
    assert "run_id" in printed(as_table(sqlite_store.queries.compare_runs([])))


def test_a_page_needs_nothing_beside_it_and_draws_every_metric(sqlite_store):
    """One file with tables and curves, whose names are text."""
    ids = [
        sqlite_store.log({"loss": [3.0, 1.0], "acc": [NAN, 0.5]}, {"<b>": "a&b"}, run_name="<i>")
        for _ in range(2)
    ]
    frame = sqlite_store.queries.compare_runs(ids)
    curves = {name: sqlite_store.queries.metric_histories(ids, name) for name in ("loss", "acc")}
    page = as_html(frame, curves, title="a < b")
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))  # it is well-formed, too
    assert "a < b" == root.find("body/h1").text
    cells = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert ["run_id", *frame.columns] == cells[0]
    assert [ids[0], "<i>", "a&b"] == [cells[1][0], cells[1][1], cells[1][cells[0].index("<b>")]]
    assert 2 == sum(element.tag.endswith("svg") for element in root.iter())
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert f"<i> ({ids[0][:8]})" in texts, "runs of one name are told apart"
    assert not any(word in page for word in ("http://www.w3.org/1999", "<script", "href=", "src="))
    assert "<svg" not in as_html(frame)


SVG = "{http://www.w3.org/2000/svg}"


def test_lines_lie_over_each_other_in_colours_of_their_own():
    """One point is a dot; what is not finite, or MLflow's infinity, is left out; the legend has all."""
    curves = {"a": ([0, 1, 2], [0.0, 0.5, 1.0]), "b": ([0, 1, 2], [1.0, NAN, 0.0])}
    root = ET.fromstring(
        lines("loss", {**curves, "c": ([1], [0.5]), "d": ([0], [1.7e308]), "e": ([], [])}, x="step")
    )
    drawn = [line.get("points").split() for line in root.iter(f"{SVG}polyline")]
    assert [3, 2] == list(map(len, drawn))
    assert 1 == len(list(root.iter(f"{SVG}circle")))
    legend = [mark.get("stroke") for mark in root.iter(f"{SVG}path")]
    assert 5 == len(set(legend)) == len(legend)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"loss", "step", "a", "b", "c", "d", "e"} <= set(texts)
    many = ET.fromstring(lines("x", {str(i): ([0, 1], [0.0, i]) for i in range(30)}, x="step"))
    styles = {(line.get("stroke"), line.get("stroke-dasharray")) for line in many.iter(f"{SVG}polyline")}
    assert 30 == len(styles)
    assert 30 * 22 < float(many.get("height"))


def test_a_frame_of_the_users_own_is_shown_too():
    """Missing values are empty cells."""
    frame = pd.DataFrame(
        {
            "run_name": ["a"],
            "status": [None],
            "start_time": [pd.NaT],
            "duration_s": [NAN],
            "n": pd.array([None], "Int64"),
        },
        index=pd.Index(["id"], name="run_id"),
    )
    assert "<td>id</td><td>a</td><td></td><td></td><td></td><td></td>" in as_html(frame)
