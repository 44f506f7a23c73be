"""How long does it take to read from a store of 10 000 runs?

    python benchmarks/queries.py

Compare 100 of its runs, and find the best ten by a metric: with `mlpipeline.MLflowTracker`, and with MLflow's
own client, which orders by the metric itself, and pages through all runs for a table. SQLite; the runs are
copies of one, inserted as rows, because 10 000 ``create_run`` would take minutes.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

from figures import Figures, Stopwatch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mlpipeline import MLflowTracker


def fill(store: str, count: int) -> list[str]:
    """Make so many runs in the experiment "many"; return their ids."""
    client = MlflowClient(store)
    experiment = client.create_experiment("many")
    one = client.create_run(experiment).info.run_id
    client.log_batch(
        one,
        [Metric(key, 0.0, 1000 + step, step) for key in ("acc", "loss") for step in range(2)],
        [Param(f"p{i}", str(i)) for i in range(10)],
    )
    ids = [f"{i:032x}" for i in range(count)]
    with sqlite3.connect(store.removeprefix("sqlite:///")) as connection:
        for table in ("runs", "params", "metrics", "latest_metrics", "tags"):
            columns = [
                row[1] for row in connection.execute(f"pragma table_info({table})") if row[1] != "run_uuid"
            ]
            rows = connection.execute(
                f"select {', '.join(columns)} from {table} where run_uuid = ?", (one,)
            ).fetchall()
            marks = ", ".join("?" * (len(columns) + 1))
            connection.executemany(
                f"insert into {table} (run_uuid, {', '.join(columns)}) values ({marks})",
                ((run_id, *row) for run_id in ids for row in rows),
            )
        for table in ("metrics", "latest_metrics"):
            connection.executemany(
                f"update {table} set value = ? where key = 'acc' and run_uuid = ?",
                [((i * 7919) % count / count, run_id) for i, run_id in enumerate(ids)],
            )
    client.delete_run(one)
    return ids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = Figures()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": f"{folder}/home"}
        store = f"sqlite:///{folder}/mlflow.db"
        ids = fill(store, options.runs)
        tracker = MLflowTracker(tracking_uri=store, experiment_name="many")
        client = MlflowClient(store)
        (experiment,) = [one.experiment_id for one in client.search_experiments() if one.name == "many"]
        some = ids[:: len(ids) // 100][:100]

        def best() -> list[str]:
            return [one.run_id for one in tracker.search_runs(order_by=["metrics.acc DESC"], max_results=10)]

        def theirs() -> list[str]:
            found = client.search_runs([experiment], order_by=["metrics.acc DESC"], max_results=10)
            return [one.info.run_id for one in found]

        def all_pages() -> None:
            token = None
            while True:
                page = client.search_runs([experiment], max_results=1000, page_token=token)
                if not (token := page.token):
                    return

        assert theirs() == best()
        for way, measure, work in (
            ("ours", "seconds to compare 100 runs", lambda: tracker.compare_runs(some)),
            ("MLflow, all pages", "seconds to compare 100 runs", all_pages),
            ("ours", "seconds to the best 10", best),
            ("MLflow", "seconds to the best 10", theirs),
        ):
            took, cpu = [], []
            for _ in range(options.rounds if way == "ours" else min(options.rounds, 3)):
                watch = Stopwatch()
                work()
                for kept, seconds in zip((took, cpu), watch.read()):
                    kept.append(seconds)
            figures.add(way, measure, took, cpu)
    figures.show()
    figures.write(options.json, "queries")


if __name__ == "__main__":
    main()
