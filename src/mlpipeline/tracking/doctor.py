"""Why does it not arrive? One check after the other, from the configuration to a written artifact.

::

    examine(config)
      settings ─ configuration ─ connection ─ server ─ clock ─ authentication ─ database
          ─ experiments ─ registry ─ artifacts          the store: what fails first blocks those after it
      journal ─ delivery ─ packages                     this machine: always looked at
                  │
                  ▼
      Finding(name, state, detail, fix)                 ok, warning, failed, or skipped and why

A dead server is told after seconds: a socket is tried before MLflow is imported, each question is
asked once, and none is waited for longer than `TIMEOUT_S`. What is shown names where credentials
come from, and never what they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from mlpipeline.core import credentials
from mlpipeline.core.errors import MLPipelineError
from mlpipeline.tracking import home as homes, surroundings
from mlpipeline.tracking.account import accounts, courier_reports, lag_s
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import destination_of, resolved
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.verdicts import Refused, Unavailable, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlflow import MlflowClient

    from mlpipeline.core.config import MLflowConfig

TIMEOUT_S = 5.0
"""Longest wait for one answer."""

SKEW_S = 5.0
"""Clocks that differ by more are told: points would lie before the start of their run."""

EXPERIMENT = "mlpipeline-doctor"
"""Where the throw-away run of the artifact check is made."""

TESTED = {
    "mlflow": "3.17.2",
    "mlflow-skinny": "3.17.2",
    "mlflow-tracing": "3.17.2",
    "cloudpickle": "3.1.2",
    "skops": "0.16.0",
    "lightning": "2.6.6",
    "torch": "2.13.0",
    "xgboost": "3.2.0",
    "optuna": "5.0.0",
    "scikit-learn": "1.9.1",
    "keras": "3.15.1",
}
"""The newest versions that the tests run with; a test holds this against constraints.txt."""

_NEEDED_BYTES = 100 * 2**20
_SCARCE_BYTES = 2**30

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: The check.
        state: ``ok``; ``warning``, which works and will hurt; ``failed``; or ``skipped``.
        detail: What was found, or why it was not looked at. Without credentials.
        fix: What to do, a command to type where there is one; None where nothing is to be done.
    """

    name: str
    state: State
    detail: str
    fix: str | None = None


@dataclass
class Examination:
    """What the checks know so far.

    Attributes:
        config: The configuration as it was given.
        timeout_s: Longest wait for one answer.
        environ: The user's environment.
        destination: Where runs go; None while the configuration is not understood.
        home: The journal home.
        settled: The configuration with everything filled in.
        blocked: Why the store cannot be asked any more; None while it can.
        clock: What the server's Date header said, and the local time in the middle of that request.
    """

    config: MLflowConfig
    timeout_s: float = TIMEOUT_S
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    destination: Destination | None = None
    home: Home | None = None
    settled: MLflowConfig | None = None
    blocked: str | None = None
    clock: tuple[float, float] | None = None
    _client: MlflowClient | None = field(default=None, repr=False)

    def store(self) -> Destination:
        """Return the destination, for the checks that are made only where there is one."""
        assert self.destination is not None
        return self.destination

    def client(self) -> MlflowClient:
        """Return a client for the destination, made once."""
        if self._client is None:
            self._client = self.store().client(self.timeout_s)
        return self._client

    def get(self, path: str) -> Any:
        """Ask the server for a path as MLflow does, once, and return requests' answer, whatever its status.

        Raises:
            Unavailable: No answer came in time.
        """
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        creds = get_default_host_creds(credentials.with_credentials(self.store().tracking_uri))  # type: ignore[no-untyped-call]  # MLflow's own
        try:
            return http_request(  # type: ignore[no-untyped-call]  # MLflow's own
                creds, path, "GET", max_retries=0, raise_on_status=False, timeout=self.timeout_s
            )
        except Exception as error:
            raise judged(error) from error


def examine(
    config: MLflowConfig, *, timeout_s: float = TIMEOUT_S, environ: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Yield what each check finds, as soon as it is found.

    Nothing is changed, but for a throw-away run in the experiment ``mlpipeline-doctor``, which is
    deleted again. A store or a journal home that does not exist yet is not made.

    Args:
        config: As for a training.
        timeout_s: Longest wait for one answer.
        environ: The user's environment, where this process has changed its own. None: this process's.
    """
    known = Examination(config, timeout_s, dict(os.environ) if environ is None else environ)
    for name, check, needs_store in CHECKS:
        if needs_store and (known.blocked or known.destination is None):
            found = Finding(name, "skipped", known.blocked or "the configuration is not understood")
        else:
            try:
                found = check(known)
            except (Unavailable, Refused) as error:
                found = Finding(name, "failed", str(error), _fix_for(known, error))
            except Exception as error:  # noqa: BLE001 - MLflow's and the system's; the other checks go on
                found = Finding(name, "failed", f"{type(error).__name__}: {judged(error)}")
        yield Finding(
            found.name,
            found.state,
            credentials.public_uri(found.detail),
            found.fix and credentials.public_uri(found.fix),
        )


# --- the configuration -----------------------------------------------------------------------------


def check_configuration(known: Examination) -> Finding:
    """What was given is understood, and where each part of the destination was given."""
    fluent = surroundings.fluent_state()
    try:
        known.settled = settled = resolved(known.config, fluent)
        known.destination = destination_of(settled)
    except MLPipelineError as error:
        return Finding(
            "configuration", "failed", str(error), "correct the option or the variable that it names"
        )
    user_calls = {
        "tracking_uri": fluent.tracking_uri,
        "registry_uri": fluent.registry_uri,
        "experiment_id": fluent.experiment_id,
    }
    sources = known.config.sources(
        user_calls={name: value for name, value in user_calls.items() if value is not None}
    )
    where = known.destination
    parts = [f"runs go to {where.tracking_uri} ({sources.get('tracking_uri', 'the default of MLflow')})"]
    if where.registry_uri != where.tracking_uri:
        parts.append(f"models to {where.registry_uri} ({sources.get('registry_uri', 'default')})")
    option = "experiment_id" if settled.experiment_id is not None else "experiment_name"
    parts.append(f"experiment {getattr(settled, option)!r} ({sources.get(option, 'default')})")
    if not settled.enabled:
        return Finding(
            "configuration",
            "warning",
            f"nothing is recorded: enabled is False ({sources.get('enabled', 'default')})",
            "unset MLPIPELINE_ENABLED, or give enabled=True",
        )
    return Finding("configuration", "ok", "; ".join(parts))


def check_settings(known: Examination) -> Finding:
    """Variables that change what happens, and are easily forgotten or misspelled."""
    environ = known.environ
    told: list[tuple[str, str]] = []
    if environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in {"true", "1"}:
        told.append(
            (
                "MLFLOW_ALLOW_FILE_STORE lets file stores pass, which MLflow 3.17 maintains no more",
                "mlflow migrate-filestore, then unset MLFLOW_ALLOW_FILE_STORE",
            )
        )
    if environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}:
        told.append(
            (
                "MLFLOW_TRACKING_INSECURE_TLS: certificates are not checked",
                "set MLFLOW_TRACKING_SERVER_CERT_PATH to the CA's certificate, and unset it",
            )
        )
    if environ.get("MLFLOW_RUN_ID"):
        told.append(("MLFLOW_RUN_ID is set: the next training continues that run", "unset MLFLOW_RUN_ID"))
    if environ.get("MLFLOW_TRACKING_USERNAME") and not environ.get("MLFLOW_TRACKING_PASSWORD"):
        told.append(
            (
                "MLFLOW_TRACKING_USERNAME without MLFLOW_TRACKING_PASSWORD is ignored by MLflow",
                "export MLFLOW_TRACKING_PASSWORD, too",
            )
        )
    if environ.get("DO_NOT_TRACK", "true").lower() not in {"true", "false", ""}:
        told.append(("DO_NOT_TRACK is heard by MLflow only as 'true'", "export DO_NOT_TRACK=true"))
    if told:
        return Finding(
            "settings", "warning", "; ".join(what for what, _ in told), "; ".join(fix for _, fix in told)
        )
    named = sorted(name for name in environ if name.startswith(("MLFLOW_", "MLPIPELINE_")))
    return Finding("settings", "ok", f"set: {', '.join(named)}" if named else "no variable is set")


# --- the store ---------------------------------------------------------------------------------------


def check_connection(known: Examination) -> Finding:
    """Somebody listens at the address."""
    where = known.store()
    parts = urlsplit(where.tracking_uri)
    if where.is_sqlite or not parts.hostname:
        return Finding("connection", "skipped", "the store is not behind a network")
    begun_s = time.monotonic()
    try:
        where.probe(min(known.timeout_s, 3.0))
    except Unavailable as error:
        known.blocked = "nobody answers there"
        return Finding("connection", "failed", str(error), _start_it(where))
    taken_ms = (time.monotonic() - begun_s) * 1000
    return Finding("connection", "ok", f"{parts.hostname} answers after {taken_ms:.0f} ms")


def check_server(known: Examination) -> Finding:
    """It is an MLflow server, and of a version that this client can talk to."""
    from importlib.metadata import version

    if not known.store().is_http:
        return Finding("server", "skipped", "the store is not behind a server")
    before_s = time.time()
    try:
        health = known.get("/health")
    except Unavailable as error:
        known.blocked = "the server does not answer"
        return Finding("server", "failed", str(error), _fix_for(known, error))
    if date := health.headers.get("Date"):
        with contextlib.suppress(ValueError):
            known.clock = parsedate_to_datetime(date).timestamp(), (before_s + time.time()) / 2
    if health.status_code in {502, 503, 504}:
        known.blocked = "the server is not healthy"
        return Finding(
            "server",
            "failed",
            f"/health answers {health.status_code}",
            "look at the server's log; a gateway answers so while MLflow starts or is down",
        )
    told = known.get("/version")
    server, ours = told.text.strip(), version("mlflow")
    if told.status_code != 200 or not re.match(r"\d+\.\d+", server):
        return Finding(
            "server",
            "warning",
            f"/health answers {health.status_code}, and /version tells no version",
            "see that the URI ends where MLflow begins, such as http://host:5000 or http://host/prefix",
        )
    detail = f"MLflow {server}; here {ours}"
    major, minor = (int(part) for part in server.split(".")[:2])
    if major < 3:
        known.blocked = f"the server has MLflow {server}"
        return Finding(
            "server",
            "failed",
            f"{detail}: it knows no logged models",
            f'upgrade the server: pip install "mlflow=={ours}" and mlflow db upgrade',
        )
    if (major, minor) < (3, 17) or major > 3:
        return Finding(
            "server",
            "warning",
            f"{detail}; tried are servers from 3.17 to below 4",
            f'take the same version on both sides: pip install "mlflow=={server}" here, or {ours} there',
        )
    return Finding("server", "ok", detail)


def check_clock(known: Examination) -> Finding:
    """The server's clock and this machine's agree."""
    if known.clock is None:
        return Finding("clock", "skipped", "no server told its time")
    theirs_s, ours_s = known.clock
    ahead_s = ours_s - theirs_s
    if abs(ahead_s) > SKEW_S + 1:  # the header has whole seconds
        side = "ahead of" if ahead_s > 0 else "behind"
        return Finding(
            "clock",
            "warning",
            f"this machine is {abs(ahead_s):.0f} s {side} the server",
            "set the clock of the one that is wrong: timedatectl set-ntp true",
        )
    return Finding("clock", "ok", "the server's clock agrees")


def check_authentication(known: Examination) -> Finding:
    """The server lets us in: not known (401) and not permitted (403) are told apart."""
    where = known.store()
    if not where.is_http:
        return Finding("authentication", "skipped", "the store asks for no credentials")
    source = credentials.source_for(where.tracking_uri)
    answer = known.get("/api/2.0/mlflow/experiments/search?max_results=1")
    status = answer.status_code
    if status == 200:
        return Finding(
            "authentication",
            "ok",
            f"let in with the credentials of {source}" if source else "none are asked for",
        )
    known.blocked = f"the server answers {status}"
    if status == 401 and not source:
        return Finding(
            "authentication",
            "failed",
            "the server asks for credentials, and none are set (401)",
            "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
            "mlflow login keeps them in ~/.mlflow/credentials",
        )
    if status == 401:
        return Finding(
            "authentication",
            "failed",
            f"the server does not accept the credentials of {source} (401)",
            f"correct what {source} say{'s' if ' and ' not in source else ''}",
        )
    if status == 403 and "host" in answer.text.lower():
        address = urlsplit(where.tracking_uri).netloc
        return Finding(
            "authentication",
            "failed",
            "the server does not know itself by this name (403, Invalid Host header)",
            f"start it with: mlflow server --allowed-hosts {address}",
        )
    if status == 403:
        whose = f"the user of {source}" if source else "a user without credentials"
        return Finding(
            "authentication",
            "failed",
            f"{whose} is known and not permitted to list experiments (403)",
            "ask the server's administrator for the permission, or use another user",
        )
    if status == 404:
        return Finding(
            "authentication",
            "failed",
            "there is no MLflow at this address (404)",
            "correct the URI: without /#/ or /api; with the prefix that --static-prefix gave",
        )
    return Finding(
        "authentication", "failed", f"the server answers {status} {answer.reason}", "look at the server's log"
    )


def check_database(known: Examination) -> Finding:
    """A database is there, can be written, is not locked, and has the tables of this MLflow."""
    where = known.store()
    if where.is_sqlite:
        return _sqlite(known, where.sqlite_file())
    if where.is_http or "://" not in where.tracking_uri:
        return Finding("database", "skipped", "the server's own affair")
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(
            credentials.with_credentials(where.tracking_uri), poolclass=sqlalchemy.pool.NullPool
        )
        with engine.connect() as connection:
            found = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    except ModuleNotFoundError as error:
        known.blocked = f"the package {error.name} is missing"
        package = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}.get(
            str(error.name), error.name
        )
        return Finding("database", "failed", known.blocked, f'pip install "{package}"')
    except sqlalchemy.exc.SQLAlchemyError as error:
        known.blocked = "the database cannot be asked"
        words = str(getattr(error, "orig", None) or error).splitlines()[0]
        return Finding(
            "database",
            "failed",
            words,
            "correct user, password or database name in MLFLOW_TRACKING_URI; a new database is made ready by "
            "the first run",
        )
    return _schema(known, str(found), "<the database's URI>")


def _sqlite(known: Examination, path: Path) -> Finding:
    folder = path.parent
    if not path.exists():
        known.blocked = "there is no store yet"
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return Finding("database", "ok", f"{path} is not there yet; the first run makes it")
        return Finding(
            "database",
            "failed",
            f"{path} cannot be made: its folder is missing or not writable",
            f"mkdir -p {folder}" if not folder.exists() else f"chmod u+wx {folder}",
        )
    try:
        version = _asked_of_sqlite(path)
    except sqlite3.Error as error:
        known.blocked = "the database cannot be written"
        said = str(error)
        if "locked" in said:
            return Finding(
                "database",
                "failed",
                f"another process holds {path} locked",
                f"find it and let it finish, or end it: fuser -v {path}",
            )
        if "readonly" in said or "unable to open" in said:
            return Finding(
                "database", "failed", f"{path} cannot be written: {said}", f"chmod u+w {path} {folder}"
            )
        return Finding(
            "database",
            "failed",
            f"{path}: {said}",
            "take another file, or restore this one from a backup; MLFLOW_TRACKING_URI names it",
        )
    if version is None:
        known.blocked = "there is no store yet"
        return Finding("database", "ok", f"{path} is empty; the first run makes the tables")
    found = _schema(known, version, f"sqlite:///{path}")
    if found.state == "ok" and homes.is_remote(str(path)):
        return Finding(
            "database",
            "warning",
            f"{path} is on a network file system, where SQLite's locks are not reliable",
            "run a server beside the file (mlpipeline ui), and record to it",
        )
    return found


def _asked_of_sqlite(path: Path) -> str | None:
    """Return the schema version of a database that can be written now; None if it is empty."""
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=1.0, isolation_level=None)
    ) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        connection.execute("BEGIN IMMEDIATE")
        # Taking the lock does not touch the file; only a write tells that it is read-only.
        connection.execute(
            f"PRAGMA user_version = {connection.execute('PRAGMA user_version').fetchone()[0]:d}"
        )
        connection.execute("ROLLBACK")
        if not tables:
            return None
        if "experiments" not in tables or "alembic_version" not in tables:
            raise sqlite3.DatabaseError("a database of another program, without MLflow's tables")
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else "none"


def _schema(known: Examination, version: str, uri: str) -> Finding:
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(db_url=""))  # type: ignore[no-untyped-call]  # MLflow's own
    newest = scripts.get_current_head()
    if version == newest:
        return Finding("database", "ok", f"writable; schema {version} is this MLflow's")
    known.blocked = "the database has the tables of another MLflow"
    try:
        scripts.get_revision(version)
    except CommandError:
        return Finding(
            "database",
            "failed",
            f"schema {version} is not known here: a newer MLflow's, or another program's",
            "pip install --upgrade mlflow, or take another database",
        )
    return Finding(
        "database",
        "failed",
        f"schema {version} is older than this MLflow's, {newest}",
        f"take a backup, then: mlflow db upgrade {uri}",
    )


def check_experiments(known: Examination) -> Finding:
    """The store answers, and the experiment can take runs."""
    assert known.settled is not None
    client = known.client()
    client.search_experiments(max_results=1)
    id_, name = known.settled.experiment_id, known.settled.experiment_name
    if id_ is not None:
        found: Any = client.get_experiment(id_)
    else:
        found = client.get_experiment_by_name(name)
    if found is None:
        return Finding("experiments", "ok", f"the store answers; the first run makes experiment {name!r}")
    if found.lifecycle_stage != "active":
        return Finding(
            "experiments",
            "failed",
            f"experiment {found.name!r} is deleted, and takes no runs",
            f"mlflow experiments restore -x {found.experiment_id}, or choose another name",
        )
    return Finding("experiments", "ok", f"the store answers; experiment {found.name!r} takes runs")


def check_registry(known: Examination) -> Finding:
    """The registry of models answers."""
    where = known.store()
    if where.registry_uri != where.tracking_uri:
        Destination(where.registry_uri, where.registry_uri).probe(min(known.timeout_s, 3.0))
    found = known.client().search_registered_models(max_results=1)
    return Finding("registry", "ok", "it answers" if found else "it answers, and holds no model yet")


def check_artifacts(known: Examination) -> Finding:
    """A small file can be written as a run's artifact, and read back."""
    where = known.store()
    sink = MlflowSink(where, timeout_s=known.timeout_s)
    root = (Path.cwd() / "mlruns").as_uri()
    experiment_id = sink.experiment(EXPERIMENT, None, None, root)
    run = sink.create_run(experiment_id, "doctor", time.time_ns() // 1_000_000, {"mlpipeline.doctor": "1"})
    uri = str(run.info.artifact_uri)
    try:
        _written_and_read(known, sink, run.info.run_id)
    except (Unavailable, Refused, OSError) as error:
        return Finding("artifacts", "failed", f"{uri}: {error}", _artifact_fix(where, uri))
    except Exception as error:  # noqa: BLE001 - of an artifact store's own client
        return Finding("artifacts", "failed", f"{uri}: {judged(error)}", _artifact_fix(where, uri))
    finally:
        with contextlib.suppress(Unavailable, Refused):
            sink.delete_files(uri)
        with contextlib.suppress(Unavailable, Refused):
            sink.set_status(run.info.run_id, "FINISHED", time.time_ns() // 1_000_000)
            sink.delete_run(run.info.run_id)
    if where.is_http and _is_local(uri) and not where.is_here:
        return Finding(
            "artifacts",
            "warning",
            f"files go to {uri} of this machine, where the server will not find them",
            "start the server with --serve-artifacts, and make a new experiment",
        )
    return Finding("artifacts", "ok", f"written to {uri}, read back, and the run deleted")


def _written_and_read(known: Examination, sink: MlflowSink, run_id: str) -> None:
    name, content = "mlpipeline-doctor.txt", f"written by mlpipeline doctor at {time.time():.6f}\n"
    with tempfile.TemporaryDirectory(prefix="mlpipeline-") as folder:
        sent = Path(folder) / name
        sent.write_text(content, "utf-8")
        sink.upload(run_id, sent, None)
        back = Path(folder) / "back"
        back.mkdir()
        read = Path(known.client().download_artifacts(run_id, name, str(back))).read_text("utf-8")
    if read != content:
        raise Unavailable("what was read back is not what was written")


def _artifact_fix(where: Destination, uri: str) -> str:
    if uri.startswith("mlflow-artifacts:") or (where.is_http and not _is_local(uri)):
        return "look at the server's log: its --artifacts-destination must be writable for it"
    if _is_local(uri):
        return f"make the folder writable: {uri}; with a server, start it with --serve-artifacts"
    return f"install the client of {urlsplit(uri).scheme}:// and set its credentials on this machine"


# --- this machine --------------------------------------------------------------------------------------


def check_journal(known: Examination) -> Finding:
    """The journal home can be written, lies on a disk of this machine, and has room."""
    directory = known.settled.journal_dir if known.settled is not None else known.config.journal_dir
    known.home = home = Home.at(directory)
    other = "choose another with journal_dir= or MLPIPELINE_HOME"
    try:
        if home.path.exists():
            home.create()
        there = next(folder for folder in (home.path, *home.path.parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(there).free
    except (OSError, MLPipelineError) as error:
        return Finding("journal", "failed", f"{home.path} cannot be written: {error}", other)
    told = f"{home.path}, {free / 2**30:.1f} GiB free" + (
        "" if home.path.exists() else "; the first run makes it"
    )
    if free < _NEEDED_BYTES:
        return Finding("journal", "failed", f"the disk is full: {told}", f"make room there, or {other}")
    if homes.is_remote(str(home.path)):
        return Finding(
            "journal",
            "warning",
            f"{told}: on a network file system, where a killed training is noticed late",
            "set MLPIPELINE_HOME to a folder on a local disk",
        )
    if free < _SCARCE_BYTES:
        return Finding("journal", "warning", f"{told}", "make room: models wait there until they are sent")
    return Finding("journal", "ok", told)


def check_delivery(known: Examination) -> Finding:
    """Nothing waits that nobody sends, and nothing was refused."""
    home = known.home
    assert home is not None
    found = accounts(home)
    pending = sum(account.counts.pending for account in found)
    refused = sum(account.counts.refused for account in found)
    dropped = sum(account.counts.dropped for account in found)
    couriers = courier_reports(home)
    at_work = ", ".join(f"process {courier.get('pid')}" for courier in couriers) or "none"
    detail = f"{pending} records wait, {refused} refused, {dropped} dropped; courier: {at_work}"
    if refused:
        return Finding(
            "delivery",
            "warning",
            detail,
            "mlpipeline status shows what was refused and why; mlpipeline status --forget-refused deletes it",
        )
    problems = sorted({account.problem for account in found if account.problem})
    if pending and (problems or not couriers) and not any(account.is_live for account in found):
        age_s = lag_s(home)
        why = f"; {problems[0]}" if problems else ""
        return Finding(
            "delivery", "warning", f"{detail}; the oldest for {age_s:.0f} s{why}", "mlpipeline sync"
        )
    if dropped:
        return Finding("delivery", "warning", detail, "make room on the disk of the journal home")
    return Finding("delivery", "ok", detail)


def check_packages(known: Examination) -> Finding:  # noqa: ARG001 - all checks are called alike
    """Installed versions are those that this package asks for, and no newer than those it is tested with."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement
    from packaging.version import Version

    installed: dict[str, str] = {}
    for name in TESTED:
        with contextlib.suppress(PackageNotFoundError):
            installed[name] = version(name)
    try:
        asked = [Requirement(text) for text in requires("mlpipeline") or ()]
    except PackageNotFoundError:
        asked = []
    wrong = [
        f"{one.name}{one.specifier}"
        for one in asked
        if one.name in installed and not one.specifier.contains(installed[one.name], prereleases=True)
    ]
    if wrong:
        have = ", ".join(f"{Requirement(text).name} {installed[Requirement(text).name]}" for text in wrong)
        return Finding(
            "packages",
            "failed",
            f"not what mlpipeline needs: {have}",
            "pip install " + " ".join(f'"{text}"' for text in sorted(set(wrong))),
        )
    parts = {name: installed.get(name) for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")}
    if len(set(filter(None, parts.values()))) > 1:
        return Finding(
            "packages",
            "failed",
            "MLflow's parts have different versions: " + _listed(parts),
            f'pip install --force-reinstall --no-deps "mlflow=={parts["mlflow"]}" '
            f'"mlflow-skinny=={parts["mlflow"]}" "mlflow-tracing=={parts["mlflow"]}"',
        )
    newer = {
        name: text for name, text in installed.items() if Version(text).major > Version(TESTED[name]).major
    }
    if newer:
        return Finding(
            "packages",
            "warning",
            "not tested with these: " + _listed(newer),
            "if something goes wrong: pip install " + " ".join(f'"{name}=={TESTED[name]}"' for name in newer),
        )
    return Finding("packages", "ok", _listed(installed))


def _listed(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {text}" for name, text in versions.items() if text)


def _is_local(uri: str) -> bool:
    return urlsplit(uri).scheme in {"", "file"}


def _start_it(where: Destination) -> str:
    parts = urlsplit(where.tracking_uri)
    if where.is_http and where.is_here:
        return f"start it: mlflow server --host {parts.hostname} --port {parts.port or 80}"
    return "see that it runs and that no firewall is between, or correct MLFLOW_TRACKING_URI"


def _fix_for(known: Examination, error: Unavailable | Refused) -> str | None:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "SSLError" in text:
        return "set MLFLOW_TRACKING_SERVER_CERT_PATH to the CA's certificate"
    if "WRONG_VERSION_NUMBER" in text:
        return "the server speaks no TLS: write http:// instead of https://"
    if isinstance(error, Unavailable) and error.is_denied:
        source = credentials.source_for(known.store().tracking_uri) if known.destination else ""
        return f"ask for the permission, or use other credentials than those of {source or 'nobody'}"
    if "restore" in text:
        return None  # it says so itself
    if known.destination is not None and known.destination.is_http:
        return "look at the server's log"
    return None


Check = tuple[str, "Callable[[Examination], Finding]", bool]

CHECKS: tuple[Check, ...] = (
    ("settings", check_settings, False),
    ("configuration", check_configuration, False),
    ("connection", check_connection, True),
    ("server", check_server, True),
    ("clock", check_clock, True),
    ("authentication", check_authentication, True),
    ("database", check_database, True),
    ("experiments", check_experiments, True),
    ("registry", check_registry, True),
    ("artifacts", check_artifacts, True),
    ("journal", check_journal, False),
    ("delivery", check_delivery, False),
    ("packages", check_packages, False),
)
"""Name, check, and whether it asks the store; in this order."""
