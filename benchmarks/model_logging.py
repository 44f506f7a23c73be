"""How long does logging a scikit-learn model take, in the training process and until MLflow has it?

    python benchmarks/model_logging.py

Interleaved: ours, then ``mlflow.sklearn.log_model`` with its defaults, on the same fitted model and the
same migrated SQLite store, then the same server, each with its flavor imported before; what that import costs
stands for itself. A random forest is refused by MLflow's
default serialization; that is printed as what it says.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import mlflow
import mlflow.sklearn
from figures import Figures, Stopwatch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlpipeline import MLflowConfig
from mlpipeline.testing.places import serving
from mlpipeline.tracking.opening import open_run

ROUNDS = 5


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
    X, y = load_digits(return_X_y=True)
    models = {
        "scaler+logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(X, y),
        "random forest": RandomForestClassifier(100).fit(X, y),
    }
    import_flavors(figures)
    import_beside(figures)
    print(f"{'model':18} {'way':42} seconds, median [min, max] of {ROUNDS}")
    log_models(figures, models, X[:5], f"sqlite:///{folder}/mlflow.db", "in MLflow", "default")
    with serving(folder, f"sqlite:///{folder}/server.db") as server:
        log_models(figures, models, X[:5], server.uri, "on a server", "on a server")
    figures.write(options.json, "model_logging")


def log_models(figures: Figures, models, example, store: str, arrived: str, peers: str) -> None:
    """Log each model in both ways, in turn."""
    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("peer")
    config = MLflowConfig(tracking_uri=store, experiment_name="ours")
    with open_run(config) as run:  # the courier is up, and the flavor imported
        run.log_model(models["scaler+logistic"], input_example=example)
        run.wait(insist_s=60)
    for name, model in models.items():
        returned, delivered, peer = [], [], []
        refusal = ""
        for _ in range(ROUNDS):
            run = open_run(config)
            run.wait(insist_s=30)
            watch = Stopwatch()
            run.log_model(model, input_example=example)
            returned.append(watch.read())
            run.end()
            run.wait(insist_s=60)
            delivered.append(watch.read())
            with mlflow.start_run():
                watch = Stopwatch()
                try:
                    mlflow.sklearn.log_model(model, name="model")
                except mlflow.exceptions.MlflowException as error:
                    refusal = str(error).splitlines()[0][:80]
                peer.append(watch.read())
        if arrived == "in MLflow":
            show(figures, name, "ours, call returns", returned)
        show(figures, name, f"ours, {arrived} and run ended", delivered)
        show(figures, name, f"mlflow.sklearn.log_model, {peers}", peer, refusal and f"refused: {refusal}")


def import_flavors(figures: Figures) -> None:
    """Measure what the first model of a process imports, once MLflow's callers have their framework."""
    # skops lists all of scikit-learn's classes, and imports its every module for that; PyTorch, too, where it is.
    flavors = {"sklearn": "sklearn.pipeline", "xgboost": "xgboost", "pytorch": "torch"}
    for flavor, framework in flavors.items():
        more = ", skops.io" if flavor == "sklearn" else ""
        program = (
            f"import time, {framework}, mlpipeline; began = time.process_time(); import mlflow.{flavor}{more}; "
            "print(time.process_time() - began)"
        )
        command = [sys.executable, "-c", program]
        found = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            for _ in range(ROUNDS + 1)
        ][1:]
        figures.add(f"import mlflow.{flavor}", "CPU seconds", found)
        print(f"import mlflow.{flavor}: {statistics.median(found):.2f} CPU-s, once a process")


BESIDE = """
import os, sys, threading, time
{setup}

def train():
{train}

def load():
    import mlflow.{flavor}

train()
began = time.perf_counter()
train()
alone = time.perf_counter() - began
began = time.perf_counter()
thread = threading.Thread(target=load)
thread.start()
train()
beside = time.perf_counter() - began
thread.join()
print(beside - alone)
"""
TRAININGS = {
    "pytorch": (
        (
            "import torch; torch.set_num_threads(1); layers = [torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)]\n"
            "net = torch.nn.Sequential(*layers); adam = torch.optim.Adam(net.parameters()); x = torch.randn(32, 32)"
        ),
        "    for _ in range(15_000):\n        adam.zero_grad(); net(x).square().mean().backward(); adam.step()",
    ),
    "xgboost": (
        (
            "import numpy, xgboost; X = numpy.random.default_rng(1).normal(size=(20_000, 30)); y = X[:, 0] > 0\n"
            "data = xgboost.DMatrix(X, y)"
        ),
        "    xgboost.train({'nthread': os.cpu_count()}, data, 300, evals=[(data, 'train')], verbose_eval=False)",
    ),
}


def import_beside(figures: Figures) -> None:
    """Measure what it would cost a training if its flavor were imported meanwhile, in a thread, not after it."""
    for flavor, (setup, train) in TRAININGS.items():
        command = [sys.executable, "-c", BESIDE.format(setup=setup, train=train, flavor=flavor)]
        found = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
            for _ in range(ROUNDS)
        ]
        figures.add(f"import mlflow.{flavor} in a thread", "seconds more for the training beside", found)
        print(
            f"import mlflow.{flavor} in a thread: {statistics.median(found):.2f} s more for the training beside it"
        )


def show(figures: Figures, model: str, way: str, took: list[tuple[float, float]], note: str = "") -> None:
    """Print one row."""
    seconds, cpu = map(list, zip(*took))
    middle = statistics.median(seconds)
    figures.add(f"{model}, {way}", "seconds", seconds, cpu)
    print(f"{model:18} {way:42} {middle:.3f} [{min(seconds):.3f}, {max(seconds):.3f}] {note}")


if __name__ == "__main__":
    main()
