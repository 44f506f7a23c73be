"""The model that a Lightning training leaves in MLflow, and the module, which it leaves alone."""

from __future__ import annotations

import sys
import threading

import lightning.pytorch as pl
import mlflow.pyfunc
import mlflow.pytorch
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mlpipeline.core.config import MLflowConfig
from mlpipeline.lightning import MLflowCallback, _twin

# Lightning's remarks on tiny data.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:Checkpoint directory",
)

torch.manual_seed(0)
ROWS, TARGETS = torch.randn(24, 4), torch.randn(24, 1)


class Net(pl.LightningModule):
    """A regression whose validation gets worse with every epoch, so that the best is not the last."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, rows):
        return self.layers(rows)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(TensorDataset(ROWS, TARGETS), batch_size=8)

    val_dataloader = train_dataloader


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline")


@pytest.fixture
def fit(tmp_path):
    """Train a module for three epochs of three steps."""

    def fit(module, *callbacks, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        options.setdefault(
            "enable_checkpointing", any(isinstance(item, ModelCheckpoint) for item in callbacks)
        )
        root = tmp_path / "root"
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            default_root_dir=root,
            callbacks=list(callbacks),
            **quiet,
            **options,
        )
        trainer.fit(module)
        return module

    return fit


@pytest.fixture
def logged(store_uri, deliver, mlflow_client):
    """Deliver, then return the logged models of the only run, oldest first."""

    def logged():
        deliver()
        mlflow.set_tracking_uri(store_uri)
        mlflow.set_registry_uri(store_uri)
        client = mlflow_client(store_uri)
        found = client.search_logged_models([item.experiment_id for item in client.search_experiments()])
        return sorted(found, key=lambda model: model.creation_timestamp)

    return logged


def weights(module):
    """All that a module would save."""
    return {key: value.tolist() for key, value in module.state_dict().items()}


def test_the_best_weights_are_logged_and_predict_what_they_predict(fit, offline, logged, tmp_path):
    """Those of the checkpoint that the monitor prefers, with their step and a signature."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    module = fit(Net(), MLflowCallback(offline), checkpoint)
    [model] = logged()
    best = Net()
    best.load_state_dict(torch.load(checkpoint.best_model_path, weights_only=False)["state_dict"])
    loaded = mlflow.pytorch.load_model(model.model_uri)
    assert torch.equal(best.eval()(ROWS), loaded(ROWS))
    assert not torch.equal(module.eval()(ROWS), loaded(ROWS))
    assert "best val_loss" == model.tags["mlpipeline.weights"]
    scorer = mlflow.pyfunc.load_model(model.model_uri)
    assert best(ROWS).tolist() == scorer.predict(ROWS.numpy()).tolist()
    assert ((-1, 4), (-1, 1)) == (scorer.metadata.signature.inputs.inputs[0].shape, (-1, 1))


def test_best_value_and_checkpoints_are_kept_with_the_run(
    fit, offline, logged, tmp_path, store_uri, mlflow_client
):
    """At the step at which the best was saved; best and last are artifacts."""
    fit(Net(), MLflowCallback(offline), ModelCheckpoint(tmp_path, "best", monitor="val_loss", save_last=True))
    [model] = logged()
    client = mlflow_client(store_uri)
    history = client.get_metric_history(model.source_run_id, "best_val_loss")
    assert [(2, 0.0)] == [(item.step, item.value) for item in history]
    files = client.list_artifacts(model.source_run_id, "checkpoints")
    assert ["checkpoints/best.ckpt", "checkpoints/last.ckpt"] == [item.path for item in files]
    outputs = client.get_run(model.source_run_id).outputs.model_outputs
    assert [2] == [item.step for item in outputs]


@pytest.mark.parametrize("checkpoint", [None, {}, {"every_n_epochs": 2}])
def test_without_a_monitor_the_last_weights_are_logged(checkpoint, fit, offline, logged, tmp_path):
    """And tagged so; also where an older checkpoint is the only one."""
    callbacks = [] if checkpoint is None else [ModelCheckpoint(tmp_path, **checkpoint)]
    module = fit(Net(), MLflowCallback(offline), *callbacks)
    [model] = logged()
    assert torch.equal(module.eval()(ROWS), mlflow.pytorch.load_model(model.model_uri)(ROWS))
    assert "last" == model.tags["mlpipeline.weights"]


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_the_module_is_what_it_is_without_us(monitor, fit, offline, tmp_path):
    """Weights to the bit, mode, hooks, gradients wanted; whether the best or the last weights are logged."""
    seen = []
    for number, callbacks in enumerate([[], [MLflowCallback(offline)]]):
        pl.seed_everything(5, verbose=False)
        module = fit(Net(), *callbacks, ModelCheckpoint(tmp_path / str(number), monitor=monitor))
        modes = [part.training for part in module.modules()]
        seen.append((weights(module), modes, len(module._forward_pre_hooks), module.trainer is None))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "options", [{"max_steps": 9}, {"max_steps": 1}, {"max_steps": 1, "limit_val_batches": 0}]
)
def test_a_first_call_of_the_model_is_awaited_for_one_batch(options, fit, offline):
    """A training step that never calls the module has no hook left on it in the next batch, in validation and after."""
    seen = {"training": [], "validation": []}

    class Bare(Net):
        def training_step(self, batch, batch_idx):
            seen["training"].append(len(self._forward_pre_hooks))
            return nn.functional.mse_loss(self.layers(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            seen["validation"].append(len(self._forward_pre_hooks))

    module = fit(Bare(), MLflowCallback(offline), val_check_interval=1, **options)
    assert [1, *[0] * 8][: options["max_steps"]] == seen["training"]
    assert {0} == {*seen["validation"], len(module._forward_pre_hooks)}


def test_a_module_is_logged_without_copying_its_parameters():
    """Its copy shares them, and still is no way to change it."""
    module = Net().train()
    before = weights(module)
    twin = _twin(module, None)
    for name, parameter in module.named_parameters():
        assert parameter.data_ptr() == twin.get_parameter(name).data_ptr()
    twin(ROWS)
    twin.train()(ROWS)
    assert before == weights(module)
    assert module.training


def test_the_model_is_registered_under_an_alias(fit, offline, logged, store_uri, mlflow_client):
    """And the callback knows it by version."""
    callback = MLflowCallback(offline, register_model=True, model_name="net", model_alias="champion")
    module = fit(Net(), callback)
    logged()
    assert 1 == int(mlflow_client(store_uri).get_model_version_by_alias("net", "champion").version)
    assert 1 == callback.model_version
    assert torch.equal(module.eval()(ROWS), callback.load_model()(ROWS))


def test_facts_alone_are_logged_when_asked(fit, offline, logged, tmp_path, store_uri, mlflow_client):
    """`log_model="metadata"`: the class and the weights' kind, no files, no checkpoints."""
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss")
    fit(Net(), MLflowCallback(offline, log_model="metadata"), checkpoint)
    [model] = logged()
    assert "best val_loss" == model.tags["mlpipeline.weights"]
    assert model.tags["mlpipeline.model_class"].endswith("Net")
    assert not mlflow_client(store_uri).list_artifacts(model.source_run_id, "checkpoints")


def test_every_checkpoint_is_logged_when_asked(fit, offline, logged, tmp_path, store_uri, mlflow_client):
    """`log_model="all"`: under names that MLflow takes, the best last, which alone is registered."""
    checkpoint = ModelCheckpoint(tmp_path, "{epoch}-{val_loss:.2f}", monitor="val_loss", save_top_k=-1)
    fit(Net(), MLflowCallback(offline, log_model="all", registered_model_name="net"), checkpoint)
    models = logged()
    assert ["epoch_1-val_loss_1_00", "epoch_2-val_loss_2_00", "model"] == [model.name for model in models]
    [version] = mlflow_client(store_uri).search_model_versions("name='net'")
    assert models[-1].artifact_location == version.source
    outputs = mlflow_client(store_uri).get_run(models[0].source_run_id).outputs.model_outputs
    assert {models[0].model_id: 5, models[1].model_id: 8, models[2].model_id: 2} == {
        item.model_id: item.step for item in outputs
    }


class Pair(Net):
    """Called with two tensors."""

    def forward(self, rows, weights):
        return self.layers(rows) * weights

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0], batch[1]), batch[1])


class Named(Net):
    """Called with a batch that is a dict."""

    def forward(self, batch):
        return self.layers(batch["rows"])

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch), batch["targets"])

    def train_dataloader(self):
        return DataLoader(Dicts(), batch_size=8)


class Dicts(Dataset):
    """Rows and targets by name."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return {"rows": ROWS[index], "targets": TARGETS[index]}


class Keyworded(Net):
    """Called with a keyword."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(rows=batch[0]), batch[1])


class Bypassing(Net):
    """Never called in training: its step goes to the layers directly."""

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layers(batch[0]), batch[1])


class Alone(Net):
    """Of batches that are one tensor."""

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def train_dataloader(self):
        return DataLoader(ROWS, batch_size=8)


INPUTS = {Net: [None], Pair: ["rows", "weights"], Named: ["rows", "targets"], Keyworded: ["rows"], Bypassing: [None], Alone: [None]}  # fmt: skip


@pytest.mark.parametrize("kind", INPUTS)
def test_signature_and_example_are_those_of_the_modules_input(kind, fit, offline, logged):
    """Tensors, tuples, dicts and keywords; a module that is never called is shown its batch."""
    fit(kind(), MLflowCallback(offline, log_input_example=True))
    [model] = logged()
    scorer = mlflow.pyfunc.load_model(model.model_uri)
    assert INPUTS[kind] == [column.name for column in scorer.metadata.signature.inputs.inputs]
    assert (-1, 1) == scorer.metadata.signature.outputs.inputs[0].shape
    assert scorer.input_example is not None


class Sparse(Net):
    """Of batches that no rows can be cut from."""

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def forward(self, rows):
        return super().forward(rows.to_dense())

    def train_dataloader(self):
        return DataLoader([rows.to_sparse() for rows in ROWS.split(8)], batch_size=None)


class Nested(Sparse):
    """Of batches that have no shape."""

    def forward(self, rows):
        return Net.forward(self, rows.to_padded_tensor(0.0))

    def train_dataloader(self):
        return DataLoader([torch.nested.nested_tensor(list(rows)) for rows in ROWS.split(8)], batch_size=None)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", [Sparse, Nested])
def test_batches_that_cannot_be_cut_cost_the_signature_only(kind, fit, offline, logged, caplog):
    """The training goes on, and the model is logged; it is told why it has none."""
    fit(kind(), MLflowCallback(offline))
    [model] = logged()
    assert mlflow.pyfunc.load_model(model.model_uri).metadata.signature is None
    assert "the model has no signature: an input cannot be cut (NotImplementedError: " in caplog.text
    assert "failed; the training goes on" not in caplog.text


class HoldingAModule(Net):
    """Cannot be deep-copied, but written."""

    def __init__(self):
        super().__init__()
        self.tools = sys


class HoldingALock(Net):
    """Can be neither copied nor written."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_of_a_module_that_cannot_be_copied_the_last_weights_are_logged(
    fit, offline, logged, tmp_path, caplog
):
    """It is told, and the tag says so."""
    module = fit(HoldingAModule(), MLflowCallback(offline), ModelCheckpoint(tmp_path, monitor="val_loss"))
    [model] = logged()
    assert "last" == model.tags["mlpipeline.weights"]
    assert torch.equal(module.eval()(ROWS), mlflow.pytorch.load_model(model.model_uri).eval()(ROWS))
    assert "HoldingAModule cannot be copied" in caplog.text


def test_a_module_that_cannot_be_written_costs_its_model_only(
    fit, offline, logged, caplog, store_uri, mlflow_client
):
    """The training succeeds and its run is FINISHED."""
    fit(HoldingALock(), MLflowCallback(offline))
    assert [] == logged()
    client = mlflow_client(store_uri)
    [run] = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert "FINISHED" == run.info.status
    assert "could not record the model" in caplog.text


class Frozen(Net):
    """Saves only what it trains, as who fine-tunes does."""

    strict_loading = False

    def __init__(self):
        super().__init__()
        self.layers[0].requires_grad_(requires_grad=False)

    def state_dict(self, *args, **kwargs):
        return {
            key: value for key, value in super().state_dict(*args, **kwargs).items() if "layers.0" not in key
        }


def test_weights_that_a_checkpoint_leaves_out_are_the_modules_own(fit, offline, logged, tmp_path):
    """A frozen backbone is in no checkpoint, and still in the model."""
    module = fit(Frozen(), MLflowCallback(offline), ModelCheckpoint(tmp_path, monitor="val_loss"))
    [model] = logged()
    assert "best val_loss" == model.tags["mlpipeline.weights"]
    loaded = mlflow.pytorch.load_model(model.model_uri)
    assert torch.equal(module.layers[0].weight, loaded.layers[0].weight)
    assert not torch.equal(module.layers[3].weight, loaded.layers[3].weight)
