"""How fast do records get into MLflow, and what does the courier that takes them there cost?

    python benchmarks/delivery.py

Rate: what a run recorded before is delivered in this process, and as many points are sent by MLflow's own
``log_batch`` of 1000 to the same store, in turns; the ratio is that of the two rates, pair by pair.

Courier: a training starts beside two processes that keep both cores busy: when is its first metric in
MLflow? Then they end: how much memory has the courier, how much processor time does it take while it waits,
and how long after the training's end is it gone?
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

from figures import Figures, Stopwatch
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlpipeline.core.config import MLflowConfig
from mlpipeline.testing.places import serving
from mlpipeline.tracking.account import courier_reports
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.records import Point
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.sync import send_all

TRAINING = """
import sys, time
from mlpipeline import MLflowTracker
with MLflowTracker(tracking_uri=sys.argv[1], experiment_name="courier") as tracker:
    for step in range(10 * int(sys.argv[2])):
        tracker.log_metrics({"loss": 1 / (step + 1), "acc": 0.5, "lr": 1e-3, "norm": 1.0}, step=step)
        time.sleep(0.1)
"""


def sent_by_mlflow(client: MlflowClient, points: int) -> tuple[float, float]:
    """Return the seconds, and those of the processor, that MLflow's own call takes."""
    run_id = client.create_run(client.get_experiment_by_name("rate").experiment_id).info.run_id
    now_ms = time.time_ns() // 1_000_000
    watch = Stopwatch()
    for start in range(0, points // 4, 250):
        metrics = [
            Metric(key, step / 7, now_ms + step, step)
            for step in range(start, start + 250)
            for key in ("loss", "acc", "lr", "norm")
        ]
        client.log_batch(run_id, metrics)
    return watch.read()


def delivered(home: Home, config: MLflowConfig, points: int) -> tuple[float, float]:
    """Return the seconds, and those of the processor, from a whole journal to all of it in MLflow."""
    run = open_run(config)
    for step in range(points // 4):
        run.log_metrics({"loss": step / 7, "acc": step / 7, "lr": step / 7, "norm": step / 7}, step=step)
    run.end()
    watch = Stopwatch()
    send_all(home)
    took = watch.read()
    assert run.is_delivered()
    return took


def rates(uri: str, home: Home, points: int, rounds: int, figures: Figures) -> None:
    """Add the rows of one store."""
    client = MlflowClient(uri, uri)
    client.create_experiment("rate")
    config = MLflowConfig.of({"delivery": "offline", "tracking_uri": uri, "experiment_name": "rate"})
    ours, theirs = [], []
    for number in range(rounds + 1):
        order = [
            (ours, lambda: delivered(home, config, points)),
            (theirs, lambda: sent_by_mlflow(client, points)),
        ]
        for kept, measure in order if number % 2 else reversed(order):
            took = measure()
            if number:
                kept.append([points / seconds for seconds in took])
    name = "server" if uri.startswith("http") else "sqlite"
    ratios = [[a / b for a, b in zip(one, other)] for one, other in zip(ours, theirs)]
    figures.add(name, "delivered metrics per second", *map(list, zip(*ours)))
    figures.add(name, "metrics per second by log_batch(1000)", *map(list, zip(*theirs)))
    figures.add(name, "rate, ratio to log_batch(1000)", *map(list, zip(*ratios)))


def one_metric(uri: str, requests: int, figures: Figures) -> None:
    """Add the rows of a request with one metric, of which a young run has many: is there MLflow's stall of 40 ms?

    Its default server, of several workers, has it on every connection that is kept; one of a single worker has not.
    """
    client, sink = MlflowClient(uri, uri), MlflowSink(Destination(uri, uri))
    run_id = client.create_run("0").info.run_id
    took: dict[str, list[tuple[float, float]]] = {"ours": [], "log_batch": []}
    now_ms = time.time_ns() // 1_000_000
    for step in range(requests):
        ways = {
            "ours": lambda step=step: sink.log_points(run_id, [Point("ours", 0.5, now_ms, step)]),
            "log_batch": lambda step=step: client.log_batch(run_id, [Metric("theirs", 0.5, now_ms, step)]),
        }
        for name, send in ways.items():
            watch = Stopwatch()
            send()
            took[name].append(watch.read())
    for name, values in took.items():
        ms, cpu_ms = ([seconds * 1000 for seconds in column] for column in zip(*values[5:]))
        figures.add(f"server, {name}", "ms for a request with one metric", ms, cpu_ms)


def repeated(uri: str, points: int, figures: Figures) -> None:
    """Add the rows of a request that the server has, as after a lost answer, in a run of many points.

    MLflow's server on SQLite looks for each point of the request at every point of the run.
    """
    client, sink = MlflowClient(uri, uri), MlflowSink(Destination(uri, uri))
    run_id = client.create_run("0").info.run_id
    now_ms, keys = time.time_ns() // 1_000_000, ("loss", "acc", "lr", "norm")
    for start in range(0, points // 4, 250):
        piece = [
            Point(key, step / 7, now_ms + step, step) for step in range(start, start + 250) for key in keys
        ]
        sink.log_points(run_id, piece)
    entities = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in piece]
    ways = {
        "ours": lambda: sink.log_points(run_id, piece, are_in_doubt=True),
        "log_batch": lambda: client.log_batch(run_id, entities),
    }
    took: dict[str, list[tuple[float, float]]] = {"ours": [], "log_batch": []}
    for _ in range(5):
        for name, send in ways.items():
            watch = Stopwatch()
            send()
            took[name].append(watch.read())
    for name, values in took.items():
        figures.add(f"server, {name}", "s for a request that it has", *map(list, zip(*values)))


def resident_mb(pid: int) -> float:
    """Return the memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def until(holds, at_most_s: float = 60.0) -> float:
    """Wait for something; return after how many seconds it held."""
    began_s = time.perf_counter()
    while not holds():
        if time.perf_counter() - began_s > at_most_s:
            return float("inf")
        time.sleep(0.02)
    return time.perf_counter() - began_s


def courier(uri: str, folder: Path, rounds: int, figures: Figures) -> None:
    """Add the rows of a courier beside a training."""
    client = MlflowClient(uri, uri)
    found: dict[str, list[float]] = {}

    def has_metric() -> bool:
        experiment = client.get_experiment_by_name("courier")
        runs = client.search_runs([experiment.experiment_id], max_results=1) if experiment else []
        return bool(runs) and runs[0].info.run_id not in seen and bool(runs[0].data.metrics)

    seen: set[str] = set()
    for number in range(rounds):
        home = Home(folder / f"home-{number}")
        environ = {**os.environ, "MLPIPELINE_HOME": str(home.path)}
        busy = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 2)
        ]
        training = subprocess.Popen([sys.executable, "-c", TRAINING, uri, "20"], cwd=folder, env=environ)
        try:
            found.setdefault("first metric in MLflow, s after its start, cores busy", []).append(
                until(has_metric)
            )
        finally:
            for process in busy:
                process.kill()
                process.wait()
        (pid,) = [report["pid"] for report in courier_reports(home)]
        time.sleep(3)
        before_s = cpu_s(pid)
        time.sleep(8)
        found.setdefault("processor while it delivers 40 metrics/s, % of a core", []).append(
            (cpu_s(pid) - before_s) / 8 * 100
        )
        training.wait()
        ended_s = time.perf_counter()
        time.sleep(2)
        found.setdefault("memory of the courier, MB", []).append(resident_mb(pid))
        before_s, at_s = cpu_s(pid), time.perf_counter()
        time.sleep(5)
        found.setdefault("processor of an idle courier, % of a core", []).append(
            (cpu_s(pid) - before_s) / (time.perf_counter() - at_s) * 100
        )
        until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
        found.setdefault("courier gone, s after the training", []).append(time.perf_counter() - ended_s)
        experiment = client.get_experiment_by_name("courier")
        seen |= {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    name = "server" if uri.startswith("http") else "sqlite"
    for measure, values in found.items():
        figures.add(name, measure, values)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=3, help="couriers watched per store")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = Figures()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
        store = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(store).search_experiments()  # creates it
        served = stack.enter_context(serving(folder, f"sqlite:///{folder}/served.db"))
        time.sleep(5)  # its workers settle
        for uri in (store, served.uri):
            rates(uri, Home(folder / "home"), options.points, options.rounds, figures)
            courier(uri, folder, options.starts, figures)
        repeated(served.uri, 100_000, figures)
        (folder / "default").mkdir()
        default = stack.enter_context(
            serving(folder / "default", f"sqlite:///{folder}/default.db", "--workers", "4")
        )
        time.sleep(5)
        one_metric(default.uri, 55, figures)
    figures.show()
    figures.write(options.json, "delivery")


if __name__ == "__main__":
    main()
