"""One table over what the examples have recorded: the newest run of each, a row per framework.

python examples/overview.py
"""

from __future__ import annotations

import pandas as pd
from mlflow import MlflowClient

STORE = "sqlite:///mlflow.db"
FRAMEWORKS = {
    "digits": "Lightning",
    "breast-cancer": "XGBoost",
    "wine-search": "Optuna",
    "penguins": "scikit-learn",
    "wine": "Keras",
    "diabetes": "PyTorch",
    "tumours": "pipeline",
}


def main() -> None:
    """Print it."""
    client = MlflowClient(STORE, STORE)
    versions = {
        version.run_id: f"{version.name} v{version.version}" for version in client.search_model_versions()
    }
    rows = []
    place = [*FRAMEWORKS].index
    known = [one for one in client.search_experiments() if one.name in FRAMEWORKS]
    for experiment in sorted(known, key=lambda one: place(one.name)):
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        root = next((run for run in runs if "mlflow.parentRunId" not in run.data.tags), None)
        if root is None:
            continue
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == root.info.run_id]
        points = sum(len(client.get_metric_history(root.info.run_id, name)) for name in root.data.metrics)
        rows.append(
            {
                "framework": FRAMEWORKS[experiment.name],
                "experiment": experiment.name,
                "status": root.info.status,
                "params": len(root.data.params),
                "metrics": len(root.data.metrics),
                "points": points,
                "children": len(children),
                "datasets": len(root.inputs.dataset_inputs),
                "registered": versions.get(root.info.run_id, ""),
            }
        )
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
