"""Credentials: used where they belong, written nowhere, and told once when they are wrong."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.utils.rest_utils import MlflowHostCreds, http_request

from mlpipeline import MLflowConfig
from mlpipeline.core import credentials
from mlpipeline.testing import faults
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking.account import account_of, accounts, courier_reports
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.sync import send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mlpipeline.testing.places import Server
    from mlpipeline.tracking.run import Run

PASSWORD = "a-password-of-twelve"


def uri_as(server: Server, name: str = "admin", password: str = PASSWORD) -> str:
    """Address of a server with somebody's credentials in it."""
    return str(server.uri).replace("//", f"//{name}:{password}@")


def as_admin(server: Server, method: str, path: str, **content: str) -> None:
    """Make a call of MLflow's basic-auth app that only its administrator may make."""
    creds = MlflowHostCreds(server.uri, "admin", PASSWORD)
    http_request(creds, f"/api/{path}", method, json=content).raise_for_status()


def new_user(server: Server) -> tuple[str, str]:
    """Make a user; return the name and the password."""
    name, password = f"user-{uuid.uuid4().hex[:6]}", "twelve-letters-1"
    as_admin(server, "POST", "2.0/mlflow/users/create", username=name, password=password)
    return name, password


def permit(server: Server, name: str, experiment_id: str, permission: str) -> None:
    """Let a user do this much in an experiment."""
    what = {"resource_type": "experiment", "resource_id": experiment_id, "permission": permission}
    as_admin(server, "POST", "3.0/mlflow/users/permissions/grant", username=name, **what)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the user was told of records that cannot be sent."""
    return [record.getMessage() for record in caplog.records if "Recording goes on" in record.getMessage()]


def go_on_until(holds: Callable[[], object], run: Run) -> int:
    """Log a point every now and then until something holds; return how many there are."""
    points = 0

    def logged() -> object:
        nonlocal points
        run.log_metrics({"loss": points / 4})
        points += 1
        return holds()

    wait_until(logged, within_s=30)
    return points


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


def train(
    uri: str, experiment: str, insist_s: float = 0.0, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a training in a process of its own; it ends when it is told to."""
    command = [sys.executable, "-c", TRAINING, uri, experiment, str(insist_s)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, env={**os.environ, **(environ or {})}, **pipes)
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
    people = [new_user(auth_server) for _ in range(2)]
    names, uris = [name for name, _ in people], [uri_as(auth_server, *person) for person in people]
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


@pytest.mark.server
def test_without_credentials_it_is_told_once_and_all_arrives_with_the_right_ones(
    auth_server, home: Path, deliver: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that nobody has put a name to belongs to whoever sends it."""
    config = MLflowConfig(tracking_uri=auth_server.uri, experiment_name="nobody", delivery="thread")
    run = open_run(config)
    points = go_on_until(lambda: told(caplog), run)
    run.end()
    run._dispatch().stop()
    assert 1 == len(told(caplog))
    assert "credentials are not accepted (401)" in told(caplog)[0]
    assert (0, points + 1) == (account_of(Home(home), run.uid).counts.delivered, run.counts().pending)
    credentials.stripped(uri_as(auth_server))
    deliver()
    client = MlflowClient(uri_as(auth_server))
    experiment = client.get_experiment_by_name("nobody")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert "FINISHED" == found.info.status
    assert points == len(client.get_metric_history(found.info.run_id, "loss"))


@pytest.mark.server
def test_where_one_may_only_read_is_told_and_kept_and_what_one_may_write_arrives(
    auth_server, home: Path, deliver: Callable[[], None]
) -> None:
    """Two experiments of one server: a permission that is missing in one holds up nothing of the other."""
    name, password = new_user(auth_server)
    admin = MlflowClient(uri_as(auth_server))
    theirs = admin.create_experiment(f"theirs-{name}")
    permit(auth_server, name, theirs, "READ")
    config = MLflowConfig(tracking_uri=uri_as(auth_server, name, password), delivery="offline")
    denied = open_run(config.replace(experiment_name=f"theirs-{name}"))
    allowed = open_run(config.replace(experiment_name=f"own-{name}"))
    for run in (denied, allowed):
        run.log_metrics({"loss": 0.5}, step=0)
        run.end()
    deliver()
    accounts_of = [account_of(Home(home), run.uid) for run in (denied, allowed)]
    assert [(0, 2), (2, 0)] == [(one.counts.delivered, one.counts.pending) for one in accounts_of]
    assert "(403)" in str(accounts_of[0].problem)
    assert accounts_of[1].problem is None
    assert [] == admin.search_runs([theirs])
    what = {"resource_type": "experiment", "resource_id": theirs}  # a second grant of it is refused
    as_admin(auth_server, "POST", "3.0/mlflow/users/permissions/revoke", username=name, **what)
    permit(auth_server, name, theirs, "EDIT")
    deliver()
    (found,) = admin.search_runs([theirs])
    assert ("FINISHED", {"loss": 0.5}) == (found.info.status, found.data.metrics)


@pytest.mark.server
def test_a_password_changed_while_a_training_runs_is_told_once_and_the_new_one_sends_the_rest(
    auth_server, home: Path, deliver: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent before stays as it is; nothing is there twice."""
    name, password = new_user(auth_server)
    config = MLflowConfig(
        tracking_uri=uri_as(auth_server, name, password), experiment_name=f"of-{name}", delivery="thread"
    )
    run = open_run(config)
    run.log_metrics({"begun": 1.0})
    assert 0 == run.wait(insist_s=30).pending
    as_admin(
        auth_server, "PATCH", "2.0/mlflow/users/update-password", username=name, password="twelve-letters-2"
    )
    points = go_on_until(lambda: told(caplog), run)
    run.end()
    run._dispatch().stop()
    assert 1 == len(told(caplog))
    assert points <= run.counts().pending - 1
    credentials.stripped(uri_as(auth_server, name, "twelve-letters-2"))
    deliver()
    client = MlflowClient(uri_as(auth_server, name, "twelve-letters-2"))
    found = client.get_run(str(run.run_id))
    assert ("FINISHED", 1.0) == (found.info.status, found.data.metrics["begun"])
    assert list(range(points)) == sorted(
        point.step for point in client.get_metric_history(run.run_id, "loss")
    )


@pytest.mark.server
@pytest.mark.process
def test_a_token_rotated_between_two_trainings_costs_nothing(server, home: Path) -> None:
    """The courier that has the old one makes room for one that has the new one."""
    accepted = ["Bearer A"]

    def asked_for(exchange: faults.Exchange) -> None:
        is_accepted = dict(exchange._headers).get("Authorization") in accepted
        (faults.passed if is_accepted else faults.answered(401))(exchange)

    with faults.FaultyProxy(server.uri) as proxy:
        proxy.fault = asked_for
        for token in ("A", "B"):
            accepted[:] = [f"Bearer {token}"]
            environ = {"MLFLOW_TRACKING_TOKEN": token}
            assert "pending=0" in finish(train(proxy.uri, "tokens", 60, environ))
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("tokens")
    assert experiment is not None
    assert ["FINISHED"] * 2 == [run.info.status for run in client.search_runs([experiment.experiment_id])]


@pytest.mark.server
@pytest.mark.process
def test_a_late_twin_that_may_not_be_deleted_is_tagged_ended_hidden_and_reported(
    auth_server, home: Path
) -> None:
    """EDIT is enough to record, and not to delete."""
    name, password = new_user(auth_server)
    admin = MlflowClient(uri_as(auth_server))
    experiment_id = admin.create_experiment(f"shared-{name}")
    permit(auth_server, name, experiment_id, "EDIT")
    with faults.FaultyProxy(auth_server.uri) as proxy:
        proxy.fault = faults.only(
            "/runs/create", faults.first(1, faults.late(8))
        )  # after any look-up, however late
        uri = proxy.uri.replace("//", f"//{name}:{password}@")
        run = open_run(MLflowConfig(tracking_uri=uri, experiment_name=f"shared-{name}", delivery="process"))
        run.log_metrics({"loss": 0.5}, step=0)
        wait_until(lambda: 2 == len(admin.search_runs([experiment_id])), home=home)
        run.end()
        assert 0 == run.wait(insist_s=60).pending
        for report in courier_reports(Home(home)):
            os.kill(report["pid"], signal.SIGKILL)  # in doubt for a minute, it would stay for ten
    found = {seen.info.run_id: seen for seen in admin.search_runs([experiment_id])}
    ours = found.pop(str(run.run_id))
    ((twin_id, twin),) = found.items()
    assert ("FINISHED", {"loss": 0.5}) == (ours.info.status, ours.data.metrics)
    assert (str(run.run_id), str(run.run_id)) == (
        twin.data.tags["mlpipeline.twin_of"],
        twin.data.tags["mlflow.parentRunId"],
    )
    assert "RUNNING" != twin.info.status
    reported = f"run {twin_id}, a twin of {run.run_id}, may not be deleted and is marked instead"
    assert 1 == Home(home).courier_log.read_text("utf-8").count(reported)
