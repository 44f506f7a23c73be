"""What does an evaluation cost, and what is in MLflow afterwards: mlflow.models.evaluate, and ours?

    python benchmarks/evaluation.py               # 5 rounds
    python benchmarks/evaluation.py --rounds 1    # does it run?

One forest, trained once, and the same rows held back. Per round both evaluate it in an order drawn anew, each
into a run of its own on SQLite; the first round warms up (imports, fonts) and does not count. Ours waits until
everything is in MLflow, as a pipeline's stage does.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import tempfile
import time
import warnings

import mlflow
import pandas as pd
from mlflow import MlflowClient

from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import MLflowIntegratedEvaluator, MLflowIntegratedTrainer

DATA = {"dataset": "breast_cancer", "seed": 7}
MODEL = {"model_type": "random_forest_classifier", "parameters": {"n_estimators": 50, "random_state": 0}}


def context_of(component, kind):
    """Return what a stage is given."""
    config = {"data": DATA, "training": {"model": MODEL}}
    return ExecutionContext("benchmark", str(kind), kind, config, "build", component.logger)


def trained(config):
    """Train the model, and return its URI and the rows held back."""
    from mlpipeline.models.data import load
    from mlpipeline.models.settings import DataSection

    trainer = MLflowIntegratedTrainer(config)
    result = trainer.execute(context_of(trainer, ComponentType.MODEL_TRAINING))
    test = load(DataSection(**DATA), ".", "target").test
    return result.metadata["mlflow_model_uri"], test.X.assign(target=test.y)


def theirs(uri, rows):
    """MLflow's own evaluation."""
    with mlflow.start_run() as run:
        mlflow.models.evaluate(uri, rows, targets="target", model_type="classifier")
    return run.info.run_id


def ours(uri, rows):
    """Ours."""
    evaluator = MLflowIntegratedEvaluator({"experiment_name": "ours", "delivery": "thread"})
    result = evaluator.execute(context_of(evaluator, ComponentType.MODEL_EVALUATION))
    assert result.success, result.error_message
    return result.metadata["mlflow_run_id"]


def contents(client, run_id):
    """Return what a run has."""
    run = client.get_run(run_id)
    files, folders = [], [""]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            (folders if item.is_dir else files).append(item.path)
    models = run.inputs.model_inputs if run.inputs else []
    return {
        "metrics": len(run.data.metrics),
        "files": len(files),
        "datasets": len(run.inputs.dataset_inputs),
        "linked model": len(models),
        "report": any(path.endswith(".html") for path in files),
    }


def main() -> None:
    """Measure, look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    ways = {"mlflow.models.evaluate": theirs, "MLflowIntegratedEvaluator": ours}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        os.environ |= {"MLFLOW_TRACKING_URI": uri, "MLPIPELINE_HOME": f"{folder}/home"}
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("theirs")
        model, rows = trained({"experiment_name": "ours", "delivery": "thread"})
        order, seconds, found = random.Random(options.seed), {way: [] for way in ways}, {}
        for number in range(options.rounds + 1):
            for way in order.sample(list(ways), len(ways)):
                began_s = time.perf_counter()
                run_id = ways[way](model, rows)
                if number:
                    seconds[way].append(time.perf_counter() - began_s)
                found[way] = contents(MlflowClient(uri), run_id)
        table = pd.DataFrame(found).T
        table.insert(0, "seconds", [statistics.median(seconds[way]) for way in table.index])
        print(table.to_string())


if __name__ == "__main__":
    main()
