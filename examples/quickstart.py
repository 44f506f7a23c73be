"""Train a small network on scikit-learn's digits, register it, load it back, compare with earlier runs.

Run it twice: the second time, the comparison has something to compare. Everything lands in
``mlflow.db`` in the working directory; look at it with ``mlflow ui``.
"""

from __future__ import annotations

import lightning.pytorch as pl
import mlflow
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from mlpipeline import MLflowConfig, MLflowTracker
from mlpipeline.lightning import MLflowCallback


class Digits(pl.LightningModule):
    """Two layers are enough for 8x8 digits."""

    def __init__(self, hidden: int = 64, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the scores of ten classes per image."""
        return self.net(images)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        """Log loss and accuracy at every step."""
        images, labels = batch
        scores = self(images)
        loss = torch.nn.functional.cross_entropy(scores, labels)
        self.log_dict({"train_loss": loss, "train_acc": (scores.argmax(1) == labels).float().mean()})
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        """Log loss and accuracy per epoch."""
        images, labels = batch
        scores = self(images)
        self.log("val_loss", torch.nn.functional.cross_entropy(scores, labels), prog_bar=True)
        self.log("val_acc", (scores.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with the learning rate of the hyperparameters."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def main() -> None:
    """Train, register, reload, compare."""
    pl.seed_everything(7)
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32)
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1500, 297])

    config = MLflowConfig(
        experiment_name="digits",
        model_name="digits",
        register_model=True,
        model_alias="champion",
        log_input_example=True,
    )
    callback = MLflowCallback(config)
    trainer = pl.Trainer(
        max_epochs=5,
        accelerator="cpu",
        logger=False,
        log_every_n_steps=1,
        callbacks=[callback, pl.callbacks.ModelCheckpoint(monitor="val_loss")],
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(val, 297))

    print(f"recorded as run {callback.run_id}, registered as version {callback.model_version}")
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    champion = mlflow.pytorch.load_model("models:/digits@champion")
    with torch.no_grad():
        right = (champion(images[:100]).argmax(1) == torch.tensor(digits.target[:100])).sum()
    print(f"models:/digits@champion knows {int(right)} of the first 100 digits")

    tracker = MLflowTracker(config)
    runs = tracker.search_runs(max_results=5)
    table = tracker.compare_runs([run.run_id for run in runs])
    print(table[["run_name", "status", "val_acc", "val_loss", "samples_per_s"]].to_string())


if __name__ == "__main__":
    main()
