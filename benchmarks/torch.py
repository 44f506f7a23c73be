"""Does recording cost a hand-written loop anything? Interleaved blocks of steps, with and without it.

One training runs on; block by block it is recorded or not. Each recorded block is held against the mean of
its two neighbours without. "plain" is one `mlflow.log_metrics` per step, as a loop without us would have it.

    python benchmarks/torch.py                          # short blocks: the cost on the training thread
    python benchmarks/torch.py --block 600              # long blocks: delivery meanwhile is paid too

Work: an MLP 32-64-64-1 at batch 32, one torch thread, four metrics at every step.
"""

from __future__ import annotations

import argparse
import contextlib
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

import mlflow
import torch

from mlpipeline.torch import MLflowLoop


class Training:
    """A network and its optimizer, trained on for as many steps as asked for."""

    def __init__(self) -> None:
        layers = [torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()]
        self.module = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1))
        self.optimizer = torch.optim.Adam(self.module.parameters())
        self.rows, self.targets = torch.randn(32, 32), torch.randn(32, 1)

    def step(self) -> dict[str, torch.Tensor]:
        """Train one step and return four metrics."""
        self.optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(self.module(self.rows), self.targets)
        loss.backward()
        self.optimizer.step()
        loss = loss.detach()
        return {"loss": loss, "a": loss + 1, "b": loss * 2, "c": loss - 1}


def block(name: str, training: Training, steps: int, loops: dict[str, MLflowLoop]) -> float:
    """Train a block, recorded by *name*, and return its microseconds per step."""
    started_s = time.perf_counter()
    if name in loops:
        loop = loops[name]
        if name == "watched":
            loop.watch(training.module, training.optimizer)
        for _ in loop.batches([None] * steps):
            loop.log(training.step())
    else:
        for step in range(steps):
            metrics = training.step()
            if name == "plain":
                mlflow.log_metrics({key: float(value) for key, value in metrics.items()}, step=step)
    elapsed_s = time.perf_counter() - started_s
    for watched in loops["watched"]._watched:
        watched.release()  # so that its hook takes no part in the other blocks
    loops["watched"]._watched.clear()
    return elapsed_s / steps * 1e6


def main() -> None:
    """Run one training and print a row per recorder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--block", type=int, default=50, help="steps per block")
    parser.add_argument("--rounds", type=int, default=100, help="blocks of each recorder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["loop", "watched", "plain"]
    times: list[tuple[str, float]] = []
    folder = tempfile.mkdtemp(prefix="mlpipeline-bench-")
    with contextlib.ExitStack() as stack:
        os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": f"{folder}/home"}
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("plain")
        loops = {
            name: stack.enter_context(MLflowLoop(experiment_name=name, log_model=False)) for name in names[:2]
        }
        stack.enter_context(mlflow.start_run())
        training, order = Training(), random.Random(7)
        for name in [*names, "off"]:
            block(name, training, options.block, loops)
        for _ in range(options.rounds):
            for name in order.sample(names, len(names)):
                times += [(kind, block(kind, training, options.block, loops)) for kind in ("off", name)]
        times.append(("off", block("off", training, options.block, loops)))
        off = statistics.median(took for kind, took in times if kind == "off")
        print(f"{options.rounds} blocks of {options.block} steps each; without: {off:.0f} us per step")
        for name in names:
            pairs = [
                (took, statistics.mean((before, after)))
                for (_, before), (kind, took), (_, after) in zip(times, times[1:], times[2:])
                if kind == name
            ]
            low, middle, high = statistics.quantiles([took / rest for took, rest in pairs], n=4)
            extra = statistics.median(took - rest for took, rest in pairs)
            print(f"{name:10} {middle:6.3f}  [{low:.3f}, {high:.3f}]  {extra:+8.1f} us per step")
    for loop in loops.values():
        loop.run.settle(insist_s=120)
        print(loop.run.counts())
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
