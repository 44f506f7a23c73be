"""Where a test stands, and where its runs go: an empty folder, a ready SQLite store, a real server.

::

    <folder>/cwd/     the working directory        isolated(folder)
    <folder>/home/    MLPIPELINE_HOME, made by the first run
    store.db          migrated once, copied per test       migrated_store, copied_store
    mlflow server     a real one, on a store of its own    serving

What other processes do is waited for with `wait_until`, which tells what the home knows if it never comes.

Nothing here needs pytest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mlpipeline.tracking import closing
from mlpipeline.tracking.account import accounts, courier_reports
from mlpipeline.tracking.dispatch import stop_couriers
from mlpipeline.tracking.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SERVER_START_S = 100
_SERVER_STOP_S = 10


@contextmanager
def isolated(folder: Path) -> Iterator[Path]:
    """Stand in an empty working directory, with a journal home beside it, both in *folder*.

    No setting of MLflow's or ours that the machine has is left inside the block, and afterwards
    nothing of what the block left in the environment or in MLflow's fluent state.

    Yields:
        The working directory.
    """
    before, cwd_before = dict(os.environ), os.getcwd()
    cwd = folder / "cwd"
    cwd.mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MLPIPELINE_"))]:
        del os.environ[name]
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
    os.chdir(cwd)
    try:
        yield cwd
    finally:
        _forget_runs()
        stop_couriers()  # one that lingers would end in the middle of what comes next
        _forget_fluent_state()
        os.chdir(cwd_before)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ |= before


def wait_until(holds: Callable[[], Any], *, within_s: float = 90.0, home: Path | None = None) -> None:
    """Wait until *holds* gives a true value.

    Args:
        holds: Asked ten times a second.
        within_s: Seconds to wait at most; a courier beside a busy test suite needs its time.
        home: A journal home whose couriers are waited for.

    Raises:
        AssertionError: It did not hold in that time; with what the home tells of its runs and couriers.
    """
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"it did not hold within {within_s:g} s" + (_told(home) if home else ""))
        time.sleep(0.1)


def _told(folder: Path) -> str:
    home = Home(folder)
    log = home.courier_log.read_text("utf-8", "replace")[-3000:] if home.courier_log.exists() else "(no log)"
    return "\n".join(["", *map(str, accounts(home)), *map(str, courier_reports(home)), log])


def clean_environ() -> dict[str, str]:
    """Return this process's environment without settings of MLflow's or ours, for a process to start."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MLPIPELINE_"))}
    return {**environ, "MLFLOW_DISABLE_TELEMETRY": "true"}


def _forget_fluent_state() -> None:
    """End the fluent run, and forget what `mlflow.set_*` keeps for the rest of the process."""
    if (mlflow := sys.modules.get("mlflow")) is None:
        return
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None  # noqa: SLF001 - set_experiment has no way back
    # MLflow keeps stores and engines by their URIs, and a relative one is the file of the folder where it was used first.
    for kind, package, name in (
        ("tracking", "_tracking_service", "TrackingStoreRegistry"),
        ("model_registry", "_model_registry", "ModelRegistryStoreRegistry"),
    ):
        stores = sys.modules.get(f"mlflow.store.{kind}.sqlalchemy_store")
        engines = getattr(getattr(stores, "SqlAlchemyStore", None), "_engine_map", {})
        for uri in [uri for uri in engines if uri.startswith("sqlite:///") and uri[10] != "/"]:
            engines.pop(uri).dispose()
        registry = sys.modules.get(f"mlflow.tracking.{package}.registry")  # read from what MLflow has loaded
        by_uri = getattr(getattr(registry, name, None), "_get_store_with_resolved_uri", None)
        if by_uri is not None:
            by_uri.cache_clear()


def _forget_runs() -> None:
    """Let the end of the process neither wait for this place's runs nor print their lines."""
    for run in closing.watched():
        closing.forget(run)


def migrated_store(folder: Path) -> Path:
    """Return the path of an empty SQLite store that MLflow has migrated; copy it, never write to it.

    Creating one takes MLflow about seven seconds, so one per MLflow version is kept in *folder*.
    """
    cached = folder / f"{version('mlflow')}.db"
    if not cached.exists():
        from mlflow import MlflowClient

        # Another session may be doing the same: the folder sees whole files only.
        fresh = cached.with_suffix(f".{os.getpid()}")
        MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments()
        fresh.replace(cached)
    return cached


def copied_store(migrated: Path, path: Path, artifacts: str) -> str:
    """Copy an empty store to *path*.

    Args:
        migrated: What `migrated_store` gave.
        path: Where the copy is to be.
        artifacts: Where experiment 0 is to keep files. MLflow wrote the folder in which the store was
            made into it, and nothing in its API moves that, hence the statement.

    Returns:
        The copy's URI.
    """
    shutil.copy(migrated, path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", [f"{artifacts}/0"]
        )
    return f"sqlite:///{path}"


@dataclass(frozen=True)
class Server:
    """A running ``mlflow server``."""

    uri: str
    log: Path
    pid: int


@contextmanager
def serving(folder: Path, store_uri: str, *options: str, port: int = 0, **environ: str) -> Iterator[Server]:
    """Run a real MLflow server in *folder*.

    Args:
        folder: Where its log and its artifacts are to be.
        store_uri: Its store.
        *options: More options of its command line.
        port: Where to listen; 0 picks a free port.
        **environ: More environment variables.

    Raises:
        RuntimeError: It ended or did not answer in time; with the end of its log.
    """
    log = folder / "server.log"
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", store_uri, "--artifacts-destination", str(folder / "artifacts")),
                *options,
            ],
            cwd=folder,
            env={
                **clean_environ(),
                # Its job runner is a second process that no test needs.
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A group of its own: the worker is a child of the process that we know.
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, uri, log)
        yield Server(uri=uri, log=log, pid=process.pid)
    finally:
        _stop_group(process)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    deadline_s = time.monotonic() + _SERVER_START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        # Refused while it starts, reset or late while its worker does.
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{uri}/health", timeout=2) as answer,  # noqa: S310 - our own URI
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"mlflow server: exit code {process.poll()}, log:\n{log.read_text()[-4000:]}")


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started: asked first, then told."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        # The group outlives its leader while a worker is still in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_SERVER_STOP_S)
