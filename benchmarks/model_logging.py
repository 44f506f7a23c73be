"""How long does logging a scikit-learn model take, in the training process and until MLflow has it?

    python benchmarks/model_logging.py

Interleaved: ours, then ``mlflow.sklearn.log_model`` with its defaults, on the same fitted model and the
same migrated SQLite store, each with its flavor imported before. A random forest is refused by MLflow's
default serialization; that is printed as what it says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import mlflow
import mlflow.sklearn
from figures import Figures
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run

ROUNDS = 3


def main() -> None:
    """Print a row per model and way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=lambda path: Path(path).resolve(), help="also write the figures here")
    options = parser.parse_args()
    figures = Figures()
    warnings.filterwarnings("ignore")
    folder = Path(tempfile.mkdtemp(prefix="mlpipeline-bench-"))
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
    os.chdir(folder)
    store = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("peer")
    X, y = load_digits(return_X_y=True)
    models = {
        "scaler+logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, y),
        "random forest": RandomForestClassifier(100).fit(X, y),
    }
    config = MLflowConfig(tracking_uri=store, experiment_name="ours")
    with open_run(config) as run:  # the courier is up, and the flavor imported
        run.log_model(models["scaler+logistic"], input_example=X[:5])
        run.wait(insist_s=60)
    print(f"{'model':18} {'way':34} seconds, median [min, max] of {ROUNDS}")
    for name, model in models.items():
        returned, delivered, peer = [], [], []
        refusal = ""
        for _ in range(ROUNDS):
            run = open_run(config)
            run.wait(insist_s=30)
            began = time.perf_counter()
            run.log_model(model, input_example=X[:5])
            returned.append(time.perf_counter() - began)
            run.end()
            run.wait(insist_s=60)
            delivered.append(time.perf_counter() - began)
            with mlflow.start_run():
                began = time.perf_counter()
                try:
                    mlflow.sklearn.log_model(model, name="model")
                except mlflow.exceptions.MlflowException as error:
                    refusal = str(error).splitlines()[0][:80]
                peer.append(time.perf_counter() - began)
        show(figures, name, "ours, call returns", returned)
        show(figures, name, "ours, in MLflow and run ended", delivered)
        show(figures, name, "mlflow.sklearn.log_model, default", peer, refusal and f"refused: {refusal}")

    figures.write(options.json, "model_logging")


def show(figures: Figures, model: str, way: str, seconds: list[float], note: str = "") -> None:
    """Print one row."""
    middle = statistics.median(seconds)
    figures.add(f"{model}, {way}", "seconds", seconds)
    print(f"{model:18} {way:34} {middle:.3f} [{min(seconds):.3f}, {max(seconds):.3f}] {note}")


if __name__ == "__main__":
    main()
