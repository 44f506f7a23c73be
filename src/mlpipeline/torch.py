"""What mlpipeline knows about PyTorch: how its modules, Lightning's included, are saved."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import logging
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

from mlpipeline.core.errors import MissingExtraError, UnloggableError
from mlpipeline.tracking.staging import EXAMPLE_ROWS, Flavor, SaveRequest

try:
    import torch
except ImportError as missing:
    raise MissingExtraError("torch", "torch") from missing


def _save(request: SaveRequest) -> str:
    """Save the module by cloudpickle, which restores the user's class, or as an exported graph."""
    if request.serialization == "pt2":
        return _save_pt2(request)
    used = "cloudpickle" if request.serialization == "auto" else request.serialization
    if used not in ("cloudpickle", "pickle"):
        raise UnloggableError(
            f"serialization {request.serialization!r} is unknown for PyTorch modules; "
            "accepted: auto, cloudpickle, pickle, pt2."
        )
    mlflow_pytorch = _mlflow_pytorch()
    mlflow_pytorch.save_model(
        _detached(request.model),
        serialization_format="pickle",
        pickle_module=mlflow_pytorch.pickle_module if used == "cloudpickle" else pickle,
        **request.arguments(),
    )
    return "torchscript" if isinstance(request.model, torch.jit.ScriptModule) else used


def _mlflow_pytorch() -> Any:
    """Import mlflow.pytorch without what it does to everybody's logging.

    It calls ``logging.basicConfig(level=ERROR)``, which hides the warnings of the whole process, our
    own included. The call does nothing where the root logger has a handler, so it is lent the one
    that Python uses when there is none.
    """
    root, lent = logging.getLogger(), logging.lastResort or logging.NullHandler()
    bare = not root.handlers
    if bare:
        root.addHandler(lent)
    try:
        return importlib.import_module("mlflow.pytorch")
    finally:
        if bare:
            root.removeHandler(lent)


def _save_pt2(request: SaveRequest) -> str:
    import numpy as np
    from mlflow.models import Model

    # The exported file keeps the tensors it was traced with, so they are zeros unless the example
    # is to be logged; tracing looks at shapes and types only.
    inputs = _traceable(request)
    if request.logged_example is None:
        inputs = [np.zeros_like(array) for array in inputs]
    record = Model()
    arguments = request.arguments()
    arguments["input_example"] = inputs[0] if len(inputs) == 1 else tuple(inputs)
    with _evaluating(request.model):
        _mlflow_pytorch().save_model(
            _detached(request.model), mlflow_model=record, serialization_format="pt2", **arguments
        )
    stored = record.saved_input_example_info
    if request.logged_example is None and stored is not None:
        for name in ("artifact_path", "serving_input_path"):
            (request.folder / stored[name]).unlink(missing_ok=True)
        record.saved_input_example_info = None  # type: ignore[assignment]  # MLflow's own default
        record.save(str(request.folder / "MLmodel"))
    return "pt2"


def _traceable(request: SaveRequest) -> list[Any]:
    """Return the example as arrays in the order of ``forward``, or raise if there is none."""
    inputs: dict[str, Any] = {}
    if request.input_example is not None and request.signature is not None:
        shown = _example(request.model, request.input_example, EXAMPLE_ROWS)
        inputs = shown if isinstance(shown, dict) else {"": shown}
    arrays = [array for array in inputs.values() if hasattr(array, "ndim") and not hasattr(array, "iloc")]
    order = [name for name in _inputs_of(request.model) or () if name in inputs]
    if list(inputs) in ([""], order) and arrays and all(len(array) > 1 for array in arrays):
        return [array.copy() for array in arrays]  # torch warns of arrays that it could not write to
    raise UnloggableError(
        "serialization 'pt2' traces the module, so it needs a signature and an input_example: an "
        "array or tensor, or several in the order of forward, of at least two rows (one row would "
        'freeze the batch size). Pass input_example=, or use serialization="auto".'
    )


def _detached(module: Any) -> Any:
    """Return the module without the training machinery that Lightning hangs on it.

    Lightning leaves its Trainer out when pickling, but not Fabric. A shallow copy shares every
    parameter, buffer and submodule, so it costs no memory and the original keeps its references.
    """
    if all(module.__dict__.get(name) is None for name in ("_trainer", "_fabric")):
        return module
    twin = copy.copy(module)
    twin.__dict__.update(_trainer=None, _fabric=None)
    return twin


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Run a block in evaluation mode without gradients, then put back every flag and random state."""
    flags = [(part, part.training) for part in module.modules()]
    devices = {tensor.device for tensor in module.parameters() if tensor.is_cuda}
    try:
        module.eval()
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            yield
    finally:
        for part, training in flags:
            part.training = training


def _example(model: Any, data: Any, rows: int) -> Any:
    """Turn a batch into what MLflow accepts: a frame, an array, or a dict of named arrays.

    A dict keeps its names. MLflow has no way to express several unnamed tensors, so the members of
    a tuple or list get the names of the parameters of ``forward``, and a batch longer than
    ``forward`` takes (inputs, then targets) is cut to what it takes.
    """
    if isinstance(data, Mapping):
        return {str(name): _array(column)[:rows] for name, column in data.items()}
    if isinstance(data, (tuple, list)):
        if len(data) == 1:
            return _array(data[0])[:rows]
        names = _inputs_of(model)
        if names is None:
            raise TypeError("forward does not name its inputs; give the example as a dict")
        columns = [_array(column)[:rows] for column in data[: len(names)]]
        return columns[0] if len(columns) == 1 else dict(zip(names, columns, strict=False))
    return data.iloc[:rows] if hasattr(data, "iloc") else _array(data)[:rows]


def _inputs_of(model: Any) -> list[str] | None:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _array(data: Any) -> Any:
    import numpy as np

    return data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)


def _predict(model: Any, example: Any) -> Any:
    with _evaluating(model):
        if not isinstance(example, dict):
            return _outputs(model(_tensor(model, example)))
        inputs = {name: _tensor(model, column) for name, column in example.items()}
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError:  # a forward that takes the batch as one dict
            return _outputs(model(inputs))
        return _outputs(model(**inputs))


def _tensor(model: Any, data: Any) -> Any:
    import numpy as np

    # MLflow feeds frames to a module as float32, whatever their columns are.
    array = data.to_numpy(dtype=np.float32) if hasattr(data, "iloc") else data
    parameter = next(iter(model.parameters()), None)
    return torch.tensor(array, device=None if parameter is None else parameter.device)


def _outputs(outputs: Any) -> Any:
    if isinstance(outputs, torch.Tensor):
        return _array(outputs)
    if isinstance(outputs, Mapping):
        named = outputs.items()
    else:
        named = {f"output_{place}": member for place, member in enumerate(outputs)}.items()
    return {name: _array(value) for name, value in named if isinstance(value, torch.Tensor)}


flavor = Flavor(
    name="pytorch",
    distributions=("mlflow", "torch", "numpy", "pandas", "cloudpickle"),
    roots=frozenset({"torch"}),
    save=_save,
    predict=_predict,
    example=_example,
    parts=lambda model: model.modules(),
)
