"""Does recording cost an Optuna study anything? Studies with and without it, interleaved.

A round runs one study of each kind, in random order: without a callback, with one that appends to a
list, with ours, with ours and the decorated objective, and with the old one of optuna-integration,
bare and decorated. Milliseconds per trial are wall time, with the objective's own work taken off by
holding each study against the bare one of its round. The first trial, which opens the study's run, is told apart.

    python benchmarks/optuna.py                        # nothing to do in a trial: the price itself
    python benchmarks/optuna.py --sleep 1 --trials 8   # a second of work in each: is it run in parallel?

Work: one float from a RandomSampler, in a study in memory; MLflow in a SQLite file.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

# This file has the name of the package it measures, and its folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import optuna
from figures import Figures, Stopwatch

KINDS = ("bare", "append", "ours", "ours decorated", "old", "old decorated")


class Timed:
    """A function, and how long its calls took."""

    def __init__(self, function) -> None:
        self.function = function
        self.times_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def __call__(self, *args):
        """Call it."""
        began_s, began_cpu_s = time.perf_counter(), time.thread_time()
        try:
            return self.function(*args)
        finally:
            self.times_ms.append((time.perf_counter() - began_s) * 1000)
            self.cpu_ms.append((time.thread_time() - began_cpu_s) * 1000)


def quartiles(values: list[float]) -> str:
    """Return median and quartiles as text."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:8.3f} [{low:.3f}, {high:.3f}]"


def study_of(kind: str, jobs: int, options: argparse.Namespace, store: str) -> dict[str, float]:
    """Run one study; return its milliseconds per trial."""
    import optuna_integration.mlflow

    from mlpipeline.optuna import MLflowCallback

    def objective(trial):
        if options.sleep:
            time.sleep(options.sleep)
        return trial.suggest_float("x", -1, 1) ** 2

    study = optuna.create_study(
        study_name=f"{kind}, {jobs} jobs, {random.getrandbits(32):x}",
        sampler=optuna.samplers.RandomSampler(seed=7),
    )
    callback = None
    if kind == "append":
        seen: list[optuna.trial.FrozenTrial] = []
        callback = lambda study, trial: seen.append(trial)  # noqa: E731
    elif kind.startswith("ours"):
        callback = MLflowCallback(tracking_uri=store, experiment_name=kind)
    elif kind.startswith("old"):
        callback = optuna_integration.mlflow.MLflowCallback(store, create_experiment=False)
    if kind.endswith("decorated"):
        objective = callback.track_in_mlflow()(objective)
    inside, after = Timed(objective), Timed(callback)
    watch = Stopwatch()
    study.optimize(
        inside, n_trials=options.trials, n_jobs=jobs, callbacks=[after] if callback is not None else None
    )
    wall_s, cpu_s = watch.read()
    # The first trial also opens the study's run.
    found = {
        "wall": wall_s * 1000 / options.trials,
        "cpu": cpu_s * 1000 / options.trials,
        "worker": sum(sorted(inside.times_ms)[:-1] + after.times_ms[1:]) / (options.trials - 1),
        "worker cpu": sum(sorted(inside.cpu_ms)[:-1] + after.cpu_ms[1:]) / (options.trials - 1),
        "first": sum(after.times_ms[:1]),
    }
    if kind.startswith("ours"):
        began_s = time.perf_counter()
        callback.run  # noqa: B018 - ends the study's run, with its plots, outside of the measured time
        found["end"] = (time.perf_counter() - began_s) * 1000
        if options.settle:
            callback.run.settle(insist_s=120)
    return found


def main() -> None:
    """Run the rounds and print a table per number of jobs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60, help="trials per study")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds of work in a trial")
    parser.add_argument("--only", nargs="*", choices=KINDS, help="beside 'bare'")
    parser.add_argument("--settle", action="store_true", help="wait for delivery after each study of ours")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if kind == "bare" or not options.only or kind in options.only]

    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="mlpipeline-bench-"))
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
    store = f"sqlite:///{folder}/mlflow.db"
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.set_experiment("old")
    order = random.Random(7)
    figures = Figures()
    for jobs in options.jobs:
        for kind in kinds:
            study_of(kind, jobs, options, store)  # warm-up: imports, first run of an experiment
        rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(options.rounds):
            for kind in order.sample(kinds, len(kinds)):
                rows[kind].append(study_of(kind, jobs, options, store))
        print(f"{options.trials} trials, n_jobs={jobs}, {options.rounds} rounds: median [quartiles]")
        print(f"{'':16} {'ms per trial':28} {'ratio to bare':28} extra ms per trial on its worker")
        for kind in kinds:
            wall = [found["wall"] for found in rows[kind]]
            pairs = list(zip(rows[kind], rows["bare"]))
            ratio, cpu = ([one[what] / bare[what] for one, bare in pairs] for what in ("wall", "cpu"))
            extra, extra_cpu = (
                [one[what] - bare[what] for one, bare in pairs] for what in ("worker", "worker cpu")
            )
            print(f"{kind:16} {quartiles(wall):28} {quartiles(ratio):28} {quartiles(extra)}")
            figures.add(f"{kind}, {jobs} jobs", "ratio to bare", ratio, cpu)
            figures.add(f"{kind}, {jobs} jobs", "extra ms per trial on its worker", extra, extra_cpu)
        if "ours" in kinds:
            print(f"ours, first trial: {quartiles([found['first'] for found in rows['ours']])} ms, once")
            print(f"ours, end of a study: {quartiles([found['end'] for found in rows['ours']])} ms, once")
    figures.write(options.json, "optuna")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
