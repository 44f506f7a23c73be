"""`MLflowIntegratedTrainer`: a training described by a configuration, recorded as users record theirs.

::

    context.config ─► Settings ─► Tables ─► Pipeline ─► fit ─► result
                                               │  callbacks of users' own trainings (mlpipeline.xgboost, …)
                                               └► Run: params, data sets, rounds, metrics, plots, model
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.interfaces import ExecutionContext, ExecutionResult
from mlpipeline.models import data, estimators, pipelines
from mlpipeline.models.checking import refuse_mistakes
from mlpipeline.models.execution import (
    MODEL_FACTS,
    RUN_FACTS,
    executed,
    facts_of,
    hand_on,
    model_facts_of,
    recording,
)
from mlpipeline.models.settings import Settings
from mlpipeline.tracking.recorded import unharmed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlpipeline.models.data import Tables
    from mlpipeline.tracking.run import Run


FACTS: dict[str, Any] = {**RUN_FACTS, **MODEL_FACTS}
"""The metadata of every answer."""


class MLflowIntegratedTrainer:
    """Trains the model that a configuration describes, and records the training in MLflow.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default. What
            the context has under ``mlflow:`` wins.
        **overrides: `MLflowConfig` options that win over *config*.

    Attributes:
        config: The configuration.
        logger: Where it tells what it does.
    """

    def __init__(self, config: Any = None, **overrides: Any) -> None:
        self.config = MLflowConfig.of(config, **overrides)
        self.logger = logging.getLogger("mlpipeline.training")

    def setup(self, context: ExecutionContext) -> None:
        """Check what the context says; `execute` does so by itself.

        Raises:
            ConfigError: It cannot be right.
        """
        refuse_mistakes(self._settings(context)[1])

    def execute(self, context: ExecutionContext) -> ExecutionResult:
        """Train.

        The model is the whole pipeline, preparation of the rows included. It is left in the context's
        artifacts folder, too, for the stage behind this one. Waits until all is in MLflow, or MLflow is
        found to be unreachable; then the id is a local one, which every command here resolves later.

        Args:
            context: ``config["training"]["model"]`` says what to train, ``config["data"]`` on what; without
                ``data`` on ``train_preprocessed.parquet`` in ``artifacts_path``.

        Returns:
            ``success``; ``metrics`` such as ``val_accuracy_score`` and ``test_f1_score``; ``artifacts``, the paths of the
            files left behind; ``metadata`` with ``mlflow_run_id``, ``mlflow_experiment_id``, ``mlflow_tracking_uri``,
            ``mlflow_model_uri``, ``mlflow_model_version`` (None where nothing was registered) and ``mlflow_is_delivered``;
            each is always there, and None where it is not known.
            What went wrong is in ``error_message`` and ``exception``; only Ctrl-C and SystemExit are raised.
        """
        return executed(self._train, context, FACTS)

    def _settings(self, context: ExecutionContext) -> tuple[MLflowConfig, Settings]:
        settings = Settings.of(context.config, only=("mlflow", "data", "training"))
        return self.config.replace(**settings.mlflow), settings

    def _train(self, context: ExecutionContext) -> ExecutionResult:
        config, settings = self._settings(context)
        refuse_mistakes(settings, context.artifacts_path)
        tell_unregistered(config, context)
        tables = rows_of(settings, context)
        pipeline = pipelines.build(settings.training.model, tables)
        context.logger.info(
            "training %s on %d rows of %s", pipeline.steps[-1][1], len(tables.train.X), tables.source
        )
        with recording(config, context) as run:
            metrics = train(run, pipeline, tables)
        facts = {**facts_of(run), **model_facts_of(run)}
        artifacts = left_behind(context, pipeline, tables, {**facts, "metrics": metrics})
        return ExecutionResult(True, artifacts=artifacts, metrics=metrics, metadata=facts)


def tell_unregistered(config: MLflowConfig, context: ExecutionContext) -> None:
    """Warn of a name to register under where nothing is registered."""
    if config.model_name and not config.register_model and config.enabled:
        context.logger.warning(
            "model_name=%r is given and register_model is not: nothing is registered", config.model_name
        )


def rows_of(settings: Settings, context: ExecutionContext) -> Tables:
    """Return the rows that a configuration's model is to be trained on.

    Raises:
        ConfigError: As of `data.load`, or there is no such model.
    """
    model = settings.training.model
    kind = estimators.kind_of(model, None) if model.model_type else None
    return data.load(
        settings.data,
        context.artifacts_path,
        settings.training.target_column,
        model.task_type or (kind.task_type if kind else None),
    )


def left_behind(
    context: ExecutionContext, pipeline: Any, tables: Tables, facts: Mapping[str, Any]
) -> list[str]:
    """Leave a fitted pipeline to the stage behind this one; return the paths of its files, if it can be left."""
    paths: list[str] = []
    with unharmed("the model for the next stage"):
        handed = {**facts, "task_type": tables.task_type, "target": tables.target}
        paths += hand_on(context.artifacts_path, pipeline, handed)
    return paths


def train(run: Run, pipeline: Any, tables: Tables) -> dict[str, float]:
    """Fit a pipeline, and record the training and how it does on the rows held back.

    Args:
        run: Where; it stays open.
        pipeline: An unfitted one, which is fitted in place.
        tables: The rows.

    Returns:
        Metrics of the rows held back, by part and name, such as ``val_accuracy_score``; of the training rows
        where nothing was held back.
    """
    from mlpipeline.sklearn.estimator import evaluated, recorded_fit

    run.set_tags({"mlpipeline.task_type": tables.task_type, "mlpipeline.target": tables.target})
    run.log_params(
        {"data_source": tables.source, **{f"{name}_rows": len(part.X) for name, part in tables.parts()}}
    )
    with recorded_fit(run, pipeline, tables.train.X, tables.train.y):
        pipelines.fit(pipeline, tables.train, tables.val, run)
    held_back = [(name, part) for name, part in tables.parts() if name != "train"]
    metrics: dict[str, float] = {}
    for name, part in held_back:
        metrics |= evaluated(run, pipeline, part.X, part.y, name)
    if not held_back:
        metrics = evaluated(run, pipeline, tables.train.X, tables.train.y, "train")
    return metrics
