"""Does recording cost a Lightning training anything? Blocks with and without it, inside one running fit.

Whole fits differ by ten per cent on a shared machine whatever one does, so nothing is compared across
fits: one fit runs on, and block by block a recorder (callback and loggers) is taken out of it and put
back. Each block with a recorder is held against the mean of its two neighbours without one.

    python benchmarks/lightning.py                  # short blocks: the cost on the training thread
    python benchmarks/lightning.py --block 600      # long blocks: delivery meanwhile is paid too
    python benchmarks/lightning.py --only sqlite csv tensorboard wandb dvclive mlflowlogger autolog    # beside others
    python benchmarks/lightning.py --only empty deaf write sqlite    # what is Lightning's of it, and the kernel's

Work: an MLP at batch 32 with hidden layers of 64, as many as make a step of --step-ms here, one torch
thread, four metrics logged at every step.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from pathlib import Path

# This file has the name of the package it measures, and its folder came first.
HERE = Path(__file__).resolve().parent
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]

import lightning.pytorch as pl
import torch
from figures import Figures
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger

from mlpipeline import MLflowConfig
from mlpipeline.lightning import MLflowCallback


class Net(pl.LightningModule):
    """A network whose step takes milliseconds.

    Args:
        layers: How many hidden ones.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        sizes = [32] + [64] * layers
        hidden = [part for size in sizes[:-1] for part in (torch.nn.Linear(size, 64), torch.nn.ReLU())]
        self.net = torch.nn.Sequential(*hidden, torch.nn.Linear(64, 1))

    def training_step(self, batch, _):
        """Log four metrics per step."""
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.log_dict({"loss": loss, "a": loss + 1, "b": loss * 2, "c": loss - 1})
        return loss

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Endless(torch.utils.data.IterableDataset):
    """Batches of random numbers, as many as asked for."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self):
        x, y = torch.randn(32, 32), torch.randn(32, 1)
        for _ in range(self.batches):
            yield x, y


class Empty(pl.Callback):
    """A callback that does nothing in the hooks that ours has: Lightning's own price of dispatching."""

    def on_train_batch_start(self, *args) -> None:
        """Do nothing."""

    def on_train_batch_end(self, *args) -> None:
        """Do nothing."""


class Deaf(Logger):
    """A logger that does nothing: Lightning turns each metric into a number for it all the same."""

    name = version = None

    def log_metrics(self, metrics, step=None) -> None:
        """Do nothing."""

    def log_hyperparams(self, *args, **kwargs) -> None:
        """Do nothing."""


class Writing(Deaf):
    """A logger that only writes, at each step as many bytes as ours: those of four metrics, the epoch and a learning rate.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log_metrics(self, metrics, step=None) -> None:
        """Write."""
        os.write(self.descriptor, b"x" * 91)


def tensorboard(folder: Path) -> object:
    """TensorBoard's logger; `pip install tensorboard`."""
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder / "tensorboard")


def wandb(folder: Path) -> object:
    """Weights & Biases, offline; `pip install wandb`."""
    from lightning.pytorch.loggers import WandbLogger

    os.environ |= {"WANDB_SILENT": "true", "WANDB_MODE": "offline"}
    return WandbLogger(save_dir=folder, offline=True)


def dvclive(folder: Path) -> object:
    """DVCLive, without its experiments, which need a Git repository; `pip install dvclive`."""
    from dvclive.lightning import DVCLiveLogger

    return DVCLiveLogger(dir=str(folder / "dvclive"), save_dvc_exp=False, dvcyaml=None)


def autolog(store: str) -> pl.Callback:
    """What `mlflow.pytorch.autolog(log_every_n_step=1, log_models=False)` puts into a trainer.

    Autolog itself replaces `fit`, so it cannot be put into one that runs.
    """
    from mlflow import MlflowClient
    from mlflow.pytorch import _lightning_autolog
    from mlflow.utils.autologging_utils import BatchMetricsLogger, MlflowAutologgingQueueingClient

    run_id = MlflowClient(store).create_run("0").info.run_id
    client, metrics = MlflowAutologgingQueueingClient(store), BatchMetricsLogger(run_id, store)
    return vars(_lightning_autolog)["__MlflowPLCallback"](client, metrics, run_id, False, 1, 1, False)


def fit(callbacks: list[pl.Callback], loggers: list[object], layers: int, steps: int) -> None:
    """Train, with what Lightning does besides switched off."""
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=loggers or False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(Net(layers), torch.utils.data.DataLoader(Endless(steps), batch_size=None))


def began_s(layers: int, steps: int) -> list[float]:
    """Train without a recorder and return when each step began."""
    began: list[float] = []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *args) -> None:
            began.append(time.perf_counter())

    fit([Clock()], [], layers, steps)
    return began


def layers_for(step_ms: float) -> int:
    """Return how many hidden layers make a step of this length: what a layer adds, on this machine."""
    # Around as many as 3 ms ask for: from 2 and 10, the step came out longer than asked.
    few, many = 16, 32
    ms = {}
    for layers in (few, many, few, many):
        began = began_s(layers, 400)[100:]
        ms[layers] = statistics.median(b - a for a, b in itertools.pairwise(began)) * 1000
    return max(round(few + (step_ms - ms[few]) * (many - few) / (ms[many] - ms[few])), 1)


class Recorder:
    """A callback and loggers that can be taken out of a running fit and put back."""

    def __init__(self, callbacks=(), loggers=()) -> None:
        self.callbacks = list(callbacks)
        self.loggers = list(loggers)

    def put_in(self, trainer) -> None:
        """Take part from the next step on."""
        trainer.callbacks[:0] = self.callbacks
        trainer.loggers = [*trainer.loggers, *self.loggers]
        for callback in self.callbacks:
            if isinstance(callback, MLflowCallback):
                callback._attach(trainer)

    def take_out(self, trainer) -> None:
        """Take no part any more."""
        for callback in self.callbacks:
            if isinstance(callback, MLflowCallback):
                callback._detach(trainer)
            trainer.callbacks.remove(callback)
        trainer.loggers = [logger for logger in trainer.loggers if logger not in self.loggers]


class Blocks(pl.Callback):
    """Changes recorders block by block and measures each block's time per step."""

    def __init__(self, recorders: dict[str, Recorder], block: int, rounds: int, seed: int) -> None:
        self.recorders = recorders
        self.block = block
        names = list(recorders)
        order = random.Random(seed)
        self.plan = ["warm-up"]
        for _ in range(rounds):
            for name in order.sample(names, len(names)):
                self.plan += ["off", name]
        self.plan += ["off"]
        self.times: list[tuple[str, float, float]] = []
        self.index = 0
        self.steps = 0
        self.batch = -1
        self.began = (0.0, 0.0)

    def on_train_start(self, trainer, module) -> None:
        """Recorders have opened their runs by now; take them all out."""
        for recorder in self.recorders.values():
            recorder.take_out(trainer)
        self.began = (time.perf_counter(), time.process_time())

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        """At a block's end, note its time and change the recorder."""
        if self.batch == batch_idx:
            return None  # a recorder put in before us moved us on in the list that Lightning goes through
        self.batch = batch_idx
        if self.steps < self.block:
            self.steps += 1
            return None
        now = (time.perf_counter(), time.process_time())
        name = self.plan[self.index]
        wall, cpu = ((now[i] - self.began[i]) / self.block * 1e6 for i in (0, 1))
        self.times.append((name, wall, cpu))
        if name in self.recorders:
            self.recorders[name].take_out(trainer)
        self.index += 1
        if self.index == len(self.plan):
            trainer.should_stop = True
            return -1
        if self.plan[self.index] in self.recorders:
            self.recorders[self.plan[self.index]].put_in(trainer)
        self.steps = 1
        self.began = (time.perf_counter(), time.process_time())
        return None

    def ratios(self, name: str, column: int = 1) -> list[float]:
        """Return each block of *name* over the mean of its two neighbours without a recorder."""
        found = []
        for before, block, after in zip(self.times, self.times[1:], self.times[2:]):
            if block[0] == name:
                found.append(block[column] / statistics.mean((before[column], after[column])))
        return found

    def over(self, name: str, other: str, column: int = 1) -> list[float]:
        """Return the ratio of each block of *name* over the one of *other* in the same round, each by its own `ratios`."""
        return [a / b for a, b in zip(self.ratios(name, column), self.ratios(other, column), strict=True)]

    def extra_us(self, name: str, column: int = 1) -> list[float]:
        """Return the extra microseconds per step of each block."""
        return [
            block[column] - statistics.mean((before[column], after[column]))
            for before, block, after in zip(self.times, self.times[1:], self.times[2:])
            if block[0] == name
        ]


def interval(values: list[float], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median."""
    order = random.Random(1)
    medians = sorted(statistics.median(order.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(draws * 0.025)], medians[int(draws * 0.975)]


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start a real MLflow server and wait until it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        str(folder / "art"),
    ]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2)
        except OSError:
            time.sleep(0.2)
        else:
            time.sleep(5)  # its workers settle
            return process, uri
    raise SystemExit("the server did not start")


def main() -> None:
    """Run one fit and print a row per recorder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--block", type=int, default=50, help="steps per block")
    parser.add_argument("--rounds", type=int, default=100, help="blocks of each recorder")
    parser.add_argument("--step-ms", type=float, default=3.0, help="time of a step")
    parser.add_argument(
        "--only",
        nargs="*",
        help="recorders, of: none empty deaf write csv sqlite server mlflowlogger autolog tensorboard wandb dvclive",
    )
    parser.add_argument("--json", type=lambda text: Path(text).absolute(), help="also write the figures here")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    only = options.only or ["none", "empty", "deaf", "write", "csv", "sqlite", "server"]

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    # Of one batch over and over, the gradients end as numbers so small that a processor is slow with them.
    torch.set_flush_denormal(True)
    folder = Path(tempfile.mkdtemp(prefix="mlpipeline-bench-"))
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLPIPELINE_HOME": str(folder / "home")}
    os.chdir(folder)  # DVCLive makes the Git repository that it stands in one of DVC's
    from mlflow import MlflowClient

    store = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(store).search_experiments()
    server, uri = start_server(folder) if "server" in only else (None, "")

    def ours(destination: str) -> Recorder:
        config = MLflowConfig(tracking_uri=destination, experiment_name="bench", log_model=False)
        return Recorder([MLflowCallback(config)])

    makers = {
        "none": Recorder,  # what the method itself reads
        "empty": lambda: Recorder([Empty()]),
        "deaf": lambda: Recorder([Empty()], [Deaf()]),
        "write": lambda: Recorder([Empty()], [Writing(folder / "written")]),
        "csv": lambda: Recorder(loggers=[CSVLogger(folder / "csv")]),
        "sqlite": lambda: ours(store),
        "server": lambda: ours(uri),
        "mlflowlogger": lambda: Recorder(loggers=[MLFlowLogger("bench", tracking_uri=store)]),
        "autolog": lambda: Recorder([autolog(store)]),
        "tensorboard": lambda: Recorder(loggers=[tensorboard(folder)]),
        "wandb": lambda: Recorder(loggers=[wandb(folder)]),
        "dvclive": lambda: Recorder(loggers=[dvclive(folder)]),
    }
    recorders = {name: makers[name]() for name in only}
    blocks = Blocks(recorders, options.block, options.rounds, options.seed)
    callbacks = [callback for recorder in recorders.values() for callback in recorder.callbacks]
    loggers = [logger for recorder in recorders.values() for logger in recorder.loggers]
    try:
        steps = (len(blocks.plan) + 1) * options.block + 10
        fit([*callbacks, blocks], loggers, layers_for(options.step_ms), steps)
        for recorder in recorders.values():
            for callback in recorder.callbacks:
                if isinstance(callback, MLflowCallback) and callback.run is not None:
                    callback.run.settle(insist_s=120)
                    print(f"{callback.config.tracking_uri}: {callback.run.counts()}")
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGTERM)
    off = statistics.median(wall for name, wall, _ in blocks.times if name == "off")
    print(
        f"{options.block} steps a block, {options.rounds} blocks of each; without: {off / 1000:.2f} ms per step"
    )
    print(f"{'recorder':14} {'ratio':>6}  [quartiles]      95% of median   extra us/step  cpu ratio")
    found = Figures()
    for name in only:
        ratios, extra = blocks.ratios(name), blocks.extra_us(name)
        low, middle, high = statistics.quantiles(ratios, n=4)
        least, most = interval(ratios)
        cpu, way = blocks.ratios(name, 2), f"{name}, {options.block} steps a block"
        found.add(way, "ratio to none", ratios, cpu)
        found.add(way, "extra us per step", extra, blocks.extra_us(name, 2))
        over = ""
        if "empty" in only and name not in ("none", "empty"):
            beside = blocks.over(name, "empty")
            found.add(way, "ratio to an empty callback", beside, blocks.over(name, "empty", 2))
            over = f"  {statistics.median(beside):.3f} over the empty one"
        print(
            f"{name:14} {middle:6.3f}  [{low:.3f}, {high:.3f}]  [{least:.3f}, {most:.3f}]"
            f"  {statistics.median(extra):10.1f}  {statistics.median(cpu):10.3f}{over}"
        )
    found.write(options.json, "lightning")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
