"""What does the callback add to ``import lightning``, and to the time until the first step? What is a config?

    python benchmarks/start.py

Fresh processes in pairs, one with the callback and one without, in turn; the store exists in the first
table and is created by the courier in the second.
"""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

# Files beside this one have the names of packages, and their folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

from figures import Figures

from mlpipeline import MLflowConfig

PAIRS = 5

PROGRAM = """
import sys, time
cpu = time.process_time()
import lightning.pytorch as pl
import torch
framework = time.process_time() - cpu
callbacks, added = [], 0.0
if sys.argv[1] == "with":
    cpu = time.process_time()
    from mlpipeline.lightning import MLflowCallback
    added = time.process_time() - cpu
    callbacks = [MLflowCallback(log_model=False)]
from lightning.pytorch.demos.boring_classes import BoringModel

class First(pl.Callback):
    def on_train_batch_start(self, *args):
        if self.at is None:
            self.at, self.cpu = time.perf_counter(), time.process_time()
    at = None

first = First()
trainer = pl.Trainer(max_steps=50, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, first])
began, cpu = time.perf_counter(), time.process_time()
trainer.fit(BoringModel())
print("RESULT", framework, added, first.at - began, first.cpu - cpu, "mlflow" in sys.modules)
"""


def measure(way: str, folder: Path) -> tuple[float, float, float, float, bool]:
    """Run one process; import CPU of the framework, of us, seconds and CPU to the first step, mlflow loaded."""
    environ = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    *seconds, loaded = line.split()[1:]
    return (*map(float, seconds), loaded == "True")


def configurations() -> None:
    """Print what a configuration costs where it is made, copied and taken to another process."""
    config = MLflowConfig(tracking_uri="http://127.0.0.1:5000", experiment_name="churn", tags={"team": "a"})
    packed = pickle.dumps(config)
    ways = {
        "made": lambda: MLflowConfig(experiment_name="churn", run_name="a"),
        "made with URI and tags": lambda: MLflowConfig(**config.to_dict()),
        "replaced": lambda: config.replace(run_name="b"),
        "unpickled": lambda: pickle.loads(packed),
        "resolved": config.resolved,
    }
    print("one MLflowConfig, µs: medians [min, max] of 5 times 1000")
    for name, way in ways.items():
        print(f"  {name:<35}{spread([timeit.timeit(way, number=1000) * 1000 for _ in range(5)])}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures = Figures()
    configurations()
    ready = Path(tempfile.mkdtemp(prefix="mlpipeline-bench-"))
    measure("with", ready)  # also writes the byte code and creates the store
    for title, is_new in (("store exists", False), ("new store", True)):
        rows: dict[str, list[tuple[float, float, float, float, bool]]] = {"without": [], "with": []}
        for _ in range(PAIRS):
            for way, found in rows.items():
                folder = Path(tempfile.mkdtemp(prefix="mlpipeline-bench-")) if is_new else ready
                found.append(measure(way, folder))
                if is_new:
                    shutil.rmtree(folder, ignore_errors=True)
        later, later_cpu = ([a[at] - b[at] for a, b in zip(rows["with"], rows["without"])] for at in (2, 3))
        figures.add(f"{title}, with", "import adds, CPU s", [row[1] for row in rows["with"]])
        figures.add(f"{title}, with", "first step comes later by, s", later, later_cpu)
        print(f"{title}: medians [min, max] of {PAIRS} pairs")
        print(f"  import lightning, CPU s            {spread([row[0] for row in rows['without']])}")
        print(f"  import mlpipeline.lightning adds   {spread([row[1] for row in rows['with']])}")
        print(f"  fit to first step without, s       {spread([row[2] for row in rows['without']])}")
        print(f"  the callback comes later by, s     {spread(later)}")
        print(f"  mlflow loaded in the trainer       {any(row[4] for row in rows['with'])}")
    figures.write(options.json, "start")


def spread(values: list[float]) -> str:
    """Return median and extremes."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
