"""A hand-written loop lands in MLflow as it was, and goes as it would go without us."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import random
import subprocess
import sys
from itertools import pairwise

import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.testing import record
from mlpipeline.torch import MLflowLoop, gradient_norm
from mlpipeline.tracking.opening import open_run

X, Y = (torch.tensor(part[:120]).float() for part in load_diabetes(return_X_y=True))
DATA = TensorDataset(X, Y[:, None] / 100)
OFF = {"log_model": False}


def net():
    """A regression that is not the same in training and in evaluation."""
    return nn.Sequential(nn.Linear(10, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))


def train(loop, module, *, epochs=2, at_step=lambda: None, watch=True, **watched):
    """Train as a user would, and return the losses per step: 3 steps an epoch."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    losses = []
    with loop:
        if watch:
            loop.watch(module, optimizer, **watched)
        for epoch in loop.epochs(epochs):
            module.train()
            for rows, targets in loop.batches(DataLoader(DATA, 40, shuffle=True)):
                at_step()
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(module(rows), targets)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                loop.log(loss=loss)
            module.eval()
            loop.log({"val_loss": float(epoch)})
            scheduler.step()
    return losses


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline")


@pytest.fixture
def logged(store_uri, deliver, mlflow_client):
    """Deliver, then return the logged models by name."""

    def logged():
        deliver()
        mlflow.set_tracking_uri(store_uri)
        mlflow.set_registry_uri(store_uri)
        client = mlflow_client(store_uri)
        found = client.search_logged_models([item.experiment_id for item in client.search_experiments()])
        return {model.name: model for model in found}

    return logged


# --- metrics ----------------------------------------------------------------------------------------


def test_what_is_logged_arrives_at_its_step(offline, runs, points):
    """In a batch at the step, elsewhere at the epoch's last; with what the loop knows of itself."""
    losses = train(MLflowLoop(offline, params={"seed": 7}, log_model=False), net())
    [run] = runs()
    assert list(enumerate(losses)) == points(run, "loss")
    assert [(2, 0.0), (5, 1.0)] == points(run, "val_loss") == points(run, "epoch")
    assert [(step, 0.01 if step < 3 else 0.005) for step in range(6)] == points(run, "lr-Adam")
    assert {"loss", "val_loss", "epoch", "lr-Adam", "grad_norm", "epoch_time_s", "samples_per_s"} == set(
        run.data.metrics
    )
    expected = {"seed": "7", "parameters.total": "57", "optimizer.name": "Adam", "optimizer.lr": "0.01"}
    assert (expected | {"data.training.rows": "120", "data.training.batch_size": "40"}).items() <= (
        run.data.params.items()
    )
    assert ["training"] == [item.dataset.name for item in run.inputs.dataset_inputs]
    assert "FINISHED" == run.info.status


@pytest.mark.parametrize(
    ("axis", "expected"),
    [("step", {"val_loss": [2, 5]}), ("epoch", {"val_loss": [0, 1]}), ("both", {"val_loss": [2, 5], "epoch/val_loss": [0, 1]})],
)  # fmt: skip
def test_epochs_count_on_the_axis_that_the_user_chose(axis, expected):
    """Steps always count steps."""
    with record() as recorded:
        train(MLflowLoop(step_axis=axis, **OFF), net())
    assert expected == {name: at for name, at in recorded.steps.items() if name.endswith("val_loss")}
    assert list(range(6)) == recorded.steps["loss"]


def test_steps_are_thinned_out_before_anything_is_computed(monkeypatch):
    """Neither converted nor normed at the others."""
    seen = []
    monkeypatch.setattr("mlpipeline.torch.gradient_norm", lambda optimizer: seen.append(1) or 0.0)
    with record() as recorded:
        train(MLflowLoop(log_every_n_steps=4, **OFF), net(), epochs=3)
    assert ([3, 7], 2) == (recorded.steps["loss"], len(seen))


def test_all_of_a_step_is_one_record(monkeypatch):
    """However often it was logged to: one write, and one trip to the device."""
    calls = []
    with record() as recorded, MLflowLoop(**OFF) as loop:
        monkeypatch.setattr(recorded, "append_metrics", lambda keys, *_: calls.append(keys) or True)
        for _ in loop.batches([1, 2]):
            loop.log(a=torch.tensor(1.0))
            loop.log({"b": np.float32(2)}, c=3)
    assert [("a", "b", "c")] * 2 == calls


def test_the_gradients_norm_is_that_of_all_of_them():
    """As torch's own clipping finds it, of what the optimizer steps with; sparse ones too."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with record() as recorded, MLflowLoop(**OFF) as loop:
        loop.watch(module, optimizer)
        with loop.batch():
            module(X).square().mean().backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), 0.01)
            optimizer.step()
    assert norm > 0.01
    assert [pytest.approx(0.01, rel=1e-3)] == recorded.metrics["grad_norm"]
    words = nn.Embedding(5, 2, sparse=True)
    words(torch.tensor([1, 1, 2])).sum().backward()
    dense = words.weight.grad.to_dense().norm()
    assert torch.allclose(dense, gradient_norm(torch.optim.SGD(words.parameters(), lr=1.0)))


def test_a_norm_that_cannot_be_had_is_told_once(monkeypatch, caplog):
    """And does not reach the optimizer's step."""

    def no_norm(optimizer):
        raise NotImplementedError("of such gradients")

    monkeypatch.setattr("mlpipeline.torch.gradient_norm", no_norm)
    with record() as recorded:
        train(MLflowLoop(**OFF), net())
    assert (6, 6) == (len(recorded.metrics["loss"]), len(recorded.metrics["lr-Adam"]))
    assert ["could not record the norm of the gradients"] == [item.getMessage() for item in caplog.records]


def test_two_modules_of_one_loop_are_told_apart(offline, runs, logged):
    """As an adversarial pair is: the first is the model, and the one to be registered."""
    one, two = nn.Linear(10, 1), nn.Linear(10, 2)
    optimizers = [torch.optim.SGD(part.parameters(), lr=rate) for part, rate in ((one, 0.1), (two, 0.2))]
    with MLflowLoop(offline, registered_model_name="pair") as loop:
        loop.watch(one, optimizers[0])
        loop.watch(two, optimizers[1])
        with loop.batch():
            (one(X).sum() + two(X).sum()).backward()
            for optimizer in optimizers:
                optimizer.step()
    [run] = runs()
    assert {"grad_norm", "grad_norm_1", "lr-SGD", "lr-SGD-1"} == set(run.data.metrics)
    assert ("0.1", "0.2") == (run.data.params["optimizer.lr"], run.data.params["optimizer_1.lr"])
    models = logged()
    assert {"model", "model_1"} == set(models)
    assert models["model"].model_uri == loop.model_uri
    assert 1 == loop.model_version


def test_a_loop_of_epochs_alone_counts_epochs():
    """And without either, each name counts on by itself."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with record() as recorded, MLflowLoop(**OFF) as loop:
        loop.watch(module, optimizer)
        for _ in range(3):
            with loop.epoch():
                module(X).sum().backward()
                optimizer.step()
                loop.log(loss=1.0)
        loop.log(test=1.0)
    assert [0, 1, 2] == recorded.steps["loss"] == recorded.steps["lr-SGD"]
    assert [2] == recorded.steps["test"]
    with record() as recorded, MLflowLoop(**OFF) as loop:
        for _ in range(3):
            loop.log(loss=1.0)
    assert [0, 1, 2] == recorded.steps["loss"]


def test_a_loop_that_is_left_early_ends_its_epoch():
    """By break, which a generator hears as its own end."""
    with record() as recorded, MLflowLoop(**OFF) as loop:
        for epoch in loop.epochs(9):
            for _ in loop.batches(range(3)):
                loop.log(loss=1.0)
            if epoch == 1:
                break
        loop.log(test=1.0)
    assert [2, 5] == recorded.steps["epoch_time_s"]
    assert not recorded.params
    assert ([0, 1, 2, 3, 4, 5], [5]) == (recorded.steps["loss"], recorded.steps["test"])


def test_a_value_that_is_not_finite_is_tagged_and_does_not_stop_the_loop():
    """Nor is it ever the best; `nonfinite="raise"` stops it."""
    module = net()
    with record() as recorded, MLflowLoop(**OFF) as loop:
        loop.watch(module, monitor="val")
        for value in (float("nan"), 2.0, float("inf")):
            with loop.epoch(), loop.batch():
                pass
            loop.log(val=value)
    assert [2.0] == recorded.metrics["best_val"]
    assert "nan at step 0" == recorded.tags["mlpipeline.nonfinite.val"]
    stopping = MLflowLoop(nonfinite="raise", **OFF)
    with record(), pytest.raises(UnloggableError, match="asked to stop here"), stopping, stopping.batch():
        stopping.log(loss=torch.tensor(float("nan")))


# --- the training is what it is without us ------------------------------------------------------------


@pytest.mark.parametrize("monitor", [None, "val_loss"])
def test_module_and_random_numbers_are_what_they_are_without_us(monitor):
    """To the bit; no hook is left, on the module or the optimizer."""
    seen = []
    for config in ({"enabled": False}, {}):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002 - the global one is what a library could disturb
        torch.manual_seed(1)
        module = net()
        with record() as recorded:
            losses = train(MLflowLoop(config), module, monitor=monitor)
        assert bool(config) != bool(recorded.models)
        state = {name: part.tolist() for name, part in module.state_dict().items()}
        numbers = (
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        )
        modes = [part.training for part in module.modules()]
        seen.append((losses, state, numbers, modes, len(module._forward_pre_hooks)))
    assert seen[0] == seen[1]


def test_no_hook_is_left_behind():
    """Also where an exception ended the loop before the module was called."""
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with record(), contextlib.suppress(ZeroDivisionError), MLflowLoop(**OFF) as loop:
        loop.watch(module, optimizer)
        assert module._forward_pre_hooks
        assert optimizer._optimizer_step_pre_hooks
        1 / 0  # noqa: B018
    assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


# --- the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "weights", "step"), [(None, "last", 8), ("min", "best val_loss", 2), ("max", "best val_loss", 8)]
)
def test_the_monitor_decides_which_weights_are_logged(mode, weights, step, offline, logged, runs):
    """They predict what the module predicted then; the module keeps its last."""
    module, kept = net(), []
    loop = MLflowLoop(offline)
    options = {"monitor": "val_loss", "mode": mode} if mode else {}
    train(loop, module, epochs=3, at_step=lambda: kept.append(copy.deepcopy(module.state_dict())), **options)
    kept.append(copy.deepcopy(module.state_dict()))
    [model] = logged().values()
    assert weights == model.tags["mlpipeline.weights"]
    assert [step] == [item.step for item in runs()[0].outputs.model_outputs]
    loaded = loop.load_model()
    assert not loaded.training
    module.load_state_dict(kept[step + 1])
    assert torch.equal(module.eval()(X), loaded(X))
    scorer = mlflow.pyfunc.load_model(model.model_uri)
    assert ((-1, 10), (-1, 1)) == (
        scorer.metadata.signature.inputs.inputs[0].shape,
        scorer.metadata.signature.outputs.inputs[0].shape,
    )


def test_the_signature_is_of_what_the_module_is_called_with(offline, logged):
    """Not of what the loader gives."""

    class Pair(nn.Module):
        def forward(self, left, right):
            return left[:, :1] + right

    module = Pair()
    with MLflowLoop(offline, log_input_example=True) as loop:
        loop.watch(module)
        for rows, targets in loop.batches(DataLoader(DATA, 40)):
            module(rows * 2, targets)
    [model] = logged().values()
    scorer = mlflow.pyfunc.load_model(model.model_uri)
    assert ["left", "right"] == [item.name for item in scorer.metadata.signature.inputs.inputs]
    assert np.array_equal(X[:5].numpy() * 2, scorer.input_example["left"])


def test_a_loop_over_batches_that_cannot_be_cut_goes_on(offline, logged, caplog):
    """Its model is logged without a signature, and it is told why."""

    class Sparse(nn.Linear):
        def forward(self, rows):
            return super().forward(rows.to_dense())

    module = Sparse(10, 1)
    with MLflowLoop(offline) as loop:
        loop.watch(module)
        for rows in loop.batches([rows.to_sparse() for rows in X.split(40)]):
            loop.log(loss=module(rows).mean())
    [model] = logged().values()
    assert mlflow.pyfunc.load_model(model.model_uri).metadata.signature is None
    assert "the model has no signature: an input cannot be cut (NotImplementedError: " in caplog.text


def test_a_compiled_module_is_logged_as_it_was_written(offline, logged):
    """The compiled one has no hook: it would be compiled again. The batch is the example."""
    module = nn.Linear(10, 1)
    compiled = torch.compile(module, backend="eager")
    with MLflowLoop(offline) as loop:
        loop.watch(compiled)
        for rows, _ in loop.batches(DataLoader(DATA, 40)):
            compiled(rows)
    [model] = logged().values()
    loaded = mlflow.pytorch.load_model(model.model_uri)
    assert (nn.Linear, True) == (type(loaded), torch.equal(module(X), loaded(X)))
    signature = mlflow.models.get_model_info(model.model_uri).signature
    assert (-1, 10) == signature.inputs.inputs[0].shape


def test_a_module_that_cannot_be_copied_costs_the_model_only(caplog):
    """The loop went well, and its run is FINISHED."""
    module = nn.Linear(10, 1)
    module.log_file = sys.stderr
    with record() as recorded, MLflowLoop() as loop:
        loop.watch(module)
    assert (["FINISHED"], []) == (recorded.statuses, recorded.models)
    assert "could not record the model" in caplog.text


# --- how it ends, and goes on -------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "status"), [(LookupError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_an_exception_is_the_users_and_the_status_says_so(error, status):
    """What was logged before is there, that of the very step too; no model, no end of the epoch."""

    def fail(loop, held):
        with loop:
            loop.watch(nn.Linear(10, 1))
            for _ in loop.epochs(3):
                held.append(loop.batches(range(9)))
                for batch in held[0]:
                    loop.log(loss=1.0)
                    if batch == 2:
                        raise error("mine")

    # Who holds the generator, as a progress bar does, keeps it from hearing that the loop was left.
    held = []
    loop = MLflowLoop()
    with record() as recorded, pytest.raises(error, match="mine"):
        fail(loop, held)
    assert [status] == recorded.statuses
    assert [0, 1, 2] == recorded.steps["loss"]
    assert "epoch_time_s" not in recorded.metrics
    assert not recorded.models
    with record() as recorded, loop:
        with loop.batch() as step:
            held[0].close()
            loop.log(loss=step)
        assert ([0], 1) == (recorded.metrics["loss"], loop.state_dict()["step"])


@pytest.mark.parametrize("is_in_batch", [False, True])
def test_a_loop_of_a_checkpoint_continues_its_run(is_in_batch, offline, runs, points, tmp_path):
    """Epochs and steps go on; an epoch that a checkpoint cut in two is repeated, at new steps."""
    path = tmp_path / "checkpoint.pt"

    def run(until):
        loop, epochs = MLflowLoop(offline, **OFF), []
        if path.exists():
            loop.load_state_dict(torch.load(path)["loop"])
        with loop:
            for epoch in loop.epochs(4):
                epochs.append(epoch)
                for batch in loop.batches(range(3)):
                    loop.log(loss=1.0)
                    if is_in_batch and batch == 1:
                        torch.save({"loop": loop.state_dict()}, path)
                if not is_in_batch:
                    torch.save({"loop": loop.state_dict()}, path)
                if epoch == until:
                    raise LookupError
        return epochs

    with pytest.raises(LookupError):
        run(1)
    [failed] = runs()
    assert ("FAILED", list(range(6))) == (failed.info.status, [step for step, _ in points(failed, "loss")])
    assert ([1, 2, 3] if is_in_batch else [2, 3]) == run(9)
    [done] = runs()
    assert (failed.info.run_id, "FINISHED") == (done.info.run_id, done.info.status)
    steps = [step for step, _ in points(done, "loss")]
    assert list(range(14 if is_in_batch else 12)) == steps


def test_each_with_block_is_a_run_of_its_own():
    """Of one instance, in a row."""
    loop = MLflowLoop(**OFF)
    with record() as recorded:
        for _ in range(2):
            train(loop, net(), epochs=1)
    assert ["FINISHED"] * 2 == recorded.statuses
    assert [0, 1, 2] * 2 == recorded.steps["loss"]


def test_a_given_run_is_added_to_and_a_parent_has_it_as_a_child(offline, runs):
    """The face of every callback."""
    with open_run(offline) as run:
        train(MLflowLoop(run=run, **OFF), net())
        assert not run.is_ended
        train(MLflowLoop(offline, parent=run, **OFF), net())
    given, child = runs()
    assert given.info.run_id == child.data.tags["mlflow.parentRunId"]
    assert "loss" in given.data.metrics


def test_a_loop_can_be_pickled_and_copied_at_any_time():
    """A dataset that holds it goes to its workers."""
    with record() as recorded, MLflowLoop(**OFF) as loop:
        loop.watch(module := net(), torch.optim.SGD(module.parameters(), lr=0.1))
        with loop.epoch(), loop.batch():
            loop.log(loss=1.0)
            copies = [pickle.loads(pickle.dumps(loop)), copy.deepcopy(loop)]
    with record() as recorded:
        for item in copies:
            train(item, net())
    assert ["FINISHED"] * 2 == recorded.statuses


RANKS = """
import os, sys, torch, torch.distributed as dist
from mlpipeline.torch import MLflowLoop
dist.init_process_group("gloo")
module = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
with MLflowLoop(tracking_uri=sys.argv[1], delivery="offline") as loop:
    loop.watch(module, optimizer, monitor="val")
    for epoch in loop.epochs(2):
        for rows in loop.batches([torch.ones(3, 2)] * 3):
            optimizer.zero_grad()
            loss = module(rows).sum()
            loss.backward()
            optimizer.step()
            loop.log(loss=loss)
        loop.log(val=epoch)
dist.destroy_process_group()
"""


@pytest.mark.process
def test_of_several_processes_the_first_one_records(store_uri, runs, points, logged):
    """The same code runs in all of them; of what they train together, the module inside is logged."""
    options = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541", "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, store_uri], env={**os.environ, **options, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [0, 0] == [process.wait(100) for process in processes]
    [run] = runs()
    assert list(range(6)) == [step for step, _ in points(run, "loss")]
    assert nn.Linear is type(mlflow.pytorch.load_model(logged()["model"].model_uri))


# --- mistakes ---------------------------------------------------------------------------------------


def test_a_call_outside_of_the_block_is_told():
    """Before it and after it."""
    loop = MLflowLoop(**OFF)
    for _ in range(2):
        for call in (lambda: loop.log(loss=1.0), lambda: loop.watch(net()), lambda: next(loop.epochs(1))):
            with pytest.raises(UsageError, match="write it inside of `with MLflowLoop"):
                call()
        with record(), loop:
            pass


def test_what_cannot_be_right_is_told():
    """Where it stands, with what to write."""
    with record(), MLflowLoop(**OFF) as loop:
        with pytest.raises(UnloggableError, match=r"metric 'loss' is tensor\(\[1., 1.\]\)"), loop.batch():
            loop.log(loss=torch.ones(2))
        with pytest.raises(UnloggableError, match="metric 'name' is 'x'"):
            loop.log(name="x")
        with pytest.raises(UsageError, match="inside of a batch"), loop.batch(), loop.batch():
            pass
        with pytest.raises(UsageError, match="inside of an epoch"), loop.epoch(), loop.epoch():
            pass
        with pytest.raises(UsageError, match="accepted are 'min' and 'max'"):
            loop.watch(net(), mode="auto")
        with pytest.raises(UsageError, match="takes a module"):
            loop.watch(nn.Linear)
        with pytest.raises(UsageError, match="before the with block"):
            loop.load_state_dict({})
        with pytest.raises(UsageError, match="recorded already"), loop:
            pass


def test_a_disabled_loop_costs_nothing_and_keeps_its_manners():
    """The same code, unrecorded: nothing is converted."""

    class Untouchable:
        def __float__(self):
            raise AssertionError("converted")

    with MLflowLoop(enabled=False) as loop:
        for _ in loop.epochs(1):
            for _ in loop.batches([1]):
                loop.log(loss=Untouchable())
    assert loop.run_id is None


def test_steps_go_on_over_epochs():
    """One axis for the whole loop."""
    with record() as recorded, MLflowLoop(**OFF) as loop:
        for _ in loop.epochs(3):
            for _ in loop.batches(range(2)):
                loop.log(loss=1.0)
    assert all(after - before == 1 for before, after in pairwise(recorded.steps["loss"]))
