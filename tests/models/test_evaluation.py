"""The evaluator: what it answers, what is in MLflow afterwards, and what it says when it cannot."""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn import metrics
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.core.interfaces import Component, ComponentType, ExecutionContext
from mlpipeline.models import evaluation
from mlpipeline.models.execution import hand_on
from mlpipeline.models.mlflow_integration import MLflowIntegratedEvaluator, MLflowIntegratedTrainer
from mlpipeline.models.settings import Bounds
from mlpipeline.tracking.account import LOCAL_PREFIX
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.verdicts import Unavailable

NOBODY = "http://127.0.0.1:9"
OFF = {"enabled": False}


def context_of(config, folder="out", **metadata):
    kind = ComponentType.MODEL_EVALUATION
    logger = logging.getLogger("pipeline")
    return ExecutionContext("exp_001", "evaluation", kind, config, folder, logger, metadata)


def evaluate(config, folder="out", *, metadata=None, **options):
    evaluator = MLflowIntegratedEvaluator(delivery="thread", **options)
    return evaluator.execute(context_of(config, folder, **(metadata or {})))


def rows(count=60, **columns):
    """A table whose target is told by `size` and by nothing else."""
    draw = np.random.default_rng(0)
    size = draw.normal(0, 1, count)
    noise = draw.normal(0, 1, count)
    is_large = size + draw.normal(0, 0.3, count) > 0
    frame = {"size": size, "noise": noise, "target": np.where(is_large, "large", "small")}
    return pd.DataFrame({**frame, **columns})


def numbers(count=60):
    frame = rows(count)
    return frame.assign(target=3 * frame["size"] + frame["noise"] / 10)


@pytest.fixture
def prepared():
    """Rows in three files, and a model of them, as a training without tracking leaves them in `out`."""

    def prepared(frame=None, model=None, **facts):
        frame = rows() if frame is None else frame
        Path("out").mkdir(exist_ok=True)
        parts = {"train": frame[:30], "val": frame[30:40], "test": frame[40:]}
        for name, part in parts.items():
            part.reset_index(drop=True).to_parquet(f"out/{name}_preprocessed.parquet")
        model = LogisticRegression() if model is None else model
        model.fit(parts["train"].drop(columns="target"), parts["train"]["target"])
        hand_on("out", model, facts)
        return model, parts

    return prepared


# --- trained, then evaluated -------------------------------------------------------------------------


@pytest.fixture
def trained(either_store):
    """A training on the store, as the stage before: the configuration, its result, and a client."""
    rows().to_csv("rows.csv", index=False)
    config = {
        "mlflow": {"tracking_uri": either_store, "experiment_name": f"evaluation-{uuid.uuid4().hex[:8]}"},
        "data": {"path": "rows.csv"},
        "training": {"model": {"model_type": "logistic_regression"}},
    }
    context = context_of(config)
    result = MLflowIntegratedTrainer(delivery="thread").execute(context)
    assert result.success, result.error_message
    return config, result, MlflowClient(either_store, either_store)


def test_a_trainings_context_is_evaluated_with_the_usual_metrics(trained):
    """An own run, linked to the training's run, model and test rows; plots and a report beside it."""
    config, training, client = trained
    result = evaluate(config)
    assert (True, None, None) == (result.success, result.error_message, result.exception)
    assert ["accuracy", "precision", "recall", "f1"] == list(result.metrics)
    assert training.metrics["test_accuracy_score"] == result.metrics["accuracy"]
    facts = result.metadata
    assert {
        "mlflow_is_delivered": True,
        "evaluated_model_uri": training.metadata["mlflow_model_uri"],
        "evaluated_run_id": training.metadata["mlflow_run_id"],
        "evaluated_on": "test",
        "evaluated_rows": 9,
        "thresholds": {},
    }.items() <= facts.items()
    assert training.metadata["mlflow_run_id"] != facts["mlflow_run_id"]

    run = client.get_run(facts["mlflow_run_id"])
    assert ("FINISHED", result.metrics) == (run.info.status, run.data.metrics)
    assert {
        "mlpipeline.evaluated_run": training.metadata["mlflow_run_id"],
        "mlpipeline.evaluated_model": training.metadata["mlflow_model_uri"],
        "mlpipeline.evaluated_on": "test",
        "mlpipeline.task_type": "classification",
        "mlpipeline.stage": "evaluation",
    }.items() <= run.data.tags.items()
    assert {"evaluated_on": "test", "rows": "9", "data_source": "rows.csv"}.items() <= run.data.params.items()

    before = client.get_run(training.metadata["mlflow_run_id"]).inputs.dataset_inputs
    trained_on = {item.dataset.name: item.dataset.digest for item in before}
    (dataset,) = [item.dataset for item in run.inputs.dataset_inputs]
    assert ("test", trained_on["test"]) == (dataset.name, dataset.digest)
    model_id = training.metadata["mlflow_model_uri"].removeprefix("models:/")
    assert [model_id] == [model.model_id for model in run.inputs.model_inputs]
    shown = {
        (metric.key, metric.value, metric.dataset_name, metric.dataset_digest)
        for metric in client.get_logged_model(model_id).metrics
        if metric.run_id == run.info.run_id
    }
    assert {(name, value, "test", dataset.digest) for name, value in result.metrics.items()} == shown

    names = {Path(path).name for path in result.artifacts}
    assert {
        "report.html",
        *("confusion_matrix.svg", "roc_curve.svg", "precision_recall_curve.svg", "calibration_curve.svg"),
        "permutation_importance.svg",
    } == names
    assert {f"evaluation/{name}" for name in names} == {
        item.path for item in client.list_artifacts(run.info.run_id, "evaluation")
    }
    assert {Path("out/evaluation") / name for name in names} == set(map(Path, result.artifacts))
    page = Path("out/evaluation/report.html").read_text("utf-8")
    for expected in (run.info.run_id, training.metadata["mlflow_model_uri"], dataset.digest, "9 (test)"):
        assert expected in page, expected


def test_a_model_is_named_in_every_way(store_uri):
    """By its id, its run, a local id, a version, an alias; all are the same one, and so are its figures."""
    rows().to_csv("rows.csv", index=False)
    config = {"data": {"path": "rows.csv"}, "training": {"model": {"model_type": "logistic_regression"}}}
    options = {
        "tracking_uri": store_uri,
        "register_model": True,
        "model_name": "sizes",
        "model_alias": "best",
    }
    training = MLflowIntegratedTrainer(delivery="thread", **options).execute(context_of(config))
    uri, run_id = (training.metadata[f"mlflow_{name}"] for name in ("model_uri", "run_id"))
    uid = MlflowClient(store_uri).get_run(run_id).data.tags["mlpipeline.uid"]
    expected = evaluate(config, **options, **OFF).metrics
    named = (uri, uri.removeprefix("models:/"), run_id, f"{LOCAL_PREFIX}{uid}", "models:/sizes/1")
    for model in (*named, "models:/sizes@best"):
        result = evaluate(
            {**config, "evaluation": {"model": model, "plots": False}}, "elsewhere", **options, **OFF
        )
        found = result.metadata
        assert (True, expected, uri, run_id) == (
            result.success,
            result.metrics,
            found.get("evaluated_model_uri"),
            found.get("evaluated_run_id"),
        ), (model, result.error_message)
    assert "models:/sizes@best, version 1" in Path("elsewhere/evaluation/report.html").read_text("utf-8")

    # What the stage before says of itself is enough, also where its folder is not at hand.
    for metadata in ({"mlflow_model_uri": uri, "mlflow_run_id": run_id}, {"mlflow_run_id": run_id}):
        assert (
            uri
            == evaluate(config, "bare", metadata=metadata, **options, **OFF).metadata["evaluated_model_uri"]
        )
    # And where it is, its own model is taken without asking anybody.
    assert evaluate(config, metadata=training.metadata, tracking_uri=NOBODY, **OFF).success

    for model, reason in (
        ("models:/sizes@worst", "there is no models:/sizes@worst at sqlite:///.*worst"),
        ("models:/sizes/7", "there is no models:/sizes/7"),
        ("models:/others/1", "there is no models:/others/1"),
        ("models:/m-0123456789abcdef0123456789abcdef", "there is no models:/m-0123"),
        ("0123456789abcdef0123456789abcdef", "there is no 0123456789abcdef0123456789abcdef"),
        (
            "models:/sizes/Production",
            "names no model; write models:/name@alias, models:/name/3, models:/m-… or",
        ),
        (
            "local-0123456789",
            "run local-0123456789 has not reached MLflow yet; send it with: mlpipeline sync",
        ),
    ):
        result = evaluate({**config, "evaluation": {"model": model}}, **options, **OFF)
        assert isinstance(result.exception, (ConfigError, UsageError)), model
        with pytest.raises((ConfigError, UsageError), match=reason):
            raise result.exception

    empty = open_run(evaluation.MLflowConfig(delivery="thread", **options))
    empty.end()
    empty.wait()
    result = evaluate({**config, "evaluation": {"model": empty.run_id}}, **options, **OFF)
    assert f"the run {empty.run_id} has logged no model" in str(result.exception)


def test_a_model_without_scikit_learns_interface_is_evaluated(store_uri):
    """XGBoost's own: its columns are those of its signature, its numbers are probabilities."""
    import xgboost

    frame = rows()
    frame["target"] = (frame["target"] == "large").astype(int)
    frame[["noise", "size", "target"]].to_csv("rows.csv", index=False)
    X, y = frame[["size", "noise"]], frame["target"]
    booster = xgboost.train({"objective": "binary:logistic", "seed": 0}, xgboost.DMatrix(X, y), 5)
    with open_run(evaluation.MLflowConfig(tracking_uri=store_uri, delivery="thread")) as run:
        run.log_model(booster, input_example=X)
    run.wait()
    config = {
        "data": {"path": "rows.csv"},
        "evaluation": {"model": run.model_uri, "metrics": ["roc_auc", "accuracy"], "on": "all"},
    }
    result = evaluate(config, tracking_uri=store_uri)
    assert result.success, result.error_message
    certain = booster.predict(xgboost.DMatrix(X))
    assert pytest.approx(metrics.roc_auc_score(y, certain)) == result.metrics["roc_auc"]
    assert pytest.approx(((certain > 0.5) == y).mean()) == result.metrics["accuracy"]
    assert "calibration_curve.svg" in {Path(path).name for path in result.artifacts}
    assert run.run_id == result.metadata["evaluated_run_id"]


def test_a_network_is_given_an_array_of_its_type(store_uri):
    """Its signature has no columns; what it answers are no probabilities, and rank all the same."""
    import torch

    frame = rows()
    frame.to_csv("rows.csv", index=False)
    X = np.ascontiguousarray(frame[["size", "noise"]], "float32")
    module = torch.nn.Linear(2, 2)
    with open_run(evaluation.MLflowConfig(tracking_uri=store_uri, delivery="thread")) as run:
        run.log_model(module, input_example=X[:3])
    run.wait()
    section = {"model": run.model_uri, "on": "all", "metrics": ["accuracy"]}
    result = evaluate(
        {"data": {"path": "rows.csv"}, "evaluation": section}, **{**OFF, "tracking_uri": store_uri}
    )
    assert result.success, result.error_message
    said = module(torch.from_numpy(X)).argmax(dim=1).numpy()
    assert (
        pytest.approx((np.array(["large", "small"])[said] == frame["target"]).mean())
        == (result.metrics["accuracy"])
    )
    assert "Evaluation of pytorch model" in Path("out/evaluation/report.html").read_text("utf-8")


# --- rows --------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_rows_that_were_asked_for(prepared):
    """Every part, and all of it, under the names as they were written."""
    model, parts = prepared()
    parts["all"] = pd.concat(parts.values())
    names = ["accuracy", "f1_score", "roc_auc"]
    for on, part in parts.items():
        result = evaluate({"evaluation": {"on": on, "metrics": names}}, **OFF)
        X, y = part.drop(columns="target"), part["target"]
        assert {
            "accuracy": metrics.accuracy_score(y, model.predict(X)),
            "f1_score": metrics.f1_score(y, model.predict(X), pos_label="small"),
            "roc_auc": metrics.roc_auc_score(y, model.predict_proba(X)[:, 1]),
        } == pytest.approx(result.metrics), on
        assert (on, len(part)) == (result.metadata["evaluated_on"], result.metadata["evaluated_rows"])


def test_without_test_rows_the_next_best_are_taken_and_told(prepared, store_uri, caplog):
    """In a tag, a log line and the report; not where the user asked for the test rows."""
    prepared()
    Path("out/test_preprocessed.parquet").unlink()
    result = evaluate({}, tracking_uri=store_uri)
    assert "val" == result.metadata["evaluated_on"]
    tags = MlflowClient(store_uri).get_run(result.metadata["mlflow_run_id"]).data.tags
    assert "val" == tags["mlpipeline.evaluated_on"]
    told = "There are no test rows in out: this was evaluated on the val rows."
    assert told in caplog.messages
    assert told in Path("out/evaluation/report.html").read_text("utf-8")
    result = evaluate({"evaluation": {"on": "test"}}, **OFF)
    assert "there are no test rows in out, only: train, val" == result.error_message
    Path("out/val_preprocessed.parquet").unlink()
    assert "train" == evaluate({}, **OFF).metadata["evaluated_on"]
    assert any("has seen them" in message for message in caplog.messages)
    Path("out/train_preprocessed.parquet").unlink()
    result = evaluate({}, **OFF)
    assert isinstance(result.exception, ConfigError)
    assert "there is no test_preprocessed.parquet in out; write it there" in result.error_message


def test_columns_are_put_in_order_and_missing_ones_named(prepared):
    """As the model was trained; others are no matter."""
    prepared()
    frame = rows(other=1)[["noise", "target", "other", "size"]]
    frame.to_csv("turned.csv", index=False)
    expected = evaluate({"data": {"path": "turned.csv"}, "evaluation": {"on": "all"}}, **OFF)
    rows().to_csv("straight.csv", index=False)
    found = evaluate({"data": {"path": "straight.csv"}, "evaluation": {"on": "all"}}, **OFF)
    assert (True, expected.metrics) == (found.success, found.metrics)
    frame.rename(columns={"size": "Size"}).to_csv("lacking.csv", index=False)
    result = evaluate({"data": {"path": "lacking.csv"}, "evaluation": {"on": "all"}}, **OFF)
    assert isinstance(result.exception, ConfigError)
    assert "the all rows of lacking.csv lack 'size', which " in result.error_message
    assert "did you mean 'Size'?" in result.error_message


def test_a_model_that_knows_no_names_is_given_as_many_columns(recwarn):
    """Trained on an array, it would warn of names; what it counts is checked."""
    frame = numbers()
    model = LinearRegression().fit(frame[["size", "noise"]].to_numpy(), frame["target"])
    hand_on("out", model, {})
    frame.to_csv("rows.csv", index=False)
    result = evaluate({"data": {"path": "rows.csv"}, "evaluation": {"on": "all"}}, **OFF)
    assert (True, ["rmse", "mae", "r2"]) == (result.success, list(result.metrics))
    assert {"residuals.svg", "permutation_importance.svg", "report.html"} == {
        Path(path).name for path in result.artifacts
    }
    assert not [warning for warning in recwarn if "feature names" in str(warning.message)]
    rows(third=1).to_csv("more.csv", index=False)
    result = evaluate({"data": {"path": "more.csv"}, "evaluation": {"on": "all"}}, **OFF)
    assert "was trained on 2 columns, and the all rows of more.csv have 3" in result.error_message


def test_a_target_is_the_one_that_was_trained_unless_another_is_named(prepared):
    """`target`, else what the training handed on, else what the configuration says."""
    frame = rows().rename(columns={"target": "kind"})
    frame.to_csv("rows.csv", index=False)
    model = LogisticRegression().fit(frame[["size", "noise"]], frame["kind"])
    hand_on("out", model, {"target": "kind"})
    config = {"data": {"path": "rows.csv"}}
    assert evaluate(config, **OFF).success
    result = evaluate({**config, "training": {"target_column": "size"}}, **OFF)
    assert "lack 'size'" in result.error_message
    hand_on("out", model, {})
    assert "has no column 'target' for the target" in evaluate(config, **OFF).error_message


# --- figures that are not defined --------------------------------------------------------------------


def test_one_class_costs_a_named_metric_the_evaluation_and_a_usual_one_a_line(prepared, caplog):
    """Who names a metric wants it."""
    prepared()
    frame = rows()
    frame[frame["target"] == "large"].to_csv("large.csv", index=False)
    config = {"data": {"path": "large.csv"}, "evaluation": {"on": "all"}}
    result = evaluate(config, **OFF)
    assert result.success, result.error_message
    assert {"confusion_matrix.svg", "permutation_importance.svg", "report.html"} == {
        Path(path).name for path in result.artifacts
    }
    for named in ({"metrics": ["accuracy", "roc_auc"]}, {"thresholds": {"roc_auc": 0.5}}):
        result = evaluate({**config, "evaluation": {"on": "all", **named}}, **OFF)
        assert isinstance(result.exception, UsageError)
        assert "roc_auc cannot be computed" in result.error_message
    prepared(numbers(), LinearRegression())
    numbers(1).to_csv("one.csv", index=False)
    result = evaluate({"data": {"path": "one.csv"}, "evaluation": {"on": "all"}}, **OFF)
    assert (True, ["rmse", "mae"]) == (result.success, list(result.metrics))
    assert any(message.startswith("left out: r2 cannot be computed") for message in caplog.messages)


def test_classes_that_the_model_never_saw_are_told(prepared, caplog):
    """Its figures cannot be good there, and nobody would know why."""
    prepared()
    frame = rows()
    frame.loc[0, "target"] = "<huge>"
    frame.to_csv("rows.csv", index=False)
    assert evaluate({"data": {"path": "rows.csv"}, "evaluation": {"on": "all"}}, **OFF).success
    assert any("not trained on: <huge>." in message for message in caplog.messages)
    page = Path("out/evaluation/report.html").read_text("utf-8")
    assert "&lt;huge&gt;" in page
    assert "<huge>" not in page


# --- thresholds --------------------------------------------------------------------------------------


def test_a_missed_threshold_fails_the_stage_and_not_the_run(prepared, store_uri):
    """Nothing was raised, everything is recorded, and the message has each figure with its bound."""
    prepared()
    bounds = {"accuracy": 0.5, "recall": {"min": 2}, "log_loss": 0.0001, "roc_auc": {"min": 0.1, "max": 0.2}}
    result = evaluate({"evaluation": {"thresholds": bounds}}, tracking_uri=store_uri)
    assert (False, None) == (result.success, result.exception)
    values = result.metrics
    assert {"accuracy", "precision", "recall", "f1", "log_loss", "roc_auc"} == set(values)
    assert result.error_message == (
        f"recall is {values['recall']:.6g}, and must be at least 2; "
        f"log_loss is {values['log_loss']:.6g}, and must be at most 0.0001; "
        f"roc_auc is {values['roc_auc']:.6g}, and must be at least 0.1 and at most 0.2"
    )
    assert {"value": values["accuracy"], "bound": "at least 0.5", "holds": True} == (
        result.metadata["thresholds"]["accuracy"]
    )
    assert [True, False, False, False] == [
        verdict["holds"] for verdict in result.metadata["thresholds"].values()
    ]
    run = MlflowClient(store_uri).get_run(result.metadata["mlflow_run_id"])
    assert ("FINISHED", "failed", values) == (
        run.info.status,
        run.data.tags["mlpipeline.thresholds"],
        run.data.metrics,
    )
    assert "3 thresholds missed" in Path("out/evaluation/report.html").read_text("utf-8")

    result = evaluate({"evaluation": {"thresholds": {"accuracy": 0.5}}}, tracking_uri=store_uri)
    assert result.success
    run = MlflowClient(store_uri).get_run(result.metadata["mlflow_run_id"])
    assert "passed" == run.data.tags["mlpipeline.thresholds"]


@pytest.mark.parametrize(
    ("name", "value", "bounds", "bound", "holds"),
    [
        ("accuracy", 0.8, 0.8, "at least 0.8", True),
        ("accuracy", 0.79, 0.8, "at least 0.8", False),
        ("rmse", 0.8, 0.8, "at most 0.8", True),
        ("rmse", 0.81, 0.8, "at most 0.8", False),
        ("neg_root_mean_squared_error", -0.7, -0.8, "at least -0.8", True),
        ("accuracy", 0.9, {"min": 0.5, "max": 0.9}, "at least 0.5 and at most 0.9", True),
        ("accuracy", 0.91, {"min": 0.5, "max": 0.9}, "at least 0.5 and at most 0.9", False),
        ("accuracy", 0.49, {"min": 0.5, "max": 0.9}, "at least 0.5 and at most 0.9", False),
        ("rmse", 3, {"limit": 5, "max": 2}, "at most 2", False),
        ("accuracy", 0.6, {"limit": 0.7, "min": 0.5}, "at least 0.7", False),
    ],
)
def test_a_bound_is_on_the_side_that_the_metric_has(name, value, bounds, bound, holds):
    """A plain number is the least of a score and the most of an error; the stricter of two counts."""
    found = evaluation._verdict(name, value, Bounds.model_validate(bounds))
    assert (bound, holds) == (found.bound, found.holds)


@pytest.mark.parametrize("section", [{"metrics": ["acuracy"]}, {"thresholds": {"acuracy": 0.5}}])
def test_an_unknown_metric_names_the_nearest(prepared, section):
    """Before anything is loaded; `setup` says it, too."""
    result = evaluate({"evaluation": section}, **OFF)
    assert isinstance(result.exception, ConfigError)
    assert "metric 'acuracy' is unknown; near it are 'accuracy'" in result.error_message
    with pytest.raises(ConfigError, match="'acuracy' is unknown"):
        MLflowIntegratedEvaluator().setup(context_of({"evaluation": section}))


# --- plots -------------------------------------------------------------------------------------------


def test_a_column_matters_as_much_as_its_shuffled_values_cost(prepared):
    """The same with the same seed, and of an error, too, more is worse."""
    for frame, model, metric in (
        (rows(), LogisticRegression(), "accuracy"),
        (numbers(), LinearRegression(), "rmse"),
    ):
        prepared(frame, model)
        drawn = []
        for seed in (0, 0, 1):
            evaluate({"evaluation": {"seed": seed, "metrics": [metric], "on": "all"}}, **OFF)
            drawn.append(Path("out/evaluation/permutation_importance.svg").read_text("utf-8"))
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[0].index(">size<") < drawn[0].index(">noise<")
        assert "#c4581d" not in drawn[0].partition(">noise<")[0], "a loss, not a gain"


def test_what_is_switched_off_is_not_made(prepared):
    """Report, importance, all plots."""
    prepared()
    files = {
        "report": {"report.html"},
        "permutation_importance": {"permutation_importance.svg"},
    }
    everything = {Path(path).name for path in evaluate({}, **OFF).artifacts}
    assert everything - files["report"] == names_of({"report": False})
    assert everything - files["permutation_importance"] == names_of({"permutation_importance": False})
    assert {"report.html"} == names_of({"plots": False})
    assert set() == names_of({"plots": False, "report": False})


def names_of(section):
    return {Path(path).name for path in evaluate({"evaluation": section}, **OFF).artifacts}


def test_evaluating_draws_no_random_number_of_the_users(prepared):
    """A dummy that guesses draws the global ones; they are put back."""
    prepared(model=DummyClassifier(strategy="stratified"))
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    assert evaluate({}, **OFF).success
    assert expected == np.random.random()  # noqa: NPY002


def test_a_folder_that_cannot_be_written_costs_the_files_there_only(prepared, store_uri):
    """MLflow has them all the same."""
    prepared()
    Path("out/evaluation").write_text("in the way")
    result = evaluate({}, tracking_uri=store_uri)
    assert (True, []) == (result.success, result.artifacts)
    found = MlflowClient(store_uri).list_artifacts(result.metadata["mlflow_run_id"], "evaluation")
    assert "evaluation/report.html" in {item.path for item in found}


# --- when things go wrong ----------------------------------------------------------------------------


def test_without_a_model_it_says_what_to_do():
    """No run is made of it."""
    rows().to_csv("rows.csv", index=False)
    result = evaluate({"data": {"path": "rows.csv"}}, **OFF)
    assert isinstance(result.exception, ConfigError)
    assert "there is no model to evaluate: no trained_model.pkl in " in result.error_message
    assert "or write evaluation: {model: models:/name@alias}" in result.error_message


@pytest.mark.parametrize("model", ["models:/sizes@best", "0123456789abcdef0123456789abcdef"])
def test_a_registry_that_is_away_is_told_within_seconds(model):
    """Without MLflow's repetitions, which take minutes."""
    rows().to_csv("rows.csv", index=False)
    began_s = time.monotonic()
    config = {"data": {"path": "rows.csv"}, "evaluation": {"model": model}}
    result = evaluate(config, tracking_uri=NOBODY)
    assert time.monotonic() - began_s < 8
    assert isinstance(result.exception, Unavailable)
    assert f"the model {model} cannot be had from {NOBODY}: {NOBODY} does not answer" in result.error_message


def test_nothing_reachable_leaves_a_local_id_and_everything_arrives_later(store_uri, deliver, mlflow_client):
    """Model and evaluation were recorded on an island; the link between them arrives with them."""
    rows().to_csv("rows.csv", index=False)
    config = {"data": {"path": "rows.csv"}, "training": {"model": {"model_type": "logistic_regression"}}}
    options = {"tracking_uri": store_uri, "delivery": "offline"}
    training = MLflowIntegratedTrainer(**options).execute(context_of(config))
    result = MLflowIntegratedEvaluator(**options).execute(context_of(config))
    assert result.success, result.error_message
    assert (True, False, None) == (
        result.metadata["mlflow_run_id"].startswith(LOCAL_PREFIX),
        result.metadata["mlflow_is_delivered"],
        result.metadata["evaluated_model_uri"],
    )
    assert training.metadata["mlflow_run_id"] == result.metadata["evaluated_run_id"]
    deliver()
    client = mlflow_client(store_uri)
    (model,) = client.search_logged_models(["0", *[e.experiment_id for e in client.search_experiments()]])
    assert result.metrics == {
        metric.key: metric.value for metric in model.metrics if metric.dataset_name == "test"
    }


def test_without_tracking_it_works_all_the_same(prepared, home):
    """No id, no journal; figures, plots and report."""
    prepared()
    result = evaluate({"mlflow": {"enabled": False}}, tracking_uri=NOBODY)
    assert result.success, result.error_message
    assert (None, None) == (result.metadata["mlflow_run_id"], result.metadata["evaluated_model_uri"])
    assert not home.exists()
    assert "disabled" in Path("out/evaluation/report.html").read_text("utf-8")


def test_the_contexts_options_win_over_the_constructors(prepared, store_uri):
    """Of the `mlflow:` section, one by one."""
    prepared()
    config = {"mlflow": {"experiment_name": "from-context"}}
    result = evaluate(config, tracking_uri=store_uri, experiment_name="from-constructor", run_name="mine")
    client = MlflowClient(store_uri)
    run = client.get_run(result.metadata["mlflow_run_id"])
    assert ("from-context", "mine") == (
        client.get_experiment(run.info.experiment_id).name,
        run.info.run_name,
    )


class Stopped(LogisticRegression):
    """A model whose user presses Ctrl-C."""

    def predict(self, X):
        raise KeyboardInterrupt


class Broken(LogisticRegression):
    """A model that does not work."""

    def predict(self, X):
        raise RuntimeError("the disk is full of eels")


def test_who_wants_to_stop_stops(prepared):
    """Ctrl-C ends the pipeline and not only its stage."""
    prepared(model=Stopped())
    with pytest.raises(KeyboardInterrupt):
        evaluate({}, **OFF)


def test_a_model_that_raises_fails_the_run_with_its_reason(prepared, store_uri):
    """The result and the run say it in its own words."""
    prepared(model=Broken())
    result = evaluate({}, tracking_uri=store_uri)
    assert (False, "the disk is full of eels", RuntimeError) == (
        result.success,
        result.error_message,
        type(result.exception),
    )
    run = MlflowClient(store_uri).get_run(result.metadata["mlflow_run_id"])
    assert ("FAILED", "RuntimeError") == (run.info.status, run.data.tags["exception"])


def test_a_file_that_holds_no_model_says_so(prepared):
    """Cut in the middle, or of a class that is gone."""
    prepared()
    path = Path("out/trained_model.pkl")
    path.write_bytes(path.read_bytes()[:50])
    result = evaluate({}, **OFF)
    assert isinstance(result.exception, UsageError)
    assert "trained_model.pkl cannot be loaded" in result.error_message


def test_it_is_a_component():
    """With a logger of its own."""
    evaluator = MLflowIntegratedEvaluator()
    assert isinstance(evaluator, Component)
    assert "mlpipeline.evaluation" == evaluator.logger.name
