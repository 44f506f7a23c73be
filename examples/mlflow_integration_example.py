"""The whole of it, in five parts: tracking, a training, a search, the registry, a comparison.

python examples/mlflow_integration_example.py

Everything lands in ``mlflow.db`` in the working directory, or where ``MLFLOW_TRACKING_URI`` says.
"""

from __future__ import annotations

from pathlib import Path

from mlpipeline import ModelRegistry
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import (
    MLflowConfig,
    MLflowIntegratedEvaluator,
    MLflowIntegratedHyperparameterTrainer,
    MLflowIntegratedTrainer,
    MLflowTracker,
)

MODEL = "tumour-classifier"
CONFIG = MLflowConfig(experiment_name="tumours", register_model=True, model_name=MODEL)
DATA = {"dataset": "breast_cancer", "seed": 7}


def context_of(component, kind, **sections):
    """Return what a pipeline hands to a component."""
    return ExecutionContext("example", str(kind), kind, {"data": DATA, **sections}, "build", component.logger)


def track():
    """Log params, metrics, a text and tags by hand."""
    tracker = MLflowTracker(CONFIG)
    run_id = tracker.start_run(run_name="by hand", tags={"model_type": "baseline"})
    tracker.log_params({"strategy": "most frequent"})
    for step in range(5):
        tracker.log_metrics({"accuracy": 0.6 + step / 100}, step=step)
    tracker.log_text("Always says benign.", "notes.txt")
    tracker.end_run()
    return run_id


def train():
    """Train a model described by a configuration, and evaluate it with thresholds."""
    trainer = MLflowIntegratedTrainer(CONFIG)
    model = {"model_type": "random_forest_classifier", "parameters": {"n_estimators": 50, "random_state": 0}}
    kind = ComponentType.MODEL_TRAINING
    result = trainer.execute(context_of(trainer, kind, training={"model": model}))
    assert result.success, result.error_message
    print(f"trained: {result.metrics['test_accuracy_score']:.3f}, run {result.metadata['mlflow_run_id']}")

    evaluator = MLflowIntegratedEvaluator(CONFIG)
    wanted = {"metrics": ["accuracy", "f1_score", "roc_auc"], "thresholds": {"f1_score": 0.9}}
    found = evaluator.execute(context_of(evaluator, ComponentType.MODEL_EVALUATION, evaluation=wanted))
    assert found.success, found.error_message
    print(
        f"evaluated: {found.metrics}; the report is {[path for path in found.artifacts if 'report' in path]}"
    )
    return result


def search():
    """Search for better hyperparameters, and register the best model."""
    tuner = MLflowIntegratedHyperparameterTrainer(CONFIG)
    training = {
        "model": {"model_type": "random_forest_classifier", "parameters": {"random_state": 0}},
        "hyperparameter_optimization": {
            "n_trials": 5,
            "cv_folds": 3,
            "metric": "f1_score",
            "parameter_space": {
                "n_estimators": {"type": "int", "low": 20, "high": 100},
                "max_features": {"type": "categorical", "choices": ["sqrt", "log2", None]},
            },
        },
    }
    kind = ComponentType.HYPERPARAMETER_TUNING
    result = tuner.execute(context_of(tuner, kind, training=training))
    assert result.success, result.error_message
    best, trials = result.metadata["best_hyperparameters"], result.metadata["mlflow_child_runs"]
    print(f"searched: {best} of {len(trials)} trials")
    return result


def promote(first, second):
    """Make the first model the champion, and the second one if it is better."""
    registry = ModelRegistry(CONFIG)
    registry.promote(MODEL, first.metadata["mlflow_model_version"], "champion")
    verdict = registry.promote(
        MODEL, second.metadata["mlflow_model_version"], "champion", if_better="test_f1_score"
    )
    print(f"promoted: {verdict.promoted}, because {verdict.reason}")
    for version in registry.history(MODEL):
        print(f"  version {version.version}: {', '.join(version.aliases) or '-'}")


def compare():
    """Compare what was trained, the best first."""
    tracker = MLflowTracker(CONFIG)
    best = tracker.search_runs("metrics.test_f1_score > 0", order_by=["metrics.test_f1_score DESC"])
    table = tracker.compare_runs([run.run_id for run in best])
    print(table[["run_name", "status", "duration_s", "test_f1_score", "test_roc_auc"]].to_string())


def main() -> None:
    """All five."""
    Path("build").mkdir(exist_ok=True)
    print(f"tracked: run {track()}")
    first = train()
    second = search()
    promote(first, second)
    compare()


if __name__ == "__main__":
    main()
