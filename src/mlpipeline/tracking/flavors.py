"""What the engine must know about a framework's models, and what loading one needs.

The engine names no framework: what it must know stands in a `Flavor`, which the framework's file or package
(``mlpipeline.<root package>``) offers as ``flavor``; a package of someone else's registers its own with
`register_flavor`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import UnloggableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.machinery import ModuleSpec
    from pathlib import Path

    from mlflow.models import ModelSignature

logger = logging.getLogger("mlpipeline")


@dataclass(frozen=True)
class SaveRequest:
    """What a flavor's ``save`` has to write, and where.

    Args:
        model: The model, to be left exactly as it is.
        folder: Empty folder that becomes the MLflow model.
        serialization: ``"auto"`` or a format the flavor knows.
        signature: The signature to store, or ``None`` for no signature.
        input_example: Data as the user gave it, for formats that trace the model; may be ``None``.
        logged_example: Example to store with the model, as MLflow accepts it, or ``None``.
        conda_env: Environment for ``save_model``; passing it is what keeps MLflow from inferring.
        metadata: Free metadata for the MLmodel file, or ``None``.
        code_paths: Files and folders of code to ship with the model, or ``None``.
    """

    model: Any
    folder: Path
    serialization: str
    signature: ModelSignature | None
    input_example: Any
    logged_example: Any
    conda_env: dict[str, Any]
    metadata: dict[str, Any] | None
    code_paths: list[str] | None

    def arguments(self) -> dict[str, Any]:
        """Give the arguments that every ``mlflow.<flavor>.save_model`` takes under the same name."""
        return {
            "path": str(self.folder),
            # None would make MLflow run the model on the example to infer one.
            "signature": False if self.signature is None else self.signature,
            "input_example": self.logged_example,
            "conda_env": self.conda_env,
            "metadata": self.metadata,
            "code_paths": self.code_paths,
        }


def first_rows(model: Any, data: Any, rows: int) -> Any:
    """Return the first rows of data that already is what MLflow accepts.

    Args:
        model: Not looked at; flavors whose examples depend on the model have their own function.
        data: A frame, array, sparse matrix, list of rows, or a dict of these.
        rows: How many rows to keep.
    """
    if isinstance(data, Mapping):
        return {name: first_rows(model, column, rows) for name, column in data.items()}
    if hasattr(data, "iloc"):
        return data.iloc[:rows]
    return data[:rows]


def _only_itself(model: Any) -> Iterable[Any]:
    return (model,)


def _unknown(model: Any) -> None:  # noqa: ARG001 - as the others of its kind
    return None


def _never(about: Mapping[str, Any]) -> bool:  # noqa: ARG001 - as the others of its kind
    return False


@dataclass(frozen=True)
class Flavor:
    """What a framework file says about its models.

    Args:
        name: MLflow's name of the flavor, such as ``"sklearn"``.
        distributions: Distributions pinned with every model; those not installed are left out.
        save: Writes the MLflow model folder and returns the serialization format it used, such as
            ``"skops"`` or ``"cloudpickle"``.
        predict: Gives the model's output for an example as MLflow accepts it, or ``None`` when the
            model has no output. The model stays as it was.
        example: Turns data into an example of at most the given number of rows, in a form that
            MLflow accepts and ``predict`` understands.
        signature: What a model itself knows of its inputs and outputs, where no data is at hand;
            ``None`` if that is not enough for a signature. The model stays as it was.
        parts: Everything inside a model whose class may come from another package.
        roots: Import names that ``distributions`` already answer for. An import name that differs
            from its distribution's name is otherwise looked up, which costs 0.4 s once.
        trusted_types: Qualified names that a model file of this flavor may name although the
            format's own defaults refuse them. The one list for saving and for loading.
        is_data: Tells from what an MLmodel file says of this flavor whether the files hold nothing that
            loading them could run: only then is a stranger's model loaded.
    """

    name: str
    distributions: tuple[str, ...]
    save: Callable[[SaveRequest], str]
    predict: Callable[[Any, Any], Any]
    example: Callable[[Any, Any, int], Any] = first_rows
    signature: Callable[[Any], ModelSignature | None] = _unknown
    parts: Callable[[Any], Iterable[Any]] = _only_itself
    roots: frozenset[str] = frozenset()
    trusted_types: frozenset[str] = frozenset()
    is_data: Callable[[Mapping[str, Any]], bool] = _never


_registered: dict[str, Flavor] = {}


def register_flavor(root: str, flavor: Flavor) -> None:
    """Let models of another package be staged.

    Args:
        root: Import name of the package that defines the model classes, such as ``"catboost"``.
        flavor: How to stage them. A second registration replaces the first.

    Raises:
        UsageError: ``root`` is not the name of a top-level package.
    """
    if not root.isidentifier():
        raise UsageError(
            f"register_flavor got root {root!r}; it takes the name of a top-level package, "
            f"such as {root.partition('.')[0]!r}."
        )
    _registered[root] = flavor


def flavor_of(model: Any) -> Flavor:
    """Return the flavor of a model: the first one that its class, or a class it derives from, has.

    Args:
        model: Any object.

    Raises:
        UnloggableError: No class in the model's ancestry belongs to a package with a flavor.
    """
    for root in _roots_of_type(type(model)):
        flavor = _flavor_of_root(root)
        if flavor is not None:
            return flavor
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    known = sorted(name for name in {*_registered, *_framework_files()} if name in sys.modules)
    accepted = [name for name in known if _flavor_of_root(name) is not None]
    raise UnloggableError(
        f"A {kind} cannot be staged as a model: neither its class nor one it derives from belongs "
        f"to a framework with a flavor; accepted in this process: {', '.join(accepted) or 'none'}. "
        "Give the fitted model itself, register its package with "
        "mlpipeline.tracking.flavors.register_flavor, or log a saved file with log_artifact."
    )


def flavor_named(name: str) -> Flavor | None:
    """Return the flavor with a name of MLflow's, such as ``"sklearn"``; None where there is none.

    Only for a package that is called like its flavor.
    """
    registered = (flavor for flavor in _registered.values() if flavor.name == name)
    found = next(registered, None) or _flavor_of_root(name)
    return found if found is not None and found.name == name else None


def _flavor_of_root(root: str) -> Flavor | None:
    if root in _registered:
        return _registered[root]
    if not root.isidentifier() or root.startswith("_"):
        return None  # also the user's __main__, which would be our command line
    spec = importlib.util.find_spec(f"mlpipeline.{root}")
    if spec is None or not _is_framework(spec):
        return None
    flavor = getattr(importlib.import_module(spec.name), "flavor", None)
    return flavor if isinstance(flavor, Flavor) else None


def _is_framework(spec: ModuleSpec) -> bool:
    # Not any package (mlpipeline.models), even if the user's own is called the same; nor is it imported
    # to find out.
    folders = spec.submodule_search_locations
    return folders is None or any(os.path.exists(os.path.join(folder, "flavor.py")) for folder in folders)


def _framework_files() -> Iterator[str]:
    package = importlib.import_module("mlpipeline")
    for info in pkgutil.iter_modules(package.__path__):
        spec = importlib.util.find_spec(f"mlpipeline.{info.name}")
        if spec is not None and _is_framework(spec):
            yield info.name


def _roots_of_type(kind: type) -> list[str]:
    return list(dict.fromkeys(str(base.__module__).partition(".")[0] for base in kind.__mro__))


# --- requirements ----------------------------------------------------------------------------------


def pinned_requirements(flavor: Flavor, model: Any) -> list[str]:
    """Pin what loading a model needs, from the metadata of what is installed.

    MLflow would find out by loading the model in a new process: 7 to 34 s, and it pins whatever
    that process imported.

    Args:
        flavor: The model's flavor.
        model: The model; each class found inside it adds the distribution that it comes from.

    Returns:
        Lines such as ``"scikit-learn==1.9.1"``, without local versions (``+cpu``), which no package
        index has. Code that is not installed as a distribution cannot be pinned and is left out.
    """
    pins = {name: installed_version(name) for name in flavor.distributions}
    roots = _roots_inside(flavor, model)
    for root in sorted(roots - flavor.roots - sys.stdlib_module_names - {"__main__", "__mp_main__"}):
        name = _distribution_of(root)
        if name is not None and name not in pins:
            pins[name] = installed_version(name)
    return [f"{name}=={version}" for name, version in pins.items() if version is not None]


def _roots_inside(flavor: Flavor, model: Any) -> set[str]:
    try:
        return {root for part in flavor.parts(model) for root in _roots_of(part)}
    # Parts are found by asking objects that the user wrote; a pin is never worth a model.
    except Exception as cause:  # noqa: BLE001
        logger.warning(
            "Requirements of %s may be incomplete: %s: %s",
            type(model).__name__,
            type(cause).__name__,
            cause,
        )
        return set()


def _roots_of(part: Any) -> Iterable[str]:
    # A function or class held as a value is imported by name; of anything else, its class is.
    if isinstance(part, type):
        return _roots_of_type(part)
    if hasattr(part, "__qualname__") and isinstance(getattr(part, "__module__", None), str):
        return (part.__module__.partition(".")[0],)
    return _roots_of_type(type(part))


def installed_version(distribution: str) -> str | None:
    """Return the version of what is installed, without its local part; None where it is not."""
    try:
        return _found_version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache  # a dozen per model; and what is imported stays what it is if another version is installed meanwhile
def _found_version(distribution: str) -> str:
    return importlib.metadata.version(distribution).partition("+")[0]


@cache
def _distribution_of(root: str) -> str | None:
    # Nearly always both have the same name; asking for all import names reads every RECORD file.
    try:
        return importlib.metadata.distribution(root).metadata["Name"]
    except importlib.metadata.PackageNotFoundError:
        return next(iter(_distributions_by_root().get(root, ())), None)


@cache
def _distributions_by_root() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
