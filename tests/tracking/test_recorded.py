"""What every callback has in common: one run per training, wherever the training happens."""

from __future__ import annotations

from sklearn.linear_model import LinearRegression

from mlpipeline.core.config import MLflowConfig
from mlpipeline.tracking.opening import open_run


def test_a_model_that_is_not_to_be_registered_makes_no_version(store_uri, deliver, mlflow_client):
    """An empty name says so for one model, where the configuration registers the others."""
    run = open_run(
        MLflowConfig(tracking_uri=store_uri, delivery="offline", register_model=True, model_name="digits")
    )
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    run.log_model(model, "checkpoint", register_as="")
    run.log_model(model, "best")
    run.end()
    deliver()
    assert 1 == len(mlflow_client(store_uri).search_model_versions("name='digits'"))
