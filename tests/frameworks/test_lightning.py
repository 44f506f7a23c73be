"""A Lightning training lands in MLflow as it was, and goes as it would go without us."""

from __future__ import annotations

import copy
import csv
import pickle
import threading
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mlpipeline.core.config import MLflowConfig
from mlpipeline.lightning import MLflowCallback
from mlpipeline.testing import record

# Lightning's remarks on tiny data, and on our wish for exact numbers.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers",
    "ignore:.*smaller than the logging interval",
    "ignore:Checkpoint directory",
)

OURS = {"epoch_time_s", "samples_per_s", "lr-Adam", "lr-SGD", "stopped_epoch", "wait_count", "best_val_loss"}
IMAGES, DIGITS = (torch.tensor(part[:120]) for part in load_digits(return_X_y=True))
DATA = TensorDataset(IMAGES.float(), DIGITS)


class Net(pl.LightningModule):
    """A classifier of digits that logs in every way there is."""

    def __init__(self, width: int = 8, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.Dropout(0.2), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, batch_idx):
        images, digits = batch
        loss = nn.functional.cross_entropy(self(images), digits)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        images, digits = batch
        outputs = self(images)
        self.log("val_loss", nn.functional.cross_entropy(outputs, digits), prog_bar=True)
        self.log("val_acc", (outputs.argmax(1) == digits).float().mean(), on_step=True, on_epoch=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(DATA, batch_size=40)

    test_dataloader = predict_dataloader = val_dataloader


class Stop(Exception):
    """What goes wrong in a training."""


@pytest.fixture
def offline(store_uri):
    """A configuration whose runs wait for `deliver`."""
    return MLflowConfig(tracking_uri=store_uri, delivery="offline", log_model=False)


@pytest.fixture
def trainer(tmp_path):
    """Make a Trainer for the CPU that says nothing and writes below tmp_path."""

    def trainer(*callbacks, **options):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
        options = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": tmp_path, **quiet, **options}
        options.setdefault("logger", False)
        options.setdefault(
            "enable_checkpointing", any(isinstance(item, ModelCheckpoint) for item in callbacks)
        )
        return pl.Trainer(callbacks=list(callbacks), **options)

    return trainer


@pytest.fixture
def runs(store_uri, deliver, mlflow_client):
    """Deliver, then return the runs in the order of their start."""

    def runs():
        deliver()
        found = mlflow_client(store_uri).search_runs(
            [item.experiment_id for item in mlflow_client(store_uri).search_experiments()]
        )
        return sorted(found, key=lambda run: run.info.start_time)

    return runs


@pytest.fixture
def points(store_uri, mlflow_client):
    """Read a run's metrics back: per name its (step, value) pairs, in order."""

    def points(run):
        client = mlflow_client(store_uri)
        found = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return {key: sorted((item.step, item.value) for item in history) for key, history in found.items()}

    return points


def written(logger: CSVLogger) -> dict[str, list[tuple[int, float]]]:
    """Per name the (step, value) pairs that a CSVLogger wrote."""
    found: dict[str, list[tuple[int, float]]] = {}
    with Path(logger.log_dir, "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    found.setdefault(name, []).append((int(float(row["step"])), float(value)))
    return {name: sorted(pairs) for name, pairs in found.items()}


def theirs(found):
    """Leave out what only we record; the epoch, which Lightning adds to every record, counts once per step."""
    return {
        name: sorted(set(pairs)) if name == "epoch" else pairs
        for name, pairs in found.items()
        if name not in OURS
    }


LOGGING = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2, "log_every_n_steps": 1},
    "validated twice an epoch": {"val_check_interval": 0.5},
    "every step": {"log_every_n_steps": 1},
    "seldom": {"log_every_n_steps": 50},
}


@pytest.mark.parametrize("kind", LOGGING)
def test_metrics_are_exactly_those_of_a_logger(kind, offline, trainer, runs, points, tmp_path):
    """Same names, same steps, same values, in a fit and in a test after it."""
    logger = CSVLogger(tmp_path)
    training = trainer(MLflowCallback(offline), logger=logger, **LOGGING[kind])
    training.fit(model := Net())
    training.test(model, verbose=False)
    [run] = runs()
    assert theirs(written(logger)) == theirs(points(run))
    assert "FINISHED" == run.info.status


class Changing(Net):
    """Logs now these metrics and now others, and values of every kind."""

    KINDS = (
        {"a": 0.5, "b": 1.5},
        {"a": 1.5, "b": 2.5},
        {"b": 0.25, "a": 0.75},
        {"a": 2.5, "b": float("nan")},
        {"a": 3.5, "b": 4.5},
        {"a": torch.tensor(3), "b": 2},
        {"a": 5.5, "b": 6.5, "c": 1.0},
        {"a": 6.5, "b": 7.5},
        {"a": 7.5, "lr-Adam": 8.5},
        {"step": 70, "a": 0.125},
        {"step": 80, "a": 0.375},
        {"a": 9.5},
    )

    def training_step(self, batch, batch_idx):
        # A logger of Lightning's gets it as a tensor; what a user gives to every logger by hand, as it is.
        self.log_dict({key: float(value) for key, value in self.KINDS[self.global_step].items()})
        for logger in self.trainer.loggers if self.global_step == 5 else ():
            logger.log_metrics(dict(self.KINDS[5]), step=5)
        return super().training_step(batch, batch_idx)


def test_steps_of_other_metrics_are_exactly_those_of_a_logger(offline, trainer, runs, points, tmp_path):
    """Each value under its own name, whatever the step before had; a NaN, too."""
    logger = CSVLogger(tmp_path)
    trainer(MLflowCallback(offline), logger=logger, log_every_n_steps=1).fit(Changing())
    [run] = runs()
    found, expected = (
        {name: set(map(str, values)) for name, values in theirs(logged).items()}
        for logged in (points(run), written(logger))
    )
    assert expected == found
    assert {"(3, nan)", "(5, 2.0)"} <= found["b"]
    assert "nan at step 3" == run.data.tags["mlpipeline.nonfinite.b"]


def test_without_a_logger_the_metrics_are_the_same(offline, trainer, runs, points, tmp_path):
    """`logger=False` is enough: nobody else is needed to get them."""
    logger = CSVLogger(tmp_path)
    for option in (logger, False):
        pl.seed_everything(1, verbose=False)
        trainer(MLflowCallback(offline), logger=option).fit(Net())
    beside, alone = (
        {name: pairs for name, pairs in points(run).items() if not name.endswith("_s")} for run in runs()
    )
    assert beside == alone
    assert theirs(written(logger)) == theirs(alone)


def test_an_own_interval_adds_steps_that_lightning_would_not_log(offline, trainer, runs, points, tmp_path):
    """Every step although the Trainer logs none, and the Trainer's own setting stays."""
    logger = CSVLogger(tmp_path)
    pl.seed_everything(1, verbose=False)
    trainer(logger=logger, log_every_n_steps=1).fit(Net())
    pl.seed_everything(1, verbose=False)
    training = trainer(MLflowCallback(offline, log_every_n_steps=1), log_every_n_steps=50)
    training.fit(Net())
    assert theirs(written(logger)) == theirs(points(runs()[0]))
    assert 50 == training.log_every_n_steps


def test_an_own_interval_takes_steps_away(offline, trainer, runs, points, tmp_path):
    """Every third step of those that the Trainer logs, all of which its logger still gets."""
    logger = CSVLogger(tmp_path)
    trainer(MLflowCallback(offline, log_every_n_steps=3), logger=logger, log_every_n_steps=1).fit(Net())
    [run] = runs()
    all_of_them = written(logger)["train_loss_step"]
    assert 12 == len(all_of_them)
    assert [pair for pair in all_of_them if pair[0] in {2, 5, 8, 11}] == points(run)["train_loss_step"]
    assert written(logger)["val_loss"] == points(run)["val_loss"]


def test_on_the_epoch_axis_epoch_metrics_count_epochs(offline, trainer, runs, points):
    """Those of steps keep their steps."""
    trainer(MLflowCallback(offline, step_axis="epoch"), max_epochs=3).fit(Net())
    found = {name: [step for step, _ in pairs] for name, pairs in points(runs()[0]).items()}
    for name in ("val_loss", "val_acc_epoch", "train_loss_epoch", "epoch_time_s", "samples_per_s"):
        assert [0, 1, 2] == found[name], name
    assert [1, 3, 5, 7, 9, 11, 13, 15, 17] == found["train_loss_step"]


def test_on_both_axes_epoch_metrics_are_there_twice(offline, trainer, runs, points):
    """Under their own name along the steps, and as epoch/<name> along the epochs."""
    trainer(MLflowCallback(offline, step_axis="both"), max_epochs=3).fit(Net())
    found = points(runs()[0])
    assert [5, 11, 17] == [step for step, _ in found["val_loss"]]
    assert [0, 1, 2] == [step for step, _ in found["epoch/val_loss"]]
    assert [value for _, value in found["val_loss"]] == [value for _, value in found["epoch/val_loss"]]
    assert "epoch/train_loss_step" not in found


class TwoOptimizers(Net):
    """Optimized by hand, by two optimizers of which one has two groups."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()
        self.log("train_loss", loss)

    def configure_optimizers(self):
        first, last = self.layers[0], self.layers[3]
        groups = [{"params": [last.weight]}, {"params": [last.bias], "lr": 0.5}]
        optimizers = [torch.optim.Adam(first.parameters(), lr=0.25), torch.optim.SGD(groups, lr=0.125)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(item, 2, gamma=0.5) for item in optimizers]


def test_metrics_of_two_optimizers_have_the_steps_of_a_logger(offline, trainer, runs, points, tmp_path):
    """Lightning's global_step counts each optimizer's steps; its loggers' step does not."""
    logger = CSVLogger(tmp_path)
    trainer(MLflowCallback(offline), logger=logger, log_every_n_steps=1).fit(TwoOptimizers())
    ours = {name: pairs for name, pairs in points(runs()[0]).items() if not name.startswith("lr-")}
    assert theirs(written(logger)) == theirs(ours)
    assert 12 == len(ours["train_loss"])


@pytest.mark.parametrize("model", [Net, TwoOptimizers])
def test_learning_rates_are_those_that_the_monitor_logs(model, offline, trainer, runs, points, tmp_path):
    """The rate with which a step was made, per group; with the monitor in the Trainer, its own alone."""
    logger = CSVLogger(tmp_path)
    pl.seed_everything(1, verbose=False)
    monitored = trainer(
        LearningRateMonitor("step"), MLflowCallback(offline), logger=logger, log_every_n_steps=1
    )
    monitored.fit(model())
    trainer(MLflowCallback(offline), log_every_n_steps=1).fit(model())
    expected, *ours = (
        {name: pairs for name, pairs in found.items() if name.startswith("lr-")}
        for found in (written(logger), *map(points, runs()))
    )
    assert [expected, expected] == ours
    assert (1 if model is Net else 3) == len(expected)


class Halving(Net):
    """Each step has a learning rate of its own."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Noting(pl.Callback):
    """Logs at the start of a batch, as DeviceStatsMonitor does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for logger in trainer.loggers:
            logger.log_metrics({"noted": 1.0, "more": 2.0}, trainer.fit_loop.epoch_loop._batches_that_stepped)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("is_first", [True, False])
def test_learning_rates_are_those_of_the_step_whoever_else_logs_in_it(
    is_first, every, offline, trainer, runs, points
):
    """Once per step, also where somebody logs before the rates of the step are known."""
    callbacks = [MLflowCallback(offline), Noting()]
    trainer(*callbacks if is_first else reversed(callbacks), log_every_n_steps=every).fit(Halving())
    found = points(runs()[0])
    assert [(step, 0.5 ** (step + 1)) for step in range(12)][every - 1 :: every] == [
        point for point in found["lr-SGD"] if point[0] % every == every - 1
    ]
    for name, pairs in found.items():
        assert len(pairs) == len({step for step, _ in pairs}), name


@pytest.mark.parametrize("is_first", [True, False])
def test_a_monitor_that_needs_a_logger_still_says_so(is_first, offline, trainer):
    """We are none: with `logger=False` it raises as it does without us, wherever we stand."""
    callbacks = [MLflowCallback(offline), LearningRateMonitor()]
    with pytest.raises(MisconfigurationException, match="no logger"):
        trainer(*callbacks if is_first else reversed(callbacks)).fit(Net())


class Data(pl.LightningDataModule):
    """Loaders, with hyperparameters of which one has the name of a module's."""

    def __init__(self, width: int = 64, batch_size: int = 30):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=self.hparams.batch_size)

    def val_dataloader(self):
        return [DataLoader(DATA, batch_size=40), DataLoader(TensorDataset(IMAGES[:50].float(), DIGITS[:50]))]


def test_hyperparameters_of_all_that_takes_part_are_recorded(offline, trainer, runs):
    """Module, datamodule, trainer, every optimizer, group and scheduler, sizes of model and data."""
    stopping = EarlyStopping("val_loss/dataloader_idx_0", patience=7)
    trainer(MLflowCallback(offline), stopping, gradient_clip_val=None, max_epochs=1).fit(
        TwoOptimizers(), Data()
    )
    params = runs()[0].data.params
    expected = {
        "width": "8", "lr": "0.01", "datamodule.width": "64", "batch_size": "30",
        "trainer.max_epochs": "1", "trainer.precision": "32-true", "trainer.accelerator": "CPUAccelerator",
        "optimizer.name": "Adam", "optimizer.lr": "0.25",
        "optimizer_1.name": "SGD", "optimizer_1.group_0.lr": "0.125", "optimizer_1.group_1.lr": "0.5",
        "scheduler.name": "StepLR", "scheduler.gamma": "0.5", "scheduler_1.step_size": "2",
        "early_stopping.patience": "7", "parameters.total": "610", "parameters.trainable": "610",
        "data.training.rows": "120", "data.training.batch_size": "30",
        "data.validation.rows": "120", "data.validation_1.rows": "50",
    }  # fmt: skip
    assert expected == {key: params.get(key) for key in expected}


def test_the_users_params_win_and_leave_no_trace_of_the_others(offline, trainer, runs):
    """Neither a second value nor a tag about one."""
    trainer(MLflowCallback(offline, params={"lr": 0.5, "fold": 3})).fit(Net())
    [run] = runs()
    assert ("0.5", "3", "8") == tuple(run.data.params[key] for key in ("lr", "fold", "width"))
    assert not [tag for tag in run.data.tags if "drift" in tag]


def test_datasets_are_inputs_of_the_run(offline, trainer, runs):
    """By role; the same data has the same digest."""
    training = trainer(MLflowCallback(offline))
    training.fit(model := Net())
    training.test(model, verbose=False)
    inputs = {item.tags[0].value: item.dataset for item in runs()[0].inputs.dataset_inputs}
    assert {"training", "validation", "test"} == set(inputs)
    assert 1 == len({dataset.digest for dataset in inputs.values()})


def test_what_early_stopping_found_is_recorded(offline, trainer, runs):
    """Where it stopped, how long it had waited, and the best value."""
    stopping = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    trainer(MLflowCallback(offline), stopping, max_epochs=5).fit(Net())
    found = runs()[0].data.metrics
    assert (1, 1) == (found["stopped_epoch"], found["wait_count"])
    assert float(stopping.best_score) == found["early_stopping_best_val_loss"]


def test_speed_is_that_of_training_alone(offline, trainer):
    """Time spent in validation is part of the epoch, not of its samples per second."""

    class Slow(Net):
        def validation_step(self, batch, batch_idx):
            threading.Event().wait(0.1)

    with record() as recorded:
        trainer(MLflowCallback(offline), max_epochs=1, num_sanity_val_steps=0).fit(Slow())
    elapsed_s, speed = recorded.metrics["epoch_time_s"][0], recorded.metrics["samples_per_s"][0]
    training_s = 120 / speed
    assert 0 < training_s <= elapsed_s - 0.3  # three batches of validation wait 0.1 s each


# --- the user's set-up stays as it is ---------------------------------------------------------------


UNUSED = (
    "on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end"
)  # fmt: skip


class Watching(MLflowCallback):
    """A user's own callback on top of ours."""

    seen = 0

    def on_after_backward(self, trainer, pl_module):
        super().on_after_backward(trainer, pl_module)
        self.seen += 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.seen += 100


class Thinning(MLflowCallback):
    """Of another name."""


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_only_hooks_that_have_something_to_do_are_called(is_interrupted, offline, trainer):
    """Lightning passes over the others, never over a subclass's; outside of a training, all can be called."""

    class Fragile(Net):
        def on_train_epoch_end(self):
            if is_interrupted:
                raise InterruptedError

    ours, theirs, thinning = (
        MLflowCallback(offline),
        Watching(offline),
        Thinning(offline, log_every_n_steps=3),
    )
    training = trainer(ours, theirs, thinning, profiler=(profiler := SimpleProfiler()), max_epochs=1)
    with pytest.raises(InterruptedError) if is_interrupted else nullcontext():
        training.fit(Fragile())
    called = {name.removeprefix("[Callback]") for name in profiler.recorded_durations if "[Callback]" in name}
    assert {"MLflowCallback.on_train_batch_start", "Watching.on_after_backward"} <= called
    names = ("MLflowCallback", "Watching", "Thinning")
    assert {"Watching.on_after_backward", "Watching.on_train_batch_end", "Thinning.on_train_batch_end"} == (
        called & {f"{name}.{hook}" for name in names for hook in UNUSED}
    )
    assert 606 == theirs.seen
    for callback in (ours, theirs, thinning, pickle.loads(pickle.dumps(ours)), MLflowCallback(offline)):
        for hook in UNUSED:
            batch = (None, None, 0) if hook == "on_train_batch_end" else ()
            assert getattr(callback, hook)(training, None, *batch) is None


@pytest.mark.parametrize("option", [False, True, "csv"])
def test_everything_else_is_as_without_us(option, offline, trainer, tmp_path, capfd, caplog):
    """Weights to the bit, checkpoint folder, loggers, progress bar, and what is printed."""
    seen = []
    for number, callbacks in enumerate([[], [MLflowCallback(offline, log_model=True)]]):
        root = tmp_path / str(number)
        capfd.readouterr(), caplog.clear()
        pl.seed_everything(3, verbose=False)
        logger = CSVLogger(root, name="mine") if option == "csv" else option
        checkpoint = ModelCheckpoint(monitor="val_loss", save_last=True)
        watcher = Watcher()
        training = trainer(
            *callbacks, checkpoint, watcher, logger=logger, default_root_dir=root, enable_progress_bar=True,
            enable_model_summary=True, reload_dataloaders_every_n_epochs=1, log_every_n_steps=50,
        )  # fmt: skip
        training.fit(model := Net())
        training.test(verbose=True)
        outputs = capfd.readouterr()
        said = [record.getMessage() for record in caplog.records if not record.name.startswith("mlpipeline")]
        seen.append(
            {
                "weights": [value.tolist() for value in model.state_dict().values()],
                "files": sorted(
                    str(path.relative_to(root)) for path in root.rglob("*") if "tfevents" not in path.name
                ),
                "loggers": (type(training.logger), type(training.loggers), len(training.loggers)),
                "first": training.logger is logger if option == "csv" else None,
                "bar": watcher.bar,
                "printed": [line.replace(str(root), "") for line in said],
                "errors": outputs.err.replace(str(root), ""),
                "table": outputs.out.count("test_loss"),
                "random": torch.rand(3).tolist(),
            }
        )
    assert seen[0] == seen[1]


class Watcher(pl.Callback):
    """Sees what a callback in the middle of a training sees."""

    def __init__(self):
        self.bar = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        shown = trainer.progress_bar_callback.get_metrics(trainer, pl_module)
        self.bar.append({"names": sorted(shown), "v_num": shown.get("v_num")})
        self.bar.append((len(trainer.loggers), trainer.logger is None, isinstance(trainer.loggers, list)))


def test_a_module_that_talks_to_its_loggers_meets_nothing_strange(offline, trainer, runs, points, tmp_path):
    """Ours answers whatever a logger is asked for; who copies the list does not double the record."""

    class Talkative(Net):
        def on_train_batch_end(self, *args):
            for logger in self.loggers[1:] + list(self.loggers)[1:]:
                logger.experiment.add_figure("confusion", None)
                logger.log_image(key="confusion", images=[])
            assert [self.logger] == self.loggers == copy.copy(self.loggers)
            self.trainer.loggers = [*self.trainer.loggers]

    training = trainer(MLflowCallback(offline), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    training.fit(Talkative())
    assert 12 == len(points(runs()[0])["train_loss_step"])
    assert [training.logger] == list(training.loggers)


def test_two_callbacks_record_into_two_runs(offline, trainer, runs, points):
    """Each hears everything once."""
    trainer(MLflowCallback(offline), MLflowCallback(offline, run_name="second")).fit(Net())
    found = [points(run)["train_loss_step"] for run in runs()]
    assert [6, 6] == [len(pairs) for pairs in found]
    assert found[0] == found[1]


def test_a_figure_from_inside_the_module_lands_at_the_current_step(
    offline, trainer, runs, store_uri, mlflow_client
):
    """Also when the last metrics were logged at another step, or never."""

    class Drawing(Net):
        def on_validation_epoch_end(self):
            if not self.trainer.sanity_checking:
                MLflowCallback.of(self.trainer).run.log_figure(Figure(), "confusion.png")

    trainer(MLflowCallback(offline), log_every_n_steps=50).fit(Drawing())
    client = mlflow_client(store_uri)
    [run] = runs()
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    steps = [int(path.split("+step+")[1].split("+")[0]) for path in images if path.endswith(".png")]
    assert [5, 11] == sorted(steps)
    assert "confusion.png" in [item.path for item in client.list_artifacts(run.info.run_id)]


def test_of_a_trainer_without_us_it_says_what_to_do(trainer):
    """The message shows the line that is missing."""
    with pytest.raises(LookupError, match=r"Trainer\(callbacks=\[MLflowCallback\(\)\]\)"):
        MLflowCallback.of(trainer())
