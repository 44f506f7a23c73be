"""What the tests and the documents share: clean surroundings, and a store that is ready to use.

Every ```python block of README.md and docs/*.md is a test. The blocks of one document share a
namespace and a folder, as if a reader typed them into one session:

    <tmp>/cwd/            the working directory
    <tmp>/cwd/mlflow.db   MLflow's default store, already migrated
    <tmp>/home/           MLPIPELINE_HOME
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from mlpipeline.testing.places import copied_store, isolated, migrated_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Keras picks its backend when it is imported, and would pick one that is not among the extras.
os.environ.setdefault("KERAS_BACKEND", "torch")

# A shell ignores it in what it runs in the background, and every process below inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["document_surroundings"],
).pytest()


@pytest.fixture(scope="session")
def sqlite_template(request: pytest.FixtureRequest) -> Path:
    """Path of an empty SQLite store that MLflow has migrated, in pytest's cache; copy it, never write to it."""
    return migrated_store(request.config.cache.mkdir("mlflow-store"))


@pytest.fixture(scope="session")
def copy_store(sqlite_template: Path) -> Callable[[Path, str], str]:
    """Copy the empty store to a path and return its URI; `artifacts` is where experiment 0 keeps files."""
    return lambda path, artifacts: copied_store(sqlite_template, path, artifacts)


# In the others a thread delivers: a courier's process imports MLflow once more for each of them.
_ABOUT_COURIERS = {"README.md", "delivery.md", "reliability.md", "configuration.md"}


@pytest.fixture(scope="module")
def document_surroundings(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    copy_store: Callable[[Path, str], str],
) -> Iterator[None]:
    """Run a document's code blocks in a folder of its own, with MLflow's default store ready in it."""
    with isolated(tmp_path_factory.mktemp("document")) as cwd:
        copy_store(cwd / "mlflow.db", str(cwd / "mlruns"))
        if request.path.name not in _ABOUT_COURIERS:
            os.environ["MLPIPELINE_DELIVERY"] = "thread"
        yield


# Whole files go to the workers, and a long one that comes last is waited for by all others.
_LONG = (
    "tests/frameworks/test_lightning_processes.py",
    "tests/test_demo.py",
    "tests/test_specification.py",
    "tests/tracking/test_processes.py",
    "tests/models/test_tuning.py",
    "tests/contract/test_your_own.py",
    "tests/tracking/test_credentials.py",
    "tests/cli/test_cicd.py",
    "tests/contract/",
    "tests/test_notebook_session.py",
    "tests/cli/",
    "docs/sklearn.md",
    "docs/delivery.md",
    "tests/models/",
    "tests/tracking/test_children.py",
    "tests/frameworks/",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first; `--no-loadscope-reorder` leaves them there."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(config.rootpath).as_posix()
        return next((place for place, start in enumerate(_LONG) if path.startswith(start)), len(_LONG))

    items.sort(key=rank)  # stable: within a file nothing moves
