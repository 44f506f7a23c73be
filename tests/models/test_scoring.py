"""Metrics by name, held against scikit-learn's own functions on real models."""

from __future__ import annotations

import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_multilabel_classification
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import LinearSVC
from xgboost import DMatrix, XGBClassifier, train

from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.models.scoring import answers, checked, default_metrics, is_greater_better, scores

CANCER_X, CANCER_Y = load_breast_cancer(return_X_y=True)
CANCER_X = CANCER_X[:, :2]  # few features: no metric is 1
IRIS_X, IRIS_Y = load_iris(return_X_y=True)
IRIS_X = IRIS_X[:, :2]
DIABETES_X, DIABETES_Y = load_diabetes(return_X_y=True)


@pytest.fixture(scope="module")
def two_classes():
    return LogisticRegression().fit(CANCER_X, CANCER_Y)


@pytest.fixture(scope="module")
def three_classes():
    return LogisticRegression().fit(IRIS_X, IRIS_Y)


@pytest.fixture(scope="module")
def regression():
    return LinearRegression().fit(DIABETES_X, DIABETES_Y)


# --- names -------------------------------------------------------------------------------------------


def test_every_scorer_of_scikit_learn_is_known_and_means_what_it_means_there(two_classes, regression):
    """Whichever scikit-learn can compute, for two classes or numbers; the others raise."""
    warnings.simplefilter("ignore")  # scikit-learn's, about clusters of numbers; pytest resets it
    computed = 0
    for model, X, y in ((two_classes, CANCER_X, CANCER_Y), (regression, DIABETES_X, DIABETES_Y)):
        for name in metrics.get_scorer_names():
            try:
                expected = metrics.get_scorer(name)(model, X, y)
            except (ValueError, AttributeError):
                expected = np.nan
            if np.isnan(expected):
                with pytest.raises(UsageError, match=f"^{name} cannot be computed for "):
                    scores(model, X, y, [name])
            else:
                computed += 1
                assert pytest.approx(expected, abs=1e-12) == scores(model, X, y, [name])[name], name
    assert computed > 60


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("accuracy_score", metrics.accuracy_score),
        ("f1_score", metrics.f1_score),
        ("precision_score", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("jaccard_score", metrics.jaccard_score),
        ("balanced_accuracy_score", metrics.balanced_accuracy_score),
    ],
)
def test_functions_of_labels_go_by_their_own_names(two_classes, name, function):
    """As users of scikit-learn know them."""
    expected = function(CANCER_Y, two_classes.predict(CANCER_X))
    assert {name: pytest.approx(expected)} == scores(two_classes, CANCER_X, CANCER_Y, [name])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("rmse", metrics.root_mean_squared_error),
        ("mse", metrics.mean_squared_error),
        ("mean_squared_error", metrics.mean_squared_error),
        ("mae", metrics.mean_absolute_error),
        ("mape", metrics.mean_absolute_percentage_error),
        ("max_error", metrics.max_error),
    ],
)
def test_errors_are_positive_under_the_name_that_was_written(regression, name, function):
    """The scorer of scikit-learn's is negative; only the name that begins so stays."""
    expected = function(DIABETES_Y, regression.predict(DIABETES_X))
    assert expected > 0
    assert {name: pytest.approx(expected)} == scores(regression, DIABETES_X, DIABETES_Y, [name])


def test_log_loss_is_positive_too(two_classes):
    """And its negative twin negative."""
    found = scores(two_classes, CANCER_X, CANCER_Y, ["log_loss", "neg_log_loss"])
    expected = metrics.log_loss(CANCER_Y, two_classes.predict_proba(CANCER_X))
    assert {"log_loss": pytest.approx(expected), "neg_log_loss": pytest.approx(-expected)} == found


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("acuracy", "accuracy"), ("f1-score", "f1_score"), ("roc", "roc_auc"), ("", "accuracy")],
)
def test_an_unknown_metric_names_the_nearest(given, nearest):
    """Before the model is asked anything."""
    with pytest.raises(ConfigError) as caught:
        scores(None, None, None, [given])
    assert f"metric {given!r} is unknown" in str(caught.value)
    assert repr(nearest) in str(caught.value)


def test_a_metric_without_a_direction_names_the_nearest():
    """One that was logged under a name of the user's own."""
    with pytest.raises(ConfigError, match="metric 'acuracy' is unknown; near it are 'accuracy'"):
        is_greater_better("acuracy")


# --- targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["precision", "recall", "f1", "jaccard"])
def test_more_than_two_classes_are_averaged_by_weight(three_classes, name):
    """So that a configuration says f1 whatever the target."""
    function = getattr(metrics, f"{name}_score")
    rows = slice(0, 120)  # unequal classes
    expected = function(IRIS_Y[rows], three_classes.predict(IRIS_X[rows]), average="weighted")
    macro = function(IRIS_Y[rows], three_classes.predict(IRIS_X[rows]), average="macro")
    assert expected != macro
    assert pytest.approx(expected) == scores(three_classes, IRIS_X[rows], IRIS_Y[rows], [name])[name]


def test_the_roc_of_three_classes_is_one_versus_rest(three_classes):
    """By the plain name; the other ways have names of their own."""
    X, y = IRIS_X[:120], IRIS_Y[:120]  # unequal classes
    certain = three_classes.predict_proba(X)
    expected, other = (metrics.roc_auc_score(y, certain, multi_class=how) for how in ("ovr", "ovo"))
    assert expected != pytest.approx(other)
    found = scores(three_classes, X, y, ["roc_auc", "roc_auc_score", "roc_auc_ovo"])
    assert pytest.approx(expected) == found["roc_auc"] == found["roc_auc_score"]
    assert pytest.approx(other) == found["roc_auc_ovo"]


@pytest.mark.needs("scikit-learn>=1.8")
def test_labels_that_are_words_have_the_greater_one_in_view():
    """As predict_proba's last column; scikit-learn's own f1 refuses them."""
    words = np.where(CANCER_Y == 1, "yes", "no")
    model = LogisticRegression().fit(CANCER_X, words)
    names = ["f1", "precision", "average_precision", "roc_auc", "brier_score", "log_loss", "d2_brier_score"]
    found = scores(model, CANCER_X, words, names)
    assert found == pytest.approx(
        scores(LogisticRegression().fit(CANCER_X, CANCER_Y), CANCER_X, CANCER_Y, names)
    )


def test_rows_that_lack_a_class_are_those_of_a_model_with_three(three_classes):
    """Two classes in the data do not make it a question of two; log_loss knows the third."""
    rows = IRIS_Y > 0
    found = scores(three_classes, IRIS_X[rows], IRIS_Y[rows], ["f1", "log_loss"])
    predicted = three_classes.predict(IRIS_X[rows])
    assert pytest.approx(metrics.f1_score(IRIS_Y[rows], predicted, average="weighted")) == found["f1"]
    certain = three_classes.predict_proba(IRIS_X[rows])
    assert pytest.approx(metrics.log_loss(IRIS_Y[rows], certain, labels=[0, 1, 2])) == found["log_loss"]


def test_several_labels_per_row_are_averaged():
    """One-hot targets of a one-vs-rest model."""
    X, y = make_multilabel_classification(random_state=0)
    model = OneVsRestClassifier(LogisticRegression()).fit(X, y)
    assert (
        pytest.approx(metrics.f1_score(y, model.predict(X), average="weighted"))
        == scores(model, X, y, ["f1"])["f1"]
    )


def test_a_column_of_a_table_is_a_target(two_classes):
    """As DataFrames come."""
    X, y = pd.DataFrame(CANCER_X), pd.DataFrame({"target": CANCER_Y})
    model = LogisticRegression().fit(X, CANCER_Y)
    assert scores(two_classes, CANCER_X, CANCER_Y, ["f1"]) == scores(model, X, y, ["f1"])


def test_rows_have_weights(two_classes):
    """A row of weight zero does not count."""
    weights = (CANCER_Y == 1).astype(float)
    expected = two_classes.predict(CANCER_X)[CANCER_Y == 1].mean()
    assert (
        pytest.approx(expected) == scores(two_classes, CANCER_X, CANCER_Y, ["accuracy"], weights)["accuracy"]
    )
    with pytest.raises(UsageError, match=r"rand_score cannot be computed .*sample_weight"):
        scores(two_classes, CANCER_X, CANCER_Y, ["rand_score"], weights)


# --- what a model cannot give ------------------------------------------------------------------------


def test_a_model_without_probabilities_has_no_log_loss_but_a_roc():
    """The message says what is missing."""
    model = LinearSVC().fit(CANCER_X, CANCER_Y)
    assert 0.5 < scores(model, CANCER_X, CANCER_Y, ["roc_auc"])["roc_auc"] < 1
    with pytest.raises(
        UsageError, match=r"^log_loss cannot be computed for LinearSVC: it has no predict_proba$"
    ):
        scores(model, CANCER_X, CANCER_Y, ["accuracy", "log_loss"])
    with pytest.raises(
        UsageError, match=r"^roc_auc cannot be computed for KMeans: it has no decision_function or"
    ):
        scores(KMeans(2, n_init=1).fit(CANCER_X), CANCER_X, CANCER_Y, ["roc_auc"])


def test_one_class_has_no_roc(two_classes):
    """Rather than a warning and a NaN."""
    rows = CANCER_Y == 1
    with pytest.raises(
        UsageError, match=r"roc_auc cannot be computed .*: all 357 rows are of one class, .*1"
    ):
        scores(two_classes, CANCER_X[rows], CANCER_Y[rows], ["roc_auc"])


def test_what_is_not_defined_raises(regression):
    """The R² of one row is a NaN, which no comparison can use."""
    with (
        pytest.warns(UndefinedMetricWarning),
        pytest.raises(UsageError, match=r"r2 .*not defined for these 1 rows"),
    ):
        scores(regression, DIABETES_X[:1], DIABETES_Y[:1], ["r2"])


def test_a_metric_of_classes_is_none_of_numbers(regression):
    """Scikit-learn's own words, after ours."""
    with pytest.raises(UsageError, match=r"^f1 cannot be computed for LinearRegression: .*continuous"):
        scores(regression, DIABETES_X, DIABETES_Y, ["f1"])


# --- models of other frameworks ----------------------------------------------------------------------


class Predicts:
    """What every loaded MLflow model can do at least."""

    def __init__(self, output):
        self.output, self.asked = output, 0

    def predict(self, X):
        self.asked += 1
        return self.output


NAMES = ["accuracy", "f1", "roc_auc", "log_loss"]


def test_a_booster_gives_probabilities_of_two_classes():
    """By its own predict, on its own matrix."""
    booster = train({"objective": "binary:logistic"}, DMatrix(CANCER_X, CANCER_Y), 3)
    model = XGBClassifier()
    model._Booster, model.n_classes_ = booster, 2
    expected = scores(model, CANCER_X, CANCER_Y, NAMES)
    assert expected == pytest.approx(scores(booster, DMatrix(CANCER_X), CANCER_Y, NAMES))


def test_a_number_per_class_is_a_probability(three_classes):
    """Where the numbers of a row are none below 0 and 1 together."""
    expected = scores(three_classes, IRIS_X, IRIS_Y, NAMES)
    certain = three_classes.predict_proba(IRIS_X)
    assert expected == pytest.approx(scores(Predicts(certain), IRIS_X, IRIS_Y, NAMES))
    rows = IRIS_Y < 2
    expected = scores(three_classes, IRIS_X[rows], IRIS_Y[rows], ["f1", "log_loss"])
    assert expected == pytest.approx(
        scores(Predicts(certain[rows]), IRIS_X[rows], IRIS_Y[rows], ["f1", "log_loss"])
    )


def test_other_numbers_per_class_only_rank(three_classes):
    """The outputs of a network before its softmax."""
    logits = three_classes.decision_function(IRIS_X)
    expected = scores(three_classes, IRIS_X, IRIS_Y, ["accuracy"])
    assert expected == scores(Predicts(logits), IRIS_X, IRIS_Y, ["accuracy"])
    with pytest.raises(UsageError, match="log_loss cannot be computed for Predicts: it has no predict_proba"):
        scores(Predicts(logits), IRIS_X, IRIS_Y, ["log_loss"])


def test_one_number_per_row_ranks_two_classes(two_classes):
    """Above 0 is the greater class."""
    expected = scores(two_classes, CANCER_X, CANCER_Y, ["accuracy", "roc_auc"])
    margins = two_classes.decision_function(CANCER_X)[:, None]
    assert expected == pytest.approx(scores(Predicts(margins), CANCER_X, CANCER_Y, ["accuracy", "roc_auc"]))


def test_labels_stay_labels_and_numbers_numbers(three_classes):
    """An integer target is both: the metric decides."""
    labels = three_classes.predict(IRIS_X)
    found = scores(Predicts(labels), IRIS_X, IRIS_Y, ["f1", "rmse", "r2"])
    assert pytest.approx(metrics.f1_score(IRIS_Y, labels, average="weighted")) == found["f1"]
    assert pytest.approx(metrics.root_mean_squared_error(IRIS_Y, labels)) == found["rmse"]
    assert pytest.approx(metrics.r2_score(IRIS_Y, labels)) == found["r2"]


def test_numbers_that_fit_no_class_are_refused():
    """Rather than guessed at."""
    with pytest.raises(UsageError, match="one number a row, and the target has 3 classes"):
        scores(Predicts(np.linspace(0, 1, 150)), IRIS_X, IRIS_Y, ["f1"])
    with pytest.raises(UsageError, match="gives 2 numbers a row, and the target has 3 classes"):
        scores(Predicts(np.ones((150, 2))), IRIS_X, IRIS_Y, ["f1"])


# --- cost --------------------------------------------------------------------------------------------


class Counting(DummyClassifier):
    """Counts what it is asked."""

    asked: ClassVar[list[str]] = []

    def predict(self, X):
        self.asked.append("predict")
        return super().predict(X)

    def predict_proba(self, X):
        self.asked.append("predict_proba")
        return super().predict_proba(X)


def test_a_model_is_asked_once_per_kind_of_answer():
    """A large model takes minutes to answer."""
    model = Counting(strategy="constant", constant=1).fit(CANCER_X, CANCER_Y)
    model.asked.clear()
    scores(model, CANCER_X, CANCER_Y, ["accuracy", "f1", "precision", "log_loss", "brier_score"])
    assert ["predict", "predict_proba"] == sorted(model.asked)
    plain = Predicts(CANCER_Y.astype(float) * 0.8)
    scores(plain, CANCER_X, CANCER_Y, NAMES)
    assert 1 == plain.asked


# --- defaults and directions -------------------------------------------------------------------------


def test_defaults_can_be_given_by_every_model(two_classes, three_classes, regression):
    """By one without probabilities, too."""
    svc = LinearSVC().fit(IRIS_X, IRIS_Y)
    for model, X, y in ((svc, IRIS_X, IRIS_Y), (two_classes, CANCER_X, CANCER_Y)):
        assert (
            set(default_metrics("classification"))
            == scores(model, X, y, default_metrics("classification")).keys()
        )
    found = scores(regression, DIABETES_X, DIABETES_Y, default_metrics("regression"))
    assert set(default_metrics("regression")) == found.keys()
    with pytest.raises(
        ConfigError, match="task_type='ranking': expected one of 'classification', 'regression'"
    ):
        default_metrics("ranking")


@pytest.mark.parametrize(
    "name", ["f1", "r2_score", "roc_auc", "neg_log_loss", "neg_mean_squared_error", "val_f1"]
)
def test_of_these_more_is_better(name):
    """Every scorer of scikit-learn's, and what is logged around one."""
    assert is_greater_better(name)


@pytest.mark.parametrize(
    "name", ["rmse", "log_loss", "brier_score", "mape", "val_loss", "eval-logloss", "max_error"]
)
def test_of_these_less_is_better(name):
    """Errors as they are written."""
    assert not is_greater_better(name)


def test_every_direction_is_that_of_scikit_learn():
    """A scorer is never negative where its error is positive."""
    assert all(is_greater_better(name) for name in metrics.get_scorer_names())
    errors = [name[4:] for name in metrics.get_scorer_names() if name.startswith("neg_")]
    assert not any(is_greater_better(name) for name in errors)


# --- what a model says ---------------------------------------------------------------------------------


def test_an_estimator_says_what_its_methods_say(two_classes, three_classes, regression):
    """Of two classes, what ranks the rows is a number each."""
    found = answers(two_classes, CANCER_X, CANCER_Y, "classification")
    probable = two_classes.predict_proba(CANCER_X)
    assert [0, 1] == list(found.classes)
    assert (two_classes.predict(CANCER_X) == found.predicted).all()
    assert (probable == found.probable).all()
    assert (probable[:, 1] == found.certain).all()
    found = answers(three_classes, IRIS_X, IRIS_Y, "classification")
    assert (150, 3) == found.certain.shape == found.probable.shape
    found = answers(regression, DIABETES_X, DIABETES_Y, "regression")
    assert (regression.predict(DIABETES_X) == found.predicted).all()
    assert (None, None, None) == (found.classes, found.probable, found.certain)


def test_what_is_no_probability_still_ranks():
    """A margin; and where there is neither, nothing does."""
    model = LinearSVC().fit(CANCER_X, CANCER_Y)
    found = answers(model, CANCER_X, CANCER_Y, "classification")
    assert found.probable is None
    assert (model.decision_function(CANCER_X) == found.certain).all()

    class Labels:
        def predict(self, X):
            return np.ones(len(X), dtype=int)

    found = answers(Labels(), CANCER_X, CANCER_Y, "classification")
    assert (None, None, [0, 1]) == (found.probable, found.certain, list(found.classes))


def test_numbers_between_0_and_1_are_probabilities():
    """Of a model that has nothing but predict."""
    booster = train({"objective": "binary:logistic"}, DMatrix(CANCER_X, CANCER_Y), 3)

    class Loaded:
        def predict(self, X):
            return booster.predict(DMatrix(X))

    found = answers(Loaded(), CANCER_X, CANCER_Y, "classification")
    certain = booster.predict(DMatrix(CANCER_X))
    assert ((certain >= 0.5) == found.predicted).all()
    assert (certain == found.probable[:, 1]).all()
    assert (certain == found.certain).all()


def test_names_are_checked_without_a_model():
    """All of them, or the first that is unknown is told."""
    assert ["f1", "rmse"] == checked(["f1", "rmse"])
    with pytest.raises(ConfigError, match="metric 'rmsee' is unknown; near it are 'rmse'"):
        checked(["f1", "rmsee"])
