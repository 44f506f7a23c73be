"""What does recording an XGBoost training cost, with autolog and with us?

Each training with a recorder is held against one without, right before or after it in the same process,
in alternating order. `none` against itself shows what the machine can resolve.

    python benchmarks/xgboost.py                        # the ratios; the records: side_by_side.py
    python benchmarks/xgboost.py --pairs 1 --rounds 20  # a try
    python benchmarks/xgboost.py --times 1              # the lightest work: a round takes 0.7 ms

Work: breast cancer data (569 x 30) ten times over, jittered, so that a round takes some 3 ms; 500 rounds of depth 6,
two eval sets with three metrics each, one thread.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

# This file has the name of the package it measures, and its folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow
import mlflow.xgboost
import numpy as np
import xgboost as xgb
from figures import Figures, Stopwatch
from sklearn.datasets import load_breast_cancer

from mlpipeline import MLflowConfig
from mlpipeline.xgboost import MLflowCallback

PARAMS = {
    "objective": "binary:logistic",
    "eval_metric": ["logloss", "auc", "error"],
    "max_depth": 6,
    "eta": 0.05,
    "nthread": 1,
}
# Autolog patches the module; the others are not to go through its wrapper.
PLAIN_TRAIN = xgb.train


class Appending(xgb.callback.TrainingCallback):
    """The least that a callback can do with the values: XGBoost's own price of calling one."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def after_iteration(self, model, epoch, evals_log) -> bool:
        """Keep the last value of each metric."""
        self.rows.append({f"{d}-{m}": v[-1] for d, metrics in evals_log.items() for m, v in metrics.items()})
        return False


class Work:
    """The data, and one training on it."""

    def __init__(self, rounds: int, times: int) -> None:
        X, y = load_breast_cancer(return_X_y=True)
        X, y = np.tile(X, (times, 1)), np.tile(y, times)
        X = X * np.random.default_rng(7).normal(1, 0.1, X.shape)
        split = len(X) * 7 // 10
        self.train = xgb.QuantileDMatrix(X[:split], y[:split])
        self.valid = xgb.DMatrix(X[split:], y[split:])
        self.rounds = rounds

    def __call__(self, train, callbacks=(), **options) -> tuple[float, float]:
        """Train and return the seconds, and those of the processor."""
        evals = [(self.train, "train"), (self.valid, "valid")]
        watch = Stopwatch()
        train(
            PARAMS,
            self.train,
            self.rounds,
            evals=evals,
            callbacks=list(callbacks),
            verbose_eval=False,
            **options,
        )
        return watch.read()


def recorders(work: Work, config: MLflowConfig):
    """Return, per name, a function that trains once with that recorder and tells what `Work` tells."""

    def ours() -> tuple[float, float]:
        callback = MLflowCallback(config, log_model=False)
        seconds = work(PLAIN_TRAIN, [callback])
        callback.run.settle(insist_s=120)  # or the next training would share the machine with the courier
        return seconds

    def autolog() -> tuple[float, float]:
        mlflow.xgboost.autolog(log_models=False, silent=True)
        seconds = work(xgb.train)
        mlflow.xgboost.autolog(disable=True, silent=True)
        return seconds

    return {
        "none": lambda: work(PLAIN_TRAIN),
        "append": lambda: work(PLAIN_TRAIN, [Appending()]),
        "ours": ours,
        "autolog": autolog,
    }


def measure(trainings, pairs: int, seed: int) -> dict[str, list[tuple[float, float]]]:
    """Return, per recorder, the ratios of wall and processor time within each pair."""
    order = random.Random(seed)
    for train in trainings.values():
        train()  # imports, caches, the experiment
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in trainings}
    for number in range(pairs):
        for name in order.sample(list(trainings), len(trainings)):
            if number % 2:
                base, seconds = trainings["none"](), trainings[name]()
            else:
                seconds, base = trainings[name](), trainings["none"]()
            ratios[name].append((seconds[0] / base[0], seconds[1] / base[1]))
    return ratios


def main() -> None:
    """Measure, and print a row per recorder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20, help="pairs per recorder")
    parser.add_argument("--rounds", type=int, default=500, help="boosting rounds")
    parser.add_argument("--times", type=int, default=10, help="how often the data is repeated")
    parser.add_argument("--only", nargs="*", default=["append", "ours", "autolog"], help="recorders")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="mlpipeline-bench-", ignore_cleanup_errors=True) as folder:
        os.environ["MLPIPELINE_HOME"] = f"{folder}/home"
        store = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(store)
        mlflow.create_experiment("bench", artifact_location=f"{folder}/artifacts")
        mlflow.set_experiment("bench")
        config = MLflowConfig(tracking_uri=store, experiment_name="bench")
        work = Work(options.rounds, options.times)
        every = recorders(work, config)
        ratios = measure({name: every[name] for name in ["none", *options.only]}, options.pairs, options.seed)
        print(f"{options.rounds} rounds, 6 metrics, {options.pairs} pairs; wall ratio to no recorder")
        print(f"{'recorder':12}{'median':>8}  quartiles")
        figures = Figures()
        for name, pairs in ratios.items():
            found, cpu = map(list, zip(*pairs))
            low, middle, high = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
            figures.add(name, "ratio to none", found, cpu)
            print(f"{name:12}{middle:8.3f}  [{low:.3f}, {high:.3f}]  CPU {statistics.median(cpu):.3f}")
        figures.write(options.json, "xgboost")


if __name__ == "__main__":
    main()
