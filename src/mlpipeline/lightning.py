"""Lightning: ``Trainer(callbacks=[MLflowCallback()])`` records the training in MLflow.

::

    trainer hooks ──► MLflowCallback ──► Run            params, datasets, model, checkpoints, status
    trainer.loggers ─► _Listener ──────► Run.log_metrics    exactly what a logger would receive

Lightning hands metrics to loggers only. To get them as they are, with Lightning's own step, the
callback lets a listener take part in ``for logger in trainer.loggers`` while a training runs. The
user's list keeps its length, order and first entry, so ``trainer.logger``, the checkpoint folder and
the checks of other callbacks stay what they are without us.

Works with ``lightning.pytorch`` and ``pytorch_lightning``.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import re
import sys
import time
import weakref
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import MissingExtraError, MLPipelineError, UsageError
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlpipeline.tracking.run import Run

try:
    # The twin packages have classes of their own each; the one that the user's trainer is from counts.
    if "lightning.pytorch" not in sys.modules and (
        "pytorch_lightning" in sys.modules or importlib.util.find_spec("lightning") is None
    ):
        import pytorch_lightning as pl
        from pytorch_lightning.loggers.logger import DummyLogger
    else:
        import lightning.pytorch as pl
        from lightning.pytorch.loggers.logger import DummyLogger
    import torch
except ImportError as error:
    raise MissingExtraError("lightning", error.name or "lightning") from error

from mlpipeline.torch_modules import (
    Example,
    learning_rates,
    log_datasets,
    numbered,
    optimizer_params,
    parameter_counts,
    rows_of,
    scalars,
    twin_of,
)

logger = logging.getLogger("mlpipeline")

_RUN_UID = "mlpipeline.run_uid"


def _passes_over_none() -> bool:
    """Tell whether this Lightning passes over a hook that is None, which nothing promises."""
    trainer = SimpleNamespace(callbacks=[SimpleNamespace(hook=None)], lightning_module=None)
    try:
        pl.trainer.call._call_callback_hooks(trainer, "hook")  # noqa: SLF001
    except Exception:  # noqa: BLE001 - it may do anything
        return False
    return True


_THINNING_HOOK = "on_train_batch_end"  # has something to do only where the user thins

# Lightning calls these at every step. A call of one that does nothing takes it 2 to 3 us, one that is None next to
# nothing (`_call_callback_hooks` in lightning/pytorch/trainer/call.py); while a training is heard, ours are None.
_UNUSED_HOOKS = (
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    _THINNING_HOOK,
)
_PASSED_OVER = _UNUSED_HOOKS if _passes_over_none() else ()


def _nothing(*_: Any) -> None:
    """Do nothing, as a hook that nobody has overridden."""


class MLflowCallback(Recorded, pl.Callback):
    """Records a Lightning training as one MLflow run.

    The run is FINISHED when ``fit`` ends; ``validate``, ``test`` and ``predict`` of the same trainer,
    and a second ``fit``, add to it. A training resumed from a checkpoint continues its run. After an
    exception the run is FAILED, after Ctrl-C KILLED. Nothing here waits for MLflow.

    ``log_every_n_steps`` of the configuration thins what the Trainer's own setting lets through, or
    adds steps to it. At added steps there is what was logged up to this callback's
    ``on_train_batch_end``: later callbacks and the module's own hook of that name come after it.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this callback then never ends.
        parent: A run, or its id, under which the run is nested.
        params: Extra hyperparameters; they win over those found in the training.
        **overrides: `MLflowConfig` options that win over *config*.
    """

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
        self._trainer: weakref.ref[Any] | None = None
        self._resumed_uid: str | None = None
        # From the start, for attributes that come and go make all others slower to find; and none of a subclass's.
        for hook in _PASSED_OVER:
            if getattr(type(self), hook) is getattr(MLflowCallback, hook):
                setattr(self, hook, _nothing)
        self._reset()

    def _reset(self) -> None:
        self._example: Example | None = None
        self._is_example_settled = False
        self._saved_steps: dict[str, int] = {}
        self._is_epoch_end = False
        self._last_epoch = (-1, -1.0)
        self._rate_names: tuple[str, ...] = ()
        self._rates: list[float] = []
        self._rated: list[Any] | None = None  # the optimizers whose they are
        self._has_monitor = False
        self._rated_step = -1
        self._is_step = False  # of training, from its start to its first record or to what comes after it
        self._heard_by: list[Any] | None = None  # the trainer's loggers, once a listener is among them
        # Of the last step's metrics: what takes their values out, how many they are, what records them.
        self._alike: tuple[itemgetter[Any], int, Callable[[Sequence[float], int], bool]] | None = None
        self._epoch_samples = 0
        self._epoch_started_s = time.perf_counter()
        self._evaluation_s = self._evaluation_started_s = 0.0

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

    def setup(self, trainer: Any, pl_module: Any = None, stage: str | None = None) -> None:
        """Do nothing, unless Lightning was given the class."""
        if not isinstance(self, MLflowCallback):  # called on the class, with the trainer as self
            raise UsageError("callbacks=[MLflowCallback] holds the class; write callbacks=[MLflowCallback()]")

    @harmless
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run; on a resumed training, its own again."""
        is_continued = self._records(trainer) and self._resumed_uid is None
        self._enter(trainer, uid=self._resumed_uid, is_continued=is_continued)
        self._reset()
        if trainer.loggers:
            # Without loggers not before the first epoch: until then others look whether there are any.
            self._attach(trainer)

    def _enter(self, trainer: Any, *, uid: str | None = None, is_continued: bool) -> Run | None:
        if not trainer.is_global_zero:
            self._stand_by()  # a module logs to `run` without asking for its rank
            return None
        run = self._open(uid=uid, is_continued=is_continued)
        self._trainer, self._resumed_uid = weakref.ref(trainer), None
        run.step = _logger_step(trainer)
        return run

    @harmless
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record hyperparameters and datasets; optimizers and loaders exist by now."""
        if (run := self._active(trainer)) is None:
            return
        self._has_monitor = any(type(one).__name__ == "LearningRateMonitor" for one in trainer.callbacks)
        with unharmed("hyperparameters"):
            for found in hyperparameters(trainer, pl_module):
                run.log_params({key: value for key, value in found.items() if key not in self._params})
        if self._rules.log_datasets:
            log_datasets(run, training=trainer.train_dataloader, validation=trainer.val_dataloaders)

    @harmless
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the best weights and the checkpoints, and end the run."""
        if (run := self._active(trainer)) is None:
            return
        self._detach(trainer)
        with unharmed("what early stopping found"):
            _log_early_stopping(run, trainer)
        with unharmed("the model"):
            self._log_models(run, trainer, pl_module)
        self._close()

    @harmless
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException | None = None) -> None:
        """End the run with the status the exception means; the exception goes on, untouched."""
        if exception is None or self._active(trainer) is None:  # None: called on the class, see setup
            return
        self._detach(trainer)
        self._settle_example()
        if type(exception).__name__ == "SIGTERMException":
            self._close("KILLED")
        else:
            self._fail(exception)

    @harmless
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave the run's name in a checkpoint: what resumes from it continues the run."""
        # Not in state_dict(): Lightning warns whoever loads a checkpoint without a callback of its.
        if self._run is not None and self._run.is_enabled and self._records(trainer):
            checkpoint[_RUN_UID] = self._run.uid

    @harmless
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Take up the run of a checkpoint; it is opened when fit starts."""
        if _is_fitting(trainer):
            self._resumed_uid = checkpoint.get(_RUN_UID)

    # --- evaluation -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a validation outside of fit add to the run."""
        self._begin_evaluation(trainer, validation=trainer.val_dataloaders)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a test add to the run."""
        self._begin_evaluation(trainer, test=trainer.test_dataloaders)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Let a prediction add to the run."""
        self._begin_evaluation(trainer, prediction=trainer.predict_dataloaders)

    @harmless
    def _begin_evaluation(self, trainer: Any, **loaders: Any) -> None:
        self._evaluation_started_s = time.perf_counter()
        self._is_step = False
        self._settle_example()
        if _is_fitting(trainer):
            return
        # In a process that a training's own process started, the trainer is a copy.
        run = self._enter(trainer, is_continued=self._trainer is None or self._records(trainer))
        if run is not None:
            self._attach(trainer)
            log_datasets(run, **loaders)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """From here to the end of validation, what is logged belongs to the epoch."""
        self._is_epoch_end = True

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """From here to the end of the test, what is logged belongs to the epoch."""
        self._is_epoch_end = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_validation_start` opened."""
        self._end_evaluation(trainer)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_test_start` opened."""
        self._end_evaluation(trainer)

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Close again what `on_predict_start` opened."""
        self._end_evaluation(trainer)

    @harmless
    def _end_evaluation(self, trainer: Any) -> None:
        self._is_epoch_end = False
        self._evaluation_s += time.perf_counter() - self._evaluation_started_s
        if self._active(trainer) is not None and not _is_fitting(trainer):
            self._detach(trainer)
            self._close()

    # --- epochs and batches -------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to time the epoch."""
        self._is_epoch_end = False
        self._epoch_started_s, self._evaluation_s, self._epoch_samples = time.perf_counter(), 0.0, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note step, samples and learning rates; from the first batch, what the model is called with."""
        # Not in on_train_epoch_start, which a training resumed mid-epoch skips.
        try:
            if trainer.loggers is not self._heard_by:
                if self._active(trainer) is None:
                    return
                self._attach(trainer)
            self._run.step = _logger_step(trainer)  # type: ignore[union-attr]  # it is active
            if not self._has_monitor:  # which records them itself
                self._read_rates(trainer.optimizers)
            self._epoch_samples += rows_of(batch)
            self._is_step = True
            if not self._is_example_settled:
                if self._example is None:
                    self._example = Example(pl_module, batch)
                else:
                    self._settle_example()
        except MLPipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - as `harmless`
            self._hook_failed("on_train_batch_start", error)

    def _settle_example(self) -> None:
        """Wait no longer for a first call of the model: the first batch is over."""
        if self._example is not None:
            self._example.release()
            self._is_example_settled = True

    def _read_rates(self, optimizers: list[Any]) -> None:
        """Note the learning rates; their names are made only where there are others than before."""
        rates = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                rates.append(group["lr"])  # noqa: PERF401 - a comprehension is one more call, at every step
        if optimizers is not self._rated or len(rates) != len(self._rates):
            named = learning_rates(optimizers)
            self._rated, self._rate_names, rates = optimizers, tuple(named), [*named.values()]
            self._alike = None
        self._rates = rates

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the steps that the user asks for and Lightning would not log."""
        if self._rules.log_every_n_steps is not None:
            self._add_step(trainer, pl_module, self._rules.log_every_n_steps)

    @harmless
    def _add_step(self, trainer: Any, pl_module: Any, every: int) -> None:
        if (run := self._active(trainer)) is None:
            return
        step = run.step or 0
        connector = trainer._logger_connector  # noqa: SLF001 - nothing public has the metrics of a step
        if (step + 1) % every or connector.should_update_logs or trainer.fast_dev_run:
            return
        if pl_module.automatic_optimization and trainer.fit_loop._should_accumulate():  # noqa: SLF001
            return
        if metrics := dict(connector.metrics["log"]):
            at = metrics.pop("step", None)  # the user's own x axis, as in Lightning
            if at is None:
                metrics.setdefault("epoch", trainer.current_epoch)
            self._heard(trainer, metrics, step if at is None else int(at))

    @harmless
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the epoch's time and speed; what follows belongs to the epoch."""
        if (run := self._active(trainer)) is None:
            return
        self._is_epoch_end, self._is_step = True, False
        self._settle_example()
        elapsed_s = time.perf_counter() - self._epoch_started_s
        metrics = {"epoch_time_s": elapsed_s}
        if self._epoch_samples:
            training_s = max(elapsed_s - self._evaluation_s, 1e-9)
            metrics["samples_per_s"] = self._epoch_samples * trainer.world_size / training_s
        if self._rules.step_axis != "step" or self._rated_step != run.step:
            metrics |= self._named_rates()
        self._record(metrics, run.step or 0, trainer.current_epoch)

    # --- metrics ------------------------------------------------------------------------------------

    def _attach(self, trainer: Any) -> None:
        loggers = trainer.loggers
        if not (isinstance(loggers, _Loggers) and loggers.is_heard_by(self)):
            trainer.loggers = _Loggers(loggers, _Listener(self, trainer))
        self._heard_by = trainer.loggers
        for hook in _PASSED_OVER:
            if getattr(self, hook) is not _nothing:
                continue
            if hook == _THINNING_HOOK and self._rules.log_every_n_steps is not None:
                delattr(self, hook)
            else:
                setattr(self, hook, None)

    def _detach(self, trainer: Any) -> None:
        self._heard_by = None
        trainer.loggers = [item for item in trainer.loggers if not isinstance(item, _Listener)]
        for hook in _PASSED_OVER:
            if getattr(self, hook) is None:
                setattr(self, hook, _nothing)

    def _heard(self, trainer: Any, metrics: Mapping[str, Any], step: int) -> None:
        """Take what Lightning gives to every logger."""
        if (run := self._active(trainer)) is None:
            return
        every = self._rules.log_every_n_steps
        if every is not None and not self._is_epoch_end and _is_fitting(trainer) and (step + 1) % every:
            return
        # Who logs before our on_train_batch_start does it at a step whose rates are not read yet.
        if self._is_step and self._rated_step != step and run.step == _logger_step(trainer):
            self._is_step, self._rated_step = False, step
            self._alike = None
            # Not where the user thins, which is seen to above, nor of one metric, of which itemgetter makes no tuple.
            if every is None and len(metrics) > 1:
                log = run.row_logger((*metrics, *self._rate_names))
                self._alike = log and (itemgetter(*metrics), len(metrics), log)
            metrics = {**metrics, **self._named_rates()}
        if (epoch := metrics.get("epoch")) is not None:
            # Lightning adds the epoch to every record; once per step is enough.
            if self._last_epoch == (step, epoch):
                metrics = {name: value for name, value in metrics.items() if name != "epoch"}
            else:
                self._last_epoch = (step, epoch)
        self._record(metrics, step, trainer.current_epoch if self._is_epoch_end else None)

    def _record_alike(self, metrics: Mapping[str, Any], step: int) -> bool:
        """Record a step of the same metrics as the one before, in few steps; tell whether it was one."""
        if self._alike is None or self._last_epoch[0] == step or self._run.step != step:  # type: ignore[union-attr]
            return False
        pick, count, log = self._alike
        try:
            values = pick(metrics)
        except KeyError:
            return False
        if len(metrics) != count or not log((*values, *self._rates), step):
            return False
        self._is_step, self._rated_step = False, step
        self._last_epoch = (step, metrics.get("epoch", -1.0))
        return True

    def _named_rates(self) -> dict[str, float]:
        return dict(zip(self._rate_names, self._rates, strict=True))

    @harmless
    def _saved(self, checkpoint: Any) -> None:
        """Note at which step a checkpoint was written."""
        path = getattr(checkpoint, "_last_checkpoint_saved", "") or getattr(checkpoint, "best_model_path", "")
        if self._run is not None:
            self._saved_steps[str(path)] = self._run.step or 0

    # --- model --------------------------------------------------------------------------------------

    def _log_models(self, run: Run, trainer: Any, module: Any) -> None:
        kind = self._rules.log_model
        if trainer.fast_dev_run or not run.is_enabled or not kind:
            return
        checkpoint = _checkpoint_callback(trainer)
        best = _existing(getattr(checkpoint, "best_model_path", None))
        last = _existing(getattr(checkpoint, "last_model_path", None))
        example = self._example.settled(module) if self._example is not None else None
        for path in dict.fromkeys((best, last)) if kind != "metadata" else ():
            if path:
                run.log_artifact(path, "checkpoints")
        for path in getattr(checkpoint, "best_k_models", ()) if kind == "all" else ():
            if path != best and _existing(path):
                with unharmed(f"the checkpoint {path}"):
                    name = re.sub(r"[^\w-]+", "_", Path(path).stem)
                    step = self._saved_steps.get(path)
                    run.log_model(_twin(module, path), name, input_example=example, step=step, register_as="")
        monitor = getattr(checkpoint, "monitor", None) if best else None
        step = self._saved_steps.get(str(best)) if monitor else run.step
        if monitor and checkpoint.best_model_score is not None:
            run.log_metrics({f"best_{monitor}": float(checkpoint.best_model_score)}, step)
        model, weights = module, f"best {monitor}" if monitor else "last"
        if kind != "metadata":
            try:
                model = _twin(module, best if monitor else None)
            except Exception as cause:  # noqa: BLE001 - a module may hold anything
                what = f"{type(module).__name__} cannot be copied ({type(cause).__name__}: {cause})"
                logger.warning("%s; the model is logged with its last weights", what)
                weights, step = "last", run.step
        # Last of all: it is what model_uri, model_version and load_model() mean.
        run.log_model(model, input_example=example, tags={"mlpipeline.weights": weights}, step=step)

    # --- state --------------------------------------------------------------------------------------

    def _records(self, trainer: Any) -> bool:
        return self._trainer is not None and self._trainer() is trainer

    def _active(self, trainer: Any) -> Run | None:
        # Not through `_records`: each step asks several times.
        if self._user is None or self._trainer is None or self._trainer() is not trainer:
            return None
        return self._run

    def __getstate__(self) -> dict[str, Any]:
        of_this_trainer = dict.fromkeys(("_trainer", "_example", "_alike", "_rated", "_heard_by"))
        state = {**super().__getstate__(), **of_this_trainer}
        # Lightning lends every callback its module's `log`, and with it the whole module.
        state = {name: value for name, value in state.items() if name not in {"log", "log_dict"}}
        return {
            name: _nothing if name in _UNUSED_HOOKS and value is None else value
            for name, value in state.items()
        }


class _Listener(DummyLogger):
    """What Lightning takes for one more logger; it only listens to metrics and checkpoints.

    Args:
        callback: Who records.
        trainer: Whose metrics.
    """

    def __init__(self, callback: MLflowCallback, trainer: Any) -> None:
        super().__init__()
        self.callback = callback
        self._trainer = trainer

    @property
    def name(self) -> Any:
        """The name of the user's first logger: folders and the progress bar stay as they are."""
        return getattr(self._trainer.logger, "name", None)

    @property
    def version(self) -> Any:
        """The version of the user's first logger."""
        return getattr(self._trainer.logger, "version", "")

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hand metrics on."""
        callback = self.callback
        try:
            step = int(step or 0)
            if not (callback._is_step and callback._record_alike(metrics, step)):  # noqa: SLF001
                callback._heard(self._trainer, metrics, step)  # noqa: SLF001
        except MLPipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - as `harmless`
            callback._hook_failed("log_metrics", error)  # noqa: SLF001

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Tell of a checkpoint."""
        self.callback._saved(checkpoint_callback)  # noqa: SLF001


_items = list.__iter__  # at every step, where super() costs 0.7 us more


class _Loggers(list[Any]):
    """The user's loggers, as they are, with listeners that only iteration meets."""

    def __init__(self, loggers: list[Any], listener: _Listener) -> None:
        # Somebody may have made a list of what iteration gave, with listeners in it.
        super().__init__(item for item in loggers if not isinstance(item, _Listener))
        others = [item for item in loggers if isinstance(item, _Listener)]
        self._listeners = [item for item in others if item.callback is not listener.callback] + [listener]

    def is_heard_by(self, callback: MLflowCallback) -> bool:
        """Tell whether a callback's listener takes part."""
        return any(item.callback is callback for item in self._listeners)

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain(_items(self), self._listeners)

    def __bool__(self) -> bool:
        # Lightning computes metrics for loggers only "if trainer.loggers".
        return True

    def __reduce__(self) -> Any:
        return list, (self[:],)


def hyperparameters(trainer: Any, module: Any) -> Iterator[dict[str, Any]]:
    """Yield what determines a training: what the user named, then trainer, optimizers, schedulers."""
    datamodule = getattr(trainer, "datamodule", None)
    own = dict(getattr(module, "hparams_initial", None) or {})
    for key, value in (getattr(datamodule, "hparams_initial", None) or {}).items():
        own[f"datamodule.{key}" if key in own else key] = value
    yield own
    named = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")
    found: dict[str, Any] = {
        "trainer": {
            **{name: getattr(trainer, name) for name in (*named, "num_devices", "num_nodes")},
            "accelerator": type(trainer.accelerator).__name__,
            "strategy": type(trainer.strategy).__name__,
        }
    }
    if trainer.fast_dev_run:
        found["trainer"]["fast_dev_run"] = trainer.fast_dev_run
    for index, optimizer in enumerate(trainer.optimizers):
        found[numbered("optimizer", index)] = optimizer_params(optimizer)
    for index, config in enumerate(trainer.lr_scheduler_configs):
        state = {key: value for key, value in vars(config.scheduler).items() if key != "last_epoch"}
        about = {"name": type(config.scheduler).__name__, "interval": config.interval}
        found[numbered("scheduler", index)] = {**about, **scalars(state)}
    for index, stopping in enumerate(trainer.early_stopping_callbacks):
        names = ("monitor", "mode", "patience", "min_delta")
        found[numbered("early_stopping", index)] = {name: getattr(stopping, name) for name in names}
    found["parameters"] = parameter_counts(module)
    yield found


def _log_early_stopping(run: Run, trainer: Any) -> None:
    for index, stopping in enumerate(trainer.early_stopping_callbacks):
        facts = {"stopped_epoch": stopping.stopped_epoch, "wait_count": stopping.wait_count}
        facts = {numbered(name, index): value for name, value in facts.items()}
        if stopping.best_score is not None and torch.isfinite(stopping.best_score):
            facts[f"early_stopping_best_{stopping.monitor}"] = float(stopping.best_score)
        run.log_metrics(facts, run.step)


def _checkpoint_callback(trainer: Any) -> Any:
    """Return the ModelCheckpoint whose best weights count: the first with a monitor, else the first."""
    found = trainer.checkpoint_callbacks
    return next((item for item in found if getattr(item, "monitor", None)), trainer.checkpoint_callback)


def _existing(path: Any) -> str | None:
    return str(path) if path and Path(path).exists() else None


def _twin(module: Any, checkpoint: str | None) -> Any:
    """Return *module* in evaluation mode, with a checkpoint's weights or its own; it stays as it is itself.

    With a checkpoint, the parameters are there twice for a moment; of the file, which is mapped, the
    optimizers' states are not read.
    """
    # LightningModule.__getstate__ leaves the trainer out, so the copy does not drag it along.
    twin = twin_of(module, shares_parameters=checkpoint is None)
    if checkpoint is not None:
        # This training wrote the file a moment ago; it holds hyperparameters of any class.
        state = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        twin.on_load_checkpoint(state)
        twin.load_state_dict(state["state_dict"], strict=module.strict_loading)
    return twin


def _logger_step(trainer: Any) -> int:
    # The step that Lightning gives to loggers; with several optimizers it is not global_step.
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001


def _is_fitting(trainer: Any) -> bool:
    return bool(trainer.state.fn == "fit")
