"""`MLflowTracker` as its users meet it: every call, read back from a real MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.core.errors import ConfigError, UnloggableError, UsageError
from mlpipeline.tracking.account import DeliveryCounts


@pytest.fixture
def options(store_uri):
    """Keywords that send to this test's own store; a thread delivers, so no process is left behind."""
    return {"tracking_uri": store_uri, "experiment_name": "tests", "delivery": "thread"}


@pytest.fixture
def tracker(options):
    tracker = MLflowTracker(**options)
    yield tracker
    tracker.end_run()
    tracker.flush()


@pytest.fixture
def client(store_uri):
    return MlflowClient(store_uri, store_uri)


@pytest.fixture
def read(client, tmp_path):
    """Read an artifact of a run back as bytes."""

    def read(run_id, path):
        return Path(client.download_artifacts(run_id, path, str(tmp_path))).read_bytes()

    return read


# --- runs ------------------------------------------------------------------------------------------


def test_a_started_run_has_mlflows_id_name_and_tags(tracker, client):
    """start_run returns the id that MLflow's server picked; the run is there already."""
    run_id = tracker.start_run(
        run_name="experiment_1", tags={"model_type": "random_forest"}, description="why"
    )
    run = client.get_run(run_id)
    assert ("experiment_1", "RUNNING") == (run.info.run_name, run.info.status)
    assert {"model_type": "random_forest", "mlflow.note.content": "why"}.items() <= run.data.tags.items()
    assert run_id == tracker.run_id == tracker.active_run.run_id


def test_starting_twice_is_refused_with_the_ways_out(options):
    """A second start_run would lose the first; the message names both ways to go on."""
    tracker = MLflowTracker(**{**options, "delivery": "offline"})
    tracker.start_run()
    with pytest.raises(UsageError, match=r"still active; call end_run\(\) first, or open a nested run"):
        tracker.start_run()


CALLS = {
    "log_params": lambda tracker: tracker.log_params({"lr": 0.1}),
    "log_metrics": lambda tracker: tracker.log_metrics({"loss": 0.1}),
    "set_tags": lambda tracker: tracker.set_tags({"a": "b"}),
    "log_artifact": lambda tracker: tracker.log_artifact("nothing.txt"),
    "log_artifacts": lambda tracker: tracker.log_artifacts(["nothing.txt"]),
    "log_text": lambda tracker: tracker.log_text("text", "a.txt"),
    "log_dict": lambda tracker: tracker.log_dict({"a": 1}, "a.json"),
    "log_table": lambda tracker: tracker.log_table({"a": [1]}, "a.json"),
    "log_figure": lambda tracker: tracker.log_figure(object(), "a.png"),
    "log_dataset": lambda tracker: tracker.log_dataset(np.zeros(3)),
    "log_model": lambda tracker: tracker.log_model(object()),
    "register_model": lambda tracker: tracker.register_model("m"),
}


@pytest.mark.parametrize("call", CALLS)
def test_logging_without_a_run_says_what_to_do(call):
    """Nothing is lost silently, and no run springs up by itself."""
    with pytest.raises(UsageError, match=rf"{call}: no run is active; call start_run\(\) first"):
        CALLS[call](MLflowTracker())


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ZeroDivisionError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_block_ends_its_run_with_the_status_it_deserves(options, client, error, status):
    """And the exception goes on."""
    tracker = MLflowTracker(**options)
    with pytest.raises(error) if error else contextlib.nullcontext(), tracker:
        run_id = tracker.run_id
        if error:
            raise error
    tracker.flush()
    assert status == client.get_run(run_id).info.status


def test_an_unknown_status_is_refused(options):
    """MLflow would take the run for RUNNING."""
    tracker = MLflowTracker(**{**options, "delivery": "offline"})
    tracker.start_run()
    run = tracker.active_run
    with pytest.raises(UsageError, match="status 'DONE' is unknown; accepted are FINISHED, FAILED, KILLED"):
        run.end("DONE")


def test_ending_without_a_run_does_nothing():
    """So that a finally block may always end."""
    tracker = MLflowTracker()
    tracker.end_run()
    assert tracker.run_id is None
    assert tracker.active_run is None


def test_an_ended_run_takes_nothing_more(options):
    """What was logged after the end would contradict the status."""
    tracker = MLflowTracker(**{**options, "delivery": "offline", "run_name": "first"})
    tracker.start_run()
    run = tracker.active_run
    tracker.end_run()
    for log in (
        lambda: run.log_metrics({"loss": 1.0}),
        lambda: run.log_params({"lr": 1.0}),
        lambda: run.log_text("text", "a.txt"),
    ):
        with pytest.raises(
            UsageError, match=r"run first has ended \(FINISHED\); log before end\(\), or open"
        ):
            log()


def test_a_nested_run_is_a_child_and_the_active_run_inside(tracker, client):
    """Inside the block the tracker logs to the child, after it to the parent again."""
    parent_id = tracker.start_run("parent")
    with tracker.run("fold-1", tags={"fold": 1}) as run:
        assert run is tracker.active_run
        tracker.log_metrics({"loss": 1.0}, step=0)
        child_id = run.run_id
    tracker.log_metrics({"loss": 2.0}, step=0)
    tracker.end_run()
    tracker.flush()
    child, parent = client.get_run(child_id), client.get_run(parent_id)
    assert parent_id == child.data.tags["mlflow.parentRunId"]
    assert ("fold-1", "1") == (child.info.run_name, child.data.tags["fold"])
    assert (1.0, 2.0) == (child.data.metrics["loss"], parent.data.metrics["loss"])


def test_a_nested_run_fails_alone(tracker, client):
    """A fold that raises is FAILED; the parent goes on if the user catches it."""
    parent_id = tracker.start_run()
    with pytest.raises(ZeroDivisionError), tracker.run() as run:
        raise ZeroDivisionError
    tracker.end_run()
    tracker.flush()
    assert ("FAILED", "FINISHED") == (
        client.get_run(run.run_id).info.status,
        client.get_run(parent_id).info.status,
    )


def test_a_nested_run_of_a_continued_run_is_a_run_of_its_own(options, client):
    """A configuration that names a run to continue means the parent, not its children."""
    first = MLflowTracker(**options, run_name="parent")
    parent_id = first.start_run()
    first.end_run()
    first.flush()
    tracker = MLflowTracker(**options, run_name="parent", run_id=parent_id)
    with tracker:
        assert parent_id == tracker.run_id
        with tracker.run() as run:
            child_id = run.run_id
    tracker.flush()
    assert parent_id != child_id
    assert client.get_run(parent_id).info.run_name != client.get_run(child_id).info.run_name
    assert parent_id == client.get_run(child_id).data.tags["mlflow.parentRunId"]


def test_a_run_is_continued_by_its_local_id(options, client, deliver):
    """A local id is as good as MLflow's, once the run has reached MLflow."""
    offline = MLflowTracker(**{**options, "delivery": "offline"})
    local_id = offline.start_run()
    offline.log_metrics({"loss": 2.0})
    offline.end_run()
    assert local_id.startswith("local-")
    with pytest.raises(UsageError, match="has not reached MLflow yet; send it with: mlpipeline sync"):
        offline.start_run(run_id=local_id)
    deliver()
    again = MLflowTracker(**options)
    run_id = again.start_run(run_id=local_id)
    again.log_metrics({"loss": 1.0})
    again.end_run()
    again.flush()
    points = client.get_metric_history(run_id, "loss")
    assert [(0, 2.0), (1, 1.0)] == sorted((point.step, point.value) for point in points)


def test_a_start_goes_on_with_a_local_id_where_nobody_answers(options):
    """The destination is known to be down at once: nobody waits for connect_timeout_s."""
    tracker = MLflowTracker(**{**options, "tracking_uri": "http://127.0.0.1:9", "connect_timeout_s": 600})
    run_id = tracker.start_run()
    tracker.log_metrics({"loss": 1.0})
    assert run_id.startswith("local-")
    assert run_id == tracker.run_id, "an id never changes once it was read"
    assert 1 == tracker.flush().pending
    tracker.end_run()


# --- queries ---------------------------------------------------------------------------------------


def test_a_search_waits_for_what_is_on_its_way(tracker):
    """Its own last point is found, although delivery had no reason to hurry."""
    tracker._open(None, {"run_name": "one"})
    for step in range(3000):
        tracker.log_metrics({"loss": float(step)}, step=step)
    (run,) = tracker.search_runs("metrics.loss = 2999")
    assert ("one", 2999.0) == (run.run_name, run.metrics["loss"])


def test_a_search_waits_for_other_runs_of_this_process(options):
    """A callback's run, or another tracker's, is as much on its way as the tracker's own."""
    with MLflowTracker(**options, run_name="another's") as another:
        for step in range(3000):
            another.log_metrics({"loss": float(step)}, step=step)
    found = MLflowTracker(**options).search_runs("metrics.loss = 2999")
    assert ["another's"] == [run.run_name for run in found]


def test_a_search_is_not_held_up_by_a_destination_that_is_away(options):
    """What waits for another server is not what is asked for."""
    with MLflowTracker(**{**options, "tracking_uri": "http://127.0.0.1:9"}) as lost:
        lost.log_metrics({"loss": 1.0})
    assert [] == MLflowTracker(**options).search_runs()


def test_runs_compare_by_their_local_ids(options, deliver):
    """One row per run; local ids are resolved, and unsent ones are read here."""
    local_ids = []
    tracker = MLflowTracker(**{**options, "delivery": "offline"})
    for depth in (3, 7):
        local_ids.append(tracker.start_run(run_name=f"depth-{depth}"))
        tracker.log_params({"depth": depth})
        tracker.log_metrics({"accuracy": depth / 10})
        tracker.end_run()
    assert local_ids == list(tracker.compare_runs(local_ids).index)
    deliver()
    table = tracker.compare_runs(local_ids)
    assert [run.run_id for run in tracker.search_runs(order_by=["metrics.accuracy ASC"])] == list(table.index)
    assert [("depth-3", 3, 0.3), ("depth-7", 7, 0.7)] == list(
        zip(table["run_name"], table["depth"], table["accuracy"], strict=True)
    )


def test_the_info_of_the_active_run_is_asked_without_an_id(tracker):
    """After its end it is that of the run that ended last: the outermost, not a nested one."""
    run_id = tracker.start_run("one")
    with tracker.run("nested"):
        assert "nested" == tracker.get_run_info().run_name
    tracker.log_metrics({"ndcg@3": 0.5})
    assert (run_id, {"ndcg@3": 0.5}) == (tracker.get_run_info().run_id, tracker.get_run_info().metrics)
    tracker.end_run()
    assert ("one", "FINISHED") == (tracker.get_run_info().run_name, tracker.get_run_info().status)


def test_the_info_of_no_run_is_the_users_mistake():
    """Before the first run there is nothing to tell about."""
    with pytest.raises(UsageError, match="needs a run id: this tracker has recorded no run"):
        MLflowTracker().get_run_info()
    disabled = MLflowTracker(enabled=False)
    disabled.start_run()
    with pytest.raises(UsageError, match="needs a run id: this tracker has recorded no run"):
        disabled.get_run_info()


# --- delivery --------------------------------------------------------------------------------------


def test_a_flush_counts_what_was_delivered(tracker):
    """A point of a metric, a call of log_params or set_tags, a file: one each."""
    tracker.start_run()
    tracker.log_params({"a": 1, "b": 2})
    tracker.set_tags({"c": "d"})
    tracker.log_metrics({"loss": 1.0, "acc": 2.0}, step=0)
    tracker.log_text("text", "a.txt")
    assert DeliveryCounts(delivered=5) == tracker.flush()


def test_a_flush_counts_what_waits(options):
    """Offline nothing moves, and nobody waits for it."""
    tracker = MLflowTracker(**{**options, "delivery": "offline"})
    tracker.start_run()
    tracker.log_metrics({"loss": 1.0, "acc": 2.0}, step=0)
    tracker.end_run()
    assert DeliveryCounts(pending=3) == tracker.flush(), "two points and the end"


@pytest.mark.parametrize("way", ["keyword", "environment"])
def test_a_disabled_tracker_leaves_no_trace(way, store_uri, home, monkeypatch):
    """No file, no thread, no process, no id; every call is accepted and does nothing."""
    if way == "environment":
        monkeypatch.setenv("MLPIPELINE_ENABLED", "false")
    tracker = MLflowTracker(tracking_uri=store_uri, **({"enabled": False} if way == "keyword" else {}))
    store = Path(store_uri.removeprefix("sqlite:///"))
    before = store.stat().st_mtime_ns, set(threading.enumerate())
    assert tracker.start_run("name", tags={"a": "b"}) is None
    assert not tracker.active_run.is_enabled
    for call in CALLS.values():
        assert call(tracker) is None
    with tracker.run("nested") as run:
        run.log_metrics({"loss": 1.0})
        assert run.run_id is None
    assert run.model_uri is None
    assert DeliveryCounts() == tracker.flush()
    assert tracker.run_id is None
    tracker.end_run()
    assert before == (store.stat().st_mtime_ns, set(threading.enumerate()))
    assert not home.exists()
    assert [] == os.listdir()


def test_a_run_left_open_prints_nothing_before_its_end(tracker, capfd):
    """The library prints one line per root run, and only when the process ends."""
    tracker.start_run()
    tracker.log_metrics({"loss": 1.0})
    tracker.end_run()
    tracker.flush()
    assert ("", "") == capfd.readouterr()


# --- params and metrics ----------------------------------------------------------------------------


def test_params_of_any_type_are_kept_and_secrets_are_not(tracker, client):
    """Nested names get dots; what looks like a secret is masked before it reaches the disk."""
    run_id = tracker.start_run()
    tracker.log_params({"net": {"layers": [64, 32]}, "path": Path("data"), "api_key": "abc123", 7: None})
    tracker.flush()
    expected = {"net.layers": "[64, 32]", "path": "data", "api_key": "[redacted]", "7": "None"}
    assert expected == client.get_run(run_id).data.params


def test_a_very_long_param_is_whole_in_an_artifact(tracker, client, read):
    """MLflow cuts at 6000 characters; here the param says where the rest is."""
    text = "0123456789" * 2000
    run_id = tracker.start_run()
    tracker.log_params({"prompt": text, "lr": 0.1})
    tracker.log_params({"second": text[::-1]})
    tracker.flush()
    params = client.get_run(run_id).data.params
    assert re.match(r"sha256:[0-9a-f]{16} \(20000 chars, whole in params_full.json\): 0123", params["prompt"])
    assert "0.1" == params["lr"]
    assert {"prompt": text, "second": text[::-1]} == json.loads(read(run_id, "params_full.json"))


def test_a_long_secret_is_nowhere(tracker, home, client, store_uri):
    """Neither in MLflow, nor in the artifact of long params, nor in the journal."""
    secret = "hunter2-" * 1000
    run_id = tracker.start_run()
    tracker.log_params({"db_password": secret})
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if b"hunter2" in path.read_bytes()]
    tracker.flush()
    assert {"db_password": "[redacted]"} == client.get_run(run_id).data.params
    assert [] == client.list_artifacts(run_id)


def test_a_changed_param_is_drift_and_no_error(tracker, client):
    """The first value stands, the later one is a tag."""
    run_id = tracker.start_run()
    tracker.log_params({"lr": 0.1})
    tracker.log_params({"lr": 0.2})
    tracker.flush()
    run = client.get_run(run_id)
    assert ("0.1", "0.2") == (run.data.params["lr"], run.data.tags["mlpipeline.drift.lr"])


def test_a_metric_that_is_no_number_is_refused_where_it_stands(options):
    """The message says what to do with text."""
    with (
        MLflowTracker(**{**options, "delivery": "offline"}) as tracker,
        pytest.raises(UnloggableError, match=r"metric 'loss' is 'low' \(str\), not a number; log text with"),
    ):
        tracker.log_metrics({"loss": "low"})


def test_tags_that_mlflow_would_refuse_do_not_cost_the_run(either_store):
    """Odd and long names come back as they were given; of a long value MLflow keeps 8000 characters."""
    tags = {"ndcg@3": "x", "t" * 300: "y", "long": "z" * 20_000, "plain": "a"}
    tracker = MLflowTracker(
        tracking_uri=either_store, experiment_name="odd-tags", delivery="thread", tags=tags
    )
    with tracker:
        tracker.log_metrics({"loss": 1.0})
    run = tracker.get_run_info()
    assert {**tags, "long": "z" * 8000}.items() <= run.tags.items()
    stored = MlflowClient(either_store).get_run(run.run_id).data.tags
    assert "x" == stored["ndcg__at__3"]
    assert ("FINISHED", {"loss": 1.0}) == (run.status, run.metrics)


# --- files -----------------------------------------------------------------------------------------


def test_a_table_reads_back_with_mlflow(tracker, client, store_uri):
    """A DataFrame and a mapping of columns; MLflow's pages show both as tables."""
    import mlflow

    frame = pd.DataFrame({"name": ["a", "b"], "value": [1, 2]})
    run_id = tracker.start_run()
    tracker.log_table(frame, "tables/frame.json")
    tracker.log_table({"name": ["a", "b"], "value": [1, 2]}, "mapping.json")
    tracker.flush()
    tag = json.loads(client.get_run(run_id).data.tags["mlflow.loggedArtifacts"])
    assert ["tables/frame.json", "mapping.json"] == [table["path"] for table in tag]
    experiment_id = client.get_run(run_id).info.experiment_id
    mlflow.set_tracking_uri(store_uri)  # load_table searches there, whatever its client says
    for path in ("tables/frame.json", "mapping.json"):
        pd.testing.assert_frame_equal(frame, client.load_table(experiment_id, path, [run_id]))


def test_texts_and_structures_become_files(tracker, read):
    """The ending chooses between JSON and YAML; what JSON cannot say is its text."""
    run_id = tracker.start_run()
    tracker.log_text("grüße", "notes/hello.txt")
    tracker.log_dict({"a": [1, 2], "path": Path("x")}, "a.json")
    tracker.log_dict({"b": 1, "a": [1, 2]}, "a.yaml")
    tracker.flush()
    assert "grüße" == read(run_id, "notes/hello.txt").decode()
    assert {"a": [1, 2], "path": "x"} == json.loads(read(run_id, "a.json"))
    assert b"b: 1\na:\n- 1\n- 2\n" == read(run_id, "a.yaml")


def test_artifacts_are_files_and_folders_as_they_were(tracker, client, read):
    """A list keeps their names; one folder alone gives its content, as with MLflow."""
    Path("plots").mkdir()
    Path("plots/a.txt").write_text("first")
    Path("model.pkl").write_bytes(b"model")
    run_id = tracker.start_run()
    tracker.log_artifacts(["model.pkl", "plots/"])
    tracker.log_artifacts("plots", "content")
    Path("plots/a.txt").write_text("changed")
    tracker.flush()
    assert b"model" == read(run_id, "model.pkl")
    assert b"first" == read(run_id, "plots/a.txt")
    assert ["content/a.txt"] == [item.path for item in client.list_artifacts(run_id, "content")]


def test_an_artifact_that_is_not_there_is_refused_where_it_stands(options):
    """The user's mistake, told at once."""
    with (
        MLflowTracker(**{**options, "delivery": "offline"}) as tracker,
        pytest.raises(UnloggableError, match=r"cannot log 'gone\.pkl': there is no such file or folder"),
    ):
        tracker.log_artifact("gone.pkl")


def test_a_figure_is_a_file_and_at_a_step_one_of_a_series(tracker, client, read):
    """The series is named as MLflow's own log_image names it."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    run_id = tracker.start_run()
    tracker.log_figure(figure, "plots/loss.png")
    tracker.log_figure(figure, "plots/cm.png", step=3)
    tracker.flush()
    assert read(run_id, "plots/loss.png").startswith(b"\x89PNG")
    images = [item.path for item in client.list_artifacts(run_id, "images")]
    theirs = client.create_run(client.get_run(run_id).info.experiment_id).info.run_id
    client.log_image(theirs, np.zeros((8, 8, 3), dtype=np.uint8), key="plots/cm", step=3)
    expected = [item.path for item in client.list_artifacts(theirs, "images")]
    assert sorted(map(shape_of, expected)) == sorted(map(shape_of, images))
    small, whole = sorted(images, key=lambda path: path.endswith(".png"))
    assert small == whole.replace(".png", "+compressed.webp"), "MLflow's pages find the one by the other"
    assert read(run_id, whole) == read(run_id, "plots/cm.png")
    assert b"WEBP" == read(run_id, small)[8:12]
    assert len(read(run_id, small)) < len(read(run_id, whole))
    tag = "mlflow.loggedImages"
    assert client.get_run(theirs).data.tags[tag].lower() == client.get_run(run_id).data.tags[tag]


def shape_of(image):
    """Return an image's name without what differs from one to the next: its time and its random part."""
    return re.sub(r"timestamp(.)\d+(.)[0-9a-f-]+", r"timestamp\1<ms>\2<id>", image)


def test_a_dataset_is_told_apart_by_its_whole_content(tracker, client):
    """One changed value is another digest; columns and rows are there to read."""
    frame = pd.DataFrame({"x": np.arange(10_000.0), "label": ["a", "b"] * 5000})
    changed = frame.copy()
    changed.loc[5001, "x"] = -1.0
    run_id = tracker.start_run()
    tracker.log_dataset(frame, name="train", context="training", source="s3://bucket/train.parquet")
    tracker.log_dataset(changed, name="changed")
    tracker.flush()
    inputs = {item.dataset.name: item for item in client.get_run(run_id).inputs.dataset_inputs}
    train, other = inputs["train"], inputs["changed"]
    assert train.dataset.digest != other.dataset.digest
    assert [("mlflow.data.context", "training")] == [(tag.key, tag.value) for tag in train.tags]
    assert 10_000 == json.loads(train.dataset.profile)["num_rows"]
    assert {"uri": "s3://bucket/train.parquet"} == json.loads(train.dataset.source)
    columns = json.loads(train.dataset.schema)["mlflow_colspec"]
    assert ["x", "label"] == [column["name"] for column in columns]


# --- models ----------------------------------------------------------------------------------------


def forest(data, labels):
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=5, random_state=0).fit(data, labels)


def pipeline(data, labels):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(data, labels)


def boosted(data, labels):
    from xgboost import XGBClassifier

    return XGBClassifier(n_estimators=3, max_depth=2).fit(data, labels)


@pytest.mark.parametrize(
    ("make", "flavor"), [(forest, "sklearn"), (pipeline, "sklearn"), (boosted, "xgboost")]
)
def test_a_registered_model_reloads_by_its_alias_and_predicts_the_same(
    make, flavor, tracker, client, store_uri
):
    """With plain MLflow, in a session that knows nothing of this package."""
    import mlflow

    random = np.random.default_rng(0)
    data = random.normal(size=(60, 4))
    labels = (data[:, 0] > 0).astype(int)
    model = make(data, labels)
    tracker.config = tracker.config.replace(
        register_model=True, model_name="churn", model_alias="champion", model_stage="Staging"
    )
    run_id = tracker.start_run()
    tracker.log_model(model, input_example=data[:5])
    assert 1 == tracker.active_run.model_version
    mlflow.set_tracking_uri(store_uri)
    loaded = getattr(mlflow, flavor).load_model("models:/churn@champion")
    assert np.array_equal(model.predict_proba(data), loaded.predict_proba(data))
    assert type(model) is type(loaded)
    for alias in ("champion", "staging"):
        assert run_id == client.get_model_version_by_alias("churn", alias).run_id
    version = client.get_model_version("churn", "1")
    assert ("Staging", "Staging") == (version.tags["stage"], version.current_stage)
    assert mlflow.models.get_model_info("models:/churn@champion").signature is not None


def test_registering_gives_the_version_and_a_second_one_the_next(tracker):
    """Without the option, a model is registered by one call."""
    data = np.random.default_rng(0).normal(size=(20, 2))
    tracker.start_run()
    tracker.log_model(pipeline(data, data[:, 0] > 0))
    assert [1, 2] == [tracker.register_model("churn") for _ in range(2)]


def test_a_model_is_left_unregistered_by_an_empty_name(tracker, client):
    """Every checkpoint of a training is logged, and only the final model becomes a version."""
    data = np.random.default_rng(0).normal(size=(20, 2))
    tracker.config = tracker.config.replace(register_model=True, model_name="churn")
    tracker.start_run()
    tracker.log_model(pipeline(data, data[:, 0] > 0), "checkpoint", register_as="")
    tracker.log_model(pipeline(data, data[:, 0] > 0))
    tracker.flush()
    assert [1] == [int(version.version) for version in client.search_model_versions("name = 'churn'")]


def test_registering_without_a_model_is_the_users_mistake(options):
    """There is nothing to register."""
    with (
        MLflowTracker(**{**options, "delivery": "offline"}) as tracker,
        pytest.raises(UsageError, match="register_model needs a model: call log_model first"),
    ):
        tracker.register_model("churn")


# --- what MLflow would refuse, told at once --------------------------------------------------------


@pytest.mark.parametrize("name", ["team/churn", "a:b", "..", " "])
def test_a_registered_name_that_mlflow_refuses_is_refused_at_once(name, options):
    """In the configuration, and at the call that registers."""
    with pytest.raises(ConfigError, match="model_name="):
        MLflowTracker(register_model=True, model_name=name)
    data = np.random.default_rng(0).normal(size=(20, 2))
    with MLflowTracker(**{**options, "delivery": "offline"}) as tracker:
        tracker.log_model(pipeline(data, data[:, 0] > 0))
        before = tracker.flush()
        with pytest.raises(ConfigError, match="model_name="):
            tracker.register_model(name)
        with pytest.raises(ConfigError, match="model_name="):
            tracker.log_model(pipeline(data, data[:, 0] > 0), register_as=name)
        assert before == tracker.flush(), "nothing was recorded for it"


@pytest.mark.parametrize("name", ["epoch=1-loss=0.5", "a/b", "m:1", "50%", "it's", ""])
def test_a_model_name_that_mlflow_refuses_is_refused_at_once(name, options):
    """The courier would hear it from MLflow, when the model is gone."""
    with (
        MLflowTracker(**{**options, "delivery": "offline"}) as tracker,
        pytest.raises(UnloggableError, match="cannot log a model as"),
    ):
        tracker.log_model(pipeline(np.eye(4), [0, 1, 0, 1]), name)


@pytest.mark.parametrize("uri", ["htp://host:5000", "host:5000", "sqlite://mlflow.db"])
def test_a_uri_that_mlflow_cannot_open_is_refused_at_once(uri):
    """The message says what is accepted."""
    with pytest.raises(ConfigError, match=re.escape(f"tracking_uri={uri!r}: expected")):
        MLflowTracker(tracking_uri=uri)


def test_a_tracker_takes_what_a_configuration_may_be(tmp_path):
    """A configuration, a mapping, a file; keywords win."""
    file = tmp_path / "train.yaml"
    file.write_text("mlflow:\n  experiment_name: churn\n  run_name: file\n")
    config = MLflowConfig(experiment_name="churn", run_name="file")
    for given in (config, {"experiment_name": "churn", "run_name": "file"}, file):
        tracker = MLflowTracker(given, run_name="keyword")
        assert ("churn", "keyword") == (tracker.config.experiment_name, tracker.config.run_name)


# --- nobody's state is touched ---------------------------------------------------------------------


def test_mlflows_fluent_state_and_the_environment_stay_as_they_were(tracker, store_uri):
    """No active run of MLflow's, no tracking URI set, no variable written."""
    import mlflow

    before = dict(os.environ), mlflow.get_tracking_uri(), logging.getLogger("mlflow").level
    tracker.start_run()
    tracker.log_metrics({"loss": 1.0})
    tracker.flush()
    assert mlflow.active_run() is None
    assert before == (dict(os.environ), mlflow.get_tracking_uri(), logging.getLogger("mlflow").level)


def test_two_trackers_have_a_run_each(options, client):
    """There is no global run that one would take from the other."""
    first, second = MLflowTracker(**options), MLflowTracker(**options)
    ids = first.start_run(f"a-{uuid.uuid4().hex[:4]}"), second.start_run("b")
    first.log_metrics({"loss": 1.0})
    second.log_metrics({"loss": 2.0})
    for tracker in (first, second):
        tracker.end_run()
        tracker.flush()
    assert [1.0, 2.0] == [client.get_run(run_id).data.metrics["loss"] for run_id in ids]


def test_texts_that_no_database_stores_are_escaped(either_store, mlflow_client):
    """A lone surrogate, as from a file name that is no UTF-8, would keep the whole run here for ever."""
    options = {
        "experiment_name": "texts",
        "delivery": "thread",
        "run_name": "a\udc80",
        "description": "d\udc80",
    }
    with MLflowTracker(tracking_uri=either_store, tags={"at": "x\udc80"}, **options) as tracker:
        tracker.set_tags({"later": "y\0\udc80"})
    assert 0 == tracker.flush().pending
    run = mlflow_client(either_store).get_run(tracker.get_run_info().run_id)
    assert ("a\\udc80", "x\\udc80", "y\\x00\\udc80", "d\\udc80") == (
        run.info.run_name,
        run.data.tags["at"],
        run.data.tags["later"],
        run.data.tags["mlflow.note.content"],
    )


def test_what_a_thread_nests_is_its_own() -> None:
    """Folds trained at once do not get each other's values, nor does the thread that began the run."""
    tracker = MLflowTracker(delivery="offline")
    together = threading.Barrier(3, timeout=30)
    seen = []

    def fold() -> None:
        with tracker.run() as mine:
            together.wait()
            seen.append(tracker.active_run is mine)
            together.wait()
        seen.append(tracker.active_run is outer)

    with tracker:
        outer = tracker.active_run
        threads = [threading.Thread(target=fold) for _ in range(2)]
        for thread in threads:
            thread.start()
        together.wait()
        seen.append(tracker.active_run is outer)
        together.wait()
        for thread in threads:
            thread.join()
        with tracker.run() as inner:
            # Who helps with a nested run is not to ask for it.
            helper = threading.Thread(target=lambda: seen.append(tracker.active_run is inner))
            helper.start()
            helper.join()
    assert [True] * 6 == seen
    assert tracker.active_run is None
