"""The specification's names in one place; everything behind them lives in the layers below."""

from __future__ import annotations

from mlpipeline.core.config import MLflowConfig
from mlpipeline.models.evaluation import MLflowIntegratedEvaluator
from mlpipeline.models.registry import ModelRegistry
from mlpipeline.models.training import MLflowIntegratedTrainer
from mlpipeline.models.tuning import MLflowIntegratedHyperparameterTrainer
from mlpipeline.tracking.queries import MLflowRunInfo
from mlpipeline.tracking.tracker import MLflowTracker

__all__ = [
    "MLflowConfig",
    "MLflowIntegratedEvaluator",
    "MLflowIntegratedHyperparameterTrainer",
    "MLflowIntegratedTrainer",
    "MLflowRunInfo",
    "MLflowTracker",
    "ModelRegistry",
]
