"""What a search tries: the ranges of a configuration, or those that are usual for the model.

::

    parameter_space ──────────┐             ┌► suggested(trial) ─► {max_depth: 7, max_features: None}
    not given: usual_space ───┴─► Space ────┼► grid(5)          ─► {max_depth: [3, 7, 12, 16, 20], …}
                                            └► values(params)   ─► what a stored trial was trained with

Optuna keeps texts, numbers, true, false and null, and takes 1, 1.0 and true for the same. A choice that
is none of these, or equals another one, goes by its text there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError
from mlpipeline.models import estimators
from mlpipeline.models.settings import Choices, FloatRange, IntRange, Range

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Trial
    from optuna.distributions import BaseDistribution

    from mlpipeline.models.estimators import Kind
    from mlpipeline.models.settings import ModelSection, TuningSection

PLACE = "training.hyperparameter_optimization.parameter_space"

_MOST_POINTS = 100_000
"""A grid is held in memory, and nobody waits for a greater one."""


@dataclass(frozen=True)
class Space:
    """Names of parameters, and what to try for each.

    Attributes:
        ranges: By name.
    """

    ranges: Mapping[str, Range]

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return what Optuna knows of it."""
        return {name: _distribution(given) for name, given in self.ranges.items()}

    def suggested(self, trial: Trial) -> dict[str, Any]:
        """Return the values that a trial is to try."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        found: dict[str, Any] = {}
        for name, kind in self.distributions().items():
            if isinstance(kind, CategoricalDistribution):
                found[name] = trial.suggest_categorical(name, kind.choices)
            elif isinstance(kind, IntDistribution):
                found[name] = trial.suggest_int(name, kind.low, kind.high, step=kind.step, log=kind.log)
            else:
                found[name] = trial.suggest_float(name, kind.low, kind.high, step=kind.step, log=kind.log)  # type: ignore[attr-defined]
        return self.values(found)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial's params, as Optuna has them, mean for the model."""
        return {name: self._value(name, stored) for name, stored in params.items()}

    def _value(self, name: str, stored: Any) -> Any:
        given = self.ranges.get(name)
        if isinstance(given, Choices):
            for label, choice in zip(_labels(given), given.choices, strict=True):
                if label == stored:
                    return choice
        return stored

    def grid(self, points: int) -> dict[str, list[Any]]:
        """Return the values of every parameter that a grid crosses, as Optuna has them.

        Args:
            points: Values of a range without a step, at most.

        Raises:
            ConfigError: The grid is too great.
        """
        sizes = [_size(given, points) for given in self.ranges.values()]
        if math.prod(sizes) > _MOST_POINTS:
            told = " x ".join(f"{name}: {size}" for name, size in zip(self.ranges, sizes, strict=True))
            raise ConfigError(
                f"{PLACE}: the grid has {math.prod(sizes):,} points ({told}), and {_MOST_POINTS:,} are the most; "
                "search fewer parameters, raise a step, lower grid_points, or write method: random_search"
            )
        return {name: _points(given, points) for name, given in self.ranges.items()}


def space_of(section: TuningSection, model: ModelSection, kind: Kind) -> Space:
    """Return what a configuration asks to search.

    Of the usual space a parameter that the configuration fixes is left out.

    Raises:
        ConfigError: The model has no such parameter; or nothing is given, and nothing is usual.
    """
    if section.parameter_space is not None:
        estimators.check_parameters(kind, section.parameter_space, PLACE)
        return Space(section.parameter_space)
    usual = usual_space(kind)
    if usual is None:
        known = estimators.known_parameters(kind)
        named = f". It has the parameters {', '.join(known)}" if known else ""
        raise ConfigError(
            f"{PLACE}: nothing is usual for {kind.name}; say what to search, such as "
            f"{{max_depth: {{type: int, low: 2, high: 10}}}}{named}"
        )
    ranges = {name: given for name, given in usual.items() if name not in model.parameters}
    if not ranges:
        raise ConfigError(
            f"{PLACE}: training.model.parameters fixes all that is usually searched for {kind.name} "
            f"({', '.join(usual)}); leave one out there, or say what to search"
        )
    return Space(ranges)


# --- for Optuna --------------------------------------------------------------------------------------


def _distribution(given: Range) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(given, Choices):
        return CategoricalDistribution(_labels(given))
    if isinstance(given, IntRange):
        step = given.step or 1
        # Optuna warns of an end that no step meets.
        high = given.low + (given.high - given.low) // step * step
        return IntDistribution(given.low, high, log=given.log, step=step)
    high_met = given.high if given.step is None else _steps(given.low, given.high, given.step)[-1]
    return FloatDistribution(given.low, high_met, log=given.log, step=given.step)


def _labels(given: Choices) -> list[bool | int | float | str | None]:
    labels: list[bool | int | float | str | None] = []
    for choice in given.choices:
        if not isinstance(choice, list) and choice not in labels:
            labels.append(choice)
            continue
        text = json.dumps(choice)
        labels.append(f"{type(choice).__name__} {text}" if text in given.choices else text)
    return labels


# --- points of a grid --------------------------------------------------------------------------------


def _size(given: Range, points: int) -> int:
    """Return how many points a range has, without making them."""
    if isinstance(given, Choices):
        return len(given.choices)
    if given.low == given.high:
        return 1
    if given.step is not None:
        return _count(given.low, given.high, given.step)
    return points if isinstance(given, FloatRange) else min(points, given.high - given.low + 1)


def _points(given: Range, points: int) -> list[Any]:
    if isinstance(given, Choices):
        return _labels(given)
    if given.low == given.high:
        return [given.low]
    if isinstance(given, IntRange):
        if given.step is not None:
            return list(range(given.low, given.high + 1, given.step))
        return sorted({round(value) for value in _spread(given, points)})
    if given.step is not None:
        return _steps(given.low, given.high, given.step)
    inner = [float(f"{value:.6g}") for value in _spread(given, points)[1:-1]]
    return [given.low, *inner, given.high]


def _spread(given: IntRange | FloatRange, points: int) -> list[float]:
    """Return so many values between both ends, evenly spread, or evenly in their logarithms."""
    low, high = given.low, given.high
    shares = [index / (points - 1) for index in range(points)]
    if given.log:
        return [low * (high / low) ** share for share in shares]
    return [low + (high - low) * share for share in shares]


def _count(low: float, high: float, step: float) -> int:
    return int((Decimal(str(high)) - Decimal(str(low))) // Decimal(str(step))) + 1


def _steps(low: float, high: float, step: float) -> list[float]:
    """Return low, low + step, … as they would be written."""
    first, by = Decimal(str(low)), Decimal(str(step))
    return [float(first + index * by) for index in range(_count(low, high, step))]


# --- what is usual -----------------------------------------------------------------------------------


def usual_space(kind: Kind) -> dict[str, Range] | None:
    """Return what is usually searched for a class of models; None where that is not known.

    Those of the histogram gradient boosting and the support vector machines are auto-sklearn's (Feurer et al.,
    Efficient and Robust Automated Machine Learning, 2015); the others are customary ones, chosen so that a search
    of 50 trials is of use and a laptop does it.

    Rows of a leaf or split are searched logarithmically, which suits small tables as well. The number of a
    forest's trees is not searched: more are better, and slower.
    """
    package = getattr(kind.make, "__module__", "").partition(".")[0]
    return _USUAL.get((package, getattr(kind.make, "__name__", "")))


def _int(low: int, high: int, *, log: bool = False) -> IntRange:
    return IntRange(type="int", low=low, high=high, log=log)


def _float(low: float, high: float, *, log: bool = False) -> FloatRange:
    return FloatRange(type="float", low=low, high=high, log=log)


def _one_of(*choices: Any) -> Choices:
    return Choices(type="categorical", choices=list(choices))


def _both(name: str, ranges: Mapping[str, Range], *, package: str = "sklearn") -> dict[Any, dict[str, Range]]:
    return {(package, f"{name}{kind}"): dict(ranges) for kind in ("Classifier", "Regressor")}


_FOREST: dict[str, Range] = {
    "max_features": _float(0.1, 1.0),
    "min_samples_split": _int(2, 20, log=True),
    "min_samples_leaf": _int(1, 20, log=True),
}
_PENALTY = _float(2**-10, 2**10, log=True)
_MARGIN: dict[str, Range] = {"C": _float(2**-5, 2**15, log=True)}
_KERNEL: dict[str, Range] = {**_MARGIN, "gamma": _float(2**-15, 2**3, log=True)}
_TUBE: dict[str, Range] = {"epsilon": _float(0.001, 1, log=True)}
_XGBOOST: dict[str, Range] = {
    "max_depth": _int(1, 15),
    "min_child_weight": _float(1, 128, log=True),
    "subsample": _float(0.1, 1),
    "reg_lambda": _PENALTY,
    "reg_alpha": _PENALTY,
}

_USUAL: dict[tuple[str, str], dict[str, Range]] = {
    **_both("RandomForest", _FOREST),
    **_both("ExtraTrees", _FOREST),
    **_both(
        "DecisionTree",
        {
            "max_depth": _int(1, 30),
            "min_samples_split": _int(2, 60, log=True),
            "min_samples_leaf": _int(1, 60, log=True),
        },
    ),
    **_both(
        "GradientBoosting",
        {
            "n_estimators": _int(50, 500),
            "learning_rate": _float(0.01, 1, log=True),
            "max_depth": _int(1, 10),
            "min_samples_split": _int(2, 20, log=True),
            "min_samples_leaf": _int(1, 20, log=True),
            "subsample": _float(0.1, 1),
        },
    ),
    **_both(
        "HistGradientBoosting",
        {
            "learning_rate": _float(0.01, 1, log=True),
            "max_leaf_nodes": _int(3, 2047, log=True),
            "min_samples_leaf": _int(1, 200, log=True),
            "l2_regularization": _float(1e-10, 1, log=True),
        },
    ),
    **_both("AdaBoost", {"n_estimators": _int(50, 500), "learning_rate": _float(0.01, 2, log=True)}),
    **_both(
        "KNeighbors",
        {
            "n_neighbors": _int(1, 30),
            "weights": _one_of("uniform", "distance"),
            "p": _one_of(1, 2),
        },
    ),
    **_both(
        "MLP",
        {
            "hidden_layer_sizes": _one_of([32], [64], [128], [64, 32], [128, 64], [128, 64, 32]),
            "alpha": _float(1e-7, 0.1, log=True),
            "learning_rate_init": _float(1e-4, 0.5, log=True),
        },
    ),
    ("sklearn", "LogisticRegression"): {"C": _PENALTY},
    ("sklearn", "RidgeClassifier"): {"alpha": _PENALTY},
    ("sklearn", "Ridge"): {"alpha": _PENALTY},
    ("sklearn", "Lasso"): {"alpha": _PENALTY},
    ("sklearn", "ElasticNet"): {"alpha": _PENALTY, "l1_ratio": _float(0.01, 1)},
    ("sklearn", "SVC"): _KERNEL,
    ("sklearn", "SVR"): {**_KERNEL, **_TUBE},
    ("sklearn", "LinearSVC"): _MARGIN,
    ("sklearn", "LinearSVR"): {**_MARGIN, **_TUBE},
    **_both(
        "XGB",
        {
            "n_estimators": _int(50, 500, log=True),
            "learning_rate": _float(0.01, 1, log=True),
            "colsample_bytree": _float(0.1, 1),
            **_XGBOOST,
        },
        package="xgboost",
    ),
    **_both("XGBRF", {"colsample_bynode": _float(0.1, 1), **_XGBOOST}, package="xgboost"),
    **_both(
        "MLP",
        {
            "hidden_sizes": _one_of([64], [128], [256], [64, 32], [128, 64], [256, 128], [256, 128, 64]),
            "dropout": _float(0, 0.5),
            "learning_rate": _float(5e-5, 5e-3, log=True),
            "weight_decay": _float(1e-6, 1e-3, log=True),
        },
        package="mlpipeline",
    ),
}
