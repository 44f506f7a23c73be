"""``mlpipeline doctor``: each thing that can be wrong is found, and told with its fix."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.cli import main
from mlpipeline.testing.faults import Answer, FaultyProxy, answered, only, passed
from mlpipeline.tracking import doctor

NOBODY = "http://127.0.0.1:9"
PASSWORD = "a-password-of-twelve"
ROOT = Path(__file__).parents[2]


def examined(*arguments):
    """Run it; return the exit code and the findings by name."""
    done = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, {finding["name"]: finding for finding in json.loads(done.stdout)}


def with_state(found, state):
    return [name for name, finding in found.items() if finding["state"] == state]


# --- all is well -------------------------------------------------------------------------------------


def test_a_store_that_works_has_no_failure(either_store, mlflow_client):
    """Of a file and of a server; the throw-away run is deleted, and so is its file."""
    code, found = examined("--tracking-uri", either_store)
    assert (0, [], []) == (code, with_state(found, "failed"), with_state(found, "warning"))
    assert {name for name, _, _ in doctor.CHECKS} == set(found)
    asked = {"experiments", "registry", "artifacts"}
    asked |= {"connection", "server", "clock", "authentication"} if "http" in either_store else {"database"}
    assert {"ok"} == {found[name]["state"] for name in asked}
    assert all(finding["fix"] is None for finding in found.values())
    client = mlflow_client(either_store)
    experiment = client.get_experiment_by_name(doctor.EXPERIMENT)
    assert [] == list(client.search_runs([experiment.experiment_id]))
    (deleted,) = client.search_runs([experiment.experiment_id], run_view_type=2)
    assert ("FINISHED", []) == (deleted.info.status, client.list_artifacts(deleted.info.run_id))


def test_a_store_that_is_not_there_yet_is_not_made():
    """Nor is the journal home."""
    code, found = examined()
    assert (0, [], "ok") == (code, with_state(found, "failed"), found["database"]["state"])
    assert "the first run makes it" in found["database"]["detail"]
    assert "skipped" == found["artifacts"]["state"]
    assert [] == list(Path.cwd().iterdir())
    assert not Path(os.environ["MLPIPELINE_HOME"]).exists()


def test_the_text_names_each_check_and_its_fix():
    """A line per finding, and one below for what to do."""
    done = CliRunner().invoke(main, ["doctor", "--tracking-uri", NOBODY])
    assert 1 == done.exit_code
    lines = done.stdout.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.startswith("failed  connection"))
    assert "        fix: start it: mlflow server --host 127.0.0.1 --port 9" == lines[at + 1]
    assert len(doctor.CHECKS) + 1 == len(lines)


# --- configuration -----------------------------------------------------------------------------------


def test_it_tells_where_each_option_came_from(store_uri, monkeypatch):
    """A variable by its name, an option as one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    _, found = examined("--experiment", "mine")
    told = found["configuration"]["detail"]
    assert f"runs go to {store_uri} (MLFLOW_TRACKING_URI); experiment 'mine' (option)" == told
    monkeypatch.setenv("MLPIPELINE_EXPERIMENT_NAME", "theirs")
    assert "experiment 'theirs' (MLPIPELINE_EXPERIMENT_NAME)" in examined()[1]["configuration"]["detail"]


def test_a_variable_that_cannot_be_right_is_a_failure_and_the_journal_is_looked_at_all_the_same(monkeypatch):
    """What depends on it is skipped, not failed."""
    monkeypatch.setenv("MLPIPELINE_LOG_PARAMS", "perhaps")
    code, found = examined()
    assert (1, ["configuration"]) == (code, with_state(found, "failed"))
    assert "MLPIPELINE_LOG_PARAMS='perhaps'" in found["configuration"]["detail"]
    assert ("skipped", "ok") == (found["experiments"]["state"], found["journal"]["state"])


def test_recording_that_is_switched_off_is_told(monkeypatch):
    """Whoever asks why nothing arrives wants to know."""
    monkeypatch.setenv("MLPIPELINE_ENABLED", "false")
    code, found = examined()
    told = found["configuration"]
    assert (0, "warning", "nothing is recorded: enabled is False (MLPIPELINE_ENABLED)") == (
        code, told["state"], told["detail"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_ALLOW_FILE_STORE", "true"),
        ("MLFLOW_TRACKING_INSECURE_TLS", "true"),
        ("MLFLOW_RUN_ID", "0" * 32),
        ("MLFLOW_TRACKING_USERNAME", "ann"),
        ("DO_NOT_TRACK", "1"),
    ],
)
def test_a_variable_that_is_easily_forgotten_is_told_with_a_fix(monkeypatch, name, value):
    """By its name; what it holds is nobody's business."""
    monkeypatch.setenv(name, value)
    settings = examined()[1]["settings"]
    assert "warning" == settings["state"]
    assert name in settings["detail"]
    assert settings["fix"]


# --- connection and server ---------------------------------------------------------------------------


def test_a_dead_server_is_told_within_seconds():
    """MLflow itself would take minutes. What needs the server is skipped; the journal is looked at."""
    begun_s = time.monotonic()
    code, found = examined("--tracking-uri", NOBODY)
    assert 4 > time.monotonic() - begun_s
    assert (1, ["connection"]) == (code, with_state(found, "failed"))
    assert "Connection refused" in found["connection"]["detail"]
    assert "mlflow server --host 127.0.0.1 --port 9" in found["connection"]["fix"]
    assert {"skipped"} == {
        found[name]["state"] for name in ("server", "experiments", "registry", "artifacts")
    }
    assert "ok" == found["journal"]["state"]


@pytest.mark.process
def test_a_dead_server_costs_no_import_of_mlflow():
    """The socket is tried first."""
    code = f"import sys; sys.argv[1:] = ['doctor', '--tracking-uri', '{NOBODY}']\nfrom mlpipeline.cli import main\n"
    code += "try: main()\nexcept SystemExit: print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" == done.stdout.splitlines()[-1]


def test_a_server_that_takes_connections_and_says_nothing_is_waited_for_once():
    """Not once per check, and not with MLflow's repetitions."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = MLflowConfig(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun_s = time.monotonic()
        found = {finding.name: finding for finding in doctor.examine(config, timeout_s=0.5)}
    assert 4 > time.monotonic() - begun_s
    assert ("ok", "failed") == (found["connection"].state, found["server"].state)
    assert {"skipped"} == {found[name].state for name in ("authentication", "experiments", "artifacts")}


def said(path, text, **headers):
    """Answer one path with a text in the server's place."""
    return only(path, lambda exchange: exchange.reply(Answer(200, tuple(headers.items()), text.encode())))


@pytest.mark.server
@pytest.mark.parametrize(
    ("version", "state", "fix"),
    [
        ("2.22.0", "failed", "mlflow db upgrade"),
        ("3.4.0", "warning", 'pip install "mlflow==3.4.0"'),
        ("4.0.0", "warning", 'pip install "mlflow==4.0.0"'),
        ("<html>", "warning", "where MLflow begins"),
    ],
)
def test_a_server_of_another_version_is_told(server, version, state, fix):
    """Older than logged models: a failure. Not among those tried: a warning."""
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = said("/version", version)
        code, found = examined("--tracking-uri", proxy.uri)
    assert (state, int(state == "failed")) == (found["server"]["state"], code)
    assert fix in found["server"]["fix"]


@pytest.mark.server
@pytest.mark.parametrize(("shift_s", "side"), [(60, "behind"), (-60, "ahead of")])
def test_clocks_that_differ_are_told(server, shift_s, side):
    """A warning: everything works, and points lie at the wrong time."""

    def shifted(exchange):
        answer = exchange.forward()
        date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=shift_s), usegmt=True)
        others = tuple(pair for pair in answer.headers if pair[0].lower() != "date")
        exchange.reply(dataclasses.replace(answer, headers=(*others, ("Date", date))))

    with FaultyProxy(server.uri) as proxy:
        proxy.fault = shifted
        code, found = examined("--tracking-uri", proxy.uri)
        proxy.fault = passed
        _, unshifted = examined("--tracking-uri", proxy.uri)
    told = re.fullmatch(rf"this machine is (\d+) s {side} the server", found["clock"]["detail"])
    assert (0, "warning") == (code, found["clock"]["state"])
    assert 55 < int(told[1]) < 65
    assert "timedatectl set-ntp true" in found["clock"]["fix"]
    assert "ok" == unshifted["clock"]["state"], "the proxy itself does not matter"


# --- authentication ----------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.process
def test_credentials_are_told_apart_missing_wrong_and_right(auth_server, monkeypatch):
    """The variables are named, their values never shown."""
    code, found = examined("--tracking-uri", auth_server.uri)
    told = found["authentication"]
    assert (1, "the server asks for credentials, and none are set (401)") == (code, told["detail"])
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in told["fix"]
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "the-admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
    code, found = examined("--tracking-uri", auth_server.uri)
    told = found["authentication"]
    assert (1, ["authentication"]) == (code, with_state(found, "failed"))
    assert told["detail"].endswith(
        "the credentials of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (401)"
    )
    assert not re.search("the-admin|not-the-password", json.dumps(found))
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    code, found = examined("--tracking-uri", auth_server.uri.replace("://", f"://admin:{PASSWORD}@"))
    assert (0, []) == (code, with_state(found, "failed"))
    assert "let in with the credentials of the URI" == found["authentication"]["detail"]
    assert PASSWORD not in json.dumps(found)


@pytest.mark.server
def test_a_user_who_may_not_is_told_apart_from_one_who_is_not_known(server, monkeypatch):
    """403: other credentials do not help as long as nobody gives the permission."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token-to-hide")
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = only("/api/", answered(403))
        code, found = examined("--tracking-uri", proxy.uri)
    told = found["authentication"]
    assert (1, ["authentication"]) == (code, with_state(found, "failed"))
    assert "not permitted to list experiments (403)" in told["detail"]
    assert "administrator" in told["fix"]
    assert "a-token-to-hide" not in json.dumps(found)


@pytest.mark.server
def test_a_server_that_does_not_know_its_name_is_told(server):
    """MLflow's own answer to a strange Host header, which looks like a refused user."""
    with FaultyProxy(server.uri) as proxy:
        refusal = Answer(403, (), b"Invalid Host header - possible DNS rebinding attack detected")
        proxy.fault = only("/api/", lambda exchange: exchange.reply(refusal))
        _, found = examined("--tracking-uri", proxy.uri)
    address = proxy.uri.removeprefix("http://")
    assert f"start it with: mlflow server --allowed-hosts {address}" == found["authentication"]["fix"]


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_no_password_of_a_uri_is_shown(scheme):
    """In no form of the output."""
    for arguments in ([], ["--json"]):
        uri = f"{scheme}://ann:hunter2@127.0.0.1:9/mlflow"
        done = CliRunner().invoke(main, ["doctor", "--tracking-uri", uri, *arguments])
        assert 1 == done.exit_code
        assert "127.0.0.1:9/mlflow" in done.output
        assert "hunter2" not in done.output


# --- the database ------------------------------------------------------------------------------------


def database(uri):
    """What the check of the database finds, and the exit code."""
    code, found = examined("--tracking-uri", uri)
    assert {"skipped"} == {found[name]["state"] for name in ("experiments", "registry", "artifacts")}
    return code, found["database"]["detail"], found["database"]["fix"]


def execute(uri, statement):
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(statement)


def test_a_store_of_an_older_mlflow_is_told_with_the_command_that_upgrades_it(store_uri):
    """After a backup: MLflow's own words."""
    execute(store_uri, "UPDATE alembic_version SET version_num = '451aebb31d03'")
    code, detail, fix = database(store_uri)
    assert (1, f"take a backup, then: mlflow db upgrade {store_uri}") == (code, fix)
    assert "451aebb31d03 is older than this MLflow's" in detail


def test_a_store_of_a_newer_mlflow_is_told(store_uri):
    """Here the package is what has to change."""
    execute(store_uri, "UPDATE alembic_version SET version_num = 'ffffffffffff'")
    code, detail, fix = database(store_uri)
    assert (1, True) == (code, detail.startswith("schema ffffffffffff is not known here"))
    assert "pip install --upgrade mlflow" in fix


def test_a_store_that_somebody_holds_locked_is_told(store_uri):
    """After a second, not after MLflow's twenty."""
    path = store_uri.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        begun_s = time.monotonic()
        code, detail, fix = database(store_uri)
    assert 5 > time.monotonic() - begun_s
    assert (1, f"another process holds {path} locked") == (code, detail)
    assert f"fuser -v {path}" in fix


def test_a_file_that_is_no_store_is_told(tmp_path):
    """No database at all, and one of another program."""
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to look at " * 30)
    code, detail, _ = database(f"sqlite:///{text}")
    assert (1, True) == (code, detail.endswith("file is not a database"))
    other = tmp_path / "other.db"
    execute(f"sqlite:///{other}", "CREATE TABLE studies (id INTEGER)")
    code, detail, fix = database(f"sqlite:///{other}")
    assert (1, True) == (code, "another program" in detail)
    assert "take another file" in fix


def test_a_folder_that_is_missing_is_told_with_the_command_that_makes_it(tmp_path):
    """MLflow would make the file, not its folder."""
    code, _, fix = database(f"sqlite:///{tmp_path}/missing/mlflow.db")
    assert (1, f"mkdir -p {tmp_path}/missing") == (code, fix)


@pytest.mark.process
def test_a_file_that_cannot_be_written_is_told(store_uri):
    """As a user whom permissions hold back, which root is not."""
    path = Path(store_uri.removeprefix("sqlite:///"))
    path.chmod(0o444)
    without_power = ["setpriv", "--bounding-set=-dac_override", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*without_power, sys.executable, "-m", "mlpipeline", "doctor", "--json", "--tracking-uri", store_uri],
        capture_output=True,
        text=True,
        check=False,
    )
    found = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert (1, ["database"]) == (done.returncode, with_state(found, "failed"))
    assert f"{path} cannot be written: attempt to write a readonly database" == found["database"]["detail"]
    assert found["database"]["fix"].startswith(f"chmod u+w {path}")


def test_a_driver_that_is_missing_is_told_with_the_command_that_installs_it():
    """Somebody listens, so the database is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        uri = f"postgresql+pg8000://ann:hunter2@127.0.0.1:{listening.getsockname()[1]}/mlflow"
        code, found = examined("--tracking-uri", uri)
    assert (1, ["database"]) == (code, with_state(found, "failed"))
    assert 'pip install "pg8000"' == found["database"]["fix"]
    assert "hunter2" not in json.dumps(found)


# --- experiments and artifacts -----------------------------------------------------------------------


def test_a_deleted_experiment_is_told_with_the_command_that_restores_it(either_store, mlflow_client):
    """MLflow takes no runs into it, and no other experiment of its name."""
    client = mlflow_client(either_store)
    id_ = client.create_experiment("deleted for the doctor")
    client.delete_experiment(id_)
    code, found = examined("--tracking-uri", either_store, "--experiment", "deleted for the doctor")
    assert (1, ["experiments"]) == (code, with_state(found, "failed"))
    assert f"mlflow experiments restore -x {id_}" in found["experiments"]["fix"]


def test_artifacts_that_cannot_be_written_are_told(store_uri, mlflow_client, tmp_path):
    """The run is deleted all the same."""
    (tmp_path / "file").write_text("no folder")
    client = mlflow_client(store_uri)
    id_ = client.create_experiment(doctor.EXPERIMENT, artifact_location=str(tmp_path / "file" / "artifacts"))
    code, found = examined("--tracking-uri", store_uri)
    assert (1, ["artifacts"]) == (code, with_state(found, "failed"))
    assert "Not a directory" in found["artifacts"]["detail"]
    assert "make the folder writable" in found["artifacts"]["fix"]
    assert ([], 1) == (list(client.search_runs([id_])), len(client.search_runs([id_], run_view_type=2)))


# --- this machine ------------------------------------------------------------------------------------


def test_a_journal_home_that_cannot_be_written_is_told(tmp_path):
    """A file is in its place."""
    (tmp_path / "file").write_text("no folder")
    code, found = examined("--journal-dir", str(tmp_path / "file"))
    assert (1, ["journal"]) == (code, with_state(found, "failed"))
    assert "MLPIPELINE_HOME" in found["journal"]["fix"]


def test_what_waits_and_what_was_refused_is_told(store_uri, deliver):
    """With the command that sends it, and the one that shows it."""
    with MLflowTracker(tracking_uri=store_uri, delivery="offline") as tracker:
        tracker.log_metrics({"loss": 0.5})
    code, found = examined("--tracking-uri", store_uri)
    assert (0, "warning", "mlpipeline sync") == (code, found["delivery"]["state"], found["delivery"]["fix"])
    assert "2 records wait, 0 refused" in found["delivery"]["detail"]
    deliver()
    assert "ok" == examined("--tracking-uri", store_uri)[1]["delivery"]["state"]
    with MLflowTracker(tracking_uri=store_uri, run_id="0" * 32, delivery="offline") as tracker:
        tracker.log_metrics({"loss": 0.5}, step=0)
    deliver()
    found = examined("--tracking-uri", store_uri)[1]["delivery"]
    assert ("warning", True) == (found["state"], "mlpipeline status" in found["fix"])


def test_the_tested_versions_are_those_of_the_constraints():
    """Every package that is named, in the version that the tests run with."""
    pinned = dict(re.findall(r"^([\w\-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pinned[name] for name in doctor.TESTED} == doctor.TESTED
