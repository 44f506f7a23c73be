"""Train a small network on scikit-learn's diabetes data with a hand-written loop, register it, load it back.

Everything lands in ``mlflow.db`` in the working directory; look at it with ``mlflow ui``.
"""

from __future__ import annotations

import mlflow
import torch
from sklearn.datasets import load_diabetes
from torch.utils.data import DataLoader, TensorDataset, random_split

from mlpipeline import MLflowConfig
from mlpipeline.torch import MLflowLoop


def main() -> None:
    """Train, reload."""
    torch.manual_seed(7)
    patients, progression = (torch.tensor(part).float() for part in load_diabetes(return_X_y=True))
    data = TensorDataset(patients * 20, progression[:, None] / 100)
    train, val = random_split(data, [342, 100])
    module = torch.nn.Sequential(torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    error = torch.nn.functional.mse_loss

    config = MLflowConfig(
        experiment_name="diabetes", model_name="diabetes", register_model=True, model_alias="champion"
    )
    with MLflowLoop(config, params={"hidden": 32}) as loop:
        loop.watch(module, optimizer, monitor="val_loss")
        for _ in loop.epochs(20):
            for rows, targets in loop.batches(DataLoader(train, 32, shuffle=True)):
                optimizer.zero_grad()
                loss = error(module(rows), targets)
                loss.backward()
                optimizer.step()
                loop.log(train_loss=loss)
            with torch.no_grad():
                rows, targets = val[:]
                loop.log(val_loss=error(module(rows), targets))

    print(f"recorded as run {loop.run_id}, registered as version {loop.model_version}")
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    champion = mlflow.pytorch.load_model("models:/diabetes@champion")
    rows, targets = val[:]
    with torch.no_grad():
        print(f"val_loss of the last epoch {error(module(rows), targets):.3f}", end=", ")
        print(f"of models:/diabetes@champion {error(champion(rows), targets):.3f}")


if __name__ == "__main__":
    main()
