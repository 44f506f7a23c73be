"""A session in a notebook: cells that train, raise, are interrupted and are run again; then the kernel is killed."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

import mlpipeline
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking.account import accounts, courier_reports
from mlpipeline.tracking.home import Home

pytestmark = [pytest.mark.process, pytest.mark.slow]

SET_UP = """
import numpy as np, time, xgboost
from mlpipeline.xgboost import MLflowCallback
data = xgboost.DMatrix(np.random.default_rng(0).normal(size=(40, 3)), label=np.arange(40) % 2)

class Mine(xgboost.callback.TrainingCallback):
    def __init__(self, do):
        self.do = do
    def after_iteration(self, model, epoch, evals_log):
        return self.do(epoch)

def train(name, do=lambda epoch: None, rounds=3):
    callback = MLflowCallback(run_name=name, log_model=False)
    xgboost.train({}, data, rounds, [(data, "train")], callbacks=[callback, Mine(do)], verbose_eval=False)
    return callback

def stop(epoch):
    raise ValueError("mine")
"""


@contextmanager
def kernel(**environ):
    """A kernel of its own, killed in the end as by a closed laptop."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, **environ})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_cell(client, code):
    """Run a cell; return the name of the exception that ended it, or None."""
    reply = client.execute_interactive(code, timeout=60, output_hook=lambda message: None)["content"]
    return reply.get("ename")


def interrupt_cell(manager, client, code):
    """Run a cell that touches the file "trains" when it is under way, and interrupt it then."""
    client.execute(code)
    wait_until(Path("trains").exists)
    manager.interrupt_kernel()
    return client.get_shell_msg(timeout=60)["content"].get("ename")


def test_every_cell_leaves_the_true_status_behind(store_uri, home, mlflow_client):
    """None is RUNNING when its cell has ended, none is lost with the kernel, and no courier stays."""
    endless = "import pathlib\ntrain('stopped', lambda epoch: (pathlib.Path('trains').touch(), time.sleep(0.05))[0], 9999)"
    with kernel(MLFLOW_TRACKING_URI=store_uri, PYTHONPATH=str(Path(mlpipeline.__file__).parents[1])) as (
        manager,
        client,
    ):
        assert run_cell(client, SET_UP) is None
        assert run_cell(client, "first = train('whole')") is None
        assert "ValueError" == run_cell(client, "broken = train('broken', stop)")
        assert "KeyboardInterrupt" == interrupt_cell(manager, client, endless)
        assert run_cell(client, "first = train('again')") is None
        assert run_cell(client, "kept = first.run_id") is None
        expected = {"whole": "FINISHED", "broken": "FAILED", "stopped": "KILLED", "again": "FINISHED"}
        with suppress(AssertionError):
            wait_until(lambda: expected == statuses_of(mlflow_client(store_uri)), home=home)
        assert expected == statuses_of(mlflow_client(store_uri)), journals_of(home)
        client.execute("train('killed', lambda epoch: time.sleep(0.05), 9999)")
        wait_until(lambda: "killed" in statuses_of(mlflow_client(store_uri)), home=home)
        os.kill(manager.provisioner.pid, signal.SIGKILL)
        wait_until(lambda: statuses_of(mlflow_client(store_uri))["killed"] == "KILLED", home=home)
    wait_until(lambda: not courier_reports(Home(home)), home=home)


def journals_of(home):
    """What is left in the home, for a failure's message."""
    log = Path(home, "courier.log")
    return [*map(str, accounts(Home(home))), log.read_text("utf-8") if log.exists() else "no log"]


def statuses_of(client):
    """The status per name of a run."""
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    runs = client.search_runs([experiment.experiment_id]) if experiment is not None else []
    return {run.info.run_name: run.info.status for run in runs}
