"""What the tests and the documents share: clean surroundings, and a store that is ready to use.

Every ```python block of README.md and docs/*.md is a test. The blocks of one document share a
namespace and a folder, as if a reader typed them into one session:

    <tmp>/cwd/            the working directory
    <tmp>/cwd/mlflow.db   MLflow's default store, already migrated
    <tmp>/home/           MLPIPELINE_HOME
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

# Keras picks its backend when it is imported, and would pick one that is not among the extras.
os.environ.setdefault("KERAS_BACKEND", "torch")

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["document_surroundings"],
).pytest()


@pytest.fixture(scope="session")
def sqlite_template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an empty SQLite store that MLflow has migrated; copy it, never write to it.

    Creating one takes MLflow about seven seconds, so it is kept in pytest's cache, one per MLflow version.
    """
    cached = request.config.cache.mkdir("mlflow-store") / f"{version('mlflow')}.db"
    if not cached.exists():
        from mlflow import MlflowClient

        fresh = tmp_path_factory.mktemp("store") / "fresh.db"
        MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments()
        # Another session may be doing the same: the cache sees whole files only.
        partial = cached.with_suffix(f".{os.getpid()}")
        shutil.copy(fresh, partial)
        partial.replace(cached)
    return cached


@pytest.fixture(scope="session")
def copy_store(sqlite_template: Path) -> Callable[[Path, str], str]:
    """Copy the empty store to a path and return its URI; `artifacts` is where experiment 0 keeps files.

    MLflow wrote the folder in which the template was made into its Default experiment, and nothing in
    its API moves that, hence the statement.
    """

    def copy(path: Path, artifacts: str) -> str:
        shutil.copy(sqlite_template, path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = 0", [f"{artifacts}/0"]
            )
        return f"sqlite:///{path}"

    return copy


@pytest.fixture(scope="session")
def isolate() -> Callable[[Path], AbstractContextManager[Path]]:
    """Enter a working directory and a journal home under a folder, without settings of MLflow's or ours."""

    @contextmanager
    def isolate(folder: Path) -> Iterator[Path]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MLPIPELINE_"))]:
                monkeypatch.delenv(name)
            monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
            monkeypatch.setenv("MLPIPELINE_HOME", str(folder / "home"))
            cwd = folder / "cwd"
            cwd.mkdir()
            monkeypatch.chdir(cwd)
            try:
                yield cwd
            finally:
                forget_fluent_state()
                forget_runs()

    return isolate


@pytest.fixture(scope="module")
def document_surroundings(
    tmp_path_factory: pytest.TempPathFactory,
    isolate: Callable[[Path], AbstractContextManager[Path]],
    copy_store: Callable[[Path, str], str],
) -> Iterator[None]:
    """Run a document's code blocks in a folder of its own, with MLflow's default store ready in it."""
    with isolate(tmp_path_factory.mktemp("document")) as cwd:
        copy_store(cwd / "mlflow.db", str(cwd / "mlruns"))
        yield


def forget_fluent_state() -> None:
    """End the fluent run, and forget what `mlflow.set_*` keeps for the rest of the process."""
    if (mlflow := sys.modules.get("mlflow")) is None:
        return
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None  # noqa: SLF001  (set_experiment has no way back)
    # All of them also write the environment.
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID"):
        os.environ.pop(name, None)


def forget_runs() -> None:
    """Let the end of the process neither wait for this place's runs nor print their lines."""
    if (closing := sys.modules.get("mlpipeline.tracking.closing")) is not None:
        closing._runs.clear()  # noqa: SLF001  (only the end of the process takes them off)
