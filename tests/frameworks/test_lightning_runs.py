"""Which run a Lightning training goes to, how that ends, and what continues it."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import UsageError
from mlpipeline.lightning import MLflowCallback
from mlpipeline.testing import record
from mlpipeline.tracking.opening import open_run

# Lightning's remarks on tiny data.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:Checkpoint directory",
)

DATA = TensorDataset(torch.randn(24, 4), torch.randn(24, 1))


class Net(pl.LightningModule):
    """A regression; *fault* is called in every training step."""

    def __init__(self, fault=lambda step: None):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.fault = fault

    def forward(self, rows):
        return self.layer(rows)

    def training_step(self, batch, batch_idx):
        self.fault(self.global_step)
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class StopError(Exception):
    """What goes wrong in a training."""


def stop_at(step):
    """A fault at a step."""

    def fault(now):
        if now == step:
            raise StopError(f"at step {step}")

    return fault


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline", log_model=False)


@pytest.fixture
def trainer(tmp_path):
    """Make a Trainer for the CPU that says nothing and writes below tmp_path; 3 steps an epoch."""

    def trainer(*callbacks, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
        options = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path, **quiet, **options}
        options.setdefault("logger", False)
        options.setdefault(
            "enable_checkpointing", any(isinstance(item, ModelCheckpoint) for item in callbacks)
        )
        return pl.Trainer(callbacks=list(callbacks), **options)

    return trainer


# --- how it ends ------------------------------------------------------------------------------------


def test_an_exception_is_the_users_and_the_run_has_failed(offline, trainer, runs, points):
    """The original exception on top; what was recorded until then is there."""
    with pytest.raises(StopError, match="at step 4"):
        trainer(MLflowCallback(offline)).fit(Net(stop_at(4)))
    [run] = runs()
    assert "FAILED" == run.info.status
    assert 4 == len(points(run, "train_loss"))


def test_after_an_exception_the_module_and_the_trainer_are_as_before(offline, trainer):
    """No hook on the module, no listener among the loggers."""
    training = trainer(MLflowCallback(offline))
    with pytest.raises(StopError):
        training.fit(net := Net(stop_at(0)))
    assert not net._forward_pre_hooks
    assert ([], list) == (training.loggers, type(training.loggers))


def test_what_cannot_be_recorded_does_not_stop_a_training(offline, trainer, caplog):
    """A dataset that raises when asked for its length costs only that, and is told."""

    class Unsized(TensorDataset):
        def __len__(self):
            if any("mlpipeline" in line.filename for line in __import__("inspect").stack()):
                raise NotImplementedError("no length for you")
            return super().__len__()

    with record() as recorded:
        trainer(MLflowCallback(offline)).fit(Net(), DataLoader(Unsized(*DATA.tensors), batch_size=8))
    assert ["FINISHED"] == recorded.statuses
    assert 6 == len(recorded.metrics["train_loss"])
    assert ["could not record the datasets"] == [
        entry.getMessage() for entry in caplog.records if entry.name == "mlpipeline"
    ]


def test_a_trial_run_is_recorded_without_a_model(offline, trainer, runs):
    """`fast_dev_run` takes away loggers and checkpoints, and says so in the params."""
    trainer(MLflowCallback(offline, log_model=True), fast_dev_run=2).fit(Net())
    [run] = runs()
    assert ("FINISHED", "2") == (run.info.status, run.data.params["trainer.fast_dev_run"])
    assert "train_loss" in run.data.metrics
    assert not run.outputs or not run.outputs.model_outputs


# --- one run per trainer ----------------------------------------------------------------------------


def test_evaluating_afterwards_adds_to_the_run(offline, trainer, runs, points):
    """Validate, test and predict of the same trainer; the run is FINISHED again after each."""
    callback = MLflowCallback(offline)
    training = trainer(callback)
    training.fit(net := Net())
    assert callback.run.is_ended
    training.validate(net, verbose=False)
    training.test(net, verbose=False)
    training.predict(net)
    [run] = runs()
    assert "FINISHED" == run.info.status
    assert [2, 5, 6] == [step for step, _ in points(run, "val_loss")]
    assert [6] == [step for step, _ in points(run, "test_loss")]


def test_evaluating_first_opens_the_run_that_fit_continues(offline, trainer, runs, points):
    """One trainer, one run, in whatever order."""
    training = trainer(MLflowCallback(offline))
    training.test(net := Net(), verbose=False)
    training.fit(net)
    [run] = runs()
    assert (1, 6) == (len(points(run, "test_loss")), len(points(run, "train_loss")))


def test_a_second_fit_of_a_trainer_continues_its_run(offline, trainer, runs, points):
    """Its steps go on where they were."""
    training = trainer(MLflowCallback(offline))
    training.fit(net := Net())
    training.fit_loop.max_epochs = 3
    training.fit(net)
    [run] = runs()
    assert list(range(9)) == [step for step, _ in points(run, "train_loss")]
    assert "FINISHED" == run.info.status


def test_another_trainer_opens_a_new_run(offline, trainer, runs):
    """Also one that got the memory, and so the id(), of the one before."""
    callback = MLflowCallback(offline)
    for _ in range(4):
        training = trainer(callback, max_epochs=1)
        training.fit(Net())
        del training
        gc.collect()
    assert 4 == len(runs())


def test_a_given_run_is_added_to_and_never_ended(offline, trainer, runs):
    """Several callbacks share it; their own options hold for what they record."""
    with open_run(offline) as run:
        for step_axis in ("step", "both"):
            callback = MLflowCallback(run=run, step_axis=step_axis)
            trainer(callback).fit(Net())
            assert not run.is_ended
            assert callback.run is run
        run.log_metrics({"own": 1.0}, step=0)
    [found] = runs()
    assert {"own", "train_loss", "epoch/val_loss"} <= set(found.data.metrics)


def test_a_run_is_nested_under_its_parent(offline, trainer, runs):
    """As a trial's or a fold's is."""
    with open_run(offline) as parent:
        trainer(MLflowCallback(offline, parent=parent)).fit(Net())
    found = {run.data.tags["mlpipeline.uid"]: run for run in runs()}
    child = next(run for uid, run in found.items() if uid != parent.uid)
    assert found[parent.uid].info.run_id == child.data.tags["mlflow.parentRunId"]


def test_one_instance_in_two_threads_at_once_raises(offline, trainer, runs, points):
    """The second training is told; the first one's record is whole."""
    callback, inside, go_on = MLflowCallback(offline), threading.Event(), threading.Event()

    def wait(step):
        inside.set()
        go_on.wait(30)

    first = threading.Thread(target=lambda: trainer(callback).fit(Net(wait)))
    first.start()
    assert inside.wait(30)
    with pytest.raises(UsageError, match="one training at a time"):
        trainer(callback).fit(Net())
    go_on.set()
    first.join()
    [run] = runs()
    assert ("FINISHED", 6) == (run.info.status, len(points(run, "train_loss")))


def test_a_callback_can_be_pickled_and_copied_at_any_time(offline, trainer):
    """Before, during and after a training; copies record runs of their own."""
    callback = MLflowCallback(offline)
    taken = [pickle.dumps(callback)]
    training = trainer(callback)
    training.fit(Net(lambda step: taken.append(pickle.dumps(callback))))
    taken.append(pickle.dumps(callback))
    with record() as recorded:
        for item in [*map(pickle.loads, taken[:2]), pickle.loads(taken[-1]), copy.deepcopy(callback)]:
            trainer(item).fit(Net())
    assert ["FINISHED"] * 4 == recorded.statuses


# --- resuming ---------------------------------------------------------------------------------------


def test_a_resumed_training_continues_its_run(offline, trainer, runs, points, tmp_path):
    """What was recorded first stands, the overlap is not recorded again and is tagged."""
    keeping = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with pytest.raises(StopError):
        trainer(MLflowCallback(offline), keeping, max_epochs=3).fit(Net(stop_at(5)))
    [killed] = runs()
    before = points(killed, "train_loss")
    assert ("FAILED", [0, 1, 2, 3, 4]) == (killed.info.status, [step for step, _ in before])

    trainer(MLflowCallback(offline), max_epochs=3).fit(Net(), ckpt_path=tmp_path / "epoch=0.ckpt")
    [run] = runs()
    assert (killed.info.run_id, "FINISHED") == (run.info.run_id, run.info.status)
    assert before == points(run, "train_loss")[:5]
    assert list(range(9)) == [step for step, _ in points(run, "train_loss")]
    assert "recorded before" in run.data.tags["mlpipeline.overlap"]


def test_a_training_resumed_in_mid_epoch_is_heard_at_once(offline, trainer, runs, points, tmp_path):
    """Lightning skips on_train_epoch_start there."""
    keeping = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=2)
    with pytest.raises(StopError):
        trainer(MLflowCallback(offline), keeping, max_epochs=1).fit(Net(stop_at(2)))
    trainer(MLflowCallback(offline), max_epochs=1).fit(Net(), ckpt_path=tmp_path / "step=2.ckpt")
    [run] = runs()
    assert [0, 1, 2] == [step for step, _ in points(run, "train_loss")]


def test_a_checkpoint_that_is_only_tested_continues_nothing(offline, trainer, runs, tmp_path):
    """Another trainer's test of a checkpoint, and a fit after it, have runs of their own."""
    first = trainer(MLflowCallback(offline))
    first.fit(Net())
    first.save_checkpoint(tmp_path / "x.ckpt")
    callback = MLflowCallback(offline)
    trainer(callback).test(Net(), ckpt_path=tmp_path / "x.ckpt", verbose=False)
    trainer(callback).fit(Net())
    assert 3 == len(runs())


def test_a_checkpoint_loads_without_a_word_where_we_are_not(offline, trainer, tmp_path, recwarn):
    """Lightning warns of missing callbacks that left a state; ours leaves a name only."""
    first = trainer(MLflowCallback(offline))
    first.fit(Net())
    first.save_checkpoint(tmp_path / "x.ckpt")
    trainer(max_epochs=3).fit(Net(), ckpt_path=tmp_path / "x.ckpt")
    assert not [warning for warning in recwarn if "MLflowCallback" in str(warning.message)]


def test_the_learning_rate_finder_does_not_lead_into_an_older_run(offline, trainer, runs):
    """It saves and restores a checkpoint on the way, with an instance that has recorded before."""

    class Tuned(Net):
        def __init__(self):
            super().__init__()
            self.lr = 0.01

    callback = MLflowCallback(offline)
    trainer(callback).fit(Tuned())
    finder = LearningRateFinder(num_training_steps=3, early_stop_threshold=None)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer(callback, finder).fit(Tuned())
    assert ["FINISHED", "FINISHED"] == [run.info.status for run in runs()]
