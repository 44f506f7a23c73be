"""The model that a configuration describes: preparation and estimator in one, which takes raw rows.

::

    ModelSection + Tables ─► build ─► Pipeline(preprocessing, model)     unfitted
                             fit ───► the same, fitted; XGBoost and PyTorch see the validation rows,
                                      and their callbacks record rounds and epochs into the run
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlpipeline.core.errors import ConfigError
from mlpipeline.models import estimators
from mlpipeline.models.preprocessing import default_preprocessing

if TYPE_CHECKING:
    from mlpipeline.models.data import Table, Tables
    from mlpipeline.models.settings import ModelSection
    from mlpipeline.tracking.run import Run

_NOT_IN_XGBOOST = "[]<"
"""Characters that XGBoost refuses in the name of a feature."""


def build(section: ModelSection, tables: Tables) -> Any:
    """Return the unfitted pipeline for these rows.

    Raises:
        ConfigError: The model or its parameters are not known, or are for another task.
    """
    from sklearn.pipeline import Pipeline

    kind = estimators.kind_of(section, tables.task_type)
    model = estimators.make(section, kind)
    if not hasattr(model, "fit"):
        raise ConfigError(f"training.model.model_type: {kind.name} made {model!r:.60}, which has no fit")
    if (
        section.framework == "xgboost"
        and kind.task_type == "classification"
        and not _is_numbered(tables.train)
    ):
        from mlpipeline.models.labels import LabelEncodedClassifier

        model = LabelEncodedClassifier(model)
    steps: list[tuple[str, Any]] = [("model", model)]
    if section.preprocessing == "auto":
        preparation = default_preprocessing(tables.train.X)
        columns = "".join(tables.train.X.astype(str).columns) if section.framework == "xgboost" else ""
        if not set(columns) & set(_NOT_IN_XGBOOST):
            preparation.set_output(transform="pandas")  # names for importances
        steps.insert(0, ("preprocessing", preparation))
    return Pipeline(steps)


def fit(pipeline: Any, train: Table, val: Table | None = None, run: Run | None = None) -> None:
    """Fit a pipeline that `build` made, in place.

    Args:
        pipeline: The pipeline.
        train: Rows to train on.
        val: Rows for early stopping and for the curves; None where there are none.
        run: Where rounds and epochs are recorded; None records none.
    """
    model = pipeline.steps[-1][1]
    learner = getattr(model, "estimator", model)
    module = type(learner).__module__
    if module.startswith("xgboost."):
        _fit_xgboost(pipeline, learner, train, val, run)
    elif module == "mlpipeline.models.networks":
        _fit_network(pipeline, train, val, run)
    else:
        pipeline.fit(train.X, train.y)


def _fit_xgboost(pipeline: Any, learner: Any, train: Table, val: Table | None, run: Run | None) -> None:
    X, X_val = _prepared(pipeline, train, val)
    sets = [(X, train.y)] if val is None else [(X, train.y), (X_val, val.y)]
    if run is not None:
        from mlpipeline.xgboost import MLflowCallback

        # The model of this training is the whole pipeline, and that is logged once it is fitted.
        learner.set_params(callbacks=[MLflowCallback(run=run, log_model=False, register_model=False)])
    try:
        pipeline.steps[-1][1].fit(X, train.y, eval_set=sets, verbose=False)
    finally:
        learner.set_params(callbacks=None)


def _fit_network(pipeline: Any, train: Table, val: Table | None, run: Run | None) -> None:
    X, X_val = _prepared(pipeline, train, val)
    callbacks: list[Any] = []
    if run is not None:
        from mlpipeline.lightning import MLflowCallback

        # The data sets are recorded as the tables that they were.
        callbacks.append(MLflowCallback(run=run, log_model=False, register_model=False, log_datasets=False))
    y_val = val.y if val is not None else None
    pipeline.steps[-1][1].fit(X, train.y, X_val, y_val, callbacks=callbacks)


def _prepared(pipeline: Any, train: Table, val: Table | None) -> tuple[Any, Any]:
    """Fit what comes before the model, and return what the model gets to see."""
    before = pipeline[:-1]
    if not len(before):
        return train.X, val.X if val is not None else None
    X = before.fit_transform(train.X, train.y)
    return X, before.transform(val.X) if val is not None else None


def _is_numbered(table: Table) -> bool:
    """Whether the classes are 0, 1, 2, … already."""
    found = np.unique(table.y.to_numpy())
    return found.dtype.kind in "iu" and bool((found == np.arange(len(found))).all())
