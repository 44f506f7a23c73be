"""An Optuna study through our callback, read back from MLflow: a run, its trials, what they say."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import optuna
import optuna_integration.mlflow
import pytest
import xgboost
from lightning.pytorch.demos.boring_classes import BoringModel
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from sklearn.linear_model import LinearRegression

import mlpipeline
from mlpipeline import MLflowTracker
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.lightning import MLflowCallback as LightningCallback
from mlpipeline.optuna import RUN_ID_ATTRIBUTE_KEY, MLflowCallback
from mlpipeline.testing import record
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.recorded import Recorded
from mlpipeline.xgboost import MLflowCallback as XGBoostCallback

optuna.logging.set_verbosity(optuna.logging.ERROR)

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])}
OFFLINE = {"delivery": "offline"}


def parabola(trial):
    return trial.suggest_float("x", -1, 1) ** 2


def study_of(name="study", **options):
    return optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=7), **options)


@pytest.fixture
def callback(store_uri):
    """A callback whose runs wait for the `deliver` fixture."""
    return MLflowCallback(tracking_uri=store_uri, delivery="offline")


@pytest.fixture
def found(store_uri, deliver, mlflow_client):
    """Deliver, and return the study's run and, by number, those of its trials."""

    def found(callback, name="study"):
        assert callback.run is None or callback.run.is_ended
        deliver()
        client = mlflow_client(store_uri)
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = {int(run.data.tags["number"]): run for run in runs if "number" in run.data.tags}
        assert len(runs) == 1 + len(children)
        assert {parent.info.run_id} == {run.data.tags["mlflow.parentRunId"] for run in children.values()}
        return parent, children

    return found


@pytest.fixture
def history(store_uri, mlflow_client):
    """Points of a metric as (step, value), by step."""

    def history(run, key):
        points = mlflow_client(store_uri).get_metric_history(run.info.run_id, key)
        return sorted((point.step, point.value) for point in points)

    return history


# --- what is recorded -----------------------------------------------------------------------------


def test_the_callback_alone_records_every_trial_as_it_was(callback, found, history, store_uri, mlflow_client):
    """States, times, params, distributions, values, intermediate values; and the study's best."""

    def objective(trial):
        if trial.number == 2:
            raise LookupError
        for step in range(3):
            trial.report(trial.number + step, step)
        if trial.number == 1:
            raise optuna.TrialPruned
        trial.set_user_attr("seen", "yes")
        kind = trial.suggest_categorical("kind", ["a", None])
        x = trial.suggest_float("x", 1e-3, 1, log=True)
        return float("nan") if trial.number == 3 else x + (kind is None)

    study = study_of(pruner=optuna.pruners.NopPruner())
    study.set_user_attr("team", "a")
    callbacks = [callback]
    study.optimize(objective, n_trials=6, catch=(LookupError,), callbacks=callbacks)
    assert [callback] == callbacks
    parent, trials = found(callback)
    states = ["FINISHED", "KILLED", "FAILED", "FAILED", "FINISHED", "FINISHED"]
    assert states == [trials[number].info.status for number in range(6)]
    for number, run in trials.items():
        trial = study.trials[number]
        times = [int(at.timestamp() * 1000) for at in (trial.datetime_start, trial.datetime_complete)]
        assert times == [run.info.start_time, run.info.end_time]
        assert {name: str(value) for name, value in trial.params.items()} == run.data.params
        tags = {
            "number": str(number),
            "datetime_start": str(trial.datetime_start),
            "datetime_complete": str(trial.datetime_complete),
            "state": trial.state.name,
            "direction": "MINIMIZE",
            **{f"{name}_distribution": str(kind) for name, kind in trial.distributions.items()},
            **trial.user_attrs,
        }
        assert tags.items() <= run.data.tags.items()
        assert "team" not in run.data.tags
        assert str(number) == run.info.run_name
        assert (trial.value,) == (run.data.metrics.get("value"),)
        reported = sorted(trial.intermediate_values.items())
        assert reported == history(run, "intermediate_value")
        points = mlflow_client(store_uri).get_metric_history(run.info.run_id, "intermediate_value")
        assert all(times[0] <= point.timestamp <= times[1] for point in points)
    best = study.best_trial
    assert ("FINISHED", "study") == (parent.info.status, parent.info.run_name)
    assert {"study_name": "study", "directions": "MINIMIZE", "sampler": "RandomSampler"}.items() <= (
        parent.data.params.items()
    )
    tags = {"best_trial": str(best.number), "best_params.x": str(best.params["x"])}
    assert tags.items() <= parent.data.tags.items()
    assert best.value == parent.data.metrics["best_value"]
    complete = {trial.number: trial.value for trial in study.trials if trial.state is TrialState.COMPLETE}
    so_far = np.minimum.accumulate(list(complete.values()))
    assert list(zip(complete, so_far, strict=True)) == history(parent, "best_value")
    counts = {"trials_complete": 3, "trials_pruned": 1, "trials_fail": 2}
    assert counts.items() <= parent.data.metrics.items()
    client = mlflow_client(store_uri)
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"best_trial.json", "param_importances.json", "plots"} == names
    plots = {Path(item.path).stem for item in client.list_artifacts(parent.info.run_id, "plots")}
    drawn = {
        "optimization_history",
        "slice",
        "parallel_coordinate",
        "param_importances",
        "intermediate_values",
    }
    assert drawn == plots
    text = Path(client.download_artifacts(parent.info.run_id, "best_trial.json")).read_text()
    assert best.params == json.loads(text)["params"]


def test_several_objectives_have_a_front_and_no_best(callback, found):
    """Numbered names, as in the class this one replaces."""
    study = study_of(directions=["minimize", "maximize"])
    study.optimize(lambda trial: (parabola(trial), trial.number), n_trials=3, callbacks=[callback])
    parent, trials = found(callback)
    for number, run in trials.items():
        assert dict(zip(("value_0", "value_1"), study.trials[number].values, strict=True)) == run.data.metrics
        assert "['MINIMIZE', 'MAXIMIZE']" == run.data.tags["direction"]
    assert len(study.best_trials) == parent.data.metrics["pareto_trials"]
    assert "best_value" not in parent.data.metrics


def test_the_names_of_the_class_it_replaces_still_do(store_uri, found):
    """Its arguments in their order and with their defaults, and what it read of them."""
    old = inspect.signature(optuna_integration.mlflow.MLflowCallback.__init__).parameters
    new = inspect.signature(MLflowCallback.__init__).parameters
    renamed = {"tracking_uri": "config"}  # which may be a URI, and as a keyword it is one of ours
    assert [(renamed.get(name, name), one.default) for name, one in old.items()] == [
        (name, one.default) for name, one in list(new.items())[: len(old)]
    ]
    assert optuna_integration.mlflow.mlflow.RUN_ID_ATTRIBUTE_KEY == RUN_ID_ATTRIBUTE_KEY
    kwargs = {"run_name": "mine", "nested": True, "tags": {"kind": "search"}}
    callback = MLflowCallback(store_uri, "accuracy", True, kwargs, True, False, **OFFLINE)
    study = study_of()
    study.set_user_attr("team", "a")
    study.optimize(
        lambda trial: (trial.set_user_attr("seen", "yes"), parabola(trial))[1],
        n_trials=2,
        callbacks=[callback],
    )
    _, trials = found(callback)
    for number, run in trials.items():
        assert {"accuracy": study.trials[number].value} == run.data.metrics
        assert "mine" == run.info.run_name
        assert {"kind": "search", "team": "a"}.items() <= run.data.tags.items()
        assert "seen" not in run.data.tags


def test_the_tags_and_metrics_are_those_of_the_class_it_replaces(callback, found, store_uri, mlflow_client):
    """Both on one study, each in its own experiment."""
    import mlflow

    study = study_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = optuna_integration.mlflow.MLflowCallback(store_uri, create_experiment=False)
        mlflow.set_tracking_uri(store_uri)
        mlflow.set_experiment("theirs")
        study.optimize(parabola, n_trials=2, callbacks=[old, callback])
    _, ours = found(callback)
    client = mlflow_client(store_uri)
    theirs = client.search_runs([client.get_experiment_by_name("theirs").experiment_id])
    assert 2 == len(theirs)
    for run in theirs:
        mine = ours[int(run.data.tags["number"])]
        assert (run.info.run_name, run.data.metrics, run.data.params) == (
            mine.info.run_name,
            mine.data.metrics,
            mine.data.params,
        )
        tags = {name: text for name, text in run.data.tags.items() if not name.startswith("mlflow.")}
        assert tags.items() <= mine.data.tags.items()


def test_where_it_goes(store_uri, deliver, mlflow_client):
    """An experiment named after the study, unless one is named; below a run, where that one is."""
    outer = open_run(MLflowCallback(tracking_uri=store_uri, experiment_name="outer", **OFFLINE).config)
    for name, options in {
        "its own": {},
        "named": {"experiment_name": "named"},
        "by id": {"mlflow_kwargs": {"experiment_id": "0"}},
        "default": {"create_experiment": False},
        "below": {"parent": outer},
    }.items():
        where = {} if "parent" in options else {"tracking_uri": store_uri}
        callback = MLflowCallback(**where, **OFFLINE, **options)
        study_of(name).optimize(parabola, n_trials=1, callbacks=[callback])
        assert callback.run.is_ended
    outer.end()
    deliver()
    client = mlflow_client(store_uri)
    names = {one.experiment_id: one.name for one in client.search_experiments()}
    runs = client.search_runs(list(names), "tags.state = 'COMPLETE'")
    places = sorted(names[run.info.experiment_id] for run in runs)
    assert sorted(["its own", "named", "Default", "ml-pipeline-experiment", "outer"]) == places


def test_nested_in_a_users_own_run(store_uri, deliver, mlflow_client):
    """``mlflow_kwargs={"nested": True}`` inside ``mlflow.start_run()``, as with the old class."""
    import mlflow

    mlflow.set_tracking_uri(store_uri)
    mlflow.set_experiment("theirs")
    with mlflow.start_run() as theirs:
        callback = MLflowCallback(mlflow_kwargs={"nested": True}, **OFFLINE)
        study_of().optimize(parabola, n_trials=2, callbacks=[callback])
        assert theirs.info.run_id == callback.run_id
    deliver()
    runs = mlflow_client(store_uri).search_runs([theirs.info.experiment_id])
    assert [theirs.info.run_id] * 2 == [
        run.data.tags["mlflow.parentRunId"] for run in runs if run.info.run_id != theirs.info.run_id
    ]


# --- the decorator --------------------------------------------------------------------------------


class Fit(Recorded):
    """Another framework's callback, reduced to its face."""

    def fit(self, value):
        run = self._open()
        run.log_metrics({"seen": value}, step=0)
        self._close()
        return run._header["parent"]["uid"]


def test_what_the_objective_trains_is_nested_trial_by_trial(callback, deliver, store_uri, mlflow_client):
    """Study, trial, fit: with ``n_jobs=2``, Lightning and XGBoost, nothing gets mixed up."""
    meet = threading.Barrier(2)
    rows = xgboost.DMatrix(np.eye(3), label=[0, 1, 0])

    @callback.track_in_mlflow()
    def objective(trial):
        x = trial.suggest_float("x", -1, 1)
        meet.wait(30)  # both are running now
        boost = XGBoostCallback(run_name="xgboost", params={"x": x}, log_model=False)
        xgboost.train({}, rows, 2, [(rows, "train")], callbacks=[boost], verbose_eval=False)
        fit = LightningCallback(run_name="lightning", params={"x": x}, log_model=False)
        pl.Trainer(
            max_epochs=1,
            limit_train_batches=2,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[fit],
        ).fit(BoringModel())
        return x

    study = study_of()
    study.optimize(objective, n_trials=4, n_jobs=2, callbacks=[callback])
    callback.run_id  # noqa: B018 - ends it
    deliver()
    client = mlflow_client(store_uri)
    runs = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert {"FINISHED"} == {run.info.status for run in runs}
    below = {}
    for run in runs:
        below.setdefault(run.data.tags.get("mlflow.parentRunId"), []).append(run)
    (top,) = below.pop(None)
    trials = below.pop(top.info.run_id)
    assert [0, 1, 2, 3] == sorted(int(run.data.tags["number"]) for run in trials)
    assert below.keys() == {run.info.run_id for run in trials}
    for run in trials:
        fits = sorted(below[run.info.run_id], key=lambda fit: fit.info.run_name)
        assert ["lightning", "xgboost"] == [fit.info.run_name for fit in fits]
        assert [run.data.metrics["value"]] * 2 == [float(fit.data.params["x"]) for fit in fits]
        uid = study.trials[int(run.data.tags["number"])].system_attrs[RUN_ID_ATTRIBUTE_KEY]
        assert f"local-{run.data.tags['mlpipeline.uid']}" == uid


def test_an_exception_that_ends_the_study(callback):
    """It is the user's, untouched; and what the trial left open has failed with it."""
    fit = Fit()

    @callback.track_in_mlflow()
    def objective(trial):
        if trial.number == 1:
            fit._open()
            raise LookupError
        return parabola(trial)

    with pytest.raises(LookupError) as caught:
        study_of().optimize(objective, n_trials=3, callbacks=[callback])
    assert caught.value.__context__ is None
    assert "FAILED" in repr(fit.run)
    assert "FAILED" in repr(callback.run)


def test_statuses_where_nobody_is_told(store_uri, deliver, mlflow_client):
    """Caught by Optuna, caught by the user, Ctrl-C, sys.exit, pruned; with the decorator and without a callback."""
    for name, (error, catch) in {
        "caught": (LookupError, (LookupError,)),
        "raised": (LookupError, ()),
        "interrupted": (KeyboardInterrupt, ()),
        "left": (SystemExit, ()),
        "pruned": (optuna.TrialPruned, ()),
    }.items():
        callback = MLflowCallback(tracking_uri=store_uri, experiment_name="all", **OFFLINE)

        @callback.track_in_mlflow()
        def objective(trial, error=error):
            if trial.number == 1:
                raise error
            return parabola(trial)

        with contextlib.suppress(LookupError, KeyboardInterrupt, SystemExit):
            study_of(name).optimize(objective, n_trials=2, catch=catch)
        assert callback.run.is_ended
    deliver()
    client = mlflow_client(store_uri)
    runs = client.search_runs([client.get_experiment_by_name("all").experiment_id])
    status = {run.info.run_id: run.info.status for run in runs}
    parents = {run.info.run_id: run for run in runs if "number" not in run.data.tags}
    got = {
        parents[run.data.tags["mlflow.parentRunId"]].info.run_name: (
            status[run.data.tags["mlflow.parentRunId"]],
            run.info.status,
        )
        for run in runs
        if run.data.tags.get("number") == "1"
    }
    assert {
        "caught": ("FINISHED", "FAILED"),
        "raised": ("FAILED", "FAILED"),
        "interrupted": ("KILLED", "KILLED"),
        "left": ("FAILED", "FAILED"),
        "pruned": ("FINISHED", "KILLED"),
    } == got


def test_four_jobs_run_at_once(callback, found):
    """No lock around the objective: with one, the barrier would break. And every value is its trial's."""
    meet = threading.Barrier(4)

    class Search:
        @callback.track_in_mlflow
        def objective(self, scale, *, trial):
            meet.wait(30)
            x = trial.suggest_float("x", -1, 1)
            callback.run_for(trial).log_metrics({"x": x}, step=0)
            return x * scale

    study = study_of()
    study.optimize(
        lambda trial: Search().objective(2, trial=trial), n_trials=12, n_jobs=4, callbacks=[callback]
    )
    parent, trials = found(callback)
    for number, run in trials.items():
        trial = study.trials[number]
        assert {"x": trial.params["x"], "value": trial.value} == run.data.metrics
        assert str(trial.params["x"]) == run.data.params["x"]
    assert 12 == len(trials)
    assert study.best_value == parent.data.metrics["best_value"]


def test_without_the_decorator_a_trials_run_is_given_as_parent(callback, found):
    """Also to log into, and after the study to add to."""

    def objective(trial):
        assert callback.run_for(trial).uid == Fit(parent=callback.run_for(trial), experiment_name="fits").fit(
            1
        )
        callback.run_for(trial).log_metrics({"mine": trial.number}, step=0)
        return parabola(trial)

    study = study_of()
    study.optimize(objective, n_trials=1, callbacks=[callback])
    assert callback.run.is_ended
    callback.run_for(study.best_trial).log_metrics({"later": 2}, step=0)
    stranger = create_trial(value=1.0)
    stranger.number = 9
    with pytest.raises(UsageError, match="trial 9"):
        callback.run_for(stranger)
    trials = found(callback)[1]
    assert {"mine": 0, "later": 2, "value": study.best_value} == trials[0].data.metrics
    assert "FINISHED" == trials[0].info.status
    assert trials[0].info.run_id == callback.run_for(study.best_trial).run_id


def test_outside_of_a_study_the_objective_is_itself(callback):
    """A FixedTrial, as in a user's unit test; and what the decorator must leave."""

    @callback.track_in_mlflow()
    def objective(trial):
        """Mine."""
        return trial.suggest_float("x", -1, 1)

    assert 0.5 == objective(optuna.trial.FixedTrial({"x": 0.5}))
    assert callback.run is None
    assert ("objective", "Mine.") == (objective.__name__, objective.__doc__)


def test_ask_and_tell(callback, found):
    """No optimize: the callback is called by hand."""
    study = study_of()
    for value in (0.3, 0.1):
        trial = study.ask({"x": FloatDistribution(-1, 1)})
        callback.run_for(trial).log_metrics({"mine": value}, step=0)
        assert not callback.run.is_ended
        with pytest.raises(UsageError, match=r"study\.tell"):
            callback(study, study.trials[-1])
        callback(study, study.tell(trial, value))
    parent, trials = found(callback)
    assert [0.3, 0.1] == [trials[number].data.metrics["value"] for number in range(2)]
    assert ("1", 0.1) == (parent.data.tags["best_trial"], parent.data.metrics["best_value"])


def test_a_trial_that_is_only_asked_for_has_its_step_still_to_come(callback, found, history):
    """Whoever reads the run meanwhile has the study summed up without it."""
    study = study_of()
    for value in (0.3, 0.1):
        trial = study.ask({"x": FloatDistribution(-1, 1)})
        assert callback.run is None or callback.run.is_ended
        callback(study, study.tell(trial, value))
    parent, _ = found(callback)
    assert [(0, 0.3), (1, 0.1)] == history(parent, "best_value")


# --- a trial that is over -------------------------------------------------------------------------


def test_four_jobs_tell_of_their_trials_at_once(callback, found, history):
    """One journal for all of them: every value is its trial's, and none is lost."""
    meet = threading.Barrier(4)

    def objective(trial):
        meet.wait(30)
        trial.report(trial.number, 3)
        return parabola(trial)

    study = study_of()
    study.optimize(objective, n_trials=40, n_jobs=4, callbacks=[callback])
    parent, trials = found(callback)
    for number, run in trials.items():
        trial = study.trials[number]
        assert {"value": trial.value, "intermediate_value": float(number)} == run.data.metrics
        assert {"x": str(trial.params["x"])} == run.data.params
        assert [(3, float(number))] == history(run, "intermediate_value")
    assert list(range(40)) == sorted(trials)
    assert study.best_value == parent.data.metrics["best_value"]


def test_a_trial_that_is_over_is_added_to_before_it_is_delivered(callback, found):
    """It is a record in the study's journal then; and the tag of the study that names it leads to it."""
    study = study_of()
    study.optimize(parabola, n_trials=3, callbacks=[callback])
    assert callback.run.is_ended
    trial = study.best_trial
    handle = callback.run_for(trial)
    handle.log_metrics({"later": 2}, step=0)
    parent, trials = found(callback)
    run = trials[trial.number]
    assert {"later": 2, "value": trial.value} == run.data.metrics
    assert {"x": str(trial.params["x"])} == run.data.params
    assert "FINISHED" == run.info.status
    tracker = MLflowTracker(callback.config)
    assert run.info.run_id == handle.run_id == tracker.get_run_info(parent.data.tags["best_run"]).run_id


COUNTING = """
import os, signal, sys
import optuna
from mlpipeline.optuna import MLflowCallback

optuna.logging.set_verbosity(optuna.logging.ERROR)
home, told = os.environ["MLPIPELINE_HOME"], []

def hook(event, arguments):
    made = event in ("os.mkdir", "os.rename", "os.remove") or (event == "open" and arguments[2] & os.O_CREAT)
    if made and str(arguments[0]).startswith(home):
        told.append((event, str(arguments[0])))

def look(study, trial):
    if trial.number == 0:  # which opened the study's run
        sys.addaudithook(hook)
    if trial.number == 50:
        print(told, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline")
study = optuna.create_study(study_name="study", sampler=optuna.samplers.RandomSampler(seed=7))
study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, callbacks=[callback, look])
"""


@pytest.mark.process
def test_a_trial_makes_no_file_and_is_safe_when_its_callback_returns(callback, found, store_uri):
    """``kill -9`` in the next callback: all trials up to this one are there, whole."""
    environ = {**os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"]}
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, store_uri], env=environ, check=False, capture_output=True, text=True
    )
    assert (-9, "[]\n") == (done.returncode, done.stdout), done.stderr
    parent, trials = found(callback)
    assert ("KILLED", list(range(51))) == (parent.info.status, sorted(trials))
    for run in trials.values():
        assert "FINISHED" == run.info.status
        assert {"value": float(run.data.params["x"]) ** 2} == run.data.metrics


# --- again, and from several sides ----------------------------------------------------------------


def test_the_end_comes_by_itself_and_the_study_goes_on(callback, found, deliver):
    """Nobody reads the run: a moment after optimize it has ended; the next optimize takes it up."""
    study = study_of()
    study.optimize(parabola, n_trials=2, callbacks=[callback])
    run = callback._run
    wait_until(lambda: run.is_ended)
    deliver()
    study.optimize(parabola, n_trials=2, callbacks=[callback])
    assert not run.is_ended
    parent, trials = found(callback)
    assert 4 == len(trials)
    assert "FINISHED" == parent.info.status


def test_a_look_that_comes_late_ends_nothing(callback):
    """It found the study to be over, waited for another one to record that, and meanwhile the study went on."""
    study, ended = study_of(), []

    @callback.track_in_mlflow()
    def objective(trial):
        if trial.number == 1:
            callback._last.close()
            ended.append(callback._run.is_ended)
        return parabola(trial)

    study.optimize(objective, n_trials=1, callbacks=[callback])
    assert callback.run.is_ended
    study.optimize(objective, n_trials=1, callbacks=[callback])
    assert [False] == ended


class Slow(optuna.storages.InMemoryStorage):
    """While this one looks for the best trial, something happens, once."""

    meanwhile = staticmethod(lambda: None)

    def get_best_trial(self, study_id):
        best, happens = super().get_best_trial(study_id), self.meanwhile
        self.meanwhile = lambda: None
        happens()
        return best


def test_a_trial_that_ends_while_the_study_is_summed_up_is_its_best(callback, found, history):
    study = study_of(storage=Slow())

    def tell(value):
        callback(study, study.tell(study.ask({"x": FloatDistribution(-1, 1)}), value))

    tell(0.3)
    tell(0.1)
    study._storage.meanwhile = lambda: tell(0.01)
    assert not callback.run.is_ended
    parent, _ = found(callback)
    assert [(0, 0.3), (1, 0.1), (2, 0.01)] == history(parent, "best_value")


PROCESS = """
import os, signal, sys, threading
import optuna
from mlpipeline.optuna import MLflowCallback
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.load_study(study_name="study", storage=sys.argv[2])
# Plots take longer than all the rest.
callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline", log_artifacts=False)

@callback.track_in_mlflow()
def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    callback.run_for(trial).log_metrics({"x": x}, step=0)
    if sys.argv[3] == "kill" and trial.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x**2

print("ready", flush=True)
sys.stdin.readline()
study.optimize(objective, n_trials=3, callbacks=[callback])
if sys.argv[3] == "raise":
    raise KeyError("after the study")
"""


def start(store_uri, storage, how, **environ):
    command = [sys.executable, "-c", PROCESS, store_uri, storage, how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        command, env={**ENVIRON, **os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"], **environ}, **pipes
    )
    assert "ready" == process.stdout.readline().strip()
    return process


@pytest.mark.process
def test_two_processes_and_a_later_one_share_a_stored_study(callback, found, store_uri, tmp_path):
    """One run for the study, one per trial, whoever ran it and however often it is told."""
    storage = f"sqlite:///{tmp_path}/optuna.db"
    study = study_of(storage=storage)
    processes = [start(store_uri, storage, how) for how in ("end", "raise")]
    outputs = [process.communicate("\n", timeout=90) for process in processes]
    assert "KeyError" in outputs[1][1]
    parent, trials = found(callback)
    assert 6 == len(trials)
    assert "FINISHED" == parent.info.status, "what is raised after the study is not the study's"
    study.optimize(parabola, n_trials=1, callbacks=[callback])
    for trial in study.trials:
        callback(study, trial)
    again, trials = found(callback)
    assert parent.info.run_id == again.info.run_id
    assert list(range(7)) == sorted(trials)
    assert study.best_value == again.data.metrics["best_value"]
    for number, run in trials.items():
        assert study.trials[number].value == run.data.metrics["value"]
        assert "FINISHED" == run.info.status


@pytest.mark.process
def test_two_hosts_train_and_deliver_one_study_at_once(callback, found, store_uri, tmp_path):
    """Each has a journal home and a courier of its own, and neither knows of the other's: still one run for the study."""
    storage = f"sqlite:///{tmp_path}/optuna.db"
    study_of(storage=storage)
    homes = [str(tmp_path / name) for name in ("one", "other")]
    processes = [start(store_uri, storage, "end", MLPIPELINE_HOME=home) for home in homes]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [0, 0] == [process.wait(timeout=90) for process in processes]
    syncs = [
        subprocess.Popen(
            [sys.executable, "-m", "mlpipeline", "sync"],
            env={**ENVIRON, **os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"], "MLPIPELINE_HOME": home},
            stdout=subprocess.PIPE,
        )
        for home in homes
    ]
    assert [0, 0] == [sync.wait(timeout=90) for sync in syncs]
    parent, trials = found(callback)
    assert "FINISHED" == parent.info.status
    assert list(range(6)) == sorted(trials)
    for run in trials.values():
        assert ("FINISHED", float(run.data.params["x"]) ** 2) == (run.info.status, run.data.metrics["value"])
    assert min(run.data.metrics["value"] for run in trials.values()) == parent.data.metrics["best_value"]


LATE = """
import sys, time
import optuna
from mlpipeline.optuna import MLflowCallback
study = optuna.load_study(study_name="study", storage=sys.argv[2])
callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline", log_artifacts=False)

def objective(trial):
    print("ready", flush=True)
    sys.stdin.readline()
    return 0.25

study.optimize(objective, n_trials=1, callbacks=[callback])
"""


@pytest.mark.process
def test_the_best_value_is_that_of_the_trial_that_ended_last(callback, found, store_uri, tmp_path):
    """Another process began a trial before the last one here, and ended it after: MLflow shows the highest step's."""
    storage = f"sqlite:///{tmp_path}/optuna.db"
    study = study_of(storage=storage)
    late = subprocess.Popen(
        [sys.executable, "-c", LATE, store_uri, storage],
        env={**ENVIRON, **os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "ready" == late.stdout.readline().strip()
    study.optimize(lambda _: 0.5, n_trials=1, callbacks=[callback])
    assert callback.run.is_ended
    late.communicate("\n", timeout=90)
    parent, trials = found(callback)
    assert {0: 0.25, 1: 0.5} == {number: run.data.metrics["value"] for number, run in trials.items()}
    assert 0.25 == parent.data.metrics["best_value"]


@pytest.mark.process
def test_a_process_killed_in_a_trial_leaves_all_it_had(callback, found, store_uri, tmp_path):
    """``kill -9``: the trial before is whole, the one in the middle KILLED, and so is the study until it goes on."""
    storage = f"sqlite:///{tmp_path}/optuna.db"
    study = study_of(storage=storage)
    start(store_uri, storage, "kill").communicate("\n", timeout=90)
    parent, trials = found(callback)
    assert ["FINISHED", "KILLED", "KILLED"] == [
        trials[0].info.status,
        trials[1].info.status,
        parent.info.status,
    ]
    assert study.trials[0].value == trials[0].data.metrics["value"] == parent.data.metrics["best_value"]
    assert study.trials[1].params["x"] == trials[1].data.metrics["x"]
    study.optimize(parabola, n_trials=1, callbacks=[callback])
    again, trials = found(callback)
    assert (parent.info.run_id, "FINISHED", 3) == (again.info.run_id, again.info.status, len(trials))


RAISING = """
import sys
import optuna
from mlpipeline.optuna import MLflowCallback
def objective(trial):
    if trial.number == 1:
        raise {error}
    return trial.suggest_float("x", -1, 1)
study = optuna.create_study(study_name="study")
callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline", log_artifacts=False)
study.optimize(objective, callbacks=[callback], n_jobs={jobs})
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("error", "jobs", "status"), [("LookupError", 2, "FAILED"), ("KeyboardInterrupt", 1, "KILLED")]
)
def test_without_the_decorator_an_exception_that_ends_the_script_is_seen(
    callback, found, store_uri, error, jobs, status
):
    """At the exit, with the trial of which no callback heard."""
    code = RAISING.format(error=error, jobs=jobs)
    environ = {**os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code, store_uri], env=environ, check=False, capture_output=True, text=True
    )
    assert error in done.stderr
    parent, trials = found(callback)
    assert (status, "FAILED", "FAIL") == (
        parent.info.status,
        trials[1].info.status,
        trials[1].data.tags["state"],
    )


LEFT = """
import os, signal, sys, torch, lightning, optuna
from mlpipeline.optuna import MLflowCallback
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, index):
        os.kill(os.getpid(), signal.SIGINT)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
callback = MLflowCallback(tracking_uri=sys.argv[1], delivery="offline", log_artifacts=False)
@callback.track_in_mlflow()
def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    if trial.number == 1:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
        trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(8, 1)))
    return x
study = optuna.create_study(study_name="study")
study.optimize(objective, n_trials=3, callbacks=[callback])
"""


@pytest.mark.process
def test_ctrl_c_in_an_objective_that_trains_by_lightning(callback, found, store_uri):
    """Lightning makes a SystemExit of it, which is no failure: trial and study are KILLED."""
    environ = {**os.environ, "PYTHONPATH": ENVIRON["PYTHONPATH"]}
    done = subprocess.run(
        [sys.executable, "-c", LEFT, store_uri], env=environ, check=False, capture_output=True, text=True
    )
    assert 1 == done.returncode, done.stderr
    parent, trials = found(callback)
    assert ("KILLED", "FINISHED", "KILLED") == (
        parent.info.status,
        trials[0].info.status,
        trials[1].info.status,
    ), done.stderr


# --- models ---------------------------------------------------------------------------------------


def test_only_the_best_trial_keeps_its_model(store_uri, deliver, mlflow_client):
    """Of the trial's own and of a fit's in it; registered once, from the study's run."""
    callback = MLflowCallback(
        tracking_uri=store_uri, register_model=True, model_name="wine", model_alias="champion", **OFFLINE
    )
    values = [0.5, 0.7, 0.2, 0.3]

    @callback.track_in_mlflow()
    def objective(trial):
        fit = Fit(run_name=f"fit {trial.number}")
        fit._open().log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, float(trial.number)]))
        fit._close()
        return values[trial.number]

    study = study_of()
    study.optimize(objective, n_trials=4, callbacks=[callback, lambda *_: deliver()])
    client = mlflow_client(store_uri)
    place = client.get_experiment_by_name("study")
    experiment = place.experiment_id
    files = Path(place.artifact_location.removeprefix("file://")) / "models"
    assert 2 == len(list(files.iterdir())), "trial 0, which was the best, and trial 2"
    assert callback.run.is_ended
    deliver()
    (model,) = client.search_logged_models([experiment])
    assert "fit 2" == client.get_run(model.source_run_id).info.run_name
    assert f"models:/{model.model_id}" == callback.model_uri
    assert 1 == callback.model_version
    assert "1" == str(client.get_model_version_by_alias("wine", "champion").version)
    assert [2.0] == callback.load_model().predict([[1.0]]).round(6).tolist()
    outputs = client.get_run(callback.run_id).outputs.model_outputs
    assert [model.model_id] == [output.model_id for output in outputs]
    later = MLflowCallback(tracking_uri=store_uri, **OFFLINE)
    study.optimize(lambda trial: 0.9, n_trials=1, callbacks=[later])
    assert later.run.is_ended
    deliver()
    assert (callback.model_uri, 1) == (later.model_uri, later.model_version), "as it is"


# --- nothing of the user's is touched -------------------------------------------------------------


def test_the_study_is_what_it_is_without_us(callback):
    """The same suggestions, no attribute that the user sees, no thread and no style left behind."""
    import matplotlib as mpl

    def touched():
        return dict(mpl.rcParams), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = touched()
    plain, tracked = study_of(), study_of()
    plain.optimize(parabola, n_trials=5)
    tracked.optimize(callback.track_in_mlflow()(parabola), n_trials=5, callbacks=[callback])
    assert callback.run.is_ended
    assert [trial.params for trial in plain.trials] == [trial.params for trial in tracked.trials]
    assert {} == tracked.user_attrs == tracked.trials[0].user_attrs
    assert {RUN_ID_ATTRIBUTE_KEY} == set(tracked.trials[0].system_attrs)
    assert before == touched()
    wait_until(lambda: all("mlpipeline-watch" != thread.name for thread in threading.enumerate()))


def test_a_copy_records_the_same_study(callback, found):
    """Pickled to another process, or copied: a study has one run."""
    study = study_of()
    for other in (callback, copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        study.optimize(parabola, n_trials=1, callbacks=[other])
        assert other.run.is_ended
    _, trials = found(callback)
    assert [0, 1, 2] == sorted(trials)


def test_studies_of_one_name_stay_apart(callback, deliver, store_uri, mlflow_client):
    """In memory, as in a loop over data sets."""
    for _ in range(2):
        study_of().optimize(parabola, n_trials=1, callbacks=[callback])
        assert callback.run.is_ended
    deliver()
    client = mlflow_client(store_uri)
    assert 4 == len(client.search_runs([client.get_experiment_by_name("study").experiment_id]))


def test_in_a_unit_test_it_records_into_memory():
    """``mlpipeline.testing.record``, with the block that ends the study."""
    with record() as recorded, MLflowCallback(metric_name="accuracy") as callback:
        study_of().optimize(parabola, n_trials=2, callbacks=[callback])
    assert 2 == len(recorded.metrics["accuracy"])
    assert ["FINISHED"] * 3 == recorded.statuses


def test_switched_off_it_does_nothing(store_uri, home):
    """``enabled=False``, also with the decorator."""
    callback = MLflowCallback(tracking_uri=store_uri, enabled=False)
    study = study_of()
    study.optimize(callback.track_in_mlflow()(parabola), n_trials=2, callbacks=[callback])
    assert not home.exists()
    assert {} == study.trials[0].system_attrs
    assert callback.run_id is None


# --- misuse ---------------------------------------------------------------------------------------


def test_names_that_do_not_match_the_objectives(callback):
    """Said at the first trial, with the decorator before it has run."""
    named = MLflowCallback(metric_name=["a", "b"])
    with pytest.raises(ConfigError, match=r"\['a', 'b'\] names 2 objectives, and the study has 1"):
        study_of().optimize(parabola, n_trials=1, callbacks=[named])
    study = study_of()
    with pytest.raises(ConfigError, match="one name for each"):
        study.optimize(named.track_in_mlflow()(lambda trial: pytest.fail("ran")), n_trials=1)


def test_a_class_instead_of_a_callback():
    """Optuna calls it with a study."""
    with pytest.raises(UsageError, match=r"write callbacks=\[MLflowCallback\(\)\]"):
        study_of().optimize(parabola, n_trials=1, callbacks=[MLflowCallback])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric_name": 5}, "metric_name=5: expected a string"),
        ({"config": 5}, "MLflowConfig"),
        ({"mlflow_kwargs": {"nest_trials": True}}, "accepted are experiment_id, run_name, nested, tags"),
        ({"metric_names": ["a"]}, "no option 'metric_names'"),
    ],
)
def test_arguments_that_cannot_be_right(arguments, words):
    """Each names what is accepted."""
    with pytest.raises(ConfigError) as caught:
        MLflowCallback(**arguments)
    assert words in str(caught.value)
