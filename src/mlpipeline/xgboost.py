"""XGBoost: ``xgb.train(..., callbacks=[MLflowCallback()])`` records the training in MLflow.

::

    before_training ─► MLflowCallback ─► Run          hyperparameters as XGBoost has filled them in
    after_iteration ─►                   log_metrics  every value of the round, in one call
    after_training  ─►                   best values, importance, the model cut at its best iteration

XGBoost calls no callback when a training raises; `mlpipeline.tracking.trainings` then ends the run.
Callbacks are given the booster and the history, but no data, so what a model is called with is told
by the booster itself: `flavor` makes the signature from it.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import MissingExtraError, MLPipelineError, UnloggableError, UsageError
from mlpipeline.tracking import charts, directions, trainings
from mlpipeline.tracking.flavors import Flavor, SaveRequest, first_rows
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed
from mlpipeline.tracking.surroundings import is_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlflow.models import ModelSignature

    from mlpipeline.tracking.run import Run

try:
    import numpy as np
    import xgboost
except ImportError as missing:
    raise MissingExtraError("xgboost", "xgboost") from missing

IMPORTANCE_TYPES = ("weight", "gain", "cover", "total_gain", "total_cover")

_CLASSES = frozenset(
    (
        "xgboost.core.Booster",
        *(f"xgboost.sklearn.XGB{kind}" for kind in ("Classifier", "Regressor", "Ranker", "Model")),
        *(f"xgboost.sklearn.XGBRF{kind}" for kind in ("Classifier", "Regressor")),
    )
)
# Of XGBoost's configuration, what is no choice of anybody's.
_INTERNAL = frozenset(
    (
        *("boost_from_average", "debug_synchronize", "disable_default_eval_metric"),
        *("fail_on_invalid_gpu_id", "max_cached_hist_node", "num_trees", "seed_per_iteration"),
        *("updater_seq", "validate_parameters"),
    )
)
# How scikit-learn trains a candidate, or a fold.
_VALIDATION = "sklearn.model_selection._validation"
_FITTING = ("_fit_and_score", "_fit_and_predict")


class MLflowCallback(Recorded, xgboost.callback.TrainingCallback):
    """Records an XGBoost training, or an ``xgb.cv``, as one MLflow run.

    Put it first among the callbacks: XGBoost skips those behind one that stops the training, for the
    round in which it does. That round's values are recorded all the same, at the end.

    XGBoost tells nobody when a training raises. The run then ends FAILED or KILLED at the next
    training, when the callback is collected, after the notebook cell or at exit; ``with callback:``
    around the training ends it at once. Nothing here waits for MLflow.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this callback then never ends.
        parent: A run, or its id, under which the run is nested.
        params: Extra hyperparameters; they win over those found in the training.
        importance_types: Which feature importances to record, of ``weight``, ``gain``, ``cover``,
            ``total_gain`` and ``total_cover``.
        fold_metrics: Of ``xgb.cv``, also record each fold's own values, as ``<data>-<metric>-fold_<n>``.
            XGBoost tells callbacks mean and deviation only, so every fold is evaluated a second time, and
            a metric of the user's own is not among them.
        **overrides: `MLflowConfig` options that win over *config*.
    """

    def __init__(
        self,
        config: Any = None,
        *,
        run: Run | None = None,
        parent: Run | str | None = None,
        params: Mapping[str, Any] | None = None,
        importance_types: str | Sequence[str] = ("weight", "gain"),
        fold_metrics: bool = False,
        **overrides: Any,
    ) -> None:
        super().__init__(config, run=run, parent=parent, params=params, **overrides)
        kinds = (importance_types,) if isinstance(importance_types, str) else tuple(importance_types)
        if unknown := [kind for kind in kinds if kind not in IMPORTANCE_TYPES]:
            raise UsageError(
                f"importance_types has {unknown[0]!r}; accepted are {', '.join(IMPORTANCE_TYPES)}, or () for none"
            )
        self._importance_types = kinds
        self._fold_metrics = fold_metrics
        self._reset()

    def _reset(self) -> None:
        self._is_recording = self._is_fold = self._has_metrics = False
        # What the booster had before: rounds, and findings of an earlier early stopping.
        self._first = 0
        self._stopping: tuple[str | None, str | None] = (None, None)
        # XGBoost's own history, how long it was when we last saw it, and the last rounds of ours.
        self._history: Mapping[str, Mapping[str, list[Any]]] = {}
        # Its lists as they were at the last record; where each grows by one value per round, what records the last ones.
        self._lists: tuple[list[float], ...] = ()
        self._lengths: tuple[int, ...] = ()
        self._row: Callable[[list[float], int], bool] | None = None
        self._is_linear = False
        self._values = 0
        self._seen = self._recorded = -1

    # --- hooks ----------------------------------------------------------------------------------------

    def before_training(self, model: Any) -> Any:
        """Open the run and record what the training is configured with."""
        self._begin(model)
        return model

    @harmless
    def _begin(self, model: Any) -> None:
        is_fold = any(is_within(name, _VALIDATION) for name in _FITTING)
        run = self._enter(is_fold)
        self._reset()
        if run is None:
            return
        self._is_recording, self._is_fold = True, is_fold
        self._first, self._stopping = model.num_boosted_rounds(), _stopping(model)
        with unharmed("hyperparameters"):
            self._log_params(run, found := hyperparameters(model))
            self._has_metrics, self._is_linear = "eval_metric" in found, found.get("booster") == "gblinear"

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Keep hold of the history, which grows also when XGBoost skips `after_iteration`."""
        self._history = evals_log
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Record the round."""
        try:
            if not self._is_recording or (self._row is not None and self._record_as_row(epoch, evals_log)):
                return False
            if not epoch and "" in evals_log:
                raise UsageError("an eval set has the name ''; name each: evals=[(dtrain, 'train')]")
            self._seen, self._values = epoch, _length(evals_log)
            every = self._rules.log_every_n_steps
            if every is None or (self._first + epoch + 1) % every == 0:
                self._record_round(model, epoch)
        except MLPipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - as `harmless`
            self._hook_failed("after_iteration", error)
        return False

    def after_training(self, model: Any) -> Any:
        """Record what came of the training, log the model, and end the run."""
        if self._is_recording and self._run is not None:
            self._sum_up(self._run, model)
            self._close()
            self._history = {}
        return model

    @harmless
    def _sum_up(self, run: Run, model: Any) -> None:
        last = self._seen + (_length(self._history) > self._values)
        if last > self._recorded:
            self._record_round(model, last)
        run.step = max(self._first + last, 0)
        if not self._has_metrics:
            with unharmed("hyperparameters"):  # the objective's own metric, chosen in the first round
                found = hyperparameters(model)
                self._log_params(run, {name: found[name] for name in ("eval_metric",) if name in found})
        best = self._best_iteration(model)
        with unharmed("the best values"):
            self._log_best(run, model, best, rounds=last + 1)
        if isinstance(model, xgboost.Booster) and run.is_enabled and not self._is_fold:
            with unharmed("the model"):
                self._log_model(run, model, best)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_row": None, "_lists": (), "_lengths": ()}

    # --- the run --------------------------------------------------------------------------------------

    def _enter(self, is_fold: bool) -> Run | None:
        parent = self._given_run or self._parent or trainings.enclosing()
        if xgboost.collective.get_rank() != 0 or (is_fold and parent is None):
            self._stand_by()
            return None
        if is_fold:
            # We are a clone: its many siblings share a parent, but no run.
            self._given_run, self._parent = None, parent
        return self._open()

    def _log_params(self, run: Run, found: Mapping[str, Any]) -> None:
        run.log_params({name: value for name, value in found.items() if name not in self._params})

    def _record_as_row(self, epoch: int, history: Mapping[str, Mapping[str, list[Any]]]) -> bool:
        """Record a round of the same metrics as the one before, in few steps; tell whether it was one."""
        rounds, lists = epoch + 1, self._lists
        values = [values[-1] for values in lists if len(values) == rounds]
        if not len(values) == len(lists) == sum(map(len, history.values())):
            return False
        step = self._first + epoch
        if not self._row(values, step):  # type: ignore[misc]  # asked for before
            return False
        self._run.step = step  # type: ignore[union-attr]  # there is a row, so there is a run
        self._seen, self._values, self._recorded = epoch, rounds, epoch
        return True

    @harmless
    def _record_round(self, model: Any, epoch: int) -> None:
        metrics: dict[str, float] = {}
        grown, self._row = self._grown(), None
        for name, _, curve in _curves(grown, epoch + 1):
            if isinstance(curve[-1], tuple):
                metrics[f"{name}-mean"], metrics[f"{name}-std"] = curve[-1]
            else:
                metrics[name] = curve[-1]
        if self._fold_metrics:
            with unharmed("the metrics of the folds", self._failures):
                metrics.update(_metrics_of_folds(model))
        if self._run is not None and metrics:
            self._run.step = self._first + epoch
            self._record(metrics, self._first + epoch)
            is_plain = all(len(values) == epoch + 1 and type(values[-1]) is float for values in self._lists)
            is_all = self._rules.log_every_n_steps is None and not self._fold_metrics
            if is_plain and is_all:
                self._row = self._run.row_logger(tuple(metrics))
        self._recorded = epoch

    def _grown(self) -> Mapping[str, Mapping[str, list[Any]]]:
        """Return what of the history has got values since the last record: a metric of the user's may pause."""
        before = dict(zip(map(id, self._lists), self._lengths, strict=True))
        if self._row is not None:
            before = dict.fromkeys(before, self._recorded + 1)
        self._lists = tuple(values for data in self._history.values() for values in data.values())
        self._lengths = tuple(map(len, self._lists))
        return {
            data: {
                name: values for name, values in metrics.items() if len(values) > before.get(id(values), 0)
            }
            for data, metrics in self._history.items()
        }

    # --- the end --------------------------------------------------------------------------------------

    def _best_iteration(self, model: Any) -> int | None:
        """Return what early stopping found; None without it.

        A booster that is trained on carries what an earlier training's early stopping left in it.
        """
        found = _stopping(model)
        return int(found[0]) if found[0] is not None and found != self._stopping else None

    def _log_best(self, run: Run, model: Any, best: int | None, rounds: int) -> None:
        last = max(self._first + rounds - 1, 0)
        facts: dict[str, float] = {"num_boosted_rounds": model.num_boosted_rounds()}
        score = None
        if best is not None:
            score = _number(model.attr("best_score"))
            facts |= {"best_iteration": best, "best_score": score, "stopped_iteration": last}
        found = {last: facts}
        for name, metric, curve in _curves(self._history, rounds):
            is_cv = isinstance(curve[0], tuple)
            scores = [mean for mean, _ in curve] if is_cv else curve
            at = _best_of(metric, scores)
            if at is None and best is not None and score in scores[best - self._first :][:1]:
                at = best - self._first  # early stopping knows the direction of a metric that we do not
            if at is not None:
                key = f"best_{name}-mean" if is_cv else f"best_{name}"
                found.setdefault(self._first + at, {})[key] = scores[at]
        for step, metrics in sorted(found.items()):
            run.log_metrics(metrics, step)

    def _log_model(self, run: Run, booster: Any, best: int | None) -> None:
        if best is not None and best + 1 < booster.num_boosted_rounds() and not self._is_linear:
            booster = booster[: best + 1]
        for kind in self._importance_types:
            if self._is_linear and kind != "weight":
                continue  # it has no other
            with unharmed(f"the feature importance {kind}"):
                scores = booster.get_score(importance_type=kind)
                run.log_dict(scores, f"feature_importance_{kind}.json")
                run.log_text(
                    charts.bars(f"feature importance ({kind})", _flat(scores)),
                    f"feature_importance_{kind}.svg",
                )
        if self._rules.log_model is False:
            return  # the run may log models, this callback's user does not want this one
        weights = "last" if best is None else "best iteration"
        run.log_model(booster, tags={"mlpipeline.weights": weights}, step=best)


# --- what XGBoost says ------------------------------------------------------------------------------------


def hyperparameters(model: Any) -> dict[str, Any]:
    """Return the values that XGBoost trains with, its defaults included, under its own short names.

    Args:
        model: A booster, or what ``xgb.cv`` gives to callbacks.
    """
    found: dict[str, Any] = {}
    if folds := getattr(model, "cvfolds", None):
        sizes = {"train": folds[0].dtrain.num_row(), "test": folds[0].dtest.num_row()}
        found = {"nfold": len(folds), "data": {name: {"rows": rows} for name, rows in sizes.items()}}
        model = folds[0].bst
    learner = _config(model)
    internal = _INTERNAL
    if learner["learner_model_param"].get("boost_from_average") != "0":
        internal |= {"base_score"}  # estimated from the data, in the first round
    for group in _groups(learner):
        for name, text in group.items():
            if name not in internal and isinstance(text, str) and text not in ("", "()"):
                found.setdefault(name, _value(text))
    if metrics := [metric["name"] for metric in learner.get("metrics", ())]:
        found["eval_metric"] = metrics[0] if len(metrics) == 1 else metrics
    return found


def _config(booster: Any) -> dict[str, Any]:
    learner: dict[str, Any] = json.loads(booster.save_config())["learner"]
    return learner


def _groups(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every group of parameters, however deep; what is between them is structure."""
    for key, value in config.items():
        if isinstance(value, dict):
            if key.endswith("_param"):
                yield value
            yield from _groups(value)
        elif isinstance(value, list):
            for item in value:
                yield from _groups(item) if isinstance(item, dict) else ()


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, list):
        return _shortest(value[0]) if len(value) == 1 else [_shortest(item) for item in value]
    return _shortest(value)


def _shortest(value: Any) -> Any:
    """Turn 0.300000012, which is how XGBoost prints a float32, back into 0.3."""
    if not isinstance(value, float):
        return value
    narrow = np.float32(value)
    return float(str(narrow)) if float(f"{narrow:.9g}") == value else value


def _stopping(model: Any) -> tuple[str | None, str | None]:
    return model.attr("best_iteration"), model.attr("best_score")


def _number(score: str) -> float:
    """Return a best score; of a cross-validation XGBoost 2 writes mean and deviation, "(0.17, 0.04)"."""
    return float(score.strip("(").partition(",")[0])


def _length(history: Mapping[str, Mapping[str, list[Any]]]) -> int:
    """Return how many values there are of the first metric: each round adds one, or more under one name."""
    return next((len(values) for metrics in history.values() for values in metrics.values()), 0)


def _curves(
    history: Mapping[str, Mapping[str, list[Any]]], rounds: int
) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield each curve's name, its metric and its values.

    XGBoost puts what has one name into one list: two eval sets of one name, a metric of the user's own
    and the default metric. The second of a round becomes ``<name>.2``.
    """
    for data, metrics in history.items():
        for metric, values in metrics.items():
            if len(values) <= rounds:
                yield f"{data}-{metric}", metric, values
                continue
            count = len(values) // rounds
            for place in range(count):
                number = f".{place + 1}" if place else ""
                yield f"{data}-{metric}{number}", metric, values[place::count]


def _metrics_of_folds(model: Any) -> Iterator[tuple[str, float]]:
    for number, fold in enumerate(getattr(model, "cvfolds", ())):
        for part in fold.bst.eval_set(fold.watchlist).split("\t")[1:]:  # as of evals: [0], train-auc:0.98, …
            name, _, value = part.rpartition(":")
            yield f"{name}-fold_{number}", float(value)


def _best_of(metric: str, curve: list[float]) -> int | None:
    """Return the round of the best value; None if the metric's direction is not known, or no value is a number."""
    is_greater = directions.is_greater_better(metric)
    numbers = [index for index, value in enumerate(curve) if not math.isnan(value)]
    if is_greater is None or not numbers:
        return None
    return (max if is_greater else min)(numbers, key=curve.__getitem__)


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """Give the scores that a linear model has per class a name each."""
    flat: dict[str, float] = {}
    for name, score in scores.items():
        if isinstance(score, list):
            flat |= {f"{name} [{index}]": value for index, value in enumerate(score)}
        else:
            flat[name] = score
    return flat


# --- models -----------------------------------------------------------------------------------------------


def _save(request: SaveRequest) -> str:
    """Save in XGBoost's own formats, which hold no code; a wrapper's class is restored on loading."""
    import mlflow.xgboost

    used = "ubj" if request.serialization == "auto" else request.serialization
    if used not in ("ubj", "json"):
        raise UnloggableError(
            f"serialization {request.serialization!r} is unknown for XGBoost models; "
            "accepted: auto, ubj, json."
        )
    mlflow.xgboost.save_model(request.model, model_format=used, **request.arguments())
    return used


def _is_data(about: Mapping[str, Any]) -> bool:
    # The formats hold none; but MLflow imports whatever class the MLmodel file names.
    return about.get("model_class", "xgboost.core.Booster") in _CLASSES


def _example(model: Any, data: Any, rows: int) -> Any:
    return first_rows(model, _table(data, rows) if isinstance(data, xgboost.DMatrix) else data, rows)


def _table(data: Any, rows: int) -> Any:
    """Turn the first rows of a DMatrix back into a frame, or an array if it has no names."""
    import pandas as pd

    matrix = data.slice(list(range(min(rows, data.num_row())))).get_data().tocoo()
    table = np.full(matrix.shape, np.nan, dtype=np.float32)  # a DMatrix stores what is not missing
    table[matrix.row, matrix.col] = matrix.data
    return table if data.feature_names is None else pd.DataFrame(table, columns=data.feature_names)


def _predict(model: Any, example: Any) -> Any:
    if isinstance(model, xgboost.Booster):
        matrix = xgboost.DMatrix(example, enable_categorical=True)
        return model.predict(matrix, validate_features=False)
    return model.predict(example)


def _signature(model: Any) -> ModelSignature | None:
    """Make a booster's signature of what it knows, without data.

    No prediction is made for it: where several workers train together, one that makes a DMatrix alone
    waits for the others.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec

    if not isinstance(model, xgboost.Booster):
        return None
    names = model.feature_names
    if names is None:
        inputs: list[Any] = [TensorSpec(np.dtype("float64"), (-1, model.num_features()))]
    else:
        # A category is given to MLflow's pyfunc as its code: there, a DMatrix takes no categories.
        types = {"int": "long", "i": "boolean"}
        kinds = model.feature_types or ["float"] * len(names)
        inputs = [ColSpec(types.get(kind, "double"), name) for name, kind in zip(names, kinds, strict=True)]
    learner = _config(model)
    shape = {int(learner["learner_model_param"].get(name, 0)) for name in ("num_class", "num_target")}
    width = 1 if learner["objective"]["name"] == "multi:softmax" else max(shape)
    output = TensorSpec(np.dtype("float32"), (-1, width) if width > 1 else (-1,))
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([output]))


flavor = Flavor(
    name="xgboost",
    distributions=("mlflow", "xgboost", "scikit-learn", "numpy", "scipy", "pandas"),
    roots=frozenset({"xgboost", "sklearn"}),
    save=_save,
    predict=_predict,
    example=_example,
    signature=_signature,
    is_data=_is_data,
)
