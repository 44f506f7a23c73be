"""A DataLoader's forked workers beside a training that is recorded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

TRAINING = """
import os, threading
import torch
from torch.utils.data import DataLoader, Dataset
from mlpipeline import MLflowTracker

tracker = MLflowTracker(experiment_name="workers", delivery="offline")

class Rows(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        tracker.log_metrics({"read": float(index)}, step=index)
        return torch.full((2,), float(index))

with tracker:
    is_over = threading.Event()

    def beside():
        step = 0
        while not is_over.is_set():
            tracker.log_metrics({"beside": 0.5}, step=step)
            with tracker.run("child") as child:
                child.log_metrics({"loss": 0.5}, step=step)
            step += 1
            is_over.wait(0.001)

    thread = threading.Thread(target=beside)
    thread.start()
    for epoch in range(3):
        # Forked anew in each epoch, in the middle of what the thread records.
        for step, batch in enumerate(DataLoader(Rows(), batch_size=8, num_workers=2, timeout=30)):
            tracker.log_metrics({"loss": float(batch.mean())}, step=4 * epoch + step)
    is_over.set()
    thread.join()
"""


def test_workers_that_are_forked_while_threads_record_neither_hang_nor_end_the_run(runs, points, store_uri):
    """One run, FINISHED, with what the workers read and what the training lost, each point once per epoch."""
    environ = {**os.environ, "MLFLOW_TRACKING_URI": store_uri}
    subprocess.run([sys.executable, "-c", TRAINING], check=True, env=environ, timeout=120)
    found = runs()
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert {"FINISHED"} == {run.info.status for run in found}
    assert list(range(12)) == [step for step, _ in points(parent, "loss")]
    assert [index for index in range(32) for _ in range(3)] == sorted(
        step for step, _ in points(parent, "read")
    )
