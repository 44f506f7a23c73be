"""From the names in a configuration to an estimator: scikit-learn's, XGBoost's, ours for PyTorch, the user's.

::

    framework + model_type + parameters ──► estimator(…) ──► unfitted, with scikit-learn's interface
      sklearn   random_forest_classifier, RandomForestClassifier, sklearn.ensemble.RandomForestClassifier
      xgboost   xgb_classifier, xgb_regressor, …; not given: by the task
      pytorch   mlp: a network for tables               (mlpipeline.models.networks)
      custom    package.module.Class, or a function that makes one

A mapping with a ``model_type`` among the parameters is an estimator, too: voting, stacking, one versus rest.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, MissingExtraError, nearest
from mlpipeline.models.settings import nested_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlpipeline.models.settings import Location, ModelSection, TaskType

_USUAL = {
    ("sklearn", "classification"): "random_forest_classifier",
    ("sklearn", "regression"): "random_forest_regressor",
    ("xgboost", "classification"): "xgb_classifier",
    ("xgboost", "regression"): "xgb_regressor",
    ("pytorch", "classification"): "mlp_classifier",
    ("pytorch", "regression"): "mlp_regressor",
}
_TASKLESS = {"pytorch": {"mlp"}, "xgboost": {"xgb", "xgboost"}}
"""Names that mean the framework's usual model of the task."""


@dataclass(frozen=True)
class Kind:
    """A class of models, found by its name.

    Attributes:
        name: As it stands in a configuration.
        make: The class, or a function that makes one.
        task_type: What it is for; None where its class does not say.
    """

    name: str
    make: Any
    task_type: TaskType | None


def known_names(framework: str) -> list[str]:
    """Return the names that ``model_type`` takes for a framework; none for ``custom``."""
    return sorted(_listed(framework))


def kind_of(section: ModelSection, task_type: TaskType | None, place: str = "training.model") -> Kind:
    """Find the class of models that a configuration names.

    Args:
        section: The configuration's ``training.model``.
        task_type: What the target asks for, where the configuration does not say; None if that is not known.
        place: Where in the configuration it is.

    Raises:
        ConfigError: There is none of that name, or it is not for that task.
        MissingExtraError: The framework is not installed.
    """
    wanted = section.task_type or task_type
    name = section.model_type
    if name is not None and name.lower() in _TASKLESS.get(section.framework, ()):
        name = None
    if name is None:
        if section.framework == "custom":
            raise ConfigError(
                f"{place}.model_type: framework custom needs a dotted path, such as my_package.models.MyModel"
            )
        name = _USUAL[section.framework, wanted or "classification"]
    found = (
        _by_path(name, place)
        if "." in name or section.framework == "custom"
        else _by_name(section.framework, name, place)
    )
    if section.task_type and found.task_type and found.task_type != section.task_type:
        other = [one for one in _listed(section.framework) if one == _counterpart(found.name)]
        hint = (
            f"write model_type: {other[0]}, or task_type: {found.task_type}"
            if other
            else f"write task_type: {found.task_type}"
        )
        raise ConfigError(
            f"{place}: {found.name} is for {found.task_type}, and task_type is {section.task_type}; {hint}"
        )
    return found


def make(section: ModelSection, kind: Kind, place: str = "training.model") -> Any:
    """Return the unfitted estimator with the configuration's parameters.

    Args:
        section: What the configuration says of it.
        kind: Its class.
        place: Where in the configuration it is.

    Raises:
        ConfigError: It has no such parameter, or refuses its value.
    """
    below = f"{place}.parameters"
    check_parameters(kind, section.parameters, below)
    given = {name: _made(value, f"{below}.{name}") for name, value in section.parameters.items()}
    try:
        return kind.make(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{below}: {kind.name} refuses {section.parameters!r}: {error}") from error


def nested(parameters: Mapping[str, Any], place: Location) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    """Yield what is said of the estimators among some parameters, each with its place."""
    for name, value in parameters.items():
        yield from _nested(value, (*place, name))


def _nested(value: Any, place: Location) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    if _is_model(value):
        yield place, value
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _nested(one, (*place, index))


def _made(value: Any, place: str) -> Any:
    """Return a parameter's value with the estimators that it describes."""
    if _is_model(value):
        section = nested_model(value)
        return make(section, kind_of(section, None, place), place)
    if isinstance(value, list):
        return [_made(one, f"{place}.{index}") for index, one in enumerate(value)]
    return value


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and "model_type" in value


def check_parameters(kind: Kind, names: Iterable[str], place: str) -> None:
    """Check that a class of models has these parameters.

    Args:
        kind: The class.
        names: The parameters.
        place: Where in the configuration they are.

    Raises:
        ConfigError: One is not known.
    """
    known = known_parameters(kind)
    for name in names:
        if known and name not in known:
            raise ConfigError(
                f"{place}: {kind.name} has no parameter {name!r}{nearest(name, known)}; there are {', '.join(known)}"
            )


def known_parameters(kind: Kind) -> list[str]:
    """Return the names of the parameters of a class of models; none where it takes any, or does not say."""
    if getattr(kind.make, "__module__", "").startswith("xgboost."):  # it takes any, and knows most of them
        return sorted(kind.make().get_params())
    try:
        parameters = signature(kind.make).parameters.values()
    except ValueError:  # written in C
        return []
    takes_all = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
    return [] if takes_all else [one.name for one in parameters if one.name != "self"]


def task_of(estimator: Any) -> TaskType | None:
    """Return what an estimator is for; None where it does not say."""
    from sklearn.base import is_classifier, is_regressor

    try:
        return (
            "classification"
            if is_classifier(estimator)
            else "regression"
            if is_regressor(estimator)
            else None
        )
    except AttributeError:  # no estimator of scikit-learn's, so without its tags
        return None


# --- names -------------------------------------------------------------------------------------------


_SKLEARN_MODULES = (
    *("ensemble", "linear_model", "tree", "neighbors", "svm", "naive_bayes", "neural_network"),
    *("discriminant_analysis", "gaussian_process"),
)
"""Where most models are. ``all_estimators`` imports every module of scikit-learn, and PyTorch with one of them:
two seconds of each command that names a model."""


def _by_name(framework: str, name: str, place: str) -> Kind:
    if framework == "sklearn" and (usual := _in_sklearn_modules(_letters(name))) is not None:
        return Kind(_snake(usual.__name__), usual, _task_of_class(usual))
    listed = _listed(framework)
    by_letters = {_letters(one): one for one in listed}
    if (found := by_letters.get(_letters(name))) is None:
        near = nearest(name, listed)
        few = f"; there are {', '.join(sorted(listed))}" if len(listed) < 20 else ""
        raise ConfigError(
            f"{place}.model_type: {framework} has no {name!r}{near}{few}; a dotted path names any other class"
        )
    return Kind(found, listed[found], _task_of_class(listed[found]))


def _by_path(path: str, place: str) -> Kind:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the module is the user's, and may raise anything
        told = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{place}.model_type: {path!r} cannot be imported ({told}); give package.module.Class, "
            "of a package that is installed or in the working directory"
        ) from error
    if not callable(found):
        raise ConfigError(f"{place}.model_type: {path} is no class, but {found!r:.60}")
    if isinstance(found, type) and not (hasattr(found, "fit") and hasattr(found, "predict")):
        raise ConfigError(f"{place}.model_type: {path} has no fit and predict; it is no model")
    return Kind(path, found, _task_of_class(found) if isinstance(found, type) else None)


def _listed(framework: str) -> Mapping[str, Any]:
    if framework == "sklearn":
        return _of_sklearn()
    if framework == "xgboost":
        return _of_xgboost()
    return _of_pytorch() if framework == "pytorch" else {}


def _in_sklearn_modules(letters: str) -> type | None:
    for name in _SKLEARN_MODULES:
        try:
            module = importlib.import_module(f"sklearn.{name}")
        except ImportError:  # the whole list tells what is missing
            return None
        for public in module.__all__:
            if _letters(public) == letters and _task_of_class(kind := getattr(module, public)):
                return kind  # type: ignore[no-any-return]  # a module's attribute
    return None


@cache
def _of_sklearn() -> dict[str, Any]:
    try:
        from sklearn.utils import all_estimators
    except ImportError as error:
        raise MissingExtraError("sklearn", "scikit-learn") from error
    return {_snake(name): kind for name, kind in all_estimators(type_filter=["classifier", "regressor"])}


@cache
def _of_xgboost() -> dict[str, Any]:
    try:
        import xgboost
    except ImportError as error:
        raise MissingExtraError("xgboost", "xgboost") from error
    names = ("XGBClassifier", "XGBRegressor", "XGBRFClassifier", "XGBRFRegressor")
    return {_snake(name): getattr(xgboost, name) for name in names}


@cache
def _of_pytorch() -> dict[str, Any]:
    from mlpipeline.models.networks import MLPClassifier, MLPRegressor

    return {"mlp_classifier": MLPClassifier, "mlp_regressor": MLPRegressor}


def _snake(name: str) -> str:
    """``HistGradientBoostingClassifier`` -> ``hist_gradient_boosting_classifier``, ``SVC`` -> ``svc``."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", parted).lower()


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def _task_of_class(kind: Any) -> TaskType | None:
    from sklearn.base import ClassifierMixin, RegressorMixin

    if isinstance(kind, type) and issubclass(kind, ClassifierMixin):
        return "classification"
    return "regression" if isinstance(kind, type) and issubclass(kind, RegressorMixin) else None


def _counterpart(name: str) -> str:
    if "classifier" in name:
        return name.replace("classifier", "regressor")
    return name.replace("regressor", "classifier")
