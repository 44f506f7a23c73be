"""Registered models: what a version is made of, how it is marked, and how its model comes back.

::

    a record of a training ─ sink ────────────┐
                                              ├─► the same calls to MLflow
    a command of the user's ─ ModelRegistry ──┘

    stage "Staging" ─► alias "staging", tag stage=Staging, and the real stage while MLflow has stages
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core.credentials import with_credentials
from mlpipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow import MlflowClient
    from mlflow.models import Model

    from mlpipeline.tracking.destination import Destination

logger = logging.getLogger("mlpipeline")

STAGE_TAG = "stage"
NO_STAGE = "None"

_MODEL_ID = re.compile(r"(?:^models:/|/models/)(m-[0-9a-f]+)(?:/artifacts)?/?$")
# As a source: models:/m-…, or the place of its files.


_NATIVE = frozenset(
    (
        *("catboost", "h2o", "keras", "lightgbm", "onnx", "paddle", "pmdarima", "prophet", "pytorch"),
        *(
            "sentence_transformers",
            "sklearn",
            "spacy",
            "statsmodels",
            "tensorflow",
            "transformers",
            "xgboost",
        ),
    )
)
"""Flavors of MLflow's whose ``load_model`` gives the framework's own object; an MLmodel file may name any."""


def stage_alias(stage: str) -> str | None:
    """Return the alias that does a stage's work; None for no stage."""
    return None if stage == NO_STAGE else stage.lower()


def set_real_stage(client: MlflowClient, name: str, version: int, stage: str) -> None:
    """Put a version into a stage of MLflow's, deprecated since 2.9, where the registry still has them.

    Alias and tag of a stage are what counts: a registry that refuses stages is left at that.
    """
    from mlflow import MlflowClient as Client
    from mlflow.exceptions import MlflowException

    found = getattr(Client, "transition_model_version_stage", None)
    if found is None:
        return
    # Below its decorator, which warns: a filter for warnings would be the whole process's.
    transition = inspect.unwrap(found)
    try:
        transition(client, name, str(version), stage)
    except MlflowException as error:
        if error.error_code not in {
            "INVALID_PARAMETER_VALUE",
            "BAD_REQUEST",
            "NOT_IMPLEMENTED",
            "FEATURE_DISABLED",
            "ENDPOINT_NOT_FOUND",
        }:
            raise
        logger.debug("the registry has no stages: %s", error)


def quoted(name: str) -> str:
    """Return a registered model's name as it may stand in a filter of the registry's.

    Raises:
        ConfigError: It holds both kinds of quotes.
    """
    if "'" not in name:
        return f"'{name}'"
    if '"' in name:
        raise ConfigError(f"the name {name!r} holds both kinds of quotes: MLflow cannot search for it")
    return f'"{name}"'


def ensure_registered_model(client: MlflowClient, name: str) -> None:
    """Make a registered model, unless it exists."""
    try:
        client.create_registered_model(name)
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
            raise


def version_source(client: MlflowClient, model_id: str, registry_uri: str) -> str:
    """Return what a version of a LoggedModel has as its source, in a process where MLflow's URI is the user's.

    A database registry looks ``models:/<id>`` up through MLflow's *global* tracking URI
    (sqlalchemy_store.create_model_version has a TODO about it), so it gets the model's own place.
    """
    if registry_uri.startswith(("http://", "https://")):
        return f"models:/{model_id}"
    return str(client.get_logged_model(model_id).artifact_location)


def mark_version(
    client: MlflowClient,
    name: str,
    version: int,
    model_id: str,
    *,
    aliases: Iterable[str] = (),
    stage: str = NO_STAGE,
    is_http: bool,
) -> None:
    """Let a new version's model tell of it, aliases point to it, and the registry have its stage.

    Args:
        client: MLflow's.
        name: The registered model.
        version: Its new version.
        model_id: The LoggedModel behind it.
        aliases: That of the stage among them.
        stage: Its stage.
        is_http: The tracking store is a server, which tells the model by itself.
    """
    if not is_http:
        store = client._tracking_client.store  # noqa: SLF001 - the client has no such call
        store.set_model_versions_tags(name, str(version), model_id)
    for alias in aliases:
        client.set_registered_model_alias(name, alias, str(version))
    if stage != NO_STAGE:
        set_real_stage(client, name, version, stage)


def logged_model_id(version: Any) -> str | None:
    """Return the LoggedModel behind an ``mlflow.entities.model_registry.ModelVersion``; None for none."""
    if version.model_id:
        return str(version.model_id)
    found = _MODEL_ID.search(version.source or "")
    return found[1] if found else None


def load_logged_model(destination: Destination, model_id: str) -> Any:
    """Load a LoggedModel of a run's own as the framework's own object, from the store it was logged to.

    Args:
        destination: The store.
        model_id: Its id, ``m-…``.
    """
    from mlflow import MlflowClient

    tracking_uri = with_credentials(destination.tracking_uri)
    client = MlflowClient(tracking_uri, with_credentials(destination.registry_uri))
    # Through the model's own location: "models:/m-..." would be looked up in MLflow's global store.
    return load_files(client.get_logged_model(model_id).artifact_location, tracking_uri, lambda *_: None)


def load_files(
    location: str, tracking_uri: str, check: Callable[[Path, Model], None], *, is_plain: bool = False
) -> Any:
    """Load a model from where its files are.

    Args:
        location: URI of the folder.
        tracking_uri: The store that has them, with credentials.
        check: Raises if the model in a folder, with this MLmodel file, is not to be loaded.
        is_plain: Rather than a bare network or booster, which predict in ways of their own, return the
            ``mlflow.pyfunc`` model. An estimator is returned as it is.
    """
    from mlflow import pyfunc
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    with tempfile.TemporaryDirectory(prefix="mlpipeline-") as folder:
        path = download_artifacts(artifact_uri=location, dst_path=folder, tracking_uri=tracking_uri)
        about = Model.load(str(Path(path)))
        check(Path(path), about)
        name = next((flavor for flavor in about.flavors if flavor in _NATIVE), None)
        if name is None:  # somebody's mlflow.pyfunc.PythonModel, or a flavor that MLflow does not come with
            return pyfunc.load_model(path)
        model = importlib.import_module(f"mlflow.{name}").load_model(path)
        is_estimator = hasattr(model, "get_params") and hasattr(model, "predict")
        return pyfunc.load_model(path) if is_plain and not is_estimator else model
