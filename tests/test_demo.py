"""The demo, run as a user would, and read back through plain MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKSTART = EXAMPLES / "quickstart.py"


@pytest.mark.process
def test_the_demos_run_is_whole_in_mlflow(copy_store) -> None:
    """Params, history per step and per epoch without gaps, dataset, signature, version, alias, status."""
    copy_store(Path("mlflow.db"), str(Path.cwd() / "mlruns"))
    done = subprocess.run(
        [sys.executable, QUICKSTART], capture_output=True, text=True, timeout=110, check=True
    )
    assert "registered as version 1" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("mlpipeline:")]
    assert 1 == len(lines)
    assert "digits v1" in lines[0]
    mlflow.set_tracking_uri(f"sqlite:///{Path.cwd()}/mlflow.db")
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
    ("name", "metrics"),
    [
        ("keras_wine", {"batch/loss", "val_accuracy", "validation_accuracy", "best_val_loss"}),
        ("torch_diabetes", {"train_loss", "val_loss", "grad_norm", "best_val_loss"}),
    ],
)
def test_an_examples_run_is_whole_in_mlflow(name, metrics, copy_store) -> None:
    """Trained, registered under an alias, and loaded back by plain MLflow in the script itself."""
    copy_store(Path("mlflow.db"), str(Path.cwd() / "mlruns"))
    script = EXAMPLES / f"{name}.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=110, check=True)
    assert "registered as version 1" in done.stdout
    assert "@champion" in done.stdout
    experiment = name.rpartition("_")[2]
    client = MlflowClient(f"sqlite:///{Path.cwd()}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert "FINISHED" == run.info.status
    assert metrics <= set(run.data.metrics)
