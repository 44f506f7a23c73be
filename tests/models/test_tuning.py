"""The search for hyperparameters: what it answers, what is in MLflow afterwards, what it does when it is disturbed."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_wine

from mlpipeline.core.errors import ConfigError
from mlpipeline.core.interfaces import Component, ComponentType, ExecutionContext
from mlpipeline.models import estimators, spaces
from mlpipeline.models.execution import handed_on, handed_on_model
from mlpipeline.models.mlflow_integration import MLflowIntegratedHyperparameterTrainer
from mlpipeline.models.settings import ModelSection, Settings, TuningSection

NOBODY = "http://127.0.0.1:9"
TREE = {
    "model_type": "decision_tree_classifier",
    "parameters": {"random_state": 0},
    "preprocessing": "none",  # a tree needs none, and it takes longer than the tree
}
DEPTHS = {"max_depth": {"type": "int", "low": 1, "high": 6}}


def context_of(search=None, model=TREE, *, data=None, **sections):
    config = {"data": data or {"dataset": "wine"}, "training": {"model": model}, **sections}
    if search is not None:
        config["training"]["hyperparameter_optimization"] = search
    logger = logging.getLogger("pipeline")
    return ExecutionContext("exp_001", "tuning", ComponentType.HYPERPARAMETER_TUNING, config, "out", logger)


def tune(uri, search=None, model=TREE, *, data=None, mlflow=None, **options):
    sections = {"mlflow": mlflow} if mlflow is not None else {}
    trainer = MLflowIntegratedHyperparameterTrainer(tracking_uri=uri, delivery="thread", **options)
    return trainer.execute(context_of(search, model, data=data, **sections))


def searched(search, model=TREE, **options):
    """Tune without tracking."""
    return tune(NOBODY, search, model, mlflow={"enabled": False}, **options)


def small(**given):
    return {"n_trials": 3, "cv_folds": 2, "parameter_space": DEPTHS, **given}


def stored(name="study", **given):
    return small(storage="sqlite:///study.db", study_name=name, **given)


@pytest.fixture
def recorded(store_uri):
    """Read a search back from MLflow: its run, and those of its trials by number."""

    def recorded(result, uri=store_uri):
        client = MlflowClient(uri)
        parent = client.get_run(result.metadata["mlflow_parent_run_id"])
        below = client.search_runs(
            [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
        )
        trials = {int(run.data.tags["number"]): run for run in below}
        assert len(below) == len(trials), "a trial has one run"
        return parent, trials

    return recorded


@pytest.fixture
def custom(tmp_path, monkeypatch):
    """A module of the user's own, with the model that a test is about."""

    def custom(code):
        (tmp_path / "my_models.py").write_text(f"from sklearn.tree import DecisionTreeClassifier\n{code}")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "my_models", raising=False)
        return {"framework": "custom", "model_type": "my_models.Mine"}

    return custom


# --- what is answered and recorded -----------------------------------------------------------------


def test_a_search_is_a_run_with_a_child_per_trial_and_the_best_model(either_store, recorded):
    """Params, fold scores and values of each trial; params, metrics, model and version of the best."""
    space = {**DEPTHS, "max_features": {"type": "categorical", "choices": ["sqrt", None]}}
    search = {"n_trials": 4, "cv_folds": 3, "metric": "f1_score", "parameter_space": space, "pruner": "none"}
    name = f"wine-{either_store.partition(':')[0]}"
    result = tune(
        either_store, search, mlflow={"register_model": True, "model_name": name, "experiment_name": name}
    )
    assert (True, None, None) == (result.success, result.error_message, result.exception)
    found = result.metadata
    parent, trials = recorded(result, either_store)
    assert [0, 1, 2, 3] == sorted(trials)
    assert [trials[number].info.run_id for number in range(4)] == found["mlflow_child_runs"]
    assert found["mlflow_run_id"] == found["mlflow_parent_run_id"] == parent.info.run_id
    assert {"complete": 4, "pruned": 0, "fail": 0} == found["n_trials"]
    for number, run in trials.items():
        points = MlflowClient(either_store).get_metric_history(run.info.run_id, "fold_f1_score")
        scores = [point.value for point in sorted(points, key=lambda point: point.step)]
        assert 3 == len(scores)
        assert (np.mean(scores), np.std(scores)) == pytest.approx(
            (run.data.metrics["f1_score"], run.data.metrics["std_f1_score"])
        ), number
        assert {"fit_time_s", "score_time_s", "intermediate_f1_score"} <= set(run.data.metrics)
        assert set(space) == set(run.data.params)
        assert "FINISHED" == run.info.status
    best = max(trials.values(), key=lambda run: run.data.metrics["f1_score"])
    assert best.data.metrics["f1_score"] == found["best_value"] == result.metrics["f1_score"]
    assert str(found["best_trial"]) == best.data.tags["number"]
    assert best.data.params == {name: str(value) for name, value in found["best_hyperparameters"].items()}
    shown = {f"model__{key}": str(value) for key, value in found["best_hyperparameters"].items() if value}
    assert shown.items() <= parent.data.params.items()
    assert {"tuning.method": "optuna", "tuning.metric": "f1_score"}.items() <= parent.data.params.items()
    assert (4, found["best_value"]) == (
        parent.data.metrics["trials_complete"],
        parent.data.metrics["best_f1_score"],
    )
    assert {"val_accuracy_score", "test_f1_score"} <= set(result.metrics) & set(parent.data.metrics)
    assert "FINISHED" == parent.info.status
    assert (1, True) == (found["mlflow_model_version"], found["is_refit"])
    assert f"{name} decision_tree_classifier f1_score" == found["study_name"]
    version = MlflowClient(either_store).get_model_version(name, 1)
    assert parent.info.run_id == version.run_id
    mlflow.set_tracking_uri(either_store)
    model = mlflow.sklearn.load_model(found["mlflow_model_uri"])
    assert found["best_hyperparameters"]["max_depth"] == model.named_steps["model"].max_depth
    assert found["mlflow_child_runs"] == handed_on("out")["mlflow_child_runs"]
    rows = load_wine(as_frame=True).data
    assert list(handed_on_model("out").predict(rows)) == list(model.predict(rows))


def test_a_context_without_a_search_is_searched_as_usual():
    """Fifty trials over what is usual for the model, but for what the configuration fixes."""
    model = {
        "model_type": "decision_tree_classifier",
        "parameters": {"max_depth": 2},
        "preprocessing": "none",
    }
    result = searched(None, model, data={"dataset": "iris"})
    assert 50 == sum(result.metadata["n_trials"].values())
    assert {"min_samples_split", "min_samples_leaf"} == set(result.metadata["best_hyperparameters"])
    assert 2 == handed_on_model("out").named_steps["model"].max_depth


@pytest.mark.parametrize(
    ("framework", "space"),
    [
        ("xgboost", {"n_estimators": {"type": "int", "low": 2, "high": 4}}),
        ("pytorch", {"hidden_sizes": {"type": "categorical", "choices": [[4], [8, 4]]}}),
    ],
)
def test_other_frameworks_are_searched_alike(store_uri, recorded, framework, space):
    """A fold's rounds and epochs are nobody's; those of the best are the parent's. Lists are choices, too."""
    fixed = {"max_epochs": 3} if framework == "pytorch" else {"max_depth": 2}
    model = {"framework": framework, "parameters": fixed}
    result = tune(store_uri, small(n_trials=2, parameter_space=space), model)
    assert result.success, result.error_message
    parent, trials = recorded(result)
    best = result.metadata["best_hyperparameters"]
    curve = "val_loss" if framework == "pytorch" else "validation_1-mlogloss"
    rounds = MlflowClient(store_uri).get_metric_history(parent.info.run_id, curve)
    assert fixed.get("max_epochs", best.get("n_estimators")) == len(rounds)
    assert all(curve not in run.data.metrics for run in trials.values())
    if framework == "pytorch":
        assert best["hidden_sizes"] in [[4], [8, 4]]
        layers = handed_on_model("out").named_steps["model"].module_
        assert (
            best["hidden_sizes"] == [layer.out_features for layer in layers if hasattr(layer, "weight")][:-1]
        )


def test_an_error_is_searched_for_its_least(store_uri):
    """By the metric's name; the configuration may say otherwise."""
    model = {"model_type": "ridge"}
    search = small(
        parameter_space={"alpha": {"type": "float", "low": 0.01, "high": 1e5, "log": True}}, n_trials=6
    )
    found = [
        searched({**search, **given}, model, data={"dataset": "diabetes"})
        for given in ({}, {"metric": "r2"}, {"metric": "rmse", "direction": "maximize"})
    ]
    least, greatest, worst = (result.metadata["best_value"] for result in found)
    assert ["rmse", "r2", "rmse"] == [result.metadata["metric"] for result in found]
    assert least < 56 < worst
    assert 0.47 < greatest < 1


def test_nothing_is_recorded_where_tracking_is_off(home):
    """The search is done all the same, and the model is there."""
    result = searched(small())
    assert (True, None, []) == (
        result.success,
        result.metadata["mlflow_run_id"],
        result.metadata["mlflow_child_runs"],
    )
    assert {"max_depth"} == set(result.metadata["best_hyperparameters"])
    assert hasattr(handed_on_model("out"), "predict")
    assert not home.exists()


def test_an_unreachable_destination_costs_nothing_but_ids():
    """Local ones, which are resolved once it is there."""
    result = tune(NOBODY, small())
    assert (True, None) == (result.success, result.metadata["mlflow_model_version"])
    ids = [result.metadata["mlflow_parent_run_id"], *result.metadata["mlflow_child_runs"]]
    assert 4 == len({run_id for run_id in ids if run_id.startswith("local-")})


def test_a_search_that_is_switched_off_is_a_training(store_uri, recorded):
    """With the keys of a search."""
    result = tune(store_uri, {"enabled": False})
    assert result.success, result.error_message
    parent, trials = recorded(result)
    assert ({}, [], TREE["parameters"]) == (
        trials,
        result.metadata["mlflow_child_runs"],
        result.metadata["best_hyperparameters"],
    )
    assert "test_accuracy_score" in parent.data.metrics


def test_without_a_refit_there_is_no_model(store_uri, recorded):
    """And the answer says so."""
    result = tune(store_uri, small(refit=False))
    assert (False, None, []) == (
        result.metadata["is_refit"],
        result.metadata["mlflow_model_uri"],
        result.artifacts,
    )
    assert ["accuracy"] == list(result.metrics)
    parent, trials = recorded(result)
    assert (3, "FINISHED", []) == (len(trials), parent.info.status, parent.outputs.model_outputs)


# --- methods ---------------------------------------------------------------------------------------


def test_a_grid_is_tried_point_by_point(store_uri, recorded):
    """Steps where there are any, else some values; logarithmic where the range is; every choice."""
    space = {
        "max_depth": {"type": "int", "low": 2, "high": 7, "step": 2},
        "ccp_alpha": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "max_features": {"type": "categorical", "choices": ["sqrt", None]},
    }
    search = {
        "method": "grid_search",
        "grid_points": 3,
        "cv_folds": 2,
        "parameter_space": space,
        "pruner": "none",
    }
    result = tune(store_uri, search)
    _, trials = recorded(result)
    tried = {tuple(run.data.params[name] for name in space) for run in trials.values()}
    assert 18 == len(trials) == len(tried)
    assert [{"2", "4", "6"}, {"0.0001", "0.001", "0.01"}, {"sqrt", "None"}] == [
        set(values) for values in zip(*tried, strict=True)
    ]


def test_a_number_of_trials_is_the_most_of_a_grid():
    """Where it is given."""
    search = {"method": "grid_search", "cv_folds": 2, "parameter_space": DEPTHS}
    assert [3, 5] == [
        sum(searched({**search, **given}).metadata["n_trials"].values()) for given in ({"n_trials": 3}, {})
    ]


def test_a_grid_that_nobody_would_wait_for_is_refused():
    """With its size, before it is made."""
    steps = {name: {"type": "float", "low": 0, "high": 1, "step": 1e-9} for name in ("ccp_alpha",)}
    result = searched({"method": "grid_search", "parameter_space": steps})
    assert "the grid has 1,000,000,001 points (ccp_alpha: 1000000001)" in result.error_message


@pytest.mark.parametrize(
    "given", [{"sampler": name} for name in ("random", "qmc", "gp")] + [{"method": "random_search"}]
)
def test_every_method_searches_the_space(given, recwarn):
    """Three trials, three values, and no warning of ours."""
    space = {"min_impurity_decrease": {"type": "float", "low": 0, "high": 0.1}, **DEPTHS}
    result = searched(small(parameter_space=space, pruner="none", **given))
    assert {"complete": 3, "pruned": 0, "fail": 0} == result.metadata["n_trials"], result.error_message
    assert [] == [str(told.message) for told in recwarn if "ptuna" in str(told.message)]


def test_a_sampler_that_is_not_installed_is_told_before_the_search(monkeypatch):
    """With the package."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = searched(small(sampler="cmaes"))
    assert "pip install cmaes" in result.error_message


HOPELESS = {
    "n_trials": 14,
    "cv_folds": 4,
    "parameter_space": {
        "max_depth": {"type": "int", "low": 1, "high": 8},
        "max_leaf_nodes": {"type": "int", "low": 2, "high": 20},
    },
    "refit": False,
}


def test_a_hopeless_trial_is_given_up_fold_by_fold(store_uri, recorded):
    """It is KILLED, with the folds that it had; the others are whole."""
    result = tune(store_uri, HOPELESS)
    counts = result.metadata["n_trials"]
    _, trials = recorded(result)
    client = MlflowClient(store_uri)
    folds = {"FINISHED": [], "KILLED": []}
    for run in trials.values():
        folds[run.info.status].append(len(client.get_metric_history(run.info.run_id, "fold_accuracy")))
    assert [counts["complete"], counts["pruned"]] == [len(found) for found in folds.values()]
    assert {4} == set(folds["FINISHED"])
    assert set() < set(folds["KILLED"]) <= {1, 2, 3}


@pytest.mark.parametrize(("pruner", "is_any"), [("percentile", True), ("hyperband", True), ("none", False)])
def test_other_pruners_give_up_by_their_own_rules(pruner, is_any):
    """All trials are counted."""
    counts = searched({**HOPELESS, "pruner": pruner}).metadata["n_trials"]
    assert (14, is_any) == (sum(counts.values()), counts["pruned"] > 0)


def test_trials_run_at_once(store_uri, recorded, custom):
    """In threads, each with a run of its own."""
    code = (
        "import threading\n"
        "both = threading.Barrier(2, timeout=5)\n"
        "class Mine(DecisionTreeClassifier):\n"
        "    def fit(self, X, y):\n"
        "        if len(y) < 100:\n"
        "            both.wait()\n"
        "        return super().fit(X, y)\n"
    )
    result = tune(store_uri, small(n_trials=6, n_jobs=2, pruner="none"), custom(code))
    assert result.success, result.error_message
    parent, trials = recorded(result)
    assert list(range(6)) == sorted(trials)
    assert {"FINISHED"} == {run.info.status for run in (parent, *trials.values())}
    assert [trials[number].info.run_id for number in range(6)] == result.metadata["mlflow_child_runs"]


def test_the_same_search_finds_the_same():
    """One trial at a time."""
    first, second = (searched(small(n_trials=4)).metadata for _ in range(2))
    assert first == second


# --- a study that is stored ------------------------------------------------------------------------


def params_of(trials):
    return [run.data.params["min_impurity_decrease"] for _, run in sorted(trials.items())]


def test_a_stopped_search_goes_on_in_the_same_run(store_uri, recorded):
    """The stored trials count; none is recorded twice, and no value is drawn twice."""
    space = {"min_impurity_decrease": {"type": "float", "low": 0, "high": 0.1}}
    search = stored(parameter_space=space, method="random_search", pruner="none")
    first = tune(store_uri, {**search, "refit": False})
    second = tune(store_uri, {**search, "n_trials": 5})
    assert first.metadata["mlflow_run_id"] == second.metadata["mlflow_run_id"]
    parent, trials = recorded(second)
    assert 5 == len(trials) == len(set(params_of(trials)))
    assert [trials[number].info.run_id for number in range(5)] == second.metadata["mlflow_child_runs"]
    assert first.metadata["mlflow_child_runs"] == second.metadata["mlflow_child_runs"][:3]
    assert "FINISHED" == parent.info.status
    assert parent.outputs.model_outputs


def test_a_search_that_goes_on_after_its_best_was_trained_is_another_run(store_uri, recorded):
    """Whose params are those of the new best; trials already done are not done again."""
    first = tune(store_uri, stored())
    second = tune(store_uri, stored(n_trials=5))
    third = tune(store_uri, stored(n_trials=5))
    counts = [len(recorded(result)[1]) for result in (first, second, third)]
    assert [3, 2, 0] == counts
    assert 5 == len(set(third.metadata["mlflow_child_runs"]))
    assert second.metadata["mlflow_child_runs"] == third.metadata["mlflow_child_runs"]
    for result in (first, second, third):
        parent = recorded(result)[0]
        depth = result.metadata["best_hyperparameters"]["max_depth"]
        assert str(depth) == parent.data.params["model__max_depth"]
        assert not [tag for tag in parent.data.tags if tag.startswith("mlpipeline.drift")]


def test_trials_of_another_process_count(custom):
    """A search ends when the study has as many as it asks for, whoever did them."""
    code = (
        "import optuna\n"
        "class Mine(DecisionTreeClassifier):\n"
        "    def fit(self, X, y):\n"
        "        study = optuna.load_study(storage='sqlite:///study.db', study_name='study')\n"
        "        if len(study.trials) < 3:\n"
        "            kind = optuna.distributions.IntDistribution(1, 6)\n"
        "            done = optuna.trial.create_trial(value=0, params={'max_depth': 3}, distributions={'max_depth': kind})\n"
        "            study.add_trials([done, done])\n"
        "        return super().fit(X, y)\n"
    )
    result = searched(stored(n_trials=4), custom(code))
    assert {"complete": 4, "pruned": 0, "fail": 0} == result.metadata["n_trials"], result.error_message


def test_a_refit_that_fails_leaves_what_was_found(store_uri, recorded, custom):
    """The answer has the best values, and the trials' runs are there."""
    code = (
        "class Mine(DecisionTreeClassifier):\n"
        "    def fit(self, X, y):\n"
        "        if len(y) > 100:\n"
        "            raise MemoryError('too many rows')\n"
        "        return super().fit(X, y)\n"
    )
    result = tune(store_uri, small(), custom(code))
    assert (False, "too many rows", False) == (
        result.success,
        result.error_message,
        result.metadata["is_refit"],
    )
    assert {"max_depth"} == set(result.metadata["best_hyperparameters"])
    parent, trials = recorded(result)
    assert ("FAILED", {"FINISHED"}) == (parent.info.status, {run.info.status for run in trials.values()})


def test_choices_of_every_type_survive_the_storage():
    """Null, true, 1, a text and a list, though Optuna takes true and 1 for the same."""
    choices = [None, True, 1, 1.5, "1", [64, 32]]
    space = spaces.Space(
        {
            "x": TuningSection(
                parameter_space={"x": {"type": "categorical", "choices": choices}}
            ).parameter_space["x"]
        }
    )
    study = optuna.create_study(
        storage="sqlite:///study.db",
        study_name="types",
        sampler=optuna.samplers.GridSampler(space.grid(5)),
    )
    suggested = []
    study.optimize(lambda trial: suggested.append(space.suggested(trial)["x"]) or 0.0)
    loaded = optuna.load_study(storage="sqlite:///study.db", study_name="types")
    kept = [space.values(trial.params)["x"] for trial in loaded.trials]
    assert suggested == kept
    assert sorted(map(repr, choices)) == sorted(map(repr, kept))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cv_folds": 3}, "cv_folds (2 there, 3 here)"),
        ({"metric": "f1"}, "metric ('accuracy' there, 'f1' here)"),
        ({"direction": "minimize"}, "is to maximize, and this one to minimize"),
        (
            {"parameter_space": {"max_depth": {"type": "float", "low": 1, "high": 2}}},
            "the stored study 'study' has it as IntDistribution",
        ),
    ],
)
def test_a_stored_study_of_another_question_is_not_continued(given, told):
    """Its values cannot be compared."""
    searched(stored(n_trials=1))
    result = searched({**stored(), **given})
    assert isinstance(result.exception, ConfigError)
    assert told in result.error_message
    assert "give another training.hyperparameter_optimization.study_name" in result.error_message


def test_a_stored_study_of_other_rows_is_not_continued():
    """However much they look alike."""
    searched(stored(n_trials=1))
    result = searched(stored(), data={"dataset": "wine", "seed": 1})
    assert "which differs in train rows;" in result.error_message


def test_a_storage_that_cannot_be_opened_is_told_without_its_password():
    """The URL's other parts are there."""
    result = searched(small(storage="mysqll://me:secret@host/x"))
    assert isinstance(result.exception, ConfigError)
    assert "hyperparameter_optimization.storage: mysqll://" in result.error_message
    assert "secret" not in result.error_message


@pytest.mark.parametrize("stop", ["raise KeyboardInterrupt", "sys.exit(1)"])
def test_a_search_stopped_by_ctrl_c_goes_on_later(store_uri, recorded, custom, stop):
    """The run is KILLED, what was finished stays, and a grid's interrupted point is tried again; Lightning exits."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "class Mine(DecisionTreeClassifier):\n"
        "    def fit(self, X, y):\n"
        "        if self.max_depth == 2 and Path('interrupt').exists():\n"
        "            try:\n"
        "                raise KeyboardInterrupt\n"
        "            except KeyboardInterrupt:\n"
        f"                {stop}\n"
        "        return super().fit(X, y)\n"
    )
    model = custom(code)
    search = stored(method="grid_search", n_trials=None, grid_points=6, pruner="none", refit=False)
    Path("interrupt").touch()
    trainer = MLflowIntegratedHyperparameterTrainer(tracking_uri=store_uri, delivery="thread")
    with pytest.raises(KeyboardInterrupt):
        trainer.execute(context_of(search, model))
    study = optuna.load_study(storage="sqlite:///study.db", study_name="study")
    before = len(study.trials) - 1
    assert [2] == [trial.params["max_depth"] for trial in study.trials if trial.state.name == "FAIL"]
    Path("interrupt").unlink()
    result = tune(store_uri, search, model)
    parent, trials = recorded(result)
    statuses = [run.info.status for _, run in sorted(trials.items())]
    assert [*["FINISHED"] * before, "KILLED", *["FINISHED"] * (6 - before)] == statuses
    finished = [run.data.params["max_depth"] for run in trials.values() if run.info.status == "FINISHED"]
    assert ["1", "2", "3", "4", "5", "6"] == sorted(finished)
    assert "FINISHED" == parent.info.status
    assert {"complete": 6, "pruned": 0, "fail": 1} == result.metadata["n_trials"]


@pytest.mark.process
def test_a_killed_search_goes_on_in_the_same_run(store_uri, recorded, custom, tmp_path):
    """With what was finished before `kill -9`; the trial that it hit is KILLED."""
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "class Mine(DecisionTreeClassifier):\n"
        "    fits = 0\n"
        "    def fit(self, X, y):\n"
        "        Mine.fits += 1\n"
        "        if Mine.fits == 5 and Path('kill').exists():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().fit(X, y)\n"
    )
    model, search = custom(code), stored(n_trials=4)
    Path("kill").touch()
    program = (
        "import logging, sys; from mlpipeline.core.interfaces import ComponentType, ExecutionContext\n"
        "from mlpipeline.models.mlflow_integration import MLflowIntegratedHyperparameterTrainer as Trainer\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"context = ExecutionContext('a', 'b', ComponentType.MODEL_TRAINING, {context_of(search, model).config!r}, "
        "'out', logging.getLogger())\n"
        f"Trainer(tracking_uri={store_uri!r}, delivery='offline').execute(context)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert -9 == killed.returncode, killed.stderr
    Path("kill").unlink()
    result = tune(store_uri, search, model)
    assert result.success, result.error_message
    parent, trials = recorded(result)
    statuses = [run.info.status for _, run in sorted(trials.items())]
    assert ["FINISHED", "FINISHED", "KILLED", "FINISHED", "FINISHED"] == statuses
    assert [trials[number].info.run_id for number in range(5)] == result.metadata["mlflow_child_runs"]
    assert "FINISHED" == parent.info.status


def test_ctrl_c_passes_on_and_what_was_finished_is_recorded(store_uri, deliver, custom):
    """The search's run and the trial's are KILLED."""
    code = (
        "class Mine(DecisionTreeClassifier):\n"
        "    fits = 0\n"
        "    def fit(self, X, y):\n"
        "        Mine.fits += 1\n"
        "        if Mine.fits == 5:\n"
        "            raise KeyboardInterrupt\n"
        "        return super().fit(X, y)\n"
    )
    trainer = MLflowIntegratedHyperparameterTrainer(tracking_uri=store_uri, delivery="offline")
    with pytest.raises(KeyboardInterrupt):
        trainer.execute(context_of(small(), custom(code)))
    deliver()
    client = MlflowClient(store_uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert {None: "KILLED", "0": "FINISHED", "1": "FINISHED", "2": "KILLED"} == {
        run.data.tags.get("number"): run.info.status for run in runs
    }
    (parent,) = [run for run in runs if "number" not in run.data.tags]
    assert (2, 1) == (parent.data.metrics["trials_complete"], parent.data.metrics["trials_fail"])


# --- what goes wrong -------------------------------------------------------------------------------


def test_a_failing_trial_does_not_end_the_search(store_uri, recorded):
    """Its run is FAILED, and tells why."""
    space = {"max_depth": {"type": "categorical", "choices": [-1, 3, -2]}}
    result = tune(store_uri, small(n_trials=None, method="grid_search", parameter_space=space))
    assert (True, {"max_depth": 3}, {"complete": 1, "pruned": 0, "fail": 2}) == (
        result.success,
        result.metadata["best_hyperparameters"],
        result.metadata["n_trials"],
    )
    _, trials = recorded(result)
    for failed in [run for run in trials.values() if "3" != run.data.params["max_depth"]]:
        assert "FAILED" == failed.info.status
        assert failed.data.tags["error"].startswith("InvalidParameterError: The 'max_depth' parameter")


def test_a_search_in_which_nothing_succeeds_says_why(store_uri, recorded):
    """A value that the model refuses is the user's mistake; what was recorded is told."""
    space = {"max_depth": {"type": "int", "low": -3, "high": -1}}
    result = tune(store_uri, small(parameter_space=space))
    assert (False, ConfigError) == (result.success, type(result.exception))
    assert result.error_message.startswith(
        "training.hyperparameter_optimization: no trial succeeded: 3 failed, 0 were pruned. The first failed with "
        "{'max_depth': -"
    )
    assert (
        "InvalidParameterError: The 'max_depth' parameter of DecisionTreeClassifier" in result.error_message
    )
    parent, trials = recorded(result)
    assert {"FAILED"} == {run.info.status for run in (parent, *trials.values())}
    assert 3 == len(result.metadata["mlflow_child_runs"])
    assert (None, {"complete": 0, "pruned": 0, "fail": 3}) == (
        result.metadata["best_hyperparameters"],
        result.metadata["n_trials"],
    )


def test_a_fault_that_is_nobodys_mistake_is_not_called_one(custom):
    """The exception of the first trial is behind the answer's."""
    code = "class Mine(DecisionTreeClassifier):\n    def fit(self, X, y):\n        raise OSError('disk')\n"
    result = searched(small(n_trials=1), custom(code))
    assert (RuntimeError, OSError) == (type(result.exception), type(result.exception.__cause__))


def test_a_metric_that_the_model_cannot_give_ends_the_search_at_once():
    """It would fail every trial."""
    space = {"alpha": {"type": "float", "low": 0.1, "high": 1}}
    result = searched(
        small(n_trials=30, metric="log_loss", parameter_space=space), {"model_type": "ridge_classifier"}
    )
    assert 1 == result.metadata["n_trials"]["fail"]
    assert "log_loss cannot be computed" in result.error_message


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (
            small(parameter_space={"max_dept": DEPTHS["max_depth"]}),
            "has no parameter 'max_dept'; did you mean 'max_depth'?",
        ),
        (small(metric="val_loss"), "metric 'val_loss' is unknown"),
        (small(metric="acuracy"), "metric 'acuracy' is unknown; near it are 'accuracy'"),
        (small(cv_folds=200), "200 folds need as many train rows, and no class has more than"),
        ({"n_trial": 3}, "n_trial: no such option; did you mean 'n_trials'?"),
    ],
)
def test_a_mistake_is_told_before_the_first_trial(search, told, home):
    """With what is accepted; no run is made."""
    result = tune(NOBODY, search)
    assert (False, ConfigError) == (result.success, type(result.exception))
    assert told in result.error_message
    assert not home.exists()


def test_a_mistake_in_the_fixed_parameters_is_told_before_the_first_trial(home):
    """It would fail every trial."""
    result = tune(NOBODY, small(), {**TREE, "parameters": {"min_sample_leaf": 2}})
    assert "has no parameter 'min_sample_leaf'; did you mean 'min_samples_leaf'?" in result.error_message
    assert not home.exists()


def test_a_timeout_that_lets_no_trial_begin_is_told():
    """Instead of a best that is not there."""
    result = searched(small(timeout=1e-9))
    assert "no trial succeeded: 0 failed, 0 were pruned; raise timeout=1e-09" in result.error_message


# --- spaces and settings ---------------------------------------------------------------------------


def usual(model_type, framework, parameters=None):
    model = ModelSection(framework=framework, model_type=model_type, parameters=parameters or {})
    kind = estimators.kind_of(model, None)
    return kind, spaces.space_of(TuningSection(), model, kind)


@pytest.mark.parametrize(("package", "name"), [pytest.param(*key, id=".".join(key)) for key in spaces._USUAL])
def test_a_usual_space_is_one_of_the_models(package, name):
    """Both ends of every range are values that it is fitted with."""
    framework = {"mlpipeline": "pytorch"}.get(package, package)
    kind, space = usual(name, framework)
    X, y = np.random.default_rng(0).random((60, 3)), np.arange(60) % 2
    few = {"n_estimators": 3, "max_epochs": 1, "max_iter": 20, "n_jobs": 1}
    known = estimators.known_parameters(kind)
    for end in (0, -1):
        point = {name: values[end] for name, values in space.grid(2).items()}
        values = {**space.values(point), **{name: value for name, value in few.items() if name in known}}
        model = estimators.make(ModelSection(framework=framework, parameters=values), kind)
        assert 60 == len(model.fit(X, y).predict(X))


def test_what_the_configuration_fixes_is_not_searched():
    """Unless nothing is left."""
    fixed = {"max_features": 0.5, "min_samples_leaf": 2}
    _, space = usual("random_forest_classifier", "sklearn", fixed)
    assert ["min_samples_split"] == list(space.ranges)
    with pytest.raises(ConfigError, match="fixes all that is usually searched for random_forest_classifier"):
        usual("random_forest_classifier", "sklearn", {**fixed, "min_samples_split": 2})


def test_a_model_without_a_usual_space_needs_one():
    """Its parameters are named."""
    with pytest.raises(
        ConfigError, match=r"nothing is usual for gaussian_nb; .* the parameters priors, var_smoothing"
    ):
        usual("gaussian_nb", "sklearn")


def test_a_given_space_wins_over_a_fixed_value(caplog):
    """And the log says so."""
    model = {**TREE, "parameters": {"max_depth": 40, "min_samples_leaf": 2}}
    with caplog.at_level(logging.INFO, "pipeline"):
        result = searched(small(), model)
    found = handed_on_model("out").named_steps["model"]
    assert (result.metadata["best_hyperparameters"]["max_depth"], 2) == (
        found.max_depth,
        found.min_samples_leaf,
    )
    assert found.max_depth <= 6
    assert (
        "max_depth is searched, so that its value 40 in training.model.parameters does not count"
        in caplog.messages
    )


@pytest.mark.parametrize(
    ("given", "points"),
    [
        ({"type": "int", "low": 1, "high": 3}, [1, 2, 3]),
        ({"type": "int", "low": 1, "high": 101}, [1, 26, 51, 76, 101]),
        ({"type": "int", "low": 1, "high": 10_000, "log": True}, [1, 10, 100, 1000, 10_000]),
        ({"type": "int", "low": 1, "high": 4, "log": True}, [1, 2, 3, 4]),
        ({"type": "int", "low": 5, "high": 5}, [5]),
        ({"type": "int", "low": 1, "high": 10, "step": 4}, [1, 5, 9]),
        ({"type": "float", "low": 0.1, "high": 0.5, "step": 0.1}, [0.1, 0.2, 0.3, 0.4, 0.5]),
        ({"type": "float", "low": 0, "high": 0.25, "step": 0.1}, [0.0, 0.1, 0.2]),
        ({"type": "float", "low": 0, "high": 1}, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ({"type": "float", "low": 1e-6, "high": 1e-2, "log": True}, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
    ],
)
def test_the_points_of_a_range_are_in_it(given, points, recwarn):
    """For Optuna, too, which warns of an end that no step meets."""
    space = spaces.Space(TuningSection(parameter_space={"x": given}).parameter_space)
    assert points == space.grid(5)["x"]
    (kind,) = space.distributions().values()
    assert all(kind._contains(kind.to_internal_repr(point)) for point in points)
    assert len(points) <= spaces._size(space.ranges["x"], 5) <= 5
    assert [] == list(recwarn)


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({"n_jobs": 0}, "n_jobs=0 would run nothing"),
        ({"n_jobs": -2}, "n_jobs: "),
        (
            {"parameter_space": {"x": {"type": "categorical", "choices": [1, "a", 1]}}},
            "1 is among the choices twice",
        ),
        (
            {"parameter_space": {"x": {"type": "float", "low": 1, "high": 3, "log": True, "step": 1}}},
            "log and step exclude",
        ),
    ],
)
def test_a_search_that_cannot_be_right_is_refused(search, told):
    """Where the configuration is read."""
    with pytest.raises(ConfigError) as refusal:
        Settings.of({"training": {"hyperparameter_optimization": search}})
    assert told in str(refusal.value)


# --- the component ---------------------------------------------------------------------------------


def test_it_is_a_component():
    """With a logger, a check of its own, and the configuration's options as keywords."""
    trainer = MLflowIntegratedHyperparameterTrainer({"experiment_name": "a"}, log_model=False)
    assert isinstance(trainer, Component)
    assert ("a", False) == (trainer.config.experiment_name, trainer.config.log_model)
    trainer.setup(context_of(small()))
    with pytest.raises(ConfigError, match="n_trial: no such option"):
        trainer.setup(context_of({"n_trial": 1}))


@pytest.mark.parametrize(("shows_progress", "is_shown"), [(True, True), (None, False)])
def test_progress_is_shown_where_it_is_wanted(capsys, shows_progress, is_shown):
    """Not where standard error is no terminal. A user who silenced Optuna's log hears no more of it."""
    log = logging.getLogger("optuna")
    optuna.logging.disable_default_handler()
    try:
        handlers, level = list(log.handlers), log.level
        searched(small(), shows_progress=shows_progress)
        assert is_shown == ("3/3 [" in capsys.readouterr().err)
        assert (handlers, level) == (log.handlers, log.level)
    finally:
        optuna.logging.enable_default_handler()


def test_every_option_is_on_its_page():
    """The table of docs/tuning.md."""
    text = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text("utf-8")
    table = text.partition("## Options")[2].partition("\n\n`model.parameters`")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert set(TuningSection.model_fields) == set(re.findall(r"\w+", " ".join(cells)))


def test_its_import_loads_no_framework():
    """The specification's names are there without Optuna, scikit-learn and MLflow."""
    program = (
        "import sys, mlpipeline.models.mlflow_integration as m; m.MLflowIntegratedHyperparameterTrainer; "
        "print([name for name in ('optuna', 'sklearn', 'mlflow', 'pandas', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "[]\n" == done.stdout, done.stderr


def test_only_its_own_sections_are_looked_at():
    """A pipeline's configuration holds those of others."""
    trainer = MLflowIntegratedHyperparameterTrainer(tracking_uri=NOBODY)
    trainer.setup(context_of(small(), deployment=SimpleNamespace()))
    with pytest.raises(ConfigError, match="n_trial: no such option") as refusal:
        trainer.setup(context_of({"n_trial": 1}, deployment=SimpleNamespace()))
    assert "deployment" not in str(refusal.value)
