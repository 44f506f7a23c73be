"""How a run is opened: what is resolved, what is attached to, what is written down first.

::

    MLflowConfig ─ resolved with the user's mlflow.set_*, the environment and the defaults ─┐
                                                                                            ▼
    disabled        -> a Run without a journal
    inside a user's mlflow.start_run() -> a guest of that run, which never ends it
    run_id given    -> an opener that continues that run
    otherwise       -> an opener of a new run

Whatever depends on the trainer's surroundings (working directory, user, source, git commit) is
written into the header here, because the courier may send it from elsewhere, days later.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mlpipeline.core import credentials
from mlpipeline.core.errors import ConfigError
from mlpipeline.tracking import children, closing, names, surroundings, trainings
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.dispatch import dispatch_for
from mlpipeline.tracking.home import Home, new_uid
from mlpipeline.tracking.journal import JournalWriter, attached_journal
from mlpipeline.tracking.redaction import masked
from mlpipeline.tracking.run import Journal, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlpipeline.core.config import MLflowConfig

logger = logging.getLogger("mlpipeline")

_recording: list[Journal] = []
"""Journals in memory that take the place of the disk, innermost last; `mlpipeline.testing.record`."""

_TAG_CHARS = 5000
"""Longest tag value that every MLflow store takes when it makes a run; what is longer it cuts later."""

_consumed = threading.Lock()
"""Held for good once a root run has taken MLFLOW_RUN_ID, which is meant for one run only."""


@contextmanager
def recording_into(journal: Journal) -> Iterator[None]:
    """Let *journal* take the place of the disk for the runs opened inside the block."""
    _recording.append(journal)
    try:
        yield
    finally:
        _recording.remove(journal)


def open_run(
    config: MLflowConfig,
    *,
    parent: Run | str | None = None,
    tags: Mapping[str, Any] | None = None,
    uid: str | None = None,
    proposed_uid: str | None = None,
    shared_uid: str | None = None,
    start_ms: int | None = None,
) -> Run:
    """Open a run and record its start; returns before anything has reached MLflow.

    Args:
        config: The configuration; it is resolved here, so the environment counts as it is now.
        parent: A run, or its id, under which this one is nested; None takes the run that this thread
            is `trainings.inside` of. A run's child goes where the run goes, unless *config* says where.
        tags: Tags of this run, over those of the configuration.
        uid: Our name of the run, to continue it; None makes a new one.
        proposed_uid: Our name of a new run, unless another process has taken it; see `attached_run`.
        shared_uid: Our name of a run that any number of processes open, derived from what they have in
            common: the first one makes it, and it is ended while none of them has it open. Whoever opens
            it says when to wait for the disk: `Run.sync`.
        start_ms: When it began, in ms since 1970; None is now.

    Returns:
        The run; one that records nothing if the configuration says ``enabled=False``.
    """
    if parent is None:
        parent = trainings.enclosing()
    if isinstance(parent, Run):
        config = _beside(config, parent)
        parent = parent if parent.is_enabled else None
    fluent = surroundings.fluent_state()
    config = resolved(config, fluent)
    if not config.enabled:
        return Run(config, "", {"role": "none"}, journal=None, home=None)
    cwd = Path.cwd()
    where = destination_of(config)
    now_ms = time.time_ns() // 1_000_000
    header: dict[str, Any] = {
        "role": "opener",
        "start_ms": now_ms if start_ms is None else start_ms,
        "attempt": now_ms,
        "destination": asdict(where),
        "experiment": _experiment(config, cwd),
        "run_name": config.run_name and names.storable(config.run_name),
        "run_id": config.run_id,
    }
    if uid is not None:
        header["is_resumed"] = True
    if shared_uid is not None:
        header["is_shared"] = header["is_elected"] = True
    if parent is not None:
        header["parent"] = {"uid": parent.uid} if isinstance(parent, Run) else {"run_id": parent}
    elif uid is None and header["run_id"] is None:
        header |= _guest_of(fluent, where.tracking_uri) or _continued()
    if isinstance(parent, Run) and "keeper" in parent._header:  # noqa: SLF001
        header["keeper"] = parent._header["keeper"]  # noqa: SLF001
    if header["role"] == "guest":
        shared_uid = None  # it adds to the user's run, which is not ours to share
        header["experiment"] |= {"name": None, "id": fluent.active_run_experiment_id}
    run_tags = _tags_of(config, tags, note=config.description)
    late = run_tags
    if header["role"] == "opener" and header["run_id"] is None and uid is None:
        # One tag that MLflow refuses would refuse the run: those are set one by one, under a name it takes.
        late = {key: value for key, value in run_tags.items() if not _is_plain_tag(key, value)}
        plain = {key: value for key, value in run_tags.items() if key not in late}
        header["source"], header["tags"] = _source_of(parent), plain
    uid = uid or shared_uid
    keeper = _keeper_of(parent) if isinstance(parent, Run) else None
    if _recording:
        run = _watched(Run(config, uid or new_uid(), header, journal=_recording[-1], home=None))
        run._keeper = keeper  # noqa: SLF001
        run.set_tags(run_tags)
        return run
    _tell_new_store(config, where)
    home = Home.at(config.journal_dir)
    if uid is None and proposed_uid is not None and _claims(home, proposed_uid):
        uid = proposed_uid
    uid = uid or new_uid()
    # What happened before is recorded in one go, by a fold or a trial that others wait for; a run that
    # is shared is opened by one of them.
    journal = JournalWriter(home, uid, header, is_durable=start_ms is None and shared_uid is None)
    run = Run(config, uid, header, journal=journal, home=home)
    run._keeper = keeper  # noqa: SLF001
    if journal.open():
        dispatch_for(home, config.delivery, where).ensure(is_start=True)
    run.set_tags(late)
    # A guest too: the exit waits for its records, though it neither ends the run nor prints a line.
    closing.watch(run)
    return _watched(run)


def open_child(
    parent: Run,
    uid: str,
    *,
    name: str | None = None,
    start_ms: int | None = None,
    tags: Mapping[str, Any] | None = None,
    holds_models: bool = False,
    is_over: bool = False,
) -> Run:
    """Open one of many short runs under *parent*, in a fraction of a millisecond.

    It takes the parent's configuration, place and source as they are, without looking anything up. It
    survives ``kill -9`` as every run does; a power cut may cost those of the last seconds, because
    waiting for the disk would take longer than all the rest.

    Args:
        parent: Its parent, which stays open meanwhile.
        uid: Our name of it, shared in the sense of `open_run`.
        name: Its name; None lets MLflow choose.
        start_ms: When it began, in ms since 1970; None is now.
        tags: Tags of this run, over those of the configuration.
        holds_models: Its models, and those of runs under it, wait until it has ended, and are dropped
            unless it ends with ``keeps_models=True``. None of them is registered by the configuration.
        is_over: It ended before it is recorded: all of it is written at once, when it is ended here, as
            one record in its parent's journal.
    """
    config = parent.config
    if holds_models and config.register_model:
        config = config.replace(register_model=False)
    if not parent.is_enabled:
        return Run(config, "", {"role": "none"}, journal=None, home=None)
    now_ms = time.time_ns() // 1_000_000
    given = parent._header  # noqa: SLF001 - what the parent has resolved is what this function is about
    header: dict[str, Any] = {
        key: given[key] for key in ("destination", "experiment", "source") if key in given
    }
    run_tags = _tags_of(config, tags)
    plain = {key: value for key, value in run_tags.items() if _is_plain_tag(key, value)}
    header |= {
        "role": "opener",
        "is_shared": True,
        "start_ms": now_ms if start_ms is None else start_ms,
        "attempt": now_ms,
        "run_name": name,
        "parent": {"uid": parent.uid},
        "tags": plain,
    }
    if holds_models:
        header["keeper"] = {"uid": uid, "of": parent.uid}
    home = parent.home
    if home is None:
        run = Run(config, uid, header, journal=_recording[-1] if _recording else None, home=None)
        run.set_tags(run_tags)
        return run
    journal: Journal
    above = found if isinstance(found := parent._journal, JournalWriter) else None  # noqa: SLF001
    if is_over:
        append = parent._append_child  # noqa: SLF001
        journal = children.ChildJournal(home, uid, header, append=append, above=above)
    else:
        journal = JournalWriter(home, uid, header, is_durable=False, above=above)
    run = Run(config, uid, header, journal=journal, home=home)
    # No look for the courier: the parent's open journal keeps it here.
    journal.open()
    if len(plain) < len(run_tags):
        run.set_tags({key: value for key, value in run_tags.items() if key not in plain})
    closing.watch(run)
    return run


def _keeper_of(parent: Run) -> Run | None:
    keeper = parent._header.get("keeper")  # noqa: SLF001
    return parent if keeper and keeper["uid"] == parent.uid else parent._keeper  # noqa: SLF001


_PLACE = ("registry_uri", "experiment_name", "experiment_id", "artifact_location")


def _beside(config: MLflowConfig, parent: Run) -> MLflowConfig:
    """Send a run where its parent goes, unless its own configuration says where."""
    theirs = parent.config
    options: dict[str, Any] = {
        name: getattr(theirs, name)
        for name in ("journal_dir", "delivery")
        if name in theirs.given and name not in config.given
    }
    if "journal_dir" not in config.given and parent.home is not None:
        # Handed to a process with another environment, the parent still has its own.
        options["journal_dir"] = str(parent.home.path)
    if "tracking_uri" not in config.given and parent.is_enabled:
        options["tracking_uri"] = theirs.tracking_uri or parent.destination.tracking_uri
        names_experiment = {"experiment_name", "experiment_id"} & config.given
        for name in _PLACE:
            if (
                name in theirs.given
                and name not in config.given
                and not ("experiment" in name and names_experiment)
            ):
                options[name] = getattr(theirs, name)
    return config.replace(**options) if options else config


def _source_of(parent: Run | str | None) -> dict[str, str]:
    """Return who runs what: for a child what it was for its parent, which no worker process knows better."""
    theirs = parent._header.get("source") if isinstance(parent, Run) else None  # noqa: SLF001 - no public name
    return theirs or surroundings.source_tags(os.environ)


def _watched(run: Run) -> Run:
    if run.config.log_system_metrics:
        run.watch_system()
    return run


def _claims(home: Home, uid: str) -> bool:
    """Take a name for a new run; False where a process that was given the same one was faster."""
    if home.done_state(uid) is not None:
        return False
    try:
        home.create()
        os.mkdir(home.run(uid).path, mode=0o700)
        os.chmod(home.run(uid).path, 0o700)  # the umask may have taken too much
    except FileExistsError:
        return False
    except (OSError, ConfigError):
        return True  # not this run's fault; the journal tells of it
    return True


def attached_run(config: MLflowConfig, uid: str, *, parent: Run | None = None) -> Run | None:
    """Return a handle on a run that was opened elsewhere as *uid*; None where there is none (yet).

    Args:
        config: The configuration that it was opened with.
        uid: What was its `open_run`'s *proposed_uid*, or `open_child`'s *uid*.
        parent: The run above it, in whose journal it may still be.
    """
    config = resolved(config)
    home = Home.at(config.journal_dir)
    if not home.run(uid).writers() and home.done_state(uid) is None:
        is_waiting = parent is not None and children.bring_out(home, parent.uid, uid)
        if not is_waiting and not home.run(uid).path.exists():
            return None
    header = {
        "role": "attached",
        "destination": asdict(destination_of(config)),
        "experiment": _experiment(config, Path.cwd()),
        "run_name": config.run_name and names.storable(config.run_name),
        "run_id": config.run_id,
    }
    run = Run.__new__(Run)  # the journal is held by the handle from the first moment on
    journal = attached_journal(home, uid, header, run)
    Run.__init__(run, config, uid, header, journal=journal, home=home)
    return run


def _tags_of(
    config: MLflowConfig, tags: Mapping[str, Any] | None, *, note: str | None = None
) -> dict[str, str]:
    """Return the tags that a run begins with, as `Run.set_tags` would keep them."""
    given = {**config.tags, **(tags or {}), **({"mlflow.note.content": note} if note else {})}
    shown = masked({key: str(value) for key, value in given.items()}, config.redact)
    return {key: names.storable(value) for key, value in shown.items()}


def _is_plain_tag(key: str, value: str) -> bool:
    return names.is_accepted(key) and len(value) <= _TAG_CHARS


def resolved(config: MLflowConfig, fluent: surroundings.FluentState | None = None) -> MLflowConfig:
    """Return *config* with the user's ``mlflow.set_*``, the environment and the defaults filled in."""
    fluent = fluent or surroundings.fluent_state()
    user_calls = {
        "tracking_uri": fluent.tracking_uri,
        "registry_uri": fluent.registry_uri,
        "experiment_id": fluent.experiment_id,
    }
    return config.resolved(user_calls={key: value for key, value in user_calls.items() if value is not None})


def destination_of(config: MLflowConfig) -> Destination:
    """Return where a resolved configuration sends its runs, independent of the working directory."""
    cwd = Path.cwd()
    tracking_uri = surroundings.absolute_uri(
        config.tracking_uri or surroundings.default_tracking_uri(cwd), cwd
    )
    registry_uri = surroundings.absolute_uri(config.registry_uri or tracking_uri, cwd)
    # It is written into journals: credentials stay in memory, and in the courier's environment.
    tracking_uri, registry_uri = credentials.stripped(tracking_uri), credentials.stripped(registry_uri)
    return Destination(tracking_uri, registry_uri, credentials.user_for(tracking_uri, registry_uri))


def _experiment(config: MLflowConfig, cwd: Path) -> dict[str, Any]:
    return {
        "name": None if config.experiment_id else config.experiment_name,
        "id": config.experiment_id,
        "artifact_location": config.artifact_location,
        # Where MLflow itself would put artifacts for a database: under the working directory of
        # whoever creates the experiment.
        "artifact_root": (cwd / "mlruns").as_uri(),
    }


def _guest_of(fluent: surroundings.FluentState, tracking_uri: str) -> dict[str, Any]:
    """Return what makes us a guest of the user's own active run; nothing if we are not."""
    if fluent.active_run_id is None:
        return {}
    reason = None
    if fluent.active_run_is_autolog:
        reason = "it belongs to mlflow's autolog"
    elif not _is_same_store(fluent.active_run_tracking_uri, tracking_uri):
        reason = f"the configuration names another destination ({tracking_uri})"
    if reason is not None:
        logger.warning("not recording into the active MLflow run %s: %s", fluent.active_run_id, reason)
        return {}
    return {"role": "guest", "run_id": fluent.active_run_id}


def _tell_new_store(config: MLflowConfig, where: Destination) -> None:
    if config.tracking_uri is None and not where.sqlite_file().exists():
        logger.warning(
            "no tracking URI is configured: recording into a new MLflow store, %s", where.tracking_uri
        )


def _is_same_store(theirs: str | None, ours: str) -> bool:
    if theirs is None:
        return True
    # MLflow quotes a path's spaces in its default URI, and SQLAlchemy takes both spellings for one file.
    return unquote(credentials.stripped(surroundings.absolute_uri(theirs, Path.cwd()))) == unquote(ours)


def _continued() -> dict[str, Any]:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and _consumed.acquire(blocking=False):
        return {"run_id": run_id}
    return {}
