"""Keras 3: ``model.fit(callbacks=[MLflowCallback()])`` records the training in MLflow, on any backend.

::

    fit ──────► on_train_begin ─ on_epoch_begin ── opens the run: now it is known where the training goes on
                 on_train_batch_end ────────────── batch/<name>, at the step: only every n steps, if asked for
                 on_epoch_end ──────────────────── <name>, val_<name>, learning_rate; the best weights are kept
                on_train_end ───────────────────── the best weights as a model; FINISHED
    evaluate ─► on_test_begin … on_test_end ────── validation_<name>, added to the run of the model's training

Keras tells no callback of an exception: `mlpipeline.tracking.trainings` ends the run of such a training.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import sys
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.errors import MissingExtraError, MLPipelineError, UnloggableError, UsageError
from mlpipeline.tracking.flavors import Flavor, SaveRequest, first_rows
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed
from mlpipeline.tracking.surroundings import process_rank

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from mlpipeline.tracking.run import Run

try:
    import keras
except ImportError as missing:
    if importlib.util.find_spec("keras") is None:
        raise MissingExtraError("keras", "keras") from missing
    raise ImportError(
        f"Keras is installed, but its backend is not ({missing}). Set the environment variable KERAS_BACKEND to "
        "'torch' or 'jax' before the first import of keras, or install what is missing."
    ) from missing

logger = logging.getLogger("mlpipeline")


class MLflowCallback(Recorded, keras.callbacks.Callback):
    """Records a Keras training as one MLflow run.

    A ``fit`` that begins at epoch 0 has a run of its own; one with ``initial_epoch=`` continues the run of
    the same model. ``evaluate`` with this callback adds to it. Nothing here waits for MLflow.

    Epochs are recorded under Keras' own names, as in ``History``. With ``log_every_n_steps`` there are also
    ``batch/<name>`` at the training's step; they are what Keras reports, the mean over the epoch so far.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this callback then never ends.
        parent: A run, or its id, under which the run is nested.
        params: Extra hyperparameters; they win over those found in the training.
        monitor: The metric that says which epoch's weights are logged; None is ``val_loss`` where there is
            one, and otherwise the last weights.
        mode: Whether *monitor* is better as "min" or "max"; "auto" is Keras' own rule.
        log_every_epoch: False records no epochs, only batches.
        **overrides: `MLflowConfig` options that win over *config*.
    """

    # Keras calls the batch hooks in threads of its own unless a callback forbids it, and a Run takes records
    # from any thread. Without this, being there would slow the training down.
    async_safe = True

    def __init__(
        self,
        config: Any = None,
        *,
        run: Run | None = None,
        parent: Run | str | None = None,
        params: Mapping[str, Any] | None = None,
        monitor: str | None = None,
        mode: Literal["auto", "min", "max"] = "auto",
        log_every_epoch: bool = True,
        **overrides: Any,
    ) -> None:
        if "model_id" in overrides:
            raise UsageError(
                "model_id= belongs to MLflow's own callback, for a model that is logged before it is trained; "
                "leave it out: this one logs the model itself, and model_uri names it"
            )
        super().__init__(config, run=run, parent=parent, params=params, **overrides)
        if mode not in {"auto", "min", "max"}:
            raise UsageError(f"mode={mode!r} is unknown; accepted are 'auto', 'min' and 'max'")
        if not log_every_epoch and self.config.log_every_n_steps is None:
            raise UsageError("log_every_epoch=False needs log_every_n_steps=, or nothing would be recorded")
        self._monitor, self._mode, self._log_every_epoch = monitor, mode, log_every_epoch
        self._trained: weakref.ref[Any] | None = None
        self._is_new_call = self._is_fitting = self._is_evaluating = False
        self._epoch = self._first_step = 0
        self._reset()

    def _reset(self) -> None:
        self._best: _Best | None = None
        self._batch_size: int | None = None
        self._epoch_rows: int | None = None
        self._is_first_epoch = True
        self._epoch_started_s = self._evaluation_started_s = time.perf_counter()
        self._evaluation_s = 0.0

    # --- a training begins and ends ---------------------------------------------------------------

    def set_model(self, model: Any = None) -> None:
        """Take note of whose callback this is; every ``fit`` and ``evaluate`` begins with it."""
        if not isinstance(self, MLflowCallback):  # Keras called it on the class, with the model as self
            raise UsageError("callbacks=[MLflowCallback] holds the class; write callbacks=[MLflowCallback()]")
        self._check_thread()
        super().set_model(model)
        self._is_new_call = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Forget the last training, which may have raised; the run is opened with the first epoch."""
        self._is_fitting = self._is_new_call = False

    @harmless
    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Open the run at the first epoch: its number tells whether a training goes on."""
        if not self._is_fitting:
            self._begin(epoch)
        self._epoch, self._epoch_rows = epoch, None
        self._epoch_started_s, self._evaluation_s = time.perf_counter(), 0.0

    def _begin(self, epoch: int) -> None:
        run = self._enter(is_continued=epoch > 0 and self._records(self.model))
        self._reset()
        self._is_fitting = True
        if run is None:
            return
        optimizer = getattr(self.model, "optimizer", None)
        done = int(keras.ops.convert_to_numpy(getattr(optimizer, "iterations", 0)))
        done *= getattr(optimizer, "gradient_accumulation_steps", None) or 1
        # An optimizer that the user's own train_step keeps elsewhere stays at 0.
        self._first_step = max(done, epoch * (self.params.get("steps") or 0))
        run.step = self._first_step
        keeps_weights = run.is_enabled and self._rules.log_model not in {False, "metadata"}
        self._best = _Best(self._monitor, self._mode, self.model, keeps_weights=keeps_weights)
        with unharmed("hyperparameters"):
            found = hyperparameters(self.model, self.params, epoch)
            run.log_params({key: value for key, value in found.items() if key not in self._params})
        with unharmed("the model's summary"):
            run.log_text(_summary(self.model), "model_summary.txt")

    def _enter(self, *, is_continued: bool) -> Run | None:
        self._trained = weakref.ref(self.model)
        if process_rank(os.environ) != 0:
            self._stand_by()
            return None
        return self._open(is_continued=is_continued)

    @harmless
    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Log the best weights and end the run."""
        if (run := self._active()) is not None:
            with unharmed("the epoch that it stopped in"):
                if self.model.stop_training:
                    self._record({"stopped_epoch": self._epoch}, run.step or 0, self._epoch)
            with unharmed("the model"):
                self._log_model(run)
            self._close()
        self._is_fitting = False

    # --- epochs and batches -----------------------------------------------------------------------

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the run's step."""
        try:
            if (run := self._active()) is None:
                return
            run.step = self._first_step + batch
            if batch and self._batch_size is None:
                self._batch_size = (_rows_seen(self.model) or 0) // batch
        except MLPipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - as `harmless`
            self._hook_failed("on_train_batch_begin", error)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record what Keras reports for a batch, if the user asked for it."""
        every, step = self._rules.log_every_n_steps, self._first_step + batch
        if every is not None and (step + 1) % every == 0 and logs:
            self._record_batch(logs, step)

    @harmless
    def _record_batch(self, logs: Mapping[str, Any], step: int) -> None:
        if self._active() is not None:
            self._record({f"batch/{name}": value for name, value in _scalars(logs).items()}, step)

    @harmless
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record the epoch, and keep its weights if they are the best so far."""
        if (run := self._active()) is None:
            return
        elapsed_s = time.perf_counter() - self._epoch_started_s
        metrics = _scalars(logs or {})
        step = run.step = self._last_step(run.step or 0)
        record = {"epoch": epoch, **metrics, "epoch_time_s": elapsed_s}
        if (rate := _learning_rate(self.model)) is not None:
            record.setdefault("learning_rate", rate)
        rows = {"training": _rows_seen(self.model)}
        if self._epoch_rows is not None:  # a validation has begun to count anew
            rows = {"training": self._epoch_rows, "validation": rows["training"]}
        if rows["training"]:
            record["samples_per_s"] = rows["training"] / max(elapsed_s - self._evaluation_s, 1e-9)
        if self._log_every_epoch:
            self._record(record, step, epoch)
        if self._is_first_epoch and rows["training"]:
            sizes: dict[str, Any] = {name: {"rows": count} for name, count in rows.items()}
            sizes["training"]["batch_size"] = self._batch_size or rows["training"]
            run.log_params({"data": sizes})
        if self._best is not None:
            with unharmed("whether the epoch is the best", self._failures):
                self._best.look(metrics, epoch, step)
        if self._rules.log_model == "all" and run.is_enabled:
            with unharmed(f"the model of epoch {epoch}", self._failures):
                signature = self._signature(run)
                run.log_model(self.model, f"epoch_{epoch}", signature=signature, step=step, register_as="")
        self._first_step, self._is_first_epoch = step + 1, False

    def _last_step(self, begun: int) -> int:
        """Return the last step of an epoch whose last call of the train function began at a step."""
        last = begun + getattr(self.model, "steps_per_execution", 1) - 1
        steps = self.params.get("steps")
        return int(min(last, self._first_step + steps - 1) if steps else last)

    # --- evaluation -------------------------------------------------------------------------------

    @harmless
    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Let an evaluation outside of fit add to the model's run."""
        self._evaluation_started_s = time.perf_counter()
        self._is_evaluating = self._is_new_call or not self._is_fitting
        self._is_new_call = False
        if not self._is_evaluating:  # the validation of an epoch
            self._epoch_rows = _rows_seen(self.model)
        elif self._active() is None:
            self._is_fitting = False
            run = self._enter(is_continued=self._records(self.model))
            if run is not None and run.step is None:
                run.step = 0

    @harmless
    def on_test_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Record what an evaluation found; that of a validation is among the epoch's logs."""
        self._evaluation_s += time.perf_counter() - self._evaluation_started_s
        if self._is_evaluating and self._run is not None and self._user is not None:
            found = {f"validation_{name}": value for name, value in _scalars(logs or {}).items()}
            self._record(found, self._run.step or 0, self._epoch)
            if not self._is_fitting:
                self._close()
        self._is_evaluating = False

    # --- model --------------------------------------------------------------------------------------

    def _log_model(self, run: Run) -> None:
        best = self._best
        if best is None:
            return
        if best.value is not None:
            self._record({f"best_{best.monitor}": best.value}, best.step, best.epoch)
        elif self._monitor is not None:
            logger.warning("monitor=%r is no metric of this training; its last weights count", self._monitor)
        if not run.is_enabled or not self._rules.log_model:
            return
        weights, step = ("last", run.step) if best.value is None else (f"best {best.monitor}", best.step)
        with _lent(self.model, best.weights):
            # Last of all: it is what model_uri, model_version and load_model() mean.
            run.log_model(
                self.model, signature=self._signature(run), tags={"mlpipeline.weights": weights}, step=step
            )

    def _signature(self, run: Run) -> ModelSignature | None:
        is_wanted = run.config.log_model_signature and self._rules.log_model != "metadata"
        return signature_of(self.model) if is_wanted else None

    # --- state --------------------------------------------------------------------------------------

    def _records(self, model: Any) -> bool:
        return self._run is not None and self._trained is not None and self._trained() is model

    def _active(self) -> Run | None:
        """Return the run of the training that goes on; None where its end was seen, or another process records."""
        run = self._run if self._is_fitting and self._user is not None else None
        return run if run is not None and not run.is_ended else None

    def __getstate__(self) -> dict[str, Any]:
        # Keras gives every callback its model; whoever copies a callback does not ask for that.
        return {
            **super().__getstate__(),
            "_model": None,
            "_trained": None,
            "_best": None,
            "_is_fitting": False,
        }


class _Best:
    """The best epoch so far and its weights, by Keras' own rule of what is better.

    Args:
        monitor: The metric; None is ``val_loss``.
        mode: "min", "max" or "auto".
        model: Whose weights.
        keeps_weights: Whether they are wanted.
    """

    def __init__(self, monitor: str | None, mode: str, model: Any, *, keeps_weights: bool) -> None:
        self.monitor = monitor or "val_loss"
        self.value: float | None = None
        self.epoch = self.step = 0
        self.weights: list[Any] | None = None
        self._model = model
        self._keeps_weights = keeps_weights
        # It knows the direction of every metric of the model's. It never stops anything here.
        self._judge = keras.callbacks.EarlyStopping(self.monitor, mode=mode, patience=sys.maxsize)
        self._judge.set_model(model)
        self._judge.on_train_begin()

    def look(self, metrics: Mapping[str, Any], epoch: int, step: int) -> None:
        """Take note of an epoch; if it is the best, keep a copy of the weights in the CPU's memory."""
        value = metrics.get(self.monitor)
        if value is None or not math.isfinite(value):  # nothing is ever better than a first NaN
            return
        before = getattr(self._judge, "best", None)  # Keras before 3.11 has none until the first epoch
        try:
            self._judge.on_epoch_end(epoch, {self.monitor: value})
        except ValueError:
            raise UsageError(
                f"monitor={self.monitor!r}: Keras does not know whether less or more of it is better; "
                "pass mode='min' or mode='max'"
            ) from None
        if self._judge.best is not before:
            self.value, self.epoch, self.step = float(value), epoch, step
            if self._keeps_weights:
                self.weights = self._model.get_weights()


@contextmanager
def _lent(model: Any, weights: list[Any] | None) -> Iterator[None]:
    """Let a model have other weights in a block, and its own again after it, to the bit."""
    # A clone would draw from Python's random numbers, count on in Keras' names of layers, and is not to
    # be had of every model.
    own = model.get_weights() if weights is not None else None
    try:
        if weights is not None:
            model.set_weights(weights)
        yield
    finally:
        if own is not None:
            model.set_weights(own)


def hyperparameters(model: Any, fit: Mapping[str, Any], initial_epoch: int = 0) -> dict[str, Any]:
    """Return what determines a training; the optimizer's under the names of MLflow's own callback.

    Args:
        model: A compiled model.
        fit: What Keras tells callbacks of ``fit``.
        initial_epoch: Where the training begins.
    """
    optimizer = getattr(model, "optimizer", None)
    found: dict[str, Any] = {}
    if isinstance(optimizer, keras.optimizers.Optimizer):
        found = {f"optimizer_{name}": _plain(value) for name, value in optimizer.get_config().items()}
        found["optimizer_name"] = type(optimizer).__name__  # Keras numbers its own: adam, adam_1
    compiled = {
        name: _named(value) for name, value in model.get_compile_config().items() if name != "optimizer"
    }
    sizes = [(math.prod(weight.shape), weight.trainable) for weight in model.weights]
    found |= {
        "compile": {name: value for name, value in compiled.items() if value is not None},
        "fit": {"epochs": fit.get("epochs"), "steps": fit.get("steps"), "initial_epoch": initial_epoch},
        "parameters": {
            "total": sum(size for size, _ in sizes),
            "trainable": sum(size for size, is_trainable in sizes if is_trainable),
        },
    }
    return {name: value for name, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return the options of an object that Keras has serialized, such as a schedule's; others as they are."""
    if isinstance(value, Mapping) and isinstance(value.get("config"), Mapping):
        return {name: _plain(item) for name, item in {**value["config"], "name": value["class_name"]}.items()}
    return value


def _named(value: Any) -> Any:
    """Return the names of serialized losses and metrics, in the user's own nesting."""
    if isinstance(value, (list, tuple)):
        return [_named(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_name" not in value:
        return {name: _named(item) for name, item in value.items()}
    config = value.get("config")
    return config.get("name", value["class_name"]) if isinstance(config, Mapping) else config


def _summary(model: Any) -> str:
    lines: list[str] = []
    quiet: Any = nullcontext()
    if "IPython" in sys.modules:
        # In a notebook, what Keras lets rich capture leaves an empty box below the cell.
        quiet = importlib.import_module("IPython.utils.capture").capture_output(stdout=False, stderr=False)
    with quiet:
        model.summary(print_fn=lambda line, **_: lines.append(str(line)))
    return "\n".join(lines)


def _learning_rate(model: Any) -> float | None:
    rate = getattr(getattr(model, "optimizer", None), "learning_rate", None)
    return None if rate is None else float(keras.ops.convert_to_numpy(rate))


def _rows_seen(model: Any) -> int | None:
    """Return how many rows the epoch had so far; None where the user's own train_step counts otherwise."""
    loss = next(iter(model.metrics), None)
    if type(model).train_step is not keras.Model.train_step or not isinstance(loss, keras.metrics.Mean):
        return None
    return int(keras.ops.convert_to_numpy(loss.count))


def _scalars(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Return logs with one number per name: a metric may have one per class."""
    found: dict[str, Any] = {}
    for name, value in logs.items():
        parts = keras.ops.convert_to_numpy(value).ravel().tolist() if getattr(value, "shape", ()) else [value]
        if len(parts) == 1:
            found[name] = parts[0]
        else:
            found |= {f"{name}/{number}": part for number, part in enumerate(parts)}
    return found


# --- the model in MLflow ----------------------------------------------------------------------------


def signature_of(model: Any) -> ModelSignature | None:
    """Return the signature of a model that knows its inputs; no data is needed, and it is not called.

    Args:
        model: A Sequential or functional model that is built; of others None, after a warning.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    def schema(tensors: Any) -> Schema:
        if isinstance(tensors, (list, tuple)):
            tensors = tensors[0] if len(tensors) == 1 else {item.name: item for item in tensors}
        named = tensors if isinstance(tensors, Mapping) else {None: tensors}
        # A model that was built by its first batch has that batch's size; MLflow wants -1, for any.
        shapes = {name: (-1, *(size or -1 for size in item.shape[1:])) for name, item in named.items()}
        return Schema([TensorSpec(np.dtype(item.dtype), shapes[name], name) for name, item in named.items()])

    try:
        # Only a functional model has "input", with its names; a Sequential one has no more than "inputs".
        inputs, outputs = (
            schema(getattr(model, name if hasattr(model, name) else f"{name}s"))
            for name in ("input", "output")
        )
    except (AttributeError, TypeError, ValueError) as cause:
        logger.warning(
            "no signature for %s, which does not say what it takes: %s", type(model).__name__, cause
        )
        return None
    return ModelSignature(inputs, outputs)


def _save(request: SaveRequest) -> str:
    """Save in Keras' own format, which restores a class of the user's by its name."""
    import mlflow.keras

    if request.serialization not in {"auto", "keras"}:
        raise UnloggableError(
            f"serialization {request.serialization!r} is unknown for Keras models; accepted: auto."
        )
    arguments = request.arguments()
    if arguments.pop("code_paths"):
        raise UnloggableError("MLflow keeps no code with Keras models; leave code_paths out.")
    mlflow.keras.save_model(request.model, **{**arguments, "signature": request.signature})
    return "keras"


def _example(model: Any, data: Any, rows: int) -> Any:
    """Turn data into arrays, which is what MLflow takes for Keras; several inputs get the model's names."""
    if isinstance(data, Mapping):
        return {name: _example(model, column, rows) for name, column in data.items()}
    names = [item.name for item in getattr(model, "inputs", ())]
    if isinstance(data, (list, tuple)) and len(data) == len(names) > 1:
        return _example(model, dict(zip(names, data, strict=True)), rows)
    return keras.ops.convert_to_numpy(first_rows(model, data, rows))


def _predict(model: Any, example: Any) -> Any:
    """Return what the output looks like: its values would cost a random layer's model its numbers."""
    import numpy as np

    spec = keras.tree.map_structure(lambda rows: keras.KerasTensor(rows.shape, str(rows.dtype)), example)
    found = model.compute_output_spec(spec)
    zeros = keras.tree.map_structure(lambda item: np.zeros(item.shape, item.dtype), found)
    if isinstance(zeros, (list, tuple)):
        return {f"output_{number}": item for number, item in enumerate(zeros)}
    return zeros


def _parts(model: Any) -> Iterable[Any]:
    return list(model._flatten_layers())  # noqa: SLF001 - nothing public gives the layers inside of layers


flavor = Flavor(
    name="keras",
    distributions=("mlflow", "keras", keras.config.backend(), "numpy"),
    roots=frozenset({"keras", keras.config.backend()}),
    save=_save,
    predict=_predict,
    example=_example,
    parts=_parts,
    # Keras' own format, in its safe mode, restores its own classes; a TensorFlow graph may do anything.
    is_data=lambda about: not about.get("save_exported_model"),
)
