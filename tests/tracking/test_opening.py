"""Opening a run beside the user's own MLflow: honoured, never touched."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking import closing
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.recorded import Recorded

if TYPE_CHECKING:
    from pathlib import Path

Deliver = Callable[[], None]
OFFLINE = MLflowConfig(delivery="offline")


def test_inside_a_users_run_it_is_added_to_and_never_ended(store_uri: str, deliver: Deliver) -> None:
    """`with mlflow.start_run():` is the user's: our metrics land in it, its end stays the user's."""
    mlflow.set_tracking_uri(store_uri)
    mlflow.set_experiment("theirs")
    with mlflow.start_run() as theirs:
        run = open_run(OFFLINE)
        assert theirs.info.run_id == run.run_id
        assert run in closing.watched(), "the exit would not wait for it"
        run.log_metrics({"loss": 0.5}, step=0)
        run.end("FAILED")
        deliver()
        seen = MlflowClient().get_run(theirs.info.run_id)
        assert ("RUNNING", {"loss": 0.5}) == (seen.info.status, seen.data.metrics)
        assert theirs.info.run_id == mlflow.active_run().info.run_id
    assert "FINISHED" == MlflowClient().get_run(theirs.info.run_id).info.status
    assert 1 == len(MlflowClient().search_runs([theirs.info.experiment_id]))


def test_the_default_store_is_the_same_in_a_folder_with_spaces(
    copy_store: Callable[[Path, str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """MLflow spells its default URI with %20 there; the user's active run is in it all the same."""
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    copy_store(folder / "mlflow.db", str(folder / "mlruns"))
    with mlflow.start_run() as theirs:
        run = open_run(OFFLINE)
        assert theirs.info.run_id == run.run_id
        run.end()


def test_another_destination_gets_a_run_of_its_own_with_one_warning(
    store_uri: str, tmp_path: Path, copy_store: Callable[[Path, str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """The user's active run lives elsewhere than the configuration says."""
    other = copy_store(tmp_path / "other.db", str(tmp_path))
    mlflow.set_tracking_uri(store_uri)
    with mlflow.start_run() as theirs:
        run = open_run(OFFLINE.replace(tracking_uri=other))
        assert run.owns_run
        run.end()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert 1 == len(warnings)
    assert theirs.info.run_id in warnings[0]


def test_the_users_set_tracking_uri_and_set_experiment_are_honoured(store_uri: str, deliver: Deliver) -> None:
    """What the user told MLflow holds for us, below keywords and above the environment."""
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    mlflow.set_tracking_uri(store_uri)
    experiment = mlflow.set_experiment("chosen")
    run = open_run(OFFLINE)
    run.log_metrics({"loss": 1.0}, step=0)
    run.end()
    deliver()
    assert 1 == len(MlflowClient().search_runs([experiment.experiment_id]))


def test_mlflow_run_id_is_taken_by_the_first_root_run_only(store_uri: str, deliver: Deliver) -> None:
    """It continues that run; the next training gets a run of its own. A fresh process, as it is taken once."""
    client = MlflowClient(store_uri, store_uri)
    existing = client.create_run("0")
    code = """
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run
for name in ("first", "second"):
    run = open_run(MLflowConfig())
    run.log_metrics({name: 1.0}, step=0)
    run.end()
"""
    environ = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store_uri,
        "MLPIPELINE_DELIVERY": "offline",
        "MLFLOW_RUN_ID": existing.info.run_id,
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environ, capture_output=True)
    deliver()
    assert {"first": 1.0} == client.get_run(existing.info.run_id).data.metrics
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    assert experiment is not None
    assert [{"second": 1.0}] == [run.data.metrics for run in client.search_runs([experiment.experiment_id])]


def test_nothing_of_the_users_mlflow_is_changed(store_uri: str, deliver: Deliver) -> None:
    """No active run, no URI, no experiment, no environment variable is left behind."""
    before = dict(os.environ)
    with MLflowTracker(OFFLINE.replace(tracking_uri=store_uri)) as tracker:
        tracker.log_metrics({"loss": 1.0})
    assert before == dict(os.environ)
    assert mlflow.active_run() is None
    assert not mlflow.is_tracking_uri_set()


def test_a_disabled_run_writes_no_file_and_has_no_id(home: Path) -> None:
    """`enabled=False` or MLPIPELINE_ENABLED=false: every call is a no-op."""
    os.environ["MLPIPELINE_ENABLED"] = "false"
    run = open_run(MLflowConfig())
    run.log_params({"a": 1})
    run.log_metrics({"loss": 1.0})
    run.log_text("x", "x.txt")
    run.end()
    assert run.run_id is None
    assert not home.exists()


def test_two_trainings_in_two_threads_to_two_stores_stay_apart(
    store_uri: str, tmp_path: Path, copy_store: Callable[[Path, str], str], deliver: Deliver
) -> None:
    """Each thread's configuration is its own; nothing global is in between."""
    stores = [store_uri, copy_store(tmp_path / "second.db", str(tmp_path / "second"))]

    def train(number: int) -> None:
        with MLflowTracker(
            OFFLINE.replace(tracking_uri=stores[number], experiment_name=f"e{number}")
        ) as tracker:
            for step in range(100):
                tracker.log_metrics({"loss": number * 1000 + step}, step=step)

    threads = [threading.Thread(target=train, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver()
    for number, uri in enumerate(stores):
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name(f"e{number}")
        assert experiment is not None
        assert client.get_experiment_by_name(f"e{1 - number}") is None
        (found,) = client.search_runs([experiment.experiment_id])
        points = client.get_metric_history(found.info.run_id, "loss")
        assert [number * 1000 + step for step in range(100)] == [point.value for point in points]


@pytest.mark.parametrize("bad", ["high", None, [1, 2], {"a": 1}])
def test_a_metric_that_is_no_number_raises_where_it_was_logged(bad: object) -> None:
    """The message names the metric, what was given and what to do."""
    run = open_run(OFFLINE)
    with pytest.raises(UnloggableError, match=r"metric 'loss' is .*not a number"):
        run.log_metrics({"acc": 1.0, "loss": bad})
    run.end()


def test_logging_to_an_ended_run_raises_and_says_what_to_do() -> None:
    """The user's mistake, where it was made."""
    run = open_run(OFFLINE)
    run.end()
    for call in (
        lambda: run.log_metrics({"a": 1}),
        lambda: run.log_params({"a": 1}),
        lambda: run.set_tags({"a": 1}),
    ):
        with pytest.raises(UsageError, match="has ended"):
            call()


def test_one_callback_in_two_threads_at_once_raises() -> None:
    """An instance records one training at a time."""
    face = Recorded(OFFLINE)
    face._open()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            face._open()
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    face._close()
    assert 1 == len(errors)
    assert "an instance of its own" in str(errors[0])


def test_a_missing_file_raises_where_it_was_logged() -> None:
    """Nothing is guessed and nothing is lost."""
    run = open_run(OFFLINE)
    with pytest.raises(UnloggableError, match="no such file"):
        run.log_artifact("missing.txt")
    run.end()


def test_nonfinite_raise_stops_at_the_first_bad_value() -> None:
    """The policy that asks for it gets an error that names the metric."""
    run = open_run(OFFLINE.replace(nonfinite="raise"))
    with pytest.raises(UnloggableError, match="metric 'ndcg@3' is nan"):
        run.log_metrics({"ndcg@3": float("nan")}, step=1)
    run.end()


@pytest.mark.parametrize("bad", ["", "/abs.txt", "../out.txt", "a/../../b.txt", "..", "a\\..\\b.txt"])
def test_a_name_outside_of_the_artifacts_raises_where_it_was_given(bad: str) -> None:
    """MLflow's server would refuse it when nobody listens any more."""
    run = open_run(OFFLINE)
    with pytest.raises(UnloggableError, match="below the run's artifacts"):
        run.log_text("x", bad)
    run.end()


def test_a_child_is_recorded_where_its_parent_is_and_has_its_source(
    store_uri: str, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also in a worker process that was started with another environment, by another program."""
    parent = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    handed = pickle.loads(pickle.dumps(parent))
    monkeypatch.setenv("MLPIPELINE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "argv", ["worker.py"])
    child = open_run(MLflowConfig(), parent=handed)
    assert (home / "runs" / child.uid).exists()
    assert not (tmp_path / "elsewhere").exists()
    assert parent._header["source"] == child._header["source"]
    for run in (child, handed, parent):
        run.end()


def test_a_pickled_run_knows_its_id_where_nothing_else_does(
    store_uri: str, home: Path, deliver: Deliver
) -> None:
    """On another machine there is no journal home to ask: it says what was known, and never waits."""
    run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    early = pickle.dumps(run)
    run.end()
    deliver()
    late = pickle.dumps(run)
    home.rename(home.with_name("another machine"))
    (stored,) = MlflowClient(store_uri).search_runs(["0", "1"])
    assert stored.info.run_id == pickle.loads(late).run_id
    unknowing = pickle.loads(early)
    unknowing.config = unknowing.config.replace(delivery="auto")  # whose courier would be waited for
    assert (f"local-{run.uid}", None) == (unknowing.run_id, unknowing.model_uri)
    assert not home.exists()
