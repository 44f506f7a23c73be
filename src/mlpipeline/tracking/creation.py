"""What MLflow gives an id to, made once: the run, its LoggedModels and their registered versions.

::

    look up by uid ─► there: that one it is     (a run that several homes make: see `election`)
                  └─► create ─► its id into state.json, before its first use
                         └─ no answer: a doubt ─► when the run has ended, and once more later: twins go

MLflow's server picks the ids, so a create whose answer got lost may be made again, and the lost one
may be committed after the look-up that did not find it. The id written down first is the true one.
"""

from __future__ import annotations

import logging
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mlpipeline.tracking.election import CLAIM_TAG, Election, token_of
from mlpipeline.tracking.sink import ATTEMPT_TAG, UID_TAG
from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from mlflow.entities import Run as MlflowRun

    from mlpipeline.tracking.home import RunState
    from mlpipeline.tracking.sink import MlflowSink

logger = logging.getLogger("mlpipeline")

DOUBT_S = 60.0
"""So long after a lost answer its create may still be committed: twice what a request may take."""

_T = TypeVar("_T")


class NotYet(Exception):  # noqa: N818 - nothing went wrong
    """A run waits for another: a child for its parent's id, an elected one for who is choosing."""


class Creation:
    """Finds or makes what belongs to one run.

    Args:
        uid: Our name of the run.
        state: Where ids and doubts are kept.
        keeping: Gives a block in which the state may be changed; it is saved at the end.
    """

    def __init__(self, uid: str, state: RunState, keeping: Callable[[], AbstractContextManager[Any]]) -> None:
        self._uid = uid
        self._state = state
        self._keeping = keeping
        self._election: Election | None = None

    # --- finding or making -----------------------------------------------------------------------

    def run(self, sink: MlflowSink, header: Mapping[str, Any], tags: Mapping[str, str]) -> MlflowRun:
        """Return the run; its id is not kept yet.

        Args:
            sink: Where.
            header: What its opener wrote down.
            tags: Tags of a new run.

        Raises:
            NotYet: Another home is about to make it.
            Refused: The run was deleted by its owner.
            Unavailable: Not now.
        """
        if known := header.get("run_id"):
            run = sink.get_run(known)
            if run.info.lifecycle_stage != "active":
                raise Refused(f"run {known} is deleted", "DELETED")
            return run
        where = header["experiment"]
        experiment_id = sink.experiment(
            where.get("name"), where.get("id"), where.get("artifact_location"), where.get("artifact_root")
        )
        tags = {**tags, UID_TAG: self._uid, ATTEMPT_TAG: str(header.get("attempt", 0))}

        def make(more: Mapping[str, str]) -> MlflowRun:
            start_ms = header.get("start_ms") or _now_ms()
            return sink.create_run(experiment_id, header.get("run_name"), start_ms, {**tags, **more})

        if not header.get("is_elected"):
            return self._one("run", self._standing(sink, experiment_id), lambda: make({}))
        if self._state.token is None:
            with self._keeping():
                self._state.token = secrets.token_hex(8)
        if self._election is None:
            self._election = Election(self._state.token)
        winner = self._election.winner(
            sink,
            find=lambda: self._standing(sink, experiment_id),
            make=lambda claim: self._one("run", (), lambda: make({CLAIM_TAG: claim})),
            remove=lambda run, ours: self._remove_run(sink, run.info.run_id, ours.info.run_id),
        )
        if winner is None:
            raise NotYet
        return winner

    def _standing(self, sink: MlflowSink, experiment_id: str) -> list[MlflowRun]:
        found = sink.find_runs(self._uid, experiment_id)
        alive = [run for run in found if run.info.lifecycle_stage == "active"]
        if found and not alive:
            raise Refused(f"run {found[0].info.run_id} was deleted", "DELETED")
        return alive

    def model(self, sink: MlflowSink, record: Mapping[str, Any]) -> str:
        """Return the id of the LoggedModel that a record is about."""
        uid, state = record["uid"], self._state
        known = state.models.setdefault(uid, {"name": record["name"]})
        if "model_id" not in known:
            experiment_id, run_id = str(state.experiment_id), str(state.run_id)
            model_id = self._one(
                f"model/{uid}",
                sink.find_models(experiment_id, uid),
                lambda: sink.create_model(experiment_id, run_id, record),
            )
            with self._keeping():
                known["model_id"] = model_id
        return str(known["model_id"])

    def version(self, sink: MlflowSink, record: Mapping[str, Any]) -> int:
        """Return the registered version that a record is about, with its aliases.

        Raises:
            Refused: Its model is not in MLflow.
            Unavailable: Not now.
        """
        uid, name = record["uid"], record["name"]
        known = self._state.models.get(record["model_uid"], {})
        if not known.get("is_ready"):
            raise Refused("its model could not be logged")
        versions = known.setdefault("versions", {})
        if uid not in versions:
            sink.ensure_registered_model(name)
            version = self._one(
                f"version/{uid}/{name}",
                sink.find_versions(name, uid),
                lambda: sink.create_version(known["model_id"], str(self._state.run_id), record),
            )
            # Before it is kept: whoever waits for a version loads it by its alias next.
            sink.mark_version(record, version, known["model_id"])
            with self._keeping():
                known["registered_as"], known["version"] = name, version
                versions[uid] = version
        return int(versions[uid])

    def _one(self, subject: str, found: Sequence[_T], make: Callable[[], _T]) -> _T:
        if found:
            return found[0]
        try:
            return make()
        except Unavailable as error:
            if error.is_unclear:
                with self._keeping():
                    self._state.doubts[subject] = _now_ms()
            raise

    # --- twins -----------------------------------------------------------------------------------

    def has_doubt(self) -> bool:
        """Tell whether a create of an ended run is to be looked at once more."""
        return self._state.is_ended and any(self._is_old(at_ms) for at_ms in self._state.doubts.values())

    def settle(self, sink: MlflowSink) -> None:
        """Remove the twins that lost answers made; a doubt goes when no twin can appear any more.

        Raises:
            Unavailable: Not now.
        """
        for subject, at_ms in list(self._state.doubts.items()):
            is_last_look = self._is_old(at_ms)
            kind, _, rest = subject.partition("/")
            if kind == "run":
                self._settle_run(sink)
            elif kind == "model":
                self._settle_model(sink, rest)
            else:
                self._settle_version(sink, *rest.split("/", 1))
            if is_last_look:
                with self._keeping():
                    del self._state.doubts[subject]

    def _settle_run(self, sink: MlflowSink) -> None:
        ours = str(self._state.run_id)
        for twin in sink.find_runs(self._uid, str(self._state.experiment_id)):
            if (
                twin.info.run_id != ours
                and twin.info.lifecycle_stage == "active"
                and self._state.token in (None, token_of(twin))
            ):
                self._remove_run(sink, twin.info.run_id, ours)

    def _remove_run(self, sink: MlflowSink, run_id: str, ours: str) -> None:
        _remove(
            f"run {run_id}, a twin of {ours}",
            partial(sink.delete_run, run_id),
            partial(sink.disown_run, run_id, ours, self._state.last_ms or None),
        )

    def _settle_model(self, sink: MlflowSink, uid: str) -> None:
        ours = self._state.models.get(uid, {}).get("model_id")
        for model_id in sink.find_models(str(self._state.experiment_id), uid):
            if ours is not None and model_id != ours:
                _remove(
                    f"model {model_id}, a twin of {ours}",
                    partial(sink.delete_model, model_id),
                    partial(sink.disown_model, model_id, ours),
                )

    def _settle_version(self, sink: MlflowSink, uid: str, name: str) -> None:
        versions = (model.get("versions", {}) for model in self._state.models.values())
        ours = next((known[uid] for known in versions if uid in known), None)
        for version in sink.find_versions(name, uid):
            if ours is not None and version != ours:
                _remove(
                    f"version {version} of {name}, a twin of {ours}",
                    partial(sink.delete_version, name, version),
                    partial(sink.disown_version, name, version, ours),
                )

    @staticmethod
    def _is_old(at_ms: int) -> bool:
        return _now_ms() - at_ms > DOUBT_S * 1000


def _remove(what: str, delete: Callable[[], None], disown: Callable[[], None]) -> None:
    try:
        delete()
    except Refused:
        logger.debug("%s is gone already", what)
    except Unavailable as error:
        if not error.is_denied:
            raise
        disown()
        logger.warning("%s, may not be deleted and is marked instead: %s", what, error)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
