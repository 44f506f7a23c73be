"""Metrics by name: what a fitted model scores on given data.

::

    "f1"  "f1_score"  "roc_auc"          ─┐                    two classes: of the greater label
    "neg_mean_squared_error"             ─┼─► scikit-learn's ─► more: weighted average; ROC one vs rest
    "rmse"  "mse"  "mean_squared_error"  ─┘   scorer           errors without "neg_": positive

    scores(model, X, y, ["accuracy", "log_loss"]) ─► {"accuracy": 0.93, "log_loss": 0.12}

Every name of ``sklearn.metrics.get_scorer_names()`` is known and means what it means there, but for the
average where a target has more than two classes. So are the names of the functions behind them, and the
usual short forms of errors. A model is asked once per kind of answer, however many metrics are wanted.
"""

from __future__ import annotations

import difflib
import functools
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, MissingExtraError, UsageError
from mlpipeline.tracking import directions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DEFAULTS = {
    "classification": ("accuracy", "precision", "recall", "f1"),
    "regression": ("rmse", "mae", "r2"),
}
_SHORT = {
    "mse": "mean_squared_error",
    "rmse": "root_mean_squared_error",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "msle": "mean_squared_log_error",
    "rmsle": "root_mean_squared_log_error",
}
_LABELLED = frozenset(("precision", "recall", "f1", "jaccard"))
_RANKED = frozenset(("roc_auc", "average_precision", "top_k_accuracy"))
_PROBABLE = frozenset(("neg_log_loss", "d2_log_loss_score", "neg_brier_score", "d2_brier_score"))
_RANKS = ("decision_function", "predict_proba")
_OF_NUMBERS = ("error", "deviance", "r2", "explained_variance")


def default_metrics(task_type: str) -> tuple[str, ...]:
    """Return the metrics that every model of a task can give.

    Args:
        task_type: ``classification`` or ``regression``.

    Raises:
        ConfigError: It is neither.
    """
    if task_type not in _DEFAULTS:
        raise ConfigError(f"task_type={task_type!r}: expected one of {', '.join(map(repr, _DEFAULTS))}")
    return _DEFAULTS[task_type]


def is_greater_better(name: str) -> bool:
    """Tell whether a greater value of a metric is a better one.

    Args:
        name: One that `scores` takes, or one as it was logged, such as ``val_loss`` or ``eval-ndcg@3``.

    Raises:
        ConfigError: Nothing in the name tells; the message has the nearest that are known.
    """
    is_greater = directions.is_greater_better(name)
    if is_greater is None:
        raise _unknown(name)
    return is_greater


def scores(model: Any, X: Any, y: Any, names: Iterable[str], sample_weight: Any = None) -> dict[str, float]:
    """Return what a model scores on data, under the names as they were given.

    Args:
        model: A fitted estimator. Or anything with ``predict``, such as a loaded ``mlflow.pyfunc`` model:
            numbers between 0 and 1, one per row for two classes or one per row and class, count as
            probabilities.
        X: Data, as the model takes it.
        y: True targets.
        names: Metrics; see the module.
        sample_weight: Weights of the rows; None weighs them alike.

    Raises:
        ConfigError: A name is unknown; the message has the nearest that are known.
        UsageError: The model cannot give a metric, or the data cannot; the message says why.
    """
    known = _known()
    wanted = checked(names)
    y = _column(y)
    asked = _of_estimator(model) if hasattr(model, "__sklearn_tags__") else _of_output(model, X, y)
    found: dict[str, float] = {}
    for name in wanted:
        scorer, is_error = known[name]
        try:
            value = float(_score(scorer, asked(scorer), X, y, sample_weight))
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise _not_given(name, model, str(error)) from error
        if math.isnan(value):
            raise _not_given(name, model, f"it is not defined for these {len(y)} rows")
        found[name] = -value if is_error else value
    return found


def checked(names: Iterable[str]) -> list[str]:
    """Return the names, all of which `scores` takes.

    Raises:
        ConfigError: A name is unknown; the message has the nearest that are known.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in _known():
            raise _unknown(name)
    return wanted


@dataclass(frozen=True)
class Answers:
    """What a model says of data.

    Attributes:
        predicted: A class or a number per row.
        classes: The classes, in the order of what follows; None of a regression.
        probable: A probability per row and class; None where the model gives none.
        certain: What ranks the rows: a number per row for the second of two classes, else one per row
            and class; None where the model gives none.
    """

    predicted: Any
    classes: Any = None
    probable: Any = None
    certain: Any = None


def answers(model: Any, X: Any, y: Any, task_type: str) -> Answers:
    """Return what a model says of data, as `scores` understands it.

    Args:
        model: As `scores` takes it.
        X: Data.
        y: True targets.
        task_type: ``classification`` or ``regression``.

    Raises:
        UsageError: What it says cannot be about these targets.
    """
    import numpy as np

    y = _column(y)
    of = _of_estimator(model) if hasattr(model, "__sklearn_tags__") else _of_output(model, X, y)
    asked: Any = of("r2" if task_type == "regression" else "accuracy")
    predicted = np.asarray(asked.predict(X))
    if task_type == "regression":
        return Answers(predicted)
    classes = asked.classes_ if hasattr(asked, "classes_") else np.unique(y)
    probable = np.asarray(asked.predict_proba(X)) if hasattr(asked, "predict_proba") else None
    certain = probable
    if probable is None and hasattr(asked, "decision_function"):
        certain = np.asarray(asked.decision_function(X))
    if certain is not None and certain.ndim == 2 and len(classes) == 2:
        certain = certain[:, 1]
    return Answers(predicted, classes, probable, certain)


@functools.cache
def _known() -> Mapping[str, tuple[str, bool]]:
    """Return by name scikit-learn's scorer, and whether the name means the positive error."""
    try:
        from sklearn import metrics
    except ImportError as missing:
        raise MissingExtraError("sklearn", "scikit-learn") from missing

    known: dict[str, tuple[str, bool]] = {}
    for scorer in metrics.get_scorer_names():
        known[scorer] = scorer, False
        error = scorer.removeprefix("neg_")
        for name in (error, f"{error}_score", f"{error}_loss"):
            if name == error or hasattr(metrics, name):
                known[name] = scorer, error != scorer
    known |= {short: known[long] for short, long in _SHORT.items()}
    return known


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(str(name).lower(), _known(), n=3, cutoff=0.5)
    hint = ", ".join(map(repr, near)) or ", ".join(
        map(repr, [*_DEFAULTS["classification"], "roc_auc", "rmse"])
    )
    return ConfigError(
        f"metric {name!r} is unknown; near it are {hint}. "
        "Known are sklearn.metrics.get_scorer_names(), their functions, and mse, rmse, mae, mape"
    )


def _not_given(name: str, model: Any, reason: str) -> UsageError:
    return UsageError(f"{name} cannot be computed for {type(model).__name__}: {reason}")


def _column(y: Any) -> Any:
    import numpy as np

    target = y if hasattr(y, "tocsr") else np.asarray(y)
    return target.ravel() if target.ndim == 2 and target.shape[1] == 1 else target


def _score(scorer: str, asked: _Asked, X: Any, y: Any, weights: Any) -> float:
    import numpy as np
    from sklearn import metrics
    from sklearn.utils.multiclass import type_of_target

    if scorer in _PROBABLE or scorer.startswith("roc_auc_ov"):
        asked.check("predict_proba")
    elif scorer in _RANKED:
        asked.check(*_RANKS)
    kind = type_of_target(y)
    if kind in {"binary", "multiclass"}:
        labels = np.unique(y)
        if scorer.startswith("roc_auc") and len(labels) == 1:
            raise ValueError(f"all {len(y)} rows are of one class, {labels[0]}")
        # Of the model's classes the rows may lack some.
        classes = np.union1d(labels, asked.classes_) if hasattr(asked, "classes_") else labels
        made = _of_two(scorer, classes) if len(classes) == 2 else _of_many(scorer, classes)
    elif kind.startswith("multilabel"):
        made = _of_many(scorer, None)
    else:
        made = metrics.get_scorer(scorer)
    return float(made(asked, X, y, **({} if weights is None else {"sample_weight": weights})))


def _of_two(scorer: str, classes: Any) -> Any:
    """Return scikit-learn's scorer with the greater class in view, whatever it is called."""
    from sklearn import metrics

    view = {"pos_label": classes[1]}
    if scorer in _LABELLED:
        return metrics.make_scorer(getattr(metrics, f"{scorer}_score"), zero_division=0, **view)
    if scorer == "average_precision":
        return metrics.make_scorer(metrics.average_precision_score, response_method=_RANKS, **view)
    if scorer == "d2_brier_score":
        return metrics.make_scorer(metrics.d2_brier_score, response_method="predict_proba", **view)
    if scorer == "neg_brier_score":
        return _negative(metrics.brier_score_loss, **view)
    return _with_labels(scorer, classes)


def _of_many(scorer: str, classes: Any) -> Any:
    """Return scikit-learn's scorer with the average weighted, the ROC one versus rest."""
    from sklearn import metrics

    if scorer in _LABELLED:
        function = getattr(metrics, f"{scorer}_score")
        return metrics.make_scorer(function, zero_division=0, average="weighted")
    if scorer == "average_precision":
        function = metrics.average_precision_score
        return metrics.make_scorer(function, response_method=_RANKS, average="weighted")
    if classes is None:
        return metrics.get_scorer(scorer)
    return _with_labels("roc_auc_ovr" if scorer == "roc_auc" else scorer, classes)


def _with_labels(scorer: str, classes: Any) -> Any:
    from sklearn import metrics

    if scorer == "neg_log_loss":
        return _negative(metrics.log_loss, labels=classes)
    if scorer == "d2_log_loss_score":
        return metrics.make_scorer(metrics.d2_log_loss_score, response_method="predict_proba", labels=classes)
    return metrics.get_scorer(scorer)


def _negative(function: Any, **options: Any) -> Any:
    from sklearn import metrics

    return metrics.make_scorer(function, response_method="predict_proba", greater_is_better=False, **options)


class _Asked:
    """A model as scikit-learn's scorers see it, which answers a question once.

    Args:
        tags: What scikit-learn is to take it for.
        classes: Its classes; None where it has none.
        answers: By method, what it says of the data.
    """

    def __init__(self, tags: Any, classes: Any, answers: Mapping[str, Callable[[Any], Any]]) -> None:
        self._tags = tags
        self._answers = answers
        if classes is not None:
            self.classes_ = classes
        for name, answer in answers.items():
            setattr(self, name, _once(name, answer))

    def check(self, *methods: str) -> None:
        """Raise where it has none of these methods."""
        if not any(method in self._answers for method in methods):
            raise ValueError(f"it has no {' or '.join(methods)}")

    def __sklearn_tags__(self) -> Any:
        return self._tags


def _once(name: str, answer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    said: list[Any] = []

    def ask(X: Any) -> Any:
        if not said:
            said.append(answer(X))
        return said[0]

    ask.__name__ = name  # which a scorer looks at
    return ask


def _of_estimator(model: Any) -> Callable[[str], _Asked]:
    from sklearn.utils import get_tags

    methods = ("predict", "predict_proba", "decision_function")
    answers = {name: getattr(model, name) for name in methods if hasattr(model, name)}
    asked = _Asked(get_tags(model), getattr(model, "classes_", None), answers)
    return lambda _: asked


def _of_output(model: Any, X: Any, y: Any) -> Callable[[str], _Asked]:
    """Take what a model predicts for numbers, labels or probabilities, as the metric needs it."""
    import numpy as np

    output = np.asarray(model.predict(X))
    if output.ndim == 2 and output.shape[1] == 1:
        output = output.ravel()
    numbers = _Asked(_tags("regressor"), None, {"predict": lambda _: output})

    @functools.cache
    def labels() -> _Asked:
        classes, answers = _classified(output, np.unique(y))
        return _Asked(
            _tags("classifier"), classes, {name: partial(_said, said) for name, said in answers.items()}
        )

    return lambda scorer: numbers if any(word in scorer for word in _OF_NUMBERS) else labels()


def _said(answer: Any, _: Any) -> Any:
    return answer


def _tags(kind: str) -> Any:
    from sklearn.utils import ClassifierTags, Tags, TargetTags

    tags = Tags(estimator_type=kind, target_tags=TargetTags(required=True))
    tags.classifier_tags = ClassifierTags() if kind == "classifier" else None
    return tags


def _classified(output: Any, classes: Any) -> tuple[Any, dict[str, Any]]:
    """Return the classes that an output is about, and what it says by each method of a classifier."""
    import numpy as np

    if output.ndim == 2:
        count = output.shape[1]
        if (
            len(classes) < count
            and classes.dtype.kind in "iu"
            and classes.min() >= 0
            and classes.max() < count
        ):
            classes = np.arange(count)  # the rows lack some
        if len(classes) != count:
            raise UsageError(
                f"the model gives {count} numbers a row, and the target has {len(classes)} classes"
            )
        is_probable = output.min() >= 0 and np.allclose(output.sum(axis=1), 1, atol=1e-3)
        ranked = output[:, 1] if count == 2 and not is_probable else output
        answers = {"predict": classes[output.argmax(axis=1)]}
        return classes, answers | {"predict_proba" if is_probable else "decision_function": ranked}
    if np.isin(output, classes).all() or output.dtype.kind not in "fiub":
        return classes, {"predict": output}
    if len(classes) == 1 and classes[0] in (0, 1):
        classes = np.array([0, 1])
    if len(classes) != 2:
        raise UsageError(f"the model gives one number a row, and the target has {len(classes)} classes")
    if output.min() >= 0 and output.max() <= 1:
        answers = {"predict": classes[(output >= 0.5).astype(int)]}
        return classes, answers | {"predict_proba": np.column_stack([1 - output, output])}
    return classes, {"predict": classes[(output > 0).astype(int)], "decision_function": output}
