"""The specification's names in one place; everything behind them lives in the layers below.

The config-driven trainer, evaluator and hyperparameter trainer join here with the components.
"""

from __future__ import annotations

from mlpipeline.core.config import MLflowConfig
from mlpipeline.tracking.queries import MLflowRunInfo
from mlpipeline.tracking.tracker import MLflowTracker

__all__ = ["MLflowConfig", "MLflowRunInfo", "MLflowTracker"]
