"""What every callback has in common: one run per training, wherever the training happens."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

import mlpipeline
from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import UnloggableError
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed

SRC = str(Path(mlpipeline.__file__).parents[1])

SPAWNING = """
import multiprocessing, sys
from mlpipeline.tracking.recorded import Recorded

def train(recorded):
    recorded._open().log_metrics({"loss": 0.5}, step=0)
    recorded._close()

if __name__ == "__main__":
    recorded = Recorded(tracking_uri=sys.argv[1], delivery="offline")
    processes = [multiprocessing.get_context(sys.argv[2]).Process(target=train, args=(recorded,)) for _ in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print(recorded.run.uid)
"""


def offline(store_uri, **options):
    """A configuration whose runs wait for the `deliver` fixture."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline", **options)


def test_a_model_that_is_not_to_be_registered_makes_no_version(store_uri, deliver, mlflow_client):
    """An empty name says so for one model, where the configuration registers the others."""
    run = open_run(offline(store_uri, register_model=True, model_name="digits"))
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    run.log_model(model, "checkpoint", register_as="")
    run.log_model(model, "best")
    run.end()
    deliver()
    assert 1 == len(mlflow_client(store_uri).search_model_versions("name='digits'"))


@pytest.mark.process
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_run_of_a_training_in_a_child_process_is_found(
    method, store_uri, deliver, mlflow_client, tmp_path
):
    """Nothing comes back from the child; and two children that were given one name make two runs."""
    script = tmp_path / "train.py"
    script.write_text(SPAWNING)
    command = [sys.executable, str(script), store_uri, method]
    environ = {**os.environ, "PYTHONPATH": SRC}
    uid = subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=60).stdout
    deliver()
    runs = mlflow_client(store_uri).search_runs(
        [mlflow_client(store_uri).get_experiment_by_name("ml-pipeline-experiment").experiment_id]
    )
    assert ["FINISHED", "FINISHED"] == [run.info.status for run in runs]
    assert uid.strip() in {run.data.tags["mlpipeline.uid"] for run in runs}


def test_a_copy_has_runs_of_its_own(store_uri):
    """A template copied for every fold must not put all of them into one run."""
    template = Recorded(offline(store_uri))
    folds = [copy.deepcopy(template) for _ in range(2)]
    uids = {fold._open().uid for fold in folds}
    assert 2 == len(uids)
    assert template.run is None


def test_who_stands_by_takes_everything_and_keeps_nothing(store_uri):
    """A rank other than zero, whose code logs as rank zero's does; it is not given rank zero's run."""
    ranks = [Recorded(offline(store_uri)) for _ in range(2)]
    ranks[1]._next_uid = ranks[0]._next_uid  # as both have it from the process that spawned them
    written = ranks[0]._open()
    ranks[1]._stand_by()
    ranks[1].run.log_metrics({"loss": 0.5}, step=0)
    assert not ranks[1].run.is_enabled
    assert written.uid != ranks[1].run.uid
    assert ranks[1].run_id is None


class Hooked(Recorded):
    """Has a hook that fails, each time at the same line, and one that says what the user did wrong."""

    @harmless
    def on_epoch_end(self, error):
        raise error

    @harmless
    def on_step(self):
        return 7

    def score(self, number):
        with unharmed(f"trial {number}", self._failures):
            raise ValueError("no such thing")


def test_a_cause_is_told_once_per_training(store_uri, caplog):
    """With its traceback, and of the next training again; another cause is another matter."""
    hooked = Hooked(offline(store_uri))
    for _ in range(2):
        hooked._open()
        for _ in range(3):
            assert hooked.on_epoch_end(KeyError("a")) is None
        hooked.on_epoch_end(IndexError("b"))
        for number in range(3):
            hooked.score(number)
        hooked._close()
    told = [item.getMessage().partition(";")[0] for item in caplog.records]
    failed = f"{Hooked.__module__}.on_epoch_end failed"
    assert 2 * [failed, failed, "could not record trial 0"] == told
    assert all(item.exc_info for item in caplog.records)


def test_a_hook_lets_mistakes_of_the_users_and_interrupts_through(store_uri, caplog):
    """And returns what it returns."""
    hooked = Hooked(offline(store_uri))
    for error in (UnloggableError("loss is 'a'"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)) as raised:
            hooked.on_epoch_end(error)
        assert error is raised.value
    assert 7 == hooked.on_step()
    assert not caplog.records
