"""Whether a version is better than the one that holds an alias, and who held it when.

::

    values as recorded ─ both on the same data? ─┐
                                                 ├─► judged ─► Verdict
    values scored here, on data= ────────────────┘
    Verdict, moves by hand ─► AuditEntry ─► a tag of the version ─► history, previous_holder

An alias has no memory in MLflow. Each of its moves, and each promotion that was refused, is one tag of the
version it is about, so that no two writers share a tag and none is lost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

AUDIT_TAG = "mlpipeline.promotion"
"""The key of an audit entry's tag, before the time in ms and what tells it from others of that moment."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a promotion.

    Attributes:
        promoted: The version holds the alias now.
        metric: What was compared; None where nothing was.
        challenger: The version's value; None where there was nothing to compare with and none is known.
        champion: The value of the version that held the alias; None where nobody did.
        delta: By how much the challenger is better; negative where it is worse.
        min_delta: More than this was asked for.
        champion_version: Who held the alias before; None for nobody.
        reason: The verdict in words.
        name: The registered model.
        version: The challenger.
        alias: The alias.
    """

    promoted: bool
    metric: str | None = None
    challenger: float | None = None
    champion: float | None = None
    delta: float | None = None
    min_delta: float = 0.0
    champion_version: int | None = None
    reason: str = ""
    name: str = ""
    version: int = 0
    alias: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One move of an alias, or one promotion that was refused, as it stands in a tag of the version.

    Attributes:
        action: ``promote``, ``alias`` for a move by hand, or ``rollback``.
        alias: The alias.
        version: The version that this is about.
        from_version: Who held the alias before; None for nobody.
        is_moved: Whether the alias went to the version.
        metric: What was compared; None where nothing was.
        challenger: The version's value.
        champion: The other's value.
        min_delta: More than this was asked for.
        dataset: Digest of the data that both were scored on; None for values as recorded.
        at_ms: When, in milliseconds since the epoch.
        by: Who ordered it.
    """

    action: str
    alias: str
    version: int
    from_version: int | None
    is_moved: bool
    metric: str | None = None
    challenger: float | None = None
    champion: float | None = None
    min_delta: float = 0.0
    dataset: str | None = None
    at_ms: int = 0
    by: str = ""

    def tag(self) -> tuple[str, str]:
        """Return it as key and value of a tag."""
        content = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        # Of two moves in one millisecond neither may take the other's place.
        return f"{AUDIT_TAG}.{self.at_ms}.{uuid4().hex[:8]}", json.dumps(content)


def audit_of(tags: Mapping[str, str]) -> tuple[AuditEntry, ...]:
    """Return the entries in a version's tags, newest first; what cannot be read is left out."""
    fields = {field.name for field in dataclasses.fields(AuditEntry)}
    found: list[AuditEntry] = []
    for key, value in tags.items():
        if not key.startswith(f"{AUDIT_TAG}."):
            continue
        try:
            content = json.loads(value)
            known = {"from_version": None, **{name: content[name] for name in fields & content.keys()}}
            found.append(AuditEntry(**known))
        except (ValueError, TypeError, AttributeError):
            continue
    return tuple(sorted(found, key=lambda entry: -entry.at_ms))


def previous_holder(
    entries: Iterable[AuditEntry], alias: str, current: int, existing: Collection[int]
) -> int | None:
    """Return who held an alias before the current holder got it, so that going back twice goes two back.

    Args:
        entries: Of all versions.
        alias: The alias.
        current: Who holds it now.
        existing: The versions that are still there.
    """
    holders: list[int] = []
    for entry in sorted(entries, key=lambda entry: entry.at_ms):
        if entry.alias != alias or not entry.is_moved:
            continue
        if entry.from_version is not None and entry.from_version not in holders[-1:]:
            holders.append(entry.from_version)  # it got there without a word here: at the end of a training
        if entry.action == "rollback" and entry.version in holders:
            del holders[len(holders) - holders[::-1].index(entry.version) :]
        else:
            holders.append(entry.version)
    if current not in holders[-1:]:
        holders.append(current)
    return next((found for found in holders[-2::-1] if found != current and found in existing), None)


def judged(
    metric: str,
    challenger: float,
    champion: float,
    *,
    min_delta: float,
    is_greater_better: bool,
    champion_version: int,
    alias: str,
) -> Verdict:
    """Return whether the challenger is better by more than *min_delta*, with the reason in words."""
    delta = challenger - champion if is_greater_better else champion - challenger
    is_better = delta > min_delta
    values = f"{metric} {challenger:.6g}, that of the {alias} (version {champion_version}) {champion:.6g}"
    if math.isnan(delta):
        said = "cannot be compared"
    elif is_better:
        said = f"better by {delta:.6g}"
    elif delta == 0:
        said = "no better"
    elif delta < 0:
        said = f"worse by {-delta:.6g}"
    else:
        said = f"better by {delta:.6g} only, and more than {min_delta:g} was asked for"
    return Verdict(
        promoted=is_better,
        metric=metric,
        challenger=challenger,
        champion=champion,
        delta=delta,
        min_delta=min_delta,
        champion_version=champion_version,
        reason=f"{said}: {values}",
        alias=alias,
    )


class Recorded:
    """Values of a metric as MLflow has them of two versions.

    Args:
        metric: Its name as it was logged.
        look_up: Gives the ``mlflow.entities.Run`` and the LoggedModel of a version, None for what is gone.

    Attributes:
        digest: What identifies the data that both were compared on; None where that is not known.
    """

    def __init__(self, metric: str, look_up: Callable[[Any], tuple[Any, Any]]) -> None:
        self.digest: str | None = None
        self._metric = metric
        self._look_up = look_up

    def alone(self, version: Any) -> float | None:
        """Return a version's value; None where none is recorded."""
        return next(reversed(self._values(version).values()), None)

    def both(self, challenger: Any, champion: Any) -> tuple[float, float]:
        """Return both values, which were recorded on the same data.

        Raises:
            UsageError: One is missing, or they were not.
        """
        name, advice = challenger.name, "score both on the same data with dataset="
        found = [(version, self._values(version)) for version in (challenger, champion)]
        for version, values in found:
            if not values:
                raise UsageError(
                    f"no {self._metric} is recorded of version {version.version} of {name!r}; {advice}"
                )
        (_, ours), (_, theirs) = found
        common = [digest for digest in ours if digest in theirs]
        if not common:
            data = [
                f"version {version.version} on {' or '.join(digest or 'unknown data' for digest in values)}"
                for version, values in found
            ]
            raise UsageError(
                f"{self._metric} was not recorded on the same data for both versions of {name!r} "
                f"({', '.join(data)}); {advice}"
            )
        self.digest = common[-1] or None
        return ours[common[-1]], theirs[common[-1]]

    def _values(self, version: Any) -> dict[str, float]:
        """Return a version's values by the digest of the data that they were measured on, the newest last."""
        run, model = self._look_up(version)
        key = names.metric_key(self._metric)
        is_training = self._metric.lower().startswith("train")
        data = _data_of_run(run, is_training=is_training) if run is not None else ""
        found: dict[str, float] = {}
        if run is not None and key in run.data.metrics:
            found[data] = run.data.metrics[key]
        points = [point for point in (model.metrics if model else None) or () if point.key == key]
        for point in sorted(points, key=lambda point: (point.step, point.timestamp)):
            digest = point.dataset_digest or data
            found.pop(digest, None)
            found[digest] = point.value
        return found


class Scored:
    """Values of a metric that models score on given data, here and now.

    Args:
        metric: One that `scoring.scores` takes.
        X: Features.
        y: Targets.
        load: Loads the model of a version.

    Attributes:
        digest: What identifies the data.
    """

    def __init__(self, metric: str, X: Any, y: Any, load: Callable[[Any], Any]) -> None:
        from mlpipeline.sklearn.facts import described

        self.digest: str | None = described(X, y).digest  # as a training has it of the same rows
        self._metric = metric
        self._data = X, y
        self._load = load
        self._known: dict[int, float] = {}

    def alone(self, version: Any) -> float:
        """Return a version's value."""
        from mlpipeline.models.scoring import scores

        number = int(version.version)
        if number not in self._known:
            self._known[number] = scores(self._load(version), *self._data, [self._metric])[self._metric]
        return self._known[number]

    def both(self, challenger: Any, champion: Any) -> tuple[float, float]:
        """Return both values."""
        return self.alone(challenger), self.alone(champion)


def _data_of_run(run: Any, *, is_training: bool) -> str:
    """Return the digests of the datasets that a metric of a run was measured on; ``""`` where none is known."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    by_context: dict[bool, set[str]] = {}
    for item in inputs:
        contexts = [tag.value for tag in item.tags if tag.key == "mlflow.data.context"]
        is_for_training = any(str(context).startswith("train") for context in contexts)
        by_context.setdefault(is_for_training, set()).add(item.dataset.digest)
    chosen = by_context.get(is_training) or by_context.get(not is_training) or set()
    return " ".join(sorted(chosen))


def data_of(dataset: Any, target: str | None) -> tuple[Any, Any]:
    """Return features and target of what a user gives as a dataset.

    Args:
        dataset: A pair (X, y); or a DataFrame, or the path of a ``.csv`` or ``.parquet`` file, with *target*.
        target: The column to predict.

    Raises:
        UsageError: It is none of these, cannot be read, or has no such column.
    """
    accepted = "(X, y), or a DataFrame or a .csv or .parquet file with target="
    if isinstance(dataset, (tuple, list)):
        if len(dataset) != 2:
            raise UsageError(f"dataset= has {len(dataset)} parts; give {accepted}")
        return dataset[0], dataset[1]
    frame = _read(dataset, accepted) if isinstance(dataset, (str, os.PathLike)) else dataset
    if not hasattr(frame, "columns"):
        raise UsageError(f"dataset= is of type {type(dataset).__name__}; give {accepted}")
    if target is None or target not in frame.columns:
        given = "no target=" if target is None else f"target={target!r}"
        shown = ", ".join(map(str, list(frame.columns)[:20]))
        raise UsageError(f"dataset= comes with {given}; name one of its columns: {shown}")
    return frame.drop(columns=[target]), frame[target]


def _read(dataset: str | os.PathLike[str], accepted: str) -> Any:
    import pandas as pd

    path = os.fspath(dataset)
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".pq": pd.read_parquet}
    read = readers.get(os.path.splitext(path)[1].lower())
    if read is None:
        raise UsageError(f"dataset={path!r} is neither .csv nor .parquet; give {accepted}")
    try:
        return read(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"dataset={path!r} cannot be read: {error}") from error
