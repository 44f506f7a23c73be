"""The demo, run as a user would, and read back through plain MLflow."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlpipeline.cli import main as cli

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKSTART = EXAMPLES / "quickstart.py"


@pytest.fixture
def store(copy_store):
    """URI of MLflow's default store, ready in the working directory; absolute, as MLflow keeps stores by URI."""
    return copy_store(Path.cwd() / "mlflow.db", str(Path.cwd() / "mlruns"))


@pytest.fixture
def runs_of(store):
    """The runs of an experiment."""
    client = MlflowClient(store, store)
    return lambda name: client.search_runs([client.get_experiment_by_name(name).experiment_id])


@pytest.mark.process
def test_the_demos_run_is_whole_in_mlflow(store) -> None:
    """Params, history per step and per epoch without gaps, dataset, signature, version, alias, status."""
    done = subprocess.run(
        [sys.executable, QUICKSTART], capture_output=True, text=True, timeout=110, check=True
    )
    assert "registered as version 1" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("mlpipeline:")]
    assert 1 == len(lines)
    assert "digits v1" in lines[0]
    mlflow.set_tracking_uri(store)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("digits")
    (run,) = client.search_runs([experiment.experiment_id])
    assert "FINISHED" == run.info.status
    assert {
        "lr": "0.01",
        "optimizer.name": "Adam",
        "parameters.total": "4810",
    }.items() <= run.data.params.items()

    def steps(key: str) -> list[int]:
        return sorted(point.step for point in client.get_metric_history(run.info.run_id, key))

    assert list(range(5 * 24)) == steps("train_loss") == steps("epoch")
    assert [24 * epoch + 23 for epoch in range(5)] == steps("val_loss")
    assert ["training", "validation"] == sorted(item.dataset.name for item in run.inputs.dataset_inputs)
    version = client.get_model_version_by_alias("digits", "champion")
    assert "1" == str(version.version)
    signature = mlflow.models.get_model_info("models:/digits@champion").signature
    assert (-1, 64) == signature.inputs.inputs[0].shape
    assert (-1, 10) == signature.outputs.inputs[0].shape
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    assert model.metadata.saved_input_example_info is not None
    assert 5 == len(model.input_example)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "experiment", "output", "metrics", "children"),
    [
        (
            "keras_wine",
            "wine",
            ("registered as version 1", "models:/wine@champion knows"),
            {"batch/loss", "val_accuracy", "validation_accuracy", "best_val_loss"},
            0,
        ),
        (
            "torch_diabetes",
            "diabetes",
            ("registered as version 1", "@champion"),
            {"train_loss", "val_loss", "grad_norm", "best_val_loss"},
            0,
        ),
        (
            "xgboost_breast_cancer",
            "breast-cancer",
            ("registered as version 1", "models:/breast-cancer@champion, cut after round"),
            {"train-auc", "valid-logloss", "best_valid-auc", "best_iteration"},
            0,
        ),
        (
            "optuna_wine",
            "wine-search",
            ("of 20 is the best", "version 1 knows"),
            {"best_accuracy", "trials_complete"},
            20,
        ),
        (
            "sklearn_penguins",
            "penguins",
            ("registered as version 1", "models:/penguins@champion says"),
            {"best_cv_score", "test_accuracy_score"},
            4,
        ),
    ],
)
def test_an_examples_run_is_whole_in_mlflow(name, experiment, output, metrics, children, runs_of) -> None:
    """Trained, registered, loaded back in the script itself, with the children that a search has."""
    script = EXAMPLES / f"{name}.py"
    environ = {**os.environ, "MLPIPELINE_DELIVERY": "thread"}  # the first example has a courier of its own
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=110, check=False, env=environ
    )
    assert 0 == done.returncode, done.stderr
    assert [] == [text for text in output if text not in done.stdout], done.stdout
    runs = runs_of(experiment)
    assert {"FINISHED"} == {run.info.status for run in runs}
    assert any(metrics <= set(run.data.metrics) for run in runs)
    assert children == sum("mlflow.parentRunId" in run.data.tags for run in runs)


def test_every_example_is_run_by_a_test() -> None:
    """A new one is added above; the others named here have tests of their own."""
    [cases] = [mark.args[1] for mark in test_an_examples_run_is_whole_in_mlflow.pytestmark if mark.args]
    others = {QUICKSTART.stem, "mlflow_integration_example", "overview"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == others | {name for name, *_ in cases}


@pytest.fixture
def in_here(store, monkeypatch):
    """All in this process, its courier, too: what is run has many parts, and each process takes seconds to start."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLPIPELINE_DELIVERY", "thread")
    # Beside a busy suite a store may take longer than a wait without progress lasts.
    monkeypatch.setenv("MLPIPELINE_EXIT_WAIT_S", "60")


@pytest.mark.slow
def test_the_example_of_all_parts_goes_from_tracking_to_the_registry(in_here, runs_of, capsys) -> None:
    """Two models are registered, and the second one is no better."""
    runpy.run_path(str(EXAMPLES / "mlflow_integration_example.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "version 1: champion" in output
    assert "version 2: -" in output
    runs = runs_of("tumours")
    assert {"FINISHED"} == {run.info.status for run in runs}
    assert 5 == sum("mlflow.parentRunId" in run.data.tags for run in runs)


@pytest.mark.slow
def test_the_production_pipeline_trains_and_is_evaluated(in_here, runs_of, monkeypatch) -> None:
    """The file as it is in examples/, but with fewer rounds, as its variable allows."""
    monkeypatch.setenv("MAX_ITER", "20")
    Path("build").mkdir()
    options = ["--config", str(EXAMPLES / "production.yaml"), "--artifacts-path", "build"]
    for command in ("train", "evaluate"):
        done = CliRunner().invoke(cli, [command, *options])
        assert 0 == done.exit_code, done.output
    trained, evaluated = sorted(runs_of("tumours"), key=lambda run: run.info.start_time)
    assert ("20", "data-science") == (trained.data.params["model__max_iter"], trained.data.tags["team"])
    assert {"accuracy", "f1_score", "roc_auc"} <= evaluated.data.metrics.keys()


def test_the_overview_has_one_row_per_framework(store, capsys) -> None:
    """The newest run of each, whatever else is in the store; what `nox -s demo` ends with."""
    main = runpy.run_path(str(EXAMPLES / "overview.py"))["main"]
    frameworks, client = main.__globals__["FRAMEWORKS"], MlflowClient(store)
    for experiment in (*frameworks, "of somebody else"):
        experiment_id = client.create_experiment(experiment)
        for status in ("FAILED", "FINISHED"):
            run = client.create_run(experiment_id)
            client.log_metric(run.info.run_id, "loss", 0.5)
            client.set_terminated(run.info.run_id, status)
    main.__globals__["STORE"] = store
    main()
    [head, *rows] = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["framework", "experiment", "status"] == head[:3]
    expected = [[framework, name, "FINISHED"] for name, framework in frameworks.items()]
    assert expected == [row[:3] for row in rows]
