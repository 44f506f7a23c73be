"""What users write by mistake, and what they are told to write instead."""

from __future__ import annotations

import keras
import lightning.pytorch as pl
import numpy as np
import optuna
import pytest
import xgboost as xgb
from lightning.pytorch.demos.boring_classes import BoringModel
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

import mlpipeline.keras
import mlpipeline.lightning
import mlpipeline.optuna
import mlpipeline.torch
import mlpipeline.xgboost
from mlpipeline import MLflowConfig
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.sklearn import MLflowEstimator
from mlpipeline.testing import record

ROWS = np.random.default_rng(0).normal(size=(20, 2))
CLASSES = np.arange(20) % 2
WRITE_AN_INSTANCE = r"write callbacks=\[MLflowCallback\(\)\]"


def fit_lightning(callbacks):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    pl.Trainer(callbacks=callbacks, max_epochs=1, enable_checkpointing=False, **quiet).fit(BoringModel())


def fit_keras(callbacks):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(ROWS, CLASSES, verbose=0, callbacks=callbacks)


def optimize(callback, values=1.0, **study):
    optuna.create_study(**study).optimize(lambda trial: values, n_trials=1, callbacks=[callback])


def boost(callback, evals=()):
    data = xgb.DMatrix(ROWS, CLASSES)
    xgb.train({}, data, 2, [(data, name) for name in evals], callbacks=[callback])


def log(metrics):
    with mlpipeline.torch.MLflowLoop() as loop:
        loop.log(metrics)


MISUSES = {
    "Lightning: the class": (
        lambda: fit_lightning([mlpipeline.lightning.MLflowCallback]),
        UsageError,
        WRITE_AN_INSTANCE,
    ),
    "Keras: the class": (
        lambda: fit_keras([mlpipeline.keras.MLflowCallback]),
        UsageError,
        WRITE_AN_INSTANCE,
    ),
    "Optuna: the class": (
        lambda: optimize(mlpipeline.optuna.MLflowCallback),
        UsageError,
        WRITE_AN_INSTANCE,
    ),
    "Optuna: the class's decorator": (
        lambda: mlpipeline.optuna.MLflowCallback.track_in_mlflow(lambda trial: 1.0),
        UsageError,
        r"write @callback.track_in_mlflow\(\)",
    ),
    "XGBoost: the class": (  # XGBoost asks before we could
        lambda: boost(mlpipeline.xgboost.MLflowCallback),
        TypeError,
        "must be an instance",
    ),
    "scikit-learn: the class": (
        lambda: MLflowEstimator(LogisticRegression).fit(ROWS, CLASSES),
        UsageError,
        r"write MLflowEstimator\(LogisticRegression\(\)\)",
    ),
    "Optuna: one name for two objectives": (
        lambda: optimize(
            mlpipeline.optuna.MLflowCallback(metric_name=["loss"]), (1, 2), directions=["minimize"] * 2
        ),
        ConfigError,
        r"metric_name=\['loss'\] names 1 objectives, and the study has 2: give one name for each",
    ),
    "XGBoost: an eval set without a name": (
        lambda: boost(mlpipeline.xgboost.MLflowCallback(), evals=[""]),
        UsageError,
        r"evals=\[\(dtrain, 'train'\)\]",
    ),
    "XGBoost: an importance that there is not": (
        lambda: mlpipeline.xgboost.MLflowCallback(importance_types=["gian"]),
        UsageError,
        "accepted are weight, gain, cover",
    ),
    "scikit-learn: a prediction before the fit": (
        lambda: MLflowEstimator(LogisticRegression()).predict(ROWS),
        NotFittedError,
        "Call 'fit'",
    ),
    "scikit-learn: a fitted attribute before the fit": (
        lambda: MLflowEstimator(LogisticRegression()).coef_,
        NotFittedError,
        r"no coef_ before the fit; write MLflowEstimator\(...\).fit\(X, y\)",
    ),
    "scikit-learn: the run before the fit": (
        lambda: MLflowEstimator(LogisticRegression()).run_id_,
        NotFittedError,
        "no run_id_ before the fit",
    ),
    "scikit-learn: no estimator": (
        lambda: MLflowEstimator("rf").fit(ROWS, CLASSES),
        UsageError,
        r"write MLflowEstimator\(LogisticRegression\(\), config\)",
    ),
    "PyTorch: a number without a name": (
        lambda: log(0.5),
        UsageError,
        r"write log\(loss=0.5\)",
    ),
    "PyTorch: a log before the loop": (
        lambda: mlpipeline.torch.MLflowLoop().log(loss=0.5),
        UsageError,
        r"write it inside of `with MLflowLoop\(\) as loop:`",
    ),
}


# An older Lightning itself refuses a class, by "Expected a parent", before it asks anything of it.
NEEDED = {"Lightning: the class": [pytest.mark.needs("lightning>=2.6")]}


@pytest.mark.parametrize("misuse", [pytest.param(name, marks=NEEDED.get(name, ())) for name in MISUSES])
def test_a_misuse_is_told_with_what_to_write(misuse):
    """At the line where it was made, by the exception that reaches the user."""
    act, error, words = MISUSES[misuse]
    with record(), pytest.raises(error, match=words):
        act()


CALLBACKS = {
    "Keras": mlpipeline.keras.MLflowCallback,
    "Lightning": mlpipeline.lightning.MLflowCallback,
    "Optuna": mlpipeline.optuna.MLflowCallback,
    "PyTorch": mlpipeline.torch.MLflowLoop,
    "XGBoost": mlpipeline.xgboost.MLflowCallback,
    "scikit-learn": lambda *args, **options: MLflowEstimator(LogisticRegression(), *args, **options).fit(
        ROWS, CLASSES
    ),
}


@pytest.mark.parametrize("framework", CALLBACKS)
def test_a_config_of_the_wrong_type_is_told(framework):
    """With the types that are accepted."""
    with pytest.raises(ConfigError, match="config=42: expected an MLflowConfig, a dict of options"):
        CALLBACKS[framework](42)
    with pytest.raises(ConfigError, match="expected an MLflowConfig"):
        CALLBACKS[framework]([MLflowConfig()])
