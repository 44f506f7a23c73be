"""``mlpipeline register``, ``promote`` and ``models``: the model registry from a shell.

Exit codes: 0 done; 1 MLflow does not answer; 2 the command line cannot be right, or there is no such run,
model, version or alias; 3 not promoted, because it is not better.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import (
    EXIT_NO,
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

    from mlpipeline.models.promotion import AuditEntry, Verdict
    from mlpipeline.models.registry import ModelRegistry, ModelVersionInfo

_MOST_METRICS = 6


@click.command()
@click.option("--run-id", required=True, help="The run whose model it is; a local id too.")
@click.option(
    "--name", default=None, help="The registered model. Default: as configured, or as the run's model has it."
)
@click.option(
    "--model-name", default=None, help="Which of the run's models, as it was logged. Default: the newest."
)
@click.option("--alias", default=None, help="Alias to point to it, whoever holds it now.")
@click.option("--stage", default=None, help="Stage to put it in: Staging, Production or Archived.")
@click.option("--description", default=None, help="Its description.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A tag; may be repeated.")
@journal_option
@destination_options
@json_option
def register(
    run_id: str,
    name: str | None,
    model_name: str | None,
    alias: str | None,
    stage: str | None,
    description: str | None,
    tags: tuple[str, ...],
    is_json: bool,
    **options: Any,
) -> None:
    """Register the model of a run.

    A model that is registered already stays the version that it is. Exit codes: 0 registered; 1 MLflow does
    not answer; 2 there is no such run, or it has no such model.
    """
    found = _registry(**options).register(
        run_id,
        name,
        model_name=model_name,
        description=description,
        tags=_pairs(tags),
        alias=alias,
        stage=stage,
    )
    tell(found.to_dict(), is_json=is_json, text=lambda: _line(found))


@click.command()
@click.option("--name", required=True, help="The registered model.")
@click.option("--version", type=int, default=None, help="The version to promote.")
@click.option(
    "--run-id", default=None, help="Or the run whose model it is; it is registered if it is not yet."
)
@click.option("--alias", default="champion", show_default=True, help="The alias to get.")
@click.option(
    "--if-better", default=None, metavar="METRIC", help="Only if it is better than the holder by this metric."
)
@click.option(
    "--min-delta",
    type=float,
    default=0.0,
    show_default=True,
    help="Better by more than this; 0: a tie is not.",
)
@click.option(
    "--dataset",
    type=click.Path(dir_okay=False),
    default=None,
    help="A .csv or .parquet file to score both on. Default: the values that MLflow has of both.",
)
@click.option("--target", default=None, help="The file's column to predict.")
@click.option(
    "--direction",
    type=click.Choice(["min", "max"]),
    default=None,
    help="Whether less or more of the metric is better. Default: by its name.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="With --dataset: load models whoever logged them, also where that can run code.",
)
@journal_option
@destination_options
@json_option
def promote(
    name: str,
    version: int | None,
    run_id: str | None,
    alias: str,
    if_better: str | None,
    min_delta: float,
    dataset: str | None,
    target: str | None,
    direction: str | None,
    trust: bool,
    is_json: bool,
    **options: Any,
) -> None:
    """Point an alias to a version, if it is better than the one that holds it.

    Both values, who ordered it and when are kept in a tag of the version. Exit codes: 0 promoted; 1 MLflow
    does not answer; 2 the values cannot be compared, and why; 3 not better.
    """
    if (version is None) == (run_id is None):
        raise click.UsageError("give --version or --run-id, one of them")
    registry = _registry(**options)
    if version is None:
        version = registry.register(str(run_id), name).version
    verdict = registry.promote(
        name,
        version,
        alias,
        if_better=if_better,
        min_delta=min_delta,
        dataset=dataset,
        target=target,
        greater_is_better=None if direction is None else direction == "max",
        trust=trust,
    )
    tell(asdict(verdict), is_json=is_json, text=lambda: _told(verdict))
    if not verdict.promoted:
        sys.exit(EXIT_NO)


@click.group(cls=Group)
def models() -> None:
    """Look at registered models, roll one back, archive a version."""


@models.command("list")
@click.option(
    "--max", "count", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many."
)
@destination_options
@json_option
def list_models(count: int, is_json: bool, **options: Any) -> None:
    """Show the registered models, and what their aliases point to."""
    found = _registry(**options).models(count)
    rows = [
        [model.name, _aliases(model.aliases), _time(model.updated_ms), model.description] for model in found
    ]
    columns = ["model", "aliases", "updated", "description"]
    tell([model.to_dict() for model in found], is_json=is_json, text=lambda: table(columns, rows))


@models.command()
@click.argument("name")
@click.option(
    "--max", "count", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
@click.option(
    "--metric", "metrics", multiple=True, help="A metric to show; may be repeated. Default: the first few."
)
@destination_options
@json_option
def history(name: str, count: int, metrics: tuple[str, ...], is_json: bool, **options: Any) -> None:
    """Show the versions of a model, newest first, with metrics and the moves of their aliases."""
    found = _registry(**options).history(name, count)
    tell([info.to_dict() for info in found], is_json=is_json, text=lambda: _history(found, metrics))


@models.command()
@click.argument("name")
@click.option("--alias", default="champion", show_default=True, help="The alias to move back.")
@destination_options
@json_option
def rollback(name: str, alias: str, is_json: bool, **options: Any) -> None:
    """Point an alias back to the version that held it before; again, to the one before that.

    Exit codes: 0 done; 1 MLflow does not answer; 2 nobody is known to have held it before; 3 somebody else
    moved it at the same moment.
    """
    verdict = _registry(**options).rollback(name, alias)
    tell(asdict(verdict), is_json=is_json, text=lambda: _told(verdict))
    if not verdict.promoted:
        sys.exit(EXIT_NO)


@models.command()
@click.argument("name")
@click.option("--version", type=int, required=True, help="The version to archive.")
@destination_options
@json_option
def archive(name: str, version: int, is_json: bool, **options: Any) -> None:
    """Put a version into the stage Archived; not while an alias such as champion points to it."""
    found = _registry(**options).archive(name, version)
    tell(found.to_dict(), is_json=is_json, text=lambda: _line(found))


def _registry(**options: Any) -> ModelRegistry:
    from mlpipeline.models.registry import ModelRegistry

    config = destination_config(**options)
    reach(config)
    return ModelRegistry(config)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r}: write KEY=VALUE", param_hint="--tag")
        found[key] = value
    return found


def _told(verdict: Verdict) -> str:
    if verdict.promoted:
        return f"version {verdict.version} of {verdict.name} is {verdict.alias}: {verdict.reason}"
    return f"version {verdict.version} of {verdict.name} is not promoted: {verdict.reason}"


def _line(info: ModelVersionInfo) -> str:
    parts = [
        f"{info.name} version {info.version}",
        *info.aliases,
        f"run {info.run_id}" if info.run_id else "",
    ]
    return " · ".join(part for part in parts if part)


def _history(found: Sequence[ModelVersionInfo], metrics: Sequence[str]) -> Any:
    known = dict.fromkeys(name for info in found for name in info.metrics)
    shown = list(metrics) or sorted(known)[:_MOST_METRICS]
    rows = [
        [
            info.version,
            ", ".join(info.aliases),
            info.stage,
            _time(info.created_ms),
            info.run_id,
            *(_number(info.metrics.get(name)) for name in shown),
            "\n".join(map(_entry, info.audit)),
        ]
        for info in found
    ]
    return table(["version", "aliases", "stage", "registered", "run", *shown, "promotions"], rows)


def _entry(entry: AuditEntry) -> str:
    who = f"{_time(entry.at_ms)} by {entry.by}"
    if not entry.is_moved:
        values = f"{_number(entry.challenger)} against {_number(entry.champion)}"
        return f"not {entry.alias}, {entry.metric} {values}, {who}"
    what = f", {entry.metric} {_number(entry.challenger)}" if entry.challenger is not None else ""
    before = f" after version {entry.from_version}" if entry.from_version else ""
    how = " by rollback" if entry.action == "rollback" else ""
    return f"{entry.alias}{before}{how}{what}, {who}"


def _aliases(aliases: dict[str, int]) -> str:
    return ", ".join(f"{alias} → {version}" for alias, version in aliases.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M")
