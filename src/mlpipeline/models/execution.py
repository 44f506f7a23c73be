"""What every component does around its work: the configuration that counts, one run, and an answer instead of a raise.

::

    execute(context) ─► executed(work) ─┬─ work returns ──► its ExecutionResult, with the time it took
                                        └─ work raises ───► success=False, error_message, exception
                                           either way with every fact that is promised, None where unknown

    recording(config) ─► a Run, ended with the status that the block's end means, and waited for
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import UsageError
from mlpipeline.core.interfaces import ExecutionContext, ExecutionResult
from mlpipeline.tracking import closing
from mlpipeline.tracking.account import LOCAL_PREFIX
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.trainings import kind_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.run import Run

logger = logging.getLogger("mlpipeline")

_recorded: ContextVar[dict[str, Any]] = ContextVar("mlpipeline_recorded")
"""What the stage at work has recorded; its answer tells that also where the work failed."""

RUN_FACTS: dict[str, Any] = dict.fromkeys(
    ("mlflow_run_id", "mlflow_experiment_id", "mlflow_tracking_uri", "mlflow_is_delivered")
)
MODEL_FACTS: dict[str, Any] = dict.fromkeys(("mlflow_model_uri", "mlflow_model_version"))
"""What every answer tells, of a run and of its model, as long as nothing is known."""

MODEL_FILE = "trained_model.pkl"
FACTS_FILE = "training.json"
"""What a training leaves in the artifacts folder for the stage behind it."""


def executed(
    work: Callable[[ExecutionContext], ExecutionResult],
    context: object,
    facts: Mapping[str, Any] = RUN_FACTS,
) -> ExecutionResult:
    """Do a component's work; an exception becomes an answer.

    Ctrl-C and SystemExit go on: who asks a pipeline to stop means all of it.

    Args:
        work: The work.
        context: What it is done with.
        facts: The metadata that is promised, with what it says where the work told nothing of it.
    """
    if not isinstance(context, ExecutionContext):
        mistake = UsageError(
            f"execute takes an ExecutionContext, and got {type(context).__name__}; see mlpipeline.core.interfaces"
        )
        return ExecutionResult(False, metadata=_own(facts), error_message=str(mistake), exception=mistake)
    began_s = time.perf_counter()
    token = _recorded.set({})
    try:
        result = work(context)
    except Exception as error:  # noqa: BLE001 - a stage that fails is an answer, which names its reason
        # A driver's words may hold a store's password.
        message = public_uri(str(error)) or type(error).__name__
        context.logger.error("%s failed: %s", context.stage_name, message)  # noqa: TRY400 - the result has it
        result = ExecutionResult(False, metadata=_recorded.get(), error_message=message, exception=error)
    finally:
        _recorded.reset(token)
    result.metadata = {**_own(facts), **result.metadata}
    result.execution_time = time.perf_counter() - began_s
    return result


def _own(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that is the caller's own."""
    return copy.deepcopy(dict(facts))


@contextmanager
def recording(config: MLflowConfig, context: ExecutionContext, **options: Any) -> Iterator[Run]:
    """Open a run for a stage, end it with what became of the block, and wait until it is in MLflow.

    The wait lasts as long as delivery makes progress, and ``exit_wait_s`` at least.

    Args:
        config: The run's configuration.
        context: The stage; its names become tags.
        **options: As `open_run` takes them.
    """
    tags = {
        "mlpipeline.pipeline_experiment": context.experiment_id,
        "mlpipeline.stage": context.stage_name,
        "mlpipeline.component": str(context.component_type),
        **options.pop("tags", {}),
    }
    run = open_run(config, tags=tags, **options)
    try:
        yield run
    except BaseException as error:
        if isinstance(error, Exception):
            run.set_tags({"exception": type(error).__name__, "exception_message": str(error)[:5000]})
        run.end(status_of(kind_of(error)))
        if isinstance(error, Exception):  # who wants to stop is not kept waiting
            closing.insist(run)
            _recorded.get({}).update(facts_of(run))
        raise
    run.end()
    closing.insist(run)


def note(facts: Mapping[str, Any]) -> None:
    """Let the answer of the stage at work tell *facts* even if the work fails."""
    _recorded.get({}).update(facts)


def facts_of(run: Run) -> dict[str, Any]:
    """Return what a result tells of a run: MLflow's own ids where it has arrived, else the local one."""
    if not run.is_enabled:
        return dict(RUN_FACTS)
    run_id = run.run_id
    is_delivered = not str(run_id).startswith(LOCAL_PREFIX) and run.is_delivered()
    return {
        "mlflow_run_id": run_id,
        "mlflow_experiment_id": run.experiment_id,
        "mlflow_tracking_uri": public_uri(run.destination.tracking_uri),
        "mlflow_is_delivered": is_delivered,
    }


def model_facts_of(run: Run) -> dict[str, Any]:
    """Return what a result tells of the model that was logged to a run."""
    return {"mlflow_model_uri": run.model_uri, "mlflow_model_version": run.model_version}


# --- from stage to stage -----------------------------------------------------------------------------


def hand_on(folder: str | os.PathLike[str], model: Any, facts: Mapping[str, Any]) -> list[str]:
    """Leave a fitted model and what is known of it to the next stage; return the files' paths."""
    from mlpipeline.sklearn.flavor import pickled

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    contents = {MODEL_FILE: pickled(model), FACTS_FILE: json.dumps(facts, indent=2, default=str).encode()}
    for name, content in contents.items():
        beside = place / f".{name}.{os.getpid()}"
        beside.write_bytes(content)
        beside.replace(place / name)
    return [str(place / name) for name in contents]


def handed_on(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what the training in this folder left to know; None where there was none."""
    path = Path(folder) / FACTS_FILE
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def handed_on_model(folder: str | os.PathLike[str]) -> Any:
    """Return the model that the training in this folder left.

    It is a pickle: loading it runs what is in it, as loading any model does. The folder is the pipeline's own.
    """
    import pickle

    return pickle.loads((Path(folder) / MODEL_FILE).read_bytes())
