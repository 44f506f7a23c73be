"""The one line that a root run prints when it ends, on standard error."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlpipeline.core.credentials import public_uri

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run


def closing_line(run: Run) -> str:
    """Return what the user is told of an ended root run: where it is, and how to look at it."""
    state = run._state()  # noqa: SLF001 - a page of Run, kept apart to keep Run short
    experiment = run.config.experiment_name if not run.config.experiment_id else run.config.experiment_id
    name = run.name or (state.run_id if state else None) or run.uid
    parts = [f"mlpipeline: {experiment} / {name}"]
    if state is not None:
        parts += [
            f"model {model['registered_as']} v{model['version']}"
            for model in state.models.values()
            if "version" in model
        ]
    uri = public_uri(run.destination.tracking_uri)
    counts = run.counts()
    is_known = state is not None and bool(state.run_id)
    if counts.pending or not (is_known or counts.dropped):
        why = f" ({state.problem})" if state and state.problem else ""
        parts.append(f"{counts.pending} records wait in {run._home.path}{why}")  # type: ignore[union-attr]  # noqa: SLF001
        parts.append("send them with: mlpipeline sync")
    elif state is None or not is_known:
        pass  # no disk has taken anything
    elif urlsplit(uri).scheme in {"http", "https"}:
        parts.append(f"{uri.rstrip('/')}/#/experiments/{state.experiment_id}/runs/{state.run_id}")
    else:
        parts.append(f"run {state.run_id}")
        parts.append(f"look at it with: mlflow ui --backend-store-uri {shlex.quote(uri)}")
    if counts.refused:
        parts.append(f"{counts.refused} records refused, see: mlpipeline status")
    if counts.dropped:
        parts.append(f"{counts.dropped} records could not be written to disk")
    return " · ".join(parts)


def print_line(run: Run) -> None:
    """Print the closing line of a root run."""
    print(closing_line(run), file=sys.stderr, flush=True)  # noqa: T201 - the one line that a run prints
