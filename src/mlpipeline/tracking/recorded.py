"""The face that every framework's callback has: configuration in, one run per training out.

::

    framework ──► hook ──► Recorded._open ─ _record ─ _close ──► Run
                   │
                   ├─ @harmless        a hook that fails: told once per training, which goes on
                   └─ with unharmed    a part of it that fails: told, and the rest of the hook goes on
"""

from __future__ import annotations

import functools
import logging
import threading
from contextlib import contextmanager
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any, TypeVar

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import MLPipelineError, UsageError
from mlpipeline.tracking.home import new_uid
from mlpipeline.tracking.opening import attached_run, open_run
from mlpipeline.tracking.run import Run
from mlpipeline.tracking.trainings import Training, begin, kind_of, status_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

logger = logging.getLogger("mlpipeline")

_Hook = TypeVar("_Hook", bound="Callable[..., Any]")

_Cause: TypeAlias = "tuple[str, str, int]"
"""Class of an exception, and the line that raised it."""


class Recorded:
    """What a callback knows of its run; a framework's callback derives from it and translates hooks.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        run: A run to record into, which this callback then never ends.
        parent: A run, or its id, under which this callback's runs are nested.
        params: Extra hyperparameters; they win over those found in the training.
        **overrides: Options that win over *config*.
    """

    def __init__(
        self,
        config: MLflowConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        *,
        run: Run | None = None,
        parent: Run | str | None = None,
        params: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__()
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"run={run!r} is not a Run; pass what tracker.run() or Run.child() gave")
        self.config = MLflowConfig.of(config, **overrides)
        self._given_run = run
        self._parent = parent
        self._params = dict(params or {})
        self._run: Run | None = run
        self._user: threading.Thread | None = None
        self._training: Training | None = None
        # What decides how a training is recorded: this callback's options, then those of the run.
        self._rules = self.config
        # The name of the next run is decided here, because a training may happen in a process that
        # this one starts, of which nothing comes back but what it leaves in the journal home.
        self._next_uid = new_uid()
        self._failures: set[_Cause] = set()

    @property
    def run(self) -> Run | None:
        """The run of the current training, or of the last one; None before the first."""
        if self._user is None and self._given_run is None:
            self._take_over()
        return self._run

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits for it only when read, see `Run.run_id`. None before the first."""
        return run.run_id if (run := self.run) is not None else None

    @property
    def model_uri(self) -> str | None:
        """``models:/…`` of the logged model; waits, see `Run.model_uri`."""
        return run.model_uri if (run := self.run) is not None else None

    @property
    def model_version(self) -> int | None:
        """Version of the registered model; waits, see `Run.model_version`."""
        return run.model_version if (run := self.run) is not None else None

    def load_model(self) -> Any:
        """Load the logged model back from MLflow, see `Run.load_model`.

        Raises:
            UsageError: There was no training yet, or no model has reached MLflow.
        """
        if (run := self.run) is None:
            raise UsageError("there is no logged model to load: no training was recorded yet")
        return run.load_model()

    def _open(self, *, uid: str | None = None, is_continued: bool = False) -> Run:
        """Enter a training: return its run, opened unless it is the given one or goes on.

        Args:
            uid: Our name of a run to continue, from a checkpoint.
            is_continued: The last training's run goes on.
        """
        self._check_thread()
        if self._training is not None:
            # The last training raised, and its framework tells nobody.
            self._training.abandon()
        self._user = threading.current_thread()
        self._failures = set()
        if self._given_run is not None:
            self._run = self._given_run
        elif is_continued and self._run is not None:
            self._run.resume()
        else:
            self._run = open_run(self.config, parent=self._parent, uid=uid, proposed_uid=self._next_uid)
            self._next_uid = new_uid()
        if self._given_run is None:
            self._training = begin(self._run, self)
        self._rules = self._run.config.replace(**self.config.to_dict())
        if self._params:
            self._run.log_params(self._params)
        return self._run

    def _check_thread(self) -> None:
        """Raise where another thread's training is being recorded; what is known of that is not touched yet."""
        if self._user is not None and self._user is not threading.current_thread() and self._user.is_alive():
            raise UsageError(
                "one MLflowCallback records one training at a time; give each thread's training an instance of its own"
            )

    def _stand_by(self) -> None:
        """Take part in a training that another process records: `run` takes everything and keeps nothing."""
        self._run, self._next_uid = open_run(self.config.replace(enabled=False)), new_uid()

    def _close(self, status: str = "FINISHED") -> None:
        """Leave a training: its run ends, unless it was given."""
        self._user = None
        if self._training is not None:
            self._training.end(status)
            self._training = None

    def _fail(self, error: BaseException) -> None:
        """Leave a training that an exception ended."""
        self._close(status_of(kind_of(error)))

    def _hook_failed(self, hook: str, error: Exception) -> None:
        """Tell, once per training, that a hook failed in a way that nobody foresaw."""
        if _is_new(error, self._failures):
            logger.warning(
                "%s.%s failed; the training goes on, and what it would have recorded is missing. Please report this, "
                "with what `mlpipeline doctor` says of the versions",
                type(self).__module__,
                hook,
                exc_info=error,
            )

    def __enter__(self) -> Self:
        """Watch a block: an exception in it decides how a training that it interrupts ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._training is not None:
            self._close(status_of(kind_of(error)) if error is not None else "FAILED")

    def _record(self, metrics: Mapping[str, Any], step: int, epoch: int | None = None) -> None:
        """Record metrics on the axis that the user chose.

        Args:
            metrics: Names to numbers.
            step: Step of the training.
            epoch: The epoch that they sum up; None for those of a step.
        """
        if self._run is None:
            return
        axis = "step" if epoch is None else self._rules.step_axis
        self._run.log_metrics(metrics, epoch if axis == "epoch" else step)
        if axis == "both":
            named = {f"epoch/{name}": value for name, value in metrics.items() if name != "epoch"}
            self._run.log_metrics(named, epoch)

    def _take_over(self) -> None:
        """Make the run of a training in a process that this one started our own last run."""
        if (run := attached_run(self.config, self._next_uid)) is not None:
            self._run, self._next_uid = run, new_uid()

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_user": None, "_training": None, "_next_uid": new_uid()}
        if get_spawning_popen() is not None:
            # On its way into a new process: what that records, this instance is asked for. Any other
            # copy (a fold's, a trial's) has runs of its own.
            state["_run"], state["_next_uid"] = self.run, self._next_uid
        return state


def harmless(hook: _Hook) -> _Hook:
    """Decorate a hook of a `Recorded`: where it fails, such as in a framework's next version, the training goes on.

    What fails is told once per training, and the hook returns None. A mistake of the user's, an `MLPipelineError`,
    is raised as it is. A hook of every step has a ``try`` of its own instead, which costs no call.
    """

    @functools.wraps(hook)
    def guarded(self: Recorded, *arguments: Any, **named: Any) -> Any:
        try:
            return hook(self, *arguments, **named)
        except MLPipelineError:
            raise
        except Exception as error:  # noqa: BLE001 - nobody foresaw it
            self._hook_failed(hook.__name__, error)
            return None

    return guarded  # type: ignore[return-value]  # the hook's own signature, but for None


@contextmanager
def unharmed(what: str, told: set[_Cause] | None = None) -> Iterator[None]:
    """Run a block whose failure costs that part of the record only: it is told, and training goes on.

    Other than of a hook (`harmless`), a `UsageError` alone is raised: what cannot be logged costs the part, too.

    Args:
        what: The part.
        told: Causes that need not be told again, of a block that is run many times; grows. None tells each failure.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if told is None or _is_new(error, told):
            once = "" if told is None else "; there may be more, this cause is told once"
            logger.warning("could not record %s%s", what, once, exc_info=True)


def _is_new(error: Exception, told: set[_Cause]) -> bool:
    """Tell whether a cause is none that was told, and take note of it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    at = (last.tb_frame.f_code.co_filename, last.tb_lineno) if last is not None else ("", 0)
    cause = (type(error).__name__, *at)
    is_new = cause not in told
    told.add(cause)
    return is_new
