"""Metrics and plots of a fitted estimator, computed without leaving a trace in it or in the random numbers."""

from __future__ import annotations

import contextlib
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import metrics
from sklearn.base import ClassifierMixin, RegressorMixin, is_classifier, is_regressor
from sklearn.pipeline import Pipeline
from sklearn.utils.multiclass import type_of_target

from mlpipeline.sklearn import plots
from mlpipeline.tracking.recorded import unharmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlpipeline.tracking.run import Run


_MOST_CLASSES = 10
"""A curve per class: of more, nobody could tell them apart, and each costs a sort of the rows."""


@contextlib.contextmanager
def same_random_numbers(estimator: Any) -> Iterator[None]:
    """Give the random numbers back that predicting draws: a stratified dummy draws the user's own."""
    generators = list(estimator.get_params(deep=True).values())
    ours = {
        id(one): one for one in generators if isinstance(one, (np.random.RandomState, np.random.Generator))
    }
    before = [(one, _state_of(one)) for one in ours.values()]
    everybodys = np.random.get_state()  # noqa: NPY002 - the one that they may draw from
    try:
        yield
    finally:
        np.random.set_state(everybodys)  # noqa: NPY002
        for one, state in before:
            if isinstance(one, np.random.Generator):
                one.bit_generator.state = state
            else:
                one.set_state(state)


def _state_of(generator: Any) -> Any:
    is_new = isinstance(generator, np.random.Generator)
    return generator.bit_generator.state if is_new else generator.get_state()


class Evaluation:
    """Metrics of predictions, under the names that autolog gives them, and plots to be drawn.

    Args:
        estimator: A fitted estimator.
        X: Data.
        y: Its targets; without them there is at most a score.
        weights: Weights of the rows.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, weights: Any = None) -> None:
        self.metrics: dict[str, float] = {}
        self._plots: dict[str, Callable[..., Any]] = {}
        target = y if y is None or hasattr(y, "tocsr") else np.asarray(y)
        if target is not None and target.ndim == 2 and target.shape[1] == 1:
            target = target.ravel()  # as the estimator took it
        if target is not None and is_classifier(estimator) and hasattr(estimator, "predict"):
            self._classified(estimator, X, target, weights)
        elif target is not None and is_regressor(estimator) and hasattr(estimator, "predict"):
            self._regressed(estimator.predict(X), target, weights)
        self._scored(estimator, X, y, weights)

    def _classified(self, estimator: Any, X: Any, y: Any, weights: Any) -> None:
        predicted = estimator.predict(X)
        weighted = {"sample_weight": weights}
        averaged = {"average": "weighted", "zero_division": 0, **weighted}
        self._add("precision_score", partial(metrics.precision_score, y, predicted, **averaged))
        self._add("recall_score", partial(metrics.recall_score, y, predicted, **averaged))
        self._add("f1_score", partial(metrics.f1_score, y, predicted, **averaged))
        self._add("accuracy_score", partial(metrics.accuracy_score, y, predicted, **weighted))
        kind = type_of_target(y)
        if kind not in {"binary", "multiclass"}:
            return
        classes = estimator.classes_
        certain = None
        if hasattr(estimator, "predict_proba"):
            certain = estimator.predict_proba(X)
            self._add("log_loss", partial(metrics.log_loss, y, certain, labels=classes, **weighted))
            certain = certain[:, 1] if len(classes) == 2 else certain
        elif hasattr(estimator, "decision_function") and len(classes) == 2:
            certain = estimator.decision_function(X)
        # Undefined where a class is missing; scikit-learn would warn of it.
        is_ranked = certain is not None and len(np.unique(y)) == len(classes) > 1
        if is_ranked:
            how = {"average": "weighted", "multi_class": "ovo", **weighted}
            self._add("roc_auc", partial(metrics.roc_auc_score, y, certain, **how))
        self._plots["confusion_matrix"] = partial(plots.confusion_matrix, y, predicted, classes, weights)
        if is_ranked and len(classes) <= _MOST_CLASSES:
            self._plots["roc_curve"] = partial(plots.roc_curve, y, certain, classes, weights)
            self._plots["precision_recall_curve"] = partial(
                plots.precision_recall_curve, y, certain, classes, weights
            )

    def _regressed(self, predicted: Any, y: Any, weights: Any) -> None:
        weighted = {"sample_weight": weights}
        self._add("mean_squared_error", partial(metrics.mean_squared_error, y, predicted, **weighted))
        self._add(
            "root_mean_squared_error", partial(metrics.root_mean_squared_error, y, predicted, **weighted)
        )
        self._add("mean_absolute_error", partial(metrics.mean_absolute_error, y, predicted, **weighted))
        if len(predicted) > 1:
            self._add("r2_score", partial(metrics.r2_score, y, predicted, **weighted))
        if np.ndim(predicted) == np.ndim(y) == 1:
            self._plots["residuals"] = partial(plots.residuals, np.asarray(y), np.asarray(predicted))

    def _scored(self, estimator: Any, X: Any, y: Any, weights: Any) -> None:
        score = getattr(type(_last(estimator)), "score", None)
        for known, name in ((ClassifierMixin.score, "accuracy_score"), (RegressorMixin.score, "r2_score")):
            if score is known:
                if name in self.metrics:  # it would predict once more, to the same end
                    self.metrics["score"] = self.metrics[name]
                return
        if hasattr(estimator, "score"):
            is_weighted = weights is not None and "sample_weight" in signature(estimator.score).parameters
            self._add(
                "score", partial(estimator.score, X, y, **({"sample_weight": weights} if is_weighted else {}))
            )

    def _add(self, name: str, compute: Callable[[], Any]) -> None:
        # Not every metric is defined for every target: several outputs, weights, a class that is missing.
        with contextlib.suppress(ValueError, TypeError, NotImplementedError):
            self.metrics[name] = float(compute())

    def log(self, run: Run, prefix: str) -> None:
        """Record it all in a run."""
        run.log_metrics({f"{prefix}_{name}": value for name, value in self.metrics.items()}, 0)
        if not run.config.log_artifacts:
            return
        for name, draw in self._plots.items():
            with unharmed(f"the plot {name}"):
                run.log_text(draw(), f"{prefix}_{name}.svg")


def _last(estimator: Any) -> Any:
    while isinstance(estimator, Pipeline):
        estimator = estimator.steps[-1][1]
    return estimator
