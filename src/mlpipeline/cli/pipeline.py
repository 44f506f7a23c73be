"""``mlpipeline train``, ``evaluate``, ``tune`` and ``config``: a pipeline described by one YAML file.

::

    production.yaml ─ ${NAME}, --set ─► Settings ─► component.execute ─► table or JSON, exit code

Exit codes: 0 done and in MLflow; 1 the stage failed; 2 the file or the command line cannot be right;
4 done, but not in MLflow yet (``mlpipeline sync`` sends it).
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import EXIT_FAILED, EXIT_UNDELIVERED, json_option, table, tell
from mlpipeline.core.errors import ConfigError, MLPipelineError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.core.interfaces import ExecutionResult
    from mlpipeline.models.pipeline_file import Source

_config = click.option(
    "--config", "-c", "path", required=True, type=click.Path(dir_okay=False), help="The pipeline's YAML file."
)
_set = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="A value over the file's, such as training.model.parameters.max_depth=3; may be repeated.",
)


def _stage(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all stages have."""
    folder = click.option(
        "--artifacts-path",
        default=".",
        show_default=True,
        type=click.Path(file_okay=False),
        help="Folder of the prepared rows, and of what the stage writes.",
    )
    for option in (json_option, _set, folder, _config):
        command = option(command)
    return command


@click.command()
@_stage
def train(path: str, artifacts_path: str, changes: tuple[str, ...], is_json: bool) -> None:
    """Train the model that a file describes, and record it."""
    _run("training", path, artifacts_path, changes, is_json=is_json)


@click.command()
@_stage
@click.option(
    "--model", default=None, help="models:/name@alias, models:/name/3 or a run's id; over the file's."
)
def evaluate(
    path: str, artifacts_path: str, changes: tuple[str, ...], is_json: bool, model: str | None
) -> None:
    """Evaluate a model: metrics, plots, a report, and thresholds, below which the exit code is 1."""
    if model is not None:
        changes = (*changes, f"evaluation.model={json.dumps(model)}")
    _run("evaluation", path, artifacts_path, changes, is_json=is_json)


@click.command()
@_stage
def tune(path: str, artifacts_path: str, changes: tuple[str, ...], is_json: bool) -> None:
    """Search for the best hyperparameters, and train with them."""
    _run("tuning", path, artifacts_path, changes, is_json=is_json)


def _run(stage: str, path: str, folder: str, changes: tuple[str, ...], *, is_json: bool) -> None:
    from mlpipeline.core.interfaces import ExecutionResult

    try:
        result = _executed(stage, path, folder, changes)
    except MLPipelineError as error:  # in the file, before there was a component
        result = ExecutionResult(False, metadata=_facts(stage), error_message=str(error), exception=error)
    is_mistake = isinstance(result.exception, MLPipelineError)
    if is_json or not is_mistake:
        tell(_content(result), is_json=is_json, text=lambda: _told(result))
    if is_mistake and result.exception is not None:
        raise result.exception
    if not result.success:
        click.echo(f"{stage} failed: {result.error_message}", err=True)
        sys.exit(EXIT_FAILED)
    if result.metadata.get("mlflow_is_delivered") is False:
        sys.exit(EXIT_UNDELIVERED)


def _executed(stage: str, path: str, folder: str, changes: tuple[str, ...]) -> ExecutionResult:
    from mlpipeline.core.interfaces import ComponentType, ExecutionContext

    source, config = _read(path, changes, folder)
    kind = {
        "training": ComponentType.MODEL_TRAINING,
        "evaluation": ComponentType.MODEL_EVALUATION,
        "tuning": ComponentType.HYPERPARAMETER_TUNING,
    }[stage]
    component = _component(stage, config)
    sections = {name: value for name, value in source.content.items() if name != "mlflow"}
    context = ExecutionContext(source.name, stage, kind, sections, folder, component.logger)
    with _telling_progress(component.logger), _importing_from_here():
        result: ExecutionResult = component.execute(context)
    return result


def _component(stage: str, config: MLflowConfig) -> Any:
    name = {
        "training": "MLflowIntegratedTrainer",
        "evaluation": "MLflowIntegratedEvaluator",
        "tuning": "MLflowIntegratedHyperparameterTrainer",
    }[stage]
    return getattr(_module(stage), name)(config)


def _facts(stage: str) -> dict[str, Any]:
    return dict(_module(stage).FACTS)


def _module(stage: str) -> Any:
    from importlib import import_module

    return import_module(f"mlpipeline.models.{stage}")


@contextmanager
def _telling_progress(component: logging.Logger) -> Iterator[None]:
    """Tell what the package has to say, on standard error; a failure is told once, with the result."""
    import logging

    class Progress(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno < logging.ERROR:
                click.echo(record.getMessage(), err=True)

    ours, handler = logging.getLogger("mlpipeline"), Progress()
    level = component.level
    ours.addHandler(handler)
    component.setLevel(logging.INFO)
    try:
        yield
    finally:
        component.setLevel(level)
        ours.removeHandler(handler)


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Let a user's class be imported, and unpickled, from the working directory.

    It stands last: a stray ``random.py`` there is nobody's module. A console script is started without it.
    """
    here = os.getcwd()
    is_missing = not {"", here} & set(sys.path)
    if is_missing:
        sys.path.append(here)
    try:
        yield
    finally:
        if is_missing:
            sys.path.remove(here)


def _content(result: ExecutionResult) -> dict[str, Any]:
    return {
        "success": result.success,
        "metrics": result.metrics,
        "metadata": result.metadata,
        "artifacts": result.artifacts,
        "execution_time_s": result.execution_time,
        "error_message": result.error_message,
    }


def _told(result: ExecutionResult) -> Any:
    from rich.console import Group

    parts: list[Any] = []
    if result.metrics:
        rows = [(name, f"{value:.6g}") for name, value in sorted(result.metrics.items())]
        parts.append(table(("metric", "value"), rows))
    facts = [
        (name, json.dumps(value, default=str) if isinstance(value, (dict, list)) else value)
        for name, value in result.metadata.items()
        if value not in (None, {}, [])
    ]
    parts.append(table(("", "MLflow"), facts))
    return Group(*parts)


# --- config ------------------------------------------------------------------------------------------


@click.group()
def config() -> None:
    """Check a pipeline's file, show what it comes to, or print its schema for editors."""


@config.command()
@_stage
def check(path: str, artifacts_path: str, changes: tuple[str, ...], is_json: bool) -> None:
    """Name every mistake in the file, with its line; exit code 2 if there is one.

    Models, parameters, metrics, data sets and files are looked for; nothing is trained.
    """
    try:
        _, options = _read(path, changes, artifacts_path)
        options.resolved()
    except ConfigError as error:
        if not is_json:
            raise
        click.echo(json.dumps({"is_valid": False, "mistakes": str(error).splitlines()}))
        sys.exit(2)
    tell({"is_valid": True, "mistakes": []}, is_json=is_json, text=lambda: f"{path} is right")


@config.command()
@_config
@_set
@json_option
def show(path: str, changes: tuple[str, ...], is_json: bool) -> None:
    """Show the configuration that counts: defaults filled in, the environment applied, no secrets."""
    source, options = _read(path, changes)
    settings = source.settings()
    final = options.resolved()
    content = {**settings.to_dict(), "mlflow": _public(final.to_dict(all=True))}

    def text() -> str:
        import yaml

        return str(yaml.safe_dump(json.loads(json.dumps(content, default=str)), sort_keys=False)).rstrip()

    tell(content, is_json=is_json, text=text)


@config.command()
def schema() -> None:
    """Print the JSON schema of the file: editors complete and check with it."""
    from mlpipeline.models.settings import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


def _public(options: dict[str, Any]) -> dict[str, Any]:
    from mlpipeline.core.credentials import public_uri

    return {
        name: public_uri(value) if name.endswith("_uri") and value else value
        for name, value in options.items()
    }


def _read(path: str, changes: tuple[str, ...], folder: str | None = None) -> tuple[Source, MLflowConfig]:
    """Return the file with the changes, and its ``mlflow:`` options; the environment stands above the file's.

    With an artifacts folder, what its values name is looked for, too.
    """
    import yaml

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.models import pipeline_file

    parsed: dict[str, Any] = {}
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key:
            raise ConfigError(
                f"--set {change}: expected KEY=VALUE, such as --set training.model.framework=xgboost"
            )
        try:
            parsed[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {change}: the value is not YAML; put it in quotes") from error
    source = pipeline_file.read(path, parsed)
    with _importing_from_here():
        source.settings(folder)
    options = source.content.get("mlflow") or {}
    by_hand = {key.partition(".")[2].partition(".")[0] for key in parsed if key.startswith("mlflow.")}
    of_file = MLflowConfig.from_section(
        {name: value for name, value in options.items() if name not in by_hand}
    )
    return source, of_file.replace(**{name: options[name] for name in by_hand})
