"""A Keras training lands in MLflow as it was, and goes as it would go without us."""

from __future__ import annotations

import copy
import gc
import pickle
import random
import subprocess
import sys
import threading

import keras
import mlflow.keras
import mlflow.pyfunc
import numpy as np
import pytest
import torch
from keras import layers
from sklearn.datasets import load_wine

from mlpipeline import keras as ours
from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.keras import MLflowCallback
from mlpipeline.testing import record
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.staging import stage_model

X, Y = load_wine(return_X_y=True)
X = ((X - X.mean(0)) / X.std(0)).astype("float32")
OURS = {"epoch", "epoch_time_s", "samples_per_s", "learning_rate", "best_val_loss"}
QUIET = {"batch_size": 32, "verbose": 0}


def net(**compiled):
    """A compiled classifier of wines."""
    model = keras.Sequential(
        [keras.Input((13,)), layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(3, "softmax")]
    )
    options = {"optimizer": "adam", "loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    model.compile(**{**options, **compiled})
    return model


class StopError(Exception):
    """What goes wrong in a training."""


class Fault(keras.callbacks.Callback):
    """Raises at the end of an epoch."""

    def __init__(self, epoch, error=StopError):
        super().__init__()
        self.at, self.error = epoch, error

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.at:
            raise self.error(f"in epoch {epoch}")


@keras.saving.register_keras_serializable("tests")
class Worse(keras.layers.Layer):
    """Passes on what it gets; the validation of a model with it gets worse with every training step."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        if training:
            self.count.assign(self.count + 1)
        return inputs + self.count * (1.0 - float(bool(training)))


def worsening():
    """A compiled regression whose first epoch is its best."""
    model = keras.Sequential([keras.Input((13,)), layers.Dense(1), Worse()])
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline", log_model=False)


@pytest.fixture
def logged(store_uri, deliver, mlflow_client):
    """Deliver, then return the only logged model."""

    def logged():
        deliver()
        mlflow.set_tracking_uri(store_uri)
        mlflow.set_registry_uri(store_uri)
        client = mlflow_client(store_uri)
        [model] = client.search_logged_models([item.experiment_id for item in client.search_experiments()])
        return model

    return logged


def values(pairs):
    """The values of (step, value) pairs."""
    return [value for _, value in pairs]


def steps(pairs):
    """The steps of (step, value) pairs."""
    return [step for step, _ in pairs]


# --- metrics ----------------------------------------------------------------------------------------


def test_epochs_are_what_history_has(offline, runs, points):
    """Every name, to the last bit, at the last step of its epoch; nothing else but what is ours."""
    done = net().fit(X, Y, epochs=3, validation_split=0.2, callbacks=[MLflowCallback(offline)], **QUIET)
    [run] = runs()
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} == set(done.history)
    for name, series in done.history.items():
        assert series == values(points(run, name))
        assert [4, 9, 14] == steps(points(run, name))
    assert set(run.data.metrics) == set(done.history) | OURS
    assert [0, 1, 2] == values(points(run, "epoch"))
    assert "FINISHED" == run.info.status


@pytest.mark.parametrize(
    ("axis", "names"),
    [
        ("step", {"loss": [5, 11]}),
        ("epoch", {"loss": [0, 1]}),
        ("both", {"loss": [5, 11], "epoch/loss": [0, 1]}),
    ],
)
def test_batches_and_epochs_are_apart(axis, names):
    """Other names, and batches always at the step of the training."""
    with record() as recorded:
        callback = MLflowCallback(step_axis=axis, log_every_n_steps=2, log_model=False)
        done = net().fit(X, Y, epochs=2, callbacks=[callback], **QUIET)
    assert names == {name: recorded.steps[name] for name in recorded.steps if name.endswith("loss") and "batch" not in name}  # fmt: skip
    assert [1, 3, 5, 7, 9, 11] == sorted(recorded.steps["batch/loss"])
    # What Keras reports at the last batch of an epoch is the epoch.
    batches = dict(zip(recorded.steps["batch/loss"], recorded.metrics["batch/loss"], strict=True))
    assert done.history["loss"] == [batches[5], batches[11]]


def test_batches_are_recorded_only_if_asked_for():
    """As Keras, which keeps a history of epochs; and without epochs, if asked for."""
    with record() as recorded:
        net().fit(X, Y, callbacks=[MLflowCallback(log_model=False)], **QUIET)
    assert not [name for name in recorded.metrics if name.startswith("batch/")]
    with record() as recorded:
        callback = MLflowCallback(log_every_epoch=False, log_every_n_steps=1, log_model=False)
        net().fit(X, Y, callbacks=[callback], **QUIET)
    assert {"batch/loss", "batch/accuracy"} == set(recorded.metrics)
    assert list(range(6)) == sorted(recorded.steps["batch/loss"])


def test_keras_stays_free_to_call_batch_hooks_in_threads():
    """A callback that Keras takes for slow makes every batch wait for its logs."""
    together = keras.callbacks.CallbackList([MLflowCallback(log_every_n_steps=1)])
    assert together._async_train
    assert not keras.callbacks.CallbackList([keras.callbacks.LambdaCallback(on_train_batch_end=print)])._async_train  # fmt: skip


def test_the_learning_rate_is_that_of_a_schedule_or_of_keras_own_callback():
    """Per epoch; where another callback has put it into the logs, theirs counts."""
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 6, 0.5)
    with record() as recorded:
        callback = MLflowCallback(log_model=False)
        net(optimizer=keras.optimizers.SGD(rate)).fit(X, Y, epochs=2, callbacks=[callback], **QUIET)
    assert recorded.metrics["learning_rate"] == pytest.approx([0.05, 0.025])
    assert ("ExponentialDecay", "0.5") == (
        recorded.params["optimizer_learning_rate.name"],
        recorded.params["optimizer_learning_rate.decay_rate"],
    )
    halving = keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=100)
    with record() as recorded:
        both = [halving, MLflowCallback(log_model=False)]
        done = net().fit(X, Y, epochs=2, callbacks=both, **QUIET)
    assert done.history["learning_rate"] == recorded.metrics["learning_rate"]
    # The callback puts a rate into the logs, and changes it.
    assert recorded.metrics["learning_rate"][1] == 2 * float(done.model.optimizer.learning_rate.value)


def test_speed_and_sizes_come_from_what_keras_has_counted():
    """Rows and batch size are in no argument of a callback's."""
    with record() as recorded:
        net().fit(X, Y, epochs=2, validation_data=(X[:50], Y[:50]), callbacks=[MLflowCallback()], **QUIET)
    sizes = {key: value for key, value in recorded.params.items() if key.startswith("data.")}
    assert {
        "data.training.rows": "178",
        "data.training.batch_size": "32",
        "data.validation.rows": "50",
    } == sizes
    fastest = 178 / min(recorded.metrics["epoch_time_s"])
    assert all(speed >= fastest / 100 for speed in recorded.metrics["samples_per_s"])


def test_a_metric_with_a_value_per_class_is_recorded_per_class():
    """Keras puts an array into the logs."""
    f1 = keras.metrics.F1Score(average=None)
    one_hot = keras.utils.to_categorical(Y)
    with record() as recorded:
        model = net(loss="categorical_crossentropy", metrics=[f1])
        done = model.fit(X, one_hot, callbacks=[MLflowCallback(log_model=False)], **QUIET)
    expected = np.asarray(done.history["f1_score"][0]).tolist()
    assert expected == [recorded.metrics[f"f1_score/{number}"][0] for number in range(3)]


def test_a_loss_that_is_no_number_does_not_stop_a_training():
    """It is tagged with its step, and the best weights are those before it."""
    bad = X.copy()
    bad[:] = np.nan
    with record() as recorded:
        net().fit(bad, Y, epochs=2, validation_split=0.2, callbacks=[MLflowCallback()], **QUIET)
    assert ["FINISHED"] == recorded.statuses
    assert "nan at step 4" == recorded.tags["mlpipeline.nonfinite.loss"]
    assert "best_val_loss" not in recorded.metrics


# --- hyperparameters --------------------------------------------------------------------------------


def test_hyperparameters_have_the_names_of_mlflows_own_callback(offline, runs, store_uri, mlflow_client):
    """`optimizer_*` and `model_summary.txt`, and more; the user's own win."""
    params = {"team": "wine", "fit": {"epochs": "mine"}}
    model = net(metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])
    model.fit(X, Y, epochs=2, callbacks=[MLflowCallback(offline, params=params)], **QUIET)
    [run] = runs()
    expected = {
        "team": "wine",
        "fit.epochs": "mine",
        "optimizer_name": "Adam",
        "optimizer_learning_rate": str(float(np.float32(0.001))),
        "optimizer_beta_1": "0.9",
        "compile.loss": "sparse_categorical_crossentropy",
        "parameters.total": "139",
        "parameters.trainable": "139",
    }
    assert expected.items() <= run.data.params.items()
    assert "sparse_top_k" in run.data.params["compile.metrics"]
    assert "None" not in run.data.params.values()
    [summary] = mlflow_client(store_uri).list_artifacts(run.info.run_id)
    assert "model_summary.txt" == summary.path
    folder = mlflow_client(store_uri).download_artifacts(run.info.run_id, "model_summary.txt")
    with open(folder, encoding="utf-8") as text:
        assert "Total params" in text.read()


def test_an_optimizer_of_another_kind_costs_nothing_else():
    """A model with its own train_step may have none, or several."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layers.Dense(1)

        def call(self, rows):
            return self.layer(rows)

        def train_step(self, data):
            return {"loss": keras.ops.mean(self(data[0])), "own": 1.0}

    with record() as recorded:
        model = Own()
        model.compile(optimizer=None)
        model.fit(X, Y, epochs=2, callbacks=[MLflowCallback(log_model=False)], **QUIET)
    assert [1.0, 1.0] == recorded.metrics["own"]
    assert [5, 11] == recorded.steps["own"]
    assert not {"samples_per_s", "learning_rate"} & set(recorded.metrics)


# --- the training is what it is without us ------------------------------------------------------------


def state_of_everything():
    """The states of all random numbers, and Keras' next names."""
    numpy = np.random.get_state()  # noqa: NPY002 - the global one is what a library could disturb
    generator = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    return (
        random.getstate(),
        numpy[1].tolist(),
        torch.get_rng_state().tolist(),
        None if generator is None else np.asarray(generator.state.value).tolist(),
        layers.Dense(1).name,
    )


@pytest.mark.parametrize("make", [net, worsening])
def test_model_and_random_numbers_are_what_they_are_without_us(make):
    """To the bit, though the best weights are logged; and the user's list keeps its entries."""
    seen = []
    for kind in (None, MLflowCallback):
        keras.utils.set_random_seed(3)
        keras.backend.clear_session()
        model = make()
        callbacks = [kind()] if kind else []
        given = list(callbacks)
        with record() as recorded:
            done = model.fit(X, Y, epochs=3, validation_split=0.2, callbacks=callbacks, **QUIET)
        assert given == callbacks
        assert (kind is not None) == bool(recorded.models)
        weights = [weight.tolist() for weight in model.get_weights()]
        optimizer = [np.asarray(item.value.detach()).tolist() for item in model.optimizer.variables]
        hooks = len(model._forward_pre_hooks) + len(model._forward_hooks)
        seen.append((done.history, weights, optimizer, hooks, model.stop_training, state_of_everything()))
    assert seen[0] == seen[1]


# --- the model --------------------------------------------------------------------------------------


def test_the_best_weights_are_logged_and_predict_what_they_predict(offline, logged, runs, points):
    """The first epoch's here, with their step; the model itself keeps its last."""
    kept = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: copies.append(model.get_weights()))
    copies, model = [], worsening()
    callback = MLflowCallback(offline, log_model=True)
    done = model.fit(X, Y, epochs=3, validation_split=0.2, callbacks=[callback, kept], **QUIET)
    found = logged()
    assert "best val_loss" == found.tags["mlpipeline.weights"]
    loaded = callback.load_model()
    assert np.array_equal(copies[0][0], loaded.get_weights()[0])
    assert np.array_equal(copies[-1][0], model.get_weights()[0])
    model.set_weights(copies[0])
    assert np.array_equal(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
    [run] = runs()
    assert [(4, done.history["val_loss"][0])] == points(run, "best_val_loss")
    assert [4] == [item.step for item in run.outputs.model_outputs]


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"monitor": "val_accuracy"}, "best val_accuracy"),
        ({"monitor": "loss", "mode": "max"}, "best loss"),
        ({}, "last"),
    ],
)
def test_the_monitor_decides_which_weights_are_the_best(options, weights, offline, logged, runs, points):
    """In Keras' own direction; without a validation, the last weights."""
    split = {"validation_split": 0.2} if "val" in weights else {}
    callback = MLflowCallback(offline, log_model=True, **options)
    done = net().fit(X, Y, epochs=4, callbacks=[callback], **split, **QUIET)
    assert weights == logged().tags["mlpipeline.weights"]
    if options:
        [run] = runs()
        name = weights.removeprefix("best ")
        assert [max(done.history[name])] == values(points(run, f"best_{name}"))


def test_a_monitor_that_does_not_exist_is_told(offline, logged, caplog):
    """A slip of the pen costs the best weights, not the training."""
    net().fit(X, Y, callbacks=[MLflowCallback(offline, log_model=True, monitor="acuracy")], **QUIET)
    assert "last" == logged().tags["mlpipeline.weights"]
    assert "monitor='acuracy' is no metric" in caplog.text


def test_a_monitor_without_a_direction_raises():
    """As Keras' own callbacks do, with what to write."""

    def odd(true, predicted):
        return keras.ops.mean(predicted)

    with record(), pytest.raises(UsageError, match="pass mode='min' or mode='max'"):
        net(metrics=[odd]).fit(X, Y, callbacks=[MLflowCallback(monitor="odd")], **QUIET)


def test_early_stopping_restores_the_weights_that_are_logged(offline, logged, runs):
    """Wherever it stands in the list; where it stopped is a metric."""
    model = worsening()
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    callbacks = [stopping, MLflowCallback(offline, log_model=True)]
    model.fit(X, Y, epochs=9, validation_split=0.2, callbacks=callbacks, **QUIET)
    loaded = mlflow.keras.load_model(logged().model_uri)
    assert all(map(np.array_equal, model.get_weights(), loaded.get_weights()))
    [run] = runs()
    assert 1 == run.data.metrics["stopped_epoch"]


def test_the_model_is_registered_with_its_signature(offline, logged, store_uri, mlflow_client):
    """By plain MLflow; and the callback knows it by version."""
    callback = MLflowCallback(offline, log_model=True, registered_model_name="wine", model_alias="champion")
    model = net()
    model.fit(X, Y, callbacks=[callback], **QUIET)
    found = logged()
    scorer = mlflow.pyfunc.load_model(found.model_uri)
    assert np.array_equal(model.predict(X, verbose=0), scorer.predict(X))
    signature = scorer.metadata.signature
    assert ((-1, 13), (-1, 3)) == (signature.inputs.inputs[0].shape, signature.outputs.inputs[0].shape)
    assert "1" == str(mlflow_client(store_uri).get_model_version_by_alias("wine", "champion").version)
    assert (1, found.model_uri) == (callback.model_version, callback.model_uri)


def test_facts_alone_are_logged_when_asked(offline, logged):
    """`log_model="metadata"` keeps no weights on the way."""
    callback = MLflowCallback(offline, log_model="metadata")
    worsening().fit(X, Y, epochs=2, validation_split=0.2, callbacks=[callback], **QUIET)
    assert "best val_loss" == logged().tags["mlpipeline.weights"]
    assert callback._best.weights is None


def test_the_model_of_every_epoch_is_logged_when_asked(offline, deliver, store_uri, mlflow_client):
    """`log_model="all"`: each with its step; the best one comes last, and is the one that is registered."""
    copies, model = [], worsening()
    kept = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: copies.append(model.get_weights()))
    callback = MLflowCallback(offline, log_model="all", registered_model_name="worse")
    model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[callback, kept], **QUIET)
    deliver()
    client = mlflow_client(store_uri)
    found = client.search_logged_models([item.experiment_id for item in client.search_experiments()])
    by_name = {item.name: item for item in found}
    assert {"epoch_0", "epoch_1", "model"} == set(by_name)
    mlflow.set_tracking_uri(store_uri)
    weights = {name: mlflow.keras.load_model(item.model_uri).get_weights() for name, item in by_name.items()}
    assert all(map(np.array_equal, copies[0], weights["model"]))
    assert all(map(np.array_equal, copies[1], weights["epoch_1"]))
    [version] = client.search_model_versions("name='worse'")
    assert by_name["model"].artifact_location == version.source


def two_inputs():
    """A functional model of two named inputs, one of them whole numbers of any length."""
    rows, words = keras.Input((13,), name="rows"), keras.Input((None,), name="words", dtype="int32")
    meaning = layers.GlobalAveragePooling1D()(layers.Embedding(10, 2)(words))
    return rows, words, layers.Dense(1)(layers.Concatenate()([rows, meaning]))


@pytest.mark.parametrize("is_named", [True, False])
def test_several_inputs_have_their_names_in_the_signature(is_named, offline, logged):
    """Given as a dict or a list; each with its own type and open sizes."""
    rows, words, output = two_inputs()
    model = keras.Model({"rows": rows, "words": words} if is_named else [rows, words], output)
    model.compile("sgd", "mse")
    data = {"rows": X, "words": np.ones((len(X), 4), "int32")}
    given = data if is_named else list(data.values())
    model.fit(given, Y, callbacks=[MLflowCallback(offline, log_model=True)], **QUIET)
    scorer = mlflow.pyfunc.load_model(logged().model_uri)
    assert {"rows": ("float32", (-1, 13)), "words": ("int32", (-1, -1))} == {
        item.name: (str(item.type), item.shape) for item in scorer.metadata.signature.inputs.inputs
    }
    assert np.array_equal(model.predict(given, verbose=0), scorer.predict(data))


def test_a_sequential_model_without_an_input_layer_takes_any_number_of_rows(offline, logged):
    """Its own shapes are those of the first batch."""
    model = keras.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(X, Y, callbacks=[MLflowCallback(offline, log_model=True)], **QUIET)
    scorer = mlflow.pyfunc.load_model(logged().model_uri)
    assert (-1, 13) == scorer.metadata.signature.inputs.inputs[0].shape
    assert (178, 1) == scorer.predict(X).shape


@keras.saving.register_keras_serializable("tests")
class Sampling(keras.Model):
    """A model of the user's own class, random also when it predicts."""

    def __init__(self, **options):
        super().__init__(**options)
        self.layer = layers.Dense(1)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, rows):
        return self.layer(rows) + keras.random.normal((1,), seed=self.seeds)


def test_a_model_that_knows_no_inputs_is_logged_without_a_signature(offline, logged, caplog):
    """It is told, and loads back."""
    model = Sampling()
    model.compile("sgd", "mse")
    model.fit(X, Y, callbacks=[MLflowCallback(offline, log_model=True)], **QUIET)
    loaded = mlflow.keras.load_model(logged().model_uri)
    assert np.array_equal(model.get_weights()[0], loaded.get_weights()[0])
    assert "no signature for Sampling, which does not say what it takes" in caplog.text


@pytest.mark.parametrize("kind", ["own class", "two inputs", "frame"])
def test_a_model_logged_by_hand_gets_its_signature_from_an_example(kind, tmp_path):
    """Without being called: that would cost a random model its numbers."""
    import pandas as pd

    if kind == "two inputs":
        rows, words, output = two_inputs()
        model, example = keras.Model([rows, words], output), [X, np.ones((len(X), 4), "int32")]
    else:
        model, example = Sampling(), X
        model(X[:2])
        example = pd.DataFrame(X) if kind == "frame" else X
    before = [np.asarray(item.value.detach()).tolist() for item in model.variables]
    staged = stage_model(model, tmp_path / "model", input_example=example, log_input_example=True)
    assert before == [np.asarray(item.value.detach()).tolist() for item in model.variables]
    assert ("keras", "keras") == (staged.flavor, staged.serialization)
    scorer = mlflow.pyfunc.load_model(tmp_path / "model")
    assert {"two inputs": 2}.get(kind, 1) == len(scorer.metadata.signature.inputs.inputs)
    assert (-1, 1) == scorer.metadata.signature.outputs.inputs[0].shape
    assert (5, 1) == scorer.predict(scorer.input_example).shape
    pins = (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert {f"keras=={keras.__version__}", f"torch=={torch.__version__.partition('+')[0]}"} <= set(pins)


def test_a_format_that_keras_does_not_have_is_refused(tmp_path):
    """With what is accepted."""
    with pytest.raises(UnloggableError, match="accepted: auto"):
        stage_model(net(), tmp_path / "model", serialization="pt2")


# --- runs -------------------------------------------------------------------------------------------


def test_evaluating_afterwards_adds_to_the_run(offline, runs, points):
    """Under the name that MLflow's own callback has for it; the run is FINISHED again."""
    model, callback = net(), MLflowCallback(offline)
    model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[callback], **QUIET)
    loss, accuracy = model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert callback.run.is_ended
    [run] = runs()
    assert [(9, loss)] == points(run, "validation_loss")
    assert [(9, accuracy)] == points(run, "validation_accuracy")
    assert "FINISHED" == run.info.status


def test_evaluating_in_the_middle_of_a_training_does_not_end_it():
    """A callback of the user's that tests after every epoch."""
    callback, model = MLflowCallback(log_model=False), net()
    testing = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.evaluate(X, Y, verbose=0, callbacks=[callback])
    )
    with record() as recorded:
        model.fit(X, Y, epochs=2, callbacks=[callback, testing], **QUIET)
    assert [5, 11] == recorded.steps["validation_loss"] == recorded.steps["loss"]
    assert ["FINISHED"] == recorded.statuses


def test_a_training_that_goes_on_continues_its_run(offline, runs, points):
    """With `initial_epoch=`: epochs and steps go on; from epoch 0 it is another training."""
    model, callback = net(), MLflowCallback(offline, step_axis="both")
    model.fit(X, Y, epochs=2, callbacks=[callback], **QUIET)
    model.fit(X, Y, epochs=4, initial_epoch=2, callbacks=[callback], **QUIET)
    [run] = runs()
    assert [5, 11, 17, 23] == steps(points(run, "loss"))
    assert [0, 1, 2, 3] == steps(points(run, "epoch/loss"))
    model.fit(X, Y, epochs=1, callbacks=[callback], **QUIET)
    other = net()
    other.fit(X, Y, epochs=3, initial_epoch=2, callbacks=[callback], **QUIET)
    assert 3 == len(runs())


def test_a_training_restored_in_another_process_continues_a_given_run(offline, runs, points, tmp_path):
    """`BackupAndRestore` tells where it goes on, `run_id=` which run; the optimizer tells the step."""
    keras.utils.set_random_seed(1)

    def train(*callbacks):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        net().fit(X, Y, epochs=4, callbacks=[*callbacks, backup], **QUIET)

    with pytest.raises(StopError), MLflowCallback(offline) as callback:
        train(callback, Fault(2))
    [failed] = runs()
    assert ("FAILED", [5, 11, 17]) == (failed.info.status, steps(points(failed, "loss")))
    train(MLflowCallback(offline, run_id=failed.info.run_id))
    [run] = runs()
    assert "FINISHED" == run.info.status
    # The third epoch was recorded, but not backed up, so it was trained twice.
    assert [5, 11, 17, 17, 23] == sorted(steps(points(run, "loss")))


def test_a_training_that_raised_is_never_finished():
    """By its callback's end, by the next training, or by the block that knows why."""
    with record() as recorded:
        with pytest.raises(StopError):
            net().fit(X, Y, epochs=3, callbacks=[MLflowCallback(log_model=False), Fault(1)], **QUIET)
        gc.collect()
        assert ["FAILED"] == recorded.statuses
        again = MLflowCallback(log_model=False)
        with pytest.raises(StopError):
            net().fit(X, Y, epochs=3, callbacks=[again, Fault(1)], **QUIET)
        net().fit(X, Y, callbacks=[again], **QUIET)
        assert ["FAILED", "FAILED", "FINISHED"] == recorded.statuses
        with pytest.raises(KeyboardInterrupt), again:
            net().fit(X, Y, epochs=3, callbacks=[again, Fault(1, KeyboardInterrupt)], **QUIET)
        assert ["FAILED", "FAILED", "FINISHED", "KILLED"] == recorded.statuses


@pytest.mark.needs("keras>=3.7")
def test_a_training_that_raised_is_not_finished_by_what_comes_after():
    """An evaluation of the model, or a fit of no epochs."""
    model, callback = net(), MLflowCallback(log_model=False)
    with record() as recorded:
        with pytest.raises(StopError):
            model.fit(X, Y, epochs=3, callbacks=[callback, Fault(1)], **QUIET)
        model.evaluate(X, Y, verbose=0, callbacks=[callback])
        model.fit(X, Y, epochs=0, callbacks=[callback], **QUIET)
        del callback
        gc.collect()
    assert (["FAILED"], 1) == (recorded.statuses, len(recorded.metrics["validation_loss"]))


EXIT = """
import keras, numpy as np
from mlpipeline.keras import MLflowCallback
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
def interrupt(epoch, logs):
    raise KeyboardInterrupt
stop = keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
callback = MLflowCallback(tracking_uri={uri!r}, delivery="offline", log_model=False)
model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[callback, stop])
"""


@pytest.mark.process
def test_a_script_that_is_stopped_in_a_training_leaves_the_true_status(store_uri, runs):
    """Keras tells its callbacks nothing; the exit does."""
    code = EXIT.format(uri=store_uri)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "KeyboardInterrupt" in done.stderr
    assert ["KILLED"] == [run.info.status for run in runs()]


CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from mlpipeline.testing import record

class ZMQInteractiveShell(InteractiveShell):  # by this name a notebook is known
    pass

shell = ZMQInteractiveShell.instance()
shell.display_pub.publish = lambda *_, **__: print("something is shown", file=sys.stderr)
with record() as recorded:
    shell.run_cell('''
import keras, numpy as np
from mlpipeline.keras import MLflowCallback
data = np.ones((4, 2)), np.ones((4, 1))
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
callback = MLflowCallback(log_model=False)
def stop(epoch, logs):
    raise ValueError("mine")
fault = keras.callbacks.LambdaCallback(on_epoch_end=stop)
''')
    shell.run_cell("model.fit(*data, verbose=0, callbacks=[callback, fault])")
    print(recorded.statuses, file=sys.stderr)
    shell.run_cell("model.evaluate(*data, verbose=0, callbacks=[callback])")
    shell.run_cell("model.fit(*data, verbose=0, callbacks=[callback])")
    print(recorded.statuses, len(recorded.metrics["validation_loss"]), file=sys.stderr)
"""


@pytest.mark.process
def test_a_notebook_cell_ends_the_training_that_raised_in_it():
    """The model can be evaluated in the next cell: that ends well, and says so. Nothing is shown below a cell."""
    done = subprocess.run([sys.executable, "-c", CELLS], check=True, capture_output=True, text=True)
    assert "something is shown" not in done.stderr
    assert ["['FAILED']", "['FAILED', 'FINISHED', 'FINISHED'] 1"] == done.stderr.strip().splitlines()[-2:]


def test_a_given_run_is_added_to_and_never_ended():
    """Several callbacks share it."""
    with record() as recorded:
        with open_run(MLflowConfig(log_model=False)) as run:
            for _ in range(2):
                net().fit(X, Y, callbacks=[MLflowCallback(run=run)], **QUIET)
                assert not run.is_ended
        assert ["FINISHED"] == recorded.statuses
    assert 2 == len(recorded.metrics["loss"])


def test_a_run_is_nested_under_its_parent(offline, runs):
    """As a trial's or a fold's is."""
    with open_run(offline) as parent:
        net().fit(X, Y, callbacks=[MLflowCallback(offline, parent=parent)], **QUIET)
    found = {run.data.tags["mlpipeline.uid"]: run for run in runs()}
    child = next(run for uid, run in found.items() if uid != parent.uid)
    assert found[parent.uid].info.run_id == child.data.tags["mlflow.parentRunId"]


def test_one_instance_in_two_threads_at_once_raises():
    """The second training is told; the first one's record is whole."""
    callback, inside, go_on = MLflowCallback(log_model=False), threading.Event(), threading.Event()

    def wait(batch, logs):
        inside.set()
        go_on.wait(30)

    waiting = keras.callbacks.LambdaCallback(on_train_batch_begin=wait)
    first = threading.Thread(target=lambda: net().fit(X, Y, callbacks=[callback, waiting], **QUIET))
    with record() as recorded:
        first.start()
        assert inside.wait(30)
        with pytest.raises(UsageError, match="one training at a time"):
            net().fit(X, Y, callbacks=[callback], **QUIET)
        go_on.set()
        first.join()
    assert (["FINISHED"], 1) == (recorded.statuses, len(recorded.metrics["loss"]))


def test_a_callback_can_be_pickled_and_copied_at_any_time():
    """Before, during and after a training; copies record runs of their own, and hold no model."""
    callback = MLflowCallback(log_model=False)
    taken = [pickle.dumps(callback)]
    during = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: taken.append(pickle.dumps(callback))
    )
    with record() as recorded:
        net().fit(X, Y, callbacks=[callback, during], **QUIET)
        taken.append(pickle.dumps(callback))
        for item in [*map(pickle.loads, taken), copy.deepcopy(callback)]:
            assert item.model is None
            net().fit(X, Y, callbacks=[item], **QUIET)
    assert ["FINISHED"] * 5 == recorded.statuses


def test_other_ranks_stand_by(monkeypatch):
    """Launched several times, the first process records; `run` is there in all of them."""
    callback = MLflowCallback()
    with record() as recorded:
        monkeypatch.setenv("RANK", "1")
        net().fit(X, Y, callbacks=[callback], **QUIET)
        callback.run.log_metrics({"own": 1.0})
        assert not recorded.metrics
        monkeypatch.setenv("RANK", "0")
        net().fit(X, Y, callbacks=[callback], **QUIET)
    assert ["FINISHED"] == recorded.statuses


# --- mistakes ---------------------------------------------------------------------------------------


def test_a_callback_given_as_a_class_is_told():
    """With what to write."""
    with pytest.raises(UsageError, match=r"write callbacks=\[MLflowCallback\(\)\]"):
        net().fit(X, Y, callbacks=[MLflowCallback], **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "up"}, "'auto', 'min' and 'max'"),
        ({"log_every_epoch": False}, "needs log_every_n_steps="),
        ({"run": "latest"}, "is not a Run"),
        ({"model_id": "m-1"}, "leave it out"),
    ],
)
def test_a_wrong_option_is_told(options, message):
    """Where it is given."""
    with pytest.raises(UsageError, match=message):
        MLflowCallback(**options)


def test_what_cannot_be_written_costs_the_model_only(caplog, monkeypatch):
    """A layer that cannot be saved; the training succeeds, and the model keeps its weights."""

    class Unsaved(layers.Dense):
        def save_own_variables(self, store):
            raise NotImplementedError("not me")

    model = keras.Sequential([keras.Input((13,)), Unsaved(1), Worse()])
    model.compile("sgd", "mse")
    before = []
    last = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: before.append(model.get_weights()))
    with MLflowCallback(delivery="offline") as callback:
        model.fit(X, Y, epochs=2, validation_split=0.2, callbacks=[last, callback], **QUIET)
    assert callback.run.is_ended
    assert all(map(np.array_equal, before[-1], model.get_weights()))
    assert "could not record the model" in caplog.text


def test_the_sizes_of_a_model_with_frozen_layers_are_told_apart():
    """As Keras' own summary does."""
    model = net()
    model.layers[0].trainable = False
    assert {"total": 139, "trainable": 27} == ours.hyperparameters(model, {})["parameters"]
