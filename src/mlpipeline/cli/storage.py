"""``mlpipeline storage``: what the store holds, and making room in it.

Exit codes: 0 done; 1 the store does not answer, or a run could not be archived or deleted; 2 the
options cannot be right, or nobody is there to confirm.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import (
    DURATION,
    EXIT_FAILED,
    Group,
    destination_config,
    destination_options,
    json_option,
    table,
    tell,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.cleaning import Outcome, Plan
    from mlpipeline.tracking.destination import Destination
    from mlpipeline.tracking.storage import Report

_experiment = click.option(
    "--experiment", "experiments", multiple=True, help="Only this experiment; may be repeated."
)


@click.group(cls=Group)
def storage() -> None:
    """Tell how much experiments, runs and model versions take, and make room."""


@storage.command("report")
@destination_options
@_experiment
@click.option(
    "--top",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows of each table; --json has all.",
)
@json_option
def report(experiments: tuple[str, ...], top: int, is_json: bool, **options: Any) -> None:
    """Show what experiments, runs and model versions take, the largest first."""
    from mlpipeline.tracking import storage as stored

    where = _destination(destination_config(**options))
    found = stored.report(where, experiments, track=_tracked)
    content = {**asdict(found), "total_bytes": found.total_bytes}
    tell(content, is_json=is_json, text=lambda: _report_text(found, top))


@storage.command("clean")
@destination_options
@_experiment
@click.option("--older-than", type=DURATION, required=True, help="Runs that ended so long ago: 90d, 12h, 4w.")
@click.option(
    "--keep-best",
    multiple=True,
    metavar="N:METRIC[:min|max]",
    help="Not the N best of each experiment by a metric, such as 10:val_f1 or 10:val_loss:min. Needs min or max where "
    "the metric's name does not tell. May be repeated.",
)
@click.option(
    "--protect-registered/--no-protect-registered",
    default=True,
    show_default=True,
    help="Not the runs whose models are registered. Files of registered versions stay in any case.",
)
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Only show what would go, and how much it takes.")
@click.option(
    "--archive",
    "folder",
    type=click.Path(file_okay=False),
    default=None,
    help="Where each run is kept as a .tar.gz. Default: mlpipeline-archive beside a SQLite file, else here.",
)
@click.option(
    "--purge",
    "purges",
    is_flag=True,
    help="Delete for good, which frees the space; also what an earlier clean deleted and archived there. "
    "Only where the store is a database, not a server.",
)
@click.option("--journal-dir", type=click.Path(), default=None, help="The journal home.")
@click.option("--yes", "is_confirmed", is_flag=True, help="Do not ask.")
@json_option
def clean(
    experiments: tuple[str, ...],
    older_than: float,
    keep_best: tuple[str, ...],
    protect_registered: bool,
    is_dry_run: bool,
    folder: str | None,
    purges: bool,
    journal_dir: str | None,
    is_confirmed: bool,
    is_json: bool,
    **options: Any,
) -> None:
    """Archive old runs, then delete them.

    Never goes what is RUNNING, on its way, or has the tag mlpipeline.keep. A run that stays keeps its
    children, and its parents. Each run is written to a .tar.gz with all its metrics, files and models,
    which is read back, before the run and its models are deleted. "mlflow runs restore" brings a
    deleted run back, without its models; --purge and "mlflow gc" free the space. If it is interrupted, run it
    again.
    """
    from mlpipeline.tracking import cleaning
    from mlpipeline.tracking.home import Home

    config = destination_config(journal_dir=journal_dir, **options)
    where = _destination(config)
    if purges:
        cleaning.check_purge(where)
    rules = cleaning.Rules(older_than, tuple(map(cleaning.Best.parse, keep_best)), protect_registered)
    place = _folder(folder, where).absolute()
    home = Home.at(config.resolved().journal_dir)
    plan = cleaning.plan(where, home, rules, experiments, track=_tracked)
    outcomes: list[Outcome] = []
    if not is_dry_run and (plan.runs or purges):
        if not is_confirmed:
            _confirm(plan, place, purges=purges)
        outcomes = list(cleaning.clean(where, plan, place, purges=purges, track=_tracked))
    content = {
        "is_dry_run": is_dry_run,
        "archive": str(place),
        "total_bytes": plan.total_bytes,
        "runs": [{**asdict(run), "models": plan.models[run.run_id]} for run in plan.runs],
        "kept": dict(plan.kept),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    tell(content, is_json=is_json, text=lambda: _clean_text(plan, outcomes, place, is_dry_run=is_dry_run))
    if any(outcome.state == "failed" for outcome in outcomes):
        sys.exit(EXIT_FAILED)


def _destination(config: MLflowConfig) -> Destination:
    from mlpipeline.tracking.opening import destination_of, resolved
    from mlpipeline.tracking.sink import quiet_mlflow

    found = destination_of(resolved(config))
    quiet_mlflow()
    return found


def _folder(given: str | None, where: Destination) -> Path:
    from pathlib import Path

    if given is not None:
        return Path(given)
    beside = where.sqlite_file().parent if where.is_sqlite else Path.cwd()
    return beside / "mlpipeline-archive"


def _confirm(plan: Plan, place: Path, *, purges: bool) -> None:
    what = f"{len(plan.runs)} runs, {_size(plan.total_bytes)}"
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{what} would be deleted, and nobody is there to confirm it: add --yes, or --dry-run"
        )
    also = " for good, with what was deleted before and is archived there" if purges else ""
    click.confirm(f"Archive {what} in {place} and delete them{also}?", abort=True, err=True)


def _tracked(items: Sequence[Any], text: str) -> Iterable[Any]:
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, text, console=Console(stderr=True), transient=True)


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def _report_text(found: Report, top: int) -> Any:
    from rich.console import Group as Parts

    experiments = [[one.name, one.runs, one.models, _size(one.total_bytes)] for one in found.experiments]
    runs = [
        [one.run_id, one.run_name, one.experiment, one.status, _size(one.total_bytes), _size(one.model_bytes)]
        for one in found.runs
    ]
    versions = [[one.name, one.version, ", ".join(one.aliases), _size(one.bytes)] for one in found.versions]
    parts = [
        table(["experiment", "runs", "models", "size"], experiments[:top], title="Experiments"),
        table(["run", "name", "experiment", "status", "size", "of which models"], runs[:top], title="Runs"),
        table(["model", "version", "aliases", "size"], versions[:top], title="Model versions"),
    ]
    return Parts(*parts, f"{_size(found.total_bytes)} in {len(found.runs)} runs")


def _clean_text(plan: Plan, outcomes: Sequence[Outcome], place: Path, *, is_dry_run: bool) -> Any:
    from rich.console import Group as Parts

    why = Counter(reason.partition(":")[0] for reason in map(_without_ids, plan.kept.values()))
    kept = [f"{count} stay: {reason}" for reason, count in why.most_common()]
    if is_dry_run or not outcomes:
        rows = [
            [one.run_id, one.run_name, one.experiment, one.status, _size(one.total_bytes)]
            for one in plan.runs
        ]
        shown = [table(["run", "name", "experiment", "status", "size"], rows)] if rows else []
        would = (
            f"{len(plan.runs)} runs would go, {_size(plan.total_bytes)}" if is_dry_run else "nothing to clean"
        )
        return Parts(*shown, would, *kept)
    states = Counter(outcome.state for outcome in outcomes)
    lines = [f"{count} runs {state}" for state, count in states.items()]
    lines += [f"  {one.run_id}: {one.detail}" for one in outcomes if one.state == "failed"]
    freed = "" if states["purged"] else "; mlflow gc frees the space"
    return "\n".join([*lines, f"archives: {place}{freed}", *kept])


def _without_ids(reason: str) -> str:
    for relation in ("its parent", "its child"):
        if reason.startswith(relation):
            return f"{relation} stays"
    return reason
