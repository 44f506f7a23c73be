"""Lightning trainings in processes of their own: interrupted, distributed, from a command line, the twin package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

import mlpipeline

pytestmark = [pytest.mark.process, pytest.mark.slow]

SRC = str(Path(mlpipeline.__file__).parents[1])

# Lightning leaves its process group to the exit of the process, where threads of the group that still run make
# torch abort now and then on a busy machine ("terminate called without an active exception"), without us, too.
MODULE = """
import multiprocessing, os, sys, time
import torch
from PACKAGE import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from mlpipeline.lightning import MLflowCallback

def leave():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

class Net(LightningModule):
    def __init__(self, width: int = 4, pause_s: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)
    def forward(self, rows):
        return self.layer(rows)
    def training_step(self, batch, batch_idx):
        time.sleep(self.hparams.pause_s)
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, sync_dist=True)
        MLflowCallback.of(self.trainer).run.log_metrics({"rank": self.global_rank}, self.global_step)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean(), sync_dist=True)
    def test_step(self, batch, batch_idx):
        self.log("test_loss", (self(batch[0]) - batch[1]).square().mean(), sync_dist=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
    def teardown(self, stage):
        if multiprocessing.parent_process() is not None:
            leave()  # a spawned process does nothing after this
    def train_dataloader(self):
        torch.manual_seed(0)
        return DataLoader(TensorDataset(torch.randn(32, 4), torch.randn(32, 1)), batch_size=4)
    val_dataloader = test_dataloader = train_dataloader
"""

QUIET = "accelerator='cpu', logger=False, log_every_n_steps=1, enable_progress_bar=False"

FIT = f"""
if __name__ == "__main__":
    callback = MLflowCallback()
    trainer = Trainer(max_epochs=2, callbacks=[callback], {QUIET}, **eval(sys.argv[1]))
    trainer.fit(net := Net(pause_s=float(os.environ.get("PAUSE_S", 0))))
    if trainer.is_global_zero:
        print("uid", callback.run.uid)
    trainer.test(net, verbose=False)
    leave()
"""


@pytest.fixture
def start(store_uri, tmp_path):
    """Start a training script of the user's; offline, so that the `deliver` fixture sends."""

    def start(text, *args, package="lightning.pytorch", **environ):
        script = tmp_path / "train.py"
        script.write_text(MODULE.replace("PACKAGE", package) + text)
        return subprocess.Popen(
            [sys.executable, str(script), *args],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": SRC,
                "MLPIPELINE_DELIVERY": "offline",
                "MLFLOW_TRACKING_URI": store_uri,
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def only_run(store_uri, deliver, mlflow_client):
    """Deliver, then return the one run there is."""

    def only_run():
        deliver()
        client = mlflow_client(store_uri)
        [run] = client.search_runs([item.experiment_id for item in client.search_experiments()])
        return run

    return only_run


def finish(process):
    """Wait for a process and return what it printed."""
    output, errors = process.communicate(timeout=100)
    assert 0 == process.returncode, errors
    return output


def test_ctrl_c_makes_the_run_killed(start, only_run, home):
    """Lightning shuts down gracefully and exits with 1; the run says what happened."""
    process = start(FIT, "{}", PAUSE_S="0.05", MLFLOW_EXPERIMENT_NAME="interrupted")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.stat().st_size > 4000 for path in home.rglob("*.seg")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert 1 == process.returncode, errors
    assert "Traceback" not in errors
    run = only_run()
    assert "KILLED" == run.info.status
    assert "loss" in run.data.metrics


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_make_one_run(strategy, start, only_run, store_uri, mlflow_client):
    """Rank zero writes it; the callback that the user holds knows it, also after spawning; a test adds to it."""
    output = finish(start(FIT, f"dict(strategy='{strategy}', devices=2)", MASTER_ADDR="127.0.0.1"))
    run = only_run()
    client = mlflow_client(store_uri)
    assert ["uid " + run.data.tags["mlpipeline.uid"]] == [
        line for line in output.splitlines() if line.startswith("uid")
    ]
    assert "FINISHED" == run.info.status
    history = client.get_metric_history(run.info.run_id, "loss")
    assert list(range(8)) == sorted(item.step for item in history)
    assert {0.0} == {item.value for item in client.get_metric_history(run.info.run_id, "rank")}
    assert "test_loss" in run.data.metrics
    assert "2" == run.data.params["trainer.num_devices"]
    [output_model] = run.outputs.model_outputs
    model = client.get_logged_model(output_model.model_id)
    assert "last" == model.tags["mlpipeline.weights"]
    mlflow.set_tracking_uri(store_uri)
    signature = mlflow.models.get_model_info(model.model_uri).signature
    assert [(None, (-1, 4))] == [(item.name, item.shape) for item in signature.inputs.inputs]


TWIN = f"""
if __name__ == "__main__":
    Trainer(max_epochs=1, callbacks=[MLflowCallback()], {QUIET}).fit(Net())
    assert "lightning.pytorch" not in sys.modules
"""


def test_the_twin_package_alone_is_enough(start, only_run):
    """`pytorch_lightning` has classes of its own; `lightning` is not imported beside it."""
    finish(start(TWIN, package="pytorch_lightning"))
    run = only_run()
    assert "FINISHED" == run.info.status
    assert {"loss", "val_loss", "epoch_time_s"} <= set(run.data.metrics)
    assert 1 == len(run.outputs.model_outputs)


CLI = """
if __name__ == "__main__":
    from lightning.pytorch.cli import LightningCLI
    LightningCLI(Net)
"""

YAML = """
model:
  width: 4
trainer:
  max_epochs: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  callbacks:
    - class_path: mlpipeline.lightning.MLflowCallback
      init_args:
        config: {experiment_name: x}
"""


def test_the_command_line_takes_the_callback_from_yaml(start, only_run, tmp_path, store_uri, mlflow_client):
    """With its options, as any other callback."""
    (tmp_path / "mine.yaml").write_text(YAML)
    finish(start(CLI, "fit", "--config", "mine.yaml"))
    run = only_run()
    assert "FINISHED" == run.info.status
    assert run.info.experiment_id == mlflow_client(store_uri).get_experiment_by_name("x").experiment_id
    assert "4" == run.data.params["width"]
