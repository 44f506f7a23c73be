"""The fixtures hold what they promise: every other test stands on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlpipeline.testing.places import isolated


def test_a_store_is_ready_and_empty(store_uri, mlflow_client):
    """A copy of the template has the Default experiment and no run."""
    client = mlflow_client(store_uri)

    assert ["Default"] == [experiment.name for experiment in client.search_experiments()]
    assert [] == list(client.search_runs(["0"]))


def test_what_one_store_gets_no_other_copy_sees(store_uri, copy_store, tmp_path, mlflow_client):
    """Writing to a copy changes neither the template nor a later copy."""
    mlflow_client(store_uri).create_experiment("written here")

    later = copy_store(tmp_path / "later.db", str(tmp_path))

    assert mlflow_client(store_uri).get_experiment_by_name("written here") is not None
    assert mlflow_client(later).get_experiment_by_name("written here") is None


def test_artifacts_of_a_store_stay_in_the_folder_of_its_test(store_uri, tmp_path, mlflow_client):
    """Experiment 0 does not point to the folder where the template was made."""
    client = mlflow_client(store_uri)
    run = client.create_run("0")
    client.log_text(run.info.run_id, "hello", "note.txt")

    (written,) = tmp_path.rglob("note.txt")

    assert "hello" == written.read_text()


def test_the_template_is_made_once(sqlite_template, request):
    """It lives in pytest's cache, where the next session finds it."""
    assert request.config.cache.mkdir("mlflow-store") == sqlite_template.parent
    assert sqlite_template.is_file()


def test_a_test_stands_in_an_empty_folder_of_its_own(home):
    """Neither the working directory nor the journal home is anyone else's."""
    assert home.with_name("cwd") == Path.cwd()
    assert [] == list(Path.cwd().iterdir())
    assert str(home) == os.environ["MLPIPELINE_HOME"]
    assert not home.exists()


def test_no_setting_of_the_machine_is_left():
    """Only the journal home and the switch against telemetry are set."""
    ours = {name for name in os.environ if name.startswith(("MLFLOW_", "MLPIPELINE_"))}

    assert {"MLFLOW_DISABLE_TELEMETRY", "MLPIPELINE_HOME"} == ours


def test_fluent_state_ends_with_its_surroundings(tmp_path, copy_store):
    """The run, URI and experiment that a test leaves behind are gone for the next."""
    import mlflow

    with isolated(tmp_path / "inner"):
        mlflow.set_tracking_uri(copy_store(tmp_path / "fluent.db", str(tmp_path)))
        experiment_id = mlflow.set_experiment("left behind").experiment_id
        run_id = mlflow.start_run().info.run_id

    assert mlflow.active_run() is None
    assert str(tmp_path / "fluent.db") not in mlflow.get_tracking_uri()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert "MLFLOW_EXPERIMENT_ID" not in os.environ
    assert experiment_id != mlflow.tracking.fluent._get_experiment_id()
    assert "FINISHED" == mlflow.MlflowClient(f"sqlite:///{tmp_path}/fluent.db").get_run(run_id).info.status


@pytest.mark.server
@pytest.mark.process
def test_a_server_keeps_runs_and_artifacts(server, mlflow_client, tmp_path):
    """A real server creates an experiment, and artifacts go through it."""
    client = mlflow_client(server.uri)
    experiment_id = client.create_experiment("fixtures")
    run = client.create_run(experiment_id)
    client.log_text(run.info.run_id, "hello", "note.txt")

    downloaded = client.download_artifacts(run.info.run_id, "note.txt", str(tmp_path))

    assert "fixtures" == client.get_experiment(experiment_id).name
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    assert "hello" == Path(downloaded).read_text()
