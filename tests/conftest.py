"""Real stores, a real server, and a clean place to stand for every test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlflow import MlflowClient

SERVER_START_S = 100
SERVER_STOP_S = 10
ADMIN_PASSWORD = "a-password-of-twelve"


@pytest.fixture(autouse=True)
def home(
    tmp_path_factory: pytest.TempPathFactory, isolate: Callable[[Path], AbstractContextManager[Path]]
) -> Iterator[Path]:
    """Path of this test's journal home (MLPIPELINE_HOME), not created yet.

    The working directory is the empty folder `cwd` beside it, and no MLFLOW_* or MLPIPELINE_* setting
    of the machine, nor the fluent state of an earlier test, is left.
    """
    place = tmp_path_factory.mktemp("place")
    with isolate(place):
        yield place / "home"


@pytest.fixture
def store_uri(tmp_path: Path, copy_store: Callable[[Path, str], str]) -> str:
    """URI of an empty SQLite store of this test's own, ready to use."""
    return copy_store(tmp_path / "mlflow.db", str(tmp_path / "mlruns"))


@pytest.fixture
def mlflow_client() -> Callable[[str], MlflowClient]:
    """Make a client for a URI, to read back what arrived."""
    from mlflow import MlflowClient

    return lambda uri: MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def deliver(home: Path) -> Callable[[], None]:
    """Deliver what this test's journals hold, here and now, as `mlpipeline sync` does."""
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.sync import send_all

    return lambda: send_all(Home(home))


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.server)])
def either_store(request: pytest.FixtureRequest) -> str:
    """URI of a store, once SQLite and once a real server: what holds for MLflow holds for both."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("store_uri"))
    return str(request.getfixturevalue("server").uri)


@dataclass(frozen=True)
class Server:
    """A running `mlflow server`."""

    uri: str
    log: Path
    pid: int


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, copy_store: Callable[[Path, str], str]
) -> Iterator[Server]:
    """A real MLflow server with a store of its own, shared by the session: make your own experiments in it."""
    with serving(tmp_path_factory.mktemp("server"), copy_store) as found:
        yield found


@contextlib.contextmanager
def serving(
    folder: Path, copy_store: Callable[[Path, str], str], *options: str, port: int = 0, **environ: str
) -> Iterator[Server]:
    """Run a real MLflow server in *folder* with more command-line options and environment variables."""
    log = folder / "server.log"
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    store = copy_store(folder / "mlflow.db", "mlflow-artifacts:")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")),
                *options,
            ],
            cwd=folder,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MLPIPELINE_"))},
                "MLFLOW_DISABLE_TELEMETRY": "true",
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
        wait_until_healthy(process, uri, log)
        yield Server(uri=uri, log=log, pid=process.pid)
    finally:
        stop_group(process)


@pytest.fixture
def late_server(
    tmp_path_factory: pytest.TempPathFactory, copy_store: Callable[[Path, str], str]
) -> Callable[[int], AbstractContextManager[Server]]:
    """Start a real MLflow server at a port that was dead until then."""
    return lambda port: serving(tmp_path_factory.mktemp("late-server"), copy_store, port=port)


@pytest.fixture(scope="session")
def auth_server(
    tmp_path_factory: pytest.TempPathFactory, copy_store: Callable[[Path, str], str]
) -> Iterator[Server]:
    """A real MLflow server that asks for a password: admin, `ADMIN_PASSWORD`."""
    environ = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-secret", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD}
    folder = tmp_path_factory.mktemp("auth-server")
    with serving(folder, copy_store, "--app-name", "basic-auth", **environ) as found:
        yield found


def free_port() -> int:
    """Pick a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(process: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    """Return when the server answers; fail with the end of its log when it ends or takes too long."""
    deadline = time.monotonic() + SERVER_START_S
    while time.monotonic() < deadline and process.poll() is None:
        # Refused while it starts, reset or late while its worker does.
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"mlflow server: exit code {process.poll()}, log:\n{log.read_text()[-4000:]}")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started: asked first, then told."""
    for order in (signal.SIGTERM, signal.SIGKILL):
        # The group outlives its leader while a worker is still in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SERVER_STOP_S)
