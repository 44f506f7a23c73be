"""What happens inside of a fit, as scikit-learn tells its callbacks; few estimators have them, from 1.9 on.

Its callbacks are the one way to see a pipeline's steps that leaves the fitted pipeline as it is without
us: a cache (``memory=``) would clone the steps, and classes around them would stay in it.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from sklearn.pipeline import Pipeline

from mlpipeline.tracking.recorded import unharmed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlpipeline.tracking.run import Run


@contextlib.contextmanager
def hooked(estimators: Iterable[Any], hook: Any) -> Iterator[None]:
    """Add a callback to those estimators that take one, which is few of them, from scikit-learn 1.9 on."""
    held = []
    for estimator in estimators:
        before = getattr(estimator, "__dict__", {}).get("_skl_callbacks", ())
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # logistic regression: lbfgs only
            estimator.set_callbacks(*before, hook)
            held.append((estimator, before))
    try:
        yield
    finally:
        for estimator, before in held:
            estimator.set_callbacks(*before)


class Hook:
    """What scikit-learn asks of every callback."""

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing before a fit."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing after a fit."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing before a task."""

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Do nothing after a task."""


class ProgressHook(Hook):
    """Records how long the steps of a pipeline and the iterations of an estimator take.

    Args:
        run: Where to.
    """

    def __init__(self, run: Run) -> None:
        self._run: Run | None = run
        self._began_s: dict[int, float] = {}

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Begin to time a task."""
        self._began_s[id(context)] = time.perf_counter()

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Record a task's time."""
        began_s = self._began_s.pop(id(context), None)
        if began_s is None or self._run is None:
            return
        elapsed_s = time.perf_counter() - began_s
        with unharmed("the progress of the fit"):
            if context.parent is None:
                return
            task = context.task_name
            if isinstance(estimator, Pipeline):
                is_last = task == "fit-final-estimator"
                step = estimator.steps[-1][0] if is_last else task.removeprefix("fit-transform-")
                self._run.log_metrics({f"step_time_s/{step}": elapsed_s}, 0)
            elif context.source_task_name is None:  # else it is a step of a pipeline, timed there
                self._run.log_metrics({f"{context.estimator_name}/{task}_s": elapsed_s}, context.task_id)

    def __getstate__(self) -> dict[str, Any]:
        return {"_run": None, "_began_s": {}}
