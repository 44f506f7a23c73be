"""`Run`: the handle on one run that everything records through.

::

    framework hook -> callback -> Run.log_* -> journal      (this process, microseconds, no network)
                                                  └─ courier -> MLflow

No `log_*` call waits, and none raises for what the world does. What the user got wrong raises where
it stands: a metric that is not a number, a file that is not there, a run that has ended.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking import closing, files, names
from mlpipeline.tracking.account import LOCAL_PREFIX, DeliveryCounts, counts_of
from mlpipeline.tracking.children import ChildJournal
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.dispatch import EXIT_PATIENCE_S, PATIENCE_S, Dispatch, dispatch_for
from mlpipeline.tracking.journal import AttachedJournal, JournalWriter, attached_journal
from mlpipeline.tracking.params import flatten_params
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.redaction import masked, masked_uri
from mlpipeline.tracking.run_models import RunModels
from mlpipeline.tracking.sampling import Sampling
from mlpipeline.tracking.spool import Spool, copy_into_spool
from mlpipeline.tracking.trainings import STATUSES, kind_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.home import Home, RunState
    from mlpipeline.tracking.system_metrics import SystemMetrics

logger = logging.getLogger("mlpipeline")

_TICKS_MS = (1_000, 3_000, 10_000)
"""Pauses between looks at the courier: soon after the start, when most goes wrong, then rarely."""

_runs: weakref.WeakSet[Run] = weakref.WeakSet()


_Plan = tuple[
    tuple[str, ...], "list[int] | None", "Callable[[Sequence[float], int | None, int], bool] | None"
]
"""For the names of one call: MLflow's, which of them are kept, None for all, and what appends a row of those."""


class Journal(Protocol):
    """Where a run's records go: a `JournalWriter`, a `ChildJournal`, or memory in a user's unit test."""

    dropped: int

    def open(self) -> bool:
        """Make it ready."""

    def append(self, kind: Kind, content: Mapping[str, Any], *, is_synced: bool = False) -> bool:
        """Keep one record."""

    def append_metrics(
        self, names: tuple[str, ...], values: Sequence[float], step: int | None, timestamp_ms: int
    ) -> bool:
        """Keep one value per name."""

    def drop(self) -> None:
        """Count a record that cannot be kept."""

    def close(self) -> None:
        """Take no more."""


class Run:
    """One MLflow run, recorded in this process and delivered by the courier.

    Made by `mlpipeline.tracking.opening.open_run`, `MLflowTracker.run` or a callback. Safe to use from
    several threads; pickles into other processes, which then add to the same run and never end it.

    Args:
        config: The resolved configuration.
        uid: Our name of the run.
        header: What the courier must know; see `mlpipeline.tracking.opening`.
        journal: Where records go; None records nothing.
        home: The journal home; None where nothing is to be delivered.

    Attributes:
        config: The resolved configuration.
        uid: Our name of the run; in MLflow it is the tag ``mlpipeline.uid``.
        step: The current step, where a callback keeps it; `log_figure` uses it.
    """

    def __init__(
        self,
        config: MLflowConfig,
        uid: str,
        header: Mapping[str, Any],
        *,
        journal: Journal | None,
        home: Home | None,
    ) -> None:
        self.config = config
        self.uid = uid
        self.step: int | None = None
        self._header = dict(header)
        self._journal = journal
        self._home = home
        self._pid = os.getpid()
        self._status: str | None = None
        self._run_id: str | None = self._header.get("run_id")
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._keeps = names.NameFilter(self.config.include, self.config.exclude)
        self._records_metrics = self._journal is not None and self.config.log_metrics
        self._long_params: dict[str, Any] = {}
        self._nonfinite: set[str] = set()
        rate = self.config.log_at_most_per_s
        self._sampling = Sampling(rate) if rate is not None else None
        self._keeper: Run | None = None  # a run above, whose end says whether models here stay
        self._spool = Spool(home, uid, self._append, self._drop)
        is_known_elsewhere = header.get("role") == "attached" or "is_shared" in header
        self._models = RunModels(
            config,
            uid,
            self._spool,
            append=self._append,
            settled=self._settled_state,
            is_known_elsewhere=is_known_elsewhere,
        )
        self._tables: list[dict[str, str]] = []
        self._system_metrics: SystemMetrics | None = None
        self._ending = threading.RLock()  # a finalizer may end it in the middle of an end
        self._is_told = False
        self._told: set[str] = set()
        self._ticks = 0
        self._next_tick_ms = time.time_ns() // 1_000_000 + _TICKS_MS[0]
        _runs.add(self)

    # --- identity --------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The run's name; None until MLflow has chosen one, where none was given."""
        if given := self._header.get("run_name"):
            return str(given)
        state = self._state()
        return state.run_name if state else None

    @property
    def home(self) -> Home | None:
        """The journal home; None where nothing is to be delivered."""
        return self._home

    @property
    def is_enabled(self) -> bool:
        """Whether anything is recorded at all."""
        return self._journal is not None

    @property
    def is_ended(self) -> bool:
        """Whether `end` was called."""
        return self._status is not None

    @property
    def owns_run(self) -> bool:
        """Whether this process opened the run, and so will end it."""
        return self._header.get("role") == "opener" and self._pid == os.getpid()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; a local id while the destination is unreachable; None when disabled.

        The first reading waits for the server's answer as long as the courier makes progress, and
        `connect_timeout_s` seconds longer. What was read once never changes: a local id (``local-…``)
        stays, and every function and command of this package resolves it.
        """
        if self._run_id is None and self._home is not None:
            if not self._is_traceless():
                self._dispatch().wait(
                    lambda: self._known_id() is not None,
                    destination=self._destination_key(),
                    patience_s=self.config.connect_timeout_s,
                )
            self._run_id = self._known_id() or f"{LOCAL_PREFIX}{self.uid}"
            if self._run_id.startswith(LOCAL_PREFIX):
                self._tell_problem()
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None as long as it is not known."""
        state = self._state()
        return state.experiment_id if state else None

    def _is_traceless(self) -> bool:
        """Whether nobody here will ever hear more: from another machine, or an old one, or no disk took it."""
        if self._home is None or isinstance(self._journal, ChildJournal):
            return False
        return not self._home.run(self.uid).path.exists() and self._home.done_state(self.uid) is None

    def _known_id(self) -> str | None:
        state = self._state()
        return state.run_id if state else None

    # --- metrics ---------------------------------------------------------------------------------

    def log_metrics(
        self, metrics: Mapping[str, Any], step: int | None = None, *, timestamp_ms: int | None = None
    ) -> None:
        """Record one value per metric; returns in microseconds and survives ``kill -9``.

        Args:
            metrics: Names to numbers; anything ``float()`` takes, such as one-element tensors. Any
                name is accepted: what MLflow would refuse is escaped, reversibly.
            step: Step of all of them; None counts each name on from its last step, starting at 0.
            timestamp_ms: When they were measured, in ms since 1970; None is now.

        Raises:
            UnloggableError: A value is not a number, or is not finite and ``nonfinite="raise"``.
            UsageError: The run has ended.
        """
        if self._status is not None:
            raise self._ended_error("log_metrics")
        if not self._records_metrics or not metrics:
            return
        keys = tuple(metrics)
        picked, kept, append = self._plans.get(keys) or self._plan(keys)
        try:
            values = [*map(float, metrics.values())]
        except (TypeError, ValueError):
            raise _not_a_number(metrics) from None
        if kept is not None:
            values = [values[index] for index in kept]
        if not (is_finite := math.isfinite(sum(values))):
            (picked, values), append = self._settle_nonfinite(picked, values, step), None
        if not picked:
            return
        if step is not None and type(step) is not int:
            step = int(step)
        # What is not finite is never left out: somebody looks for the first of it.
        if (
            self._sampling is not None
            and is_finite
            and not self._sampling.takes(picked, values, step, timestamp_ms)
        ):
            return
        now_ms = time.time_ns() // 1_000_000
        at_ms = now_ms if timestamp_ms is None else timestamp_ms
        if append is not None:
            append(values, step, at_ms)
        else:
            self._journal.append_metrics(picked, values, step, at_ms)  # type: ignore[union-attr]
        if now_ms >= self._next_tick_ms:
            self._tick(now_ms)

    def log_metric(self, key: str, value: float, step: int | None = None) -> None:
        """Record one value of one metric; see `log_metrics`."""
        self.log_metrics({key: value}, step)

    def row_logger(self, names: tuple[str, ...]) -> Callable[[Sequence[float], int], bool] | None:
        """Return a function that records one value per name at a step: `log_metrics` where the names stay the same.

        It does in fewer steps what `log_metrics` does, which counts where a training's own work has pushed
        everything else out of the processor's cache.

        Args:
            names: The names.

        Returns:
            A function of their values, in that order, and of their step. It says whether it has recorded them;
            where not, they are for `log_metrics`: one is not finite or no number, or the run has ended. None
            where all of them are for it, because some are left out or names are the same.
        """
        journal, (_, kept, append) = self._journal, self._plans.get(names) or self._plan(names)
        is_thinned = kept is not None or self._sampling is not None or not self._records_metrics
        if append is None or is_thinned or len(set(names)) != len(names):
            return None

        def log(values: Sequence[float], step: int) -> bool:
            try:
                total = sum(values)
            except (TypeError, OverflowError):
                return False
            # Of what is not finite, total - total is NaN.
            if type(total) is not float or total - total != 0.0 or self._status is not None:
                return False
            if self._journal is not journal:
                return False
            now_ms = time.time_ns() // 1_000_000
            append(values, step, now_ms)
            if now_ms >= self._next_tick_ms:
                self._tick(now_ms)
            return True

        return log

    def _plan(self, keys: tuple[str, ...]) -> _Plan:
        kept = [index for index, key in enumerate(keys) if self._keeps(str(key))]
        mapped = self._keys([str(keys[index]) for index in kept])
        append = (
            self._journal.row_appender(mapped)
            if mapped and isinstance(self._journal, JournalWriter)
            else None
        )
        plan = self._plans[keys] = (mapped, kept if len(kept) != len(keys) else None, append)
        return plan

    def _keys(self, originals: Sequence[str]) -> tuple[str, ...]:
        """Return the keys under which MLflow holds these names; what was cut for length is tagged."""
        if (cut := names.name_tags(originals)) and self._journal is not None:
            self._append(Kind.TAGS, {"tags": cut})
        return tuple(names.metric_key(name) for name in originals)

    def _settle_nonfinite(
        self, keys: tuple[str, ...], values: list[float], step: int | None
    ) -> tuple[tuple[str, ...], list[float]]:
        policy = self.config.nonfinite
        bad = [key for key, value in zip(keys, values, strict=True) if not math.isfinite(value)]
        if not bad or policy == "keep":
            return keys, values
        new = [key for key in bad if key not in self._nonfinite]
        if new:
            self._nonfinite.update(new)
            at = "" if step is None else f" at step {int(step)}"
            found = dict(zip(keys, values, strict=True))
            self._keep_tags({f"mlpipeline.nonfinite.{key}": f"{found[key]}{at}" for key in new})
        if policy == "raise":
            raise UnloggableError(
                f"metric {names.original_name(bad[0])!r} is {dict(zip(keys, values, strict=True))[bad[0]]}; "
                "nonfinite='raise' asked to stop here ('tag', 'drop' and 'keep' go on)"
            )
        if policy == "drop":
            pairs = [(key, value) for key, value in zip(keys, values, strict=True) if math.isfinite(value)]
            return tuple(key for key, _ in pairs), [value for _, value in pairs]
        return keys, values

    # --- params, tags, datasets ------------------------------------------------------------------

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record hyperparameters of any type; the first value of a name stands.

        Nested mappings become dotted names. A value over MLflow's limit is kept whole in the artifact
        ``params_full.json``, with its hash in the param. A later, different value of a name is kept as
        the tag ``mlpipeline.drift.<name>``; it never raises. Secret-looking values are redacted.

        Raises:
            UsageError: The run has ended.
        """
        self._check_open("log_params")
        if self._journal is None or not self.config.log_params or not params:
            return
        how = self.config.redact
        flat, long = flatten_params(params, mask=lambda name, text: masked({name: text}, how)[name])
        flat = {key: value for key, value in flat.items() if self._keeps(key)}
        if flat:
            keyed = dict(zip(self._keys(list(flat)), flat.values(), strict=True))
            self._append(Kind.PARAMS, {"params": keyed}, is_synced=True)
        if long:
            self._long_params.update(long)
            self._log_file("params_full.json", lambda path: files.write_structure(path, self._long_params))

    def log_param(self, key: str, value: Any) -> None:
        """Record one hyperparameter; see `log_params`."""
        self.log_params({key: value})

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; the newest value of each stands. Secret-looking values are redacted.

        Raises:
            UsageError: The run has ended.
        """
        self._check_open("set_tags")
        if self._journal is not None and tags:
            self._keep_tags(masked({str(key): str(value) for key, value in tags.items()}, self.config.redact))

    def _keep_tags(self, tags: Mapping[str, str]) -> None:
        keys = self._keys(list(tags))
        text = dict(zip(keys, map(names.storable, tags.values()), strict=True))
        self._append(Kind.TAGS, {"tags": text})

    def set_tag(self, key: str, value: Any) -> None:
        """Set one tag; see `set_tags`."""
        self.set_tags({key: value})

    def log_dataset(
        self,
        data: Any = None,
        *,
        name: str = "dataset",
        context: str | None = None,
        source: str | None = None,
        digest: str | None = None,
        schema: Mapping[str, Any] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a dataset as an input of the run.

        Args:
            data: A DataFrame or array, whose content is hashed; None if the rest says it all.
            name: Its name in MLflow.
            context: Its role, such as "training".
            source: Where it comes from: a path or URL.
            digest: Its identity, at most 36 characters; None hashes *data*.
            schema: Its schema in MLflow's JSON form.
            profile: Facts such as the number of rows.
        """
        self._check_open("log_dataset")
        if self._journal is None or not self.config.log_datasets:
            return
        from mlpipeline.tracking import datasets

        found = datasets.describe(data)
        record = {
            "name": name,
            "digest": (digest or found.digest)[:36],
            "context": context,
            "source": json.dumps({"uri": masked_uri(source, self.config.redact)} if source else {}),
            "schema": json.dumps(schema or found.schema) if schema or found.schema else None,
            "profile": json.dumps({**found.profile, **(profile or {})}),
        }
        self._append(Kind.DATASET, record)

    def log_evaluation(
        self,
        metrics: Mapping[str, Any],
        model: str,
        *,
        dataset: tuple[str, str] | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """Record what a logged model scores: metrics of this run, at step 0, which MLflow shows at the model, too.

        Args:
            metrics: Names to numbers, as `log_metrics` takes them. What is not finite is not shown at the model.
            model: The model, whichever run logged it: ``models:/m-…`` or its id; or the local id of the run
                that logged it, whose model logged last is meant.
            dataset: Name and digest of the dataset that it was evaluated on, as `log_dataset` recorded it.
            timestamp_ms: When that was, in ms since 1970; None is now.

        Raises:
            UnloggableError: A value is not a number, or is not finite and ``nonfinite="raise"``.
            UsageError: *model* is something else, or the run has ended.
        """
        self._check_open("log_evaluation")
        about = _evaluated_model(model)
        if not self._records_metrics or not metrics:
            return
        timestamp_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        self.log_metrics(metrics, 0, timestamp_ms=timestamp_ms)
        kept = {name: float(value) for name, value in metrics.items() if self._keeps(name)}
        record = {
            **about,
            "metrics": {
                names.metric_key(name): value for name, value in kept.items() if math.isfinite(value)
            },
            "step": 0,
            "timestamp_ms": timestamp_ms,
            "dataset": dict(zip(("name", "digest"), dataset, strict=True)) if dataset else None,
        }
        self._append(Kind.EVALUATION, record)

    # --- files -----------------------------------------------------------------------------------

    def log_artifact(self, local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Record a file or a folder as it is now: it is copied before this returns.

        Args:
            local_path: The file, or the folder, which keeps its name.
            artifact_path: Folder among the run's artifacts; None is the top.

        Raises:
            UnloggableError: There is no such file.
            UsageError: The run has ended.
        """
        self._check_open("log_artifact")
        if self._journal is None or not self.config.log_artifacts:
            return
        source = Path(local_path)
        if not source.exists():
            raise UnloggableError(f"cannot log {str(source)!r}: there is no such file or folder")
        name = source.resolve().name
        folder, _ = files.artifact_parts(f"{artifact_path}/{name}" if artifact_path else name)
        target = folder
        if source.is_dir():
            target = f"{folder}/{name}" if folder else name
        with self._spool.place(name) as place:
            if place is not None:
                copy_into_spool(source, place)
            self._spool.keep(Kind.ARTIFACT, place, {"file": name, "artifact_path": target})

    def log_artifacts(
        self,
        local: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        artifact_path: str | None = None,
    ) -> None:
        """Record files and folders; see `log_artifact`.

        Args:
            local: One folder, whose content goes to *artifact_path* as in MLflow, or several files and
                folders, which keep their names.
            artifact_path: Folder among the run's artifacts; None is the top.
        """
        if isinstance(local, (str, os.PathLike)):
            folder = Path(local)
            for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
                self.log_artifact(path, artifact_path)
            return
        for item in local:
            self.log_artifact(item, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Record a text as the artifact *artifact_file*."""
        self._check_open("log_text")
        self._log_file(artifact_file, lambda path: path.write_text(text, encoding="utf-8"))

    def log_dict(self, content: Mapping[str, Any] | Sequence[Any], artifact_file: str) -> None:
        """Record a structure as JSON, or as YAML when *artifact_file* ends so."""
        self._check_open("log_dict")
        self._log_file(artifact_file, lambda path: files.write_structure(path, content))

    def log_table(self, data: Any, artifact_file: str) -> None:
        """Record a table (a DataFrame, or a mapping of columns) that MLflow's UI shows as one."""
        self._check_open("log_table")
        self._log_file(artifact_file, lambda path: files.write_table(path, data))
        self._tables.append({"path": artifact_file, "type": "table"})
        self.set_tags({"mlflow.loggedArtifacts": json.dumps(self._tables)})

    def log_figure(self, figure: Any, artifact_file: str, *, step: int | None = None) -> None:
        """Record a matplotlib or plotly figure as it looks now.

        Args:
            figure: The figure.
            artifact_file: Its name, whose ending chooses the format.
            step: Step it belongs to; None is the run's current one. At a step, an image also joins
                the series of that name which MLflow's UI shows along the steps.
        """
        self._check_open("log_figure")
        rendered = b""

        def write(path: Path) -> None:
            nonlocal rendered
            files.write_figure(path, figure)
            rendered = path.read_bytes()

        self._log_file(artifact_file, write)
        step = self.step if step is None else step
        if rendered and step is not None and Path(artifact_file).suffix == ".png":
            # MLflow's pages show the small copy first.
            stem = files.image_series_stem(artifact_file, step)
            self._log_file(f"{stem}.png", lambda path: path.write_bytes(rendered))
            self._log_file(f"{stem}+compressed.webp", lambda path: files.write_thumbnail(path, rendered))
            self.set_tags({"mlflow.loggedImages": "true"})

    def _log_file(self, artifact_file: str, write: Callable[[Path], Any]) -> None:
        """Spool a file that *write* makes, as the artifact of that name."""
        if self._journal is None or not self.config.log_artifacts:
            return
        folder, name = files.artifact_parts(artifact_file)
        with self._spool.place(name) as place:
            if place is not None:
                write(place)
            self._spool.keep(Kind.ARTIFACT, place, {"file": name, "artifact_path": folder})

    # --- models ----------------------------------------------------------------------------------

    def log_model(
        self,
        model: Any,
        name: str = "model",
        *,
        input_example: Any = None,
        signature: Any = "auto",
        step: int | None = None,
        register_as: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        requirements: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a fitted model as an MLflow model; it is written to the spool before this returns.

        The first model of a framework imports that framework's MLflow flavor, which takes seconds.

        Args:
            model: A model of a framework this package knows; it is not changed.
            name: The LoggedModel's name.
            input_example: A few rows of input; the signature is inferred from it.
            signature: An MLflow signature; "auto" infers it from the example, or without one asks the model
                (XGBoost's boosters know), None leaves it out.
            step: Step of the training at which the model stood; None is the run's current one.
            register_as: Name to register it under; None follows the configuration, "" does not register.
            params: Params of the LoggedModel.
            tags: Tags of the LoggedModel.
            requirements: Pip requirements; None pins the framework and what the model uses.
            metadata: Free facts, kept in the MLmodel file.

        Raises:
            UnloggableError: No framework here knows such a model, or MLflow refuses *name*.
            ConfigError: MLflow refuses the name to register under.
            UsageError: The run has ended.
        """
        self._check_open("log_model")
        if self._journal is None or self.config.log_model is False:
            return
        self._models.log(
            model,
            name,
            input_example=input_example,
            signature=signature,
            step=self.step if step is None else step,
            register_as=register_as,
            params=params,
            tags=tags,
            requirements=requirements,
            metadata=metadata,
            decided_by=self._keeper._models if self._keeper is not None else None,  # noqa: SLF001
        )

    @property
    def has_models(self) -> bool:
        """Whether a model was logged here, or in a run whose models this one decides about."""
        return bool(self._models.held)

    def take_models(self, child: Run) -> None:
        """Make the models logged in a child, and in runs under it, models of this run as well.

        The children's models that were kept until now give way: they are deleted, unless they are
        registered.

        Args:
            child: A child that ended with ``keeps_models=True``.
        """
        self._check_open("take_models")
        self._models.take(child.uid, child._models)

    def register_model(self, name: str, *, model_uid: str | None = None) -> None:
        """Register the model logged last, or the one of *model_uid*, as a version of *name*.

        Alias, stage and description of the configuration are set on the version.

        Raises:
            ConfigError: MLflow refuses *name*.
            UsageError: No model was logged to this run.
        """
        self._check_open("register_model")
        if self._journal is not None:
            self._models.register(name, model_uid)

    @property
    def model_id(self) -> str | None:
        """MLflow's id of the model logged last; waits as `run_id` does. None without a model."""
        return self._models.model_id()

    @property
    def model_uri(self) -> str | None:
        """``models:/…`` of the model logged last; waits as `run_id` does. None without a model."""
        model_id = self.model_id
        return f"models:/{model_id}" if model_id else None

    @property
    def model_version(self) -> int | None:
        """The version registered last, of the model logged last; waits. None when it is not registered."""
        return self._models.version()

    def load_model(self) -> Any:
        """Load back the model logged last, from MLflow.

        Raises:
            UsageError: No model was logged, or it has not reached MLflow yet.
        """
        model_id = self.model_id
        if model_id is None:
            raise UsageError(
                "there is no logged model to load: none was logged, or it has not reached MLflow yet "
                "(see: mlpipeline status)"
            )
        from mlpipeline.tracking.registry import load_logged_model

        return load_logged_model(self.destination, model_id)

    # --- children --------------------------------------------------------------------------------

    def watch_system(self) -> None:
        """Record the machine's CPU, memory, disk, network and GPU use until the run ends.

        Raises:
            MissingExtraError: psutil is not installed.
        """
        from mlpipeline.tracking.system_metrics import SystemMetrics

        self._system_metrics = SystemMetrics(self)

    def child(self, name: str | None = None, **options: Any) -> Run:
        """Open a run nested under this one, with the same configuration.

        Args:
            name: Its name; None lets MLflow choose.
            **options: Configuration fields that differ, and ``tags``.
        """
        from mlpipeline.tracking.opening import open_run

        options.setdefault("run_name", name)
        return open_run(self.config.replace(run_id=None, **options), parent=self)

    # --- ending ----------------------------------------------------------------------------------

    def end(self, status: str = "FINISHED", *, end_ms: int | None = None, keeps_models: bool = False) -> None:
        """End the run. Returns at once; what is recorded is delivered whether or not anybody waits.

        A run of another process, or one of the user's own that we only add to, is not ended: this
        then only means that nothing more is recorded here. Ending twice does nothing.

        Args:
            status: FINISHED, FAILED or KILLED.
            end_ms: When it ended, in ms since 1970; None is now.
            keeps_models: Of a run opened with ``holds_models``: its models are delivered, not dropped.
        """
        if status not in STATUSES:
            raise UsageError(f"status {status!r} is unknown; accepted are {', '.join(STATUSES)}")
        if self._system_metrics is not None:
            self._system_metrics.stop()
        with self._ending:
            if self._status is not None:
                return
            if self._journal is not None:
                self._end_sampling(self._journal)
                if self.owns_run:
                    at = {} if end_ms is None else {"end_ms": end_ms}
                    kept = {"keeps_models": True} if keeps_models else {}
                    self._append(Kind.END, {"status": status, **at, **kept}, is_synced=True)
                if isinstance(self._journal, AttachedJournal):
                    self._journal.leave(self)
                else:
                    self._journal.close()
            self._status = status

    def _end_sampling(self, journal: Journal) -> None:
        """Record the last values of what was left out, and how much that was."""
        if self._sampling is None:
            return
        for record in self._sampling.last():
            journal.append_metrics(*record)
        if self._sampling.left_out:
            self._keep_tags({"mlpipeline.sampled": str(self._sampling)})

    def resume(self) -> None:
        """Open an ended run again, to add to it: a second ``fit``, a later ``test``."""
        with self._ending:
            if self._status is None or self._journal is None:
                return
            self._status = None
            self._is_told = False
            if not self.owns_run:
                self._header["role"] = "attached"  # a forked child adds to it, and never ends it
            self._plans.clear()  # they append to a journal that may be replaced
            attempt = max(int(self._header.get("attempt", 0)) + 1, time.time_ns() // 1_000_000)
            if isinstance(self._journal, ChildJournal) and self._home is not None:
                # It went into its parent's journal; from here on it is a run like any other.
                self._header["attempt"] = attempt
                self._journal = JournalWriter(self._home, self.uid, self._header, is_durable=False)
                self._journal.open()
            elif isinstance(self._journal, AttachedJournal) and self._home is not None:
                self._header["attempt"] = attempt
                self._journal = attached_journal(self._home, self.uid, self._header, self)
                self._journal.open()
            elif isinstance(self._journal, JournalWriter):
                self._header["attempt"] = attempt
                self._journal.reopen(self._header)
                self._journal.open()
        if self._home is not None:
            self._dispatch().ensure()
            closing.watch(self)

    def wait(self, *, insist_s: float | None = None) -> DeliveryCounts:
        """Wait until everything recorded so far is delivered, or nothing moves any more.

        What another thread records meanwhile is not waited for.

        Args:
            insist_s: Wait at least so long whatever the courier says; None follows its progress.

        Returns:
            What became of the run's records.
        """
        self._wait(insist_s)
        return self.counts()

    flush = wait

    def _wait(self, insist_s: float | None, *, is_exit: bool = False) -> None:
        if self._home is not None and not self._is_traceless():
            journal = self._journal
            ends = journal.ends() if isinstance(journal, JournalWriter) else None
            self._dispatch().wait(
                partial(self._is_delivered, ends),
                destination=self._destination_key(),
                insist_s=insist_s,
                patience_s=EXIT_PATIENCE_S if is_exit else PATIENCE_S,
                is_exit=is_exit,
            )

    def sync(self) -> None:
        """Wait until what was recorded here would survive a power cut (0.2-2.7 ms on an idle disk)."""
        if isinstance(self._journal, JournalWriter):
            self._journal.sync()

    def is_delivered(self) -> bool:
        """Tell, without waiting, whether everything recorded so far is in MLflow."""
        return self._is_delivered()

    def _is_delivered(self, ends: Mapping[str, Sequence[int]] | None = None) -> bool:
        state = self._state()
        if state is None or state.uploads:
            return False
        journal = self._journal
        if self.owns_run and self._status is not None:
            if state.is_ended and state.attempt >= int(self._header.get("attempt", 0)):
                return True
            if not (isinstance(journal, JournalWriter) and journal.has_company()):
                return False  # nobody else has the run open, so its end is coming
        return not isinstance(journal, JournalWriter) or state.covers(
            journal.ends() if ends is None else ends
        )

    def counts(self) -> DeliveryCounts:
        """Return what became of the run's records so far, without waiting."""
        if self._home is None:
            return DeliveryCounts()
        # Asked first: what leaves its parent's journal meanwhile is counted twice rather than not at all.
        waiting = self._journal.waiting() if isinstance(self._journal, ChildJournal) else 0
        counts = counts_of(self._home, self.uid) + DeliveryCounts(pending=waiting)
        dropped = self._journal.dropped if self._journal is not None else 0
        return replace(counts, dropped=max(counts.dropped, dropped))

    def settle(self, *, insist_s: float | None = None) -> None:
        """Wait for an ended run's delivery and print its line; the exit does this."""
        if self._home is not None and not self._is_told:
            self._wait(insist_s, is_exit=True)
            self.tell()
        closing.forget(self)

    def tell(self) -> None:
        """Print the one line of a root run, once."""
        if not self._is_told and self._home is not None and self.owns_run and not self._header.get("parent"):
            self._is_told = True
            from mlpipeline.tracking.closing_line import print_line

            print_line(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(status_of(kind_of(error)))

    # --- inside ----------------------------------------------------------------------------------

    @property
    def destination(self) -> Destination:
        """Where the run goes."""
        where = self._header["destination"]
        return Destination(where["tracking_uri"], where["registry_uri"], where["user"])

    def _destination_key(self) -> str:
        return self.destination.key

    def _dispatch(self) -> Dispatch:
        if self._home is None:
            raise UsageError("this run is not delivered anywhere")
        return dispatch_for(self._home, self.config.delivery, self.destination)

    def _settled_state(self, is_met: Callable[[RunState | None], bool]) -> RunState | None:
        """Wait until the state meets a condition, as long as the courier makes progress; return it."""
        if self._home is None or self._is_traceless():
            return None
        self._dispatch().wait(lambda: is_met(self._state()), destination=self._destination_key())
        return self._state()

    def _state(self) -> RunState | None:
        return self._home.state(self.uid) if self._home is not None else None

    def _append(self, kind: Kind, content: dict[str, Any], *, is_synced: bool = False) -> bool:
        if self._journal is None:
            return False
        now_ms = time.time_ns() // 1_000_000
        is_kept = self._journal.append(kind, {**content, "ms": now_ms}, is_synced=is_synced)
        if now_ms >= self._next_tick_ms:
            self._tick(now_ms)
        return is_kept

    def _drop(self) -> None:
        if self._journal is not None:
            self._journal.drop()

    def _append_child(self, payload: bytes) -> str | None:
        """Keep the record of a run under this one that is over; see `JournalWriter.append_child`."""
        if not isinstance(self._journal, JournalWriter):
            return None
        name = self._journal.append_child(payload)
        if (now_ms := time.time_ns() // 1_000_000) >= self._next_tick_ms:
            self._tick(now_ms)
        return name

    def _tick(self, now_ms: int) -> None:
        """Now and then, inside a log call: is the courier there, and is it well?"""
        self._ticks += 1
        self._next_tick_ms = now_ms + _TICKS_MS[min(self._ticks, len(_TICKS_MS) - 1)]
        if self._home is None or not isinstance(self._journal, JournalWriter):
            return
        self._journal.touch()
        self._dispatch().ensure()
        self._tell_problem()

    def _tell_problem(self) -> None:
        """Say once per cause what keeps the records here."""
        problem = self._dispatch().problem(self._destination_key())
        if problem and problem not in self._told and self._home is not None:
            self._told.add(problem)
            logger.warning("%s. Recording goes on; everything is kept in %s.", problem, self._home.path)

    def _check_open(self, call: str) -> None:
        if self._status is not None:
            raise self._ended_error(call)

    def _ended_error(self, call: str) -> UsageError:
        return UsageError(
            f"{call}: run {self.name or self.uid} has ended ({self._status}); "
            "log before end(), or open a new run, or continue this one with MLflowConfig(run_id=...)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "config": self.config,
            "uid": self.uid,
            "header": self._header,
            "home": self._home,
            "step": self.step,
            "run_id": self._run_id or self._known_id(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        header = {**state["header"], "role": "attached"}
        home = state["home"]
        journal = attached_journal(home, state["uid"], header, self) if home is not None else None
        Run.__init__(self, state["config"], state["uid"], header, journal=journal, home=home)
        self.step = state["step"]
        self._run_id = state["run_id"]

    def __repr__(self) -> str:
        status = self._status or ("RUNNING" if self.is_enabled else "disabled")
        return f"<Run {self._run_id or self.uid} {status}>"


def _evaluated_model(model: str) -> dict[str, str]:
    name = str(model).removeprefix("models:/")
    if name.startswith("m-") and "/" not in name:
        return {"model_id": name}
    if name.startswith(LOCAL_PREFIX):
        return {"of": name.removeprefix(LOCAL_PREFIX)}
    raise UsageError(
        f"log_evaluation: model={model!r} is no logged model; give run.model_uri (models:/m-…), "
        "or the local id of the run that logged it"
    )


def _not_a_number(metrics: Mapping[str, Any]) -> UnloggableError:
    for key, value in metrics.items():
        try:
            float(value)
        except (TypeError, ValueError):
            return UnloggableError(
                f"metric {key!r} is {value!r} ({type(value).__name__}), not a number; "
                "log text with set_tags or log_text"
            )
    return UnloggableError("a metric is not a number")


def _after_fork_in_child() -> None:
    for run in list(_runs):
        # Another thread of the parent may have been in the middle of its end.
        run._ending = threading.RLock()  # noqa: SLF001 - the fork hook of this very module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
