"""The contract, for Lightning."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline.lightning import MLflowCallback
from mlpipeline.testing import IntegrationContract, Trained, watched

# Lightning's remarks on tiny data.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*resuming from a checkpoint", "ignore:The dirpath"
)

ROWS = torch.linspace(-1, 1, 32).reshape(8, 4)


class Line(pl.LightningModule):
    """A regression whose steps the probe is called in."""

    def __init__(self, probe):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.probe = probe

    def forward(self, rows):
        return self.layer(rows)

    def training_step(self, batch, batch_idx):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("probe", self.probe(self.global_step))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class TestLightning(IntegrationContract):
    """Batches are the steps, two of them an epoch, and a CSVLogger tells what Lightning reports."""

    def callback(self, **options):
        return MLflowCallback(**options)

    def train(self, callback, *, steps, probe, continue_from=None):
        folder = tempfile.mkdtemp(dir=".")  # in the test's own, empty working directory
        data = TensorDataset(ROWS, ROWS.sum(1, keepdim=True))
        # In the middle of an epoch: resumed from a checkpoint of the end, Lightning's own steps skip one.
        saving = ModelCheckpoint(f"{folder}/checkpoints", every_n_train_steps=1, save_last=True)
        callbacks = [saving, *([callback] if callback else [])]
        loggers = [CSVLogger(folder)]
        module = Line(probe)
        done, checkpoint = continue_from or (0, None)
        with watched(callbacks=callbacks, loggers=loggers, module=module) as touched:
            pl.Trainer(
                max_steps=done + steps,
                accelerator="cpu",
                callbacks=callbacks,
                logger=loggers,
                log_every_n_steps=1,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(
                module,
                DataLoader(data, batch_size=4, shuffle=True),
                DataLoader(data, batch_size=8),
                ckpt_path=checkpoint,
            )
        return Trained(
            reported=written(Path(loggers[0].log_dir, "metrics.csv")),
            model=b"".join(part.numpy().tobytes() for part in module.state_dict().values()),
            touched=touched,
            carry=(done + steps, saving.last_model_path),
        )


def written(path):
    """Per name, the values that a CSVLogger wrote; the epoch, which it has in every row, is not a metric."""
    found = {}
    for row in csv.DictReader(path.read_text().splitlines()):
        for name, value in row.items():
            if value and name not in {"step", "epoch"}:
                found.setdefault(name, []).append(float(value))
    return found
