"""`MLflowEstimator`: an estimator around another one, which records its fit."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone, is_classifier, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.utils import _safe_indexing, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _num_samples, check_is_fitted

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import UsageError
from mlpipeline.sklearn.evaluation import Evaluation, same_random_numbers
from mlpipeline.sklearn.facts import about, checked, log_dataset, shown_params
from mlpipeline.sklearn.validation import is_in_validation, is_search, log_search, observed
from mlpipeline.tracking import trainings
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.recorded import unharmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlpipeline.tracking.run import Run

_TRAINING_ROWS = 10_000
"""Training metrics look at so many rows at most, evenly spread: predicting all may cost more than fitting."""


def _has(name: str) -> Callable[[MLflowEstimator], bool]:
    """Return the condition under which there is a method *name*: the wrapped estimator has it."""

    def has(self: MLflowEstimator) -> bool:
        getattr(self.__dict__.get("estimator_", self.estimator), name)
        return True

    return has


def _delegated(name: str) -> Any:
    """Return the method *name*, there if the wrapped estimator has it."""

    def method(self: MLflowEstimator, X: Any, **params: Any) -> Any:
        return self._called(name, X, **params)

    method.__name__, method.__qualname__ = name, f"MLflowEstimator.{name}"
    method.__doc__ = f"Call `{name}` of the fitted estimator."
    return available_if(_has(name))(method)


_METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "score", "transform")


class MLflowEstimator(MetaEstimatorMixin, BaseEstimator):
    """Records the fit of an estimator as one MLflow run, and is that estimator otherwise.

    A clone of *estimator* is fitted, as meta-estimators of scikit-learn do. The run is FINISHED when
    ``fit`` returns, FAILED or KILLED when it raises; `evaluate` adds to it. Nothing here waits for MLflow
    but reading `run_id_`, `model_uri_` and `model_version_`.

    Args:
        estimator: An estimator, `Pipeline` or search.
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.

    Attributes:
        estimator_: The fitted estimator, of the class of *estimator*. Its own fitted attributes, such as
            ``coef_``, ``n_features_in_`` and ``feature_names_in_``, are attributes here too.
        run_id_: MLflow's id of the run; waits when it is read. None where nothing was recorded.
        model_uri_: ``models:/…`` of the logged model; waits when it is read.
        model_version_: The version it was registered as, whose aliases are set by then; waits when it is read.
            None where it is not registered.
    """

    def __init__(self, estimator: Any, config: Any = None) -> None:
        self.estimator = estimator
        self.config = config

    def fit(self, X: Any, y: Any = None, **params: Any) -> MLflowEstimator:
        """Fit a clone of the estimator, and record it.

        Args:
            X: Training data.
            y: Targets.
            **params: What the estimator's own ``fit`` takes, such as ``sample_weight``.

        Raises:
            UsageError: *estimator* is none.
            ConfigError: *config* is none.
        """
        self._fit("fit", X, y, params)
        return self

    @available_if(_has("fit_transform"))
    def fit_transform(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit and transform in one, where the estimator does; recorded as `fit` is."""
        return self._fit("fit_transform", X, y, params)

    @available_if(_has("fit_predict"))
    def fit_predict(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Fit and predict in one, where the estimator does; recorded as `fit` is."""
        return self._fit("fit_predict", X, y, params)

    predict = _delegated("predict")
    predict_proba = _delegated("predict_proba")
    predict_log_proba = _delegated("predict_log_proba")
    decision_function = _delegated("decision_function")
    score_samples = _delegated("score_samples")
    transform = _delegated("transform")
    inverse_transform = _delegated("inverse_transform")

    @available_if(_has("score"))
    def score(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Call `score` of the fitted estimator."""
        return self._called("score", X, *(() if y is None else (y,)), **params)

    @available_if(_has("get_feature_names_out"))
    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Call `get_feature_names_out` of the fitted estimator."""
        return self._called("get_feature_names_out", input_features)

    def _called(self, name: str, *args: Any, **params: Any) -> Any:
        check_is_fitted(self)
        return getattr(self.estimator_, name)(*args, **self._routed(name, params))

    @available_if(_has("set_output"))
    def set_output(self, *, transform: str | None = None) -> MLflowEstimator:
        """Choose the container of what the estimator transforms, as its own ``set_output`` does."""
        for estimator in (self.estimator, self.__dict__.get("estimator_")):
            if estimator is not None:
                estimator.set_output(transform=transform)
        return self

    def evaluate(
        self, X_test: Any, y_test: Any = None, prefix: str = "test", *, sample_weight: Any = None
    ) -> dict[str, float]:
        """Record metrics and plots of other data in the same run.

        Args:
            X_test: Data that was not trained on; all of it counts.
            y_test: Its targets.
            prefix: What the names begin with: ``test_accuracy_score``.
            sample_weight: Weights of the rows.

        Returns:
            The metrics.

        Raises:
            NotFittedError: `fit` was not called.
            UsageError: There is nothing to compare with, or *prefix* is no name.
        """
        check_is_fitted(self)
        if not isinstance(prefix, str) or not prefix:  # type: ignore[redundant-expr]
            raise UsageError(
                f"prefix={prefix!r} is not a name; write evaluate(X_test, y_test, prefix='test')"
            )
        if y_test is None and any(is_kind(self.estimator_) for is_kind in (is_classifier, is_regressor)):
            raise UsageError(
                f"evaluate needs the targets to compare a {type(self.estimator_).__name__}'s predictions with; "
                "write evaluate(X_test, y_test)"
            )
        if self._run is None or not self._run.is_enabled:
            return evaluated(self._run, self.estimator_, X_test, y_test, prefix, sample_weight)
        self._run.resume()
        try:
            return evaluated(self._run, self.estimator_, X_test, y_test, prefix, sample_weight)
        finally:
            self._run.end()  # what was trained is FINISHED, however this went

    # --- fitting ------------------------------------------------------------------------------------

    def _fit(self, method: str, X: Any, y: Any, params: dict[str, Any]) -> Any:
        config = MLflowConfig.of(self.config)
        estimator = clone(checked(self.estimator))
        routed = self._routed(method, params)
        takes_y = y is not None or "y" in signature(getattr(estimator, method)).parameters
        arguments = (X, y) if takes_y else (X,)
        is_fold = is_in_validation()
        if is_fold and trainings.enclosing() is None:
            output = getattr(estimator, method)(*arguments, **routed)
            self.estimator_, self._run = estimator, None
            return output
        run = open_run(config)
        try:
            weights = [value for key, value in params.items() if key.endswith("sample_weight")]
            with recorded_fit(
                run,
                estimator,
                X,
                y,
                original=self.estimator,
                sample_weight=weights[-1] if weights else None,
                is_fold=is_fold,
            ):
                output = getattr(estimator, method)(*arguments, **routed)
                self.estimator_, self._run = estimator, run
        except BaseException as error:
            run.end(trainings.status_of(trainings.kind_of(error)))
            raise
        run.end()
        return output

    def _routed(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return the params that are for the estimator's method: all, unless metadata routing is enabled."""
        if not params or not _is_routing():
            return params
        return dict(process_routing(self, method, **params).estimator[method])

    def get_metadata_routing(self) -> Any:
        """Route metadata to the estimator's methods of the same names."""
        mapping = MethodMapping()
        for method in ("fit", *_METHODS, "inverse_transform", "fit_transform", "fit_predict"):
            mapping.add(caller=method, callee=method)
        router = MetadataRouter(owner=type(self).__name__)
        return router.add(estimator=checked(self.estimator), method_mapping=mapping)

    # --- what it looks like -------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Not properties: scikit-learn's HTML page of an estimator reads every attribute that dir() lists,
        # and run_id_ waits for MLflow.
        if not name.endswith("_") or name.startswith("_") or name == "estimator_":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if "estimator_" not in self.__dict__:
            raise NotFittedError(
                f"there is no {name} before the fit; write MLflowEstimator(...).fit(X, y) first"
            )
        if name in {"run_id_", "model_uri_", "model_version_"}:
            return getattr(self._run, name[:-1]) if self._run is not None else None
        return getattr(self.estimator_, name)

    def __sklearn_is_fitted__(self) -> bool:
        return "estimator_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        return get_tags(checked(self.estimator))


def _is_routing() -> bool:
    from sklearn import get_config

    return bool(get_config()["enable_metadata_routing"])


# --- what is recorded of a fit -----------------------------------------------------------------------


@contextmanager
def recorded_fit(
    run: Run,
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    original: Any = None,
    sample_weight: Any = None,
    is_fold: bool = False,
) -> Iterator[None]:
    """Record in a run the estimator that is fitted inside the block.

    An exception in the block goes on; of what it interrupts the params are recorded.

    Args:
        run: Where; it stays open.
        estimator: What the block fits, in place.
        X: Training data.
        y: Targets.
        original: What *estimator* is a clone of; None where it is none.
        sample_weight: Weights of the rows.
        is_fold: It is one of many, whose model nobody will ask for.
    """
    with unharmed("the parameters"):
        run.set_tags(about(estimator))
        run.log_params(shown_params(estimator))
    began_s = time.perf_counter()
    with ExitStack() as around:
        with unharmed("what happens inside of the fit"):
            around.enter_context(observed(estimator, original, run))
        around.enter_context(trainings.inside(run))
        yield
    with unharmed("the time of the fit"):
        run.log_metrics({"fit_time_s": time.perf_counter() - began_s}, 0)
    if run.is_enabled:
        with unharmed("what was fitted"):
            _log_fitted(run, estimator, X, y, sample_weight, is_fold=is_fold)


def evaluated(
    run: Run | None, estimator: Any, X: Any, y: Any, prefix: str, sample_weight: Any = None
) -> dict[str, float]:
    """Compute the metrics of a fitted estimator on other data, and record them with their plots and the data.

    Args:
        run: Where; it stays open. None records nothing.
        estimator: The fitted estimator, which is left as it is.
        X: Data.
        y: Its targets.
        prefix: What the names begin with.
        sample_weight: Weights of the rows.

    Returns:
        The metrics, by their whole names.
    """
    with same_random_numbers(estimator):
        found = Evaluation(estimator, X, y, sample_weight)
    if run is not None and run.is_enabled:
        with unharmed(f"the evaluation {prefix!r}"):
            log_dataset(run, X, y, prefix)
            found.log(run, prefix)
    return {f"{prefix}_{name}": value for name, value in found.metrics.items()}


def _log_fitted(run: Run, estimator: Any, X: Any, y: Any, weights: Any, *, is_fold: bool) -> None:
    with unharmed("the dataset"):
        log_dataset(run, X, y, "training")
    with same_random_numbers(estimator):
        with unharmed("the training metrics"):
            if run.config.log_metrics:
                rows = _num_samples(X)
                if rows > _TRAINING_ROWS:
                    run.set_tags({"mlpipeline.training_rows": f"{_TRAINING_ROWS} of {rows}"})
                Evaluation(estimator, *_spread(X, y, weights)).log(run, "training")
        with unharmed("what the search found"):
            if is_search(estimator):
                log_search(run, estimator)
        with unharmed("the model"):
            model = getattr(estimator, "best_estimator_", None) if is_search(estimator) else estimator
            if model is not None and not is_fold:
                run.log_model(model, input_example=X)


def _spread(X: Any, *others: Any) -> tuple[Any, ...]:
    """Return `_TRAINING_ROWS` evenly spaced rows of all, or all as they are where there are no more."""
    rows = _num_samples(X)
    if rows <= _TRAINING_ROWS:
        return (X, *others)
    chosen = np.linspace(0, rows - 1, _TRAINING_ROWS).astype(int)
    return tuple(None if data is None else _safe_indexing(data, chosen) for data in (X, *others))
