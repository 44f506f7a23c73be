"""The contract, for Keras."""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras

from mlpipeline.keras import MLflowCallback
from mlpipeline.testing import IntegrationContract, Trained, watched

ROWS = np.linspace(-1, 1, 32, dtype="float32").reshape(8, 4)


class Probing(keras.callbacks.Callback):
    """A callback of the user's own that adds a metric to the epoch, as many do."""

    def __init__(self, probe):
        super().__init__()
        self.probe = probe

    def on_epoch_end(self, epoch, logs=None):
        logs["probe"] = self.probe(epoch)


class TestKeras(IntegrationContract):
    """Epochs of one batch are the steps, and Keras' own History tells what it reports."""

    def callback(self, **options):
        return MLflowCallback(**options)

    def train(self, callback, *, steps, probe, continue_from=None):
        keras.utils.set_random_seed(0)
        model, done = continue_from or (keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), 0)
        if not done:
            model.compile("sgd", "mse")
        callbacks = [Probing(probe), *([callback] if callback else [])]
        with watched(callbacks=callbacks, rows=ROWS) as touched:
            history = model.fit(
                ROWS,
                ROWS.sum(1),
                batch_size=len(ROWS),
                epochs=done + steps,
                initial_epoch=done,
                callbacks=callbacks,
                verbose=0,
            ).history
        weights = b"".join(weight.tobytes() for weight in model.get_weights())
        reported = {name: [float(value) for value in values] for name, values in history.items()}
        return Trained(reported, weights, touched, carry=(model, done + steps))
