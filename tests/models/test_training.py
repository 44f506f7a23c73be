"""The trainer that a configuration describes: what it answers, and what is in MLflow afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import uuid

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.metrics import log_loss

from mlpipeline.core.errors import ConfigError
from mlpipeline.core.interfaces import Component, ComponentType, ExecutionContext
from mlpipeline.models.data import load
from mlpipeline.models.execution import handed_on, handed_on_model
from mlpipeline.models.mlflow_integration import MLflowIntegratedTrainer
from mlpipeline.models.settings import DataSection
from mlpipeline.testing.faults import FaultyProxy

NOBODY = "http://127.0.0.1:9"
SPECIES = {"path": "birds.csv", "target": "species"}


@pytest.fixture
def birds():
    """A table as people have it: texts, gaps, classes with names; in the working directory."""
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 3, 90)
    frame = pd.DataFrame(
        {
            "mass_g": np.where(draw.random(90) < 0.1, np.nan, 3000.0 + 900 * kind + draw.normal(0, 150, 90)),
            "island": np.where(draw.random(90) < 0.1, None, np.array(["Biscoe", "Dream", "Torgersen"])[kind]),
            "species": np.array(["Adelie", "Chinstrap", "Gentoo"])[kind],
        }
    )
    frame.to_csv("birds.csv", index=False)
    return frame


def context_of(config, **given):
    logger = logging.getLogger("pipeline")
    kind = ComponentType.MODEL_TRAINING
    return ExecutionContext("exp_001", "training", kind, config, given.get("artifacts_path", "out"), logger)


def train(config, uri, **options):
    return MLflowIntegratedTrainer(tracking_uri=uri, delivery="thread", **options).execute(context_of(config))


@pytest.mark.parametrize(
    ("framework", "parameters", "curve"),
    [
        ("sklearn", {"n_estimators": 10}, None),
        ("xgboost", {"n_estimators": 5, "max_depth": 2}, "validation_1-mlogloss"),
        ("pytorch", {"max_epochs": 3, "hidden_sizes": [8]}, "val_loss"),
    ],
)
def test_each_framework_trains_on_raw_rows_and_its_model_takes_them(
    birds, store_uri, framework, parameters, curve
):
    """Metrics of rows held back, curves where training goes in rounds, the whole pipeline as the model."""
    model = {"framework": framework, "parameters": parameters}
    result = train({"data": SPECIES, "training": {"model": model}}, store_uri)
    assert (True, None, None) == (result.success, result.error_message, result.exception)
    assert {"val_accuracy_score", "test_accuracy_score"} <= set(result.metrics)
    client = MlflowClient(store_uri)
    run = client.get_run(result.metadata["mlflow_run_id"])
    assert "FINISHED" == run.info.status
    assert result.metrics.items() <= run.data.metrics.items()
    assert ("birds.csv", "62") == (run.data.params["data_source"], run.data.params["train_rows"])
    assert {"training", "val", "test"} == {found.dataset.name for found in run.inputs.dataset_inputs}
    if curve is not None:
        assert parameters.get("n_estimators", 3) == len(client.get_metric_history(run.info.run_id, curve))
    (logged,) = run.outputs.model_outputs
    assert f"models:/{logged.model_id}" == result.metadata["mlflow_model_uri"]
    raw = pd.DataFrame({"mass_g": [np.nan, 4800.0], "island": ["Biscoe", "a new one"]})
    mlflow.set_tracking_uri(store_uri)
    loaded = mlflow.pyfunc.load_model(result.metadata["mlflow_model_uri"])
    assert set(loaded.predict(raw)) <= set(birds["species"])
    ours = handed_on_model("out")
    assert list(ours.predict(raw)) == list(loaded.predict(raw))
    assert result.metadata["mlflow_run_id"] == handed_on("out")["mlflow_run_id"]


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "pytorch"])
@pytest.mark.parametrize("dtype", ["bool", "boolean"])
def test_numbers_and_flags_are_enough(store_uri, framework, dtype):
    """Without a text beside them; a flag may be missing later, and the model loads by MLflow alone."""
    frame = pd.DataFrame(
        {"mass_g": [3.0, 4.0] * 30, "is_male": [True, False, True] * 20, "target": [0, 1] * 30}
    )
    frame.astype({"is_male": dtype}).to_parquet("flags.parquet")
    parameters = {"max_epochs": 2} if framework == "pytorch" else {"n_estimators": 2}
    model = {"framework": framework, "parameters": parameters}
    result = train({"data": {"path": "flags.parquet"}, "training": {"model": model}}, store_uri)
    assert None is result.error_message
    mlflow.set_tracking_uri(store_uri)
    loaded = mlflow.sklearn.load_model(result.metadata["mlflow_model_uri"])
    for flags in ([True, None], pd.array([None, False], "boolean"), [True, False]):
        assert 2 == len(loaded.predict(pd.DataFrame({"mass_g": [3.0, 4.0], "is_male": flags})))


@pytest.mark.process
@pytest.mark.parametrize("framework", ["xgboost", "pytorch"])
def test_a_model_that_is_made_of_our_classes_is_loaded_without_this_package(birds, store_uri, framework):
    """By an interpreter that cannot import it, nor Lightning."""
    parameters = {"max_epochs": 2} if framework == "pytorch" else {"n_estimators": 2}
    model = {"framework": framework, "parameters": parameters}
    result = train({"data": SPECIES, "training": {"model": model}}, store_uri)
    client = MlflowClient(store_uri)
    uri = result.metadata["mlflow_model_uri"]
    place = client.get_logged_model(uri.rpartition("/")[2]).artifact_location
    requirements = mlflow.artifacts.load_text(f"{place}/requirements.txt")
    assert "mlpipeline" not in requirements
    assert framework.replace("py", "") in requirements
    program = (
        "import sys; sys.modules['mlpipeline'] = sys.modules['lightning'] = None; import mlflow, pandas as pd; "
        f"m = mlflow.sklearn.load_model({place!r}); "
        "print(m.predict(pd.DataFrame({'mass_g': [3000.0], 'island': ['Biscoe']})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (0, "['") == (done.returncode, done.stdout[:2]), done.stderr


def test_a_regression_is_seen_by_its_target(store_uri):
    """And has a regression's metrics."""
    result = train({"data": {"dataset": "diabetes"}}, store_uri)
    assert {"val_r2_score", "test_root_mean_squared_error"} <= set(result.metrics)


def test_the_files_of_the_convention_are_trained_on(birds, store_uri, tmp_path):
    """Without a data section; rows to test with are optional."""
    frame = birds.rename(columns={"species": "target"})
    frame.to_parquet(tmp_path / "train_preprocessed.parquet")
    trainer = MLflowIntegratedTrainer(tracking_uri=store_uri, delivery="thread")
    result = trainer.execute(context_of({}, artifacts_path=tmp_path))
    assert (True, 90.0) == (result.success, float(birds.shape[0]))
    assert {"train_accuracy_score"} <= set(result.metrics), "nothing was held back"


def test_the_context_wins_over_the_constructor_and_the_model_is_registered(birds, either_store):
    """On SQLite and on a server: experiment, version, alias of the stage."""
    options = {"experiment_name": "by the context", "register_model": True, "model_name": "birds"}
    result = train(
        {"mlflow": options, "data": SPECIES}, either_store, experiment_name="by hand", model_stage="None"
    )
    client = MlflowClient(either_store)
    experiment = client.get_experiment(result.metadata["mlflow_experiment_id"])
    assert "by the context" == experiment.name
    version = client.get_model_version("birds", str(result.metadata["mlflow_model_version"]))
    assert result.metadata["mlflow_run_id"] == version.run_id


def test_without_mlflow_it_trains_all_the_same(birds, home):
    """Nothing is written but what is for the next stage."""
    result = train({"mlflow": {"enabled": False}, "data": SPECIES}, NOBODY)
    assert (True, None, None) == (
        result.success,
        result.metadata["mlflow_run_id"],
        result.metadata["mlflow_model_version"],
    )
    assert result.metrics["val_accuracy_score"] > 0
    assert not home.exists()


def test_an_unreachable_destination_leaves_a_local_id(birds):
    """The training is done; what waits is delivered later."""
    result = train({"data": SPECIES}, NOBODY, register_model=True, model_name="birds")
    assert result.success
    assert result.metadata["mlflow_run_id"].startswith("local-")
    assert (None, False) == (result.metadata["mlflow_model_version"], result.metadata["mlflow_is_delivered"])


@pytest.mark.server
def test_with_exit_wait_s_the_answer_waits_for_a_server_that_is_away(birds, server):
    """A job that ends with its machine says how long; without it the answer is there after 2 seconds."""
    with FaultyProxy(server.uri) as proxy:
        proxy.down()
        returns = threading.Timer(5, proxy.up)
        returns.start()
        result = train({"data": SPECIES}, proxy.uri, experiment_name=uuid.uuid4().hex, exit_wait_s=60)
        returns.join()
        assert (True, True) == (result.success, result.metadata["mlflow_is_delivered"])
        run = MlflowClient(server.uri).get_run(result.metadata["mlflow_run_id"])
        assert "FINISHED" == run.info.status


@pytest.mark.process
def test_who_has_waited_in_vain_for_the_answer_does_not_wait_again_at_exit(birds):
    """A job's 8 seconds are 8 seconds in all."""
    code = f"""
import logging, time
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import MLflowIntegratedTrainer
context = ExecutionContext("a", "b", ComponentType.MODEL_TRAINING, {{"data": {SPECIES!r}}}, "out", logging.getLogger())
began_s = time.monotonic()
result = MLflowIntegratedTrainer(tracking_uri={NOBODY!r}, delivery="thread", exit_wait_s=8).execute(context)
print(time.monotonic() - began_s > 8, result.metadata["mlflow_is_delivered"], flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert "True False\n" == process.stdout.readline()
        began_s = time.monotonic()
        assert 0 == process.wait(60)
        assert time.monotonic() - began_s < 6


def test_a_mistake_is_an_answer_that_names_it(birds, store_uri):
    """Nothing is raised, and no run is opened for what cannot be trained."""
    result = train({"data": SPECIES, "training": {"model": {"model_type": "random_forst"}}}, store_uri)
    assert not result.success
    assert "training.model.model_type: sklearn has no 'random_forst'" in result.error_message
    assert isinstance(result.exception, ConfigError)
    assert [] == MlflowClient(store_uri).search_runs(["0"])
    assert None is MlflowClient(store_uri).get_experiment_by_name("ml-pipeline-experiment")


def test_a_training_that_raises_is_a_failed_run_and_an_answer(birds, store_uri):
    """The exception is the framework's own."""
    model = {"model_type": "svc", "parameters": {"kernel": "no kernel"}}
    result = train({"data": SPECIES, "training": {"model": model}}, store_uri)
    assert (False, "InvalidParameterError") == (result.success, type(result.exception).__name__)
    client = MlflowClient(store_uri)
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    (run,) = client.search_runs([experiment.experiment_id])
    assert ("FAILED", "InvalidParameterError") == (run.info.status, run.data.tags["exception"])
    assert run.info.run_id == result.metadata["mlflow_run_id"]


def test_what_went_wrong_is_told_without_a_password(birds, store_uri, tmp_path, monkeypatch, caplog):
    """The exception itself is the user's own, untouched."""
    (tmp_path / "telling.py").write_text(
        "from sklearn.dummy import DummyClassifier\n"
        "class Telling(DummyClassifier):\n"
        "    def fit(self, X, y):\n        raise OSError('no answer from http://ann:canary@store/rows')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "telling", raising=False)
    model = {"framework": "custom", "model_type": "telling.Telling"}
    result = train({"data": SPECIES, "training": {"model": model}}, store_uri)
    assert "no answer from http://ann:***@store/rows" == result.error_message
    assert "canary" not in caplog.text
    assert "canary" in str(result.exception)


@pytest.mark.parametrize(
    ("stop", "kind", "status"),
    [
        ("raise KeyboardInterrupt", KeyboardInterrupt, "KILLED"),
        ("raise SystemExit", SystemExit, "FAILED"),
        ("try: raise KeyboardInterrupt\n        finally: raise SystemExit", SystemExit, "KILLED"),
    ],
)
def test_who_asks_to_stop_is_obeyed(birds, store_uri, tmp_path, monkeypatch, stop, kind, status):
    """Ctrl-C and SystemExit pass; the run has the status that they mean, and so that of a SystemExit for Ctrl-C."""
    (tmp_path / "stopped.py").write_text(
        "from sklearn.dummy import DummyClassifier\n"
        "class Stopped(DummyClassifier):\n"
        f"    def fit(self, X, y):\n        {stop}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "stopped", raising=False)
    model = {"framework": "custom", "model_type": "stopped.Stopped"}
    trainer = MLflowIntegratedTrainer(tracking_uri=store_uri, delivery="thread")
    with pytest.raises(kind):
        trainer.execute(context_of({"data": SPECIES, "training": {"model": model}}))
    from mlpipeline.tracking import closing

    for run in closing.watched():
        run.wait()
    client = MlflowClient(store_uri)
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    (found,) = client.search_runs([experiment.experiment_id])
    assert status == found.info.status


def test_a_network_stops_early_and_keeps_its_best_weights(store_uri):
    """When the validation loss gets no better; what is left is the epoch that had the least."""
    draw = np.random.default_rng(0)
    noise = pd.DataFrame(draw.normal(size=(120, 4)), columns=list("abcd")).assign(
        target=draw.integers(0, 2, 120)
    )
    noise.to_csv("noise.csv", index=False)  # nothing can be learned: it is soon learned by heart
    parameters = {"max_epochs": 60, "patience": 3, "learning_rate": 0.05}
    model = {"framework": "pytorch", "task_type": "classification", "parameters": parameters}
    section = {"path": "noise.csv"}
    result = train({"data": section, "training": {"model": model}}, store_uri)
    assert None is result.error_message
    history = MlflowClient(store_uri).get_metric_history(result.metadata["mlflow_run_id"], "val_loss")
    losses = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert len(losses) < 60
    assert 3 == len(losses) - 1 - int(np.argmin(losses)), "it waited for so long"
    held_back = load(DataSection.model_validate(section), ".", "target").val
    probable = handed_on_model("out").predict_proba(held_back.X)
    assert min(losses) == pytest.approx(log_loss(held_back.y, probable), rel=1e-4)
    assert min(losses) < losses[-1]


INTERRUPTED = """
import logging, os, signal, sys, torch
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import MLflowIntegratedTrainer
passed = []
def interrupt(*_):
    passed.append(1)
    if len(passed) == 50:
        os.kill(os.getpid(), signal.SIGINT)
torch.nn.modules.module.register_module_forward_hook(interrupt)
model = {"framework": "pytorch", "parameters": {"max_epochs": 1000, "patience": 1000}}
config = {"data": {"dataset": "iris"}, "training": {"model": model}}
context = ExecutionContext("a", "b", ComponentType.MODEL_TRAINING, config, "out", logging.getLogger())
try:
    MLflowIntegratedTrainer(tracking_uri=sys.argv[1], delivery="offline").execute(context)
except KeyboardInterrupt:
    print("stopped", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.process
def test_ctrl_c_stops_a_network_and_its_run_is_killed(store_uri, deliver):
    """As for every other framework, though Lightning exits then; the next Ctrl-C is heard, too."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, store_uri], capture_output=True, text=True, check=False
    )
    assert "stopped True\n" == done.stdout, done.stderr
    deliver()
    client = MlflowClient(store_uri)
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    (found,) = client.search_runs([experiment.experiment_id])
    assert ("KILLED", True) == (found.info.status, "val_loss" in found.data.metrics)


def test_it_is_a_component_and_checks_before_it_works():
    """`setup` says what `execute` would."""
    trainer = MLflowIntegratedTrainer({"experiment_name": "x"})
    assert isinstance(trainer, Component)
    with pytest.raises(ConfigError, match=r"training\.model\.framework"):
        trainer.setup(context_of({"training": {"model": {"framework": "torch"}}}))
