"""Records that MLflow refuses for good, among a thousand that it takes."""

from __future__ import annotations

import json

import pytest
from harness.commands import mlpipeline
from harness.page import FIGURE, figure

from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.records import Kind


@pytest.mark.process
@pytest.mark.server
def test_poison_is_isolated_listed_and_told(server, mlflow_client, record_property):
    """999 of a thousand points, params and tags of a batch each are stored; `sync` ends with 3, every time."""
    config = MLflowConfig(tracking_uri=server.uri, experiment_name="poison", delivery="offline")
    run = open_run(config)
    # Past our own checks, as a program that writes journals by itself would.
    keys = [f"metric-{number}" for number in range(999)]
    run._journal.append_metrics((*keys[:500], "bad@key", *keys[500:]), [0.5] * 1000, 0, 1000)
    run._journal.append(Kind.PARAMS, {"params": {"good": "1", "bad$key": "2", "k" * 300: "3"}, "ms": 1000})
    run._journal.append(Kind.TAGS, {"tags": {"good": "1", "bad=key": "2"}, "ms": 1000})
    run.end()
    gone = open_run(config.replace(run_name="gone"))
    gone.log_metrics({"loss": 0.5}, step=0)
    gone.end()
    deleted = open_run(config.replace(run_name="deleted", run_id="0" * 32))
    deleted.log_metrics({"loss": 0.5}, step=0)
    deleted.end()
    codes = [mlpipeline("sync")[0] for _ in range(2)]
    assert [3, 3] == codes
    client = mlflow_client(server.uri)
    (found,) = client.search_runs(
        [client.get_experiment_by_name("poison").experiment_id], "metrics.`metric-0` > 0"
    )
    assert set(keys) == set(found.data.metrics)
    assert {"good": "1"} == found.data.params
    assert "1" == found.data.tags["good"]
    assert "FINISHED" == found.info.status
    told = json.loads(mlpipeline("status", "--json")[1])
    refused = [(letter["kind"], str(letter["content"])) for one in told["runs"] for letter in one["refused"]]
    assert 5 == len(refused)
    for name in ("bad@key", "bad$key", "k" * 300, "bad=key", "loss"):
        assert 1 == sum(name in content for _, content in refused), name
    assert all(letter["reason"] for one in told["runs"] for letter in one["refused"])
    title = "Poison: bad keys, a key too long, a run that is not there"
    text = (
        "5 records refused and listed with the reason, the other 999 of their batch stored; sync ends with 3"
    )
    record_property(FIGURE, figure(title, text))
