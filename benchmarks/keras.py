"""Does recording cost a Keras fit anything, beside MLflow's own callback? Interleaved pairs of fits.

Each fit with a recorder is held against one without, next to it, the order alternating; "off" against off
shows what the machine can resolve. Afterwards: what each recorder left in MLflow.

    python benchmarks/keras.py                      # 20 pairs of each
    python benchmarks/keras.py --pairs 2 --epochs 2 # a try

Work: an MLP 32-64-64-1 at batch 32, one torch thread; models are not logged, by either.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

# This file has the name of the package it measures, and its folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]
os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import mlflow
import mlflow.keras
import numpy as np
import torch

from mlpipeline.keras import MLflowCallback

ROWS = np.random.default_rng(7).normal(size=(4096, 32)).astype("float32")
TARGETS = ROWS.sum(1, keepdims=True)
RUNS = []


def model() -> keras.Model:
    """A compiled network."""
    layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((32,)), *layers])
    made.compile("adam", "mse", metrics=["mae"])
    return made


def fit(recorder: str, epochs: int) -> float:
    """Train once, and return the seconds it took, the opening and the end of a run included."""
    fresh = model()
    started_s = time.perf_counter()
    options = {"epochs": epochs, "batch_size": 32, "validation_split": 0.1, "verbose": 0}
    every = 1 if "steps" in recorder else None
    if recorder.startswith("ours"):
        callback = MLflowCallback(experiment_name=recorder, log_every_n_steps=every, log_model=False)
        fresh.fit(ROWS, TARGETS, callbacks=[callback], **options)
        RUNS.append(callback.run)
    elif recorder.startswith("mlflow"):
        mlflow.set_experiment(recorder)
        callback = mlflow.keras.MlflowCallback(log_every_epoch=every is None, log_every_n_steps=every)
        with mlflow.start_run():
            fresh.fit(ROWS, TARGETS, callbacks=[callback], **options)
    else:
        fresh.fit(ROWS, TARGETS, **options)
    return time.perf_counter() - started_s


def main() -> None:
    """Run the pairs and print a row per recorder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recorders = ["off", "ours", "ours steps", "mlflow", "mlflow steps"]
    folder = tempfile.mkdtemp(prefix="mlpipeline-bench-")
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": f"{folder}/home"}
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    ratios: dict[str, list[float]] = {name: [] for name in recorders}
    for name in recorders:
        fit(name, 1)  # imports, the store, the courier
    order = random.Random(7)
    for pair in range(options.pairs):
        for name in order.sample(recorders, len(recorders)):
            first = fit(name if pair % 2 else "off", options.epochs)
            second = fit("off" if pair % 2 else name, options.epochs)
            ratios[name].append(first / second if pair % 2 else second / first)
    print(f"{options.pairs} pairs of fits, {options.epochs} epochs each; seconds with over without")
    for name in recorders:
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        print(f"{name:14} {middle:6.3f}  [{low:.3f}, {high:.3f}]")
    with contextlib.redirect_stderr(io.StringIO()):  # the line of each run
        for run in RUNS:
            run.settle(insist_s=120)
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    for name in recorders[1:]:
        experiment = client.get_experiment_by_name(name)
        run = client.search_runs([experiment.experiment_id], max_results=1)[0]
        points = sum(len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics)
        print(f"{name:14} {len(run.data.params)} params, {points} points: {' '.join(run.data.metrics)}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
