"""What does recording cost a scikit-learn fit and a search? What is in MLflow afterwards: side_by_side.py.

    python benchmarks/sklearn.py                # both, 7 rounds
    python benchmarks/sklearn.py --rounds 1     # does it run?

Per round, plain (twice: their spread is what the machine can resolve), ours and autolog take turns in one
process, in an order drawn anew; the first round warms up (MLflow's import, stores, workers) and does not
count. Ours delivers to SQLite meanwhile, autolog writes to it itself.

Work: a forest of 50 trees on digits, with its model; a grid of 50 candidates of an SVC, three folds each.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

# This file has the name of the package it measures, and its folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import mlflow
import numpy as np
from figures import Figures, Stopwatch
from joblib.externals.loky import get_reusable_executor
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from mlpipeline.sklearn import MLflowEstimator

DIGITS, DIGIT = load_digits(return_X_y=True)


def forest():
    """Return what is fitted, and on what."""
    return RandomForestClassifier(50, random_state=0), DIGITS, DIGIT


def grid():
    """Return a search of 50 candidates, and what it is fitted on."""
    space = {"C": list(np.logspace(-2, 2, 10)), "gamma": [1e-4, 3e-4, 1e-3, 2e-3, 3e-3]}
    return GridSearchCV(SVC(), space, cv=3, n_jobs=2), DIGITS[:1000], DIGIT[:1000]


def plain(make, name):
    """Fit, and record nothing."""
    estimator, X, y = make()
    estimator.fit(X, y)


def ours(make, name):
    """Fit inside the wrapper."""
    estimator, X, y = make()
    MLflowEstimator(estimator, {"tracking_uri": os.environ["STORE"], "experiment_name": f"{name} ours"}).fit(
        X, y
    )


def autolog(make, name):
    """Fit under mlflow.sklearn.autolog, every candidate as a child."""
    estimator, X, y = make()
    mlflow.set_tracking_uri(os.environ["STORE"])
    mlflow.set_experiment(f"{name} autolog")
    mlflow.sklearn.autolog(max_tuning_runs=None, silent=True)
    try:
        estimator.fit(X, y)
    finally:
        mlflow.sklearn.autolog(disable=True, silent=True)
        mlflow.end_run()
        mlflow.set_tracking_uri(None)


WAYS = {"plain": plain, "again": plain, "ours": ours, "autolog": autolog}


def measured(
    make, name: str, rounds: int, seed: int, ways: list[str]
) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each way, and those of this process's processor, round by round, without the first."""
    order, times = random.Random(seed), {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in order.sample(ways, len(ways)):
            watch = Stopwatch()
            WAYS[way](make, name)
            if number:
                times[way].append(watch.read())
            deliver(
                Path(os.environ["MLPIPELINE_HOME"])
            )  # or the next would share the machine with the courier
    return times


def show_times(name: str, times: dict[str, list[tuple[float, float]]], figures: Figures) -> None:
    """Print medians and quartiles of seconds, and of ratio and difference to plain, pair by pair."""
    print(f"\n{name}: seconds, ratio to plain, seconds more than plain; median [quartiles]")
    for way, took in times.items():
        pairs = list(zip(took, times["plain"]))
        ratios, more = [a[0] / b[0] for a, b in pairs], [a[0] - b[0] for a, b in pairs]
        cpu_ratios, cpu_more = [a[1] / b[1] for a, b in pairs], [a[1] - b[1] for a, b in pairs]
        # A grid is fitted in other processes, and what they compute is not seen here.
        figures.add(f"{name}, {way}", "ratio to plain", ratios, cpu_ratios if name == "forest" else None)
        figures.add(f"{name}, {way}", "seconds more than plain", more, cpu_more)
        print(f"  {way:8} {spread([wall for wall, _ in took]):24} {spread(ratios):24} {spread(more):24}")


def spread(values: list[float]) -> str:
    """Return the median and the quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measure, deliver, look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--only", choices=["forest", "grid"])
    parser.add_argument("--json", type=lambda path: Path(path).resolve(), help="also write the figures here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        os.environ["STORE"] = f"sqlite:///{folder}/mlflow.db"
        os.environ["MLPIPELINE_HOME"] = f"{folder}/home"
        MlflowClient(os.environ["STORE"]).search_experiments()  # creates the store
        works, figures = {"forest": forest, "grid": grid}, Figures()
        for name in [options.only] if options.only else works:
            times = measured(works[name], name, options.rounds, options.seed, options.ways)
            show_times(name, times, figures)
            get_reusable_executor().shutdown()  # the workers may not outlive the folder
    figures.write(options.json, "sklearn")


def deliver(home: Path) -> None:
    """Wait until all of ours is in MLflow."""
    from mlpipeline.tracking import closing
    from mlpipeline.tracking.account import accounts
    from mlpipeline.tracking.home import Home

    for run in closing.watched():
        run.settle(insist_s=120)
    deadline_s = time.monotonic() + 120
    while any(account.counts.pending for account in accounts(Home(home))):  # what worker processes opened
        if time.monotonic() > deadline_s:
            raise SystemExit("two minutes did not do to deliver it all")
        (home / "hurry").touch()
        time.sleep(0.2)


if __name__ == "__main__":
    main()
