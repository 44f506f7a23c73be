"""`ModelRegistry`: the model registry by command, with promotion only of what is better.

::

    register ─► version ─ promote(if_better=…) ─► alias ─ rollback ─► the one before
                  │ describe, tag, set_stage,       │
                  │ archive                         └─ an audit entry per move, in a tag of the version
                  └─ history, versions, load

A training records what it wants registered, and the courier delivers it some time. What stands here is
ordered by the user, now: it goes straight to MLflow and raises what MLflow raises. What only the user can
put right (a model, version or alias that is not there) is a `UsageError` that names what there is.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.credentials import public_uri, with_credentials
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.models.promotion import (
    AUDIT_TAG,
    AuditEntry,
    Recorded,
    Scored,
    Verdict,
    audit_of,
    data_of,
    judged,
    previous_holder,
)
from mlpipeline.tracking import closing, registry, surroundings, trust as trusted
from mlpipeline.tracking.account import resolved_run_id
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import destination_of, resolved
from mlpipeline.tracking.queries import Queries
from mlpipeline.tracking.registry import NO_STAGE, STAGE_TAG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mlflow import MlflowClient

_STAGES = ("Staging", "Production", "Archived")
_PAGE = 1000


@dataclass(frozen=True)
class ModelVersionInfo:
    """One version of a registered model.

    Attributes:
        name: The registered model.
        version: Its number.
        aliases: What points to it.
        stage: Its stage; None for none.
        description: Its description.
        tags: Its tags, without those of the audit.
        run_id: The run that made it; None for none.
        model_id: The LoggedModel behind it, ``m-…``; None for none.
        created_ms: When it was registered, in milliseconds since the epoch.
        metrics: Those of its run, by original name, as far as they were asked for.
        audit: Promotions and other moves of aliases that it was part of, newest first.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    stage: str | None
    description: str
    tags: dict[str, str]
    run_id: str | None
    model_id: str | None
    created_ms: int
    metrics: dict[str, float] = field(default_factory=dict)
    audit: tuple[AuditEntry, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RegisteredModelInfo:
    """One registered model.

    Attributes:
        name: Its name.
        aliases: By alias, the version that it points to.
        description: Its description.
        updated_ms: When something about it changed last, in milliseconds since the epoch.
    """

    name: str
    aliases: dict[str, int]
    description: str
    updated_ms: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain types."""
        return dataclasses.asdict(self)


class ModelRegistry:
    """The model registry of a configuration's destination.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        **overrides: Options that win over *config*.

    Attributes:
        config: The configuration.
    """

    def __init__(
        self,
        config: MLflowConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        self.config = MLflowConfig.of(config, **overrides)

    # --- new versions ----------------------------------------------------------------------------

    def register(
        self,
        run_id: str,
        name: str | None = None,
        *,
        model_name: str | None = None,
        description: str | None = None,
        tags: Mapping[str, Any] | None = None,
        alias: str | None = None,
        stage: str | None = None,
    ) -> ModelVersionInfo:
        """Register the model of a run; what is registered already stays the version that it is.

        Waits first until what this process recorded for the same destination is delivered.

        Args:
            run_id: The run, by MLflow's id or a local one.
            name: The registered model, made if it is missing. None takes the configuration's
                ``model_name``, else the name that the run's model is registered under.
            model_name: Which of the run's models, by the name it was logged under; None is the newest.
            description: Its description; None leaves it as it is.
            tags: Tags to set.
            alias: Alias to point to it, whoever holds it now.
            stage: Stage to put it in.

        Raises:
            ConfigError: *name*, *alias* or *stage* is not accepted.
            UsageError: There is no such run, or it has no such model with files; or no name is known.
        """
        if alias is not None:
            _check_alias(alias)
        if stage is not None:
            stage = _stage(stage)
        if name is not None:
            MLflowConfig(model_name=name)
        closing.wait_for(self._destination)
        run = self._queries.get_run(resolved_run_id(Home.at(self.config.journal_dir), run_id))
        model = self._logged_model(run, model_name)
        name = name or resolved(self.config).model_name or _registered_name(model)
        if name is None:
            raise UsageError(
                f"run {run.info.run_id} does not say what its model is to be registered as: give a name "
                "(in the configuration, model_name=)"
            )
        version = self._version_of(name, model, run.info.run_id)
        if version is None:
            version = self._create(name, model, run.info.run_id, description, tags)
        else:
            if description is not None:
                self.describe(name, version, description)
            self.tag(name, version, tags or {})
        if alias is not None:
            self.alias(name, version, alias)
        if stage is not None:
            self.set_stage(name, version, stage)
        return self.version(name, version)

    def _logged_model(self, run: Any, model_name: str | None) -> Any:
        run_id = run.info.run_id
        ids = [output.model_id for output in (run.outputs.model_outputs if run.outputs else ())]
        models = [self._client.get_logged_model(model_id) for model_id in dict.fromkeys(ids)]
        if not models:
            raise UsageError(f"run {run_id} has no logged model to register: log one with log_model")
        named = [model for model in models if model_name in (None, model.name)]
        if not named:
            known = ", ".join(sorted({model.name for model in models}))
            raise UsageError(f"run {run_id} has no model {model_name!r}; its models are: {known}")
        newest = max(named, key=lambda model: model.creation_timestamp)
        is_ours, has_size = "mlpipeline.uid" in newest.tags, "mlpipeline.size_bytes" in newest.tags
        if str(newest.status) != "READY" or (is_ours and not has_size):
            raise UsageError(
                f"model {newest.name!r} of run {run_id} cannot be registered: "
                + ("it was recorded without its files" if is_ours else f"it is {newest.status}")
            )
        return newest

    def _version_of(self, name: str, model: Any, run_id: str) -> int | None:
        """Return the oldest version of a LoggedModel; None if it is not registered under this name."""
        versions = [
            int(version.version)
            for source_run_id in {run_id, model.source_run_id or run_id}
            for version in self._search(f"name = {registry.quoted(name)} AND run_id = '{source_run_id}'")
            if registry.logged_model_id(version) == model.model_id
        ]
        return min(versions, default=None)

    def _create(
        self, name: str, model: Any, run_id: str, description: str | None, tags: Mapping[str, Any] | None
    ) -> int:
        client, where = self._client, self._destination
        registry.ensure_registered_model(client, name)
        made = client.create_model_version(
            name,
            source=registry.version_source(client, model.model_id, where.registry_uri),
            run_id=run_id,
            tags={key: str(value) for key, value in (tags or {}).items()},
            description=description,
            model_id=model.model_id,
            await_creation_for=0,
        )
        version = int(made.version)
        # Somebody may have done the same meanwhile, or MLflow's client, whose first try lost its answer.
        first = self._version_of(name, model, run_id)
        if first is not None and first < version:
            client.delete_model_version(name, str(version))
            return first
        registry.mark_version(client, name, version, model.model_id, is_http=where.is_http)
        return version

    # --- what a version carries ------------------------------------------------------------------

    def describe(self, name: str, version: int, description: str | None = None) -> ModelVersionInfo:
        """Return a version with its metrics, after giving it a description, unless that is None.

        Raises:
            UsageError: There is no such version.
        """
        version = int(self._get(name, version).version)
        if description is not None:
            self._client.update_model_version(name, str(version), description)
        return self._with_metrics([self.version(name, version)])[0]

    def tag(self, name: str, version: int, tags: Mapping[str, Any]) -> ModelVersionInfo:
        """Set tags of a version and return it; a value of None removes the tag.

        Raises:
            UsageError: There is no such version, or MLflow refuses a tag.
        """
        found = self._get(name, version)
        with _refusals():
            for key, value in tags.items():
                if value is not None:
                    self._client.set_model_version_tag(name, str(found.version), key, str(value))
                elif key in found.tags:
                    self._client.delete_model_version_tag(name, str(found.version), key)
        return self.version(name, version)

    def alias(self, name: str, version: int, alias: str) -> Verdict:
        """Point an alias to a version, whoever holds it.

        The move is written into the version's audit, so that `rollback` finds the way back.

        Raises:
            ConfigError: MLflow takes no such alias.
            UsageError: There is no such version.
        """
        return self._point(name, version, alias, "alias")

    def _point(self, name: str, version: int, alias: str, action: str) -> Verdict:
        _check_alias(alias)
        number = int(self._get(name, version).version)
        holder = self._holder(name, alias)
        verdict = Verdict(promoted=True, champion_version=holder, name=name, version=number, alias=alias)
        if holder == number:
            return dataclasses.replace(verdict, reason=f"it is the {alias} already")
        return self._move(dataclasses.replace(verdict, reason="as ordered"), action)

    def remove_alias(self, name: str, alias: str) -> ModelVersionInfo:
        """Remove an alias, and return the version that held it.

        Raises:
            UsageError: There is no such alias.
        """
        holder = self._known_holder(name, alias)
        self._client.delete_registered_model_alias(name, alias)
        return self.version(name, holder)

    def set_stage(self, name: str, version: int, stage: str) -> ModelVersionInfo:
        """Put a version into a stage and return it: its alias, its tag, and MLflow's own while it has stages.

        The alias of the stage that the version leaves goes.

        Args:
            name: The registered model.
            version: Its version.
            stage: ``Staging``, ``Production``, ``Archived``, or ``None`` for no stage.

        Raises:
            ConfigError: There is no such stage.
            UsageError: There is no such version.
        """
        stage = _stage(stage)
        found = self._get(name, version)
        number, client = int(found.version), self._client
        wanted = registry.stage_alias(stage)
        for left in map(registry.stage_alias, _STAGES):
            if left in self._aliases_of(name, number) and left != wanted:
                client.delete_registered_model_alias(name, str(left))
        if wanted is not None:
            client.set_model_version_tag(name, str(number), STAGE_TAG, stage)
            self.alias(name, number, wanted)
        elif STAGE_TAG in found.tags:
            client.delete_model_version_tag(name, str(number), STAGE_TAG)
        registry.set_real_stage(client, name, number, stage)
        return self.version(name, number)

    def archive(self, name: str, version: int) -> ModelVersionInfo:
        """Put a version into the stage ``Archived``, and return it.

        Raises:
            UsageError: There is no such version, or an alias that is no stage's points to it.
        """
        number = int(self._get(name, version).version)
        held = sorted(self._aliases_of(name, number) - {registry.stage_alias(stage) for stage in _STAGES})
        if held:
            raise UsageError(
                f"version {number} of {name!r} is the {', '.join(held)}: promote another version first, or "
                f"remove the alias with remove_alias({name!r}, {held[0]!r})"
            )
        return self.set_stage(name, number, "Archived")

    # --- promotion -------------------------------------------------------------------------------

    def promote(
        self,
        name: str,
        version: int,
        alias: str,
        *,
        if_better: str | None = None,
        min_delta: float = 0.0,
        dataset: Any = None,
        target: str | None = None,
        greater_is_better: bool | None = None,
        trust: bool = False,
    ) -> Verdict:
        """Point an alias to a version, if it is better than the one that holds it.

        Both values, and who ordered it, are written into a tag of the version, whatever the verdict.

        Args:
            name: The registered model.
            version: The challenger.
            alias: The alias, such as "champion".
            if_better: Metric that decides; None promotes in any case.
            min_delta: The challenger must be better by more than this. With 0 a tie is not better.
            dataset: Data to score both models on, here and now: (X, y); or a DataFrame, or the path of a
                ``.csv`` or ``.parquet`` file, with *target*. None compares the values that MLflow has of
                both, if they were recorded on the same data.
            target: Column of *dataset* to predict.
            greater_is_better: Direction of the metric; None goes by its name.
            trust: With *dataset*, as `load` takes it.

        Returns:
            The verdict; without a holder the version is promoted.

        Raises:
            ConfigError: MLflow has no such alias; or the metric is unknown, or has no known direction.
            UsageError: There is no such version; or the values cannot be compared, and why.
        """
        _check_alias(alias)
        if min_delta < 0:
            raise UsageError(f"min_delta={min_delta}: give 0 or more")
        challenger = self._get(name, version)
        number = int(challenger.version)
        if if_better is None:
            return self._point(name, number, alias, "promote")
        is_greater = greater_is_better
        if is_greater is None:
            from mlpipeline.models.scoring import is_greater_better

            is_greater = is_greater_better(if_better)
        if dataset is None:
            measure: Recorded | Scored = Recorded(if_better, self._run_and_model)
        else:
            load = partial(self._load, trust=trust, is_plain=True)
            measure = Scored(if_better, *data_of(dataset, target), load)
        compare = partial(judged, if_better, min_delta=min_delta, is_greater_better=is_greater, alias=alias)
        holder = self._holder(name, alias)
        while True:
            if holder == number:
                verdict = Verdict(promoted=True, champion_version=holder, reason=f"it is the {alias} already")
            elif holder is None:
                verdict = Verdict(
                    promoted=True, challenger=measure.alone(challenger), reason=f"there was no {alias}"
                )
            else:
                values = measure.both(challenger, self._get(name, holder))
                verdict = compare(*values, champion_version=holder)
            # Scoring takes its time, and the alias may have gone to another one meanwhile.
            if (now := self._holder(name, alias)) == holder:
                break
            holder = now
        verdict = dataclasses.replace(
            verdict, metric=if_better, min_delta=min_delta, name=name, version=number, alias=alias
        )
        return verdict if holder == number else self._move(verdict, "promote", measure.digest)

    def _move(self, verdict: Verdict, action: str, digest: str | None = None) -> Verdict:
        """Carry out a verdict and write it down; tell if somebody else did the same at that moment."""
        name, alias, version = verdict.name, verdict.alias, verdict.version
        if verdict.promoted:
            with _refusals():
                self._client.set_registered_model_alias(name, alias, str(version))
        entry = AuditEntry(
            action=action,
            alias=alias,
            version=version,
            from_version=verdict.champion_version,
            is_moved=verdict.promoted,
            metric=verdict.metric,
            challenger=verdict.challenger,
            champion=verdict.champion,
            min_delta=verdict.min_delta,
            dataset=digest,
            at_ms=time.time_ns() // 1_000_000,
            by=surroundings.user_name(os.environ),
        )
        self._client.set_model_version_tag(name, str(version), *entry.tag())
        if verdict.promoted and (holder := self._holder(name, alias)) != version:
            reason = f"somebody moved the {alias} to version {holder} at the same moment ({verdict.reason})"
            return dataclasses.replace(verdict, promoted=False, reason=reason)
        return verdict

    def rollback(self, name: str, alias: str) -> Verdict:
        """Point an alias back to the version that held it before; again, to the one before that.

        Returns:
            The move: ``version`` holds the alias again, ``champion_version`` held it until now.

        Raises:
            UsageError: There is no such alias, or nobody is known to have held it before.
        """
        holder = self._known_holder(name, alias)
        found = self._infos(name, 10**9)
        entries = [entry for version in found for entry in version.audit]
        before = previous_holder(entries, alias, holder, {version.version for version in found})
        if before is None:
            raise UsageError(
                f"no earlier {alias} of {name!r} than version {holder} is known: rollback goes by the audit "
                f"of promote() and alias(). Name the version: alias({name!r}, <version>, {alias!r})"
            )
        verdict = Verdict(
            promoted=True,
            champion_version=holder,
            reason=f"back from version {holder}",
            name=name,
            version=before,
            alias=alias,
        )
        return self._move(verdict, "rollback")

    # --- reading ---------------------------------------------------------------------------------

    def version(self, name: str, version: int) -> ModelVersionInfo:
        """Return one version, without metrics.

        Raises:
            UsageError: There is no such version; it names those that there are.
        """
        return self._info(self._get(name, version))

    def versions(self, name: str, max_results: int = 100) -> list[ModelVersionInfo]:
        """Return the versions of a model, newest first, without metrics.

        Raises:
            UsageError: There is no such model; it names the nearest.
        """
        return self._infos(name, max_results)

    def history(self, name: str, max_results: int = 100) -> list[ModelVersionInfo]:
        """Return the versions of a model, newest first, with the metrics of their runs.

        Raises:
            UsageError: There is no such model; it names the nearest.
        """
        return self._with_metrics(self._infos(name, max_results))

    def models(self, max_results: int = 100) -> list[RegisteredModelInfo]:
        """Return the registered models, by name."""
        found: list[Any] = []
        token: str | None = None
        while len(found) < max_results:
            page = self._client.search_registered_models(
                max_results=min(_PAGE, max_results - len(found)), order_by=["name ASC"], page_token=token
            )
            found += page
            if not (token := page.token):
                break
        return [
            RegisteredModelInfo(
                name=model.name,
                aliases={alias: int(version) for alias, version in sorted(model.aliases.items())},
                description=model.description or "",
                updated_ms=model.last_updated_timestamp,
            )
            for model in found
        ]

    def load(self, name: str, version: int | None = None, *, trust: bool = False) -> Any:
        """Load a version as the framework's own object.

        A model that no run in this machine's journal home logged is loaded only if its files cannot hold
        code: scikit-learn's as skops with the types that this package trusts, XGBoost's, and Keras'.

        Args:
            name: The registered model with the alias, ``churn@champion``, or with the version,
                ``churn/3``; ``models:/`` may stand in front.
            version: The version, where *name* does not say it.
            trust: Load it whoever logged it, and run what is in it.

        Raises:
            UsageError: There is no such version or alias, or none is given; or it could run code.
        """
        name = name.removeprefix("models:/")
        base, at, alias = name.rpartition("@")
        if version is None and at:
            return self._load(self._get(base, self._known_holder(base, alias)), trust=trust)
        base, slash, number = name.rpartition("/")
        if version is None and slash and number.isdigit():
            return self._load(self._get(base, int(number)), trust=trust)
        if version is None:
            raise UsageError(f"load({name!r}) names no version: write {name}@champion, or {name}/3")
        return self._load(self._get(name, version), trust=trust)

    # --- inside ----------------------------------------------------------------------------------

    @property
    def _destination(self) -> Any:
        return destination_of(resolved(self.config))

    @property
    def _queries(self) -> Queries:
        where = self._destination
        return Queries(with_credentials(where.tracking_uri), with_credentials(where.registry_uri))

    @property
    def _client(self) -> MlflowClient:
        from mlflow import MlflowClient

        where = self._destination
        return MlflowClient(with_credentials(where.tracking_uri), with_credentials(where.registry_uri))

    def _run_and_model(self, version: Any) -> tuple[Any, Any]:
        """Return the run and the LoggedModel of a version, None for what is gone."""
        from mlflow.exceptions import MlflowException

        run = model = None
        with suppress(UsageError):
            run = self._queries.get_run(version.run_id) if version.run_id else None
        try:
            if model_id := registry.logged_model_id(version):
                model = self._client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        return run, model

    def _load(self, version: Any, *, trust: bool, is_plain: bool = False) -> Any:
        model_id, where = registry.logged_model_id(version), self._destination
        is_trusted = trust or trusted.is_ours(Home.at(self.config.journal_dir), where, model_id)

        def check(folder: Path, about: Any) -> None:
            if not is_trusted:
                trusted.check(folder, about, f"version {version.version} of {version.name!r}")

        if model_id is not None:
            location = self._client.get_logged_model(model_id).artifact_location
        else:
            location = self._client.get_model_version_download_uri(version.name, str(version.version))
        return registry.load_files(location, with_credentials(where.tracking_uri), check, is_plain=is_plain)

    def _get(self, name: str, version: int) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            known = [str(info.version) for info in self._infos(name, 20)]  # an unknown model raises
            there = f"the newest are {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{name!r} has no version {version}; {there}") from error

    def _registered(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise
            known = [model.name for model in self.models(_PAGE)]
            near = difflib.get_close_matches(name, known, cutoff=0.5) or known[:10]
            there = f"there are: {', '.join(near)}" if near else "none is registered"
            where = public_uri(self._destination.registry_uri)
            raise UsageError(f"no model {name!r} is registered at {where}; {there}") from error

    def _aliases(self, name: str) -> dict[str, int]:
        return {alias: int(version) for alias, version in self._registered(name).aliases.items()}

    def _aliases_of(self, name: str, version: int) -> set[str]:
        return {alias for alias, holder in self._aliases(name).items() if holder == version}

    def _holder(self, name: str, alias: str) -> int | None:
        return self._aliases(name).get(alias)

    def _known_holder(self, name: str, alias: str) -> int:
        aliases = self._aliases(name)
        if alias not in aliases:
            known = ", ".join(f"{known} (version {holder})" for known, holder in sorted(aliases.items()))
            raise UsageError(f"{name!r} has no alias {alias!r}; its aliases are: {known or 'none'}")
        return aliases[alias]

    def _search(self, query: str, max_results: int = _PAGE) -> Iterator[Any]:
        token, left = None, max_results
        while left > 0:
            page = self._client.search_model_versions(
                query, max_results=min(left, _PAGE), order_by=["version_number DESC"], page_token=token
            )
            yield from page
            token, left = page.token, left - len(page)
            if not token:
                return

    def _infos(self, name: str, max_results: int) -> list[ModelVersionInfo]:
        """Return the newest versions, newest first."""
        aliases = self._aliases(name)  # which a search does not tell
        infos = map(self._info, self._search(f"name = {registry.quoted(name)}", max_results))
        return [
            dataclasses.replace(
                info,
                aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == info.version)),
            )
            for info in infos
        ]

    def _info(self, version: Any) -> ModelVersionInfo:
        tags = dict(version.tags)
        real = version.current_stage if version.current_stage not in (None, "", NO_STAGE) else None
        return ModelVersionInfo(
            name=version.name,
            version=int(version.version),
            aliases=tuple(sorted(version.aliases)),
            stage=tags.get(STAGE_TAG, real),
            description=version.description or "",
            tags={key: value for key, value in sorted(tags.items()) if not key.startswith(AUDIT_TAG)},
            run_id=version.run_id or None,
            model_id=registry.logged_model_id(version),
            created_ms=version.creation_timestamp,
            audit=audit_of(tags),
        )

    def _with_metrics(self, infos: list[ModelVersionInfo]) -> list[ModelVersionInfo]:
        runs = self._queries.find_runs([info.run_id for info in infos if info.run_id])
        return [
            dataclasses.replace(info, metrics=runs[info.run_id].metrics if info.run_id in runs else {})
            for info in infos
        ]


def _check_alias(alias: str) -> None:
    # The configuration has the rule; False leaves it at that.
    MLflowConfig(model_alias=alias, register_model=False)


def _stage(stage: str) -> str:
    try:
        return MLflowConfig(model_stage=stage, register_model=False).model_stage
    except ConfigError as error:
        raise ConfigError(str(error).replace("model_stage=", "stage=", 1)) from None


def _registered_name(model: Any) -> str | None:
    """Return what a LoggedModel is registered as already; None where it is not."""
    try:
        versions = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
        return str(versions[-1]["name"]) if versions else None
    except (ValueError, LookupError, TypeError):
        return None


@contextmanager
def _refusals() -> Iterator[None]:
    """Make what MLflow refuses for good the user's mistake, in MLflow's words."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code in {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"}:
            raise UsageError(f"MLflow refuses it: {error.message}") from error
        raise
