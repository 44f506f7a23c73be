"""Metrics of a logged model: at the run that evaluated it, at the model, and by the dataset."""

from __future__ import annotations

import math
import uuid

import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking.account import LOCAL_PREFIX, account_of, dead_letters
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.sink import MlflowSink


@pytest.fixture
def config(either_store):
    name = f"evaluations-{uuid.uuid4().hex[:8]}"
    return MLflowConfig(tracking_uri=either_store, experiment_name=name, delivery="offline", log_model=True)


@pytest.fixture
def client(config):
    return MlflowClient(config.tracking_uri, config.tracking_uri)


def trained(config):
    """A run that has ended, with a model."""
    from sklearn.linear_model import LinearRegression

    run = open_run(config)
    run.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    run.end()
    return run


def evaluating(config, model, metrics, **options):
    """A run that has ended, with an evaluation."""
    run = open_run(config)
    run.log_evaluation(metrics, model, **options)
    run.end()
    return run


def shown_at(client, model_id):
    """What MLflow says that a model scores."""
    return [
        (metric.key, metric.value, metric.step, metric.dataset_name, metric.dataset_digest, metric.run_id)
        for metric in client.get_logged_model(model_id).metrics or []
    ]


def test_metrics_are_at_the_run_and_at_the_model_with_its_dataset(config, client, deliver, home):
    """The run has the model as an input; and sent once more, nothing is there twice."""
    training = trained(config)
    deliver()
    run = evaluating(
        config, training.model_uri, {"r2": 0.5}, dataset=("test", "0123456789abcdef"), timestamp_ms=5000
    )
    deliver()
    expected = [("r2", 0.5, 0, "test", "0123456789abcdef", run.run_id)]
    assert expected == shown_at(client, training.model_id)
    again = {
        "metrics": {"r2": 0.5},
        "step": 0,
        "timestamp_ms": 5000,
        "dataset": {"name": "test", "digest": "0123456789abcdef"},
    }
    MlflowSink(run.destination).log_evaluation(run.run_id, training.model_id, again)
    assert expected == shown_at(client, training.model_id)
    found = client.get_run(run.run_id)
    assert ({"r2": 0.5}, "FINISHED") == (found.data.metrics, found.info.status)
    assert [(0, 5000, 0.5)] == [
        (point.step, point.timestamp, point.value) for point in client.get_metric_history(run.run_id, "r2")
    ]
    assert [training.model_id] == [model.model_id for model in found.inputs.model_inputs]
    assert 0 == account_of(Home(home), run.uid).counts.pending


def test_a_model_that_is_still_on_its_way_is_waited_for(config, client, deliver, home):
    """Both were recorded while nothing was reachable: only the local id is known."""
    training = trained(config)
    run = evaluating(config, f"{LOCAL_PREFIX}{training.uid}", {"r2": 0.25})
    sink = MlflowSink(run.destination)
    evaluations, models = (RunDelivery(Home(home), Home(home).run(uid)) for uid in (run.uid, training.uid))
    for delivery in (evaluations, models):  # the second time the model's run is there, and not the model
        delivery.deliver(sink)
        assert not evaluations.upload(sink)
    assert "RUNNING" == client.get_run(evaluations.state.run_id).info.status
    deliver()
    assert [("r2", 0.25, 0, None, None, run.run_id)] == shown_at(client, training.model_id)
    assert [] == dead_letters(Home(home), run.uid)


def test_a_model_evaluated_in_the_run_that_logged_it(config, client, deliver):
    """By its local id, which is all that is known meanwhile."""
    from sklearn.linear_model import LinearRegression

    run = open_run(config)
    run.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    run.log_evaluation({"r2": 1.0}, f"{LOCAL_PREFIX}{run.uid}")
    run.end()
    deliver()
    assert [("r2", 1.0, 0, None, None, run.run_id)] == shown_at(client, run.model_id)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("m-0123456789abcdef0123456789abcdef", "not found"),
        ("local-0123456789abcdef", "recorded elsewhere"),
    ],
)
def test_a_model_that_is_nowhere_costs_the_link_only(config, client, deliver, home, model, reason):
    """The run keeps its metrics and ends; the letter has the reason."""
    run = evaluating(config, model, {"r2": 0.5})
    deliver()
    found = client.get_run(run.run_id)
    assert ({"r2": 0.5}, "FINISHED") == (found.data.metrics, found.info.status)
    (letter,) = dead_letters(Home(home), run.uid)
    assert "evaluation" == letter["kind"]
    assert reason in letter["reason"]


def test_a_run_without_a_model_is_no_reason_to_wait(config, deliver, home):
    """It has ended, and none will come."""
    empty = open_run(config)
    empty.end()
    run = evaluating(config, f"{LOCAL_PREFIX}{empty.uid}", {"r2": 0.5})
    deliver()
    (letter,) = dead_letters(Home(home), run.uid)
    assert "has logged none" in letter["reason"]


def test_names_are_escaped_and_what_is_not_finite_stays_at_the_run(config, client, deliver):
    """At a model, MLflow would store NaN as 0."""
    training = trained(config)
    deliver()
    run = evaluating(config, training.model_id, {"ndcg@3": 0.5, "undefined": math.nan})
    deliver()
    (metric,) = client.get_logged_model(training.model_id).metrics
    assert ("ndcg__at__3", 0.5) == (metric.key, metric.value)
    found = client.get_run(run.run_id).data.metrics
    assert {"ndcg__at__3", "undefined"} == found.keys()


def test_what_is_no_logged_model_is_refused_where_it_is_written(config):
    """An alias points elsewhere tomorrow; a run's id may mean several models."""
    run = open_run(config)
    for model in ("models:/churn@champion", "models:/churn/3", "0123456789abcdef0123456789abcdef"):
        with pytest.raises(UsageError, match=r"is no logged model; give run.model_uri"):
            run.log_evaluation({"r2": 0.5}, model)
    run.end()
    with pytest.raises(UsageError, match="has ended"):
        run.log_evaluation({"r2": 0.5}, "m-0123456789abcdef0123456789abcdef")
