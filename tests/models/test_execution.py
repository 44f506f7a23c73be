"""What every component answers, whatever became of its work."""

from __future__ import annotations

import logging

import pytest

from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import (
    MLflowIntegratedEvaluator,
    MLflowIntegratedHyperparameterTrainer,
    MLflowIntegratedTrainer,
)

OF_RUN = {"mlflow_run_id", "mlflow_experiment_id", "mlflow_tracking_uri", "mlflow_is_delivered"}
OF_TRAINING = {*OF_RUN, "mlflow_model_uri", "mlflow_model_version"}
DOCUMENTED = {
    MLflowIntegratedTrainer: OF_TRAINING,
    MLflowIntegratedEvaluator: {
        *OF_RUN,
        *("evaluated_model_uri", "evaluated_run_id", "evaluated_on", "evaluated_rows", "thresholds"),
    },
    MLflowIntegratedHyperparameterTrainer: {
        *OF_TRAINING,
        *("mlflow_parent_run_id", "mlflow_child_runs", "best_hyperparameters", "best_value", "best_trial"),
        *("metric", "n_trials", "study_name", "is_refit"),
    },
}
TREE = {"model_type": "decision_tree_classifier"}
SEARCH = {
    "n_trials": 1,
    "cv_folds": 2,
    "parameter_space": {"max_depth": {"type": "int", "low": 1, "high": 2}},
}
WHOLE = {
    "mlflow": {"enabled": False},
    "data": {"dataset": "iris"},
    "training": {"model": TREE, "hyperparameter_optimization": SEARCH},
    "evaluation": {"plots": False, "report": False},
}


def context_of(**sections):
    config = {**WHOLE, **sections}
    return ExecutionContext("a", "b", ComponentType.MODEL_TRAINING, config, "out", logging.getLogger())


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_what_is_no_context_is_an_answer_too(kind):
    """It names what is taken; nothing is raised."""
    result = kind().execute({})
    assert "execute takes an ExecutionContext, and got dict" in result.error_message
    assert (False, UsageError) == (result.success, type(result.exception))
    assert DOCUMENTED[kind] == set(result.metadata)


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_every_documented_fact_is_there_before_a_run_is(kind):
    """None where it is not known, and nothing where there is nothing."""
    result = kind().execute(context_of(training={"model": 5}))
    assert isinstance(result.exception, ConfigError)
    assert DOCUMENTED[kind] == set(result.metadata)
    assert not any(result.metadata.values())


@pytest.mark.parametrize("is_searched", [True, False])
def test_every_documented_fact_is_there_without_mlflow(is_searched):
    """Of a training, an evaluation of what it left, and a search that is switched on or off."""
    search = {**SEARCH, "enabled": is_searched}
    context = context_of(training={"model": TREE, "hyperparameter_optimization": search})
    for kind, documented in DOCUMENTED.items():
        result = kind().execute(context)
        assert None is result.error_message
        assert documented == set(result.metadata)
        assert (None, None) == (result.metadata["mlflow_run_id"], result.metadata["mlflow_tracking_uri"])
