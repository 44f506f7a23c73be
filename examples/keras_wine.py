"""Train a small network on scikit-learn's wines with Keras, register its best weights, load them back.

Everything lands in ``mlflow.db`` in the working directory; look at it with ``mlflow ui``.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported, which would look for TensorFlow

import keras
import mlflow
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split

from mlpipeline import MLflowConfig
from mlpipeline.keras import MLflowCallback


def main() -> None:
    """Train, evaluate, reload."""
    keras.utils.set_random_seed(7)
    wines, kinds = load_wine(return_X_y=True)
    train, test, train_kinds, test_kinds = train_test_split(wines, kinds, test_size=0.25, random_state=7)
    scale = keras.layers.Normalization()
    scale.adapt(train)
    model = keras.Sequential(
        [
            keras.Input((13,)),
            scale,
            keras.layers.Dense(16, "relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])

    config = MLflowConfig(
        experiment_name="wine", model_name="wine", register_model=True, model_alias="champion"
    )
    callback = MLflowCallback(config, log_every_n_steps=1)
    model.fit(train, train_kinds, epochs=20, validation_split=0.2, verbose=0, callbacks=[callback])
    model.evaluate(test, test_kinds, verbose=0, callbacks=[callback])

    print(f"recorded as run {callback.run_id}, registered as version {callback.model_version}")
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    champion = mlflow.keras.load_model("models:/wine@champion")
    right = (champion.predict(test, verbose=0).argmax(1) == test_kinds).sum()
    print(f"models:/wine@champion knows {right} of {len(test)} wines it has not seen")


if __name__ == "__main__":
    main()
