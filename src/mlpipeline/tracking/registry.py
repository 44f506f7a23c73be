"""Registered models: look one up, load it back."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core.credentials import with_credentials

if TYPE_CHECKING:
    from mlpipeline.tracking.sink import Destination


def load_logged_model(destination: Destination, model_id: str) -> Any:
    """Load a LoggedModel as the framework's own object, from the store it was logged to.

    Args:
        destination: The store.
        model_id: Its id, ``m-…``.
    """
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    tracking_uri = with_credentials(destination.tracking_uri)
    client = MlflowClient(tracking_uri, with_credentials(destination.registry_uri))
    location = client.get_logged_model(model_id).artifact_location
    with tempfile.TemporaryDirectory(prefix="mlpipeline-") as folder:
        # Through the model's own location: "models:/m-..." would be looked up in MLflow's global store.
        path = download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=tracking_uri)
        flavors = Model.load(str(Path(path))).flavors
        name = next(flavor for flavor in flavors if flavor != "python_function")
        return importlib.import_module(f"mlflow.{name}").load_model(path)
