"""What a process tells its user when it ends: one line per root run, on standard error."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from mlpipeline import MLflowConfig
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.tracking.opening import open_run

TRAINING = """
from mlpipeline import MLflowTracker
with MLflowTracker({options}) as tracker:
    tracker.log_metrics({{"loss": 0.5}})
    with tracker.run("fold-1") as fold:
        fold.log_metrics({{"loss": 0.25}})
"""


def train(**options):
    """Run a training with two runs in a process of its own; return it when it has ended."""
    code = TRAINING.format(options=", ".join(f"{name}={value!r}" for name, value in options.items()))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.process
def test_a_root_run_prints_one_line_with_its_run_and_the_way_to_it(store_uri, mlflow_client):
    """On standard error, after the delivery; its child prints none, and standard output stays empty."""
    done = train(tracking_uri=store_uri, experiment_name="churn", run_name="first")
    (run,) = mlflow_client(store_uri).search_runs(["1"], "attributes.run_name = 'first'")
    way = f"look at it with: mlflow ui --backend-store-uri {store_uri}"
    assert f"mlpipeline: churn / first · run {run.info.run_id} · {way}\n" == done.stderr
    assert "" == done.stdout


def test_what_could_not_be_sent_is_told_with_the_way_to_send_it(store_uri, home):
    """One point and one end wait for whoever sends them."""
    done = train(tracking_uri=store_uri, experiment_name="churn", run_name="first", delivery="offline")
    expected = f"mlpipeline: churn / first · 2 records wait in {home} · send them with: mlpipeline sync"
    assert [expected] == re.split(r"\n", done.stderr.strip())


@pytest.mark.server
def test_with_exit_wait_s_the_exit_insists(server):
    """The server comes back after 4 seconds; the exit would not have waited for half of that."""
    with FaultyProxy(server.uri) as proxy:
        proxy.down()
        code = TRAINING.format(
            options=f"tracking_uri={proxy.uri!r}, experiment_name='insisted', exit_wait_s=60"
        )
        command = [sys.executable, "-c", f"{code}\nprint(flush=True)"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdout.readline()
            time.sleep(4)
            assert process.poll() is None
            proxy.up()
            _, told = process.communicate(timeout=70)
    assert re.fullmatch(rf"mlpipeline: insisted / \S+ · {proxy.uri}/\S+/runs/[0-9a-f]{{32}}\n", told)


@pytest.mark.process
def test_a_forked_child_that_exits_neither_waits_for_its_parents_runs_nor_prints_their_lines():
    """They are the parent's to end: the child's exit takes no part of the minute that the parent's may."""
    code = """
import os, signal, sys
from mlpipeline import MLflowTracker
tracker = MLflowTracker(tracking_uri="http://127.0.0.1:9", exit_wait_s=60, delivery="thread")
tracker.start_run()
child = os.fork()
if child == 0:
    signal.alarm(10)
    tracker.log_metrics({"loss": 0.5})
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("7\n", 0) == (done.stdout, done.stderr.count("mlpipeline:"))


def test_nobody_waits_for_what_no_disk_has_taken(tmp_path, store_uri):
    """No courier will ever know of it: neither the run's id nor its end is worth a second."""
    (tmp_path / "file").touch()
    run = open_run(MLflowConfig(tracking_uri=store_uri, journal_dir=tmp_path / "file" / "home"))
    run.log_metrics({"loss": 0.5}, step=0)
    began_s = time.monotonic()
    assert run.run_id.startswith("local-")
    run.end()
    assert 2 == run.wait().dropped
    assert time.monotonic() - began_s < 2.0
