"""What an XGBoost training leaves in MLflow, held against what XGBoost itself reports."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import dask.array as dask_array
import mlflow
import mlflow.pyfunc
import mlflow.xgboost
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

import mlpipeline
from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import ConfigError, UnloggableError, UsageError
from mlpipeline.testing import record
from mlpipeline.tracking import trainings
from mlpipeline.tracking.directions import is_greater_better
from mlpipeline.tracking.flavors import flavor_of
from mlpipeline.tracking.names import metric_key
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.staging import signature_for
from mlpipeline.xgboost import IMPORTANCE_TYPES, MLflowCallback

SRC = str(Path(mlpipeline.__file__).parents[1])
X, Y = load_breast_cancer(return_X_y=True, as_frame=True)
ROWS = slice(0, 300)
BINARY = {"objective": "binary:logistic", "eval_metric": ["auc", "logloss"], "max_depth": 2, "nthread": 1}
OVERFITTING = {**BINARY, "eta": 1.0, "max_depth": 6}


def matrices():
    """Training and validation data."""
    return xgb.DMatrix(X[ROWS], Y[ROWS]), xgb.DMatrix(X[300:], Y[300:])


def train(*callbacks, params=BINARY, rounds=4, **options):
    """Train on both eval sets; return the booster and what XGBoost reports."""
    training, validation = matrices()
    result = {}
    booster = xgb.train(
        {"nthread": 1, **params},
        training,
        rounds,
        evals=[(training, "train"), (validation, "valid")],
        callbacks=list(callbacks),
        evals_result=result,
        verbose_eval=False,
        **options,
    )
    return booster, result


def flat(result):
    """XGBoost's report by our names."""
    return {f"{data}-{name}": values for data, metrics in result.items() for name, values in metrics.items()}


def histories(recorded, *, best=False):
    """The recorded curves, without what is said once at the end."""
    once = ("best_", "stopped_iteration", "num_boosted_rounds")
    return {name: values for name, values in recorded.metrics.items() if best or not name.startswith(once)}


class StopError(Exception):
    """What goes wrong in a training."""


def raising(kind, at=2):
    """A callback that fails after some rounds."""

    class Raising(xgb.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            if epoch == at:
                raise kind
            return False

    return Raising()


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline", log_model=False)


@pytest.fixture
def models(store_uri, mlflow_client):
    """The logged models, wherever they are."""

    def models():
        client = mlflow_client(store_uri)
        return list(client.search_logged_models([item.experiment_id for item in client.search_experiments()]))

    return models


@pytest.fixture
def recorded():
    """What is recorded, in memory."""
    with record() as found:
        yield found


# --- metrics ----------------------------------------------------------------------------------------


def test_every_value_of_every_round_arrives(offline, runs, store_uri, mlflow_client):
    """As evals_result has it, by autolog's names, and nothing is appended to a curve."""
    _, result = train(MLflowCallback(offline))
    [run] = runs()
    client = mlflow_client(store_uri)
    assert {"train-auc", "train-logloss", "valid-auc", "valid-logloss"} == set(flat(result))
    for name, values in flat(result).items():
        points = client.get_metric_history(run.info.run_id, name)
        assert list(enumerate(values)) == [(point.step, point.value) for point in points]
    assert "FINISHED" == run.info.status


def test_a_round_is_one_record(recorded, monkeypatch):
    """Whatever the number of metrics: one write."""
    calls = []
    append = recorded.append_metrics
    monkeypatch.setattr(
        recorded, "append_metrics", lambda keys, *rest: calls.append(keys) or append(keys, *rest)
    )
    train(MLflowCallback(log_model=False))
    assert 4 == len([keys for keys in calls if "valid-auc" in keys])


def test_xgb_cv_records_mean_and_std(recorded):
    """By the names of the columns that `xgb.cv` returns; rows per fold; no model."""
    table = xgb.cv(
        {**BINARY, "eval_metric": "auc"}, matrices()[0], 5, nfold=3, callbacks=[MLflowCallback()], seed=1
    )
    assert table.to_dict("list") == histories(recorded)
    assert ("3", "200", "100") == tuple(
        recorded.params[name] for name in ("nfold", "data.train.rows", "data.test.rows")
    )
    best = int(table["test-auc-mean"].argmax())
    assert [best] == recorded.steps["best_test-auc-mean"]
    assert [table["test-auc-mean"].max()] == recorded.metrics["best_test-auc-mean"]
    assert (["FINISHED"], []) == (recorded.statuses, recorded.models)


def test_xgb_cv_stops_early(recorded):
    """The best round's mean; XGBoost cuts its table there, the record goes on to where it stopped."""
    table = xgb.cv(
        OVERFITTING,
        matrices()[0],
        50,
        metrics="logloss",
        early_stopping_rounds=3,
        callbacks=[MLflowCallback()],
    )
    rounds = recorded.metrics["num_boosted_rounds"][0]
    assert len(table) - 1 == recorded.metrics["best_iteration"][0] == rounds - 4
    assert table["test-logloss-mean"].iloc[-1] == recorded.metrics["best_score"][0]
    assert rounds == len(recorded.metrics["test-logloss-std"])


def test_the_scikit_learn_interface_with_early_stopping_and_two_eval_sets(recorded):
    """Named as XGBoost names them; the callback is the user's own instance."""
    callback = MLflowCallback()
    model = xgb.XGBClassifier(
        n_estimators=50,
        learning_rate=1.0,
        eval_metric=["auc", "logloss"],
        early_stopping_rounds=3,
        callbacks=[callback],
    )
    model.fit(X[ROWS], Y[ROWS], eval_set=[(X[ROWS], Y[ROWS]), (X[300:], Y[300:])], verbose=False)
    assert flat(model.evals_result()) == histories(recorded)
    assert {"validation_0-auc", "validation_1-logloss"} <= set(recorded.metrics)
    assert [model.best_iteration] == recorded.metrics["best_iteration"]
    assert [model.best_score] == recorded.metrics["best_score"]
    assert [model.get_booster().num_boosted_rounds() - 1] == recorded.metrics["stopped_iteration"]
    assert callback.run.is_ended


def test_the_best_value_of_each_metric_knows_its_direction(recorded):
    """AUC up, loss down, at the round where it was; also without early stopping."""
    _, result = train(MLflowCallback(), params=OVERFITTING, rounds=20)
    for name, values in flat(result).items():
        pick = np.argmax if "auc" in name else np.argmin
        assert [int(pick(values))] == recorded.steps[f"best_{name}"]
        assert [values[pick(values)]] == recorded.metrics[f"best_{name}"]
    assert not {"best_iteration", "stopped_iteration"} & set(recorded.metrics)


@pytest.mark.parametrize(
    ("objective", "metric", "maximize"),
    [
        *(("rank:ndcg", metric, True) for metric in ("ndcg@3", "ndcg@3-", "map", "map@2", "pre@2")),
        *(("binary:logistic", metric, False) for metric in ("error@0.7", "logloss", "mape", "mphe")),
        ("count:poisson", "poisson-nloglik", False),
        ("reg:gamma", "gamma-deviance", False),
        ("reg:tweedie", "tweedie-nloglik@1.4", False),
    ],
)
def test_metrics_with_a_suffix_know_their_direction(objective, metric, maximize, recorded):
    """The name that arrives is the one that XGBoost reports."""
    data = xgb.DMatrix(X[ROWS], Y[ROWS] + (objective == "reg:gamma"), qid=np.arange(300) // 30)
    result = {}
    xgb.train(
        {"objective": objective, "eval_metric": metric, "max_depth": 1},
        data,
        4,
        evals=[(data, "train")],
        evals_result=result,
        callbacks=[MLflowCallback()],
        verbose_eval=False,
    )
    [(name, values)] = flat(result).items()
    assert f"train-{metric}" == name
    assert values == recorded.metrics[name]
    assert [max(values) if maximize else min(values)] == recorded.metrics[f"best_{name}"]


@pytest.mark.parametrize(
    ("metric", "is_greater"),
    [
        *((f"{name}{at}", True) for name in ("pre", "map", "ndcg") for at in ("", "@3", "@3-")),
        *((name, True) for name in ("auc", "aucpr", "interval-regression-accuracy")),
        *((name, False) for name in ("rmse", "rmsle", "mae", "mape", "mphe", "quantile")),
        *((name, False) for name in ("logloss", "mlogloss", "error", "error@0.7", "merror")),
        *((name, False) for name in ("poisson-nloglik", "gamma-nloglik", "gamma-deviance")),
        *((name, False) for name in ("tweedie-nloglik@1.5", "cox-nloglik", "aft-nloglik")),
    ],
)
def test_the_direction_of_each_metric_of_xgboosts_is_known_everywhere(metric, is_greater):
    """By one list: that of comparisons, promotions and `--keep-best`, under every name that it may have there."""
    data = xgb.DMatrix(X[:4], Y[:4])
    needed = {"quantile_alpha": 0.5} if metric == "quantile" else {}
    booster = xgb.Booster({"eval_metric": metric, **needed}, [data])
    assert json.dumps(metric) in booster.save_config().replace(" ", ""), "XGBoost knows it"
    for name in (metric, f"best_valid-{metric}", metric_key(f"valid-{metric}"), f"test-{metric}-mean"):
        assert is_greater is is_greater_better(name), name


def test_a_name_that_mlflow_refuses_arrives_escaped(offline, runs):
    """Autolog rewrites only this character, and not back."""
    data = xgb.DMatrix(X[ROWS], Y[ROWS], qid=np.arange(300) // 30)
    params = {"objective": "rank:ndcg", "eval_metric": "ndcg@3"}
    xgb.train(params, data, 2, evals=[(data, "t")], callbacks=[MLflowCallback(offline)], verbose_eval=False)
    [run] = runs()
    assert "t-ndcg__at__3" in run.data.metrics


def test_a_custom_objective_and_metric(recorded):
    """Recorded like any other; its best is told only where early stopping says which way is better."""

    def squared(prediction, data):
        return prediction - data.get_label(), np.ones_like(prediction)

    def distance(prediction, data):
        return "distance", float(np.abs(prediction - data.get_label()).mean())

    options = {"obj": squared, "custom_metric": distance, "params": {"disable_default_eval_metric": 1}}
    _, result = train(MLflowCallback(), **options)
    assert flat(result) == histories(recorded)
    assert "best_valid-distance" not in recorded.metrics
    with record() as stopped:
        booster, _ = train(MLflowCallback(), **options, rounds=60, early_stopping_rounds=5)
    assert [booster.best_score] == stopped.metrics["best_valid-distance"]
    assert [booster.best_iteration] == stopped.steps["best_valid-distance"]
    with record() as resumed:
        booster, _ = train(MLflowCallback(), **options, rounds=60, early_stopping_rounds=5, xgb_model=booster)
    assert [booster.best_score] == resumed.metrics["best_valid-distance"]
    assert [booster.best_iteration] == resumed.steps["best_valid-distance"]


def test_a_custom_metric_with_a_telling_name_has_a_best_value(recorded):
    """As a comparison of runs would see it."""
    values = iter([0.5, 0.5, 0.7, 0.7, 0.6, 0.6, 0.1, 0.1])

    def f1(prediction, data):
        return "f1", next(values)

    train(MLflowCallback(), params={"disable_default_eval_metric": 1}, custom_metric=f1)
    assert ([0.7], [1]) == (recorded.metrics["best_valid-f1"], recorded.steps["best_valid-f1"])


def test_two_metrics_of_one_name_are_told_apart(recorded):
    """The default one and the user's own; XGBoost's report mixes them in one list."""

    def rmse(prediction, data):
        return "rmse", 7.0

    _, result = train(MLflowCallback(), params={}, custom_metric=rmse)
    assert result["valid"]["rmse"][::2] == recorded.metrics["valid-rmse"]
    assert [7.0] * 4 == recorded.metrics["valid-rmse.2"]


def test_a_metric_that_comes_and_goes_is_recorded_at_its_rounds(recorded):
    """Most rounds are like the one before; each that is not has its own values at its own step."""
    calls = iter(range(100))

    def now_and_then(values, matrix):
        at, of = divmod(next(calls), 2)
        return ("late", 0.5 + at) if at in {2, 3} else ("other", 10.0 + at + of / 2)

    train(MLflowCallback(), rounds=6, params={"disable_default_eval_metric": 1}, custom_metric=now_and_then)
    assert ([2, 3], [2.5, 3.5]) == (recorded.steps["valid-late"], recorded.metrics["valid-late"])
    assert ([0, 1, 4, 5], [10.5, 11.5, 14.5, 15.5]) == (
        recorded.steps["valid-other"],
        recorded.metrics["valid-other"],
    )


def test_a_value_that_is_nan_in_the_middle_is_told(recorded):
    """Also in a round of the same metrics as the ones before."""
    calls = iter(range(100))

    def broken(values, matrix):
        return "error", math.nan if next(calls) == 5 else 0.5

    train(MLflowCallback(), rounds=4, params={"disable_default_eval_metric": 1}, custom_metric=broken)
    assert [False, False, True, False] == [math.isnan(value) for value in recorded.metrics["valid-error"]]
    assert "nan at step 2" == recorded.tags["mlpipeline.nonfinite.valid-error"]


def test_nan_is_kept_and_never_best(offline, runs, store_uri, mlflow_client):
    """A metric that is NaN in the first round only."""
    rounds = iter(range(100))

    def error(prediction, data):
        return "error", math.nan if next(rounds) < 2 else 0.5

    train(MLflowCallback(offline), params={"disable_default_eval_metric": 1}, custom_metric=error)
    [run] = runs()
    points = mlflow_client(store_uri).get_metric_history(run.info.run_id, "valid-error")
    assert [True, False, False, False] == [math.isnan(point.value) for point in points]
    assert 0.5 == run.data.metrics["best_valid-error"]
    assert "nan at step 0" == run.data.tags["mlpipeline.nonfinite.valid-error"]


def test_rounds_are_thinned_but_for_the_last(recorded):
    """`log_every_n_steps`; the best is still that of all rounds."""
    _, result = train(MLflowCallback(log_every_n_steps=3), rounds=8)
    assert [2, 5, 7] == recorded.steps["valid-auc"]
    assert [max(result["valid"]["auc"])] == recorded.metrics["best_valid-auc"]


def test_the_folds_of_a_cross_validation_have_curves_of_their_own_if_asked_for(recorded):
    """Their means are those that XGBoost reports; asking changes nothing in the training."""
    options = {"num_boost_round": 4, "nfold": 3, "seed": 7}
    plain = xgb.cv(BINARY, matrices()[0], **options, callbacks=[MLflowCallback()])
    assert not [name for name in recorded.metrics if "fold_" in name]
    with record() as folds:
        table = xgb.cv(BINARY, matrices()[0], **options, callbacks=[MLflowCallback(fold_metrics=True)])
    pd.testing.assert_frame_equal(plain, table)
    for name in ("train-auc", "test-auc", "train-logloss", "test-logloss"):
        curves = [folds.metrics[f"{name}-fold_{number}"] for number in range(3)]
        assert len({tuple(curve) for curve in curves}) == 3
        assert table[f"{name}-mean"].tolist() == pytest.approx(np.mean(curves, axis=0).tolist())
        assert [0, 1, 2, 3] == folds.steps[f"{name}-fold_0"]


def test_fold_metrics_mean_nothing_to_a_single_training(recorded):
    """One callback serves both."""
    _, result = train(MLflowCallback(fold_metrics=True))
    assert flat(result) == histories(recorded)


def test_a_callback_before_ours_that_stops_hides_nothing(recorded):
    """XGBoost does not call those behind it in that round; its values are recorded at the end."""

    class Stop(xgb.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            return epoch == 2

    _, result = train(Stop(), MLflowCallback(), rounds=10)
    assert flat(result) == histories(recorded)
    assert [0, 1, 2] == recorded.steps["valid-auc"]
    with record() as first:
        train(MLflowCallback(), Stop(), rounds=10)
    assert first.metrics == recorded.metrics


def test_without_an_eval_set_there_is_a_run_with_a_model(recorded):
    """Nothing to draw, but hyperparameters, importance, model."""
    xgb.train(BINARY, matrices()[0], 3, callbacks=[MLflowCallback()])
    assert {"num_boosted_rounds": [3.0]} == recorded.metrics
    assert ["model"] == recorded.models


def test_steps_go_on_where_the_given_booster_ended(recorded):
    """And what its early stopping once found is not taken for news."""
    booster, _ = train(params=OVERFITTING, rounds=30, early_stopping_rounds=3)
    had = booster.num_boosted_rounds()
    train(MLflowCallback(), xgb_model=booster, rounds=3)
    assert [had, had + 1, had + 2] == recorded.steps["valid-auc"]
    assert [had + 3] == recorded.metrics["num_boosted_rounds"]
    assert "best_iteration" not in recorded.metrics
    assert had <= recorded.steps["best_valid-auc"][0]


def test_early_stopping_counts_from_the_first_booster(recorded):
    """As XGBoost's own best_iteration does."""
    first, _ = train(params=OVERFITTING, rounds=2)
    booster, result = train(
        MLflowCallback(), params=OVERFITTING, rounds=50, early_stopping_rounds=3, xgb_model=first
    )
    assert [booster.best_iteration] == recorded.metrics["best_iteration"]
    assert [booster.num_boosted_rounds() - 1] == recorded.metrics["stopped_iteration"]
    assert result["valid"]["logloss"][booster.best_iteration - 2] == recorded.metrics["best_score"][0]


# --- params -----------------------------------------------------------------------------------------


def test_hyperparameters_are_those_that_xgboost_trains_with(recorded):
    """Given ones and defaults under XGBoost's short names, as the user writes them; no None, no internals."""
    train(MLflowCallback(params={"num_boost_round": 4}), params={**BINARY, "eta": 0.05})
    expected = {
        "objective": "binary:logistic",
        "booster": "gbtree",
        "eta": "0.05",
        "learning_rate": "0.05",
        "max_depth": "2",
        "lambda": "1",
        "reg_lambda": "1",
        "tree_method": "auto",
        "subsample": "1",
        "num_feature": "30",
        "eval_metric": '["auc", "logloss"]',
        "num_boost_round": "4",
        "sparse_threshold": "0.2",
    }
    assert expected.items() <= recorded.params.items()
    assert not {"None", "", "()"} & set(recorded.params.values())
    assert not {"updater_seq", "validate_parameters", "name"} & set(recorded.params)
    assert "base_score" not in recorded.params, "it is estimated, and not what it says before that"


def test_what_xgboost_chooses_late_is_recorded_at_the_end(recorded):
    """The objective's own metric; and the base score where the user chose it."""
    train(MLflowCallback(), params={"base_score": 0.3, "objective": "binary:logistic"})
    assert ("logloss", "0.3") == (recorded.params["eval_metric"], recorded.params["base_score"])


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"booster": "dart", "rate_drop": 0.3}, {"rate_drop": 0.3, "normalize_type": "tree"}),
        ({"booster": "gblinear", "eta": 0.1}, {"eta": 0.1, "feature_selector": "cyclic"}),
        (
            {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]},
            {"quantile_alpha": [0.1, 0.9], "num_target": 2},
        ),
        ({"objective": "rank:ndcg", "eval_metric": "ndcg@3"}, {"lambdarank_pair_method": "topk"}),
    ],
)
def test_every_booster_and_objective_has_its_own(params, expected, recorded):
    """They stand at different depths of XGBoost's configuration."""
    train(MLflowCallback(), params=params, rounds=1)
    assert {name: str(value) for name, value in expected.items()}.items() <= recorded.params.items()


def test_a_training_that_fails_at_once_has_its_hyperparameters(recorded):
    """Labels that the objective refuses are XGBoost's most usual failure."""
    callback = MLflowCallback()
    data = xgb.DMatrix(X, Y + 5)
    with pytest.raises(xgb.core.XGBoostError, match=r"for (the )?logistic (loss|regression)"), callback:
        xgb.train(BINARY, data, 3, callbacks=[callback])
    assert (["FAILED"], "2") == (recorded.statuses, recorded.params["max_depth"])


# --- model and importance -----------------------------------------------------------------------------


def test_the_model_ends_at_its_best_iteration_and_is_registered(offline, store_uri, deliver, models):
    """Reloaded by XGBoost and as a pyfunc, it predicts what the best rounds predict; its signature has names."""
    config = offline.replace(log_model=True, register_model=True, model_name="cancer", model_alias="champion")
    callback = MLflowCallback(config)
    booster, _ = train(callback, params=OVERFITTING, rounds=50, early_stopping_rounds=3)
    deliver()
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    best = booster.predict(matrices()[1], iteration_range=(0, booster.best_iteration + 1))
    loaded = callback.load_model()
    assert booster.best_iteration + 1 == loaded.num_boosted_rounds()
    np.testing.assert_array_equal(best, loaded.predict(matrices()[1]))
    mlflow.set_tracking_uri(store_uri)
    served = mlflow.pyfunc.load_model("models:/cancer@champion")
    np.testing.assert_array_equal(best, served.predict(X[300:]))
    assert list(X.columns) == served.metadata.signature.inputs.input_names()
    [model] = models()
    assert ("best iteration", str(1)) == (model.tags["mlpipeline.weights"], str(callback.model_version))


def test_importance_is_that_of_the_logged_model(offline, runs, store_uri, mlflow_client, tmp_path):
    """As JSON by autolog's name, and drawn."""
    callback = MLflowCallback(offline, importance_types=("gain", "total_cover"))
    booster, _ = train(callback, params=OVERFITTING, rounds=50, early_stopping_rounds=3)
    [run] = runs()
    client = mlflow_client(store_uri)
    for kind in ("gain", "total_cover"):
        path = client.download_artifacts(run.info.run_id, f"feature_importance_{kind}.json", str(tmp_path))
        expected = booster[: booster.best_iteration + 1].get_score(importance_type=kind)
        assert expected == json.loads(Path(path).read_text())
        drawn = client.download_artifacts(run.info.run_id, f"feature_importance_{kind}.svg", str(tmp_path))
        texts = [text.text for text in ET.parse(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert max(expected, key=expected.get) == texts[1]


def test_a_linear_model_has_one_importance_and_is_never_cut(recorded, caplog):
    """Its coefficients, one per class; nothing that it has not is asked of it."""
    params = {"booster": "gblinear", "objective": "multi:softprob", "num_class": 2, "eval_metric": "mlogloss"}
    impatient = xgb.callback.EarlyStopping(rounds=2, min_delta=100.0)
    booster, _ = train(MLflowCallback(), impatient, params=params, rounds=5)
    assert (0, 3) == (booster.best_iteration, booster.num_boosted_rounds())
    assert [] == [entry.getMessage() for entry in caplog.records if entry.name == "mlpipeline"]
    assert ["feature_importance_weight.json", "feature_importance_weight.svg"] == sorted(recorded.artifacts)
    assert ["model"] == recorded.models


def labels(kind):
    """Labels that an objective takes."""
    three = np.arange(len(X)) % 3
    return {"multi": three, "pair": np.stack([Y, 1 - Y], axis=1), "gamma": Y + 1}.get(kind, Y)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"objective": "binary:logistic"}, ""),
        ({"objective": "binary:logistic"}, "pair"),
        ({"objective": "multi:softprob", "num_class": 3}, "multi"),
        ({"objective": "multi:softmax", "num_class": 3}, "multi"),
        ({"objective": "multi:softprob", "num_class": 3, "booster": "gblinear"}, "multi"),
        ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}, ""),
        ({"multi_strategy": "multi_output_tree"}, "pair"),
        ({"booster": "dart", "num_parallel_tree": 2}, ""),
        ({"objective": "rank:pairwise"}, ""),
        ({"objective": "survival:cox"}, ""),
        ({"objective": "reg:gamma"}, "gamma"),
    ],
)
def test_a_booster_knows_its_signature(params, kind):
    """The same that its predictions would show."""
    data = xgb.DMatrix(X, labels(kind), qid=np.zeros(len(X)) if "rank" in str(params) else None)
    booster = xgb.train(params, data, 2)
    known = signature_for(flavor_of(booster), booster, None)
    assert signature_for(flavor_of(booster), booster, X) == known


def test_a_wrapper_does_not_know_its_signature(caplog):
    """What its predict returns is the wrapper's, not the booster's, to say."""
    model = xgb.XGBClassifier(n_estimators=1).fit(X, Y)
    assert signature_for(flavor_of(model), model, None) is None
    assert not caplog.records


def test_arrays_have_a_signature_and_are_served(tmp_path):
    """A QuantileDMatrix of an array: there never were names."""
    values = X.to_numpy()
    booster = xgb.train(BINARY, xgb.QuantileDMatrix(values, Y), 2)
    mlpipeline.tracking.staging.stage_model(booster, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert (-1, 30) == served.metadata.signature.inputs.inputs[0].shape
    np.testing.assert_array_equal(booster.inplace_predict(values), served.predict(values))


def test_columns_of_every_type_are_served(tmp_path):
    """Whole numbers, booleans, and categories by their codes, which is what MLflow's pyfunc can pass on."""
    frame = pd.DataFrame(
        {
            "size": np.arange(40),
            "share": np.linspace(0, 1, 40),
            "flag": [True, False] * 20,
            "kind": pd.Categorical(list("xyyx" * 10)),
        }
    )
    data = xgb.DMatrix(frame, (np.arange(40) % 4 > 1), enable_categorical=True)
    booster = xgb.train({"max_depth": 3, "min_child_weight": 0}, data, 5)
    mlpipeline.tracking.staging.stage_model(booster, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    coded = frame.assign(kind=frame["kind"].cat.codes)
    np.testing.assert_array_equal(booster.predict(data), served.predict(coded))
    loaded = mlflow.xgboost.load_model(str(tmp_path / "model"))
    np.testing.assert_array_equal(booster.predict(data), loaded.predict(data))


class Batches(xgb.DataIter):
    """Data that comes in parts, kept outside of memory."""

    def __init__(self, folder):
        self._at = 0
        super().__init__(cache_prefix=os.fspath(folder / "cache"))

    def next(self, input_data):
        if self._at == 3:
            return False
        rows = slice(self._at * 100, (self._at + 1) * 100)
        input_data(data=X[rows], label=Y[rows])
        self._at += 1
        return True

    def reset(self):
        self._at = 0


@pytest.mark.parametrize(
    "kind",
    ["quantile", "external", pytest.param("external quantile", marks=pytest.mark.needs("xgboost>=3"))],
)
def test_data_of_every_kind_gives_a_whole_record(kind, tmp_path, offline, runs, store_uri, deliver):
    """Also where no frame ever existed, the model has a signature and can be served."""
    make = {
        "quantile": lambda: xgb.QuantileDMatrix(X[ROWS], Y[ROWS]),
        "external": lambda: xgb.DMatrix(Batches(tmp_path)),
        "external quantile": lambda: xgb.ExtMemQuantileDMatrix(Batches(tmp_path)),
    }
    data = make[kind]()
    callback, result = MLflowCallback(offline, log_model=True), {}
    booster = xgb.train(
        BINARY, data, 3, evals=[(data, "t")], callbacks=[callback], evals_result=result, verbose_eval=False
    )
    [run] = runs()
    assert flat(result)["t-auc"][-1] == run.data.metrics["t-auc"]
    mlflow.set_tracking_uri(store_uri)
    served = mlflow.pyfunc.load_model(callback.model_uri)
    assert list(X.columns) == served.metadata.signature.inputs.input_names()
    np.testing.assert_array_equal(booster.predict(matrices()[1]), served.predict(X[300:]))


def test_a_model_can_be_left_out(recorded):
    """With the importances, which are facts about the training, still there."""
    train(MLflowCallback(log_model=False, importance_types="gain"))
    assert ([], ["feature_importance_gain.json", "feature_importance_gain.svg"]) == (
        recorded.models,
        sorted(recorded.artifacts),
    )


# --- nothing of the user's is touched -----------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {**OVERFITTING, "subsample": 0.5, "colsample_bynode": 0.5, "seed": 3},
        {"booster": "dart", "rate_drop": 0.3, "tree_method": "approx"},
        {"booster": "gblinear", "updater": "coord_descent"},
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]},
        {"objective": "reg:absoluteerror", "tree_method": "exact"},
    ],
)
def test_the_model_is_bit_for_bit_what_it_is_without_us(params, offline):
    """Weights, attributes and configuration; the params and the list of callbacks as they were."""
    params = {"nthread": 1, **params}
    given, callbacks = dict(params), [MLflowCallback(offline, log_model=True)]
    plain, report = train(params=given, rounds=12, early_stopping_rounds=5)
    kept = list(callbacks)
    data, other = matrices()
    result = {}
    ours = xgb.train(
        given,
        data,
        12,
        evals=[(data, "train"), (other, "valid")],
        callbacks=callbacks,
        early_stopping_rounds=5,
        evals_result=result,
        verbose_eval=False,
    )
    assert plain.save_raw("json") == ours.save_raw("json")
    assert plain.attributes() == ours.attributes()
    assert plain.save_config() == ours.save_config()
    assert report == result
    assert (params, kept) == (given, callbacks)


def test_random_numbers_are_drawn_by_nobody(offline):
    """NumPy's global state is where it was."""
    np.random.seed(5)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    train(MLflowCallback(offline, log_model=True))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


# --- one run per training -------------------------------------------------------------------------------


def test_one_instance_serves_several_trainings(offline, runs):
    """One run each, also after one that failed, which is FAILED by then."""
    callback = MLflowCallback(offline)
    train(callback)
    with pytest.raises(StopError):
        train(callback, raising(StopError))
    train(callback)
    assert ["FINISHED", "FAILED", "FINISHED"] == [run.info.status for run in runs()]


@pytest.mark.needs("xgboost>=3")
def test_a_training_that_raised_has_failed_when_its_callback_is_gone(recorded):
    """The usual line belongs to nobody else; the exception is the user's own."""
    with pytest.raises(StopError) as caught:
        train(MLflowCallback(), raising(StopError))
    assert [] == recorded.statuses
    del caught
    gc.collect()
    assert ["FAILED"] == recorded.statuses
    assert 3 == len(recorded.metrics["valid-auc"]), "the round in which it was raised is there"


def test_one_instance_in_two_threads_at_once_raises(recorded):
    """The second training is told; the first one's record is whole."""
    callback, begun, go_on = MLflowCallback(), threading.Event(), threading.Event()

    class Waiting(xgb.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            begun.set()
            assert go_on.wait(20)
            return False

    first = threading.Thread(target=train, args=(callback, Waiting()))
    first.start()
    assert begun.wait(20)
    with pytest.raises(UsageError, match="one training at a time"):
        train(callback)
    go_on.set()
    first.join()
    assert [0, 1, 2, 3] == recorded.steps["valid-auc"]
    assert ["FINISHED"] == recorded.statuses


@pytest.mark.parametrize(("kind", "status"), [(KeyboardInterrupt, "KILLED"), (StopError, "FAILED")])
def test_a_block_around_the_training_knows_the_exception(kind, status, recorded):
    """``with callback:`` ends the run at once."""
    callback = MLflowCallback()
    with pytest.raises(kind), callback:
        train(callback, raising(kind))
    assert [status] == recorded.statuses


INTERRUPTED = """
import sys
import numpy as np, xgboost as xgb
from mlpipeline.xgboost import MLflowCallback

class Raising(xgb.callback.TrainingCallback):
    def after_iteration(self, model, epoch, evals_log):
        if epoch == 1:
            raise {kind}
        return False

data = xgb.DMatrix(np.eye(8), np.arange(8) % 2)
callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline")
xgb.train({{}}, data, 5, evals=[(data, "t")], callbacks=[callback, Raising()], verbose_eval=False)
"""


@pytest.mark.process
@pytest.mark.parametrize(("kind", "status"), [("KeyboardInterrupt", "KILLED"), ("ValueError", "FAILED")])
def test_a_script_that_is_ended_by_an_exception_ends_its_run(kind, status, store_uri, runs, tmp_path):
    """At exit, though a variable of the script still holds the callback."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.format(kind=kind))
    environ = {**os.environ, "PYTHONPATH": SRC}
    ended = subprocess.run(
        [sys.executable, str(script), store_uri], env=environ, capture_output=True, text=True, check=False
    )
    assert kind in ended.stderr
    [run] = runs()
    assert status == run.info.status
    assert "t-rmse" in run.data.metrics


def test_a_given_run_is_shared_and_never_ended(offline, runs):
    """By two trainings and the user's own record."""
    with open_run(offline) as run:
        train(MLflowCallback(run=run))
        xgb.cv(BINARY, matrices()[0], 2, callbacks=[MLflowCallback(run=run)])
        assert not run.is_ended
        run.log_metrics({"own": 1.0}, step=0)
    [found] = runs()
    assert {"own", "valid-auc", "test-auc-mean"} <= set(found.data.metrics)


def test_a_run_is_nested_under_its_parent_or_the_enclosing_one(offline, runs):
    """Given, or by where it is trained."""
    with open_run(offline) as parent:
        train(MLflowCallback(offline, parent=parent))
        with trainings.inside(parent):
            train(MLflowCallback(offline))
    found = runs()
    top = next(run for run in found if run.data.tags["mlpipeline.uid"] == parent.uid)
    assert 2 == sum(run.data.tags.get("mlflow.parentRunId") == top.info.run_id for run in found)


def test_a_run_is_continued_by_its_id(offline, runs):
    """A second script goes on with the booster of the first, in its run."""
    booster, _ = train(MLflowCallback(offline), rounds=2)
    [first] = runs()
    train(MLflowCallback(offline, run_id=first.info.run_id), rounds=3, xgb_model=booster)
    [run] = runs()
    assert 5 == run.data.metrics["num_boosted_rounds"]
    assert "FINISHED" == run.info.status


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback)), copy.copy]
)
def test_a_copy_has_runs_of_its_own(twin, offline, runs):
    """Before and after a training."""
    callback = MLflowCallback(offline, importance_types=("cover",))
    train(callback)
    train(twin(callback))
    assert 2 == len(runs())


def test_nothing_is_recorded_when_switched_off():
    """And nothing is computed for it either."""
    callback = MLflowCallback(enabled=False)
    train(callback)
    assert callback.run_id is None


# --- in a search of scikit-learn's ------------------------------------------------------------------------


def estimator(*callbacks):
    """A classifier that is quick."""
    return xgb.XGBClassifier(n_estimators=3, max_depth=2, n_jobs=1, callbacks=list(callbacks))


def test_a_clone_has_runs_of_its_own(offline, runs):
    """Scikit-learn copies the callback with the estimator."""
    model = estimator(MLflowCallback(offline))
    clone(model).fit(X, Y)
    clone(model).fit(X, Y)
    assert 2 == len(runs())
    assert model.callbacks[0].run is None


@pytest.mark.process
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_records_its_refit_only(n_jobs, offline, runs, models):
    """Folds open no root runs and log no models, in this process or in joblib's."""
    config = offline.replace(log_model=True)
    search = GridSearchCV(
        estimator(MLflowCallback(config)), {"max_depth": [1, 2]}, cv=2, n_jobs=n_jobs, error_score="raise"
    )
    search.fit(X[ROWS], Y[ROWS])
    [run] = runs()
    best = search.best_estimator_
    assert best.callbacks[0].run_id == run.info.run_id
    assert str(search.best_params_["max_depth"]) == run.data.params["max_depth"]
    assert 1 == len(models())
    np.testing.assert_array_equal(
        best.predict_proba(X)[:, 1], best.callbacks[0].load_model().predict(xgb.DMatrix(X))
    )


@pytest.mark.process
@pytest.mark.parametrize(("given", "n_jobs"), [("inside", 1), ("parent", 2), ("run", 2), ("run", 1)])
def test_a_search_inside_a_run_records_its_fits_under_it(given, n_jobs, offline, runs, models):
    """Light children: no model. Where a run is given, a fold is a child of it too, not a part."""
    config = offline.replace(log_model=True)
    with open_run(config) as outer, trainings.inside(outer):
        options = {} if given == "inside" else {given: outer}
        scores = cross_val_score(
            estimator(MLflowCallback(config, **options)), X, Y, cv=3, n_jobs=n_jobs, error_score="raise"
        )
    found = runs()
    top = next(run for run in found if run.data.tags["mlpipeline.uid"] == outer.uid)
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert len(scores) == len(children) == len(found) - 1
    assert {"FINISHED"} == {run.info.status for run in found}
    assert [] == models()
    assert "num_boosted_rounds" not in top.data.metrics


def test_cross_val_predict_is_a_cross_validation_too(recorded):
    """It trains by another function than the search does."""
    cross_val_predict(estimator(MLflowCallback()), X, Y, cv=2)
    assert [] == recorded.statuses


# --- several workers ----------------------------------------------------------------------------------------

WORKERS = """
import multiprocessing, sys
import numpy as np, xgboost as xgb
from xgboost import collective
from xgboost.tracker import RabitTracker
from mlpipeline.xgboost import MLflowCallback

def work(arguments, number, callback):
    with collective.CommunicatorContext(**arguments):
        rows = np.random.default_rng(number).random((50, 3))
        data = xgb.DMatrix(rows, rows[:, 0] > 0.5)
        result = {}
        xgb.train({"eta": 1.0, "eval_metric": "logloss"}, data, 20, evals=[(data, "t")], evals_result=result,
                  early_stopping_rounds=2, callbacks=[callback], verbose_eval=False)
        if collective.get_rank() == 0:
            print(result["t"]["logloss"][-1], flush=True)

if __name__ == "__main__":
    callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline")
    tracker = RabitTracker(host_ip="127.0.0.1", n_workers=2)
    tracker.start()
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=work, args=(tracker.worker_args(), i, callback)) for i in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [0, 0] == [process.exitcode for process in started]
    print(callback.run.uid)
"""


@pytest.mark.process
@pytest.mark.slow
def test_of_several_workers_the_first_records(store_uri, runs, models, tmp_path):
    """One run with a model, though every worker has the callback; the process that started them knows it."""
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    environ = {**os.environ, "PYTHONPATH": SRC}
    ended = subprocess.run(
        [sys.executable, str(script), store_uri], env=environ, capture_output=True, text=True, check=False
    )
    assert 0 == ended.returncode, ended.stderr
    value, uid = [line for line in ended.stdout.split("\n") if line and "Rank" not in line]
    [run] = runs()
    assert ("FINISHED", uid) == (run.info.status, run.data.tags["mlpipeline.uid"])
    assert float(value) == run.data.metrics["t-logloss"]
    assert 1 == len(models())


# --- mistakes ---------------------------------------------------------------------------------------------


def test_mistakes_are_told_where_they_are_made(recorded):
    """By us what is ours, by XGBoost what it sees first."""
    with pytest.raises(UsageError, match=r"'shap'.*weight, gain, cover, total_gain, total_cover"):
        MLflowCallback(importance_types=("shap",))
    with pytest.raises(ConfigError):
        MLflowCallback(7)
    with pytest.raises(UsageError, match="not a Run"):
        MLflowCallback(run="abc")
    with pytest.raises(TypeError, match="must be an instance of `TrainingCallback`"):
        train(MLflowCallback)
    training, _ = matrices()
    with pytest.raises(UsageError, match=r"evals=\[\(dtrain, 'train'\)\]"):
        xgb.train(
            BINARY, training, 2, evals=[(training, "")], callbacks=[MLflowCallback()], verbose_eval=False
        )
    assert ["FAILED"] == recorded.statuses


def test_a_value_that_the_user_refuses_stops_the_training(recorded):
    """`nonfinite="raise"` is the user's own wish."""

    def broken(prediction, data):
        return "broken", math.inf

    with pytest.raises(UnloggableError, match="train-broken"):
        train(MLflowCallback(nonfinite="raise"), custom_metric=broken)
    gc.collect()
    assert ["FAILED"] == recorded.statuses


def test_what_cannot_be_recorded_does_not_stop_a_training(recorded, monkeypatch, caplog):
    """XGBoost's configuration is JSON, until it is not; what needs nothing of it is recorded."""
    monkeypatch.setattr(xgb.Booster, "save_config", lambda self: "no JSON")
    booster, result = train(MLflowCallback())
    assert 4 == booster.num_boosted_rounds()
    assert flat(result) == histories(recorded)
    assert {"could not record hyperparameters"} == {
        entry.getMessage() for entry in caplog.records if entry.name == "mlpipeline"
    }
    files = {f"feature_importance_{kind}.{end}" for kind in ("weight", "gain") for end in ("json", "svg")}
    assert files <= set(recorded.artifacts)


def test_every_importance_that_xgboost_has_is_accepted():
    """And nothing else."""
    booster, _ = train(params=BINARY, rounds=1)
    for kind in IMPORTANCE_TYPES:
        booster.get_score(importance_type=kind)
    with pytest.raises(ValueError, match="|".join(IMPORTANCE_TYPES)):
        booster.get_score(importance_type="shap")


def test_several_classes(recorded):
    """Iris, by the classifier: probabilities of three classes."""
    flowers, species = load_iris(return_X_y=True, as_frame=True)
    callback = MLflowCallback()
    xgb.XGBClassifier(n_estimators=2, callbacks=[callback]).fit(flowers, species)
    assert ("3", "multi:softprob") == (recorded.params["num_class"], recorded.params["objective"])


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("is_given", [True, False], ids=["run=", "its own run"])
def test_a_training_on_dask_is_one_run(is_given, offline, runs, points, models):
    """Two workers in processes of their own train together; the one of rank 0 records, with the model."""
    from distributed import Client, LocalCluster
    from xgboost import dask as on_dask

    config = offline.replace(log_model=True)
    given = open_run(config) if is_given else None
    callback = MLflowCallback(run=given) if given else MLflowCallback(config)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        rows, labels = (dask_array.from_array(part[ROWS].to_numpy(), chunks=150) for part in (X, Y))
        data = on_dask.DaskDMatrix(client, rows.rechunk((150, X.shape[1])), labels)
        found = on_dask.train(client, BINARY, data, 4, evals=[(data, "train")], callbacks=[callback])
    if given:
        given.end()
    [run] = runs()
    assert "FINISHED" == run.info.status
    assert "binary:logistic" == run.data.params["objective"]
    assert list(enumerate(found["history"]["train"]["auc"])) == points(run, "train-auc")
    assert [run.info.run_id] == [model.source_run_id for model in models()]
