"""For tests: what a training would record, and the contract that every integration keeps.

The names are loaded when they are first used: `record` needs nothing but this package.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlpipeline.testing.contract import (
        IntegrationContract as IntegrationContract,
        Trained as Trained,
    )
    from mlpipeline.testing.faults import FaultyProxy as FaultyProxy
    from mlpipeline.testing.recording import Recorded as Recorded, record as record
    from mlpipeline.testing.traces import watched as watched

_HOMES = {
    "FaultyProxy": "mlpipeline.testing.faults",
    "IntegrationContract": "mlpipeline.testing.contract",
    "Recorded": "mlpipeline.testing.recording",
    "Trained": "mlpipeline.testing.contract",
    "record": "mlpipeline.testing.recording",
    "watched": "mlpipeline.testing.traces",
}

__all__ = ["FaultyProxy", "IntegrationContract", "Recorded", "Trained", "record", "watched"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
