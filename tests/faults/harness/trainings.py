"""Small real trainings, one per integration: programs that note every step, and strike themselves if told to.

::

    python trainings.py order.json ──► notes: {"step": 0, "s": …} … {"result": …}

Each is the same to the bit every time, so that what one of them recorded undisturbed is what all the others
have to have in MLflow.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path

STRIKES = {
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "sigterm": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "sigint": lambda: os.kill(os.getpid(), signal.SIGINT),
    "os._exit": lambda: os._exit(7),
    "segfault": lambda: ctypes.string_at(0),
}


class Strike(Exception):
    """The user's own exception."""


class Training:
    """What the programs below have in common."""

    def __init__(self, order):
        self.steps = order["steps"]
        self.is_recorded = order["is_recorded"]
        self.name = order["name"]
        self._strike = order["strike"]
        self._step_s = order["step_s"]
        self._stand = order["stand"]
        self._go = Path(order["go"])
        self._stood_s = 0.0
        self._notes = os.open(order["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0

    def note(self, **facts):
        os.write(self._notes, json.dumps({**facts, "s": time.monotonic() - self._stood_s}).encode() + b"\n")

    def step(self, step=0):
        """Take a step; called from where the user's own code would be."""
        number, self._count = self._count, self._count + 1
        self.note(step=number)
        if number == self._stand:
            began_s = time.monotonic()
            while not self._go.exists():
                time.sleep(0.02)
            self._stood_s = time.monotonic() - began_s
            self.note(stood_s=self._stood_s)
        if self._strike is not None and number == self.steps // 2:
            if self._strike == "exception":
                raise Strike("the user's own")
            STRIKES[self._strike]()
        time.sleep(self._step_s)
        return number / 8

    def callbacks(self, callback, **options):
        """The integration's callback, unless nothing is to be recorded."""
        return [callback(run_name="training", **options)] if self.is_recorded else []


def tracker(training):
    from sklearn.linear_model import LinearRegression

    from mlpipeline import MLflowTracker

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    options = {"register_model": True, "model_name": training.name, "model_alias": "champion"}
    with MLflowTracker(enabled=training.is_recorded, run_name="training", **options) as tracker:
        tracker.log_params({"rate": 0.1, "model": {"depth": 3, "kind": "line"}})
        tracker.set_tags({"team": "faults", "phase": "begun"})
        tracker.log_dataset([[0.0], [1.0]], name="rows", context="training")
        tracker.log_text("begun", "notes/begun.txt")
        weight = 0.0
        for step in range(training.steps):
            weight += 0.1 * (1 - weight)
            training.step()
            tracker.log_metrics({"loss": (1 - weight) ** 2, "weight": weight}, step=step)
            tracker.log_metrics({"counted": weight})
        tracker.log_text("over " * 10_000, "notes/over.txt")
        tracker.set_tags({"phase": "over"})
        tracker.log_model(model, input_example=[[0.0]])
    return [weight, *model.coef_]


def lightning(training):
    import logging
    import warnings

    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from mlpipeline.lightning import MLflowCallback

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    rows = torch.linspace(-1, 1, 32).reshape(8, 4)

    class Line(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def forward(self, rows):
            return self.layer(rows)

        def training_step(self, batch, batch_idx):
            loss = (self(batch[0]) - batch[1]).square().mean()
            self.log("loss", loss)
            self.log("probe", training.step())
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", (self(batch[0]) - batch[1]).square().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module, data = Line(), TensorDataset(rows, rows.sum(1, keepdim=True))
    pl.Trainer(
        max_steps=training.steps,
        accelerator="cpu",
        callbacks=training.callbacks(MLflowCallback),
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(data, batch_size=4), DataLoader(data, batch_size=8))
    return [part.tolist() for part in module.state_dict().values()]


def xgboost(training):
    import numpy as np
    import xgboost as xgb

    from mlpipeline.xgboost import MLflowCallback

    rows = np.random.default_rng(0).normal(size=(60, 4))
    data = xgb.DMatrix(rows, label=rows.sum(1))
    booster = xgb.train(
        {"max_depth": 2, "nthread": 1},
        data,
        training.steps,
        evals=[(data, "train")],
        custom_metric=lambda predictions, data: ("probe", training.step()),
        callbacks=training.callbacks(MLflowCallback),
        verbose_eval=False,
    )
    return hashlib.sha256(booster.save_raw("json")).hexdigest()


def optuna(training):
    import optuna

    from mlpipeline.optuna import MLflowCallback

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(study_name=training.name, sampler=optuna.samplers.RandomSampler(seed=0))
    callbacks = training.callbacks(MLflowCallback, metric_name="value")

    def objective(trial):
        return trial.suggest_float("x", 0, 1) + training.step()

    tracked = callbacks[0].track_in_mlflow()(objective) if callbacks else objective
    study.optimize(tracked, training.steps, callbacks=callbacks)
    return [trial.value for trial in study.trials]


def sklearn(training):
    import numpy as np
    from sklearn.base import BaseEstimator, RegressorMixin

    from mlpipeline.sklearn import MLflowEstimator

    class Stepwise(RegressorMixin, BaseEstimator):
        def fit(self, X, y):
            self.coef_ = np.zeros(X.shape[1])
            for step in range(training.steps):
                training.step()
                self.coef_ += 0.01 * (y[step % len(X)] - X[step % len(X)] @ self.coef_) * X[step % len(X)]
            return self

        def predict(self, X):
            return X @ self.coef_

    rows = np.random.default_rng(0).normal(size=(40, 3))
    if not training.is_recorded:
        return Stepwise().fit(rows, rows.sum(1)).coef_.tolist()
    estimator = MLflowEstimator(Stepwise(), {"run_name": "training", "log_model": False})
    return estimator.fit(rows, rows.sum(1)).estimator_.coef_.tolist()


def keras(training):
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    import numpy as np

    from mlpipeline.keras import MLflowCallback

    class Stepping(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["probe"] = training.step()

    keras.utils.set_random_seed(0)
    rows = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callbacks = [Stepping(), *training.callbacks(MLflowCallback)]
    model.fit(rows, rows.sum(1), batch_size=8, epochs=training.steps, callbacks=callbacks, verbose=0)
    return [weight.tolist() for weight in model.get_weights()]


def torch(training):
    import torch

    from mlpipeline.torch import MLflowLoop

    torch.manual_seed(0)
    rows = torch.linspace(-1, 1, 32).reshape(8, 4)
    module = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loops = training.callbacks(MLflowLoop)
    with loops[0] if loops else contextlib.nullcontext() as loop:
        if loop is not None:
            loop.watch(module, optimizer)
        for _ in range(training.steps):
            with loop.batch() if loop is not None else contextlib.nullcontext():
                loss = (module(rows) - rows.sum(1, keepdim=True)).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                probe = training.step()
                if loop is not None:
                    loop.log(loss=loss, probe=probe)
    return [part.tolist() for part in module.state_dict().values()]


INTEGRATIONS = {
    "tracker": tracker,
    "lightning": lightning,
    "xgboost": xgboost,
    "optuna": optuna,
    "sklearn": sklearn,
    "keras": keras,
    "torch": torch,
}

if __name__ == "__main__":
    # Its own folder would come first, and a module of ours is named as a package of theirs.
    sys.path = [path for path in sys.path if path != str(Path(__file__).parent)]
    # A shell ignores it in what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = json.loads(Path(sys.argv[1]).read_text())
    training = Training(order)
    result = INTEGRATIONS[order["integration"]](training)
    training.note(result=repr(result))
