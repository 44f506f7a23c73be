"""The contract, for scikit-learn."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import mean_squared_error, r2_score

from mlpipeline.sklearn import MLflowEstimator
from mlpipeline.testing import IntegrationContract, Trained, watched

ROWS = np.random.default_rng(0).normal(size=(40, 3))
TARGET = ROWS.sum(1) + 0.1 * np.arange(40)


class Held:
    """A parameter that scikit-learn's copies share, and that a pickle leaves behind."""

    def __init__(self, call=None):
        self.call = call

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        return Held, ()


class Stepwise(RegressorMixin, BaseEstimator):
    """A linear model of the user's own, fitted step by step."""

    def __init__(self, steps=1, probe=None):
        self.steps = steps
        self.probe = probe

    def fit(self, X, y):
        self.coef_ = np.zeros(X.shape[1])
        for step in range(self.steps):
            self.probe.call(step)
            order = np.random.permutation(len(X))  # noqa: NPY002 - the global generator must stay as it is
            for row in order:
                self.coef_ += 0.01 * (y[row] - X[row] @ self.coef_) * X[row]
        return self

    def predict(self, X):
        return X @ self.coef_


class TestScikitLearn(IntegrationContract):
    """A fit is one training; metrics of the training data are what it reports."""

    name = "scikit-learn"
    lacks: ClassVar = {
        "steps": "a fit has no steps that it tells of",
        "resume": "a fit begins anew",
        "scalars": "an estimator reports no metrics of the user's",
        "nonfinite": "an estimator reports no metrics of the user's",
    }

    def callback(self, **options):
        return MLflowEstimator(Stepwise(), options)

    def train(self, callback, *, steps, probe, continue_from=None):
        if callback is None:
            estimator = Stepwise(steps, Held(probe))
        else:
            estimator = callback.set_params(estimator__steps=steps, estimator__probe=Held(probe))
        with watched(rows=ROWS, target=TARGET) as touched:
            estimator.fit(ROWS, TARGET)
        fitted = estimator if callback is None else estimator.estimator_
        predicted = fitted.predict(ROWS)
        reported = {
            "training_mean_squared_error": [mean_squared_error(TARGET, predicted)],
            "training_r2_score": [r2_score(TARGET, predicted)],
        }
        return Trained(reported, fitted.coef_.tobytes(), touched)
