"""Plots of what a model predicts, as SVG documents, from plain arrays.

::

    labels          ─► confusion_matrix
    scores          ─► roc_curve, precision_recall_curve     of two classes: the greater one in view;
    probabilities   ─► calibration_curve                     of more: a line per class, against the rest
    numbers         ─► residuals
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import metrics

from mlpipeline.tracking import charts

if TYPE_CHECKING:
    from collections.abc import Callable

_DRAWN_ROWS = 1000
_CALIBRATION_BINS, _ROWS_OF_A_BIN = 10, 20


def confusion_matrix(y: Any, predicted: Any, classes: Any, weights: Any = None) -> str:
    """Draw which class is taken for which.

    Args:
        y: True classes.
        predicted: Predicted ones.
        classes: All classes, in the order of rows and columns.
        weights: Weights of the rows.
    """
    found = metrics.confusion_matrix(y, predicted, labels=classes, normalize="true", sample_weight=weights)
    labels = [str(label) for label in classes]
    return charts.matrix(
        "Confusion matrix, shares of each true class", found.tolist(), labels, x="predicted", y="true"
    )


def roc_curve(y: Any, certain: Any, classes: Any, weights: Any = None) -> str:
    """Draw how many wrong ones come with the right ones.

    Args:
        y: True classes.
        certain: A score per row for the second of two classes, or one per row and class.
        classes: All classes, in the order of the scores.
        weights: Weights of the rows.
    """

    def points(is_class: Any, score: Any) -> Any:
        wrong, right, _ = metrics.roc_curve(is_class, score, sample_weight=weights)
        return wrong, right

    return charts.curves(
        "ROC curve",
        _by_class(y, certain, classes, points),
        x="false positive rate",
        y="true positive rate",
        has_diagonal=True,
    )


def precision_recall_curve(y: Any, certain: Any, classes: Any, weights: Any = None) -> str:
    """Draw how many of those found are right, and how many of the right ones are found.

    The arguments are those of `roc_curve`.
    """

    def points(is_class: Any, score: Any) -> Any:
        precision, recall, _ = metrics.precision_recall_curve(is_class, score, sample_weight=weights)
        return recall, precision

    lines = _by_class(y, certain, classes, points)
    return charts.curves("Precision and recall", lines, x="recall", y="precision")


def calibration_curve(y: Any, probable: Any, classes: Any) -> str:
    """Draw how often what is called probable comes true, in bins of as many rows each.

    Args:
        y: True classes.
        probable: A probability per row for the second of two classes, or one per row and class.
        classes: All classes, in the order of the probabilities.
    """
    from sklearn import calibration

    bins = min(_CALIBRATION_BINS, max(2, len(y) // _ROWS_OF_A_BIN))  # with fewer rows, chance is all it shows

    def points(is_class: Any, probability: Any) -> Any:
        came_true, called = calibration.calibration_curve(
            is_class, np.clip(probability, 0, 1), n_bins=bins, strategy="quantile"
        )
        return called, came_true

    return charts.curves(
        "Calibration",
        _by_class(y, probable, classes, points),
        x="predicted probability",
        y="share of true ones",
        has_diagonal=True,
        has_dots=True,
    )


def residuals(y: Any, predicted: Any) -> str:
    """Draw how far off a prediction is, by what is predicted."""
    found = _drawn(predicted, y - predicted)
    return charts.points("Residuals", *found, x="predicted", y="true - predicted")


def _by_class(y: Any, scores: Any, classes: Any, points: Callable[[Any, Any], Any]) -> Any:
    """Return a line for the second of two classes, or for each class of which there are rows and others."""
    y, scores = np.asarray(y), np.asarray(scores)
    if scores.ndim == 1:
        return {str(classes[1]): _drawn(*points(y == classes[1], scores))}
    lines = {}
    for index, label in enumerate(classes):
        is_class = y == label
        if is_class.any() and not is_class.all():
            lines[str(label)] = _drawn(*points(is_class, scores[:, index]))
    return lines


def _drawn(*columns: Any) -> list[list[float]]:
    """Return the columns with as many rows as can be told apart, evenly chosen."""
    rows = len(columns[0])
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _DRAWN_ROWS)).astype(int))
    return [np.asarray(column, dtype=float)[chosen].tolist() for column in columns]
