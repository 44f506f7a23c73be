"""One run, one file or one record that a server fails with, among many that it takes."""

from __future__ import annotations

import json
import shutil

import pytest
from harness.commands import mlpipeline
from harness.page import FIGURE, figure

from mlpipeline import MLflowConfig
from mlpipeline.testing import faults
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.tracking.opening import open_run

GOOD = 8

pytestmark = [pytest.mark.process, pytest.mark.server]


@pytest.fixture
def proxy(server):
    """A proxy in front of the server."""
    with FaultyProxy(server.uri) as proxy:
        yield proxy


def told(run):
    """What `mlpipeline status` tells of a run: its problem, and its dead letters."""
    runs = json.loads(mlpipeline("status", "--json")[1])["runs"]
    (found,) = [one for one in runs if one["uid"] == run.uid]
    return found["problem"], found["refused"]


def begin(config, name):
    """A run with a metric, and a file before the others."""
    run = open_run(config.replace(run_name=name))
    run.log_metrics({"loss": 0.5}, step=0)
    run.log_text("first", f"{name}-first.txt")
    return run


def record_good(config, first):
    """Runs with nothing wrong, the half of them."""
    for number in range(first, first + GOOD // 2):
        begin(config, f"good-{number}").end()


def stored(client, name):
    """What plain MLflow has: status and files per run."""
    where = client.get_experiment_by_name(name)
    return {
        run.info.run_name: (
            run.info.status,
            sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        )
        for run in client.search_runs([where.experiment_id])
    }


def test_files_that_cannot_be_sent_hold_up_nothing(proxy, home, mlflow_client, record_property):
    """One is too large, one has gone, with one the server fails: the later files of their runs arrive, and all others.

    What is lost for good is listed; what may pass later is kept, and told.
    """
    config = MLflowConfig(tracking_uri=proxy.uri, experiment_name="bad-files", delivery="offline")
    record_good(config, 0)
    bad = {}
    for name in ("large", "gone", "failing"):
        run = bad[name] = begin(config, name)
        run.log_text("second", "second.txt")
        run.end()
    record_good(config, GOOD // 2)
    (spooled,) = home.glob(f"runs/{bad['gone'].uid}/spool/*/gone-first.txt")
    shutil.rmtree(spooled.parent)
    failing = faults.only("failing-first.txt", faults.answered(500))
    proxy.fault = faults.only("large-first.txt", faults.answered(413), failing)
    assert 1 == mlpipeline("sync")[0]
    found = stored(mlflow_client(proxy.uri), config.experiment_name)
    for number in range(GOOD):
        assert ("FINISHED", [f"good-{number}-first.txt"]) == found[f"good-{number}"]
    for name in ("large", "gone"):
        assert ("FINISHED", ["second.txt"]) == found[name]
    assert ["second.txt"] == found["failing"][1]
    assert "500" in told(bad["failing"])[0]
    assert [] == told(bad["failing"])[1]
    for name, reason in (("large", "413"), ("gone", "gone from the spool")):
        (letter,) = told(bad[name])[1]
        assert "artifact" == letter["kind"]
        assert reason in letter["reason"]
    proxy.fault = faults.passed
    code, said = mlpipeline("sync")
    assert 3 == code, said
    found = stored(mlflow_client(proxy.uri), config.experiment_name)
    assert ("FINISHED", ["failing-first.txt", "second.txt"]) == found["failing"]
    title = f"One file too large (413), one deleted from the spool, one answered with 500, beside {GOOD} good runs"
    text = (
        "the good runs and all other files arrive; 2 listed with the reason, 1 kept and sent when it passes"
    )
    record_property(FIGURE, figure(title, text))


@pytest.mark.faults
@pytest.mark.parametrize("status", [403, 500])
def test_one_run_that_is_not_taken_holds_up_no_other(status, proxy, home, mlflow_client):
    """No right to write to it, or a server that fails with it: sync goes on with all the others."""
    config = MLflowConfig(tracking_uri=proxy.uri, experiment_name=f"bad-run-{status}", delivery="offline")
    record_good(config, 0)
    bad = open_run(config.replace(run_name="bad"))
    bad.log_metrics({"loss": 0.5}, step=0)
    bad.set_tags({"its-own": "1"})
    bad.end()
    record_good(config, GOOD // 2)
    of_bad = []
    answer = {"error_code": "PERMISSION_DENIED", "message": "not yours"} if status == 403 else {}

    def fault(exchange):
        if b'"bad"' in exchange.body:
            exchange.reply(faults.Answer(status, (), json.dumps(answer).encode()))
            of_bad.append(exchange.path)
        else:
            exchange.reply(exchange.forward())

    proxy.fault = fault
    assert 1 == mlpipeline("sync")[0]
    found = stored(mlflow_client(proxy.uri), config.experiment_name)
    assert [("FINISHED", [f"good-{number}-first.txt"]) for number in range(GOOD)] == [
        found.get(f"good-{number}") for number in range(GOOD)
    ]
    assert str(status) in told(bad)[0]
    assert 1 <= len(of_bad) <= 3


@pytest.mark.faults  # beside two other test processes sync has twice left before it looked for the record
def test_one_record_that_a_server_fails_with_is_found_and_listed(proxy, home, mlflow_client, record_property):
    """The other 999 points are stored; the run ends."""
    config = MLflowConfig(tracking_uri=proxy.uri, experiment_name="bad-record", delivery="offline")
    run = open_run(config)
    keys = [f"m{number}" if number != 700 else "poison" for number in range(1000)]
    run.log_metrics(dict.fromkeys(keys, 0.5), step=0)
    run.end()

    def fault(exchange):
        is_bad = "log-batch" in exchange.path and b'"poison"' in exchange.body
        (faults.answered(500) if is_bad else faults.passed)(exchange)

    proxy.fault = fault
    code, said = mlpipeline("sync")
    assert 3 == code, said
    client = mlflow_client(proxy.uri)
    where = client.get_experiment_by_name("bad-record")
    (found,) = client.search_runs([where.experiment_id])
    assert set(keys) - {"poison"} == set(found.data.metrics)
    assert "FINISHED" == found.info.status
    (letter,) = told(run)[1]
    assert ("metric", "poison") == (letter["kind"], letter["content"]["key"])
    assert "500" in letter["reason"]
    assert len([path for path in proxy.requests if "log-batch" in path]) < 50
    title = "log-batch answered with 500 whenever it holds one of 1000 points"
    record_property(FIGURE, figure(title, "999 stored, 1 listed with the reason; the run ends"))


@pytest.mark.faults
def test_a_server_that_takes_no_record_at_all_makes_no_dead_letters(proxy, home, mlflow_client):
    """It answers what it is asked, and fails with whatever is written: all is kept, and sent when it is well."""
    config = MLflowConfig(tracking_uri=proxy.uri, experiment_name="no-writes", delivery="offline")
    run = open_run(config)
    run.log_metrics({f"m{number}": 0.5 for number in range(50)}, step=0)
    run.end()
    proxy.fault = faults.only("log-batch", faults.answered(500))
    for _ in range(2):
        assert 1 == mlpipeline("sync")[0]
    assert [] == told(run)[1]
    proxy.fault = faults.passed
    assert 0 == mlpipeline("sync")[0]
    where = mlflow_client(proxy.uri).get_experiment_by_name("no-writes")
    (found,) = mlflow_client(proxy.uri).search_runs([where.experiment_id])
    assert 50 == len(found.data.metrics)
