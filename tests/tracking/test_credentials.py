"""Credentials: used where they belong, written nowhere, and told once when they are wrong."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.core import credentials
from mlpipeline.tracking.account import account_of
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PASSWORD = "a-password-of-twelve"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows the credentials of another."""
    monkeypatch.setattr(credentials, "_credentials", {})


def test_a_uri_loses_its_credentials_and_gets_them_back_for_its_own_origin_only() -> None:
    """Scheme, host and port must all be those they came with."""
    assert "https://host:8443/x" == credentials.stripped("https://ann:s%40cret@host:8443/x")
    assert ("ann", "s@cret") == credentials.credentials_for("https://host:8443/other")
    assert "https://ann:s%40cret@host:8443/y" == credentials.with_credentials("https://host:8443/y")
    for other in ("http://host:8443", "https://host", "https://other:8443"):
        assert other == credentials.with_credentials(other)


def test_what_is_exported_is_taken_over() -> None:
    """A courier process knows what its trainer knew; nonsense in the variable is harmless."""
    credentials.stripped("postgresql://ann:pw@db:5433/runs")
    text = credentials.exported()
    credentials._credentials.clear()
    credentials.take_over("nonsense")
    credentials.take_over(text)
    assert "postgresql://ann:pw@db:5433/runs" == credentials.with_credentials("postgresql://db:5433/runs")


@pytest.mark.server
def test_wrong_credentials_are_told_once_and_nothing_is_lost(
    auth_server, home: Path, deliver: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The run stays in the journal; with the right password, sync delivers all of it."""
    wrong = auth_server.uri.replace("//", "//admin:wrong-password@")
    run = open_run(MLflowConfig(tracking_uri=wrong, experiment_name="secret", delivery="thread"))
    run.log_metrics({"loss": 0.5}, step=0)
    assert str(run.run_id).startswith("local-")
    run.end()
    told = [record.getMessage() for record in caplog.records if "Recording goes on" in record.getMessage()]
    assert 1 == len(told)
    assert "credentials are not accepted" in told[0]
    account = account_of(Home(home), run.uid)
    assert (0, 2) == (account.counts.delivered, account.counts.pending)
    run._dispatch().stop()
    credentials.stripped(auth_server.uri.replace("//", f"//admin:{PASSWORD}@"))
    deliver()
    client = MlflowClient(credentials.with_credentials(auth_server.uri))
    experiment = client.get_experiment_by_name("secret")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert ("FINISHED", {"loss": 0.5}) == (found.info.status, found.data.metrics)


@pytest.mark.server
@pytest.mark.process
def test_a_password_in_a_uri_reaches_the_server_and_no_file_log_or_terminal(auth_server, home: Path) -> None:
    """A canary password: the run arrives, and the password is in nothing that was written."""
    code = f"""
import logging
logging.basicConfig(level=logging.DEBUG)
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run
config = MLflowConfig(tracking_uri={auth_server.uri.replace("//", f"//admin:{PASSWORD}@")!r}, experiment_name="canary")
print(config)
run = open_run(config)
run.log_params({{"lr": 0.1}})
run.end()
print(run.wait(insist_s=60))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True
    )
    assert "pending=0" in done.stdout
    client = MlflowClient(auth_server.uri.replace("//", f"//admin:{PASSWORD}@"))
    experiment = client.get_experiment_by_name("canary")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    written = [done.stdout, done.stderr, str(found.to_dictionary())]
    written += [path.read_text("utf-8", "replace") for path in home.rglob("*") if path.is_file()]
    assert not [text for text in written if PASSWORD in text]
    assert logging.getLogger("mlpipeline").handlers == []
    assert PASSWORD not in os.environ.values()
