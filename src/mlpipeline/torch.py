"""PyTorch: `MLflowLoop` records a hand-written training loop in MLflow.

::

    with MLflowLoop() as loop:                  opens the run
        loop.watch(module, optimizer)           sizes; of each step, learning rates and the gradients' norm
        for epoch in loop.epochs(10):
            for batch in loop.batches(loader):  counts steps and rows
                loop.log(loss=loss)             recorded with all of its step, when the batch is left
            loop.log(val_loss=...)              of the epoch
                                                the model; FINISHED, or what the exception means
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mlpipeline.core.errors import MissingExtraError, UnloggableError, UsageError
from mlpipeline.torch_modules import (
    Example,
    flavor,
    learning_rates,
    log_datasets,
    numbered,
    optimizer_params,
    parameter_counts,
    rows_of,
    twin_of,
)
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed
from mlpipeline.tracking.surroundings import process_rank
from mlpipeline.tracking.trainings import kind_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from mlpipeline.tracking.run import Run

try:
    import torch
except ImportError as missing:
    raise MissingExtraError("torch", "torch") from missing

__all__ = ["MLflowLoop", "flavor"]

_Batch = TypeVar("_Batch")


class MLflowLoop(Recorded):
    """Records a hand-written training loop as one MLflow run; `with` opens and ends it.

    An exception that leaves the block makes the run FAILED, Ctrl-C KILLED. Several processes of one training
    (``torchrun``) may all run the same code: the first one records. Nothing here waits for MLflow.

    ``log`` in a batch belongs to its step, elsewhere to the epoch; the names are the user's own.
    ``log_every_n_steps`` thins out the steps before anything is read from the device.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this loop then never ends.
        parent: A run, or its id, under which the run is nested.
        params: Hyperparameters; they win over those that `watch` finds.
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
        self._block: object | None = None  # the with block that is being recorded
        self._resumed: dict[str, Any] = {}
        self._reset()

    def _reset(self) -> None:
        self._epoch, self._step = self._resumed.get("epoch", 0), self._resumed.get("step", 0)
        self._is_in_epoch = self._is_in_batch = self._has_data = False
        self._pending: dict[str, Any] = {}
        self._left: tuple[dict[str, Any], int, int] | None = None
        self._watched: list[_Watched] = []
        self._rates: dict[str, float] = {}
        self._rated_step = -1
        self._rows, self._batches_s, self._epoch_started_s = 0, 0.0, 0.0

    # --- the run ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Open the run; that of `load_state_dict`, if there was one."""
        if self._block is not None:
            raise UsageError("this loop is being recorded already; give each loop an MLflowLoop of its own")
        self._reset()
        if _rank() == 0:
            self._open(uid=self._resumed.get("run_uid"))
        else:
            self._stand_by()
        self._resumed, self._block = {}, object()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Log the watched modules, unless an exception left the block, and end the run."""
        with unharmed("what hangs on the modules"):
            for watched in self._watched:
                watched.release()
        if self._is_in_batch:  # in a generator that somebody, such as a progress bar, still holds
            self._save_batch()
        if kind is None:
            self._settle_epoch()
            for index, watched in reversed(list(enumerate(self._watched))):
                with unharmed("the model"):
                    self._log_model(watched, index)
        self._block, self._watched = None, []
        self._close(status_of(kind_of(error)))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the loop to go on in the same run.

        Taken in an epoch, after its batches, the epoch counts as done; in a batch, it is to be repeated.
        """
        is_done = self._is_in_epoch and not self._is_in_batch
        return {
            "run_uid": self._run.uid if self._run is not None and self._run.is_enabled else None,
            "epoch": self._epoch + is_done,
            "step": self._step + self._is_in_batch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `with` continue the run, the epochs and the steps of a checkpoint."""
        if self._block is not None:
            raise UsageError("load_state_dict() decides which run is opened: call it before the with block")
        self._resumed = dict(state)
        self._reset()

    # --- epochs and batches -------------------------------------------------------------------------

    def epochs(self, count: int) -> Iterator[int]:
        """Go through epochs, up to *count* in all; a resumed loop goes on where it was."""
        while self._epoch < count:
            with self.epoch() as epoch:
                yield epoch

    @contextlib.contextmanager
    def epoch(self) -> Iterator[int]:
        """Enter an epoch; its number is given, and its time is recorded."""
        self._check_inside("epoch()")
        if self._is_in_epoch:
            raise UsageError("epoch() inside of an epoch; the one before has not been left")
        self._settle_epoch()
        block, self._is_in_epoch = self._block, True
        self._rows, self._batches_s, self._epoch_started_s = 0, 0.0, time.perf_counter()
        try:
            yield self._epoch
        except GeneratorExit:
            if self._block is block:
                # The for statement was left, by break or by an exception: the end of the block will tell.
                self._leave_epoch()
            raise
        except BaseException:
            self._is_in_epoch = False
            raise
        else:
            self._leave_epoch()
            self._settle_epoch()

    @harmless
    def _leave_epoch(self) -> None:
        metrics = {"epoch": self._epoch, "epoch_time_s": time.perf_counter() - self._epoch_started_s}
        if self._rows and self._batches_s:
            metrics["samples_per_s"] = self._rows / self._batches_s
        step, _ = self._at()
        if self._rules.step_axis != "step" or self._rated_step != step:
            metrics |= self._rates
        self._left = (metrics, step, self._epoch)
        self._is_in_epoch = False
        self._epoch += 1

    @harmless
    def _settle_epoch(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            self._record(*left)

    def batches(self, loader: Iterable[_Batch]) -> Iterator[_Batch]:
        """Go through the training's batches, each one a step; the loader's dataset is recorded."""
        self._check_inside("batches()")
        if not self._has_data and self._run is not None:
            log_datasets(self._run, training=loader)
        self._has_data = True
        started_s = time.perf_counter()
        try:
            for batch in loader:
                self._rows += rows_of(batch)
                for watched in self._watched:
                    watched.example.offer(batch)
                with self.batch():
                    yield batch
        finally:
            self._batches_s += time.perf_counter() - started_s

    @contextlib.contextmanager
    def batch(self) -> Iterator[int]:
        """Enter a batch; its step is given. What is logged in it is recorded when it is left."""
        self._check_inside("batch()")
        if self._is_in_batch:
            raise UsageError("batch() inside of a batch; the one before has not been left")
        block, self._is_in_batch = self._block, True
        if self._run is not None:
            self._run.step = self._step
        try:
            yield self._step
        except BaseException:
            if self._block is block:
                self._save_batch()
            raise
        else:
            self._leave_batch()

    @harmless
    def _leave_batch(self) -> None:
        pending, step = self._pending, self._step
        self._is_in_batch, self._pending, self._step = False, {}, step + 1
        if pending:
            self._record(_numbers(pending), step)

    def _save_batch(self) -> None:
        """Leave a batch that an exception ended: that one stays on top."""
        with contextlib.suppress(UsageError), unharmed("the last step"):
            self._leave_batch()

    def _is_due(self) -> bool:
        every = self._rules.log_every_n_steps
        return every is None or (self._step + 1) % every == 0

    def _at(self) -> tuple[int, int]:
        """Return step and epoch of what sums up: the last step, or the epoch where no step was counted."""
        epoch = max(self._epoch if self._is_in_epoch else self._epoch - 1, 0)
        return (self._step - 1 if self._step else epoch), epoch

    # --- metrics --------------------------------------------------------------------------------------

    @harmless
    def log(self, metrics: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        """Record metrics, of the step in a batch, else of the epoch.

        Args:
            metrics: Names to numbers or tensors of one element.
            **named: More of them.

        Raises:
            UnloggableError: A value is not a number.
            UsageError: There is no run: the call stands outside of the with block; or *metrics* is none.
        """
        self._check_inside("log()")
        if metrics is not None and not isinstance(metrics, Mapping):
            raise UsageError(f"log({metrics!r}): write log(loss={metrics!r}) or log({{'loss': {metrics!r}}})")
        if self._run is None or not self._run.is_enabled or (self._is_in_batch and not self._is_due()):
            return
        taken = {name: _taken(name, value) for name, value in {**(metrics or {}), **named}.items()}
        if self._is_in_batch:
            self._pending |= taken
            return
        numbers, (step, epoch) = _numbers(taken), self._at()
        if self._step or self._epoch or self._is_in_epoch:
            self._record(numbers, step, epoch)
        else:
            self._run.log_metrics(numbers)  # neither epochs nor batches: each name counts on
        for watched in self._watched:
            watched.look(numbers, step, epoch)

    def _check_inside(self, call: str) -> None:
        if self._block is None:
            raise UsageError(f"{call} needs a run: write it inside of `with MLflowLoop() as loop:`")

    # --- the module -----------------------------------------------------------------------------------

    @harmless
    def watch(
        self,
        module: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        """Record sizes, learning rates and gradient norms, and log the module when the loop ends.

        Args:
            module: The module; the first call of it gives the model's signature.
            optimizer: The optimizer; at the steps that are recorded, the norm of all its gradients is taken
                where it begins its step.
            monitor: A metric of epochs. The weights of the epoch where it was best are kept in the CPU's
                memory, and logged; None logs the last.
            mode: Whether *monitor* is better as "min" or "max".
        """
        self._check_inside("watch()")
        if mode not in {"min", "max"}:
            raise UsageError(f"mode={mode!r} is unknown; accepted are 'min' and 'max'")
        if isinstance(module, type) or not isinstance(module, torch.nn.Module):
            raise UsageError(f"watch() takes a module, such as torch.nn.Linear(2, 1); got {module!r}")
        if self._run is None or not self._run.is_enabled:
            return
        watched = _Watched(module, optimizer, monitor, mode, self._rules.log_model)
        index = len(self._watched)
        self._watched.append(watched)
        if optimizer is not None:
            watched.hook = optimizer.register_step_pre_hook(lambda *_: self._before_step(watched, index))
        with unharmed("hyperparameters"):
            found = {numbered("parameters", index): parameter_counts(module)}
            if optimizer is not None:
                found[numbered("optimizer", index)] = optimizer_params(optimizer)
            self._run.log_params({name: value for name, value in found.items() if name not in self._params})

    @harmless
    def _before_step(self, watched: _Watched, index: int) -> None:
        self._rates = learning_rates(item.optimizer for item in self._watched if item.optimizer is not None)
        if self._is_in_batch and self._is_due():
            self._pending |= self._rates
            self._rated_step = self._step
            if watched.has_norm:
                watched.has_norm = False  # told once, if it cannot be had
                with unharmed("the norm of the gradients"):
                    self._pending[numbered("grad_norm", index)] = gradient_norm(watched.optimizer)
                    watched.has_norm = True

    def _log_model(self, watched: _Watched, index: int) -> None:
        run, kind = self._run, self._rules.log_model
        if run is None:
            return
        (step, _), weights = self._at(), "last"
        if watched.value is not None:
            step, weights = watched.step, f"best {watched.monitor}"
            self._record({f"best_{watched.monitor}": watched.value}, step, watched.epoch)
        if not kind:
            return
        run.log_model(
            watched.module if kind == "metadata" else watched.twin(),
            numbered("model", index),
            input_example=watched.example.settled(watched.module),
            tags={"mlpipeline.weights": weights},
            step=step,
            # One version, of the first; the models are logged last to first, so that it is "the" model.
            register_as="" if index else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_watched": [], "_pending": {}, "_block": None}


class _Watched:
    """A module in a loop: what it is called with, and its best weights.

    Args:
        module: The module, as the loop has it.
        optimizer: Its optimizer.
        monitor: The metric that says which weights are the best.
        mode: "min" or "max".
        kind: What of the model is to be logged.
    """

    def __init__(self, module: Any, optimizer: Any, monitor: str | None, mode: str, kind: bool | str) -> None:
        self.module = module
        wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
        while (inner := getattr(self.module, "_orig_mod", None)) or isinstance(self.module, wrappers):
            self.module = self.module.module if inner is None else inner
        self.optimizer, self.monitor = optimizer, monitor
        self.example = Example(module if hasattr(module, "_orig_mod") else self.module)
        self.hook: Any = None
        self.has_norm = True
        self.value: float | None = None
        self.step = self.epoch = 0
        self._sign = 1 if mode == "min" else -1
        self._keeps_weights = kind not in {False, "metadata"}
        self._weights: dict[str, Any] | None = None

    def look(self, metrics: Mapping[str, float], step: int, epoch: int) -> None:
        """Take note of an epoch's metrics; if they are the best, keep a copy of the weights."""
        value = metrics.get(self.monitor) if self.monitor is not None else None
        if value is None or not math.isfinite(value):
            return
        if self.value is None or self._sign * value < self._sign * self.value:
            self.value, self.step, self.epoch = value, step, epoch
            if self._keeps_weights:
                self._weights = {
                    name: part.detach().to("cpu", copy=True)
                    if isinstance(part, torch.Tensor)
                    else copy.deepcopy(part)
                    for name, part in self.module.state_dict().items()
                }

    def twin(self) -> Any:
        """Return a copy of the module with the best weights, or its own."""
        twin = twin_of(self.module, shares_parameters=self._weights is None)
        if self._weights is not None:
            twin.load_state_dict(self._weights)
        return twin

    def release(self) -> None:
        """Leave no hook behind."""
        self.example.release()
        if self.hook is not None:
            self.hook.remove()


def gradient_norm(optimizer: Any) -> Any:
    """Return the norm of all gradients of an optimizer together, on their device; 0 where there are none."""
    parameters = (part for group in optimizer.param_groups for part in group["params"])
    gradients = [part.grad.detach() for part in parameters if part.grad is not None]
    dense = [item.coalesce().values() if item.is_sparse else item for item in gradients]
    if not dense:
        return 0.0
    # One call for all, where each alone would be a kernel of its own on a GPU; torch's own clipping uses it.
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(dense)))  # noqa: SLF001


def _taken(name: str, value: Any) -> Any:
    """Return a metric as a number; from a device a copy, which nobody waits for."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type != "cpu":
        return value.detach().clone()
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise UnloggableError(
            f"metric {name!r} is {value!r} ({type(value).__name__}), not a number; "
            "log its mean, or text with run.set_tags or run.log_text"
        ) from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as numbers; those on a device come over together, because each trip waits for it."""
    found = dict(values)
    by_device: dict[Any, list[str]] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            by_device.setdefault(value.device, []).append(name)
    for device, names in by_device.items():
        exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no doubles
        numbers = torch.stack([values[name].reshape(()).to(exact) for name in names]).tolist()
        found.update(zip(names, numbers, strict=True))
    return found


def _rank() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return process_rank(os.environ)
