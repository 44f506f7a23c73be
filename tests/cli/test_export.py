"""``mlpipeline export``: what a monitoring system reads, from a file and over HTTP."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mlpipeline import MLflowTracker
from mlpipeline.cli import main
from mlpipeline.testing.faults import FaultyProxy, held, only
from mlpipeline.testing.places import free_port, wait_until
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.names import metric_key
from mlpipeline.tracking.sink import MlflowSink

NOBODY = "http://127.0.0.1:9"


def samples(text):
    """Return the value of each sample by name and labels, as a strict parser reads it."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def exported(*arguments, code=0):
    done = CliRunner().invoke(main, ["export", *arguments])
    assert code == done.exit_code, (done.output, done.exception)
    return samples(done.stdout)


def registered(uri, name, run_id, *aliases, metrics=()):
    """Register a logged model of a run; return its version."""
    client = MlflowClient(uri, uri)
    experiment_id = client.get_run(run_id).info.experiment_id
    model_id = client.create_logged_model(experiment_id, "model", source_run_id=run_id).model_id
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    for metric in metrics:
        client.log_metric(run_id, metric.key, metric.value, metric.timestamp, metric.step, model_id=model_id)
    sink = MlflowSink(Destination(uri, uri))
    sink.ensure_registered_model(name)
    version = sink.create_version(model_id, run_id, {"name": name, "uid": model_id})
    sink.mark_version({"name": name, "aliases": list(aliases)}, version, model_id)
    return version


def test_the_newest_metrics_of_every_alias_are_told(either_store):
    """Its logged model's, else its run's; a version without an alias is not in use."""
    client = MlflowClient(either_store, either_store)
    experiment = client.create_experiment("exported metrics")
    run_id = client.create_run(experiment).info.run_id
    client.log_batch(run_id, metrics=[Metric("auc", 0.5, 1000, 0), Metric("auc", 0.75, 2000, 1)])
    client.log_batch(run_id, metrics=[Metric(metric_key("ndcg@3"), 0.25, 1000, 0)])
    name = f"churn-{either_store[:4]}"
    # The later evaluation has the smaller step.
    points = [Metric("f1", 0.9, 2000, 7), Metric("f1", 0.8, 9000, 3), Metric("f1", 0.7, 1000, 9)]
    version = registered(either_store, name, run_id, "champion", "shadow", metrics=points)
    registered(either_store, name, run_id, metrics=[Metric("f1", 0.1, 9999, 99)])
    found = {key: value for key, value in exported("--tracking-uri", either_store).items() if name in key}
    assert {
        ("mlpipeline_model_metric", *sorted((name, alias, str(version), metric))): value
        for alias in ("champion", "shadow")
        for metric, value in (("f1", 0.8), ("auc", 0.75), ("ndcg@3", 0.25))
    } == found


def test_runs_are_counted_by_experiment_and_status(either_store):
    """Deleted runs and deleted experiments do not count."""
    client = MlflowClient(either_store, either_store)
    ids = [client.create_experiment(f"counted {number}") for number in range(2)]
    for status in ("FINISHED", "FINISHED", "FAILED"):
        client.set_terminated(client.create_run(ids[0]).info.run_id, status)
    client.create_run(ids[0])
    client.delete_run(client.create_run(ids[0]).info.run_id)
    client.create_run(ids[1])
    client.delete_experiment(ids[1])
    found = exported("--tracking-uri", either_store)
    counts = {key[1:]: value for key, value in found.items() if key[0] == "mlpipeline_runs"}
    ours = {key: value for key, value in counts.items() if "counted 0" in key or "counted 1" in key}
    assert {("FINISHED", "counted 0"): 2, ("FAILED", "counted 0"): 1, ("RUNNING", "counted 0"): 1} == ours
    assert 1 == found["mlpipeline_up", either_store]


def test_what_waits_and_what_was_refused_is_told_also_while_mlflow_is_away(store_uri, deliver):
    """Exit code 1, because MLflow could not be asked; nothing of MLflow's is made up."""
    nothing = exported("--tracking-uri", NOBODY, code=1)
    assert {0} == set(nothing.values())
    assert 5 == len(nothing), "up and the four of the journal"
    with MLflowTracker(tracking_uri=store_uri, run_id="0" * 32, delivery="offline") as tracker:
        tracker.log_metrics({"loss": 0.5}, step=0)
    deliver()
    with MLflowTracker(tracking_uri=NOBODY, delivery="offline") as tracker:
        tracker.active_run.log_metrics(
            {"loss": 0.5, "acc": 0.5}, step=0, timestamp_ms=int(time.time() * 1000) - 90_000
        )
    found = exported("--tracking-uri", NOBODY, code=1)
    assert (3, 1, 0) == tuple(
        found[f"mlpipeline_{kind}_records",] for kind in ("pending", "refused", "dropped")
    )
    assert 90 <= found["mlpipeline_delivery_lag_seconds",] < 100
    assert 0 == found["mlpipeline_up", NOBODY]
    done = CliRunner().invoke(main, ["export", "--json", "--tracking-uri", NOBODY])
    told = json.loads(done.stdout)
    assert (False, 3, 1, []) == (told["is_up"], told["pending"], told["refused"], told["models"])
    assert "Connection refused" in told["problem"]


def test_no_credentials_are_in_a_label():
    """Nor in what is said."""
    for arguments in ([], ["--json"]):
        done = CliRunner().invoke(
            main, ["export", "--tracking-uri", "http://ann:hunter2@127.0.0.1:9", *arguments]
        )
        assert 1 == done.exit_code
        assert "127.0.0.1:9" in done.stdout
        assert "hunter2" not in done.output
    done = CliRunner().invoke(
        main, ["export", "--tracking-uri", "postgresql://ann:hunter2@127.0.0.1:9/mlflow"]
    )
    assert "hunter2" not in done.output


def test_a_store_that_is_not_there_is_not_made():
    """Up is 0."""
    exported(code=1)
    assert [] == list(Path.cwd().iterdir())


def test_a_file_is_replaced_whole_and_everybody_may_read_it(store_uri, tmp_path):
    """The collector of node_exporter is another user; and it reads every *.prom that is there."""
    path = tmp_path / "metrics" / "mlpipeline.prom"
    path.parent.mkdir()
    path.write_text("old")
    before = path.stat().st_ino
    done = CliRunner().invoke(main, ["export", "--tracking-uri", store_uri, "--output", str(path)])
    assert (0, "") == (done.exit_code, done.output)
    assert 1 == samples(path.read_text())["mlpipeline_up", store_uri]
    assert (0o644, True) == (path.stat().st_mode & 0o777, before != path.stat().st_ino)
    assert [path] == list(path.parent.iterdir())
    done = CliRunner().invoke(
        main, ["export", "--tracking-uri", store_uri, "--output", str(tmp_path / "no" / "x")]
    )
    assert (1, True) == (done.exit_code, "cannot be written: No such file" in done.stderr)
    done = CliRunner().invoke(main, ["export", "--output", "x", "--serve", "0"])
    assert (2, True) == (done.exit_code, "give one of them" in done.stderr)


# --- served ------------------------------------------------------------------------------------------


@contextmanager
def served(*arguments):
    """Serve in a process of its own; give it and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlpipeline", "export", "--serve", "0", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, json.loads(process.stdout.readline())["url"]
    finally:
        process.kill()
        process.communicate()


def scraped(url, accept="application/openmetrics-text"):
    begun_s = time.monotonic()
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
    assert 2 > time.monotonic() - begun_s, "a scrape waits for nobody"
    return samples(text)


@pytest.mark.server
@pytest.mark.process
def test_what_is_served_follows_mlflow_and_outlives_it(server):
    """While MLflow hangs, scrapes are answered at once, first with the last figures, then with up 0; Ctrl-C is 0."""
    gate = threading.Event()
    with (
        FaultyProxy(server.uri) as proxy,
        served("--tracking-uri", proxy.uri, "--every", "0.2s") as (process, url),
    ):
        wait_until(lambda: 1 == scraped(url).get(("mlpipeline_up", proxy.uri)), within_s=30)
        assert any(name == "mlpipeline_runs" for name, *_ in scraped(url))
        proxy.fault = held(gate)
        wait_until(lambda: 0 == scraped(url)["mlpipeline_up", proxy.uri], within_s=30)
        assert not any(name == "mlpipeline_runs" for name, *_ in scraped(url))
        proxy.fault = only("nothing", held(gate))
        gate.set()
        wait_until(lambda: 1 == scraped(url)["mlpipeline_up", proxy.uri], within_s=30)
        process.send_signal(signal.SIGINT)
        assert 0 == process.wait(10)
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])))


@pytest.mark.process
def test_a_dead_destination_is_served_as_such_and_a_service_stops_without_a_word():
    """SIGTERM ends it as Ctrl-C does."""
    with served("--tracking-uri", NOBODY) as (process, url):
        assert 0 == scraped(url)["mlpipeline_up", NOBODY]
        process.terminate()
        assert 0 == process.wait(10)
        assert (
            f"mlpipeline: {NOBODY} does not answer: [Errno 111] Connection refused\n" == process.stderr.read()
        )


def test_a_port_that_is_taken_is_told(store_uri):
    """Exit code 1, in one line."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        done = CliRunner().invoke(main, ["export", "--tracking-uri", store_uri, "--serve", str(port)])
    assert 1 == done.exit_code
    assert f"Error: cannot serve at 127.0.0.1:{port}: Address already in use\n" == done.stderr


# --- alerts ------------------------------------------------------------------------------------------


def test_every_series_of_the_example_alerts_is_exported(store_uri):
    """With the labels that they name."""
    import yaml

    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    rules = [rule for group in yaml.safe_load(block)["groups"] for rule in group["rules"]]
    client = MlflowClient(store_uri, store_uri)
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "val_f1", 0.9)
    registered(store_uri, "churn", run_id, "champion")
    done = CliRunner().invoke(main, ["export", "--tracking-uri", store_uri])
    families = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    named = {name for rule in rules for name in re.findall(r"\bmlpipeline_\w+", rule["expr"])}
    assert {
        "mlpipeline_model_metric",
        "mlpipeline_refused_records",
        "mlpipeline_delivery_lag_seconds",
    } <= named
    assert named <= families.keys()
    labels = {label for family in families.values() for sample in family.samples for label in sample.labels}
    used = {
        label
        for rule in rules
        for text in (rule["expr"], *rule["annotations"].values())
        for label in re.findall(r"\$labels\.(\w+)|[{,]\s*(\w+)=", text)
        for label in label
        if label
    }
    assert used
    assert used <= labels
    assert all({"alert", "expr", "for", "labels", "annotations"} == rule.keys() for rule in rules)
