"""What a pipeline's components are given, and what they answer.

::

    ExecutionContext  ──►  Component.execute  ──►  ExecutionResult
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import logging
    import os


class ComponentType(str, Enum):
    """What a component does in its pipeline. A member equals its value, such as ``"model_training"``."""

    DATA_INGESTION = "data_ingestion"
    DATA_VALIDATION = "data_validation"
    DATA_PREPROCESSING = "data_preprocessing"
    FEATURE_ENGINEERING = "feature_engineering"
    MODEL_TRAINING = "model_training"
    MODEL_EVALUATION = "model_evaluation"
    HYPERPARAMETER_TUNING = "hyperparameter_tuning"
    MODEL_REGISTRATION = "model_registration"
    MODEL_DEPLOYMENT = "model_deployment"
    MONITORING = "monitoring"

    def __str__(self) -> str:
        return self.value


@dataclass
class ExecutionContext:
    """What a component is executed with.

    Args:
        experiment_id: The pipeline's own name for the experiment; it need not be an id of MLflow's.
        stage_name: Name of the pipeline's stage.
        component_type: What the component does.
        config: Configuration of all components, by section: ``mlflow``, ``training``, ``evaluation``.
        artifacts_path: Folder for the files that the component writes.
        logger: Where the component tells what it does.
        metadata: Anything else that the pipeline hands on.
    """

    experiment_id: str
    stage_name: str
    component_type: ComponentType
    config: dict[str, Any]
    artifacts_path: str | os.PathLike[str]
    logger: logging.Logger
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class ExecutionResult:
    """What came of executing a component.

    Args:
        success: Whether the component did what it is for.
        artifacts: Paths of the files that it wrote.
        metrics: Its figures, by name.
        metadata: Anything else, such as ``mlflow_run_id``.
        execution_time: Seconds that it took.
        error_message: What went wrong, in words. None after success.
        exception: What was raised. None after success, or where nothing was raised.
    """

    success: bool
    artifacts: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    execution_time: float = 0.0
    error_message: str | None = None
    exception: BaseException | None = None


@runtime_checkable
class Component(Protocol):
    """A pipeline's component: anything with a logger, a setup and an execute."""

    @property
    def logger(self) -> logging.Logger:
        """Where the component tells what it does."""
        ...

    def setup(self, context: ExecutionContext) -> None:
        """Prepare for `execute`, and check what *context* holds for this component.

        Raises:
            ConfigError: The component's section of the configuration cannot be right.
        """
        ...

    def execute(self, context: ExecutionContext) -> ExecutionResult:
        """Do the component's work.

        Returns:
            What came of it. A failure of the work is a result with ``success=False``, not an exception.
        """
        ...
