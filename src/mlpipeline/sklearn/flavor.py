"""How scikit-learn's models are saved: as skops where its types are known to be safe, else as cloudpickle."""

from __future__ import annotations

import copy
import json
import sys
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.pipeline import Pipeline

from mlpipeline.core.errors import UnloggableError
from mlpipeline.tracking.flavors import Flavor, SaveRequest
from mlpipeline.tracking.staging import new_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_TASKS = ("Classifier", "Regressor")
_FORESTS = {
    *(f"sklearn.ensemble._forest.{kind}{task}" for kind in ("ExtraTrees", "RandomForest") for task in _TASKS),
    *(f"sklearn.ensemble._gb.GradientBoosting{task}" for task in _TASKS),
}

# What a skops file may name beyond skops' own defaults. Exact names, not "everything in numpy":
# numpy and scipy contain functions that run code or open files. Everything below only holds numbers
# or computes with them. Found by fitting every estimator, splitter and scorer of scikit-learn 1.9;
# a name that another release moves is refused, which costs the format, not the model.
#
# Trees index their arrays unchecked: a *crafted* file could crash the process, though not name code.
_TRUSTED = {
    "builtins": "object",  # as a dtype
    "numpy": "dtype clip mean",
    "scipy.sparse._csc": "csc_array csc_matrix",
    "scipy.sparse._csr": "csr_array csr_matrix",
    "sklearn._loss.loss": "HalfTweedieLoss HalfTweedieLossIdentity",
    "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration _TemperatureScaling",
    "sklearn.cluster._bisect_k_means": "_BisectingTree",
    "sklearn.cluster._kmeans": "_kmeans_single_elkan _kmeans_single_lloyd",
    "sklearn.compose._column_transformer": "_RemainderColsList make_column_selector",  # the first until 1.6
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression r_regression",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels": (
        "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern Product RBF "
        "RationalQuadratic Sum WhiteKernel"
    ),
    "sklearn.metrics._classification": (
        "accuracy_score balanced_accuracy_score brier_score_loss cohen_kappa_score d2_brier_score "
        "d2_log_loss_score f1_score fbeta_score jaccard_score log_loss matthews_corrcoef "
        "precision_score recall_score"
    ),
    "sklearn.metrics._dist_metrics": (
        "EuclideanDistance32 EuclideanDistance64 ManhattanDistance32 ManhattanDistance64 "
        "MinkowskiDistance32 MinkowskiDistance64"
    ),
    "sklearn.metrics._ranking": "average_precision_score roc_auc_score top_k_accuracy_score",
    "sklearn.metrics._regression": (
        "d2_absolute_error_score explained_variance_score max_error mean_absolute_error "
        "mean_absolute_percentage_error mean_gamma_deviance mean_poisson_deviance "
        "mean_squared_error mean_squared_log_error median_absolute_error r2_score "
        "root_mean_squared_error root_mean_squared_log_error"
    ),
    "sklearn.metrics._scorer": (
        "_CurveScorer _MultimetricScorer _PassthroughScorer _Scorer negative_likelihood_ratio "
        "positive_likelihood_ratio"
    ),
    "sklearn.metrics.cluster._supervised": (
        "adjusted_mutual_info_score adjusted_rand_score completeness_score fowlkes_mallows_score "
        "homogeneity_score mutual_info_score normalized_mutual_info_score rand_score "
        "v_measure_score"
    ),
    "sklearn.model_selection._search_successive_halving": ("HalvingGridSearchCV HalvingRandomSearchCV"),
    "sklearn.model_selection._split": (
        "GroupKFold GroupShuffleSplit KFold LeaveOneGroupOut LeaveOneOut LeavePGroupsOut LeavePOut "
        "PredefinedSplit RepeatedKFold RepeatedStratifiedKFold ShuffleSplit StratifiedGroupKFold "
        "StratifiedKFold StratifiedShuffleSplit TimeSeriesSplit"
    ),
    "sklearn.neighbors._ball_tree": "BallTree",
    "sklearn.neighbors._kd_tree": "KDTree",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.tree._tree": "Tree",
    "sklearn.utils._bunch": "Bunch",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
    "xgboost.core": "Booster",
    "xgboost.sklearn": "XGBClassifier XGBRFClassifier XGBRFRegressor XGBRanker XGBRegressor",
}


def _save(request: SaveRequest) -> str:
    """Save as skops if the trusted types suffice, else (if asked for nothing else) as cloudpickle."""
    import mlflow.sklearn

    wanted = request.serialization
    if wanted not in ("auto", "skops", "cloudpickle", "pickle"):
        raise UnloggableError(
            f"serialization {wanted!r} is unknown for scikit-learn models; "
            "accepted: auto, skops, cloudpickle, pickle."
        )
    if wanted in ("auto", "skops"):
        try:
            return _save_skops(request)
        except mlflow.MlflowException as refusal:
            if wanted == "skops":
                raise UnloggableError(_why_not_skops(request.model, refusal)) from refusal
        new_folder(request.folder)
    used = "cloudpickle" if wanted == "auto" else wanted
    with _by_value(request.model):
        mlflow.sklearn.save_model(request.model, serialization_format=used, **request.arguments())
    return used


def pickled(model: Any) -> bytes:
    """Return a model as cloudpickle writes it, with the classes of this package that it is made of."""
    import cloudpickle

    with _by_value(model):
        data: bytes = cloudpickle.dumps(model)
    return data


@contextmanager
def _by_value(model: Any) -> Iterator[None]:
    """Pickle classes of this package whole: who loads the model need not have it."""
    import cloudpickle

    modules = {type(part).__module__ for part in _parts(model)}
    ours = [sys.modules[name] for name in modules if name.startswith("mlpipeline.models.")]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)


def _save_skops(request: SaveRequest) -> str:
    import mlflow.sklearn
    from mlflow.models import Model

    def save(model: Any) -> Model:
        record = Model()
        trusted = sorted(flavor.trusted_types)
        mlflow.sklearn.save_model(
            model,
            mlflow_model=record,
            serialization_format="skops",
            skops_trusted_types=trusted,
            **request.arguments(),
        )
        return record

    file = request.folder / "model.skops"
    tried = _with_few_trees(request.model)
    record = save(tried)
    if tried is not request.model:
        few_bytes = file.stat().st_size
        if _replaced(file, request.model):
            record.model_size_bytes = (record.model_size_bytes or 0) - few_bytes + file.stat().st_size
        else:
            new_folder(request.folder)
            record = save(request.model)
    # Whoever loads it must trust these names, so the MLmodel file lists only those in this model.
    named = {name for _, name in _types_in(file)}
    record.flavors["sklearn"]["skops_trusted_types"] = sorted(flavor.trusted_types & named)
    record.save(str(request.folder / "MLmodel"))
    return "skops"


def _with_few_trees(model: Any) -> Any:
    """Return a forest, or a pipeline that ends in one, with its first trees only; another model as it is.

    MLflow loads what it has saved, to see that its types are trusted. For a hundred trees of one type that
    takes as long as all the rest.
    """
    if type(model) is Pipeline:
        last = _with_few_trees(model.steps[-1][1])
        return (
            model if last is model.steps[-1][1] else Pipeline([*model.steps[:-1], (model.steps[-1][0], last)])
        )
    is_forest = f"{type(model).__module__}.{type(model).__qualname__}" in _FORESTS
    if not is_forest or len({type(tree) for tree in np.ravel(getattr(model, "estimators_", ()))}) != 1:
        return model
    few = copy.copy(model)
    few.estimators_ = model.estimators_[:1]
    return few


def _replaced(file: Path, model: Any) -> bool:
    """Write the whole model over the one with few trees; False if it holds types that this one did not."""
    import skops.io

    checked = _types_in(file)
    try:
        skops.io.dump(model, file)
    except Exception:  # noqa: BLE001 - MLflow says why
        return False
    return _types_in(file) <= checked


def _types_in(file: Path) -> set[tuple[str, str]]:
    """Return what a skops file holds, as skops tells it apart: how it is loaded, and its name.

    `skops.io.get_untrusted_types` would build its whole tree to say so, which takes four times as long
    for a forest.
    """
    found: set[tuple[str, str]] = set()

    def take(node: dict[str, Any]) -> dict[str, Any]:
        if "__loader__" in node:
            found.add((node["__loader__"], f"{node.get('__module__')}.{node.get('__class__')}"))
        return node

    json.loads(zipfile.ZipFile(file).read("schema.json"), object_hook=take)
    return found


def _why_not_skops(model: Any, refusal: Exception) -> str:
    import skops.io

    try:
        refused = set(skops.io.get_untrusted_types(data=skops.io.dumps(model)))
        reason = ", ".join(sorted(refused - flavor.trusted_types)) + " are not on the trusted list"
    except Exception as cause:  # noqa: BLE001  (skops has no class for what it cannot write)
        reason = str(cause) or str(refusal)
    return (
        f"{type(model).__name__} cannot be saved as skops: {reason}. "
        'Use serialization="auto" or "cloudpickle", and load the model only where you trust it.'
    )


def _predict(model: Any, example: Any) -> Any:
    for method in ("predict", "transform"):
        if hasattr(model, method):
            return getattr(model, method)(example)
    return None


def _parts(model: Any) -> Iterator[Any]:
    """Yield the model and every estimator and function that it holds as a parameter."""
    yield model
    if hasattr(model, "get_params") and not isinstance(model, type):
        for value in model.get_params(deep=False).values():
            yield from _parts_of_value(value)
    if (network := getattr(model, "module_", None)) is not None:  # what skorch's estimators, and ours, hold
        yield network


def _parts_of_value(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        nested: Iterable[Any] = value
    elif isinstance(value, dict):
        nested = value.values()
    else:
        nested = ()
        yield from _parts(value)
    for item in nested:
        yield from _parts_of_value(item)


def _is_data(about: Mapping[str, Any]) -> bool:
    # MLflow trusts the types that the file itself lists.
    is_skops = about.get("serialization_format") == "skops"
    return is_skops and set(about.get("skops_trusted_types") or ()) <= flavor.trusted_types


flavor = Flavor(
    name="sklearn",
    distributions=("mlflow", "scikit-learn", "numpy", "scipy", "pandas", "cloudpickle", "skops"),
    roots=frozenset({"sklearn", "mlpipeline"}),
    save=_save,
    predict=_predict,
    parts=_parts,
    trusted_types=frozenset(
        f"{module}.{name}" for module, names in _TRUSTED.items() for name in names.split()
    ),
    is_data=_is_data,
)
