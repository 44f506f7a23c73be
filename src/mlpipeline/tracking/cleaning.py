"""Making room in a store without losing anything.

::

    plan ────► runs that may go, and why the others stay
                 │ young, RUNNING, on its way, tagged, among the best, registered: stays
                 │ what stays takes its parents and its children with it
                 ▼
    clean ───► archive (written, synced, read back) ─► models deleted ─► run deleted [─► purged]

A run is deleted only while an archive of it, as it is now, is on the disk. So a clean that was
interrupted is simply run again: what it archived is recognised, what it deleted is gone. Deleted
is MLflow's own word: ``mlflow gc`` frees the space, and until then a run can be restored there.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import archive, names
from mlpipeline.tracking.directions import is_greater_better
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.sink import UID_TAG, MlflowSink
from mlpipeline.tracking.storage import Content, RunSize, Store, local_folder, model_id_of, untracked
from mlpipeline.tracking.verdicts import Refused, Unavailable, judged

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from mlflow.entities import Run

    from mlpipeline.tracking.destination import Destination
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.storage import Track

KEEP_TAG = "mlpipeline.keep"
"""A run with this tag is not cleaned, unless the tag's value is ``false``."""

_ENDED = frozenset({"FINISHED", "FAILED", "KILLED"})


# --- what may go ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The runs of each experiment that are best by a metric.

    Attributes:
        count: How many.
        metric: The metric's name, as it was logged.
        direction: Whether the largest or the smallest value is the best.
    """

    count: int
    metric: str
    direction: Literal["max", "min"]

    @classmethod
    def parse(cls, text: str) -> Best:
        """Read ``10:val_f1``, ``10:val_loss:min``; a direction that is not given is the metric's, by its name.

        Raises:
            UsageError: It is neither, or the metric's name does not tell the direction.
        """
        number, _, rest = text.partition(":")
        metric, _, direction = rest.rpartition(":")
        if direction not in {"min", "max"} or not metric:
            metric, direction = rest, ""
        if not number.isdigit() or int(number) < 1 or not metric:
            raise UsageError(f"keep-best {text!r} cannot be read: write 10:val_f1, or 10:val_loss:min")
        if not direction:
            is_greater = is_greater_better(metric)
            if is_greater is None:
                raise UsageError(
                    f"keep-best {text!r} does not say whether more of it is better: write {text}:max or {text}:min"
                )
            direction = "max" if is_greater else "min"
        return cls(int(number), metric, "min" if direction == "min" else "max")


@dataclass(frozen=True)
class Rules:
    """Which runs may go.

    Attributes:
        older_than_s: Those that ended so long ago.
        keep_best: But not these.
        protects_registered: Nor those whose models are registered.
    """

    older_than_s: float
    keep_best: tuple[Best, ...] = ()
    protects_registered: bool = True


@dataclass(frozen=True)
class Plan:
    """What a clean would do.

    Attributes:
        runs: What goes, in this order: children before their parents.
        models: Per run, the ids of its models that go with it.
        parents: Per run, its parent, where that goes too.
        kept: Why each other run stays, by its id.
    """

    runs: tuple[RunSize, ...]
    models: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, str]
    kept: Mapping[str, str]

    @property
    def total_bytes(self) -> int:
        """What the files take that go."""
        return sum(run.total_bytes for run in self.runs)


def plan(
    destination: Destination,
    home: Home,
    rules: Rules,
    experiment_names: Sequence[str] = (),
    *,
    now_s: float | None = None,
    track: Track = untracked,
) -> Plan:
    """Find the runs that may go. Nothing is changed.

    A run may go when it ended long enough ago and nothing below holds it. A run that stays for a
    reason of its own keeps all below it, and all above it: a study goes whole or, where only some of its
    trials are worth keeping, stays with these. In an experiment where no run has a metric of `keep_best`
    nothing can be ranked, and all stays.

    Args:
        destination: The store.
        home: The journal home, whose runs are still on their way.
        rules: Which.
        experiment_names: Only in these; empty means all that are active.
        now_s: The time, in seconds since 1970; None is now.
        track: Shows progress.

    Raises:
        UsageError: There is no such experiment, or no run at all has a metric of `keep_best`.
        Unavailable: The store does not answer.
    """
    store = Store(destination)
    content = Content.of(store, experiment_names, with_deleted=False)
    runs = {run.info.run_id: run for run in content.runs}
    registered = {model_id for version in content.versions if (model_id := content.model_of(version))}
    own = _own_reasons(content, home, rules, registered, time.time() if now_s is None else now_s)
    parents = {id_: str(run.data.tags.get("mlflow.parentRunId")) for id_, run in runs.items()}
    parent_of = {id_: parent for id_, parent in parents.items() if parent in runs and parent != id_}
    kept = dict(own)
    for id_ in runs:
        above = list(_line(id_, parent_of))
        holder = next((one for one in above if one in own), None)
        if holder is not None:
            kept.setdefault(id_, f"its parent {holder} stays: {own[holder]}")
        if id_ in own:
            for one in above:
                kept.setdefault(one, f"its child {id_} stays: {own[id_]}")
    going = [run for id_, run in runs.items() if id_ not in kept]
    # A model that a run which stays has taken over, or that is registered, is not its maker's alone.
    held = registered | {
        output.model_id
        for id_ in kept
        if (outputs := runs[id_].outputs) is not None
        for output in outputs.model_outputs
    }
    models: dict[str, list[str]] = defaultdict(list)
    for model in content.models:
        if model.model_id not in held and model.source_run_id:
            models[model.source_run_id].append(model.model_id)
    uris = [run.info.artifact_uri for run in going]
    ids = {run.info.run_id for run in going}
    content.models = [
        model for model in content.models if model.source_run_id in ids and model.model_id not in held
    ]
    size_of = store.sizes([*uris, *(model.artifact_location for model in content.models)], track)
    depth = {id_: len(list(_line(id_, parent_of))) for id_ in ids}
    going.sort(key=lambda run: (-depth[run.info.run_id], run.info.end_time or 0, run.info.run_id))
    return Plan(
        tuple(content.size(run, size_of) for run in going),
        {id_: tuple(models[id_]) for id_ in ids},
        {id_: parent for id_, parent in parent_of.items() if id_ in ids and parent in ids},
        kept,
    )


def _own_reasons(
    content: Content, home: Home, rules: Rules, registered: set[str], now_s: float
) -> dict[str, str]:
    """Return why runs stay, whatever becomes of their parents and children."""
    found: dict[str, str] = {}
    on_their_way = _on_their_way(home)
    makers = {model.source_run_id for model in content.models if model.model_id in registered}
    makers |= {version.run_id for version in content.versions}
    # Of a version without a logged model the files are the run's own: never without them.
    carriers = {version.run_id for version in content.versions if content.model_of(version) is None}
    best = _best(content.runs, rules.keep_best)
    for run in content.runs:
        info, tags = run.info, run.data.tags
        ended_ms = info.end_time or info.start_time or 0
        if info.status not in _ENDED:
            reason = f"it is {info.status}"
        elif {info.run_id, tags.get(UID_TAG)} & on_their_way:
            reason = "its records are on their way: mlpipeline sync"
        elif tags.get(KEEP_TAG, "false").lower() != "false":
            reason = f"it has the tag {KEEP_TAG}"
        elif info.run_id in carriers or (rules.protects_registered and info.run_id in makers):
            reason = "its model is registered"
        elif ended_ms > (now_s - rules.older_than_s) * 1000:
            reason = "it is younger"
        elif info.run_id in best:
            reason = best[info.run_id]
        else:
            continue
        found[info.run_id] = reason
    return found


def _best(runs: Iterable[Run], wanted: Sequence[Best]) -> dict[str, str]:
    by_experiment: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_experiment[run.info.experiment_id].append(run)
    found: dict[str, str] = {}
    for rule in wanted:
        key, is_known = names.metric_key(rule.metric), False
        for experiment_runs in by_experiment.values():
            ranked = sorted(
                (run for run in experiment_runs if not math.isnan(run.data.metrics.get(key, math.nan))),
                key=lambda run: (run.data.metrics[key], -(run.info.end_time or 0), run.info.run_id),
                reverse=rule.direction == "max",
            )
            is_known |= bool(ranked)
            for run in ranked[: rule.count] if ranked else experiment_runs:
                why = f"among the best {rule.count}" if ranked else "its experiment cannot be ranked"
                found.setdefault(run.info.run_id, f"{why} by {rule.metric}")
        if by_experiment and not is_known:
            raise UsageError(
                f"no run has the metric {rule.metric!r} of keep-best; see its spelling, or leave keep-best out"
            )
    return found


def _on_their_way(home: Home) -> set[str | None]:
    """Return the ids, MLflow's and ours, of the runs that a home has not delivered yet."""
    found: set[str | None] = set()
    for folder in home.runs():
        state = home.state(folder.uid)
        found |= {folder.uid, state.run_id if state else None}
        for writer in folder.writers():
            reader = JournalReader(folder, writer)
            try:
                reader.look()
            except JournalTooNewError:
                continue
            found.add((reader.header or {}).get("run_id"))
    return found - {None}


def _line(run_id: str, parent_of: Mapping[str, str]) -> Iterator[str]:
    """Yield the parent, its parent, and so on."""
    seen = {run_id}
    while (above := parent_of.get(run_id)) is not None and above not in seen:
        seen.add(above)
        yield above
        run_id = above


# --- and goes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a clean.

    Attributes:
        run_id: MLflow's id.
        state: ``deleted``; ``purged``, for good; or ``failed``, and then it is still there.
        archive: The file that holds it; None where it could not be written.
        detail: Why it failed.
    """

    run_id: str
    state: Literal["deleted", "purged", "failed"]
    archive: str | None = None
    detail: str | None = None


def clean(
    destination: Destination, wanted: Plan, folder: Path, *, purges: bool = False, track: Track = untracked
) -> Iterator[Outcome]:
    """Archive and delete the runs of a plan, one after the other.

    What happened since the plan was made counts: a run that goes on, or that changed while it was
    archived, stays. A run that fails stays with its parents; the others go on.

    Args:
        destination: The store.
        wanted: What goes.
        folder: Where the archives are kept.
        purges: Also delete the runs, their models and their files for good; those, too, that an
            earlier clean deleted and whose archive in *folder* is whole.
        track: Shows progress.

    Raises:
        UsageError: *purges*, and the store is behind a server, or cannot do it.
        Unavailable: The store does not answer.
    """
    if purges:
        check_purge(destination)
    store, sink = Store(destination), MlflowSink(destination)
    stuck: set[str] = set()
    for run in track(wanted.runs, "cleaning"):
        id_ = run.run_id
        if id_ in stuck:
            yield Outcome(id_, "failed", None, "a child of it is still there")
            stuck |= {wanted.parents[id_]} if id_ in wanted.parents else set()
            continue
        saved: archive.Archive | None = None
        try:
            saved = _archived(store, id_, wanted.models[id_], folder)
            for model_id in wanted.models[id_]:
                sink.delete_model(model_id)
            sink.delete_run(id_)
            if purges:
                _purge(sink, saved)
        except (Unavailable, Refused, OSError, archive.ArchiveError) as error:
            stuck |= {wanted.parents[id_]} if id_ in wanted.parents else set()
            yield Outcome(id_, "failed", str(saved.path) if saved else None, str(error))
        else:
            yield Outcome(id_, "purged" if purges else "deleted", str(saved.path))
    if purges:
        yield from _purge_earlier(store, sink, folder)


def check_purge(destination: Destination) -> None:
    """See that runs of a store can be deleted for good from here.

    Raises:
        UsageError: They cannot.
    """
    if destination.is_http or "://" not in destination.tracking_uri:
        raise UsageError(
            f"{public_uri(destination.tracking_uri)} is a server's: clean without purge here, then free the space "
            "on its machine: mlflow gc --backend-store-uri <its database>"
        )


def _archived(store: Store, run_id: str, model_ids: Sequence[str], folder: Path) -> archive.Archive:
    """Return a whole archive of a run as it is now.

    Raises:
        Unavailable: The run is not as it was planned, changed meanwhile, or cannot be read.
        archive.ArchiveError: The archive cannot be read back.
        OSError: It cannot be written.
    """
    try:
        record, places = _record(store, run_id, model_ids)
        if record["info"]["status"] not in _ENDED or record["info"]["lifecycle_stage"] != "active":
            raise Unavailable("it has gone on since, or was deleted")
        mine = f"run_id = '{run_id}'"
        if {model_id_of(version) for version in store.pages(store.client.search_model_versions, mine)} & set(
            model_ids
        ):
            raise Unavailable("a model of it was registered since")
        _see_that_files_are_here(store.destination, places)
        files = {
            f"{place}/{name}": size
            for place, uri in places.items()
            for name, size in store.files(uri).items()
        }
        for found in archive.archives(folder, run_id):
            if _essence(found.run) == _essence(record) and files.items() <= found.files.items():
                return found
        with archive.scratch(folder) as scratch:
            local = {}
            for number, (place, uri) in enumerate(places.items()):
                (scratch / str(number)).mkdir()
                local[place] = store.fetched(uri, scratch / str(number))
            saved = archive.write(
                folder, run_id, {**record, "archived_ms": time.time_ns() // 1_000_000}, local
            )
        again, _ = _record(store, run_id, model_ids)
    except (Unavailable, OSError, archive.ArchiveError):
        raise
    except Exception as error:
        raise judged(error) from error
    if again != record or files != saved.files:
        saved.path.unlink()  # ours, made a moment ago
        raise Unavailable("it changed while it was archived")
    return saved


def _see_that_files_are_here(destination: Destination, places: Mapping[str, str]) -> None:
    for uri in places.values():
        folder = local_folder(uri)
        if destination.is_http and not destination.is_here and folder is not None and not folder.exists():
            raise Unavailable(f"its files are in {uri} of the server's machine: clean there")


def _essence(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in an archive and in the store; models may be deleted already."""
    return {key: record.get(key) for key in ("info", "params", "tags", "metrics", "inputs", "outputs")}


def _record(store: Store, run_id: str, model_ids: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what run.json is to hold, and the artifact URIs of the run by their place in the archive."""
    client = store.client
    run = client.get_run(run_id)
    models = [client.get_logged_model(model_id) for model_id in model_ids]
    inputs, outputs = run.inputs, run.outputs
    record = {
        "tracking_uri": public_uri(store.destination.tracking_uri),
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "info": dict(run.info),
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "metrics": {
            key: [
                [point.step, point.timestamp, archive.plain(point.value)]
                for point in sorted(
                    client.get_metric_history(run_id, key),
                    key=lambda point: (point.step, point.timestamp, str(point.value)),
                )
            ]
            for key in sorted(run.data.metrics)
        },
        "inputs": {
            "datasets": [
                {**dict(one.dataset), "tags": {tag.key: tag.value for tag in one.tags}}
                for one in sorted(
                    inputs.dataset_inputs if inputs else (),
                    key=lambda one: (one.dataset.name, one.dataset.digest),
                )
            ],
            "models": [one.model_id for one in (getattr(inputs, "model_inputs", None) or ())],
        },
        "outputs": [
            {"model_id": one.model_id, "step": one.step}
            for one in sorted(outputs.model_outputs if outputs else (), key=lambda one: one.model_id)
        ],
        "models": [
            {
                "model_id": model.model_id,
                "name": model.name,
                "model_type": model.model_type,
                "status": str(model.status),
                "artifact_location": model.artifact_location,
                "created_ms": model.creation_timestamp,
                "params": dict(model.params),
                "tags": dict(model.tags),
                "metrics": sorted(
                    [point.key, point.step, point.timestamp, archive.plain(point.value)]
                    for point in model.metrics or ()
                ),
            }
            for model in models
        ],
    }
    places = {"artifacts": str(run.info.artifact_uri)}
    places |= {f"models/{model.model_id}": str(model.artifact_location) for model in models}
    return record, places


def _purge(sink: MlflowSink, saved: archive.Archive) -> None:
    for model in saved.run["models"]:
        sink.purge_model(model["model_id"], model["artifact_location"])
    sink.purge_run(saved.run["info"]["run_id"], saved.run["info"]["artifact_uri"])


def _purge_earlier(store: Store, sink: MlflowSink, folder: Path) -> Iterator[Outcome]:
    """Purge what an earlier clean deleted: deleted runs with a whole archive."""
    from mlflow.entities import ViewType

    client = store.client
    ids = [one.experiment_id for one in store.pages(client.search_experiments)]
    needed = {version.run_id for version in store.pages(client.search_model_versions)}
    for run in list(store.pages(client.search_runs, ids, run_view_type=ViewType.DELETED_ONLY)):
        id_ = run.info.run_id
        saved = next(archive.archives(folder, id_), None)
        if saved is None or id_ in needed:
            continue
        try:
            _purge(sink, saved)
        except (Unavailable, Refused) as error:
            yield Outcome(id_, "failed", str(saved.path), str(error))
        else:
            yield Outcome(id_, "purged", str(saved.path))
