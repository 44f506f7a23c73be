"""How much a store holds: experiments, runs and model versions, by size."""

from __future__ import annotations

import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlpipeline.core.credentials import public_uri, with_credentials
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import archive
from mlpipeline.tracking.verdicts import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

    from mlpipeline.tracking.destination import Destination

    Track = Callable[[Sequence[Any], str], Iterable[Any]]
    """Goes through items and shows how far it is; as ``rich.progress.track``."""

_PAGE = 1000
_AT_ONCE = 8  # listings of a server's artifacts


def untracked(items: Sequence[Any], text: str) -> Iterable[Any]:  # noqa: ARG001 - rich's signature
    """Go through items and show nothing."""
    return items


@dataclass(frozen=True)
class RunSize:
    """A run and what it takes.

    Attributes:
        run_id: MLflow's id.
        run_name: Its name.
        experiment: Its experiment's name.
        status: MLflow's, or ``deleted`` where it waits for ``mlflow gc``.
        ended_ms: When it ended, else when it began, in ms since 1970; None if unknown.
        artifact_bytes: Its own files.
        model_bytes: Files of the models that it logged.
    """

    run_id: str
    run_name: str
    experiment: str
    status: str
    ended_ms: int | None
    artifact_bytes: int
    model_bytes: int

    @property
    def total_bytes(self) -> int:
        """Its files and its models' files."""
        return self.artifact_bytes + self.model_bytes


@dataclass(frozen=True)
class VersionSize:
    """A version of a registered model and the files it stands for, which are a run's or a logged model's."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    bytes: int


@dataclass(frozen=True)
class ExperimentSize:
    """An experiment and what its runs and models take."""

    experiment_id: str
    name: str
    runs: int
    models: int
    total_bytes: int


@dataclass(frozen=True)
class Report:
    """What a store holds, the largest first. Model versions are no addition: they stand for what is counted above."""

    experiments: tuple[ExperimentSize, ...]
    runs: tuple[RunSize, ...]
    versions: tuple[VersionSize, ...]

    @property
    def total_bytes(self) -> int:
        """All experiments together."""
        return sum(experiment.total_bytes for experiment in self.experiments)


def report(
    destination: Destination, experiment_names: Sequence[str] = (), *, track: Track = untracked
) -> Report:
    """Measure a store.

    Args:
        destination: The store.
        experiment_names: Only these; empty means all that are active.
        track: Shows progress.

    Raises:
        UsageError: There is no such experiment.
        Unavailable: The store does not answer.
    """
    store = Store(destination)
    content = Content.of(store, experiment_names, with_deleted=True)
    size_of = store.sizes(
        [
            *(run.info.artifact_uri for run in content.runs),
            *(model.artifact_location for model in content.models),
        ],
        track,
    )
    runs = [content.size(run, size_of) for run in content.runs]
    taken: dict[str, int] = defaultdict(int)
    for run in content.runs:
        taken[run.info.experiment_id] += size_of[run.info.artifact_uri]
    for model in content.models:
        taken[model.experiment_id] += size_of[model.artifact_location]
    experiments = [
        ExperimentSize(
            id_,
            name,
            sum(run.info.experiment_id == id_ for run in content.runs),
            sum(model.experiment_id == id_ for model in content.models),
            taken[id_],
        )
        for id_, name in content.experiments.items()
    ]
    by_id = {model.model_id: model for model in content.models}
    versions = []
    for version in content.versions:
        model_id = content.model_of(version)
        if model_id in by_id:
            size = size_of[by_id[model_id].artifact_location]
        elif experiment_names:
            continue
        else:
            # A run's own files; those of a model that is deleted cannot be found.
            uri = store.version_uri(version) if model_id is None else ""
            size = store.sizes([uri], untracked)[uri] if uri else 0
        number = int(version.version)
        aliases = content.aliases.get((version.name, number), ())
        versions.append(VersionSize(version.name, number, aliases, version.run_id or None, size))
    return Report(
        tuple(sorted(experiments, key=lambda one: (-one.total_bytes, one.name))),
        tuple(sorted(runs, key=lambda one: (-one.total_bytes, one.run_id))),
        tuple(sorted(versions, key=lambda one: (-one.bytes, one.name, one.version))),
    )


class Store:
    """What is asked of a store, page by page."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.client: MlflowClient = destination.client()

    def pages(
        self, call: Callable[..., Any], *arguments: Any, size: int = _PAGE, **options: Any
    ) -> Iterator[Any]:
        """Yield what every page of a listing has."""
        token = None
        while True:
            page = call(*arguments, max_results=size, page_token=token, **options)
            yield from page
            if not (token := page.token):
                return

    def files(self, uri: str) -> dict[str, int]:
        """Return the size of every file below an artifact URI, by its path there."""
        folder = local_folder(uri)
        if folder is not None:
            return {name: path.stat().st_size for name, path in archive.walk(folder)}
        repository = self.repository(uri)
        found: dict[str, int] = {}
        waiting: list[str | None] = [None]
        while waiting:
            for item in repository.list_artifacts(waiting.pop()):
                if item.is_dir:
                    waiting.append(item.path)
                else:
                    found[item.path] = int(item.file_size or 0)
        return found

    def sizes(self, uris: Sequence[str], track: Track) -> dict[str, int]:
        """Return the bytes below each URI."""
        wanted = list(dict.fromkeys(uris))
        with ThreadPoolExecutor(_AT_ONCE if self.destination.is_http else 1) as pool:
            found = pool.map(lambda uri: sum(self.files(uri).values()), wanted)
            return {uri: size for uri, size in zip(track(wanted, "measuring"), found, strict=True)}  # noqa: C416 - the order of the two matters

    def repository(self, uri: str) -> Any:
        """Return MLflow's access to the files below an artifact URI."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        tracking_uri = with_credentials(self.destination.tracking_uri)
        return get_artifact_repository(uri, tracking_uri=tracking_uri)

    def version_uri(self, version: Any) -> str:
        """Return where the files of a version without a logged model are."""
        return str(self.client.get_model_version_download_uri(version.name, str(version.version)))

    def fetched(self, uri: str, scratch: Path) -> Path:
        """Return a folder of this machine with the files below an artifact URI.

        Raises:
            Unavailable: Not all of them came.
        """
        folder = local_folder(uri)
        if folder is not None:
            return folder
        wanted = self.files(uri)
        if wanted:
            self.repository(uri).download_artifacts("", dst_path=str(scratch))
        came = {name: path.stat().st_size for name, path in archive.walk(scratch)}
        if came != wanted:
            missing = sorted(wanted.items() - came.items())
            raise Unavailable(f"{uri}: {len(missing)} files did not come whole, such as {missing[:1]}")
        return scratch


@dataclass
class Content:
    """Experiments, runs, models and versions of a store, as MLflow lists them."""

    experiments: dict[str, str]
    runs: list[Run]
    models: list[LoggedModel]
    versions: list[Any]
    aliases: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, experiment_names: Sequence[str], *, with_deleted: bool) -> Content:
        """List a store, or some experiments of it.

        Raises:
            UsageError: There is no such experiment.
        """
        from mlflow.entities import ViewType

        client = store.client
        experiments = {one.experiment_id: one.name for one in store.pages(client.search_experiments)}
        if experiment_names:
            unknown = sorted(set(experiment_names) - set(experiments.values()))
            if unknown:
                raise UsageError(
                    f"experiment {unknown[0]!r} is not at {public_uri(store.destination.tracking_uri)}; "
                    f"there are {', '.join(sorted(map(repr, experiments.values()))[:10])}"
                )
            experiments = {id_: name for id_, name in experiments.items() if name in set(experiment_names)}
        ids = list(experiments)
        view = ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY
        aliases: dict[tuple[str, int], list[str]] = defaultdict(list)
        for model in store.pages(client.search_registered_models, size=100):
            for alias, version in model.aliases.items():
                aliases[model.name, int(version)].append(alias)
        return cls(
            experiments,
            list(store.pages(client.search_runs, ids, run_view_type=view)) if ids else [],
            list(store.pages(client.search_logged_models, ids, size=100)) if ids else [],
            list(store.pages(client.search_model_versions)),
            {key: tuple(sorted(found)) for key, found in aliases.items()},
        )

    def model_of(self, version: Any) -> str | None:
        """Return the id of the logged model that a version is made of; None where it is files of a run."""
        if found := model_id_of(version):
            return found
        # A registry in a database may have been given the folder instead.
        source = str(version.source or "")
        return next(
            (one.model_id for one in self.models if source.rstrip("/") == one.artifact_location.rstrip("/")),
            None,
        )

    def size(self, run: Run, size_of: Mapping[str, int]) -> RunSize:
        """Return a run with what it takes; *size_of* has the bytes below each artifact URI."""
        info = run.info
        return RunSize(
            info.run_id,
            info.run_name or "",
            self.experiments[info.experiment_id],
            info.status if info.lifecycle_stage == "active" else "deleted",
            info.end_time or info.start_time,
            size_of.get(info.artifact_uri, 0),
            sum(
                size_of.get(model.artifact_location, 0)
                for model in self.models
                if model.source_run_id == info.run_id
            ),
        )


def model_id_of(version: Any) -> str | None:
    """Return the id of the logged model that a version names; None where it names none."""
    found = re.search(r"\bm-[0-9a-f]{32}\b", f"{version.model_id or ''} {version.source or ''}")
    return found[0] if found else None


def local_folder(uri: str) -> Path | None:
    """Return the folder of this machine that an artifact URI means; None where it means another place."""
    if urlsplit(uri).scheme not in {"", "file"}:
        return None
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]  # MLflow's own
