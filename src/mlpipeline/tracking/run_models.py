"""The models of one run: staged in the spool, recorded, registered, and asked after.

::

    log ─► staging writes the files ─► MODEL record ─┬─► register ─► VERSION record
    take ◄─ a child's models ──────────► MODEL record ┘
    model_id, version ◄── state.json ◄── courier
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking.names import metric_key
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.redaction import masked
from mlpipeline.tracking.registry import STAGE_TAG, stage_alias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.home import RunState
    from mlpipeline.tracking.spool import Spool

logger = logging.getLogger("mlpipeline")

_NOT_IN_MODEL_NAMES = set("/:.%\"'")  # mlflow.utils.validation._validate_logged_model_name


class RunModels:
    """The models of a run, for the `Run` that offers these methods; what they promise is said there.

    Args:
        config: The run's configuration.
        uid: Our name of the run.
        spool: Where files wait.
        append: Appends a record to the run's journal, and tells whether that was done.
        settled: Waits until the run's state meets a condition or nothing moves any more, and returns it;
            None where nobody will ever say more.
        is_known_elsewhere: Another process may log models to this run, which only the courier knows then.

    Attributes:
        held: The models logged here, and those below that this run decides about.
    """

    def __init__(
        self,
        config: MLflowConfig,
        uid: str,
        spool: Spool,
        *,
        append: Callable[[Kind, dict[str, Any]], bool],
        settled: Callable[[Callable[[RunState | None], bool]], RunState | None],
        is_known_elsewhere: bool,
    ) -> None:
        self.held: list[dict[str, Any]] = []
        self._config = config
        self._uid = uid
        self._spool = spool
        self._append = append
        self._settled = settled
        self._is_known_elsewhere = is_known_elsewhere
        self._records: list[dict[str, Any]] = []
        self._version_uid: str | None = None

    def log(
        self,
        model: Any,
        name: str,
        *,
        input_example: Any,
        signature: Any,
        step: int | None,
        register_as: str | None,
        params: Mapping[str, Any] | None,
        tags: Mapping[str, Any] | None,
        requirements: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        decided_by: RunModels | None,
    ) -> None:
        """Stage and record a model; see `Run.log_model`."""
        self._version_uid = None
        if not name or set(name) & _NOT_IN_MODEL_NAMES:
            raise UnloggableError(
                f"cannot log a model as {name!r}: MLflow takes a name without / : . % \" and '"
            )
        registered = register_as
        if registered is None and self._config.register_model:
            registered = self._config.model_name
        if registered:
            self._check_registered_name(registered)
        record: dict[str, Any] = {
            "uid": secrets.token_hex(16),
            "name": name,
            "step": int(step or 0),
            "params": self._masked(params),
            "tags": self._masked(tags),
        }
        has_files = self._config.log_model != "metadata" and not self._is_spool_full(name)
        if has_files:
            is_kept = self._stage(
                model,
                record,
                input_example=input_example,
                signature=signature,
                requirements=requirements,
                metadata=metadata,
            )
        else:
            model_class = f"{type(model).__module__}.{type(model).__qualname__}"
            record["tags"] |= {"mlpipeline.model_class": model_class}
            is_kept = self._append(Kind.MODEL, record)
        if not is_kept:
            return
        self._records.append(record)
        (decided_by or self).held.append({"uid": record["uid"], "name": name, "of": self._uid})
        if registered and has_files:
            self.register(registered)

    def _stage(
        self, model: Any, record: dict[str, Any], *, input_example: Any, signature: Any, **options: Any
    ) -> bool:
        from mlpipeline.tracking import staging

        config = self._config
        with self._spool.place(record["name"]) as place:
            if place is not None:
                staged = staging.stage_model(
                    model,
                    place,
                    input_example=input_example,
                    log_input_example=config.log_input_example,
                    signature=signature if config.log_model_signature else None,
                    serialization=config.serialization,
                    **options,
                )
                record["model_type"] = staged.flavor
                record["tags"] |= {
                    "mlpipeline.serialization": staged.serialization,
                    "mlpipeline.size_bytes": str(staged.size_bytes),
                }
            return self._spool.keep(Kind.MODEL, place, record)
        return False

    def _is_spool_full(self, name: str) -> bool:
        if not (held := self._spool.excess_bytes()):
            return False
        logger.warning(
            "model %r of run %s is recorded without its files: %.1f GB wait in the spool already",
            name,
            self._uid,
            held / 1e9,
        )
        key = metric_key(f"mlpipeline.without_files.{name}")
        self._append(Kind.TAGS, {"tags": {key: "the spool was full"}})
        return True

    def take(self, child_uid: str, models: RunModels) -> None:
        """Make a child's models this run's; see `Run.take_models`."""
        for model in models.held:
            if self._append(Kind.MODEL, {**model, "keeper": child_uid}):
                self._records.append(model)

    def register(self, name: str, model_uid: str | None = None) -> None:
        """Record a version; see `Run.register_model`."""
        self._check_registered_name(name)
        if not self._records:
            raise UsageError("register_model needs a model: call log_model first")
        config = self._config
        aliases = [config.model_alias] if config.model_alias else []
        tags = self._masked(config.tags)
        if alias := stage_alias(config.model_stage):
            aliases.append(alias)
            tags[STAGE_TAG] = config.model_stage
        self._version_uid = secrets.token_hex(16)
        self._append(
            Kind.VERSION,
            {
                "uid": self._version_uid,
                "name": name,
                "model_uid": model_uid or self._records[-1]["uid"],
                "aliases": aliases,
                "stage": config.model_stage,
                "tags": tags,
                "description": config.model_description,
            },
        )

    def _masked(self, texts: Mapping[str, Any] | None) -> dict[str, str]:
        return masked({key: str(value) for key, value in (texts or {}).items()}, self._config.redact)

    def _check_registered_name(self, name: str) -> None:
        # The configuration has the rule; the courier would hear it from MLflow when nobody listens.
        self._config.replace(model_name=name)

    def model_id(self) -> str | None:
        """Return MLflow's id of the model logged last; see `Run.model_id`."""
        found = self._known(lambda model: bool(model.get("is_ready")))
        return str(found["model_id"]) if found else None

    def version(self) -> int | None:
        """Return the version registered last; see `Run.model_version`."""
        uid = self._version_uid
        if uid is not None:
            found = self._known(lambda model: uid in model.get("versions", {}))
            return int(found["versions"][uid]) if found else None
        found = None if self._records else self._known(lambda model: "version" in model)
        return int(found["version"]) if found else None

    def _known(self, is_met: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Wait until the courier knows of the model logged last what is asked for."""
        if not self._records and not self._is_known_elsewhere:
            return None
        uid = self._records[-1]["uid"] if self._records else None

        def known(state: RunState | None) -> dict[str, Any] | None:
            models = state.models if state else {}
            found = next(reversed(models.values()), None) if uid is None else models.get(uid)
            return found if found and is_met(found) else None

        def is_settled(state: RunState | None) -> bool:
            return known(state) is not None or bool(state and state.is_ended and not state.uploads)

        return known(self._settled(is_settled))
