"""Models by name: scikit-learn's own listing, XGBoost's, ours, the user's."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.utils import all_estimators

from mlpipeline.core.errors import ConfigError
from mlpipeline.models.estimators import kind_of, known_names, known_parameters, make
from mlpipeline.models.settings import ModelSection


def made(**given):
    section = ModelSection.model_validate(given)
    return make(section, kind_of(section, None))


@pytest.mark.needs("scikit-learn>=1.7")
def test_every_classifier_and_regressor_of_scikit_learn_has_a_name():
    """Those that are made around others, too: what they need is among the parameters, as a mapping."""
    tree = {"model_type": "decision_tree_classifier"}
    needed = {"estimator": tree, "estimators": [["a", tree]]}

    def made_of(name):
        known = known_parameters(kind_of(ModelSection(model_type=name), None))
        around = {key: value for key, value in needed.items() if key in known}
        return type(made(model_type=name, parameters=around))

    every = {kind for _, kind in all_estimators(type_filter=["classifier", "regressor"])}
    assert every == {made_of(name) for name in known_names("sklearn")}
    assert len(every) > 80


def test_a_usual_name_is_found_without_all_of_scikit_learn():
    """To list its models it imports its every module, and PyTorch with one of them."""
    program = (
        "import sys; from mlpipeline.models.estimators import kind_of; "
        "from mlpipeline.models.settings import ModelSection; "
        "print(kind_of(ModelSection(model_type='RandomForestClassifier'), None).name, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "random_forest_classifier False" == done.stdout.strip()


def test_models_among_the_parameters_are_made():
    """In lists of names and models, and of other frameworks; as deep as they stand."""
    found = made(
        model_type="stacking_classifier",
        parameters={
            "estimators": [
                ["trees", {"framework": "xgboost", "model_type": "xgb", "parameters": {"n_estimators": 2}}],
                [
                    "pairs",
                    {
                        "model_type": "one_vs_rest_classifier",
                        "parameters": {"estimator": {"model_type": "svc"}},
                    },
                ],
            ],
            "final_estimator": {"model_type": "logistic_regression", "parameters": {"C": 0.5}},
        },
    )
    (_, trees), (_, pairs) = found.estimators
    assert ("XGBClassifier", 2) == (type(trees).__name__, trees.n_estimators)
    assert ("SVC", 0.5) == (type(pairs.estimator).__name__, found.final_estimator.C)
    X, y = load_iris(return_X_y=True)
    assert 0.9 < clone(found).fit(X, y).score(X, y)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("random_forest_classifier", "RandomForestClassifier"),
        ("RandomForestClassifier", "RandomForestClassifier"),
        ("svc", "SVC"),
        ("hist_gradient_boosting_regressor", "HistGradientBoostingRegressor"),
        ("k_neighbors_classifier", "KNeighborsClassifier"),
        ("kneighbors_classifier", "KNeighborsClassifier"),
        ("sklearn.ensemble.VotingClassifier", None),
        ("sklearn.linear_model.Ridge", "Ridge"),
    ],
)
def test_names_are_found_however_they_are_spelled(name, kind):
    """Snake case, the class's own name, a dotted path; one that needs another estimator says so."""
    if kind is None:
        with pytest.raises(ConfigError, match=r"VotingClassifier refuses \{\}: .*'estimators'"):
            made(model_type=name)
    else:
        assert kind == type(made(model_type=name)).__name__


@pytest.mark.parametrize(
    ("given", "classifies"),
    [
        ({"framework": "xgboost"}, True),
        ({"framework": "xgboost", "task_type": "regression"}, False),
        ({"framework": "xgboost", "model_type": "xgb_regressor"}, False),
        ({"framework": "pytorch", "task_type": "regression"}, False),
        ({"framework": "pytorch", "model_type": "mlp"}, True),
        ({"task_type": "regression"}, False),
    ],
)
def test_a_framework_has_its_usual_model_of_a_task(given, classifies):
    """A classifier where nothing says otherwise."""
    found = made(**given)
    assert (classifies, not classifies) == (is_classifier(found), is_regressor(found))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model_type": "random_forest_clasifier"}, "did you mean 'random_forest_classifier'?"),
        ({"framework": "xgboost", "model_type": "xgb_clasifier"}, "there are xgb_classifier, xgb_regressor"),
        ({"model_type": "no_package.Model"}, "'no_package.Model' cannot be imported (No module named"),
        ({"model_type": "json.dumps", "framework": "custom"}, "json.dumps refuses {}: dumps() missing 1"),
        ({"model_type": "json.JSONDecoder"}, "json.JSONDecoder has no fit and predict; it is no model"),
        ({"framework": "custom"}, "framework custom needs a dotted path"),
        (
            {"model_type": "svr", "task_type": "classification"},
            "svr is for regression, and task_type is classific",
        ),
        (
            {"model_type": "random_forest_regressor", "task_type": "classification"},
            "write model_type: random_forest_classifier, or task_type: regression",
        ),
        ({"parameters": {"n_estimator": 5}}, "has no parameter 'n_estimator'; did you mean 'n_estimators'?"),
        (
            {"model_type": "voting_regressor", "parameters": {"estimators": [["a", {"model_type": "svm"}]]}},
            "training.model.parameters.estimators.0.1.model_type: sklearn has no 'svm'",
        ),
        (
            {
                "model_type": "one_vs_rest_classifier",
                "parameters": {"estimator": {"model_type": "svc", "C": 1}},
            },
            "C: no such option",
        ),
        ({"framework": "xgboost", "parameters": {"max_dept": 5}}, "did you mean 'max_depth'?"),
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(given, told):
    """Of the framework that was named."""
    with pytest.raises(ConfigError) as refusal:
        made(**given)
    assert told in str(refusal.value)


@pytest.mark.parametrize("code", ["def (", "unknown", "raise LookupError('no such key')"])
def test_a_module_that_cannot_be_imported_is_told_with_its_own_error(tmp_path, monkeypatch, code):
    """Whatever it raises."""
    (tmp_path / "broken_model.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"'broken_model.Mine' cannot be imported \(\w+Error: ") as refusal:
        made(framework="custom", model_type="broken_model.Mine")
    assert type(refusal.value.__cause__).__name__ in str(refusal.value)


def test_a_class_of_the_users_own_is_found_in_the_working_directory(tmp_path, monkeypatch):
    """By its dotted path, as a pipeline's own code would be."""
    (tmp_path / "house_model.py").write_text(
        "from sklearn.dummy import DummyRegressor\nclass Mine(DummyRegressor):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = made(framework="custom", model_type="house_model.Mine", parameters={"strategy": "median"})
    assert ("Mine", "median") == (type(found).__name__, found.strategy)
    sys.modules.pop("house_model")
