"""Lightning: ``Trainer(callbacks=[MLflowCallback()])`` records the training in MLflow.

::

    trainer hooks ──► MLflowCallback ──► Run            params, datasets, model, checkpoints, status
    trainer.loggers ─► _Listener ──────► Run.log_metrics    exactly what a logger would receive

Lightning hands metrics to loggers only. To get them as they are, with Lightning's own step, the
callback lets a listener take part in ``for logger in trainer.loggers`` while an epoch runs. The
user's list keeps its length, order and first entry, so ``trainer.logger``, the checkpoint folder and
the checks of other callbacks stay what they are without us.

Works with ``lightning.pytorch`` and ``pytorch_lightning``.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import MissingExtraError
from mlpipeline.tracking.recorded import Recorded

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run

try:
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        import pytorch_lightning as pl
    else:
        import lightning.pytorch as pl
    import torch
except ImportError as error:
    raise MissingExtraError("lightning", error.name or "lightning") from error

logger = logging.getLogger("mlpipeline")

_EXAMPLE_ROWS = 5
_HASHED_BYTES = 64 * 2**20


class MLflowCallback(Recorded, pl.Callback):
    """Records a Lightning training as one MLflow run.

    The run is FINISHED when ``fit`` ends; ``validate``, ``test`` and ``predict`` of the same trainer,
    and a second ``fit``, add to it. A training resumed from a checkpoint continues its run. After an
    exception the run is FAILED, after Ctrl-C KILLED. Nothing here waits for MLflow.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this callback then never ends.
        parent: A run, or its id, under which the run is nested.
        params: Extra hyperparameters; they win over those found in the training.
        **overrides: `MLflowConfig` options that win over *config*.
    """

    state_key = "mlpipeline.MLflowCallback"

    def __init__(
        self,
        config: Any = None,
        *,
        run: Run | None = None,
        parent: Run | str | None = None,
        params: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(config, run=run, parent=parent, params=params, **overrides)
        self._trainer_id: int | None = None
        self._resumed_uid: str | None = None
        self._reset()

    def _reset(self) -> None:
        self._example: Any = None
        self._handle: Any = None
        self._is_epoch_end = False
        self._last_epoch: tuple[int, float | None] = (-1, None)
        self._epoch_started_s = 0.0
        self._epoch_samples = 0

    @classmethod
    def of(cls, trainer: Any) -> MLflowCallback:
        """Return the callback that records *trainer*, to log from inside a module.

        Raises:
            LookupError: The trainer has no such callback.
        """
        for callback in trainer.callbacks:
            if isinstance(callback, cls):
                return callback
        raise LookupError("the trainer has no MLflowCallback; pass Trainer(callbacks=[MLflowCallback()])")

    # --- a training begins and ends ---------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run; on a resumed training, its own again."""
        if not trainer.is_global_zero:
            return
        is_same = self._trainer_id == id(trainer)
        self._reset()
        self._open(uid=self._resumed_uid, is_continued=is_same and self._resumed_uid is None)
        self._trainer_id, self._resumed_uid = id(trainer), None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record hyperparameters and datasets; optimizers and loaders exist by now."""
        run = self._active(trainer)
        if run is None:
            return
        run.log_params(hyperparameters(trainer, pl_module))
        _log_datasets(run, trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the best weights and the checkpoints, and end the run."""
        run = self._active(trainer)
        if run is None:
            return
        self._detach(trainer)
        try:
            _log_early_stopping(run, trainer)
            self._log_models(run, trainer, pl_module)
        except Exception:  # a training that succeeded must not fail for its record
            logger.warning("could not log the model of run %s", run.uid, exc_info=True)
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the run with the status the exception means; the exception goes on, untouched."""
        run = self._active(trainer)
        if run is None:
            return
        self._detach(trainer)
        self._release_example_hook()
        if type(exception).__name__ == "SIGTERMException":
            self._close("KILLED")
        else:
            self._fail(exception)

    # --- evaluation -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a validation outside of fit add to the run."""
        self._begin_evaluation(trainer)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a test add to the run."""
        self._begin_evaluation(trainer)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a prediction add to the run."""
        self._begin_evaluation(trainer)

    def _begin_evaluation(self, trainer: Any) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        if not _is_fitting(trainer):
            self._open(is_continued=self._trainer_id in (None, id(trainer)))
            self._trainer_id = id(trainer)
        self._attach(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_validation_start` opened."""
        self._is_epoch_end = False
        self._end_evaluation(trainer)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_test_start` opened."""
        self._end_evaluation(trainer)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_predict_start` opened."""
        self._end_evaluation(trainer)

    def _end_evaluation(self, trainer: Any) -> None:
        if self._active(trainer) is not None and not _is_fitting(trainer) and not trainer.sanity_checking:
            self._detach(trainer)
            self._close()

    # --- epochs and batches -------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen, and to time the epoch."""
        if self._active(trainer) is not None:
            self._attach(trainer)
            self._is_epoch_end = False
            self._epoch_started_s, self._epoch_samples = time.perf_counter(), 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count samples; from the first batch, keep what the model is called with."""
        self._epoch_samples += _rows(batch)
        if self._example is None and self._active(trainer) is not None:
            self._example = _Example(batch)
            self._handle = pl_module.register_forward_pre_hook(self._keep_input, with_kwargs=True)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave no hook behind on a module that was never called."""
        if self._handle is not None:
            self._release_example_hook()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """From here to the end of validation, what is logged belongs to the epoch."""
        self._is_epoch_end = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the epoch's time and speed; what follows belongs to the epoch."""
        run = self._active(trainer)
        if run is None:
            return
        self._is_epoch_end = True
        elapsed_s = time.perf_counter() - self._epoch_started_s
        metrics = {"epoch_time_s": elapsed_s}
        if self._epoch_samples:
            metrics["samples_per_s"] = self._epoch_samples * trainer.world_size / elapsed_s
        self._record(run, trainer, metrics, _logger_step(trainer) - 1)

    def _keep_input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._release_example_hook()
        self._example.take(args, kwargs)

    def _release_example_hook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    # --- metrics ------------------------------------------------------------------------------------

    def _attach(self, trainer: Any) -> None:
        if not isinstance(trainer.loggers, _Loggers):
            trainer.loggers = _Loggers(trainer.loggers, _Listener(self, trainer))

    def _detach(self, trainer: Any) -> None:
        if isinstance(trainer.loggers, _Loggers):
            trainer.loggers = trainer.loggers.users()

    def _heard(self, trainer: Any, metrics: Mapping[str, float], step: int) -> None:
        """Take what Lightning gives to every logger."""
        run = self._run
        if run is None:
            return
        run.step = step
        every = self.config.log_every_n_steps
        if every is not None and not self._is_epoch_end and _is_fitting(trainer) and (step + 1) % every:
            return
        if trainer.training:
            metrics = {**metrics, **_learning_rates(trainer)}
        if (step, metrics.get("epoch")) == self._last_epoch:
            # Lightning adds the epoch to every record; once per step is enough.
            metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        self._last_epoch = (step, metrics.get("epoch", self._last_epoch[1]))
        self._record(run, trainer, metrics, step)

    def _record(self, run: Run, trainer: Any, metrics: Mapping[str, float], step: int) -> None:
        axis = self.config.step_axis
        if axis == "step" or not self._is_epoch_end:
            run.log_metrics(metrics, step)
            return
        epoch = int(trainer.current_epoch)
        if axis == "epoch":
            run.log_metrics(metrics, epoch)
        else:
            run.log_metrics(metrics, step)
            run.log_metrics(
                {f"epoch/{name}": value for name, value in metrics.items() if name != "epoch"}, epoch
            )

    # --- model --------------------------------------------------------------------------------------

    def _log_models(self, run: Run, trainer: Any, module: Any) -> None:
        if trainer.fast_dev_run or not run.is_enabled or not self.config.log_model:
            return
        checkpoint = trainer.checkpoint_callback
        best = str(getattr(checkpoint, "best_model_path", "") or "")
        last = str(getattr(checkpoint, "last_model_path", "") or "")
        monitor = getattr(checkpoint, "monitor", None)
        for path in dict.fromkeys(path for path in (best, last) if path and Path(path).exists()):
            run.log_artifact(path, "checkpoints")
        is_best = bool(monitor and best and Path(best).exists())
        tags = {"mlpipeline.weights": f"best {monitor}" if is_best else "last"}
        example = self._example.settled(module) if self._example is not None else None
        if self.config.log_model == "all" and checkpoint is not None:
            for kept in getattr(checkpoint, "best_k_models", {}):
                if kept != best and Path(kept).exists():
                    other = _weights_of(module, kept)
                    # MLflow refuses the dot that a metric in the file's name brings, "val_loss=0.25".
                    name = re.sub(r"[^\w-]", "-", Path(kept).stem)
                    run.log_model(other, name, input_example=example, register_as="")
        model = _weights_of(module, best if is_best else None)
        run.log_model(model, "model", input_example=example, tags=tags, step=_logger_step(trainer))
        if is_best and checkpoint.best_model_score is not None:
            run.log_metrics({f"best_{monitor}": float(checkpoint.best_model_score)}, _logger_step(trainer))

    # --- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue this run."""
        return {"run_uid": self._run.uid} if self._run is not None and self._run.uid else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the run of a checkpoint; it is opened when fit starts."""
        self._resumed_uid = state_dict.get("run_uid")

    def _active(self, trainer: Any) -> Run | None:
        return self._run if trainer.is_global_zero and self._user is not None else None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_handle": None, "_example": None}


class _Listener:
    """What Lightning takes for one more logger; it only listens to metrics.

    Args:
        callback: Who records.
        trainer: Whose metrics.
    """

    save_dir = None

    def __init__(self, callback: MLflowCallback, trainer: Any) -> None:
        self._callback = callback
        self._trainer = trainer

    @property
    def name(self) -> str | None:
        """The name of the user's first logger: folders and the progress bar stay as they are."""
        return getattr(self._trainer.logger, "name", None)

    @property
    def version(self) -> Any:
        """The version of the user's first logger."""
        return getattr(self._trainer.logger, "version", "")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand metrics on."""
        self._callback._heard(self._trainer, metrics, int(step or 0))  # noqa: SLF001

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing: graphs, checkpoints and finalizing are the callback's own."""


class _Loggers(list[Any]):
    """The user's loggers, as they are, with a listener that only iteration meets."""

    def __init__(self, users: list[Any], listener: _Listener) -> None:
        super().__init__(users)
        self._listener = listener

    def users(self) -> list[Any]:
        """Return the user's own list again."""
        return [self[index] for index in range(len(self))]

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield self._listener

    def __bool__(self) -> bool:
        # Lightning computes metrics for loggers only "if trainer.loggers".
        return True

    def __reduce__(self) -> Any:
        return (list, (self.users(),))


class _Example:
    """A few rows of what the model is called with."""

    def __init__(self, batch: Any) -> None:
        self._batch = _cut(batch)
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the arguments of the first call of the module."""
        self._args, self._kwargs = _cut(args), _cut(kwargs)

    def settled(self, module: Any) -> Any:
        """Return the input: the module's own example, its first call's, or the batch's first part."""
        if (own := getattr(module, "example_input_array", None)) is not None:
            return _cut(own)
        if len(self._args) == 1 and not self._kwargs:
            return self._args[0]
        if self._args and not self._kwargs:
            return self._args
        if self._kwargs and not self._args:
            return self._kwargs
        return self._batch[0] if isinstance(self._batch, (tuple, list)) and self._batch else self._batch


def hyperparameters(trainer: Any, module: Any) -> dict[str, Any]:
    """Return what determines a training: module, datamodule, trainer, optimizers, schedulers."""
    found: dict[str, Any] = {}
    datamodule = getattr(trainer, "datamodule", None)
    for owner in (module, datamodule):
        found.update(getattr(owner, "hparams_initial", None) or {})
    found["trainer"] = {
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "precision": trainer.precision,
        "num_devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "accelerator": type(trainer.accelerator).__name__,
        "strategy": type(trainer.strategy).__name__,
    }
    for index, optimizer in enumerate(trainer.optimizers):
        name = "optimizer" if index == 0 else f"optimizer_{index}"
        found[name] = {"name": type(optimizer).__name__, **_scalars(optimizer.defaults)}
        if len(optimizer.param_groups) > 1:
            found[name] |= {
                f"group_{n}": {"lr": group["lr"]} for n, group in enumerate(optimizer.param_groups)
            }
    for index, config in enumerate(trainer.lr_scheduler_configs):
        name = "scheduler" if index == 0 else f"scheduler_{index}"
        scheduler = config.scheduler
        state = {key: value for key, value in vars(scheduler).items() if key not in ("last_epoch", "verbose")}
        found[name] = {"name": type(scheduler).__name__, "interval": config.interval, **_scalars(state)}
    for stopping in trainer.early_stopping_callbacks:
        found["early_stopping"] = {
            key: getattr(stopping, key) for key in ("monitor", "mode", "patience", "min_delta")
        }
    parameters = list(module.parameters())
    found["parameters"] = {
        "total": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    return found


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = (bool, int, float, str, tuple, list)
    return {
        key: value for key, value in values.items() if not key.startswith("_") and isinstance(value, kinds)
    }


def _learning_rates(trainer: Any) -> dict[str, float]:
    """Return the learning rate per parameter group, named as LearningRateMonitor names them."""
    if any(type(callback).__name__ == "LearningRateMonitor" for callback in trainer.callbacks):
        return {}
    rates: dict[str, float] = {}
    for optimizer in trainer.optimizers:
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


def _log_datasets(run: Run, trainer: Any) -> None:
    if not run.config.log_datasets:
        return
    sizes: dict[str, Any] = {}
    for context, loaders in (("training", trainer.train_dataloader), ("validation", trainer.val_dataloaders)):
        for index, loader in enumerate(_listed(loaders)):
            dataset = getattr(loader, "dataset", None)
            if dataset is None or not hasattr(dataset, "__len__"):
                continue
            suffix = "" if index == 0 else f"_{index}"
            sizes[f"{context}{suffix}"] = {
                "rows": len(dataset),
                "batch_size": getattr(loader, "batch_size", None),
            }
            profile = {"num_rows": len(dataset), "class": type(dataset).__name__}
            run.log_dataset(_content(dataset), name=f"{context}{suffix}", context=context, profile=profile)
    run.log_params({"data": sizes})


def _content(dataset: Any) -> Any:
    """Return the tensors behind a dataset as one array to hash, or the dataset where they are not at hand."""
    tensors = getattr(dataset, "tensors", None)
    if not tensors or sum(tensor.numel() * tensor.element_size() for tensor in tensors) > _HASHED_BYTES:
        return dataset
    rows = [tensor.detach().cpu().reshape(len(tensor), -1).double() for tensor in tensors]
    return torch.cat(rows, dim=1)


def _log_early_stopping(run: Run, trainer: Any) -> None:
    for stopping in trainer.early_stopping_callbacks:
        facts = {"stopped_epoch": stopping.stopped_epoch, "wait_count": stopping.wait_count}
        if stopping.best_score is not None and torch.isfinite(stopping.best_score):
            facts[f"early_stopping_best_{stopping.monitor}"] = float(stopping.best_score)
        run.log_metrics(facts, _logger_step(trainer))


def _weights_of(module: Any, checkpoint: str | None) -> Any:
    """Return a copy of *module* with a checkpoint's weights, or its own; the module stays as it is."""
    # LightningModule.__getstate__ leaves the trainer out, so the copy does not drag it along.
    model = copy.deepcopy(module)
    if checkpoint is not None:
        # This training wrote the file a moment ago; it holds hyperparameters of any class.
        state = torch.load(checkpoint, map_location="cpu", weights_only=False)
        model.load_state_dict(state["state_dict"])
    return model.cpu().eval()


def _logger_step(trainer: Any) -> int:
    # The step that Lightning gives to loggers; with several optimizers it is not global_step.
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001


def _is_fitting(trainer: Any) -> bool:
    return bool(trainer.state.fn == "fit")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _rows(batch: Any) -> int:
    while not hasattr(batch, "shape"):
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, (list, tuple)) and batch:
            batch = batch[0]
        else:
            return 0
    return int(batch.shape[0]) if batch.shape else 0


def _cut(value: Any) -> Any:
    """Return a few rows of tensors in any nesting, detached and on the CPU."""
    if isinstance(value, torch.Tensor):
        return value[:_EXAMPLE_ROWS].detach().cpu().clone() if value.dim() else value.detach().cpu().clone()
    if isinstance(value, Mapping):
        return {key: _cut(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (
            type(value)(_cut(item) for item in value)
            if not hasattr(value, "_fields")
            else tuple(map(_cut, value))
        )
    return value
