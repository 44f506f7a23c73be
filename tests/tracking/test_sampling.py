"""Thinned metrics: never more often than asked for, the last one always, and an account of the rest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_hot_loop_keeps_a_few_the_last_one_and_the_count(
    store_uri: str, deliver: Callable[[], None]
) -> None:
    """Of each kind of record; none of what has no step, which is counted on, nor a NaN, which somebody looks for."""
    config = MLflowConfig(
        tracking_uri=store_uri,
        experiment_name="thin",
        delivery="offline",
        log_at_most_per_s=20,
        exclude=["hidden"],
    )
    with open_run(config) as run:
        assert run.row_logger(("a", "b")) is None
        began_s = time.monotonic()
        for step in range(2000):
            run.log_metrics({"loss": step, "hidden": 0}, step=step)
            run.log_metrics({"a": 1.0, "b": float(step)}, step)
        took_s = time.monotonic() - began_s
        run.log_metrics({"a": float("nan"), "b": 2000.0}, step=2000)
        run.log_metrics({"val_loss": 0.5}, step=2000)
        for _ in range(30):
            run.log_metrics({"counted": 1.0})
    deliver()
    client = MlflowClient(store_uri, store_uri)
    found = client.get_run(run.run_id)
    history = {
        key: client.get_metric_history(run.run_id, key) for key in ("loss", "b", "val_loss", "counted")
    }
    at_most = 20 * took_s + 2
    assert 2 <= len(history["loss"]) <= at_most
    assert len(history["b"]) <= at_most + 1
    assert (0, 1999) == (history["loss"][0].step, history["loss"][-1].step)
    assert all(point.value == point.step for key in ("loss", "b") for point in history[key])
    assert "nan at step 2000" == found.data.tags["mlpipeline.nonfinite.a"]
    assert history["loss"][-1].timestamp <= found.info.end_time
    assert (1, 30) == (len(history["val_loss"]), len(history["counted"]))
    kept = len(history["loss"]) + len(history["b"])  # the NaN's is not counted, and val_loss is
    assert (
        f"{kept} of 4001 records, at most 20 a second of the same metrics"
        == found.data.tags["mlpipeline.sampled"]
    )


def test_nothing_left_out_leaves_no_tag(store_uri: str, deliver: Callable[[], None]) -> None:
    """Nor is a last value recorded twice."""
    config = MLflowConfig(
        tracking_uri=store_uri, experiment_name="thin", delivery="offline", log_at_most_per_s=1e9
    )
    with open_run(config) as run:
        for step in range(100):
            run.log_metrics({"loss": step}, step=step)
    deliver()
    client = MlflowClient(store_uri, store_uri)
    assert 100 == len(client.get_metric_history(run.run_id, "loss"))
    assert "mlpipeline.sampled" not in client.get_run(run.run_id).data.tags
