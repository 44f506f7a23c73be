"""What mlpipeline knows about PyTorch's modules, Lightning's included: how they are saved and what they are made of.

Lightning's file and that of hand-written loops (`mlpipeline.torch`) both stand on it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import MissingExtraError, UnloggableError
from mlpipeline.tracking.flavors import Flavor, SaveRequest
from mlpipeline.tracking.recorded import unharmed
from mlpipeline.tracking.staging import EXAMPLE_ROWS

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run

try:
    import torch
except ImportError as missing:
    raise MissingExtraError("torch", "torch") from missing

logger = logging.getLogger("mlpipeline")

_HASHED_BYTES = 64 * 2**20


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


# --- what a training is made of


def optimizer_params(optimizer: Any) -> dict[str, Any]:
    """Return the hyperparameters of an optimizer, and of its groups if there are several."""
    groups = optimizer.param_groups
    rates = {f"group_{number}": {"lr": group["lr"]} for number, group in enumerate(groups)}
    return {
        "name": type(optimizer).__name__,
        **scalars(optimizer.defaults),
        **(rates if len(groups) > 1 else {}),
    }


def parameter_counts(module: Any) -> dict[str, int]:
    """Return how many numbers a module consists of, and how many of them are trained."""
    sizes = [
        (parameter.numel(), parameter.requires_grad)
        for parameter in module.parameters()
        if not torch.nn.parameter.is_lazy(parameter)
    ]
    return {
        "total": sum(size for size, _ in sizes),
        "trainable": sum(size for size, is_trainable in sizes if is_trainable),
    }


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the public ones of some attributes that params can hold."""
    kinds = (bool, int, float, str, tuple, list)
    return {
        key: value for key, value in values.items() if not key.startswith("_") and isinstance(value, kinds)
    }


def numbered(name: str, index: int) -> str:
    """Return a name for each of several; the first one needs no number."""
    return name if index == 0 else f"{name}_{index}"


def learning_rates(optimizers: Iterable[Any]) -> dict[str, float]:
    """Return the learning rate per parameter group, named as Lightning's LearningRateMonitor names them."""
    rates: dict[str, float] = {}
    for optimizer in optimizers:
        name = base = f"lr-{type(optimizer).__name__}"
        number = 1
        while name in rates or f"{name}/pg1" in rates:
            name, number = f"{base}-{number}", number + 1
        groups = optimizer.param_groups
        if len(groups) == 1:
            rates[name] = groups[0]["lr"]
        else:
            rates.update({f"{name}/pg{index}": group["lr"] for index, group in enumerate(groups, 1)})
    return rates


def rows_of(batch: Any) -> int:
    """Return how many rows a batch of any nesting has; 0 where there is no tensor to tell."""
    # In this order, and the shape asked for once: it is called at every step, and each miss of an attribute costs.
    try:
        while isinstance(batch, (list, tuple)) and batch:
            batch = batch[0]
        if (shape := getattr(batch, "shape", None)) is not None:
            return int(shape[0]) if shape else 0
        return rows_of(next(iter(batch.values()), None)) if isinstance(batch, Mapping) else 0
    except Exception:  # noqa: BLE001 - a nested tensor has no shape, and a class of the user's may do anything
        return 0


def cut(value: Any) -> Any:
    """Return a few rows of tensors in any nesting, detached and on the CPU."""
    if isinstance(value, torch.Tensor):
        return value[:EXAMPLE_ROWS].detach().cpu().clone() if value.dim() else value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: cut(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(cut(item) for item in value)
    return value


def twin_of(module: Any, *, shares_parameters: bool = True) -> Any:
    """Return a copy of *module* on the CPU, in evaluation mode; the module stays as it is.

    Args:
        module: Any module that can be copied.
        shares_parameters: Whether parameters that are on the CPU are shared, not copied.
    """
    twins: dict[int, Any] = {id(part): part.detach().cpu().clone() for part in module.buffers()}
    for part in module.parameters():
        data = part.detach().cpu()
        if not shares_parameters and data.data_ptr() == part.data_ptr():
            data = data.clone()
        twins[id(part)] = torch.nn.Parameter(data, part.requires_grad)
    return copy.deepcopy(module, twins).eval()


def log_datasets(run: Run, **loaders: Any) -> None:
    """Record the datasets of one or several loaders per role, with their sizes as params."""
    sizes: dict[str, Any] = {}
    with unharmed("the datasets"):
        for context, given in loaders.items():
            values = given.values() if isinstance(given, Mapping) else given
            several = values if isinstance(given, (Mapping, list, tuple)) else [given]
            for index, loader in enumerate(several):
                dataset = getattr(loader, "dataset", None)
                if dataset is None or not hasattr(dataset, "__len__"):
                    continue
                name, rows = numbered(context, index), len(dataset)
                sizes[name] = {"rows": rows, "batch_size": getattr(loader, "batch_size", None)}
                profile = {"num_rows": rows, "class": type(dataset).__name__}
                content = _content(dataset) if run.config.log_datasets else None
                run.log_dataset(content, name=name, context=context, profile=profile)
        if sizes:
            run.log_params({"data": sizes})


def _content(dataset: Any) -> Any:
    """Return the tensors behind a dataset as one array to hash, or the dataset where they are not at hand."""
    tensors = getattr(dataset, "tensors", None)
    if not tensors or sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _HASHED_BYTES:
        return dataset
    rows = [tensor.detach().cpu().reshape(len(tensor), -1).double() for tensor in tensors]
    return torch.cat(rows, dim=1)


class Example:
    """A few rows of what the model is called with.

    Args:
        module: Whose first call is waited for, until `release`.
        batch: The batch that leads to it; None where it is not known yet.
    """

    def __init__(self, module: Any, batch: Any = None) -> None:
        self._input: Any = None
        self._problem: str | None = None
        self.offer(batch)
        # A hook on a compiled module would have it compiled again.
        compiled = ("_compiler_ctx", "_compiled_call_impl", "_orig_mod")
        is_compiled = any(getattr(module, name, None) is not None for name in compiled)
        self._handle = None if is_compiled else module.register_forward_pre_hook(self._take, with_kwargs=True)

    def offer(self, batch: Any) -> None:
        """Take the first part of a batch, as long as there is nothing better."""
        if self._input is None:
            self._keep(batch[0] if isinstance(batch, (tuple, list)) and batch else batch)

    def _take(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not inspect.ismethod(module.forward):
            return  # DistributedDataParallel on its way to training_step, with that one's arguments
        self.release()
        if args and not kwargs:
            self._keep(args[0] if len(args) == 1 else args)
        elif kwargs and not args:
            self._keep(kwargs)

    def _keep(self, value: Any) -> None:
        try:
            self._input, self._problem = cut(value), None
        except Exception as cause:  # noqa: BLE001 - such as a sparse or a nested tensor
            # PyTorch goes on with a list of its backends.
            what = str(cause).partition("\n")[0].partition(". ")[0]
            self._input, self._problem = None, f"{type(cause).__name__}: {what}"

    def release(self) -> None:
        """Leave no hook behind."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def settled(self, module: Any) -> Any:
        """Return the module's own example, else its first call's input, else the batch's first part."""
        own = getattr(module, "example_input_array", None)
        if own is not None:
            self._keep(own)
        if self._problem is not None:
            logger.warning("the model has no signature: an input cannot be cut (%s)", self._problem)
        return self._input
