"""Classes of any kind for a classifier that only takes 0, 1, 2, …, such as XGBoost's."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone


class LabelEncodedClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Numbers the classes for a classifier, and gives its predictions their names back.

    Args:
        estimator: An unfitted classifier.
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(self, X: Any, y: Any, eval_set: Any = None, **params: Any) -> LabelEncodedClassifier:
        """Fit a clone of the classifier.

        Args:
            X: Features.
            y: Classes.
            eval_set: Pairs of features and classes; rows of a class that *y* lacks are left out.
            **params: What the classifier's own ``fit`` takes.
        """
        self.classes_, numbers = np.unique(np.asarray(y), return_inverse=True)
        if eval_set is not None:
            params["eval_set"] = [self._known(*pair) for pair in eval_set]
        # The callbacks are of this fit, and no part of what is cloned and saved.
        self.estimator_ = clone(self.estimator).set_params(callbacks=self.estimator.callbacks)
        self.estimator_.fit(X, numbers, **params)
        self.estimator_.set_params(callbacks=None)
        return self

    def _known(self, X: Any, y: Any) -> tuple[Any, Any]:
        is_known = np.isin(np.asarray(y), self.classes_)
        return X[is_known], np.searchsorted(self.classes_, np.asarray(y)[is_known])

    def predict(self, X: Any) -> Any:
        """Return the class of each row."""
        return self.classes_[self.estimator_.predict(X)]

    def predict_proba(self, X: Any) -> Any:
        """Return a probability per row and class."""
        return self.estimator_.predict_proba(X)
