"""System metrics: MLflow's names, sampled while the run is open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlpipeline import MLflowConfig
from mlpipeline.testing import record
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking import system_metrics
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    import pytest


def test_the_machine_is_sampled_until_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps count up from 0 under MLflow's names, and nothing is sampled after the end."""
    monkeypatch.setattr(system_metrics, "SAMPLE_EVERY_S", 0.02)
    with record() as recorded:
        run = open_run(MLflowConfig(log_system_metrics=True))
        wait_until(lambda: len(recorded.metrics.get("system/cpu_utilization_percentage", [])) >= 3)
        run.end()
        count = len(recorded.metrics["system/cpu_utilization_percentage"])
        time.sleep(0.1)
    assert count == len(recorded.metrics["system/cpu_utilization_percentage"])
    assert [0, 1, 2] == recorded.steps["system/system_memory_usage_megabytes"][:3]
    assert 0 < recorded.metrics["system/system_memory_usage_percentage"][0] <= 100
