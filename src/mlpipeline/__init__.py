"""One line per framework records a training in MLflow.

The public names are loaded when they are first used: ``import mlpipeline`` loads no framework, no
MLflow and no pandas. A framework's callback is in the module of its name::

    from mlpipeline.lightning import MLflowCallback
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpipeline.core.config import MLflowConfig as MLflowConfig
    from mlpipeline.core.errors import MLPipelineError as MLPipelineError
    from mlpipeline.models.registry import ModelRegistry as ModelRegistry
    from mlpipeline.tracking.queries import MLflowRunInfo as MLflowRunInfo
    from mlpipeline.tracking.run import Run as Run
    from mlpipeline.tracking.tracker import MLflowTracker as MLflowTracker

__version__ = "0.1.0.dev0"

_HOMES = {
    "MLPipelineError": "mlpipeline.core.errors",
    "MLflowConfig": "mlpipeline.core.config",
    "MLflowRunInfo": "mlpipeline.tracking.queries",
    "MLflowTracker": "mlpipeline.tracking.tracker",
    "ModelRegistry": "mlpipeline.models.registry",
    "Run": "mlpipeline.tracking.run",
}

__all__ = [
    "MLPipelineError",
    "MLflowConfig",
    "MLflowRunInfo",
    "MLflowTracker",
    "ModelRegistry",
    "Run",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
