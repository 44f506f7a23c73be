"""A scikit-learn fit lands in MLflow, and goes as it would go without us."""

# ruff: noqa: NPY002 - the numbers that everybody draws from are what is looked at

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from palmerpenguins import load_penguins
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import DBSCAN, KMeans
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_linnerud
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.manifold import TSNE
from sklearn.model_selection import ShuffleSplit, cross_validate as plain_cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.sklearn import MLflowEstimator, cross_validate
from mlpipeline.testing import record
from mlpipeline.tracking import trainings
from mlpipeline.tracking.opening import open_run

CANCER, BENIGN = load_breast_cancer(return_X_y=True, as_frame=True)
IRIS, SPECIES = load_iris(return_X_y=True, as_frame=True)
DIABETES, PROGRESSION = load_diabetes(return_X_y=True)
PENGUINS = load_penguins().dropna(subset=["sex"]).drop(columns="year")
TEXTS = ["good film", "bad film", "good play", "bad play", "so good", "so bad"] * 3
MOODS = [1, 0] * 9

# scikit-learn's remarks on tiny fits are the same without us.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning"),
    pytest.mark.filterwarnings("ignore:One or more of the:UserWarning"),
    pytest.mark.filterwarnings("ignore:Scoring failed:UserWarning"),
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
def points(store_uri, mlflow_client):
    """Read one metric of a run back: its values by step."""
    return lambda run, key: {
        point.step: point.value for point in mlflow_client(store_uri).get_metric_history(run.info.run_id, key)
    }


def attributes(estimator):
    """What a fit left in an estimator, to the last bit."""
    return joblib.hash(estimator)


# --- scikit-learn's own rules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        KMeans(n_init=2, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_scikit_learns_own_checks_pass_with_recording_on(estimator, caplog):
    """All of them; and what they do to an estimator can be recorded without a complaint."""
    with record() as recorded:
        results = check_estimator(
            MLflowEstimator(estimator, {"log_model": False, "log_artifacts": False}),
            on_skip=None,
            on_fail=None,
        )
    assert [] == [(item["check_name"], item["exception"]) for item in results if item["status"] == "failed"]
    assert 40 < sum(item["status"] == "passed" for item in results)
    assert 40 < len(recorded.statuses)
    assert [] == [item.getMessage() for item in caplog.records if "could not record" in item.getMessage()]


def test_scikit_learns_own_checks_pass_with_runs_on_disk(monkeypatch, store_uri, home):
    """As above, through the environment and real journals; pickled estimators hold real runs."""
    monkeypatch.setenv("MLPIPELINE_DELIVERY", "offline")
    monkeypatch.setenv("MLPIPELINE_LOG_MODEL", "false")
    monkeypatch.setenv("MLPIPELINE_LOG_ARTIFACTS", "false")
    monkeypatch.setenv("MLPIPELINE_TRACKING_URI", store_uri)
    results = check_estimator(MLflowEstimator(Ridge()), on_skip=None, on_fail=None)
    assert [] == [(item["check_name"], item["exception"]) for item in results if item["status"] == "failed"]
    assert 40 < len(list((home / "runs").iterdir()))


FITS = {
    "forest": (lambda: RandomForestClassifier(5, random_state=3), CANCER, BENIGN),
    "global numbers": (lambda: RandomForestClassifier(5), CANCER, BENIGN),
    "shared numbers": (
        lambda: make_pipeline(
            StandardScaler(), DummyClassifier(strategy="uniform", random_state=np.random.RandomState(5))
        ),
        CANCER,
        BENIGN,
    ),
    "pipeline": (lambda: make_pipeline(StandardScaler(), LogisticRegression()), CANCER, BENIGN),
    "boosting": (lambda: HistGradientBoostingClassifier(max_iter=5), IRIS, SPECIES),
    "regression": (Ridge, DIABETES, PROGRESSION),
    "clusters": (lambda: KMeans(3, n_init=1, random_state=1), IRIS, None),
    "components": (lambda: PCA(2), IRIS, None),
    "sparse": (LogisticRegression, scipy.sparse.csr_matrix(IRIS.to_numpy()), SPECIES),
}


@pytest.mark.parametrize("kind", FITS)
def test_the_fitted_estimator_is_bit_for_bit_that_of_a_plain_fit(kind):
    """Every attribute, and whatever is drawn from the global numbers afterwards."""
    make, X, y = FITS[kind]
    np.random.seed(7)
    plain = clone(make()).fit(X, y)
    drawn = np.random.rand(3)
    np.random.seed(7)
    with record():
        ours = MLflowEstimator(make()).fit(X, y)
    assert type(plain) is type(ours.estimator_)
    assert attributes(plain) == attributes(ours.estimator_)
    assert drawn.tolist() == np.random.rand(3).tolist()


def test_predicting_for_the_metrics_draws_nobodys_numbers():
    """A dummy draws its predictions from the global numbers: ours are given back."""
    np.random.seed(1)
    with record() as recorded:
        MLflowEstimator(DummyClassifier(strategy="stratified")).fit(IRIS, SPECIES)
    assert recorded.metrics["training_accuracy_score"]
    ours = np.random.rand()
    np.random.seed(1)
    assert np.random.rand() == ours


def test_no_object_of_the_users_changes():
    """Neither the estimator, nor its steps, data and callbacks."""
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    data, target = CANCER.copy(), BENIGN.copy()
    before = attributes(pipeline)
    with record():
        wrapper = MLflowEstimator(pipeline, {"log_model": False}).fit(data, target)
        wrapper.evaluate(data, target)
    assert before == attributes(pipeline)
    assert wrapper.estimator is pipeline
    pd.testing.assert_frame_equal(CANCER, data)
    pd.testing.assert_series_equal(BENIGN, target)
    assert not any("_skl_callbacks" in vars(step) for _, step in wrapper.estimator_.steps)


# --- what is recorded --------------------------------------------------------------------------------


@pytest.mark.needs("scikit-learn>=1.9")
def test_a_classifier_is_recorded_under_the_names_of_autolog(offline, runs, store_uri, mlflow_client):
    """Params, metrics, plots, dataset, model, status; and the run's id is MLflow's."""
    config = offline.replace(log_model=True, log_artifacts=True)
    wrapper = MLflowEstimator(make_pipeline(StandardScaler(), LogisticRegression(C=0.5)), config)
    wrapper.fit(CANCER, BENIGN)
    (run,) = runs()
    assert ("FINISHED", run.info.run_id) == (run.info.status, wrapper.run_id_)
    assert {
        "logisticregression__C": "0.5",
        "logisticregression": "LogisticRegression",
        "standardscaler": "StandardScaler",
    }.items() <= run.data.params.items()
    assert "memory" not in run.data.params, "nobody set it, and it is None"
    assert "Pipeline" == run.data.tags["estimator_name"]
    score = wrapper.score(CANCER, BENIGN)
    assert score == run.data.metrics["training_score"] == run.data.metrics["training_accuracy_score"]
    names = ("precision_score", "recall_score", "f1_score", "log_loss", "roc_auc")
    assert {f"training_{name}" for name in names} <= run.data.metrics.keys()
    assert {"step_time_s/standardscaler", "step_time_s/logisticregression"} <= run.data.metrics.keys()
    (dataset,) = run.inputs.dataset_inputs
    assert ("training", 569) == (dataset.dataset.name, json.loads(dataset.dataset.profile)["num_rows"])
    client = mlflow_client(store_uri)
    assert {
        f"training_{name}.svg" for name in ("confusion_matrix", "roc_curve", "precision_recall_curve")
    } == {item.path for item in client.list_artifacts(run.info.run_id)}
    mlflow.set_tracking_uri(store_uri)
    loaded = mlflow.sklearn.load_model(wrapper.model_uri_)
    assert Pipeline is type(loaded)
    assert (loaded.predict_proba(CANCER) == wrapper.predict_proba(CANCER)).all()


def test_autologs_metrics_have_the_same_names_and_values():
    """Drop-in: everything that autolog says of a training set, we say too, with the same number."""
    from mlflow.sklearn.utils import _get_classifier_metrics, _get_regressor_metrics

    for estimator, X, y, theirs in (
        (
            LogisticRegression(max_iter=300),
            IRIS,
            SPECIES,
            lambda e: _get_classifier_metrics(e, "training_", IRIS, SPECIES, None, None),
        ),
        (
            RandomForestClassifier(3),
            CANCER,
            BENIGN,
            lambda e: _get_classifier_metrics(e, "training_", CANCER, BENIGN, None, None),
        ),
        (
            Ridge(),
            DIABETES,
            PROGRESSION,
            lambda e: _get_regressor_metrics(e, "training_", DIABETES, PROGRESSION, None),
        ),
    ):
        with record() as recorded:
            wrapper = MLflowEstimator(estimator, {"log_model": False}).fit(X, y)
        expected = theirs(wrapper.estimator_)
        assert len(expected) >= 4
        assert expected == {name: recorded.metrics[name][0] for name in expected}


ELEVEN = (np.arange(44.0).reshape(-1, 1), np.arange(44) // 4)
KINDS = {
    "binary": (
        LinearSVC(),
        CANCER,
        BENIGN,
        {"roc_auc", "accuracy_score"},
        {"confusion_matrix", "roc_curve", "precision_recall_curve"},
    ),
    "multiclass": (
        LogisticRegression(),
        IRIS,
        SPECIES,
        {"roc_auc", "log_loss"},
        {"confusion_matrix", "roc_curve", "precision_recall_curve"},
    ),
    "texts as classes": (
        LogisticRegression(),
        IRIS,
        SPECIES.map(str),
        {"roc_auc", "log_loss"},
        {"confusion_matrix", "roc_curve", "precision_recall_curve"},
    ),
    "eleven classes": (GaussianNB(), *ELEVEN, {"roc_auc", "log_loss"}, {"confusion_matrix"}),
    "regression": (
        LinearRegression(),
        DIABETES,
        PROGRESSION,
        {"r2_score", "root_mean_squared_error"},
        {"residuals"},
    ),
    "several outputs": (LinearRegression(), *load_linnerud(return_X_y=True), {"r2_score"}, set()),
    "several labels": (
        RandomForestClassifier(3),
        IRIS,
        np.c_[SPECIES > 0, SPECIES > 1].astype(int),
        {"f1_score"},
        set(),
    ),
    "one class": (DummyClassifier(), IRIS, np.zeros(150), {"accuracy_score"}, {"confusion_matrix"}),
    "clusters": (KMeans(3, n_init=1), IRIS, None, {"score"}, set()),
    "only fit_predict": (DBSCAN(), IRIS, None, set(), set()),
    "transformer": (StandardScaler(), IRIS, None, set(), set()),
    "texts": (
        make_pipeline(TfidfVectorizer(), LogisticRegression()),
        TEXTS,
        MOODS,
        {"roc_auc"},
        {"confusion_matrix", "roc_curve", "precision_recall_curve"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_estimator_has_its_metrics_plots_and_a_model(kind, caplog):
    """And none of them a complaint about what does not exist for it."""
    estimator, X, y, metrics, plots = KINDS[kind]
    with record() as recorded:
        MLflowEstimator(estimator).fit(X, y)
    assert {f"training_{name}" for name in metrics} <= recorded.metrics.keys()
    assert {f"training_{name}.svg" for name in plots} == set(recorded.artifacts)
    assert (["model"], ["FINISHED"]) == (recorded.models, recorded.statuses)
    assert (
        len(X)
        if isinstance(X, list)
        else X.shape[0] == json.loads(recorded.datasets[0]["profile"])["num_rows"]
    )
    assert [] == [item.getMessage() for item in caplog.records if item.name == "mlpipeline"]


def test_penguins_with_missing_values_are_registered_and_reload(offline, runs, store_uri):
    """Mixed types: the signature knows the columns that may be missing, wherever the gap is."""
    frame = PENGUINS.reset_index(drop=True).drop(columns="sex")
    frame.loc[300, "flipper_length_mm"] = np.nan  # far beyond the rows that a signature looks at
    target = PENGUINS["sex"].to_numpy()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["species", "island"]), remainder=numbers
    )
    config = offline.replace(log_model=True, register_model=True, model_name="penguins", model_alias="best")
    wrapper = MLflowEstimator(make_pipeline(columns, LogisticRegression(max_iter=500)), config)
    wrapper.fit(frame, target)
    runs()
    mlflow.set_tracking_uri(store_uri)
    model = mlflow.pyfunc.load_model("models:/penguins@best")
    required = {column.name: column.required for column in model.metadata.signature.inputs}
    assert not required["flipper_length_mm"]
    assert required["species"]
    assert (model.predict(frame) == wrapper.predict(frame)).all()


def test_whoever_reads_the_version_can_load_it_by_its_alias(store_uri):
    """Nothing else waits: without it a script that goes on at once finds no such model."""
    config = {"tracking_uri": store_uri}
    registered = {**config, "register_model": True, "model_name": "stump", "model_alias": "best"}
    wrapper = MLflowEstimator(DummyClassifier(), registered).fit(CANCER, BENIGN)
    assert 1 == wrapper.model_version_
    mlflow.set_tracking_uri(store_uri)
    assert (mlflow.pyfunc.load_model("models:/stump@best").predict(CANCER) == wrapper.predict(CANCER)).all()
    assert MLflowEstimator(DummyClassifier(), config).fit(CANCER, BENIGN).model_version_ is None


def test_the_digest_is_that_of_all_values_and_targets():
    """MLflow's own looks at a sample, and not at every change."""

    def digest(X, y):
        with record() as recorded:
            MLflowEstimator(DummyClassifier(), {"log_model": False, "log_metrics": False}).fit(X, y)
        return recorded.datasets[0]["digest"]

    X, y = np.zeros((30_000, 2)), np.arange(30_000) % 2
    first = digest(X, y)
    assert first == digest(X.copy(), y.copy())
    changed = X.copy()
    changed[17_171, 1] = 1
    assert first != digest(changed, y)
    assert first != digest(X, y[::-1])


def test_many_rows_are_sampled_evenly_for_the_training_metrics():
    """The tag says how many; a test set always counts whole."""
    X = np.linspace(0, 1, 25_000)[:, None]
    y = (X[:, 0] > 0.5).astype(int)
    with record() as recorded:
        wrapper = MLflowEstimator(DummyClassifier(strategy="constant", constant=1), {"log_model": False}).fit(
            X, y
        )
        found = wrapper.evaluate(X, y)
    assert "10000 of 25000" == recorded.tags["mlpipeline.training_rows"]
    assert 0.5 == pytest.approx(recorded.metrics["training_accuracy_score"][0])
    assert np.mean(y) == found["test_accuracy_score"]


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("log_metrics", "metrics"),
        ("log_params", "params"),
        ("log_artifacts", "artifacts"),
        ("log_datasets", "datasets"),
        ("log_model", "models"),
    ],
)
def test_every_part_can_be_switched_off(option, what):
    """By the configuration."""
    with record() as recorded:
        MLflowEstimator(LogisticRegression(), {option: False}).fit(IRIS, SPECIES)
    assert not getattr(recorded, what)
    assert recorded.tags


def test_nothing_is_recorded_when_disabled():
    """But fitted as ever."""
    with record() as recorded:
        wrapper = MLflowEstimator(Ridge(), {"enabled": False}).fit(DIABETES, PROGRESSION)
        wrapper.evaluate(DIABETES, PROGRESSION)
    assert ([], None, None) == (recorded.statuses, wrapper.run_id_, wrapper.model_uri_)
    assert (442,) == wrapper.predict(DIABETES).shape


@pytest.mark.needs("scikit-learn>=1.9")
def test_the_iterations_of_an_estimator_are_recorded():
    """Where scikit-learn has callbacks: their number is the estimator's own."""
    with record() as recorded:
        wrapper = MLflowEstimator(LogisticRegression(), {"log_model": False}).fit(IRIS, SPECIES)
    times = recorded.metrics["LogisticRegression/lbfgs-iter_s"]
    assert wrapper.n_iter_[0] <= len(times) <= wrapper.n_iter_[0] + 1
    with record() as recorded:
        MLflowEstimator(LogisticRegression(solver="liblinear"), {"log_model": False}).fit(CANCER, BENIGN)
    assert "FINISHED" == recorded.statuses[0]


@pytest.mark.needs("scikit-learn>=1.9")
def test_a_pipelines_cache_works_as_without_us(tmp_path):
    """Our hook is not part of what is cached: the second fit takes the first one's steps."""
    pipeline = make_pipeline(StandardScaler(), Ridge(), memory=joblib.Memory(tmp_path, verbose=0))
    clone(pipeline).fit(DIABETES, PROGRESSION)
    entries = sorted(path.name for path in tmp_path.rglob("output.pkl"))
    with record() as recorded:
        MLflowEstimator(pipeline, {"log_model": False}).fit(DIABETES, PROGRESSION)
    assert entries == sorted(path.name for path in tmp_path.rglob("output.pkl"))
    assert "step_time_s/ridge" in recorded.metrics
    assert "step_time_s/standardscaler" not in recorded.metrics, "it was in the cache"


def test_weights_reach_the_fit_and_the_metrics():
    """Passed on as they are given, for a step of a pipeline too."""
    weights = np.where(SPECIES == 0, 10.0, 0.1)
    plain = LogisticRegression().fit(IRIS, SPECIES, sample_weight=weights)
    with record() as recorded:
        wrapper = MLflowEstimator(LogisticRegression(), {"log_model": False})
        wrapper.fit(IRIS, SPECIES, sample_weight=weights)
        pipeline = MLflowEstimator(
            make_pipeline(StandardScaler(), LogisticRegression()), {"log_model": False}
        )
        pipeline.fit(IRIS, SPECIES, logisticregression__sample_weight=weights)
    assert (plain.coef_ == wrapper.coef_).all()
    expected = plain.score(IRIS, SPECIES, weights)
    assert expected == recorded.metrics["training_accuracy_score"][0]


# --- the wrapper as an estimator ---------------------------------------------------------------------


def test_evaluate_adds_to_the_same_run(offline, runs):
    """Metrics, plots and dataset of other data; the run ends again."""
    wrapper = MLflowEstimator(make_pipeline(StandardScaler(), LogisticRegression()), offline)
    wrapper.fit(CANCER[:400], BENIGN[:400])
    found = wrapper.evaluate(CANCER[400:], BENIGN[400:])
    again = wrapper.evaluate(CANCER[:50], BENIGN[:50], prefix="probe")
    (run,) = runs()
    assert found["test_accuracy_score"] == wrapper.score(CANCER[400:], BENIGN[400:])
    assert {**found, **again}.items() <= run.data.metrics.items()
    assert "FINISHED" == run.info.status
    assert {"training", "test", "probe"} == {item.dataset.name for item in run.inputs.dataset_inputs}


def test_in_a_pipeline_it_records_its_step(offline, runs):
    """Under its own name, with the data that reaches it."""
    scaler = MLflowEstimator(StandardScaler(), offline)
    pipeline = make_pipeline(scaler, MLflowEstimator(LogisticRegression(), offline)).fit(IRIS, SPECIES)
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS, SPECIES)
    assert (plain.predict_proba(IRIS) == pipeline.predict_proba(IRIS)).all()
    assert plain[:-1].get_feature_names_out().tolist() == pipeline[:-1].get_feature_names_out().tolist()
    assert ["StandardScaler", "LogisticRegression"] == [run.data.tags["estimator_name"] for run in runs()]
    pipeline.set_output(transform="pandas")
    assert isinstance(pipeline[:-1].transform(IRIS), pd.DataFrame)


def test_a_step_inside_a_recorded_pipeline_is_a_child(offline, runs):
    """One tree, as the code is."""
    MLflowEstimator(
        make_pipeline(StandardScaler(), MLflowEstimator(LogisticRegression(), offline)), offline
    ).fit(IRIS, SPECIES)
    outer, inner = runs()
    assert outer.info.run_id == inner.data.tags["mlflow.parentRunId"]


def test_only_what_the_estimator_can_do_is_there():
    """And its fitted attributes are ours, also those of a search."""
    with record():
        assert not hasattr(MLflowEstimator(Ridge()), "predict_proba")
        assert not hasattr(MLflowEstimator(Ridge()), "coef_")
        tsne = MLflowEstimator(
            TSNE(2, perplexity=5, max_iter=250, init="random", random_state=0), {"log_model": False}
        )
        assert (150, 2) == tsne.fit_transform(IRIS).shape
        assert tsne.embedding_ is tsne.estimator_.embedding_
        assert not hasattr(tsne, "transform")
        labels = MLflowEstimator(DBSCAN(), {"log_model": False}).fit_predict(IRIS)
        assert labels.tolist() == DBSCAN().fit_predict(IRIS).tolist()


def test_a_page_of_the_estimator_waits_for_nobody(offline, monkeypatch):
    """A notebook's HTML reads every attribute that dir() lists, and run_id_ would wait for MLflow."""
    wrapper = MLflowEstimator(Ridge(), offline.replace(delivery="auto", tracking_uri="http://127.0.0.1:9"))
    monkeypatch.setattr("mlpipeline.tracking.dispatch.Dispatch.wait", None)
    wrapper.fit(DIABETES, PROGRESSION)
    assert "Ridge" in wrapper._repr_html_()


def test_copies_and_pickles_of_a_fitted_one_know_its_run(offline, deliver, tmp_path):
    """In another process too, where it predicts the same."""
    wrapper = MLflowEstimator(Ridge(), offline).fit(DIABETES, PROGRESSION)
    deliver()
    assert wrapper.run_id_ == copy.deepcopy(wrapper).run_id_ == pickle.loads(pickle.dumps(wrapper)).run_id_
    assert not hasattr(clone(wrapper), "run_id_")
    joblib.dump(wrapper, tmp_path / "wrapper.joblib")
    code = (
        "import joblib, sys; w = joblib.load(sys.argv[1]); "
        "from sklearn.datasets import load_diabetes as d; "
        "print(w.run_id_, float(w.predict(d(return_X_y=True)[0]).sum()).hex())"
    )
    place = {"MLPIPELINE_HOME": str(tmp_path / "elsewhere"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    answer = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "wrapper.joblib"],
        env=place,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [wrapper.run_id_, float(wrapper.predict(DIABETES).sum()).hex()] == answer.stdout.split()
    again = pickle.loads(pickle.dumps(wrapper))
    found = again.evaluate(DIABETES, PROGRESSION)
    deliver()
    assert found["test_score"] == pytest.approx(wrapper.score(DIABETES, PROGRESSION))


def test_a_reloaded_one_adds_to_its_run_and_leaves_it_finished(offline, runs):
    """Whoever did not open a run does not end it."""
    wrapper = MLflowEstimator(Ridge(), offline).fit(DIABETES, PROGRESSION)
    found = pickle.loads(pickle.dumps(wrapper)).evaluate(DIABETES, PROGRESSION)
    (run,) = runs()
    assert ("FINISHED", found["test_score"]) == (run.info.status, run.data.metrics["test_score"])


def test_two_fits_of_one_wrapper_are_two_runs(offline, runs):
    """The attributes are those of the second."""
    wrapper = MLflowEstimator(Ridge(), offline).fit(DIABETES, PROGRESSION)
    wrapper.set_params(estimator__alpha=0.5).fit(DIABETES, PROGRESSION)
    first, second = runs()
    assert ["1.0", "0.5"] == [run.data.params["alpha"] for run in (first, second)]
    assert second.info.run_id == wrapper.run_id_


def test_threads_and_joblib_keep_their_runs_apart(offline, runs):
    """Two fits at once in one process, two in workers."""
    alphas = [1.0, 2.0, 3.0, 4.0]
    threads = [
        threading.Thread(
            target=MLflowEstimator(Ridge(alpha=alpha), offline).fit, args=(DIABETES, PROGRESSION)
        )
        for alpha in alphas[:2]
    ]
    for thread in threads:
        thread.start()
    fitted = joblib.Parallel(n_jobs=2)(
        joblib.delayed(MLflowEstimator(Ridge(alpha=alpha), offline).fit)(DIABETES, PROGRESSION)
        for alpha in alphas[2:]
    )
    for thread in threads:
        thread.join()
    found = {run.data.params["alpha"]: run for run in runs()}
    assert set(map(str, alphas)) == set(found)
    assert {"FINISHED"} == {run.info.status for run in found.values()}
    assert [found["3.0"].info.run_id, found["4.0"].info.run_id] == [wrapper.run_id_ for wrapper in fitted]


@pytest.mark.needs("scikit-learn>=1.8")
def test_metadata_is_routed_as_the_estimator_requests():
    """Through the wrapper, a pipeline around it, and a cross-validation around that."""
    weights = np.where(SPECIES == 0, 10.0, 0.1)
    with sklearn.config_context(enable_metadata_routing=True), record():
        unweighted = StandardScaler().set_fit_request(sample_weight=False)
        weighted = (
            LogisticRegression().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        )
        plain = make_pipeline(unweighted, weighted)
        ours = make_pipeline(unweighted, MLflowEstimator(weighted, {"log_model": False}))
        plain.fit(IRIS, SPECIES, sample_weight=weights)
        ours.fit(IRIS, SPECIES, sample_weight=weights)
        assert (plain[-1].coef_ == ours[-1].coef_).all()
        assert plain.score(IRIS, SPECIES, sample_weight=weights) == ours.score(
            IRIS, SPECIES, sample_weight=weights
        )
        found = [
            run(estimator, IRIS, SPECIES, cv=3, params={"sample_weight": weights})["test_score"].tolist()
            for run, estimator in (
                (plain_cross_validate, plain),
                (plain_cross_validate, ours),
                (cross_validate, plain),
            )
        ]
        assert found[0] == found[1] == found[2]
        unrequested = MLflowEstimator(
            LogisticRegression().set_fit_request(sample_weight=False), {"log_model": False}
        )
        with pytest.raises(TypeError, match="sample_weight"):
            unrequested.fit(IRIS, SPECIES, sample_weight=weights)


# --- when things go wrong ----------------------------------------------------------------------------


class Failing(ClassifierMixin, BaseEstimator):
    """An estimator whose fit raises what it is told to."""

    def __init__(self, error):
        self.error = error

    def fit(self, X, y):
        """Raise."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("mine"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_goes_on_untouched_and_decides_the_status(error, status):
    """And the wrapper is not fitted."""
    wrapper = MLflowEstimator(Failing(error))
    with record() as recorded, pytest.raises(type(error)):
        wrapper.fit(IRIS, SPECIES)
    assert [status] == recorded.statuses
    with pytest.raises(NotFittedError):
        check_is_fitted(wrapper)


def test_what_cannot_be_recorded_costs_that_part_only(caplog):
    """A predict that fails fails when the user calls it; a fit succeeded."""

    class Mute(Ridge):
        def predict(self, X):
            raise MemoryError("too much")

    with record() as recorded:
        MLflowEstimator(Mute(), {"log_model": False}).fit(DIABETES, PROGRESSION)
    assert ["FINISHED"] == recorded.statuses
    assert ["could not record the training metrics"] == [item.getMessage() for item in caplog.records]


@pytest.mark.parametrize(
    ("call", "error", "advice"),
    [
        (
            lambda: MLflowEstimator(Ridge).fit(IRIS, SPECIES),
            UsageError,
            r"write MLflowEstimator\(Ridge\(\)\)",
        ),
        (
            lambda: MLflowEstimator(MLflowConfig(), Ridge()).fit(IRIS, SPECIES),
            ConfigError,
            "expected an MLflowConfig",
        ),
        (lambda: MLflowEstimator("ridge").fit(IRIS, SPECIES), UsageError, "with an estimator first"),
        (lambda: MLflowEstimator(Ridge(), 5).fit(IRIS, SPECIES), ConfigError, "write MLflowConfig"),
        (
            lambda: MLflowEstimator(Ridge(), {"experiment": "x"}).fit(IRIS, SPECIES),
            ConfigError,
            "did you mean",
        ),
        (lambda: MLflowEstimator(Ridge()).run_id_, NotFittedError, "fit"),
        (lambda: MLflowEstimator(Ridge()).coef_, NotFittedError, "fit"),
        (lambda: MLflowEstimator(Ridge()).predict(IRIS), NotFittedError, "fit"),
        (lambda: MLflowEstimator(Ridge()).evaluate(IRIS, SPECIES), NotFittedError, "fit"),
        (
            lambda: MLflowEstimator(Ridge(), {"enabled": False}).fit(IRIS, SPECIES).evaluate(IRIS),
            UsageError,
            "needs the targets",
        ),
        (
            lambda: (
                MLflowEstimator(Ridge(), {"enabled": False})
                .fit(IRIS, SPECIES)
                .evaluate(IRIS, SPECIES, prefix=3)
            ),
            UsageError,
            "prefix='test'",
        ),
        (lambda: cross_validate(Ridge, IRIS, SPECIES), UsageError, "is a class"),
        (lambda: cross_validate(Ridge(), IRIS, SPECIES, config=3), ConfigError, "write MLflowConfig"),
    ],
)
def test_a_mistake_is_told_with_what_to_write_instead(call, error, advice):
    """Where it is made."""
    with pytest.raises(error, match=advice):
        call()


# --- plain cross-validation --------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_cross_validation_has_a_child_per_fold(n_jobs, offline, runs):
    """With its scores and its own times; what is returned is what scikit-learn returns."""
    options = {"cv": 3, "scoring": ["accuracy", "f1_macro"], "return_train_score": True, "n_jobs": n_jobs}
    options |= {"return_estimator": True, "return_indices": True}
    plain = plain_cross_validate(LogisticRegression(), IRIS, SPECIES, **options)
    before_ms = time.time() * 1000
    ours = cross_validate(LogisticRegression(), IRIS, SPECIES, config=offline, **options)
    assert plain.keys() == ours.keys()
    for name in plain.keys() - {"fit_time", "score_time", "estimator", "indices"}:
        assert plain[name].tolist() == ours[name].tolist()
    assert [LogisticRegression] * 3 == [type(estimator) for estimator in ours["estimator"]]
    parent, *folds = sorted(
        runs(),
        key=lambda run: run.data.tags["mlflow.runName"] if "mlflow.parentRunId" in run.data.tags else "",
    )
    assert ["fold 0", "fold 1", "fold 2"] == [run.info.run_name for run in folds]
    for index, fold in enumerate(folds):
        assert parent.info.run_id == fold.data.tags["mlflow.parentRunId"]
        assert ours["test_f1_macro"][index] == fold.data.metrics["test_f1_macro"]
        assert ours["train_accuracy"][index] == fold.data.metrics["train_accuracy"]
        assert before_ms - 1 <= fold.info.start_time <= fold.info.end_time <= parent.info.end_time
        length_s = ours["fit_time"][index] + ours["score_time"][index]
        assert fold.info.end_time - fold.info.start_time >= int(1000 * length_s) - 1
        assert "FINISHED" == fold.info.status
    assert np.mean(ours["test_accuracy"]) == parent.data.metrics["mean_test_accuracy"]
    assert "1.0" == parent.data.params["C"]


def test_a_cross_validation_draws_the_same_numbers():
    """Splits stay as lazy as they are: they and the fits take turns in drawing."""
    found = []
    for run in (plain_cross_validate, cross_validate):
        np.random.seed(3)
        with record():
            scores = run(RandomForestClassifier(2), IRIS, SPECIES, cv=ShuffleSplit(3))["test_score"]
        found.append((scores.tolist(), np.random.rand()))
    assert found[0] == found[1]


def test_a_fold_that_fails_is_a_failed_child(offline, runs):
    """The others are what they are."""
    target = SPECIES.to_numpy().astype(float)
    target[0] = np.nan  # in every training set but the first fold's
    options = {"cv": 3, "error_score": -1.0}
    plain = plain_cross_validate(Ridge(), IRIS, target, **options)
    ours = cross_validate(Ridge(), IRIS, target, config=offline, **options)
    assert plain["test_score"].tolist() == ours["test_score"].tolist()
    statuses = {run.info.run_name: run.info.status for run in runs() if "mlflow.parentRunId" in run.data.tags}
    assert {"fold 1": "FAILED", "fold 2": "FAILED"}.items() <= statuses.items()


def test_wrappers_in_somebody_elses_cross_validation_record_nothing(offline, runs):
    """No root runs and no models; inside a run, children of it."""
    wrapper = MLflowEstimator(LogisticRegression(), offline.replace(log_model=True))
    scores = plain_cross_validate(wrapper, IRIS, SPECIES, cv=3, n_jobs=2, return_estimator=True)
    assert (
        plain_cross_validate(LogisticRegression(), IRIS, SPECIES, cv=3)["test_score"].tolist()
        == scores["test_score"].tolist()
    )
    assert [None] * 3 == [estimator.run_id_ for estimator in scores["estimator"]]
    assert [] == runs()
    run = open_run(offline)
    with run, trainings.inside(run):
        plain_cross_validate(wrapper, IRIS, SPECIES, cv=3)
    outer, *children = runs()
    assert [outer.info.run_id] * 3 == [child.data.tags["mlflow.parentRunId"] for child in children]
    assert not any(child.outputs.model_outputs for child in children if child.outputs)


def test_the_wrapper_in_files_of_joblib(tmp_path, offline):
    """`joblib.dump` of what is not fitted, too."""
    joblib.dump(MLflowEstimator(Ridge(), offline), tmp_path / "it")
    assert offline == joblib.load(tmp_path / "it").config
    assert Path(tmp_path / "it").stat().st_size < 10_000
