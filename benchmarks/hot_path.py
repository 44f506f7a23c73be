"""What does one call of log_metrics cost, in a loop that does nothing else? Does it stay that?

    python benchmarks/hot_path.py

Blocks of calls take turns: four metrics through `Run.log_metrics`, the same into a list, and through
MLflow's own asynchronous logging (into SQLite). Then a million metrics go into one run, and the cost per
metric and the process's memory are told for each power of ten. Nothing is delivered meanwhile, but where
MLflow's own threads do it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

METRICS = {"loss": 0.5, "accuracy": 0.9, "lr": 1e-3, "norm": 2.0}
PEER_CALLS = 200


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
    parser.add_argument("--json", type=lambda path: Path(path).resolve(), help="also write the figures here")
    options = parser.parse_args()
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": f"{folder.name}/home"}
    os.chdir(folder.name)
    from figures import Figures, Stopwatch

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.opening import open_run

    config = MLflowConfig.of({"delivery": "offline", "tracking_uri": f"sqlite:///{folder.name}/mlflow.db"})
    run = open_run(config)
    log, kept, step = run.log_metrics, [], 0
    took: dict[str, list[tuple[float, float]]] = {"ours": [], "list": []}

    def per_call_us(watch: Stopwatch) -> tuple[float, float]:
        wall_s, cpu_s = watch.read()
        return wall_s / options.calls * 1e6, cpu_s / options.calls * 1e6

    log(METRICS, step=0)
    before = sys.getallocatedblocks()
    for _ in range(options.blocks):
        watch = Stopwatch()
        for at in range(step, step + options.calls):
            log(METRICS, step=at)
        took["ours"].append(per_call_us(watch))
        watch = Stopwatch()
        for at in range(step, step + options.calls):
            kept.append((at, *METRICS.values()))  # noqa: PERF401 - one call per step is what is measured
        took["list"].append(per_call_us(watch))
        kept.clear()
        step += options.calls
    blocks = sys.getallocatedblocks() - before
    run.end()

    run = open_run(config)
    figures = Figures()
    for way, us in took.items():
        figures.add(way, "us per call of four metrics", *map(list, zip(*us)))
    figures.add("ours", f"memory blocks more after {options.blocks * options.calls} calls", [blocks])
    log, count, due, watch, resident = run.log_metrics, 0, 1000, Stopwatch(), resident_mb()
    print(f"{'metrics':>9} {'us per metric':>14} {'memory grown, MB':>17}")
    last = 0
    while count < options.most:
        while count < due:
            log(METRICS, step=count)
            count += 4
        us, cpu_us = (seconds / (count - last) * 1e6 for seconds in watch.read())
        grown = resident_mb() - resident
        print(f"{count:9} {us:14.2f} {grown:17.1f}")
        figures.add(f"ours, {due:.0e} metrics", "us per metric", [us], [cpu_us])
        figures.add(f"ours, {due:.0e} metrics", "memory grown, MB", [grown])
        last, watch, due = count, Stopwatch(), due * 10
    run.end()

    import mlflow

    mlflow.set_tracking_uri(config.tracking_uri)
    peer, peer_cpu = [], []
    with mlflow.start_run():
        mlflow.log_metrics(METRICS, step=0, synchronous=True)
        for at in range(1, PEER_CALLS):
            watch = Stopwatch()
            mlflow.log_metrics(METRICS, step=at, synchronous=False)
            for values, seconds in zip((peer, peer_cpu), watch.read()):
                values.append(seconds * 1e6)
        mlflow.flush_async_logging()
    figures.add("MLflow, synchronous=False", "us per call of four metrics", peer, peer_cpu)
    figures.show()
    figures.write(options.json, "hot_path")


if __name__ == "__main__":
    main()
