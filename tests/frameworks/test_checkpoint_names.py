"""Lightning's checkpoints as models of their own (`log_model="all"`), whatever their files are called."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from mlflow import MlflowClient
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline.lightning import MLflowCallback


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, rows):
        return self.layer(rows)

    def training_step(self, batch, _):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_checkpoint_named_after_a_metric_is_a_model(store_uri, tmp_path, deliver):
    """MLflow refuses "loss=0.25" as a model's name; and only the final model becomes a version."""
    torch.manual_seed(0)
    rows = torch.randn(20, 2)
    callback = MLflowCallback(
        tracking_uri=store_uri,
        experiment_name="checkpoints",
        delivery="offline",
        log_model="all",
        register_model=True,
        model_name="line",
    )
    files = ModelCheckpoint(tmp_path, "{epoch}-{loss:.4f}", monitor="loss", save_top_k=-1)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, files],
    )
    trainer.fit(Line(), DataLoader(TensorDataset(rows, rows.sum(1, keepdim=True)), 10))
    deliver()
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_experiment_by_name("checkpoints")
    models = client.search_logged_models([experiment.experiment_id])
    names = sorted(model.name for model in models)
    assert 3 == len(names), "two checkpoints beside the best, and the best as the model"
    assert "model" in names
    assert not [name for name in names if set(name) & set("=.")]
    assert ["READY"] * 3 == [str(model.status) for model in models]
    assert 1 == len(client.search_model_versions("name = 'line'"))
