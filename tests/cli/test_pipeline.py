"""``mlpipeline train`` and ``mlpipeline config`` as a user runs them: output, exit codes, one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlpipeline.cli import main

NOBODY = "http://127.0.0.1:9"

PIPELINE = """\
mlflow:
  experiment_name: cli pipeline
  delivery: thread
data:
  dataset: iris
training:
  model:
    model_type: decision_tree_classifier
    parameters: {max_depth: 2, random_state: 0}
"""


@pytest.fixture
def pipeline():
    Path("pipeline.yaml").write_text(PIPELINE)
    return "pipeline.yaml"


def mlpipeline(*arguments):
    """Run the command line here: exit code, standard output, standard error."""
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_train_trains_and_tells_where_it_is(pipeline, store_uri, monkeypatch):
    """The environment names the destination; a model that was trained is there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    code, out, _ = mlpipeline("train", "--config", pipeline, "--artifacts-path", "out", "--json")
    told = json.loads(out)
    assert (0, True, True) == (code, told["success"], told["metadata"]["mlflow_is_delivered"])
    run = MlflowClient(store_uri).get_run(told["metadata"]["mlflow_run_id"])
    assert told["metrics"].items() <= run.data.metrics.items()
    assert {"out/trained_model.pkl", "out/training.json"} == set(told["artifacts"])


def test_set_wins_over_the_environment_and_the_file(pipeline, store_uri, monkeypatch):
    """Types are those of YAML; the text for people names metrics and the run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    changes = {
        "mlflow.tracking_uri": store_uri,
        "mlflow.experiment_name": "by hand",
        "training.model.parameters.max_depth": "3",
    }
    options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    code, out, _ = mlpipeline("train", "-c", pipeline, *options)
    client = MlflowClient(store_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("by hand").experiment_id])
    assert (0, "3") == (code, run.data.params["model__max_depth"])
    assert run.info.run_id in out
    assert "test_accuracy_score" in out


def test_trained_but_not_delivered_is_exit_code_4(pipeline, monkeypatch):
    """Not a failure, and not done either."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    code, out, _ = mlpipeline("train", "-c", pipeline, "--json")
    told = json.loads(out)
    assert (4, True, False) == (code, told["success"], told["metadata"]["mlflow_is_delivered"])
    assert told["metadata"]["mlflow_run_id"].startswith("local-")


def test_a_registry_that_is_away_is_exit_code_4(pipeline, store_uri, monkeypatch):
    """The run is in MLflow, the version is not: it waits, and nobody waits for it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    changes = [f"mlflow.registry_uri={NOBODY}", "mlflow.register_model=true", "mlflow.model_name=irises"]
    options = [part for change in changes for part in ("--set", change)]
    began_s = time.monotonic()
    code, out, _ = mlpipeline("train", "-c", pipeline, *options, "--json")
    assert time.monotonic() - began_s < 45
    told = json.loads(out)
    assert (4, True, None) == (code, told["success"], told["metadata"]["mlflow_model_version"])
    run = MlflowClient(store_uri).get_run(told["metadata"]["mlflow_run_id"])
    assert told["metrics"].items() <= run.data.metrics.items()
    assert [] == MlflowClient(store_uri, store_uri).search_registered_models()


def test_without_mlflow_it_is_done(pipeline, monkeypatch):
    """There is nothing to deliver."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    assert 0 == mlpipeline("train", "-c", pipeline, "--set", "mlflow.enabled=false")[0]


def test_a_stage_that_fails_is_exit_code_1(pipeline, store_uri, monkeypatch):
    """With the framework's own words, once; what ran is in MLflow."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    code, out, error = mlpipeline(
        "train", "-c", pipeline, "--set", "training.model.parameters.max_depth=-5", "--json"
    )
    told = json.loads(out)
    assert (1, False) == (code, told["success"])
    assert error.endswith(f"training failed: {told['error_message']}\n")
    assert "FAILED" == MlflowClient(store_uri).get_run(told["metadata"]["mlflow_run_id"]).info.status


@pytest.mark.parametrize(
    ("stage", "change", "has_run"),
    [
        ("train", "training.model.model_type=no_such", False),
        ("train", "training.modle=5", False),
        ("evaluate", "evaluation.metrics=[log_loss]", True),
    ],
)
def test_a_mistake_is_told_in_json_too(pipeline, store_uri, monkeypatch, stage, change, has_run):
    """With the ids of the run, if there is one; the exit code is that of a mistake, its words are on standard error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    if has_run:  # no model of this kind knows probabilities
        mlpipeline("train", "-c", pipeline, "--set", "training.model={model_type: ridge_classifier}")
    code, out, error = mlpipeline(stage, "-c", pipeline, "--set", change, "--json")
    told = json.loads(out)
    assert (2, False) == (code, told["success"])
    assert error.endswith(f"Error: {told['error_message']}\n")
    assert has_run == (told["metadata"]["mlflow_run_id"] is not None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-c", "absent.yaml"], "absent.yaml cannot be read"),
        (["-c", "pipeline.yaml", "--set", "training"], "--set training: expected KEY=VALUE"),
        (
            ["-c", "pipeline.yaml", "--set", "training.modle.x=1"],
            "training.modle: no such option; did you mean 'model'?",
        ),
        (["-c", "pipeline.yaml", "--set", "a=[1"], "--set a=[1: the value is not YAML"),
        (["-c", "pipeline.yaml", "--set", "data.dataset=irs"], "did you mean 'iris'?"),
        ([], "Missing option '--config'"),
    ],
)
def test_a_mistake_is_exit_code_2_and_one_message(pipeline, arguments, told):
    """No traceback; nothing on standard output."""
    code, out, error = mlpipeline("train", *arguments)
    assert (2, "") == (code, out)
    assert told in error
    assert "Traceback" not in error


def test_config_check_names_every_mistake_with_its_line(pipeline):
    """As text and as JSON; a right file is said to be."""
    assert (0, "pipeline.yaml is right\n", "") == mlpipeline("config", "check", "-c", pipeline)
    Path(pipeline).write_text(PIPELINE.replace("experiment_name", "experiment"))
    code, out, _ = mlpipeline("config", "check", "-c", pipeline, "--json")
    told = json.loads(out)
    assert (2, False) == (code, told["is_valid"])
    assert told["mistakes"][0].startswith("pipeline.yaml:2: mlflow.experiment: MLflowConfig has no option")
    assert 2 == mlpipeline("config", "check", "-c", pipeline)[0]


WRONG = """\
data:
  path: absent.csv
training:
  model:
    model_type: voting_classifier
    parameters:
      votng: soft
      estimators:
      - [a, {model_type: random_forst_classifier}]
      - - b
        - model_type: svc
          parameters:
            kernl: rbf
  hyperparameter_optimization:
    metric: acuracy
    parameter_space:
      weigths: {type: int, low: 1, high: 3}
evaluation:
  metrics:
  - accuracy
  - f1_scor
  thresholds:
    roc_acu: 0.9
mlflow:
  experiment: x
"""
MISTAKES = {
    2: "data.path: there is no file absent.csv",
    7: "training.model.parameters.votng: voting_classifier has no parameter 'votng'; did you mean 'voting'?",
    9: "training.model.parameters.estimators.0.1.model_type: sklearn has no 'random_forst_classifier'; did you mean",
    13: "training.model.parameters.estimators.1.1.parameters.kernl: svc has no parameter 'kernl'; did you mean",
    15: "training.hyperparameter_optimization.metric: metric 'acuracy' is unknown; near it are 'accuracy'",
    17: "training.hyperparameter_optimization.parameter_space.weigths: voting_classifier has no parameter",
    21: "evaluation.metrics.1: metric 'f1_scor' is unknown; near it are 'f1_score'",
    23: "evaluation.thresholds.roc_acu: metric 'roc_acu' is unknown; near it are 'roc_auc'",
    25: "mlflow.experiment: MLflowConfig has no option 'experiment'",
}


@pytest.mark.parametrize("command", [["config", "check"], ["train"], ["tune"], ["evaluate"]])
def test_names_that_stand_for_nothing_are_told_with_their_lines(command, home):
    """All at once, by every stage, before anything is trained."""
    Path("wrong.yaml").write_text(WRONG)
    code, _, error = mlpipeline(*command, "-c", "wrong.yaml")
    told = error.removeprefix("Error: ").splitlines()
    assert (2, len(MISTAKES)) == (code, len(told)), error
    for line, (number, words) in zip(told, MISTAKES.items(), strict=True):
        assert line.startswith(f"wrong.yaml:{number}: {words}")
    assert not home.exists()


def test_config_show_is_what_counts_without_secrets(pipeline, monkeypatch):
    """Defaults filled in, the environment applied; it can be read back."""
    import yaml

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.com")
    code, out, _ = mlpipeline("config", "show", "-c", pipeline)
    shown = yaml.safe_load(out)
    assert (0, "https://mlflow.example.com", "target") == (
        code,
        shown["mlflow"]["tracking_uri"],
        shown["training"]["target_column"],
    )
    assert "secret" not in out
    assert shown == json.loads(mlpipeline("config", "show", "-c", pipeline, "--json")[1])


def test_config_schema_is_one_that_editors_take():
    """JSON on standard output."""
    code, out, _ = mlpipeline("config", "schema")
    assert (0, "object") == (code, json.loads(out)["type"])


@pytest.mark.process
def test_a_class_in_the_working_directory_is_trained_and_evaluated():
    """Where the interpreter does not look there by itself, as in a console script; a stray module is not taken."""
    Path("house_model.py").write_text(
        "from sklearn.tree import DecisionTreeClassifier\n\n\nclass House(DecisionTreeClassifier):\n    pass\n"
    )
    Path("random.py").write_text("raise SystemExit('the stray one')\n")
    Path("pipeline.yaml").write_text(
        "mlflow: {enabled: false}\ndata: {dataset: iris}\n"
        "training: {model: {framework: custom, model_type: house_model.House}}\n"
        "evaluation: {plots: false, report: false}\n"
    )
    for stage in ("train", "evaluate"):
        command = [sys.executable, "-P", "-m", "mlpipeline", stage, "-c", "pipeline.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert (0, True) == (done.returncode, "accuracy" in done.stdout), done.stderr


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["config", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    """It has to answer at once: no MLflow, no table drawing, no framework."""
    program = (
        "import sys\nfrom mlpipeline.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'mlflow', 'numpy', 'pandas', 'rich', 'pydantic', 'yaml', 'sklearn', 'prometheus_client'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ("", True) == (done.stderr.strip(), done.stdout.startswith("Usage:"))
