"""Credentials: used where they belong, written nowhere, and told once when they are wrong."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.utils.rest_utils import MlflowHostCreds, http_request

from mlpipeline import MLflowConfig
from mlpipeline.core import credentials
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking.account import account_of, accounts, courier_reports
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.sync import send_all

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


def test_a_courier_gets_what_its_servers_are_for_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's variables go to every server it talks to, so a courier for others must not have them."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    credentials.stripped("postgresql://bob:pw2@db:5433/runs")
    credentials.stripped("http://cid:pw3@elsewhere")
    database = credentials.environment_for("postgresql://db:5433/runs")
    file = credentials.environment_for("sqlite:///mlflow.db")
    assert "ann" == credentials.environment_for("http://host")["MLFLOW_TRACKING_USERNAME"]
    assert not [name for name in file if name.startswith("MLFLOW_TRACKING_")]
    assert "[]" == file[credentials.VARIABLE]
    credentials._credentials.clear()
    credentials.take_over("nonsense")
    credentials.take_over(database[credentials.VARIABLE])
    assert "postgresql://bob:pw2@db:5433/runs" == credentials.with_credentials("postgresql://db:5433/runs")
    assert "http://elsewhere" == credentials.with_credentials("http://elsewhere")


def test_who_somebody_is_to_a_server_follows_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The URI's own name, then the variables, then the file of `mlflow login`, then a token's subject."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "" == credentials.user_for("http://host")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "tom"}).encode()).decode().rstrip("=")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "opaque")
    assert "token" == credentials.user_for("http://host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"header.{claims}.signature")
    assert "tom" == credentials.user_for("http://host")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = fay\nmlflow_tracking_password = p%w\n"
    )
    assert ("fay", "p%w") == (credentials.user_for("http://host"), credentials.secret_for("http://host"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    assert "ann" == credentials.user_for("http://host")
    credentials.stripped("http://bob:pw@host")
    assert ("bob", "") == (credentials.user_for("http://host"), credentials.user_for("sqlite:///mlflow.db"))
    assert "bob ann" == credentials.user_for("http://host", "http://registry")


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


TRAINING = """
import sys, time
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run
run = open_run(MLflowConfig(tracking_uri=sys.argv[1], experiment_name=sys.argv[2]))
run.log_metrics({"loss": 0.5}, step=0)
print("begun", flush=True)
sys.stdin.readline()
run.end()
print(run.wait(insist_s=float(sys.argv[3])))
"""


def train(uri: str, experiment: str, insist_s: float = 0.0) -> subprocess.Popen[str]:
    """Start a training in a process of its own; it ends when it is told to."""
    command = [sys.executable, "-c", TRAINING, uri, experiment, str(insist_s)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, **pipes)
    assert process.stdout is not None
    assert "begun\n" == process.stdout.readline()
    return process


def finish(process: subprocess.Popen[str]) -> str:
    """Let a training end; return what became of its records."""
    return process.communicate("\n", timeout=100)[0]


@pytest.mark.server
@pytest.mark.process
def test_a_training_with_a_newer_password_takes_over_from_the_courier_with_the_old_one(
    auth_server, home: Path
) -> None:
    """What the old one could not send is sent as well: it is the same user's."""
    wrong, right = (auth_server.uri.replace("//", f"//admin:{word}@") for word in ("old-password", PASSWORD))
    first = train(wrong, "rotated")
    assert "delivered=0" in finish(first)
    (served,) = courier_reports(Home(home))
    assert "pending=0" in finish(train(right, "rotated", insist_s=60))
    (serves,) = courier_reports(Home(home))
    assert serves["pid"] != served["pid"]
    wait_until(lambda: not [account for account in accounts(Home(home)) if account.counts.pending], home=home)
    client = MlflowClient(right)
    experiment = client.get_experiment_by_name("rotated")
    assert experiment is not None
    assert ["FINISHED"] * 2 == [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.mark.server
@pytest.mark.process
def test_two_users_at_once_are_served_by_a_courier_each(auth_server, home: Path) -> None:
    """Neither may write into the other's experiment, so a mix-up would be refused."""
    admin = auth_server.uri.replace("//", f"//admin:{PASSWORD}@")
    names = [f"user-{uuid.uuid4().hex[:6]}" for _ in range(2)]
    uris = []
    for name in names:
        creds = MlflowHostCreds(auth_server.uri, "admin", PASSWORD)
        person = {"username": name, "password": "twelve-letters-1"}
        http_request(creds, "/api/2.0/mlflow/users/create", "POST", json=person).raise_for_status()
        uris.append(auth_server.uri.replace("//", f"//{name}:twelve-letters-1@"))
    trainings = [train(uri, f"of-{name}", insist_s=60) for uri, name in zip(uris, names, strict=True)]
    wait_until(lambda: 2 == len(courier_reports(Home(home))), home=home)
    assert all("pending=0" in finish(training) for training in trainings)
    for uri, name in zip(uris, names, strict=True):
        experiment = MlflowClient(admin).get_experiment_by_name(f"of-{name}")
        assert experiment is not None
        (found,) = MlflowClient(uri).search_runs([experiment.experiment_id])
        assert ("FINISHED", {"loss": 0.5}) == (found.info.status, found.data.metrics)


@pytest.mark.server
def test_what_was_recorded_under_another_name_waits_for_its_owner(auth_server, home: Path) -> None:
    """Or for somebody who says that the name does not matter."""
    run = open_run(
        MLflowConfig(
            tracking_uri=auth_server.uri.replace("//", "//admn:typo@"),
            experiment_name="typo",
            delivery="offline",
        )
    )
    run.end()
    credentials.stripped(auth_server.uri.replace("//", f"//admin:{PASSWORD}@"))
    send_all(Home(home))
    account = account_of(Home(home), run.uid)
    assert (0, 1) == (account.counts.delivered, account.counts.pending)
    assert "as 'admn', and here are the credentials of 'admin'" in str(account.problem)
    send_all(Home(home), is_for_anybody=True)
    assert 0 == account_of(Home(home), run.uid).counts.pending
