"""Registered models by command, on SQLite and on a real server, with real models."""

from __future__ import annotations

import dataclasses
import sqlite3
import threading
import uuid
import warnings

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sqlalchemy import event

from mlpipeline import MLflowTracker, ModelRegistry
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.models.promotion import AUDIT_TAG, AuditEntry, audit_of, previous_holder

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 2))
Y = (X[:, 0] + 0.5 * RANDOM.normal(size=200) > 0).astype(int)


def good():
    return LogisticRegression().fit(X, Y)


def poor():
    return DummyClassifier(strategy="constant", constant=1).fit(X, Y)


class Place:
    """A store, with a model name and an experiment of this test's own in it."""

    def __init__(self, uri):
        self.uri = uri
        self.name = f"model {uuid.uuid4().hex[:8]}"
        self.registry = ModelRegistry(tracking_uri=uri)
        self.client = MlflowClient(uri, uri)
        self.options = {"tracking_uri": uri, "experiment_name": self.name, "delivery": "thread"}

    def train(self, model=None, metrics=None, data=None, name="model", **options):
        """Record a training; return MLflow's id of its run."""
        with MLflowTracker(**{**self.options, **options}) as tracker:
            if model is not None:
                tracker.log_model(model, name)
            tracker.log_metrics(metrics or {})
            if data is not None:
                tracker.log_dataset(data, context="test")
        return tracker.get_run_info().run_id

    def versions(self, *models):
        """Register models, one version each."""
        return [self.registry.register(self.train(model), self.name).version for model in models]

    def holder(self, alias):
        return int(self.client.get_model_version_by_alias(self.name, alias).version)


@pytest.fixture
def place(either_store):
    return Place(either_store)


@pytest.fixture
def sqlite_place(store_uri):
    return Place(store_uri)


# --- register ----------------------------------------------------------------------------------------


def test_a_runs_model_becomes_a_version_with_all_that_is_said_of_it(place):
    """Numbers are numbers, whatever the store."""
    run_id = place.train(good(), {"f1": 0.5})
    found = place.registry.register(
        run_id, place.name, description="first", tags={"team": "churn"}, alias="champion", stage="staging"
    )
    assert (place.name, 1, run_id) == (found.name, found.version, found.run_id)
    assert (("champion", "staging"), "Staging") == (found.aliases, found.stage)
    assert ("first", {"team": "churn", "stage": "Staging"}) == (found.description, found.tags)
    model_id = place.client.get_run(run_id).outputs.model_outputs[0].model_id
    assert model_id == found.model_id
    assert f'"name": "{place.name}"' in place.client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    assert (good().predict(X) == place.registry.load(f"{place.name}@champion").predict(X)).all()


def test_plain_mlflow_loads_what_was_registered(sqlite_place):
    """By its usual address."""
    import mlflow

    sqlite_place.registry.register(sqlite_place.train(good()), sqlite_place.name, alias="champion")
    mlflow.set_tracking_uri(sqlite_place.uri)
    loaded = mlflow.sklearn.load_model(f"models:/{sqlite_place.name}@champion")
    assert (good().predict(X) == loaded.predict(X)).all()


def test_the_same_model_is_one_version_however_often_it_is_registered(place):
    """The second time only adds what is said."""
    run_id = place.train(good())
    first = place.registry.register(run_id, place.name, description="kept")
    again = place.registry.register(run_id, place.name, tags={"a": 1}, alias="champion")
    assert dataclasses.replace(first, tags={"a": "1"}, aliases=("champion",), audit=again.audit) == again
    assert 1 == len(place.client.search_model_versions(f"name = '{place.name}'"))


def test_what_the_training_registered_is_not_registered_again(place):
    """Its name is known, too."""
    run_id = place.train(good(), register_model=True, model_name=place.name, model_alias="champion")
    found = place.registry.register(run_id)
    assert (place.name, 1, ("champion",)) == (found.name, found.version, found.aliases)


def test_four_at_once_make_one_version(sqlite_place):
    """Whoever comes second takes its own back."""
    run_id = sqlite_place.train(good())
    found, start = [], threading.Barrier(4)

    def register():
        start.wait()
        found.append(sqlite_place.registry.register(run_id, sqlite_place.name).version)

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = sqlite_place.registry.versions(sqlite_place.name)
    assert 1 == len(left)
    assert [left[0].version] * 4 == found


def test_a_local_run_id_is_registered_once_it_is_delivered(sqlite_place, deliver):
    """And says what to do before."""
    with MLflowTracker(**{**sqlite_place.options, "delivery": "offline"}) as tracker:
        tracker.log_model(good())
        local = tracker.run_id
    assert local.startswith("local-")
    with pytest.raises(UsageError, match="mlpipeline sync"):
        sqlite_place.registry.register(local, sqlite_place.name)
    deliver()
    assert 1 == sqlite_place.registry.register(local, sqlite_place.name).version


def test_of_several_models_the_newest_or_the_named_one(sqlite_place):
    """Each is a version of its own."""
    with MLflowTracker(**sqlite_place.options) as tracker:
        tracker.log_model(poor(), "first")
        tracker.log_model(good(), "second")
    run_id, registry, name = tracker.get_run_info().run_id, sqlite_place.registry, sqlite_place.name
    assert LogisticRegression is type(registry.load(name, registry.register(run_id, name).version))
    named = registry.register(run_id, name, model_name="first")
    assert (2, DummyClassifier) == (named.version, type(registry.load(f"models:/{name}/2")))
    with pytest.raises(UsageError, match="has no model 'third'; its models are: first, second"):
        registry.register(run_id, name, model_name="third")


def test_what_cannot_be_registered_says_why(sqlite_place):
    """And makes no model of that name."""
    registry, name = sqlite_place.registry, sqlite_place.name
    with pytest.raises(UsageError, match=r"run '0{32}' is unknown"):
        registry.register("0" * 32, name)
    with pytest.raises(UsageError, match="has no logged model to register"):
        registry.register(sqlite_place.train(), name)
    with pytest.raises(UsageError, match="recorded without its files"):
        registry.register(sqlite_place.train(good(), log_model="metadata"), name)
    run_id = sqlite_place.train(good())
    with pytest.raises(UsageError, match="does not say what its model is to be registered as"):
        registry.register(run_id)
    for wrong in ({"name": "a/b"}, {"alias": "v1"}, {"stage": "Prod"}):
        with pytest.raises(ConfigError):
            registry.register(run_id, **{"name": name, **wrong})
    assert [] == registry.models()


def test_the_configuration_may_have_the_name(sqlite_place):
    """As for a training."""
    registry = ModelRegistry(tracking_uri=sqlite_place.uri, model_name="churn")
    assert "churn" == registry.register(sqlite_place.train(good())).name


# --- tags, aliases, stages ---------------------------------------------------------------------------


def test_a_version_is_described_and_tagged(sqlite_place):
    """None takes a tag back."""
    (version,) = sqlite_place.versions(good())
    sqlite_place.registry.tag(sqlite_place.name, version, {"a": 1, "b": "x"})
    assert {"b": "x"} == sqlite_place.registry.tag(
        sqlite_place.name, version, {"a": None, "never": None}
    ).tags
    assert "so so" == sqlite_place.registry.describe(sqlite_place.name, version, "so so").description
    assert "so so" == sqlite_place.registry.describe(sqlite_place.name, version).description
    with pytest.raises(UsageError, match="MLflow refuses it"):
        sqlite_place.registry.tag(sqlite_place.name, version, {"k" * 300: "x"})


def test_a_stage_is_alias_tag_and_stage(place):
    """The alias of the stage that it leaves goes; MLflow's deprecation is not the user's business."""
    first, second = place.versions(good(), poor())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        place.registry.set_stage(place.name, first, "staging")
        found = place.registry.set_stage(place.name, first, "Production")
        place.registry.set_stage(place.name, second, "Staging")
    assert (("production",), "Production", {"stage": "Production"}) == (
        found.aliases,
        found.stage,
        found.tags,
    )
    stages = [place.client.get_model_version(place.name, str(v)).current_stage for v in (first, second)]
    assert ["Production", "Staging"] == stages
    found = place.registry.set_stage(place.name, first, "None")
    assert ((), None, {}) == (found.aliases, found.stage, found.tags)
    assert "None" == place.client.get_model_version(place.name, str(first)).current_stage
    with pytest.raises(ConfigError, match=r"stage='prod': expected one of .*'Production'"):
        place.registry.set_stage(place.name, first, "prod")


def test_a_stage_that_mlflow_has_is_shown(sqlite_place):
    """Whoever set it."""
    (version,) = sqlite_place.versions(good())
    with pytest.warns(FutureWarning):
        sqlite_place.client.transition_model_version_stage(sqlite_place.name, str(version), "Staging")
    assert "Staging" == sqlite_place.registry.version(sqlite_place.name, version).stage


def test_the_champion_is_not_archived(sqlite_place):
    """Whoever serves it would have none."""
    (version,) = sqlite_place.versions(good())
    name, registry = sqlite_place.name, sqlite_place.registry
    registry.set_stage(name, version, "Production")
    registry.alias(name, version, "champion")
    with pytest.raises(UsageError, match=r"version 1 .* is the champion: promote another version first"):
        registry.archive(name, version)
    assert 1 == registry.remove_alias(name, "champion").version
    found = registry.archive(name, version)
    assert ("Archived", ("archived",)) == (found.stage, found.aliases)


def test_what_is_not_there_is_named_with_what_is(sqlite_place):
    """Model, version, alias."""
    (version,) = sqlite_place.versions(good())
    sqlite_place.registry.alias(sqlite_place.name, version, "champion")
    near = sqlite_place.name + "x"
    for ask in (
        lambda: sqlite_place.registry.versions(near),
        lambda: sqlite_place.registry.promote(near, 1, "champion"),
        lambda: sqlite_place.registry.load(f"{near}@champion"),
    ):
        with pytest.raises(UsageError, match=f"no model '{near}' is registered at .*{sqlite_place.name}"):
            ask()
    with pytest.raises(UsageError, match="has no version 7; the newest are 1"):
        sqlite_place.registry.describe(sqlite_place.name, 7)
    with pytest.raises(UsageError, match=r"has no alias 'champoin'; its aliases are: champion \(version 1\)"):
        sqlite_place.registry.rollback(sqlite_place.name, "champoin")
    with pytest.raises(UsageError, match="names no version"):
        sqlite_place.registry.load(sqlite_place.name)
    with pytest.raises(ConfigError, match="alias"):
        sqlite_place.registry.alias(sqlite_place.name, version, "latest")


# --- promotion with values that are recorded ---------------------------------------------------------


def recorded(place, *values, data=None, metric="f1"):
    """Register versions of which MLflow has a value and a dataset, and nobody ever asks for the model's files."""
    client = place.client
    experiment = client.get_experiment_by_name(place.name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(place.name)
    found = []
    for value in values:
        run_id = client.create_run(experiment_id).info.run_id
        client.log_batch(run_id, [Metric(metric, value, 1, 0)])
        if data is not None:
            inputs = [
                DatasetInput(Dataset("test", data, "local", "{}"), [InputTag("mlflow.data.context", "test")])
            ]
            client.log_inputs(run_id, inputs)
        model = client.create_logged_model(experiment_id, name="model", source_run_id=run_id)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        found.append(place.registry.register(run_id, place.name).version)
    return found


def test_the_first_is_promoted_and_then_only_what_is_better(place):
    """With both values, and the difference in the direction of better."""
    first, second, third = recorded(place, 0.8, 0.9, 0.85)
    verdict = place.registry.promote(place.name, first, "champion", if_better="f1")
    assert (True, 0.8, None, None) == (
        verdict.promoted,
        verdict.challenger,
        verdict.champion,
        verdict.champion_version,
    )
    assert "there was no champion" == verdict.reason
    verdict = place.registry.promote(place.name, second, "champion", if_better="f1")
    assert (True, "f1", 0.9, 0.8, first) == (
        verdict.promoted,
        verdict.metric,
        verdict.challenger,
        verdict.champion,
        verdict.champion_version,
    )
    assert pytest.approx(0.1) == verdict.delta
    verdict = place.registry.promote(place.name, third, "champion", if_better="f1")
    assert not verdict.promoted
    assert "worse by 0.05: f1 0.85, that of the champion (version 2) 0.9" == verdict.reason
    assert second == place.holder("champion")


def test_of_an_error_less_is_better_unless_the_caller_says_otherwise(sqlite_place):
    """By its name; one of the user's own needs a direction."""
    first, second = recorded(sqlite_place, 0.8, 0.7, metric="val_loss")
    promote, name = sqlite_place.registry.promote, sqlite_place.name
    promote(name, first, "champion")
    assert not promote(name, second, "champion", if_better="val_loss", greater_is_better=True).promoted
    assert promote(name, second, "champion", if_better="val_loss").promoted
    with pytest.raises(ConfigError, match="metric 'my_metric' is unknown"):
        promote(name, first, "champion", if_better="my_metric")


@pytest.mark.parametrize(
    ("challenger", "min_delta", "is_better", "reason"),
    [
        (0.5, 0.0, False, "no better: "),
        (0.5 + 1e-9, 0.0, True, "better by 1e-09: "),
        (0.75, 0.25, False, "better by 0.25 only, and more than 0.25 was asked for: "),
        (0.875, 0.25, True, "better by 0.375: "),
        (float("nan"), 0.0, False, "cannot be compared: "),
    ],
)
def test_better_means_by_more_than_min_delta(sqlite_place, challenger, min_delta, is_better, reason):
    """A tie is not better."""
    first, second = recorded(sqlite_place, 0.5, challenger)
    sqlite_place.registry.alias(sqlite_place.name, first, "champion")
    verdict = sqlite_place.registry.promote(
        sqlite_place.name, second, "champion", if_better="f1", min_delta=min_delta
    )
    assert (is_better, min_delta) == (verdict.promoted, verdict.min_delta)
    assert verdict.reason.startswith(reason)
    assert (second if is_better else first) == sqlite_place.holder("champion")


def test_the_holder_stays_the_holder(sqlite_place):
    """Promoting it again changes nothing and is no failure: a job may run twice."""
    (version,) = recorded(sqlite_place, 0.5)
    for _ in range(2):
        verdict = sqlite_place.registry.promote(sqlite_place.name, version, "champion", if_better="f1")
        assert verdict.promoted
    assert "it is the champion already" == verdict.reason
    assert 1 == len(sqlite_place.registry.version(sqlite_place.name, version).audit)


def test_values_on_other_data_are_not_compared(sqlite_place):
    """Their digests differ, or only one has any."""
    (first,) = recorded(sqlite_place, 0.8, data="d1")
    (second,) = recorded(sqlite_place, 0.9, data="d2")
    (third,) = recorded(sqlite_place, 0.9)
    (fourth,) = recorded(sqlite_place, 0.9, data="d1")
    sqlite_place.registry.alias(sqlite_place.name, first, "champion")
    for version in (second, third):
        with pytest.raises(UsageError, match=r"not recorded on the same data .*; score both .* dataset="):
            sqlite_place.registry.promote(sqlite_place.name, version, "champion", if_better="f1")
    verdict = sqlite_place.registry.promote(sqlite_place.name, fourth, "champion", if_better="f1")
    assert (True, 0.9, 0.8) == (verdict.promoted, verdict.challenger, verdict.champion)
    assert "d1" == sqlite_place.registry.version(sqlite_place.name, fourth).audit[0].dataset


def test_values_of_the_model_itself_win_over_those_of_its_run(place):
    """As MLflow's evaluate links them: on a dataset each."""
    first, second = recorded(place, 0.8, 0.7)
    for version, value, other in ((first, 0.5, 0.9), (second, 0.6, 0.1)):
        found = place.registry.version(place.name, version)
        for digest, point, step in (("d1", value, 1), ("d1", other, 0), (f"d{version}0", other, 0)):
            about = {"model_id": found.model_id, "dataset_name": "test", "dataset_digest": digest}
            place.client.log_metric(found.run_id, "f1", point, step=step, **about)
    place.registry.alias(place.name, first, "champion")
    verdict = place.registry.promote(place.name, second, "champion", if_better="f1")
    assert (True, 0.6, 0.5) == (verdict.promoted, verdict.challenger, verdict.champion)
    assert "d1" == place.registry.version(place.name, second).audit[0].dataset


def test_a_value_that_is_not_recorded_is_named(sqlite_place):
    """With what to do instead; the first version needs none."""
    first, second = recorded(sqlite_place, 0.8, 0.9)
    name = sqlite_place.name
    assert sqlite_place.registry.promote(name, first, "champion", if_better="recall").promoted
    with pytest.raises(UsageError, match=f"no recall is recorded of version 2 of '{name}'; .*dataset="):
        sqlite_place.registry.promote(name, second, "champion", if_better="recall")
    with pytest.raises(UsageError, match="min_delta=-1: give 0 or more"):
        sqlite_place.registry.promote(name, second, "champion", if_better="f1", min_delta=-1)


# --- promotion with data -----------------------------------------------------------------------------


def test_both_are_scored_on_the_data_that_is_given(place, tmp_path):
    """Whatever was recorded of them."""
    bad, better = place.versions(poor(), good())
    place.registry.alias(place.name, bad, "champion")
    verdict = place.registry.promote(place.name, better, "champion", if_better="accuracy", dataset=(X, Y))
    assert (good().score(X, Y), poor().score(X, Y)) == (verdict.challenger, verdict.champion)
    assert verdict.promoted
    frame = pd.DataFrame(X, columns=["a", "b"]).assign(target=Y)
    frame.to_csv(tmp_path / "d.csv", index=False)
    frame.to_parquet(tmp_path / "d.parquet")
    for dataset in (frame, tmp_path / "d.csv", str(tmp_path / "d.parquet")):
        with pytest.warns(UserWarning, match="feature names"):
            again = place.registry.promote(
                place.name, bad, "champion", if_better="accuracy", dataset=dataset, target="target"
            )
        assert (False, verdict.champion) == (again.promoted, again.challenger)


def test_a_booster_is_scored_like_an_estimator(sqlite_place):
    """A bare network or booster predicts in ways of its own; MLflow's pyfunc speaks for it."""
    import xgboost

    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(X, Y), 5)
    worse, better = sqlite_place.versions(poor(), booster)
    sqlite_place.registry.alias(sqlite_place.name, worse, "champion")
    verdict = sqlite_place.registry.promote(
        sqlite_place.name, better, "champion", if_better="roc_auc", dataset=(X, Y)
    )
    assert verdict.promoted
    assert verdict.challenger > 0.9
    assert isinstance(sqlite_place.registry.load(sqlite_place.name, better), xgboost.Booster)


def test_a_dataset_that_cannot_be_used_says_what_can(sqlite_place, tmp_path):
    """Before a model is loaded."""
    (version,) = sqlite_place.versions(good())
    frame = pd.DataFrame({"a": [1], "b": [2]})
    (tmp_path / "x.txt").write_text("a")
    for dataset, target, said in (
        ((X, Y, Y), None, "has 3 parts"),
        (frame, None, "no target=; name one of its columns: a, b"),
        (frame, "c", "target='c'; name one of its columns: a, b"),
        (X, "c", "is of type ndarray; give"),
        (tmp_path / "x.txt", "c", "neither .csv nor .parquet"),
        (tmp_path / "none.csv", "c", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=said):
            sqlite_place.registry.promote(
                sqlite_place.name, version, "champion", if_better="f1", dataset=dataset, target=target
            )
    with pytest.raises(ConfigError, match="'val_f1' is unknown; near it are"):
        sqlite_place.registry.promote(
            sqlite_place.name, version, "champion", if_better="val_f1", dataset=(X, Y)
        )


# --- at the same moment ------------------------------------------------------------------------------

_moves, _predictions = [], []


class Slow(ClassifierMixin, BaseEstimator):
    """Something happens while it predicts."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        _predictions.append(1)
        while _moves:
            _moves.pop()()
        return Y


def test_a_champion_that_comes_while_models_are_scored_is_the_one_to_beat(sqlite_place):
    """The comparison is made again, with the new one."""
    name, registry = sqlite_place.name, sqlite_place.registry
    old, new, perfect = sqlite_place.versions(poor(), Slow().fit(X, Y), Slow().fit(X, Y))
    registry.alias(name, old, "champion")
    _predictions.clear()
    _moves.append(lambda: sqlite_place.client.set_registered_model_alias(name, "champion", str(perfect)))
    verdict = registry.promote(name, new, "champion", if_better="accuracy", dataset=(X, Y))
    assert (False, perfect, 0) == (verdict.promoted, verdict.champion_version, verdict.delta)
    assert 2 == len(_predictions), "the challenger's and the new champion's, once each"
    assert perfect == sqlite_place.holder("champion")


def test_an_alias_that_is_taken_right_after_is_told(sqlite_place):
    """MLflow cannot move an alias on a condition, so the end is looked at."""
    name, registry = sqlite_place.name, sqlite_place.registry
    first, second = recorded(sqlite_place, 0.8, 0.9)
    registry.alias(name, first, "champion")
    engine = sqlite_place.client._get_registry_client().store.engine

    def take(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO model_version_tags") and second == sqlite_place.holder(
            "champion"
        ):
            path = sqlite_place.uri.removeprefix("sqlite:///")
            with sqlite3.connect(path) as other:
                other.execute("UPDATE registered_model_aliases SET version = ? WHERE name = ?", (first, name))

    event.listen(engine, "before_cursor_execute", take)
    try:
        verdict = registry.promote(name, second, "champion", if_better="f1")
    finally:
        event.remove(engine, "before_cursor_execute", take)
    assert not verdict.promoted
    assert verdict.reason.startswith(
        "somebody moved the champion to version 1 at the same moment (better by 0.1"
    )


# --- audit, rollback, history ------------------------------------------------------------------------


def test_every_verdict_leaves_both_values_and_its_author(sqlite_place, monkeypatch):
    """In a tag of the version, readable for people too."""
    monkeypatch.setenv("LOGNAME", "carol")
    first, second = recorded(sqlite_place, 0.8, 0.7)
    sqlite_place.registry.promote(sqlite_place.name, first, "champion", if_better="f1")
    sqlite_place.registry.promote(sqlite_place.name, second, "champion", if_better="f1", min_delta=0.01)
    (entry,) = sqlite_place.registry.version(sqlite_place.name, second).audit
    assert (
        AuditEntry(
            action="promote",
            alias="champion",
            version=second,
            from_version=first,
            is_moved=False,
            metric="f1",
            challenger=0.7,
            champion=0.8,
            min_delta=0.01,
            at_ms=entry.at_ms,
            by="carol",
        )
        == entry
    )
    tags = sqlite_place.client.get_model_version(sqlite_place.name, str(second)).tags
    ((key, told),) = tags.items()
    assert key.startswith(f"{AUDIT_TAG}.{entry.at_ms}.")
    assert '"challenger": 0.7, "champion": 0.8' in told


def test_two_moves_in_one_millisecond_are_both_kept():
    """Neither takes the other's tag."""
    about = {"action": "alias", "version": 1, "from_version": None, "is_moved": True, "at_ms": 5}
    moves = [AuditEntry(alias=alias, **about) for alias in ("champion", "shadow")]
    assert {"champion", "shadow"} == {entry.alias for entry in audit_of(dict(move.tag() for move in moves))}


def test_the_audit_tells_data_apart_as_a_training_does(sqlite_place):
    """By rows and targets: relabelled rows are other data."""
    from mlpipeline.sklearn import MLflowEstimator

    estimator = MLflowEstimator(LogisticRegression(), sqlite_place.options).fit(X, Y)
    version = sqlite_place.registry.register(estimator.run_id_, sqlite_place.name).version
    run = sqlite_place.client.get_run(estimator.run_id_)
    for alias, targets in (("champion", Y), ("shadow", 1 - Y)):
        sqlite_place.registry.promote(
            sqlite_place.name, version, alias, if_better="accuracy", dataset=(X, targets)
        )
    relabelled, same = sqlite_place.registry.version(sqlite_place.name, version).audit
    assert same.dataset in {found.dataset.digest for found in run.inputs.dataset_inputs}
    assert same.dataset != relabelled.dataset


def test_rollback_goes_back_step_by_step(sqlite_place):
    """Over versions that were promoted, moved by hand, or got the alias from their training."""
    first, second, third, loser = recorded(sqlite_place, 0.5, 0.6, 0.7, 0.1)
    sqlite_place.client.set_registered_model_alias(
        sqlite_place.name, "champion", str(first)
    )  # as the courier does
    registry, name = sqlite_place.registry, sqlite_place.name
    assert registry.promote(name, second, "champion", if_better="f1").promoted
    registry.alias(name, third, "champion")
    registry.promote(name, loser, "champion", if_better="f1")
    back = registry.rollback(name, "champion")
    assert (second, third) == (back.version, back.champion_version)
    assert second == sqlite_place.holder("champion")
    assert first == registry.rollback(name, "champion").version
    with pytest.raises(UsageError, match=f"no earlier champion of '{name}' than version {first} is known"):
        registry.rollback(name, "champion")
    registry.alias(name, third, "champion")
    assert first == registry.rollback(name, "champion").version


def test_rollback_passes_over_what_was_deleted(sqlite_place):
    """It cannot hold the alias again."""
    first, second, third = recorded(sqlite_place, 0.1, 0.2, 0.3)
    registry, name = sqlite_place.registry, sqlite_place.name
    for version in (first, second, third):
        registry.promote(name, version, "champion", if_better="f1")
    sqlite_place.client.delete_model_version(name, str(second))
    assert first == registry.rollback(name, "champion").version


def moved(at_ms, version, from_version, action="promote", alias="a", is_moved=True):
    return AuditEntry(
        action=action, alias=alias, version=version, from_version=from_version, is_moved=is_moved, at_ms=at_ms
    )


@pytest.mark.parametrize(
    ("entries", "current", "expected"),
    [
        ([], 1, None),
        ([moved(1, 1, None)], 1, None),
        ([moved(1, 2, 1)], 2, 1),
        ([moved(1, 2, 1), moved(2, 1, 2, "rollback")], 1, None),
        ([moved(1, 2, 1), moved(2, 1, 2, "rollback"), moved(3, 3, 1)], 3, 1),
        ([moved(1, 2, 1), moved(2, 3, 2, is_moved=False)], 2, 1),
        ([moved(1, 2, 1), moved(2, 3, 2, alias="b")], 2, 1),
        ([moved(1, 2, 1)], 3, 2),  # came to 3 without a word
        ([moved(1, 2, 9)], 2, None),  # 9 is deleted
        ([moved(1, 1, None), moved(2, 2, 9)], 2, 1),
    ],
)
def test_who_held_an_alias_before(entries, current, expected):
    """Rollbacks are no way back, refusals no move, and what was deleted cannot return."""
    assert expected == previous_holder(entries, "a", current, {1, 2, 3})


def test_an_audit_that_somebody_spoilt_is_left_out(sqlite_place):
    """Tags are anybody's to write."""
    (version,) = sqlite_place.versions(good())
    for index, text in enumerate(("{", "[1]", '{"alias": "a"}', "null")):
        sqlite_place.client.set_model_version_tag(
            sqlite_place.name, str(version), f"{AUDIT_TAG}.{index}", text
        )
    assert () == sqlite_place.registry.version(sqlite_place.name, version).audit


def test_history_has_the_newest_first_with_their_metrics(place):
    """One request for the versions, and few for all their runs."""
    first, second, third = recorded(place, 0.1, 0.2, 0.3)
    place.registry.promote(place.name, second, "champion", if_better="f1")
    found = place.registry.history(place.name)
    assert [(third, {"f1": 0.3}), (second, {"f1": 0.2}), (first, {"f1": 0.1})] == [
        (info.version, info.metrics) for info in found
    ]
    assert [(), ("champion",), ()] == [info.aliases for info in found]
    assert ["promote"] == [entry.action for entry in found[1].audit]
    assert [third, second] == [info.version for info in place.registry.versions(place.name, max_results=2)]
    (found_model,) = [model for model in place.registry.models(1000) if model.name == place.name]
    assert {"champion": second} == found_model.aliases
    assert {"name": place.name, "description": ""}.items() <= found_model.to_dict().items()
    assert 1 == len(place.registry.models(1))
    assert {"version": 1, "stage": None}.items() <= found[-1].to_dict().items()


def test_history_outlives_the_runs(sqlite_place):
    """A run that somebody deleted for good leaves its version."""
    (version,) = recorded(sqlite_place, 0.5)
    (other,) = recorded(sqlite_place, 0.6)
    run_id = sqlite_place.registry.version(sqlite_place.name, version).run_id
    store = sqlite_place.client._tracking_client.store
    sqlite_place.client.delete_run(run_id)
    store._hard_delete_run(run_id)
    found = sqlite_place.registry.history(sqlite_place.name)
    assert [(other, {"f1": 0.6}), (version, {})] == [(info.version, info.metrics) for info in found]
    sqlite_place.registry.alias(sqlite_place.name, version, "champion")
    with pytest.raises(UsageError, match="no f1 is recorded of version 1"):
        sqlite_place.registry.promote(sqlite_place.name, other, "champion", if_better="f1")


def test_names_with_quotes_are_found(sqlite_place):
    """MLflow takes them, so somebody has them."""
    run_id = sqlite_place.train(good())
    for name in ("it's", 'say "so"'):
        assert [1] == [info.version for info in [sqlite_place.registry.register(run_id, name)]]
        assert [1] == [info.version for info in sqlite_place.registry.versions(name)]


def test_models_may_be_elsewhere_than_runs(store_uri, tmp_path, copy_store):
    """A registry of its own."""
    other = copy_store(tmp_path / "registry.db", str(tmp_path / "unused"))
    place = Place(store_uri)
    registry = ModelRegistry(tracking_uri=store_uri, registry_uri=other)
    registry.register(place.train(good(), {"f1": 0.5}), "churn", alias="champion")
    assert [{"f1": 0.5}] == [info.metrics for info in registry.history("churn")]
    assert (good().predict(X) == registry.load("churn@champion").predict(X)).all()
    assert [] == place.registry.models()
    assert 1 == MlflowClient(store_uri, other).get_model_version_by_alias("churn", "champion").version


def test_mlflows_global_state_is_left_alone(sqlite_place):
    """No command sets the user's tracking URI, nor starts a run."""
    import mlflow

    before = mlflow.get_tracking_uri()
    place = sqlite_place
    (version,) = place.versions(good())
    place.registry.promote(place.name, version, "champion", if_better="f1", dataset=(X, Y))
    place.registry.load(f"{place.name}@champion")
    assert (before, None) == (mlflow.get_tracking_uri(), mlflow.active_run())
    assert place.uri != before
