"""PyTorch: how its modules are saved."""

from __future__ import annotations

from mlpipeline.torch_modules import flavor

__all__ = ["flavor"]
