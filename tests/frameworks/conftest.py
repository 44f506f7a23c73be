"""What was recorded of a training, read back through plain MLflow."""

from __future__ import annotations

import pytest


@pytest.fixture
def runs(store_uri, deliver, mlflow_client):
    """Deliver, then return the runs in the order of their start."""

    def runs():
        deliver()
        client = mlflow_client(store_uri)
        found = client.search_runs([item.experiment_id for item in client.search_experiments()])
        return sorted(found, key=lambda run: run.info.start_time)

    return runs


@pytest.fixture
def points(store_uri, mlflow_client):
    """Read one metric of a run back as (step, value) pairs in order."""
    client = mlflow_client(store_uri)
    return lambda run, name: [
        (item.step, item.value) for item in client.get_metric_history(run.info.run_id, name)
    ]
