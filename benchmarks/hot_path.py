"""What does one call of log_metrics cost, in a loop that does nothing else? Does it stay that?

    python benchmarks/hot_path.py

Blocks of calls take turns: four metrics through `Run.log_metrics`, the same into a list, and through
MLflow's own asynchronous logging (into SQLite). Then a million metrics go into one run, and the cost per
metric and the process's memory are told for each power of ten. Nothing is delivered meanwhile, but where
MLflow's own threads do it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Files beside this one have the names of packages, and their folder comes first.
sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

METRICS = {"loss": 0.5, "accuracy": 0.9, "lr": 1e-3, "norm": 2.0}
PEER_CALLS = 200


def spread(values: list[float]) -> dict[str, object]:
    """Return median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartiles": [low, high], "n": len(values)}


def resident_mb() -> float:
    """Return the memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--calls", type=int, default=10_000, help="in a block")
    parser.add_argument("--most", type=int, default=1_000_000, help="metrics in one run")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": f"{folder.name}/home"}
    os.chdir(folder.name)
    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.opening import open_run

    config = MLflowConfig.of({"delivery": "offline", "tracking_uri": f"sqlite:///{folder.name}/mlflow.db"})
    run = open_run(config)
    log, kept, step = run.log_metrics, [], 0
    took: dict[str, list[float]] = {"ours": [], "list": []}
    log(METRICS, step=0)
    before = sys.getallocatedblocks()
    for _ in range(options.blocks):
        began_s = time.perf_counter()
        for at in range(step, step + options.calls):
            log(METRICS, step=at)
        took["ours"].append((time.perf_counter() - began_s) / options.calls * 1e6)
        began_s = time.perf_counter()
        for at in range(step, step + options.calls):
            kept.append((at, *METRICS.values()))
        took["list"].append((time.perf_counter() - began_s) / options.calls * 1e6)
        kept.clear()
        step += options.calls
    blocks = sys.getallocatedblocks() - before
    run.end()

    run = open_run(config)
    rows = [{"way": way, "measure": "us per call of four metrics", **spread(us)} for way, us in took.items()]
    rows.append({"way": "ours", "measure": "allocated blocks after all calls", "median": blocks})
    count, due, began_s, resident = 0, 1000, time.perf_counter(), resident_mb()
    print(f"{'metrics':>9} {'us per metric':>14} {'memory grown, MB':>17}")
    last, last_s = 0, began_s
    while count < options.most:
        log2 = run.log_metrics
        while count < due:
            log2(METRICS, step=count)
            count += 4
        now_s = time.perf_counter()
        us = (now_s - last_s) / (count - last) * 1e6
        grown = resident_mb() - resident
        print(f"{count:9} {us:14.2f} {grown:17.1f}")
        rows.append({"way": f"ours, {due:.0e} metrics", "measure": "us per metric", "median": us})
        rows.append({"way": f"ours, {due:.0e} metrics", "measure": "memory grown, MB", "median": grown})
        last, last_s, due = count, now_s, due * 10
    run.end()

    import mlflow

    mlflow.set_tracking_uri(config.tracking_uri)
    peer = []
    with mlflow.start_run():
        mlflow.log_metrics(METRICS, step=0, synchronous=True)
        for at in range(1, PEER_CALLS):
            began_s = time.perf_counter()
            mlflow.log_metrics(METRICS, step=at, synchronous=False)
            peer.append((time.perf_counter() - began_s) * 1e6)
        mlflow.flush_async_logging()
    rows.append(
        {"way": "MLflow, synchronous=False", "measure": "us per call of four metrics", **spread(peer)}
    )
    for row in rows:
        if "quartiles" in row:
            low, high = row["quartiles"]
            print(f"{row['way']:28} {row['median']:9.2f} [{low:.2f}, {high:.2f}] {row['measure']}")
    print(f"blocks of memory more than before {options.blocks * options.calls} calls: {blocks}")
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "hot_path", "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
