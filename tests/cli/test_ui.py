"""``mlpipeline ui``: a server's address, or a real server on a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlpipeline.cli import main
from mlpipeline.cli.ui import command
from mlpipeline.core import credentials
from mlpipeline.testing.places import free_port, wait_until
from mlpipeline.tracking.destination import Destination


def test_of_a_server_it_tells_the_address(monkeypatch):
    """Without the password; nothing is started, nothing opened, nobody asked."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@ml.example:5000")
    done = CliRunner().invoke(main, ["ui"])
    assert (0, "http://ml.example:5000\n") == (done.exit_code, done.output)
    done = CliRunner().invoke(main, ["ui", "--json"])
    assert {"url": "http://ml.example:5000"} == json.loads(done.stdout)


def test_open_opens_the_address_in_the_users_browser(monkeypatch, tmp_path):
    """Whatever BROWSER names."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    environ = {**os.environ, "BROWSER": f"{browser} %s"}
    arguments = [
        sys.executable,
        "-m",
        "mlpipeline",
        "ui",
        "--open",
        "--tracking-uri",
        "http://ml.example:5000",
    ]
    subprocess.run(arguments, env=environ, check=True, capture_output=True)
    assert "http://ml.example:5000\n" == (tmp_path / "opened").read_text()


def test_without_a_store_there_is_nothing_to_show():
    """An empty page from the wrong folder helps nobody."""
    done = CliRunner().invoke(main, ["ui"])
    assert 2 == done.exit_code
    assert "there is no store at sqlite:////" in done.stderr
    assert "--tracking-uri" in done.stderr


def test_a_databases_password_is_no_argument(monkeypatch):
    """Every user of the machine sees those."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    uri = credentials.stripped("postgresql://ann:hunter2@db:5432/mlflow")
    arguments, environ = command(Destination(uri, uri), "127.0.0.1", 5000)
    assert "hunter2" not in " ".join(arguments)
    assert "postgresql://ann:hunter2@db:5432/mlflow" == environ["MLFLOW_BACKEND_STORE_URI"]
    assert "MLFLOW_TRACKING_URI" not in environ


@pytest.mark.server
@pytest.mark.process
def test_of_a_file_it_becomes_a_server_of_its_runs(store_uri, tmp_path):
    """The same process, one worker; the run and its artifact are there; Ctrl-C ends it."""
    client = MlflowClient(store_uri)
    run_id = client.create_run("0", run_name="shown").info.run_id
    client.log_text(run_id, "hello", "note.txt")
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlpipeline",
            "ui",
            "--json",
            "--port",
            str(port),
            "--tracking-uri",
            store_uri,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    try:
        told = json.loads(process.stdout.readline())
        assert f"http://127.0.0.1:{port}" == told["url"]
        wait_until(lambda: is_healthy(told["url"]))
        with open(f"/proc/{process.pid}/cmdline", "rb") as file:
            assert told["command"] == file.read().decode().rstrip("\0").split("\0"), "no process in between"
        assert "shown" == MlflowClient(told["url"]).get_run(run_id).info.run_name
        page = f"{told['url']}/get-artifact?path=note.txt&run_id={run_id}"
        with urllib.request.urlopen(page, timeout=10) as answer:
            assert b"hello" == answer.read()
        assert 1 == told["command"].count("--workers") == told["command"].count("1")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not is_healthy(told["url"])


def is_healthy(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return 200 == answer.status
    except OSError:
        return False
