"""``mlpipeline runs``: find runs, show one, set some beside each other.

Exit codes: 0 done; 1 MLflow does not answer; 2 the command line cannot be right, or there is no such run.
"""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import (
    Group,
    destination_config,
    destination_options,
    journal_option,
    json_option,
    reach,
    table,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlpipeline import MLflowRunInfo, MLflowTracker

_POINTS = 500
"""Of a curve, so many are drawn; it is 320 pixels wide."""

_LOCAL = "local-"


@click.group(cls=Group)
def runs() -> None:
    """Find runs, show one, compare some."""


@runs.command("list")
@click.option(
    "--experiment",
    "experiments",
    multiple=True,
    help="Of this experiment; may be repeated. Default: as configured.",
)
@click.option("--filter", "query", default="", help='MLflow\'s filter, such as "metrics.accuracy > 0.9".')
@click.option(
    "--order-by",
    multiple=True,
    metavar="KEY",
    help='MLflow\'s order, such as "metrics.accuracy DESC"; may be repeated. Default: newest first.',
)
@click.option(
    "--max", "count", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
@click.option("--metric", "metrics", multiple=True, help="A metric to show; may be repeated.")
@destination_options
@json_option
def list_runs(
    experiments: tuple[str, ...],
    query: str,
    order_by: tuple[str, ...],
    count: int,
    metrics: tuple[str, ...],
    is_json: bool,
    **options: Any,
) -> None:
    """Show the runs of an experiment that match, newest first. No more than are shown are fetched."""
    found = _tracker(**options).search_runs(query, count, order_by or None, experiments or None)
    tell([run.to_dict() for run in found], is_json=is_json, text=lambda: _listed(found, metrics))


@runs.command()
@click.argument("run_id")
@journal_option
@destination_options
@json_option
def show(run_id: str, is_json: bool, **options: Any) -> None:
    """Show a run: status, params, metrics, tags. One that is only here yet is read from its journal."""
    found = _tracker([run_id], **options).get_run_info(run_id)
    tell(found.to_dict(), is_json=is_json, text=lambda: _shown(found))


@runs.command()
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID...")
@click.option("--only-differences", is_flag=True, help="Only what is not the same in all of them.")
@click.option(
    "--aggregate",
    type=click.Choice(["best", "last", "min", "max"]),
    default="last",
    show_default=True,
    help="Which value of a metric's history.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME[=min|max]",
    help="A metric, and which of its values is the best; may be repeated. Default: all, by their names.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(dir_okay=False, writable=True),
    default=None,
    help="Also write a page with the table and the curves of the metrics.",
)
@journal_option
@destination_options
@json_option
def compare(
    run_ids: tuple[str, ...],
    only_differences: bool,
    aggregate: Any,
    metrics: tuple[str, ...],
    page: str | None,
    is_json: bool,
    **options: Any,
) -> None:
    """Set runs beside each other. Those that are only here yet are read from their journals."""
    from pathlib import Path

    from mlpipeline.tracking.comparison import as_html, as_table

    tracker = _tracker(run_ids, **options)
    frame = tracker.compare_runs(
        run_ids, only_differences=only_differences, aggregate=aggregate, metrics=_wanted(metrics)
    )
    if page is not None:
        curves = tracker.metric_histories(list(frame.index), frame.attrs["metrics"], points=_POINTS)
        Path(page).write_text(as_html(frame, curves), "utf-8")
        click.echo(f"written: {page}", err=True)
    content = json.loads(frame.reset_index().to_json(orient="records", date_format="iso"))
    tell(content, is_json=is_json, text=lambda: as_table(frame))


def _tracker(run_ids: Sequence[str] = (), **options: Any) -> MLflowTracker:
    from mlpipeline import MLflowTracker

    config = destination_config(**options)
    if not run_ids or not all(run_id.startswith(_LOCAL) for run_id in run_ids):
        reach(config)
    return MLflowTracker(config)


def _wanted(metrics: Sequence[str]) -> Any:
    """Return the metrics to compare, each with the direction that was given; None for all."""
    found: dict[str, str | None] = {}
    for text in metrics:
        name, equals, direction = text.rpartition("=")
        if equals and direction in {"min", "max"}:
            found[name] = direction
        else:
            found[text] = None
    return found or None


def _listed(found: Sequence[MLflowRunInfo], metrics: Sequence[str]) -> Any:
    if not found:
        return "no runs"
    rows = [
        [run.run_id, run.run_name, run.status, _time(run.start_time), _duration(run)]
        + [_number(run.metrics.get(name)) for name in metrics]
        for run in found
    ]
    return table(["run", "name", "status", "started", "took", *metrics], rows)


def _shown(run: MLflowRunInfo) -> Any:
    from rich.console import Group as Parts

    facts = [
        ["run", run.run_id],
        ["name", run.run_name],
        ["status", run.status],
        ["experiment", run.experiment_id],
        ["user", run.user_id],
        ["started", _time(run.start_time)],
        ["took", _duration(run)],
        ["artifacts", run.artifact_uri],
    ]
    parts = [table(["run", ""], facts)]
    numbers = {name: _number(value) for name, value in run.metrics.items()}
    for title, values in (("metrics", numbers), ("params", run.params), ("tags", run.tags)):
        if values:
            parts.append(table([title, ""], [[name, value] for name, value in values.items()]))
    return Parts(*parts)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _time(at_ms: int | None) -> str:
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _duration(run: MLflowRunInfo) -> str:
    if run.start_time is None or run.end_time is None:
        return ""
    return f"{(run.end_time - run.start_time) / 1000:.1f} s"
