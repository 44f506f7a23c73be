"""The same training recorded by the peer and by us: what is in MLflow afterwards, and what did it cost?

    python benchmarks/side_by_side.py                    # all four
    python benchmarks/side_by_side.py --only forest      # one
    python benchmarks/side_by_side.py --rounds 1         # a try

A round trains once without a recorder, once with the peer's and once with ours, in an order drawn anew;
the ratio is to the one without a recorder in the same round. The first round warms up (imports, the store,
worker processes) and does not count. The table of contents is of the last round: everything in its experiment.

Works: XGBoost on breast cancer, 500 rounds with six metrics and the model; a forest of 100 trees on digits with its
model; a grid of 50 candidates of an SVC with three folds each, two jobs; an Optuna study of 60 trials of
a decorated objective, four jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Files beside this one have the names of the packages they measure, and this folder comes first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow
import mlflow.sklearn
import mlflow.xgboost
import numpy as np
import optuna
import optuna_integration.mlflow
import xgboost
from joblib.externals.loky import get_reusable_executor
from mlflow import MlflowClient
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import mlpipeline.optuna
import mlpipeline.sklearn
import mlpipeline.xgboost
from mlpipeline.tracking import closing
from mlpipeline.tracking.account import counts_of
from mlpipeline.tracking.home import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS = ("none", "peer", "ours")


@dataclass(frozen=True)
class Work:
    """One training.

    Attributes:
        peer: What records it otherwise.
        train: Trains, recorded in one of WAYS, into the experiment that MLflow has set.
    """

    peer: str
    train: Callable[[str], Any]


def boost(way: str) -> None:
    """Train 500 rounds, early stopping allowed, and keep the model."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    train, valid = xgboost.QuantileDMatrix(X[:400], y[:400]), xgboost.DMatrix(X[400:], y[400:])
    metrics = ["logloss", "auc", "error"]
    params = {"objective": "binary:logistic", "eval_metric": metrics, "eta": 0.05, "nthread": 1}
    callbacks = [mlpipeline.xgboost.MLflowCallback(experiment_name=experiment())] if way == "ours" else []
    with autolog(mlflow.xgboost, way):
        xgboost.train(
            params,
            train,
            500,
            [(train, "train"), (valid, "valid")],
            early_stopping_rounds=200,
            callbacks=callbacks,
            verbose_eval=False,
        )


def fit(way: str, estimator: Any, X: Any, y: Any) -> None:
    """Fit an estimator; every candidate of a search becomes a child."""
    if way == "ours":
        estimator = mlpipeline.sklearn.MLflowEstimator(estimator, {"experiment_name": experiment()})
    with autolog(mlflow.sklearn, way, max_tuning_runs=None):
        estimator.fit(X, y)


def forest(way: str) -> None:
    """Fit a forest."""
    X, y = load_digits(return_X_y=True, as_frame=True)
    fit(way, RandomForestClassifier(100, random_state=0), X, y)


def grid(way: str) -> None:
    """Search 50 candidates."""
    X, y = load_digits(return_X_y=True)
    space = {"C": list(np.logspace(-2, 2, 10)), "gamma": [1e-4, 3e-4, 1e-3, 2e-3, 3e-3]}
    fit(way, GridSearchCV(SVC(), space, cv=3, n_jobs=2), X[:1000], y[:1000])


def study(way: str) -> None:
    """Optimize 60 trials of 20 ms in four threads."""

    def objective(trial: optuna.Trial) -> float:
        time.sleep(0.02)
        return trial.suggest_float("x", -1, 1) ** 2

    callbacks: list[Any] = []
    if way == "ours":
        callbacks = [mlpipeline.optuna.MLflowCallback(experiment_name=experiment())]
    elif way == "peer":
        old = optuna_integration.mlflow.MLflowCallback(os.environ["STORE"], create_experiment=False)
        callbacks = [old]
    if callbacks:
        objective = callbacks[0].track_in_mlflow()(objective)
    made = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    made.optimize(objective, n_trials=60, n_jobs=4, callbacks=callbacks)
    if way == "ours":
        callbacks[0].run  # noqa: B018 - ends the study's run, with its plots


WORKS = {
    "xgboost": Work("mlflow.xgboost.autolog", boost),
    "forest": Work("mlflow.sklearn.autolog", forest),
    "grid": Work("mlflow.sklearn.autolog", grid),
    "optuna": Work("optuna_integration.MLflowCallback", study),
}


@contextlib.contextmanager
def autolog(flavor: Any, way: str, **options: Any) -> Iterator[None]:
    """Turn a flavor's autologging on for a block, if it is the peer's turn."""
    if way != "peer":
        yield
        return
    flavor.autolog(silent=True, **options)
    try:
        yield
    finally:
        flavor.autolog(disable=True, silent=True)
        mlflow.end_run()


def experiment() -> str:
    """Return the experiment that is set."""
    return os.environ["MLFLOW_EXPERIMENT_NAME"]


def seconds_of(work: Work, way: str, name: str) -> float:
    """Train once; what is recorded goes into an experiment of that name."""
    mlflow.set_experiment(name)
    os.environ["MLFLOW_EXPERIMENT_NAME"] = name
    began_s = time.perf_counter()
    work.train(way)
    took_s = time.perf_counter() - began_s
    deliver_all()  # or the next training would share the machine with the courier
    return took_s


def contents(name: str) -> dict[str, str]:
    """Return what is in an experiment."""
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=5000)
    tops = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = [run for run in runs if run not in tops]
    histories = [client.get_metric_history(run.info.run_id, key) for run in runs for key in run.data.metrics]
    doubled = sum(len(points) - len({point.step for point in points}) for points in histories)
    models = client.search_logged_models([found.experiment_id])
    infos = [mlflow.models.get_model_info(f"models:/{model.model_id}") for model in models]
    spans = [(run.info.start_time, run.info.end_time) for run in below or runs]
    statuses = Counter(run.info.status for run in runs)
    return {
        "runs at the top / below": f"{len(tops)} / {len(below)}",
        "their statuses": ", ".join(f"{count} {status}" for status, count in statuses.items()),
        "with a duration of their own": f"{sum(end is not None and end > start for start, end in set(spans))}",
        "params": str(sum(len(run.data.params) for run in runs)),
        "metrics": str(len({key for run in runs for key in run.data.metrics})),
        "points": str(sum(map(len, histories))),
        "of these, twice at a step": str(doubled),
        "datasets": str(sum(len(run.inputs.dataset_inputs) for run in runs if run.inputs)),
        "artifacts of the runs": str(sum(files(client, run.info.run_id) for run in runs)),
        "models": ", ".join(Counter(str(model.status) for model in models)) or "none",
        "with signature / example": f"{sum(info.signature is not None for info in infos)}"
        f" / {sum(info.saved_input_example_info is not None for info in infos)}",
    }


def files(client: MlflowClient, run_id: str, path: str | None = None) -> int:
    """Return how many files a run has."""
    items = client.list_artifacts(run_id, path)
    return sum(files(client, run_id, item.path) if item.is_dir else 1 for item in items)


def spread(values: list[float]) -> str:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def compared(name: str, work: Work, rounds: int) -> dict[str, dict[str, str]]:
    """Return the rows of one work's table, for the peer and for us."""
    order = random.Random(7)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in order.sample(WAYS, len(WAYS)):
            took_s = seconds_of(work, way, f"{name} {way} {number}")
            if number:
                times[way].append(took_s)
    rows = {}
    for way in WAYS[1:]:
        pairs = list(zip(times[way], times["none"], strict=True))
        rows[way] = {
            **contents(f"{name} {way} {rounds}"),
            "seconds": spread(times[way]),
            "ratio to no tracking": spread([a / b for a, b in pairs]),
            "seconds more": spread([a - b for a, b in pairs]),
        }
    return rows


def deliver_all() -> None:
    """Wait until all of ours is in MLflow, also what worker processes recorded."""
    for run in closing.watched():
        run.settle(insist_s=120)
    home = Home(Path(os.environ["MLPIPELINE_HOME"]))
    deadline_s = time.monotonic() + 300
    # Not until the runs are put away: joblib's idle workers keep their journals open for minutes.
    while time.monotonic() < deadline_s and any(counts_of(home, run.uid).pending for run in home.runs()):
        home.hurry_file.touch()
        time.sleep(0.2)


def main() -> None:
    """Train everything, and print one table per work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="that count, beside the one that warms up")
    parser.add_argument("--only", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--json", type=Path, help="also write the tables here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("mlflow", "mlpipeline"):
        logging.getLogger(name).setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mlpipeline-bench-", ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        store = f"sqlite:///{folder}/mlflow.db"
        # In the environment, for the worker processes of a search.
        os.environ |= {"STORE": store, "MLFLOW_TRACKING_URI": store, "MLPIPELINE_HOME": f"{folder}/home"}
        MlflowClient(store).search_experiments()  # creates the store
        tables = {}
        for name in options.only:
            work = WORKS[name]
            tables[name] = rows = compared(name, work, options.rounds)
            get_reusable_executor().shutdown()  # the workers may not outlive the folder
            print(f"\n{name:34}{work.peer:>36}{'mlpipeline':>30}")
            for row in rows["ours"]:
                print(f"{row:34}{rows['peer'][row]:>36}{rows['ours'][row]:>30}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
