"""The only module that writes records to MLflow.

`MlflowSink` says each thing a run needs in one call, to one destination, with explicit ids and no
fluent state. Whatever goes wrong comes out as `Unavailable` or `Refused`, see `verdicts`.

Every create carries our uid as a tag, and is looked up by it first, because MLflow's server picks
the ids and a create whose answer got lost would otherwise be made twice.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mlpipeline.core import credentials
from mlpipeline.core.credentials import public_uri, with_credentials
from mlpipeline.tracking import registry
from mlpipeline.tracking.destination import Delay, Destination
from mlpipeline.tracking.rows import PointRows
from mlpipeline.tracking.verdicts import Refused, Unavailable, judged, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from mlpipeline.tracking.records import Point

logger = logging.getLogger("mlpipeline")

UID_TAG = "mlpipeline.uid"
ATTEMPT_TAG = "mlpipeline.attempt"
TWIN_TAG = "mlpipeline.twin_of"
KEEPER_TAG = "mlpipeline.keeper"
KEEPER_OF_TAG = "mlpipeline.keeper_of"
KEPT_MS_TAG = "mlpipeline.kept_ms"

_KIND = ("mlflow.experimentKind", "custom_model_development")
"""Lets MLflow's pages open an experiment of ours as model training, not as GenAI."""

METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100
TAGS_PER_REQUEST = 100
"""MLflow's limits for one log-batch request (mlflow/utils/validation.py)."""

_T = TypeVar("_T")


class MlflowSink:
    """Writes to one MLflow destination.

    Args:
        destination: Where to.
        owns_process: This process is a courier's: MLflow's global tracking URI may be set in it.
            In a user's process it never is.
        timeout_s: How long a server may take for one answer.
        is_for_anybody: Show this process's credentials also for what was recorded without any.

    Attributes:
        answered: How many calls were taken; tells whether anything was asked in the meantime.
        delay: What a server's answers cost.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        owns_process: bool = False,
        timeout_s: float = 30.0,
        is_for_anybody: bool = False,
    ) -> None:
        self.destination = destination
        self._is_for_anybody = is_for_anybody
        self._timeout_s = timeout_s
        self._owns_process = owns_process
        self._client: MlflowClient | None = None
        self._rows: PointRows | None = None
        self.answered = 0
        self.delay = Delay()

    # --- runs ------------------------------------------------------------------------------------

    def experiment(self, name: str | None, id_: str | None, location: str | None, root: str | None) -> str:
        """Return the id of an experiment, made if it does not exist.

        Args:
            name: Its name; used when *id_* is None.
            id_: Its id, which must exist.
            location: Where a new experiment keeps its artifacts; None leaves it to MLflow.
            root: Folder under which MLflow would put them by default: with a database that is the
                trainer's working directory, which is not the courier's.
        """

        def find_or_make() -> str:
            client = self._connected(root)
            if id_ is not None:
                return str(client.get_experiment(id_).experiment_id)
            found = client.get_experiment_by_name(str(name))
            if found is None:
                try:
                    return self._create_experiment(str(name), location, root)
                except Exception as error:
                    if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = client.get_experiment_by_name(str(name))
            if found is None:
                raise Unavailable(f"experiment {name!r} exists and cannot be found")
            if found.lifecycle_stage != "active":
                raise Unavailable(
                    f"experiment {name!r} is deleted; restore it with: "
                    f"mlflow experiments restore -x {found.experiment_id}, or choose another name"
                )
            return str(found.experiment_id)

        return self._do(find_or_make)

    def find_runs(self, uid: str, experiment_id: str) -> list[MlflowRun]:
        """Return the runs that carry our uid, deleted ones too, oldest first."""
        from mlflow.entities import ViewType

        return self._do(
            lambda: list(
                self._connected().search_runs(
                    [experiment_id],
                    f"tags.`{UID_TAG}` = '{_checked(uid)}'",
                    run_view_type=ViewType.ALL,
                    order_by=["attributes.start_time ASC"],
                )
            )
        )

    def get_run(self, run_id: str) -> MlflowRun:
        """Return a run."""
        return self._do(lambda: self._connected().get_run(run_id))

    def last_steps(self, run: MlflowRun) -> dict[str, int]:
        """Return the highest step per metric that a run holds."""
        # RunData.metrics has the values only; the entities with their steps are private.
        return {metric.key: int(metric.step) for metric in run.data._metric_objs}  # noqa: SLF001

    def create_run(
        self, experiment_id: str, name: str | None, start_ms: int, tags: Mapping[str, str]
    ) -> MlflowRun:
        """Make a run. *tags* must hold our uid."""
        return self._do(
            lambda: self._connected().create_run(
                experiment_id, start_time=start_ms, run_name=name, tags=dict(tags)
            )
        )

    def set_status(self, run_id: str, status: str, end_ms: int | None = None) -> None:
        """Set a run's status, with its end where it has ended."""

        def send() -> None:
            from mlflow.entities import RunStatus

            # MlflowClient.set_terminated would also print two lines with the run's address, read the
            # run once more, and cannot be told to leave the end open.
            store = self._connected()._tracking_client.store  # noqa: SLF001
            store.update_run_info(run_id, RunStatus.from_string(status), end_ms, None)

        self._do(send)

    def delete_run(self, run_id: str) -> None:
        """Delete a run: a twin that a lost answer made."""
        self._do(lambda: self._connected().delete_run(run_id))

    def purge_run(self, run_id: str, artifact_uri: str) -> None:
        """Take a deleted run out of a database for good, its files first, as ``mlflow gc`` does."""

        def purge() -> None:
            self._delete_files(artifact_uri)
            self._connected()._tracking_client.store._hard_delete_run(run_id)  # noqa: SLF001 - there is no other

        self._do(purge)

    def purge_model(self, model_id: str, location: str) -> None:
        """Take a deleted LoggedModel out of a database for good, its files first; one that is not deleted stays."""

        def purge() -> None:
            store = self._connected()._tracking_client.store  # noqa: SLF001 - the same
            if model_id not in store._get_deleted_logged_models():  # noqa: SLF001 - the same
                return
            if model_id in location:  # files elsewhere are not MLflow's own
                self._delete_files(location)
            store._hard_delete_logged_model(model_id)  # noqa: SLF001 - the same

        self._do(purge)

    def _delete_files(self, uri: str) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracking_uri = with_credentials(self.destination.tracking_uri)
        get_artifact_repository(uri, tracking_uri=tracking_uri).delete_artifacts()  # type: ignore[no-untyped-call]  # MLflow's own

    def delete_files(self, uri: str) -> None:
        """Delete the files below an artifact URI, if the store can."""
        self._do(lambda: self._delete_files(uri))

    def disown_run(self, run_id: str, ours: str, end_ms: int | None) -> None:
        """Mark a twin that may not be deleted: ended, and in MLflow's pages folded under the true run."""
        self.set_tags(run_id, {TWIN_TAG: ours, "mlflow.parentRunId": ours})
        self.set_status(run_id, "KILLED", end_ms)

    # --- what a run holds ------------------------------------------------------------------------

    def log_points(self, run_id: str, points: Sequence[Point], *, are_in_doubt: bool = False) -> None:
        """Store points of metrics, at most `METRICS_PER_REQUEST`; storing them again changes nothing.

        Args:
            run_id: MLflow's id of the run.
            points: The points.
            are_in_doubt: A server is asked first which of them it has. Of a request with points that it
                has, MLflow on SQLite looks for each at every point of the run (its or_() keeps SQLite from
                the primary key): 5 s for 1000 of them in a run of 100 000, 31 s in one of 900 000.
        """

        def send() -> None:
            client = self._connected()
            if self._rows is not None and self._rows.insert(run_id, points):
                return
            if self.destination.is_http:
                from mlpipeline.tracking.rest import post_points

                post_points(client, run_id, points)
                return
            from mlflow.entities import Metric

            metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in points]
            client.log_batch(run_id, metrics=metrics)

        if are_in_doubt and self.destination.is_http:
            points = self._missing_points(run_id, points)
        if points:
            self._do(send)

    def _missing_points(self, run_id: str, points: Sequence[Point]) -> Sequence[Point]:
        from mlpipeline.tracking.rest import missing_points

        try:
            return self._do(lambda: missing_points(self._connected(), run_id, points))
        except Refused:
            return points  # they are refused, too, and for a reason of their own
        except Unavailable as error:
            if error.status != 404:
                raise
            return points  # a server that is too old for the question

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Store params, at most `PARAMS_PER_REQUEST`; a changed one refuses them all."""
        from mlflow.entities import Param

        items = [Param(key, value) for key, value in params.items()]
        self._do(lambda: self._connected().log_batch(run_id, params=items))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, at most `TAGS_PER_REQUEST`; they replace what is there."""
        from mlflow.entities import RunTag

        items = [RunTag(key, value) for key, value in tags.items()]
        self._do(lambda: self._connected().log_batch(run_id, tags=items))

    def log_dataset(self, run_id: str, dataset: Mapping[str, Any]) -> None:
        """Store a dataset as an input of the run; the same digest again changes nothing."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=dataset["name"],
            digest=dataset["digest"],
            source_type=dataset.get("source_type", "local"),
            source=dataset.get("source", "{}"),
            schema=dataset.get("schema"),
            profile=dataset.get("profile"),
        )
        tags = [InputTag("mlflow.data.context", dataset["context"])] if dataset.get("context") else []
        self._do(lambda: self._connected().log_inputs(run_id, [DatasetInput(entity, tags)]))

    def upload(self, run_id: str, local: Path, artifact_path: str | None) -> None:
        """Upload a file into the folder *artifact_path* of the run's artifacts, or a folder as it."""

        def send() -> None:
            client = self._connected()
            if local.is_dir():
                client.log_artifacts(run_id, str(local), artifact_path)
            else:
                client.log_artifact(run_id, str(local), artifact_path)

        self._do(send)

    # --- models ----------------------------------------------------------------------------------

    def find_models(self, experiment_id: str, uid: str) -> list[str]:
        """Return the ids of the LoggedModels that carry our uid."""
        query = f"tags.`{UID_TAG}` = '{_checked(uid)}'"
        found = self._do(lambda: self._connected().search_logged_models([experiment_id], filter_string=query))
        return [str(model.model_id) for model in found]

    def create_model(self, experiment_id: str, run_id: str, record: Mapping[str, Any]) -> str:
        """Make the LoggedModel that a record is about, and return its id."""
        made = self._do(
            lambda: self._connected().create_logged_model(
                experiment_id,
                name=record["name"],
                source_run_id=run_id,
                tags={**record.get("tags", {}), UID_TAG: record["uid"]},
                params=record.get("params") or None,
                model_type=record.get("model_type"),
            )
        )
        return str(made.model_id)

    def delete_model(self, model_id: str) -> None:
        """Delete a LoggedModel: a twin that a lost answer made."""
        self._do(lambda: self._connected().delete_logged_model(model_id))

    def disown_model(self, model_id: str, ours: str) -> None:
        """Mark a twin that may not be deleted, and end it."""
        self._do(lambda: self._connected().set_logged_model_tags(model_id, {TWIN_TAG: ours}))
        self._do(lambda: self._connected().finalize_logged_model(model_id, "FAILED"))

    def fill_model(self, model_id: str, run_id: str, folder: Path | None, step: int) -> None:
        """Upload a staged model, declare it ready and link it to its run.

        Without a folder only the facts about the model are kept, not the model.
        """

        def send() -> None:
            client = self._connected()
            if folder is not None:
                about = _model_file(folder)
                about.model_id, about.run_id = model_id, run_id
                about.artifact_path = client.get_logged_model(model_id).artifact_location
                # In one step: a courier that is killed in the middle of it must not leave half a file.
                about.save(str(folder.parent / f"{folder.name}.MLmodel"))
                os.replace(folder.parent / f"{folder.name}.MLmodel", folder / "MLmodel")
                client.log_model_artifacts(model_id, str(folder))
            client.finalize_logged_model(model_id, "READY")
            self._link(client, model_id, run_id, step)

        self._do(send)

    def take_model(self, model_id: str, run_id: str) -> None:
        """Link a model to one more run; again changes nothing."""
        self._do(lambda: self._link(self._connected(), model_id, run_id, 0))

    @staticmethod
    def _link(client: MlflowClient, model_id: str, run_id: str, step: int) -> None:
        from mlflow.entities import LoggedModelOutput

        try:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=step)])
        except Exception:
            # A link that is there already is refused: it was made, and the answer got lost.
            outputs = client.get_run(run_id).outputs
            if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
                raise

    def log_evaluation(self, run_id: str, model_id: str, record: Mapping[str, Any]) -> None:
        """Store metrics of a model, whichever run logged it, and link it to this run; again changes nothing.

        The run has the same metrics: MLflow keeps those of models in a table of their own.
        """

        def send() -> None:
            from mlflow.entities import LoggedModelInput, Metric

            client = self._connected()
            client.get_logged_model(
                model_id
            )  # of one that is not there, log_batch says no more than IntegrityError
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
            dataset = record.get("dataset") or {}
            metrics = [
                Metric(
                    key,
                    value,
                    int(record["timestamp_ms"]),
                    int(record["step"]),
                    model_id=model_id,
                    dataset_name=dataset.get("name"),
                    dataset_digest=dataset.get("digest"),
                )
                for key, value in record["metrics"].items()
            ]
            for piece in chunks(metrics, METRICS_PER_REQUEST):
                client.log_batch(run_id, metrics=piece)

        self._do(send)

    def drop_models(self, experiment_id: str, of: str, keeper: str, until_ms: int) -> None:
        """Delete the models that children of a run kept up to a time, but for one child's.

        Registered ones stay. MLflow keeps the files until ``mlflow gc``.

        Args:
            experiment_id: Their experiment.
            of: Our name of the parent.
            keeper: Our name of the child whose models stay.
            until_ms: Models of children that ended later stay, too.
        """

        def send() -> None:
            client = self._connected()
            for model in client.search_logged_models(
                [experiment_id], filter_string=f"tags.`{KEEPER_OF_TAG}` = '{_checked(of)}'"
            ):
                tags = model.tags
                is_older = int(tags.get(KEPT_MS_TAG, 0)) <= until_ms
                if is_older and tags.get(KEEPER_TAG) != keeper and not tags.get("mlflow.modelVersions"):
                    client.delete_logged_model(model.model_id)

        self._do(send)

    def ensure_registered_model(self, name: str) -> None:
        """Make a registered model, unless it exists."""
        self._do(lambda: registry.ensure_registered_model(self._connected(), name))

    def find_versions(self, name: str, uid: str) -> list[int]:
        """Return the versions of a registered model that carry our uid, oldest first."""

        def find() -> list[int]:
            query = f"name = {registry.quoted(name)} AND tags.`{UID_TAG}` = '{_checked(uid)}'"
            return sorted(int(found.version) for found in self._connected().search_model_versions(query))

        return self._do(find)

    def create_version(self, model_id: str, run_id: str, record: Mapping[str, Any]) -> int:
        """Register a LoggedModel as the record says, and return its version."""

        def make() -> int:
            client = self._connected()
            with self._models_uri_resolvable():
                made = client.create_model_version(
                    record["name"],
                    source=self._model_source(client, model_id),
                    run_id=run_id,
                    tags={**record.get("tags", {}), UID_TAG: record["uid"]},
                    description=record.get("description"),
                    model_id=model_id,
                    await_creation_for=0,
                )
            return int(made.version)

        return self._do(make)

    def mark_version(self, record: Mapping[str, Any], version: int, model_id: str) -> None:
        """Let aliases point to the version that a record made, its stage be known, and its model tell of it."""
        self._do(
            lambda: registry.mark_version(
                self._connected(),
                record["name"],
                version,
                model_id,
                aliases=record.get("aliases", ()),
                stage=record.get("stage", registry.NO_STAGE),
                is_http=self.destination.is_http,
            )
        )

    def delete_version(self, name: str, version: int) -> None:
        """Delete a version: a twin that a lost answer made."""
        self._do(lambda: self._connected().delete_model_version(name, str(version)))

    def disown_version(self, name: str, version: int, ours: int) -> None:
        """Mark a twin that may not be deleted."""
        self._do(lambda: self._connected().set_model_version_tag(name, str(version), TWIN_TAG, str(ours)))

    def _model_source(self, client: MlflowClient, model_id: str) -> str:
        if self._owns_process:
            return f"models:/{model_id}"
        return registry.version_source(client, model_id, self.destination.registry_uri)

    @contextmanager
    def _models_uri_resolvable(self) -> Iterator[None]:
        if not self._owns_process:
            yield
            return
        import mlflow

        with _GLOBAL_URI:
            mlflow.set_tracking_uri(with_credentials(self.destination.tracking_uri))
            yield

    # --- connection ------------------------------------------------------------------------------

    @staticmethod
    def load() -> None:
        """Import MLflow whole, before any part of it.

        An import of ``mlflow.entities`` holds that name while it waits for ``mlflow``, which in another thread waits
        for ``mlflow.entities``: Python breaks the deadlock, and leaves half a package for the rest of the process.
        """
        import mlflow  # noqa: F401

    @property
    def is_connected(self) -> bool:
        """Whether MLflow is imported and the store is there; of a server nothing was asked yet."""
        return self._client is not None

    def _connected(self, root: str | None = None) -> MlflowClient:
        if self._client is None:
            self._check_credentials()
            from mlpipeline.tracking.rest import client_of

            if not self._owns_process:
                _hush_our_threads()
            self._make_store(root)
            where = self.destination
            uris = with_credentials(where.tracking_uri), with_credentials(where.registry_uri)
            client = client_of(*uris, timeout_s=self._timeout_s, delay=self.delay)
            self._rows = PointRows.of(client) if where.is_sqlite else None
            self._client = client
        return self._client

    def _check_credentials(self) -> None:
        """Show nobody else's server what this process has for its own: a journal may name any."""
        where = self.destination
        if where.user or self._is_for_anybody:
            return
        uris = where.tracking_uri, where.registry_uri
        if not credentials.is_meant_for(*uris):
            raise Unavailable(
                f"recorded for {public_uri(where.tracking_uri)} without credentials, and those here "
                f"({credentials.user_for(*uris)!r}) are not known to be for it: set MLFLOW_TRACKING_URI to it, take the "
                "credentials out of the environment, or send all under this name: mlpipeline sync --any-user",
                is_denied=True,
            )

    def _make_store(self, root: str | None) -> None:
        # Whoever makes an empty database fixes where its experiment 0 keeps artifacts. MlflowClient
        # would take this process's working directory; it must be the trainer's. MLflow itself
        # holds a file lock while it makes the tables (store/db/utils.py).
        if not self.destination.is_http and root is not None and "://" in self.destination.tracking_uri:
            self._sql_store(root)

    def _create_experiment(self, name: str, location: str | None, root: str | None) -> str:
        client = self._connected(root)
        if location is None and root is not None and not self.destination.is_http:
            store = self._sql_store(root)
            if store is not None:
                from mlflow.entities import ExperimentTag

                return str(store.create_experiment(name, None, [ExperimentTag(*_KIND)]))
        return str(client.create_experiment(name, artifact_location=location, tags=dict([_KIND])))

    def _sql_store(self, root: str) -> Any:
        from mlflow.store.db.db_types import DATABASE_ENGINES

        if urlsplit(self.destination.tracking_uri).scheme.split("+")[0] not in DATABASE_ENGINES:
            return None
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(with_credentials(self.destination.tracking_uri), root)  # type: ignore[no-untyped-call]  # MLflow's own

    def _do(self, call: Callable[[], _T]) -> _T:
        try:
            result = call()
        except (Unavailable, Refused):
            raise
        except Exception as error:
            raise judged(error) from error
        self.answered += 1
        return result


_GLOBAL_URI = threading.RLock()


def _after_fork_in_child() -> None:
    # A courier thread of the parent may have been inside.
    global _GLOBAL_URI  # noqa: PLW0603
    _GLOBAL_URI = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _model_file(folder: Path) -> Any:
    """Return what the MLmodel file in a staged model says.

    Raises:
        Refused: It is no YAML, and never will be.
    """
    import yaml
    from mlflow.models import Model

    try:
        return Model.load(str(folder))
    except yaml.YAMLError as error:
        raise Refused(f"its MLmodel file is no YAML: {words(error)}") from error


def _checked(text: str) -> str:
    if "'" in text or "`" in text:
        raise Refused(f"the name {text!r} holds a quote")
    return text


def chunks(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield *items* in lists of at most *size*."""
    piece: list[_T] = []
    for item in items:
        piece.append(item)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


class _NotOurThreads(logging.Filter):
    """Drops what MLflow logs in the threads of a courier that lives in a user's process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep everything that is not from our threads."""
        return not str(record.threadName).startswith("mlpipeline-")


_ours = _NotOurThreads()


def _hush_our_threads() -> None:
    # MLflow's handlers, not its loggers: a logger's filter does not see its children's records.
    for name in ("mlflow", "alembic"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_ours)  # adding it again changes nothing


def quiet_mlflow() -> None:
    """Keep MLflow's telemetry, prints and URL lines out of a courier process.

    Only for a process of our own: it changes its environment.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    # Ours are jittered, capped and stop at once; MLflow's hold a thread for minutes.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # MLflow configures its loggers when it is imported, so a level set now would not last.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
