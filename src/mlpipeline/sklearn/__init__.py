"""scikit-learn: ``MLflowEstimator(estimator).fit(X, y)`` records the fit in MLflow.

::

    estimator.py    fit ─ clone ─ the estimator's own fit ─► estimator_     as it would be without us
                         └► Run: params, dataset, model
    evaluation.py        └► Run: metrics and plots, of the training data and of others
    validation.py   a search, a cross-validation: a child run per candidate or fold, from any process
    progress.py     time per pipeline step and per iteration
    flavor.py       how models are saved

Inside somebody else's search or cross-validation an `MLflowEstimator` records nothing, unless the code
is `trainings.inside` a run: then a child of that, without a model.
"""

from __future__ import annotations

from mlpipeline.core.errors import MissingExtraError

try:
    import sklearn  # noqa: F401  (a missing package is told here, not at the first call)
except ImportError as missing:
    raise MissingExtraError("sklearn", "scikit-learn") from missing

from mlpipeline.sklearn.estimator import MLflowEstimator
from mlpipeline.sklearn.flavor import flavor
from mlpipeline.sklearn.validation import cross_validate

__all__ = ["MLflowEstimator", "cross_validate", "flavor"]
