"""The model that an evaluation is about: named by the user, or left by the stage before.

::

    models:/name@alias, models:/name/3 ─► registry ─┐
    a run's id ─► its outputs ──────────────────────┼─► models:/m-… ─ downloaded ─► Subject
    models:/m-… ────────────────────────────────────┘
    trained_model.pkl in the artifacts folder ────────────── unpickled ───────────► Subject

A server is asked once and has seconds to answer: who waits for an evaluation wants to hear that it is away.
"""

from __future__ import annotations

import importlib
import logging
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from mlpipeline.core.credentials import public_uri, with_credentials
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.models.execution import MODEL_FILE, handed_on, handed_on_model
from mlpipeline.tracking import trust as trusted
from mlpipeline.tracking.account import resolved_run_id
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import destination_of, resolved
from mlpipeline.tracking.verdicts import Refused, Unavailable, judged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.core.interfaces import ExecutionContext

logger = logging.getLogger("mlpipeline")

_ANSWER_S = 10.0
_LOGGED = re.compile(r"(?:models:/)?(m-[^/@]+)")
_ALIASED = re.compile(r"models:/([^/@]+)@([^/@]+)")
_VERSION = re.compile(r"models:/([^/@]+)/(\d+)")
_SOURCE = re.compile(r"(?:^models:/|/models/)(m-[0-9a-f]+)(?:/artifacts)?/?$")
"""Of a version: ``models:/m-…``, or where that model's files are, which is all that a database registry knows."""
_RUN = re.compile(r"[A-Za-z0-9][\w\-]*")


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Attributes:
        model: Anything with ``predict``.
        title: What to call it.
        kind: What sort of model it is, such as ``RandomForestClassifier``.
        uri: ``models:/m-…``, or ``models:/name/3`` where a registry has no more; None where MLflow has none yet.
        run_id: The run that logged it, perhaps a local id; None where that is not known.
        tracking_uri: Where that run is, without credentials; None where that is not known.
        columns: Columns that it needs, in its order; None where it does not say.
        facts: What the training in the same folder handed on.
    """

    model: Any
    title: str
    kind: str
    uri: str | None = None
    run_id: str | None = None
    tracking_uri: str | None = None
    columns: list[str] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def found(
    wanted: str | None, context: ExecutionContext, config: MLflowConfig, *, trust: bool = False
) -> Iterator[Subject]:
    """Find and load the model to evaluate; its files, which it may read later, stay inside the block.

    Args:
        wanted: ``evaluation.model``; None takes what the stage before names in the context's metadata, else
            what a training left in the artifacts folder.
        context: The stage.
        config: Says where MLflow is, also where tracking is disabled.
        trust: Load a model whoever logged it, and run what is in it.

    Yields:
        The model.

    Raises:
        ConfigError: There is no such model.
        UsageError: It cannot be loaded, or its run has not reached MLflow.
        Unavailable: MLflow does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="mlpipeline-") as files:
        yield _found(wanted, context, config, files, trust=trust)


def _found(
    wanted: str | None, context: ExecutionContext, config: MLflowConfig, files: str, *, trust: bool
) -> Subject:
    if wanted is not None:
        return _from_mlflow(wanted, config, "evaluation.model", files, trust=trust)
    folder = context.artifacts_path
    facts = handed_on(folder) or {}
    has_file = (Path(folder) / MODEL_FILE).exists()
    uri, run_id = (context.metadata.get(f"mlflow_{name}") for name in ("model_uri", "run_id"))
    named = uri or run_id
    if named and not (has_file and named in (facts.get("mlflow_model_uri"), facts.get("mlflow_run_id"))):
        return _from_mlflow(str(named), config, "the context's metadata", files, trust=trust)
    if has_file:
        return _from_folder(folder, facts)
    raise ConfigError(
        f"there is no model to evaluate: no {MODEL_FILE} in {Path(folder).absolute()}, no mlflow_model_uri in the "
        "context's metadata, and no evaluation.model. Train with the same artifacts_path first, or write "
        "evaluation: {model: models:/name@alias} or {model: <run id>}"
    )


def _from_folder(folder: Any, facts: Mapping[str, Any]) -> Subject:
    path = Path(folder) / MODEL_FILE
    try:
        model = handed_on_model(folder)
    except Exception as error:
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {error}; train again") from error
    uri, run_id = facts.get("mlflow_model_uri"), facts.get("mlflow_run_id")
    return Subject(
        model,
        uri or str(path),
        _kind_of(model),
        uri,
        run_id,
        facts.get("mlflow_tracking_uri"),
        _names_in(model),
        facts,
    )


# --- MLflow ------------------------------------------------------------------------------------------


def _from_mlflow(wanted: str, config: MLflowConfig, by: str, files: str, *, trust: bool) -> Subject:
    where = destination_of(resolved(config))
    with _told(wanted, by, where):
        if wanted.startswith("models:/") and where.registry_uri != where.tracking_uri:
            Destination(where.registry_uri, where.registry_uri).probe()
        client = where.client(_ANSWER_S)
        title, run_id = wanted, None
        if found := _LOGGED.fullmatch(wanted):
            uri, location = _of_id(client, found[1])
        elif found := _ALIASED.fullmatch(wanted) or _VERSION.fullmatch(wanted):
            uri, location, run_id, title = _of_version(client, wanted, *found.groups())
        elif _RUN.fullmatch(wanted):
            run_id = resolved_run_id(Home.at(config.journal_dir), wanted)
            uri, location = _of_run(client, run_id)
        else:
            raise ConfigError(
                f"{by}: {wanted!r} names no model; write models:/name@alias, models:/name/3, models:/m-… or a run's id"
            )
        if run_id is None and (found := _LOGGED.fullmatch(uri)):
            run_id = client.get_logged_model(found[1]).source_run_id
        known = _LOGGED.fullmatch(uri)
        trust = trust or trusted.is_ours(Home.at(config.journal_dir), where, known and known[1])
        model, columns, kind = _downloaded(location, uri, where, files, trust=trust)
    return Subject(
        model,
        title if title.startswith("models:/") else f"{uri} of run {title}",
        kind,
        uri,
        run_id,
        public_uri(where.tracking_uri),
        columns,
    )


@contextmanager
def _told(wanted: str, by: str, where: Destination) -> Iterator[None]:
    """Say of what goes wrong which model was asked for, and whose fault it is."""
    try:
        yield
    except (ConfigError, UsageError):
        raise
    except Exception as error:
        verdict = error if isinstance(error, (Refused, Unavailable)) else judged(error)
        shown = public_uri(where.tracking_uri)
        if isinstance(verdict, Refused):
            raise ConfigError(f"{by}: there is no {wanted} at {shown}: {verdict}") from error
        raise Unavailable(f"the model {wanted} cannot be had from {shown}: {verdict}") from error


def _of_id(client: MlflowClient, model_id: str) -> tuple[str, str]:
    return f"models:/{model_id}", str(client.get_logged_model(model_id).artifact_location)


def _of_version(
    client: MlflowClient, wanted: str, name: str, alias_or_number: str
) -> tuple[str, str, str | None, str]:
    if "@" in wanted:
        version = client.get_model_version_by_alias(name, alias_or_number)
        title = f"{wanted}, version {version.version}"
    else:
        version, title = client.get_model_version(name, alias_or_number), wanted
    run_id = str(version.run_id) if version.run_id else None
    known = _SOURCE.search(version.source or "")
    if model_id := version.model_id or (known and known[1]):
        try:
            return *_of_id(client, model_id), run_id, title
        except Exception as error:
            # The registry is on another server, or MLflow's before 3.
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
    uri = f"models:/{name}/{version.version}"
    return uri, client.get_model_version_download_uri(name, version.version), run_id, title


def _of_run(client: MlflowClient, run_id: str) -> tuple[str, str]:
    outputs = client.get_run(run_id).outputs
    models = outputs.model_outputs if outputs else []
    if not models:
        raise ConfigError(f"the run {run_id} has logged no model; name another, or train with log_model=True")
    logged = [client.get_logged_model(model.model_id) for model in models]
    newest = max(logged, key=lambda model: model.creation_timestamp)
    if len(logged) > 1:
        logger.info("run %s has logged %d models; the newest is evaluated", run_id, len(logged))
    return str(newest.model_uri), str(newest.artifact_location)


def _downloaded(
    location: str, uri: str, where: Destination, files: str, *, trust: bool
) -> tuple[Any, list[str] | None, str]:
    """Return a model from where its files are, the columns that it needs, and its kind."""
    from mlflow.artifacts import download_artifacts
    from mlflow.models import Model

    tracking_uri = with_credentials(where.tracking_uri)
    # What lies on a disk here is read where it lies.
    place = None if urlsplit(location).scheme in {"", "file"} else files
    path = download_artifacts(artifact_uri=location, dst_path=place, tracking_uri=tracking_uri)
    try:
        about = Model.load(str(Path(path)))
    except Exception as error:
        raise UsageError(f"{uri} cannot be loaded: {type(error).__name__}: {error}") from error
    if not trust:
        trusted.check(Path(path), about, uri, "evaluation: {trust: true}")
    try:
        model = _loaded(path, about)
    except Exception as error:
        raise UsageError(f"{uri} cannot be loaded: {type(error).__name__}: {error}") from error
    names, kind = _names_in(model), _kind_of(model)
    if not hasattr(model, "__sklearn_tags__"):
        kind = next((f"{name} model" for name in about.flavors if name != "python_function"), "model")
    schema = about.signature.inputs if about.signature is not None else None
    if names is None and schema is not None and schema.is_tensor_spec() and len(schema.inputs) == 1:
        model = _OfTensor(model, schema.inputs[0].type)
    elif names is None and schema is not None and schema.has_input_names():
        names = [str(name) for name in schema.input_names()]
    return model, names, kind


class _OfTensor:
    """A model that takes one array of one type, as networks do; here it is given tables of numbers.

    Args:
        model: As MLflow loads it.
        kind: The type.
    """

    def __init__(self, model: Any, kind: Any) -> None:
        self._model = model
        self._kind = kind

    def predict(self, X: Any) -> Any:
        """Return what the model predicts."""
        return self._model.predict(np.asarray(X, dtype=self._kind))


def _loaded(path: str, about: Any) -> Any:
    """Load a model as scikit-learn's where it is one, which tells more of itself than MLflow's own interface."""
    names = [name for name in about.flavors if name != "python_function"]
    for name in names:
        if name in ("sklearn", "xgboost"):
            model = importlib.import_module(f"mlflow.{name}").load_model(path)
            if hasattr(model, "__sklearn_tags__") and hasattr(model, "predict"):
                return model
    if "python_function" not in about.flavors:
        raise UsageError(f"it has no predict, only {', '.join(names)}")
    from mlflow import pyfunc

    return pyfunc.load_model(path)


def _kind_of(model: Any) -> str:
    learner = getattr(model, "steps", [("", model)])[-1][1]
    if type(learner).__module__ == "mlpipeline.models.labels":  # ours, around the one that learns
        learner = learner.estimator
    return type(learner).__name__


def _names_in(model: Any) -> list[str] | None:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else [str(name) for name in names]
