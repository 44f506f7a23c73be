"""A search writes a run per candidate while it goes on, and is the search it would be without us."""

from __future__ import annotations

import io
import re
import sys
import time
import warnings
from pathlib import Path

import cloudpickle
import joblib
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401 - what it says
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    ParameterGrid,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlpipeline.core.config import MLflowConfig
from mlpipeline.sklearn import MLflowEstimator
from mlpipeline.testing import record
from mlpipeline.tracking import trainings
from mlpipeline.tracking.account import accounts
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

X, Y = load_iris(return_X_y=True, as_frame=True)

# Workers cannot import the tests.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:One or more of the:UserWarning"),
]


@pytest.fixture
def offline(store_uri, home):
    """A configuration whose runs wait for `deliver`; joblib's workers may be those of an earlier test."""
    return MLflowConfig(
        tracking_uri=store_uri,
        journal_dir=str(home),
        delivery="offline",
        log_model=False,
        log_artifacts=False,
    )


@pytest.fixture
def tree(store_uri, deliver, mlflow_client):
    """Deliver, then return the one root run and its children by name."""

    def tree():
        deliver()
        client = mlflow_client(store_uri)
        found = client.search_runs([item.experiment_id for item in client.search_experiments()])
        (root,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
        children = {run.info.run_name: run for run in found if run is not root}
        assert {root.info.run_id} >= {run.data.tags["mlflow.parentRunId"] for run in children.values()}
        assert len(found) == 1 + len(children)
        return root, children

    return tree


class CustomSearch(BaseSearchCV):
    """A search class of somebody else's, which passes scikit-learn's callbacks to nobody."""

    def __init__(self, estimator, grid):
        super().__init__(estimator, cv=3)
        self.grid = grid

    def _run_search(self, evaluate_candidates):
        for one in ParameterGrid(self.grid):
            evaluate_candidates([one])


class Fussy(ClassifierMixin, BaseEstimator):
    """A classifier that refuses some parameters, or is interrupted by them."""

    def __init__(self, depth=1):
        self.depth = depth

    def fit(self, X, y):
        """Learn the most frequent class."""
        if self.depth == 0:
            raise ZeroDivisionError("no depth")
        if self.depth == -1:
            raise KeyboardInterrupt
        self.classes_, counts = np.unique(y, return_counts=True)
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, X):
        """Say it."""
        return np.full(len(X), self.most_)


def two_scores(estimator, X, y):
    """Score with a function of one's own, under names of one's own."""
    return {"a": estimator.score(X, y), "b": 1.0}


def the_second(results):
    """Choose without looking."""
    return 1


def same(plain, ours):
    """Assert that two fitted searches are the same but for times, in every attribute."""
    times = {"mean_fit_time", "std_fit_time", "mean_score_time", "std_score_time"}
    assert type(plain) is type(ours)
    assert vars(plain).keys() == vars(ours).keys()
    assert plain.cv_results_.keys() == ours.cv_results_.keys()
    for name in plain.cv_results_.keys() - times:
        # Params may be objects, which are cloned: their texts are compared.
        assert repr(list(plain.cv_results_[name])) == repr(list(ours.cv_results_[name])), name
    for name in vars(plain).keys() - {"cv_results_", "refit_time_", "scorer_", "param_distributions"}:
        assert joblib.hash(getattr(plain, name)) == joblib.hash(getattr(ours, name)), name
    address = re.compile(r" at 0x\w+")
    assert address.sub("", repr(plain)) == address.sub("", repr(ours))
    assert repr(plain.scorer_) == repr(ours.scorer_)


SEARCHES = {
    "grid": lambda: GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3, return_train_score=True),
    "several scores": lambda: GridSearchCV(
        SVC(), {"C": [0.1, 1]}, cv=3, scoring=["accuracy", "f1_macro"], refit="f1_macro"
    ),
    "callable": lambda: GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3, scoring=two_scores, refit="b"),
    "refit chooses": lambda: GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3, refit=the_second),
    "pipeline": lambda: GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression()),
        [{"logisticregression": [SVC(), LogisticRegression()]}, {"logisticregression__C": [0.1]}],
        cv=3,
    ),
    "random": lambda: RandomizedSearchCV(SVC(), {"C": scipy.stats.uniform(0.1, 5)}, n_iter=4, random_state=2),
    "halving": lambda: HalvingGridSearchCV(SVC(), {"C": [0.1, 1, 10, 100]}, random_state=0),
    "halving random": lambda: HalvingRandomSearchCV(SVC(), {"C": [0.1, 1, 10, 100]}, random_state=0),
    "custom": lambda: CustomSearch(SVC(), {"C": [0.1, 1]}),
    "failing": lambda: GridSearchCV(Fussy(), {"depth": [1, 0]}, cv=3),
}


@pytest.mark.parametrize("kind", SEARCHES)
def test_a_search_is_the_same_and_has_a_child_per_candidate(kind, offline, tree):
    """Fold by fold what ``cv_results_`` says, to the last bit."""
    plain = clone(SEARCHES[kind]()).fit(X, Y)
    wrapper = MLflowEstimator(SEARCHES[kind](), offline).fit(X, Y)
    same(plain, wrapper.estimator_)
    root, children = tree()
    results = wrapper.cv_results_
    rows = len(results["params"])
    batches = list(results.get("iter", [0] * rows))
    assert rows == len(children)
    for index, batch in enumerate(batches):
        within = index - batches.index(batch)
        child = children[f"candidate {batch}-{within}" if batch else f"candidate {within}"]
        for name, values in results.items():
            if name.startswith(("mean_test", "std_test", "mean_train", "std_train")):
                stored = child.data.metrics[name]
                assert values[index] == stored or (np.isnan(values[index]) and np.isnan(stored))
        assert ("FAILED" if kind == "failing" and index == 1 else "FINISHED") == child.info.status
        assert results["params"][index].keys() <= child.data.params.keys()
        assert root.info.start_time <= child.info.start_time <= child.info.end_time <= root.info.end_time
    assert "FINISHED" == root.info.status
    if hasattr(wrapper.estimator_, "best_score_"):
        assert wrapper.best_score_ == root.data.metrics["best_cv_score"]
    assert {f"best_{name}" for name in wrapper.best_params_} <= root.data.params.keys()


@pytest.mark.needs("scikit-learn>=1.9")
def test_folds_of_workers_are_recorded_with_their_own_times(offline, tree, store_uri, mlflow_client):
    """From joblib's processes: scores by fold, and candidates that begin one after the other."""
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3, n_jobs=2)
    plain = clone(search).fit(X, Y)
    wrapper = MLflowEstimator(search, offline).fit(X, Y)
    same(plain, wrapper.estimator_)
    _, children = tree()
    for index in range(3):
        child = children[f"candidate {index}"]
        history = mlflow_client(store_uri).get_metric_history(child.info.run_id, "test_score")
        assert [wrapper.cv_results_[f"split{fold}_test_score"][index] for fold in range(3)] == [
            point.value for point in sorted(history, key=lambda point: point.step)
        ]
    starts = [children[f"candidate {index}"].info.start_time for index in range(3)]
    assert starts == sorted(starts)
    assert len(set(starts)) > 1, "autolog gives all of them the same time"


class Peeking(SVC):
    """An SVC that counts, while it is fitted, the runs that are recorded already."""

    def __init__(self, C=1.0, home=""):
        super().__init__(C=C)
        self.home = home

    def fit(self, X, y):
        """Look, then learn."""
        self.seen_ = sum(1 + len(account.waiting) for account in accounts(Home(Path(self.home))))
        return super().fit(X, y)


@pytest.mark.needs("scikit-learn>=1.9")
def test_children_are_there_while_the_search_goes_on(offline, home):
    """Not afterwards, as autolog's are: the fit of the best sees them all."""
    search = GridSearchCV(Peeking(home=str(home)), {"C": [0.1, 1, 10]}, cv=2, n_jobs=2)
    wrapper = MLflowEstimator(search, offline).fit(X, Y)
    assert 1 + 3 == wrapper.best_estimator_.seen_


@pytest.mark.needs("scikit-learn>=1.9")
def test_a_candidate_that_fails_is_a_failed_run_with_the_reason(offline, tree):
    """In a worker too; the other candidates are FINISHED."""
    MLflowEstimator(GridSearchCV(Fussy(), {"depth": [1, 0, 2]}, cv=3, n_jobs=2), offline).fit(X, Y)
    _, children = tree()
    assert ["FINISHED", "FAILED", "FINISHED"] == [children[f"candidate {i}"].info.status for i in range(3)]
    assert "ZeroDivisionError: no depth" == children["candidate 1"].data.tags["mlpipeline.error"]


@pytest.mark.parametrize(
    ("depth", "error", "status"), [(0, ZeroDivisionError, "FAILED"), (-1, KeyboardInterrupt, "KILLED")]
)
@pytest.mark.needs("scikit-learn>=1.9")
def test_what_ends_a_search_ends_its_runs(depth, error, status, offline, tree):
    """The candidates before it are whole, the one that it met has its folds up to then."""
    search = GridSearchCV(Fussy(), {"depth": [1, depth, 2]}, cv=3, error_score="raise")
    with pytest.raises(error):
        MLflowEstimator(search, offline).fit(X, Y)
    root, children = tree()
    assert status == root.info.status
    assert {"candidate 0": "FINISHED", "candidate 1": status} == {
        name: child.info.status for name, child in children.items()
    }


def test_the_best_model_and_the_table_are_on_the_parent(offline, tree, store_uri, mlflow_client):
    """The best estimator itself, which no search is needed to load."""
    config = offline.replace(log_model=True, log_artifacts=True)
    wrapper = MLflowEstimator(GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3, n_jobs=2), config).fit(X, Y)
    root, children = tree()
    mlflow.set_tracking_uri(store_uri)
    model = mlflow.sklearn.load_model(wrapper.model_uri_)
    assert SVC is type(model)
    assert (model.predict(X) == wrapper.predict(X)).all()
    assert 1 == len(root.outputs.model_outputs)
    assert not any(child.outputs and child.outputs.model_outputs for child in children.values())
    path = mlflow_client(store_uri).download_artifacts(root.info.run_id, "cv_results.csv")
    assert wrapper.cv_results_["mean_test_score"].tolist() == pd.read_csv(path)["mean_test_score"].tolist()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_wrappers_opens_one_run_for_the_refit(n_jobs, store_uri, tree, offline):
    """Clones in folds record nothing, wherever they run; the best one is recorded with its model."""
    config = offline.replace(log_model=True)
    grid = {"estimator__C": [0.1, 1]}
    search = GridSearchCV(MLflowEstimator(SVC(), config), grid, cv=3, n_jobs=n_jobs).fit(X, Y)
    root, children = tree()
    assert {} == children
    assert search.best_estimator_.run_id_ == root.info.run_id
    assert 1 == len(root.outputs.model_outputs)
    plain = GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3).fit(X, Y)
    assert plain.cv_results_["mean_test_score"].tolist() == search.cv_results_["mean_test_score"].tolist()


def test_a_search_inside_a_search_keeps_to_itself(caplog):
    """Nested cross-validation: the inner searches are clones in folds."""
    inner = GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=2)
    quick = {"log_model": False, "log_artifacts": False}
    with record() as recorded:
        ours = cross_val_score(MLflowEstimator(inner), X, Y, cv=2)
        assert cross_val_score(inner, X, Y, cv=2).tolist() == ours.tolist()
        assert [] == recorded.statuses
        MLflowEstimator(GridSearchCV(inner, {"estimator__gamma": [0.1, 1]}, cv=2), quick).fit(X, Y)
    assert ["FINISHED"] * 3 == recorded.statuses, "two candidates and the search"
    with record() as recorded, open_run(MLflowConfig()) as run, trainings.inside(run):
        cross_val_score(MLflowEstimator(inner, quick), X, Y, cv=2)
    assert ["FINISHED"] * 7 == recorded.statuses, "of two folds, two candidates and the search; and the run"
    assert [] == [item.getMessage() for item in caplog.records if item.name == "mlpipeline"]


def test_without_refit_there_is_no_model():
    """Nor anything that needs one."""
    with record() as recorded:
        wrapper = MLflowEstimator(GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=2, refit=False)).fit(X, Y)
    assert ([], ["FINISHED"] * 3) == (recorded.models, recorded.statuses)
    assert not hasattr(wrapper, "predict")


@pytest.mark.needs("scikit-learn>=1.9")
def test_the_users_own_callbacks_are_told_as_ever():
    """Ours is one more, and gone afterwards."""
    told = []

    class Mine:
        def setup(self, estimator, context):
            told.append("setup")

        def teardown(self, estimator, context):
            told.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            told.append(context.task_name)

    mine = Mine()
    search = GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=2).set_callbacks(mine)
    search.fit(X, Y)
    plainly, told[:] = list(told), []
    with record():
        wrapper = MLflowEstimator(search, {"log_model": False}).fit(X, Y)
    assert plainly == told
    assert [mine] == wrapper.estimator_._skl_callbacks == search._skl_callbacks


def optuna_search(**options):
    """An OptunaSearchCV with a seed, without Optuna's remark that it is experimental."""
    optuna = pytest.importorskip("optuna")
    from optuna_integration import OptunaSearchCV

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = {"alpha": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)}
        return OptunaSearchCV(
            SGDClassifier(random_state=0), space, n_trials=4, cv=3, random_state=1, **options
        )


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_search_has_a_child_per_trial(offline, tree):
    """With the trial's own times and scores; the study is the user's, and the callbacks too."""
    import optuna

    plain = clone(optuna_search()).fit(X, Y)
    study, heard = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1)), []
    wrapper = MLflowEstimator(optuna_search(), offline).fit(X, Y)
    assert [trial.params for trial in plain.trials_] == [trial.params for trial in wrapper.trials_]
    assert (plain.best_estimator_.coef_ == wrapper.best_estimator_.coef_).all()
    assert wrapper.estimator_.callbacks is None
    _, children = tree()
    for trial in wrapper.trials_:
        child = children[f"trial {trial.number}"]
        assert trial.value == child.data.metrics["mean_test_score"]
        assert int(trial.datetime_start.timestamp() * 1000) == child.info.start_time
        assert int(trial.datetime_complete.timestamp() * 1000) == child.info.end_time
        assert trial.params["alpha"] == pytest.approx(float(child.data.params["alpha"]))
    listening = optuna_search(study=study, callbacks=[lambda study, trial: heard.append(trial.number)])
    with record() as recorded:
        MLflowEstimator(listening, {"log_model": False}).fit(X, Y)
    assert (4, [0, 1, 2, 3]) == (len(study.trials), heard)
    assert 5 == len(recorded.statuses)


def test_candidates_are_recorded_even_where_workers_share_no_folder(offline, tree, monkeypatch):
    """On other machines, the folds' lines are lost: the search's table says the same, without the times."""
    monkeypatch.setattr("mlpipeline.sklearn.validation._Board.add", lambda *_: None)
    wrapper = MLflowEstimator(GridSearchCV(SVC(), {"C": [0.1, 1]}, cv=3), offline).fit(X, Y)
    _, children = tree()
    means = [children[f"candidate {index}"].data.metrics["mean_test_score"] for index in range(2)]
    assert wrapper.cv_results_["mean_test_score"].tolist() == means


def test_many_candidates_are_children_up_to_a_limit(monkeypatch):
    """The table has them all."""
    monkeypatch.setattr("mlpipeline.sklearn.validation._MOST_CHILDREN", 5)
    with record() as recorded:
        MLflowEstimator(GridSearchCV(Fussy(), {"depth": list(range(1, 9))}, cv=2), {"log_model": False}).fit(
            X, Y
        )
    assert 5 + 1 == len(recorded.statuses)
    assert "cv_results.csv" in recorded.artifacts


def test_what_a_search_prints_stays(capsys):
    """`verbose` as ever."""
    search = GridSearchCV(Fussy(), {"depth": [1, 2]}, cv=2, verbose=3)
    clone(search).fit(X, Y)
    plain = io.StringIO(capsys.readouterr().out).readlines()
    with record():
        MLflowEstimator(search, {"log_model": False}).fit(X, Y)
    ours = io.StringIO(capsys.readouterr().out).readlines()
    assert [line.split(" total time")[0] for line in plain] == [line.split(" total time")[0] for line in ours]


@pytest.mark.needs("scikit-learn>=1.9")
def test_time_passes_in_the_children_as_it_did(offline, tree):
    """A child lasts as long as its folds took, and begins when its first fold did."""

    class Slow(Fussy):
        def fit(self, X, y):
            time.sleep(0.05)
            return super().fit(X, y)

    MLflowEstimator(GridSearchCV(Slow(), {"depth": [1, 2]}, cv=2), offline).fit(X, Y)
    _, children = tree()
    first, second = children["candidate 0"].info, children["candidate 1"].info
    assert 100 <= first.end_time - first.start_time < 1000
    assert first.end_time <= second.start_time + 1
