"""Models and files on their way to MLflow: written to the spool by the trainer, sent by the courier.

::

    model ── flavor_of ──► Flavor ── stage_model ──► folder (MLmodel, requirements.txt, model.*)
    file, folder ─────────────────── copy_into_spool ──► a private copy

The engine names no framework. What it must know about a framework's models stands in a
:class:`Flavor`, which the framework's file or package (``mlpipeline.<root package>``) offers as ``flavor``;
a package of someone else's registers its own with :func:`register_flavor`.

Staging happens in the training process, so it leaves nothing behind there: no active run, no
tracking URI, no environment variable, no subprocess, no line on the terminal, and the model as it
was. MLflow itself is imported inside the functions, because recording must not pay for it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import pkgutil
import platform
import shutil
import stat
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking.home import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path

    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

__all__ = [
    "Flavor",
    "SaveRequest",
    "StagedModel",
    "copy_into_spool",
    "first_rows",
    "flavor_of",
    "pinned_requirements",
    "register_flavor",
    "signature_for",
    "stage_model",
]

_logger = logging.getLogger("mlpipeline")

EXAMPLE_ROWS = 5
"""Rows kept of an input example."""

SIGNATURE_ROWS = 100
SIGNATURE_CELLS = 10_000
"""Bounds on what a signature is inferred from: MLflow looks at every cell of a frame in Python."""


# What a framework says about its models


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
        "mlpipeline.tracking.staging.register_flavor, or log a saved file with log_artifact."
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


# Requirements


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
    pins = {name: _installed_version(name) for name in flavor.distributions}
    roots = _roots_inside(flavor, model)
    for root in sorted(roots - flavor.roots - sys.stdlib_module_names - {"__main__", "__mp_main__"}):
        name = _distribution_of(root)
        if name is not None and name not in pins:
            pins[name] = _installed_version(name)
    return [f"{name}=={version}" for name, version in pins.items() if version is not None]


def _roots_inside(flavor: Flavor, model: Any) -> set[str]:
    try:
        return {root for part in flavor.parts(model) for root in _roots_of(part)}
    # Parts are found by asking objects that the user wrote; a pin is never worth a model.
    except Exception as cause:  # noqa: BLE001
        _logger.warning(
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


def _installed_version(distribution: str) -> str | None:
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


# MLflow answers `pip_requirements` and `conda_env` alike by reading the RECORD file of every
# installed distribution, to warn about pins that do not fit: 0.6 s of CPU in the trainer, to check
# versions that were read from that very installation. It leaves requirements alone that carry
# per-requirement options, so it gets one of those, and the true lines are written afterwards.
_UNCHECKED = "mlflow --hash=sha256:0"


def _environment(requirements: Sequence[str]) -> dict[str, Any]:
    pip = _installed_version("pip")
    return {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [
            f"python={platform.python_version()}",
            # Not "==": a new pip is on PyPI long before conda-forge has it.
            "pip" if pip is None else f"pip<={pip}",
            {"pip": list(requirements)},
        ],
    }


def _write_requirements(folder: Path, requirements: Sequence[str]) -> None:
    import yaml

    text = yaml.safe_dump(_environment(requirements), default_flow_style=False)
    (folder / "conda.yaml").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements), encoding="utf-8")


# Signatures


def signature_for(flavor: Flavor, model: Any, example: Any) -> ModelSignature | None:
    """Infer a model's signature from a bounded slice of data, or without data from the model itself.

    At most 100 rows and 10 000 cells are looked at (but one row at least). Whether a column may
    miss values is then asked of the whole frame, which is vectorised and cheap.

    MLflow cannot express several unnamed tensors: a flavor whose models take several inputs gives
    them names, and what cannot be named has no signature.

    Args:
        flavor: The model's flavor.
        model: The fitted model; it stays as it was.
        example: Data that the model takes, of any length; ``None`` asks the model.

    Returns:
        The signature; ``None`` if the model does not know it, or after one warning that names the
        cause. Never raises.
    """
    try:
        with _quiet(flavor.name):
            return flavor.signature(model) if example is None else _signature(flavor, model, example)
    # Whatever a model does on data it may not have been made for, it costs a signature, not a run.
    except Exception as cause:  # noqa: BLE001
        _logger.warning("No signature for %s: %s: %s", type(model).__name__, type(cause).__name__, cause)
        return None


def _signature(flavor: Flavor, model: Any, example: Any) -> ModelSignature:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    width = max(1, _cells(flavor.example(model, example, 1)))
    shown = flavor.example(model, example, max(1, min(SIGNATURE_ROWS, SIGNATURE_CELLS // width)))
    inputs = _schema(shown)
    if isinstance(example, pd.DataFrame) and isinstance(shown, pd.DataFrame):
        missing = example.isna().any()
        inputs = Schema(
            [
                ColSpec(column.type, column.name, required=not bool(missing[column.name]))  # type: ignore[arg-type]
                for column in inputs.inputs
            ]
        )
    outputs = flavor.predict(model, shown)
    return ModelSignature(inputs=inputs, outputs=None if outputs is None else _schema(outputs))


def _cells(row: Any) -> int:
    if isinstance(row, Mapping):
        return sum(_cells(column) for column in row.values())
    shape = getattr(row, "shape", None)
    if shape is not None:
        return math.prod(shape)
    return sum(map(_cells, row)) if isinstance(row, (list, tuple)) else 1


def _schema(data: Any) -> Schema:
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature

    if isinstance(data, pd.DataFrame):
        return _frame_schema(data)
    if isinstance(data, (list, pd.Series)):
        array = np.asarray(data)
        if array.dtype.kind in "biuf":
            data = array
        elif all(isinstance(item, str) for item in data):
            # As a column of a frame, which MLflow would make of it, texts reach no text vectorizer.
            data = array.astype(object)
    schema: Schema = infer_signature(data).inputs
    if _is_any(schema):
        raise TypeError(f"MLflow has no schema for a {type(data).__name__} like this one")
    return schema


def _frame_schema(frame: Any) -> Schema:
    from mlflow.models import infer_signature
    from mlflow.types.schema import ColSpec, DataType, Schema

    # MLflow warns of every integer column, and through it pandas of every time zone. Warnings can
    # be silenced only for all threads at once, so the columns that would warn are shown to MLflow
    # as ones that do not, and get their true type afterwards.
    types: dict[Any, DataType] = {}
    shown = frame.copy(deep=False)
    for name in frame.columns:
        dtype = _dtype_of_values(frame[name])
        unsigned = dtype.kind == "u"
        if dtype.kind in "iu" and not (unsigned and dtype.itemsize == 8):
            wide = dtype.itemsize > 4 or (unsigned and dtype.itemsize == 4)
            types[name] = DataType.long if wide else DataType.integer
            shown[name] = 0.0
        elif getattr(dtype, "tz", None) is not None:
            shown[name] = frame[name].dt.tz_localize(None)
    schema = infer_signature(shown).inputs
    if _is_any(schema):
        bad = [name for name in shown.columns if _is_any(infer_signature(shown[[name]]).inputs)]
        raise TypeError(
            "MLflow has no type for these columns: "
            + ", ".join(f"{name!r} ({frame[name].dtype})" for name in bad)
        )
    return Schema(
        [
            ColSpec(
                types.get(column.name, column.type),
                column.name,
                required=not bool(frame[column.name].isna().any()),
            )
            for column in schema.inputs
        ]
    )


def _dtype_of_values(column: Any) -> Any:
    if column.dtype.name == "category":
        return column.dtype.categories.dtype
    return column.infer_objects().dtype


def _is_any(schema: Schema) -> bool:
    # What infer_signature falls back to, after a log line, when it fails.
    from mlflow.types.schema import AnyType

    return any(isinstance(column.type, AnyType) and column.name is None for column in schema.inputs)


# Staging

_ROOM_BYTES = 65_536
"""A disk that does not take so much more is full."""


@dataclass(frozen=True)
class StagedModel:
    """A model folder in the spool.

    Args:
        flavor: Name of the flavor that wrote it.
        serialization: Format of the model inside, such as ``"skops"`` or ``"cloudpickle"``.
        size_bytes: Size of all files together.
        file_count: Number of files.
    """

    flavor: str
    serialization: str
    size_bytes: int
    file_count: int


def stage_model(
    model: Any,
    folder: Path,
    *,
    input_example: Any = None,
    log_input_example: bool = False,
    signature: Literal["auto"] | ModelSignature | None = "auto",
    serialization: str = "auto",
    requirements: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    code_paths: Sequence[str | Path] | None = None,
) -> StagedModel:
    """Write a model as an MLflow model folder, ready to be uploaded.

    The folder is complete when the call returns, and gone when it raises. The model is left as it
    was, and so is the process: no run, no environment variable, no subprocess, no output.

    Args:
        model: A fitted model of a framework that has a flavor.
        folder: Where to write; must be absent or empty. Created with mode 0700.
        input_example: Data that the model takes, for the signature; a frame of any length will do.
        log_input_example: Store the first 5 rows of ``input_example`` with the model. They may be
            personal data, so by default nothing of them is kept.
        signature: ``"auto"`` infers one from ``input_example``, or without one asks the model;
            ``None`` stores none.
        serialization: A format that the model's flavor knows, or ``"auto"`` for the safest one that
            can hold the model.
        requirements: Lines for ``requirements.txt``, used as they are; ``None`` pins what is
            installed.
        metadata: Free metadata for the MLmodel file.
        code_paths: Files and folders of code to ship with the model.

    Returns:
        What was written.

    Raises:
        UnloggableError: The model's type has no flavor, or it cannot be written in this format.
        UsageError: ``folder`` is not empty.
        OSError: The disk failed; this is the world's fault, for the caller to count.
    """
    flavor = flavor_of(model)
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; stage each model into a folder of its own.")
    # Whole, before any part of it: while the delivery's thread imports it, a part that is asked for first
    # makes Python break the deadlock of the two imports, and leaves half a package.
    import mlflow  # noqa: F401

    if signature == "auto":
        signature = signature_for(flavor, model, input_example)
    pins = pinned_requirements(flavor, model) if requirements is None else None
    request = SaveRequest(
        model=model,
        folder=folder,
        serialization=serialization,
        signature=signature,
        input_example=input_example,
        logged_example=_logged_example(flavor, model, input_example) if log_input_example else None,
        conda_env=_environment([_UNCHECKED] if pins is not None else list(requirements or ())),
        metadata=None if metadata is None else dict(metadata),
        code_paths=None if code_paths is None else [str(path) for path in code_paths],
    )
    try:
        with _quiet(flavor.name):
            used = _save(flavor, request)
        if pins is not None:
            _write_requirements(folder, pins)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return StagedModel(flavor.name, used, sum(sizes), len(sizes))


def _logged_example(flavor: Flavor, model: Any, data: Any) -> Any:
    if data is None:
        return None
    try:
        example = flavor.example(model, data, EXAMPLE_ROWS)
    # Data of any type can arrive here; an example is never worth a model.
    except Exception as cause:  # noqa: BLE001
        _warn_of_example(model, cause)
        return None
    if hasattr(example, "columns"):
        # MLflow compares column names with a range, which pandas deprecates for its own str type.
        return example.set_axis(example.columns.astype(object), axis=1)
    return example


def _warn_of_example(model: Any, cause: Exception) -> None:
    _logger.warning("No input example for %s: %s: %s", type(model).__name__, type(cause).__name__, cause)


def _save(flavor: Flavor, request: SaveRequest) -> str:
    new_folder(request.folder)
    try:
        return flavor.save(request)
    except (UnloggableError, OSError):
        raise
    # A framework may fail to write a model with any exception at all.
    except Exception as cause:
        _check_room(request.folder, cause)
        if request.logged_example is not None:
            _warn_of_example(request.model, cause)
            return _save(flavor, replace(request, logged_example=None))
        raise UnloggableError(
            f"A {type(request.model).__name__} could not be written as {flavor.name} model with "
            f"serialization {request.serialization!r}: {cause}. Remove what cannot be written (an "
            "open file, a lock, a callback), or choose another serialization."
        ) from cause


def _check_room(folder: Path, cause: Exception) -> None:
    """Raise an ``OSError`` where the disk takes no more: XGBoost and PyTorch have exceptions of their own for that."""
    try:
        with (folder / "room").open("wb") as file:
            file.write(bytes(_ROOM_BYTES))
        (folder / "room").unlink()
    except OSError as error:
        raise error from cause


def new_folder(folder: Path) -> None:
    """Make a folder exist, empty and private, whatever an earlier attempt left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder(folder)


_MLFLOW_LOGGERS = (
    "mlflow.models.model",
    "mlflow.models.signature",
    "mlflow.models.utils",
    "mlflow.types.utils",
    "mlflow.utils.environment",
    "mlflow.utils.requirements_utils",
)


@contextlib.contextmanager
def _quiet(flavor: str) -> Iterator[None]:
    """Keep MLflow's remarks on saving off the terminal, of this thread only.

    They tell the user of arguments that we chose: pickle is less safe than skops, an integer cannot
    be missing. Errors pass. Loggers are named, so that the rest of MLflow still speaks.
    """
    thread = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return threading.get_ident() != thread or record.levelno >= logging.ERROR

    names = (f"mlflow.{flavor}", f"mlflow.{flavor}.save", *_MLFLOW_LOGGERS)
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(others)


# Files of others

_FICLONE = 0x40049409


def copy_into_spool(source: Path, target: Path) -> int:
    """Copy a file or folder so that later changes to the original do not reach the copy.

    Where the file system can share blocks until one side is written (btrfs, xfs), the copy costs
    nothing. A hard link would cost nothing everywhere, but it is the same file: a framework that
    overwrites its checkpoint in place would change what is still to be uploaded.

    Links inside a folder are followed, as an upload would.

    Args:
        source: File or folder to copy.
        target: Where to; must be absent. Files get mode 0600, folders 0700.

    Returns:
        Bytes copied.

    Raises:
        UnloggableError: ``source`` is absent or neither file nor folder, or a link in it leads out
            of the folder, in a circle, or nowhere.
        OSError: The disk failed. Nothing is left at ``target``.
    """
    if not source.exists():
        raise UnloggableError(f"{source} does not exist; give the path of a file or folder.")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; copy into a new place.")
    try:
        return _copy(source.resolve(), target, source.resolve(), ())
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)
        raise


def _copy(source: Path, target: Path, top: Path, above: tuple[Path, ...]) -> int:
    mode = source.stat().st_mode
    if stat.S_ISREG(mode):
        return _copy_file(source, target)
    if not stat.S_ISDIR(mode):
        raise UnloggableError(f"{source} is neither a file nor a folder, so it cannot be logged.")
    make_folder(target)
    total = 0
    for entry in sorted(source.iterdir()):
        inside = entry
        if entry.is_symlink():
            inside = entry.resolve()
            if not inside.exists() or not inside.is_relative_to(top) or inside in (*above, source):
                raise UnloggableError(
                    f"{entry} is a link to {entry.readlink()}, which is absent, outside of {top} "
                    "or around in a circle; log the file it should stand for, or remove the link."
                )
        total += _copy(inside, target / entry.name, top, (*above, source))
    return total


def _copy_file(source: Path, target: Path) -> int:
    private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(private, "wb") as copy, source.open("rb") as original:
        if not _reflinked(original.fileno(), copy.fileno()):
            shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        return os.fstat(copy.fileno()).st_size


def _reflinked(original: int, copy: int) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:  # another file system, or one that cannot share blocks
        return False
    return True
