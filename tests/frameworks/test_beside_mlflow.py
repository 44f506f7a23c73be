"""Our Lightning callback beside MLflow's own ways of recording: nothing doubled, no run stolen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import mlflow
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger
from mlflow import MlflowClient
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline import MLflowConfig
from mlpipeline.lightning import MLflowCallback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEPS = 6


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callback: MLflowCallback, logger: Any = False) -> None:
    """Train three steps in each of two epochs."""
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), DataLoader(TensorDataset(torch.ones(6, 2)), 2))


def steps_of(run_id: str) -> list[int]:
    return sorted(point.step for point in MlflowClient().get_metric_history(run_id, "loss"))


@pytest.fixture
def callback(store_uri: str) -> MLflowCallback:
    mlflow.set_tracking_uri(store_uri)
    return MLflowCallback(MLflowConfig(delivery="offline", log_model=False))


@pytest.fixture
def autolog() -> Iterator[None]:
    mlflow.pytorch.autolog(log_models=False, checkpoint=False, log_every_n_step=1, silent=True)
    yield
    mlflow.pytorch.autolog(disable=True, silent=True)


def test_inside_a_users_run_everything_lands_there_once(
    callback: MLflowCallback, deliver: Callable[[], None]
) -> None:
    """`with mlflow.start_run():` around fit: one run, each step once, ended by the user."""
    with mlflow.start_run() as theirs:
        fit(callback)
        deliver()
        assert "RUNNING" == MlflowClient().get_run(theirs.info.run_id).info.status
    assert list(range(STEPS)) == steps_of(theirs.info.run_id)
    assert 1 == len(MlflowClient().search_runs([theirs.info.experiment_id]))
    assert theirs.info.run_id == callback.run_id


def test_after_set_experiment_the_run_is_in_it(callback: MLflowCallback, deliver: Callable[[], None]) -> None:
    """The user's `mlflow.set_experiment` is honoured."""
    experiment = mlflow.set_experiment("chosen")
    fit(callback)
    deliver()
    (run,) = MlflowClient().search_runs([experiment.experiment_id])
    assert list(range(STEPS)) == steps_of(run.info.run_id)


def test_beside_mlflow_logger_there_are_two_whole_runs(
    callback: MLflowCallback, deliver: Callable[[], None], store_uri: str
) -> None:
    """Lightning's own logger keeps its run, ours is another; neither has the other's points."""
    theirs = MLFlowLogger("theirs", tracking_uri=store_uri)
    fit(callback, logger=theirs)
    deliver()
    assert list(range(STEPS)) == steps_of(theirs.run_id)
    (ours,) = MlflowClient().search_runs(
        [MlflowClient().get_experiment_by_name("ml-pipeline-experiment").experiment_id]
    )
    assert theirs.run_id != ours.info.run_id
    assert list(range(STEPS)) == steps_of(ours.info.run_id)
    assert ["FINISHED", "FINISHED"] == [
        MlflowClient().get_run(run_id).info.status for run_id in (theirs.run_id, ours.info.run_id)
    ]


def test_beside_autolog_its_run_is_not_taken_and_nothing_is_doubled(
    callback: MLflowCallback, deliver: Callable[[], None], autolog: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Autolog opens a run of its own around fit; ours is separate, and says so once."""
    fit(callback)
    deliver()
    client = MlflowClient()
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    ours = [run for run in runs if "mlpipeline.uid" in run.data.tags]
    theirs = [run for run in runs if "mlflow.autologging" in run.data.tags]
    assert (1, 1) == (len(ours), len(theirs))
    for run in (*ours, *theirs):
        steps = steps_of(run.info.run_id)
        assert len(set(steps)) == len(steps)
        assert "FINISHED" == run.info.status
    assert list(range(STEPS)) == steps_of(ours[0].info.run_id)
    assert 1 == sum(
        "autolog" in record.getMessage() for record in caplog.records if record.name == "mlpipeline"
    )
