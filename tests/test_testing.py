"""`mlpipeline.testing.record`: what a user's unit test sees, without a file or a process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.testing import record

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_recorded_is_seen_and_nothing_is_written(tmp_path: Path, home: Path) -> None:
    """Params, metrics under their own names, tags, files, models, statuses; the home stays absent."""
    with record() as recorded, MLflowTracker(MLflowConfig(tags={"team": "a"})) as tracker:
        assert {"team": "a"} == recorded.tags
        tracker.log_params({"lr": 0.1, "net": {"layers": 2}})
        tracker.log_metrics({"ndcg@3": 0.5})
        tracker.log_metrics({"ndcg@3": 0.7})
        tracker.log_metrics({"loss": math.nan}, step=4)
        tracker.log_text("hello", "notes/a.txt")
        (tmp_path / "plots").mkdir()
        tracker.log_artifacts([tmp_path / "plots"])
    assert {"lr": "0.1", "net.layers": "2"} == recorded.params
    assert [0.5, 0.7] == recorded.metrics["ndcg@3"]
    assert [0, 1] == recorded.steps["ndcg@3"]
    assert [4] == recorded.steps["loss"]
    assert ["notes/a.txt", "plots"] == recorded.artifacts
    assert "nan at step 4" == recorded.tags["mlpipeline.nonfinite.loss"]
    assert ["FINISHED"] == recorded.statuses
    assert not home.exists()


def test_an_exception_in_the_block_is_a_failed_run() -> None:
    """The status that MLflow would show is seen too."""
    with record() as recorded:
        try:
            with MLflowTracker():
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    assert ["FAILED"] == recorded.statuses
