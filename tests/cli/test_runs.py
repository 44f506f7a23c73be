"""``mlpipeline runs`` as a user runs it: lists, one run, runs beside each other, a page."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mlpipeline import MLflowTracker
from mlpipeline.cli import main

NOBODY = "http://127.0.0.1:9"


class Place:
    """A store that the environment names, with an experiment of this test's own."""

    def __init__(self, uri, monkeypatch):
        self.name = uuid.uuid4().hex
        self.client = MlflowClient(uri, uri)
        self.experiment = self.client.create_experiment(self.name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", self.name)

    def log(self, name, losses, **params):
        run_id = self.client.create_run(self.experiment, run_name=name, start_time=1_000).info.run_id
        points = [Metric("loss", value, 1_000, step) for step, value in enumerate(losses)]
        self.client.log_batch(run_id, points, [Param(key, str(value)) for key, value in params.items()])
        self.client.set_terminated(run_id, end_time=3_500)
        return run_id


@pytest.fixture
def place(either_store, monkeypatch):
    return Place(either_store, monkeypatch)


@pytest.fixture
def sqlite_place(store_uri, monkeypatch):
    return Place(store_uri, monkeypatch)


def mlpipeline(*arguments):
    """Run the command line here: exit code, standard output, standard error."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def told(*arguments):
    """Run a command with --json, and return what it prints."""
    code, out, error = mlpipeline(*arguments, "--json")
    assert (0, 1) == (code, out.count("\n")), error
    return json.loads(out)


def offline(**options):
    """Record a run that nobody takes; return its local id."""
    with MLflowTracker(tracking_uri=NOBODY, delivery="offline", **options) as tracker:
        tracker.log_params({"depth": 3})
        for step, value in enumerate([3.0, 1.0, 2.0]):
            tracker.log_metrics({"loss": value}, step=step)
        return tracker.run_id


# --- list and show -----------------------------------------------------------------------------------


def test_runs_are_listed_as_they_are_asked_for(place):
    """Filter, order and number are MLflow's to keep."""
    for name, loss in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        place.log(name, [loss])
    found = told("runs", "list", "--order-by", "metrics.loss ASC", "--max", 2)
    assert [("b", {"loss": 1.0}), ("c", {"loss": 2.0})] == [
        (run["run_name"], run["metrics"]) for run in found
    ]
    assert ["a"] == [run["run_name"] for run in told("runs", "list", "--filter", "metrics.loss > 2")]
    code, out, _ = mlpipeline("runs", "list", "--metric", "loss", "--filter", "metrics.loss = 3.0")
    assert 0 == code
    assert all(word in out for word in ("loss", " a ", "FINISHED", "1970-01-01 00:00:01", "2.5 s", " 3 "))


def test_other_experiments_are_named(sqlite_place):
    """Several at once; one that is not there has no runs."""
    other = sqlite_place.client.create_experiment("other")
    sqlite_place.client.create_run(other, run_name="elsewhere")
    sqlite_place.log("here", [1.0])
    both = told("runs", "list", "--experiment", "other", "--experiment", sqlite_place.name)
    assert {"here", "elsewhere"} == {run["run_name"] for run in both}
    assert [] == told("runs", "list", "--experiment", "none")
    assert (0, "no runs\n", "") == mlpipeline("runs", "list", "--experiment", "none")


def test_a_run_is_shown_whole(place):
    """With params, metrics and tags."""
    run_id = place.log("one", [0.25], depth=3)
    shown = told("runs", "show", run_id)
    assert {
        "run_id": run_id,
        "status": "FINISHED",
        "params": {"depth": "3"},
        "metrics": {"loss": 0.25},
    }.items() <= shown.items()
    code, out, _ = mlpipeline("runs", "show", run_id)
    assert 0 == code
    assert all(word in out for word in (run_id, "FINISHED", "depth", "0.25", "mlflow.runName", "2.5 s"))


def test_a_run_that_is_only_here_is_shown_too():
    """Nobody is asked for it."""
    run_id = offline(run_name="on a train")
    shown = told("runs", "show", run_id, "--tracking-uri", NOBODY)
    assert ("on a train", {"loss": 2.0}) == (shown["run_name"], shown["metrics"])


# --- compare -----------------------------------------------------------------------------------------


def test_runs_are_set_beside_each_other(place):
    """Last values, or the best; all columns, or what differs."""
    ids = [place.log("a", [3.0, 1.0, 2.0], lr=0.1, seed=1), place.log("b", [2.5], lr=0.2, seed=1)]
    rows = told("runs", "compare", *ids)
    assert [(ids[0], 2.0, 0.1), (ids[1], 2.5, 0.2)] == [
        (row["run_id"], row["loss"], row["lr"]) for row in rows
    ]
    rows = told("runs", "compare", *ids, "--aggregate", "best", "--only-differences")
    assert [1.0, 2.5] == [row["loss"] for row in rows]
    assert "seed" not in rows[0]
    rows = told("runs", "compare", *ids, "--aggregate", "best", "--metric", "loss=max")
    assert [3.0, 2.5] == [row["loss"] for row in rows]
    code, out, _ = mlpipeline("runs", "compare", *ids)
    assert 0 == code
    assert all(word in out for word in (*ids, "seed", "2.5"))


def test_a_value_that_is_missing_is_null(sqlite_place):
    """NaN is no number of JSON's."""
    ids = [sqlite_place.log("a", [1.0]), sqlite_place.log("b", [])]
    assert [1.0, None] == [row["loss"] for row in told("runs", "compare", *ids)]
    nan = sqlite_place.log("c", [float("nan")])
    assert {"loss": None} == told("runs", "show", nan)["metrics"]


def test_a_page_is_written_beside_the_table(place):
    """With a curve per metric that is compared; where it is, is said on standard error."""
    ids = [place.log("a", [3.0, 1.0]), place.log("b", [2.0, 1.5])]
    code, out, error = mlpipeline("runs", "compare", *ids, "--html", "runs.html", "--json")
    assert (0, "written: runs.html\n", 2) == (code, error, len(json.loads(out)))
    page = Path("runs.html").read_text("utf-8")
    assert (1, 2) == (page.count("<svg"), page.count("<polyline"))
    assert all(run_id in page for run_id in ids)


def test_runs_compare_before_they_are_delivered():
    """From their journals, curves too."""
    ids = [offline(run_name="a"), offline(run_name="b")]
    rows = told(
        "runs", "compare", *ids, "--aggregate", "min", "--tracking-uri", NOBODY, "--html", "runs.html"
    )
    assert [(ids[0], 1.0, 3), (ids[1], 1.0, 3)] == [
        (row["run_id"], row["loss"], row["depth"]) for row in rows
    ]
    assert 2 == Path("runs.html").read_text("utf-8").count("<polyline")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("runs", "show", "0" * 32), 2, "is unknown at sqlite:///"),
        (("runs", "compare", "0" * 32), 2, "is unknown at sqlite:///"),
        (("runs", "compare"), 2, "Missing argument"),
        (("runs", "show", "local-x"), 2, "has not reached MLflow yet; send it with: mlpipeline sync"),
        (("runs", "list", "--filter", "nonsense"), 2, "MLflow refuses the search"),
        (("runs", "list", "--max", "0"), 2, "--max"),
        (("runs", "list", "--tracking-uri", NOBODY), 1, f"{NOBODY} does not answer"),
        (("runs", "show", "abc", "--tracking-uri", "sqlite:///none.db"), 2, "there is no store at"),
    ],
)
def test_mistakes_are_one_line(sqlite_place, arguments, code, said):
    """And tell what to do."""
    found, out, error = mlpipeline(*arguments)
    assert (code, "") == (found, out)
    assert said in error
    assert "Traceback" not in error


def test_a_metric_that_no_run_has_is_named(sqlite_place):
    """With those that there are."""
    run_id = sqlite_place.log("a", [1.0])
    code, _, error = mlpipeline("runs", "compare", run_id, "--metric", "acc")
    assert (2, True) == (code, "none of these runs has a metric 'acc'; there are: loss" in error)
