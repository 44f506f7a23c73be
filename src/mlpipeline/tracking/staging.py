"""Models on their way to MLflow: written to the spool by the trainer, sent by the courier.

::

    model ── flavor_of ──► Flavor ── stage_model ──► folder (MLmodel, requirements.txt, model.*)

Staging happens in the training process, so it leaves nothing behind there: no active run, no
tracking URI, no environment variable, no subprocess, no line on the terminal, and the model as it
was. MLflow itself is imported inside the functions, because recording must not pay for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import platform
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking.flavors import Flavor, SaveRequest, flavor_of, installed_version, pinned_requirements
from mlpipeline.tracking.home import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

_logger = logging.getLogger("mlpipeline")

EXAMPLE_ROWS = 5
"""Rows kept of an input example."""

SIGNATURE_ROWS = 100
SIGNATURE_CELLS = 10_000
"""Bounds on what a signature is inferred from: MLflow looks at every cell of a frame in Python."""


# MLflow answers `pip_requirements` and `conda_env` alike by reading the RECORD file of every
# installed distribution, to warn about pins that do not fit: 0.6 s of CPU in the trainer, to check
# versions that were read from that very installation. It leaves requirements alone that carry
# per-requirement options, so it gets one of those, and the true lines are written afterwards.
_UNCHECKED = "mlflow --hash=sha256:0"


def _environment(requirements: Sequence[str]) -> dict[str, Any]:
    pip = installed_version("pip")
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
