"""Real stores, a real server, and a clean place to stand for every test."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

from mlpipeline.testing.contract import shared_server
from mlpipeline.testing.places import Server, isolated, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlflow import MlflowClient

ADMIN_PASSWORD = "a-password-of-twelve"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a newer version of something than is installed."""
    for item in items:
        for marker in item.iter_markers("needs"):
            needed = Requirement(marker.args[0])
            if not needed.specifier.contains(metadata.version(needed.name), prereleases=True):
                item.add_marker(pytest.mark.skip(f"needs {needed}"))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of this test's journal home (MLPIPELINE_HOME), not created yet.

    The working directory is the empty folder `cwd` beside it, and no MLFLOW_* or MLPIPELINE_* setting
    of the machine, nor the fluent state of an earlier test, is left.
    """
    place = tmp_path_factory.mktemp("place")
    with isolated(place):
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


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """A real MLflow server with a store of its own, shared by the session: make your own experiments in it."""
    return shared_server(request.config)


def server_store(folder: Path, copy_store: Callable[[Path, str], str]) -> str:
    """Make a store for a server, which keeps files itself."""
    return copy_store(folder / "mlflow.db", "mlflow-artifacts:")


@pytest.fixture
def late_server(
    tmp_path_factory: pytest.TempPathFactory, copy_store: Callable[[Path, str], str]
) -> Callable[[int], AbstractContextManager[Server]]:
    """Start a real MLflow server at a port that was dead until then."""
    folder = tmp_path_factory.mktemp("late-server")
    return lambda port: serving(folder, server_store(folder, copy_store), port=port)


@pytest.fixture(scope="session")
def auth_server(
    tmp_path_factory: pytest.TempPathFactory, copy_store: Callable[[Path, str], str]
) -> Iterator[Server]:
    """A real MLflow server that asks for a password: admin, `ADMIN_PASSWORD`."""
    environ = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "not-a-secret", "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD}
    folder = tmp_path_factory.mktemp("auth-server")
    store = server_store(folder, copy_store)
    with serving(folder, store, "--app-name", "basic-auth", **environ) as found:
        yield found
