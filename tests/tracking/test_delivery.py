"""From the journals to a real MLflow: everything, once, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun, ViewType

from mlpipeline import MLflowConfig
from mlpipeline.testing import faults
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.tracking import trainings
from mlpipeline.tracking.account import account_of, dead_letters
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import DONE_KEPT_DAYS, Home, is_remote
from mlpipeline.tracking.opening import attached_run, open_child, open_run
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from mlpipeline.testing.places import Server

Deliver = Callable[[], None]


@pytest.fixture
def experiment() -> str:
    """Name of an experiment that no other test uses."""
    return f"delivery-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def config(either_store: str, experiment: str) -> MLflowConfig:
    return MLflowConfig(tracking_uri=either_store, experiment_name=experiment, delivery="offline")


def client_of(config: MLflowConfig) -> MlflowClient:
    return MlflowClient(config.tracking_uri, config.tracking_uri)


def runs_of(config: MLflowConfig) -> list[MlflowRun]:
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.experiment_name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL))


def only_run(config: MLflowConfig) -> MlflowRun:
    (run,) = runs_of(config)
    return run


def history(config: MLflowConfig, run: MlflowRun, key: str) -> list[tuple[int, float]]:
    points = client_of(config).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_all_that_was_recorded_is_in_mlflow(config: MLflowConfig, deliver: Deliver, tmp_path: Path) -> None:
    """Params, metrics, tags, dataset, artifacts, times, user and status, read back by plain MLflow."""
    import numpy as np

    run = open_run(config.replace(run_name="one", tags={"team": "a"}, description="the note"))
    run.log_params({"lr": 0.1, "net": {"layers": [64, 64]}, "nothing": None})
    for step in range(2500):
        run.log_metrics({"loss": 1 / (step + 1), "acc": step}, step=step)
    run.log_metric("epochless", 3.5)
    run.set_tags({"stage": "dev"})
    run.log_dataset(np.arange(6.0).reshape(3, 2), name="train", context="training")
    run.log_text("hello", "notes/hello.txt")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.txt").write_text("a")
    run.log_artifacts([tmp_path / "plots"])
    run.end()
    deliver()
    found = only_run(config)
    assert ("one", "FINISHED") == (found.info.run_name, found.info.status)
    assert {"lr": "0.1", "net.layers": "[64, 64]", "nothing": "None"} == found.data.params
    assert [(step, 1 / (step + 1)) for step in range(2500)] == history(config, found, "loss")
    assert [(step, float(step)) for step in range(2500)] == history(config, found, "acc")
    assert [(0, 3.5)] == history(config, found, "epochless")
    assert {"team": "a", "stage": "dev", "mlflow.note.content": "the note"}.items() <= found.data.tags.items()
    assert "unknown" != found.data.tags["mlflow.user"]
    (dataset,) = found.inputs.dataset_inputs
    assert ("train", {"num_rows": 3, "shape": [3, 2]}) == (
        dataset.dataset.name,
        json.loads(dataset.dataset.profile),
    )
    names = {
        item.path
        for folder in ("notes", "plots")
        for item in client_of(config).list_artifacts(found.info.run_id, folder)
    }
    assert {"notes/hello.txt", "plots/a.txt"} == names
    assert not Home.at().run(run.uid).path.exists()


def test_losing_the_state_before_it_was_saved_doubles_nothing(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """A courier killed between sending and acknowledging sends it all again; MLflow has it once."""
    run = open_run(config)
    run.log_params({"lr": 0.1})
    for step in range(20):
        run.log_metrics({"loss": 0.5}, step=step)
    deliver()
    Home(home).run(run.uid).state_file.unlink()
    run.log_metrics({"loss": 0.5}, step=20)
    run.end()
    deliver()
    assert [(step, 0.5) for step in range(21)] == history(config, only_run(config), "loss")


def test_a_run_killed_without_an_end_becomes_killed_at_its_last_record(
    config: MLflowConfig, deliver: Deliver
) -> None:
    """The journal has no end and its lock is free: nobody lives who could end it."""
    run = open_run(config)
    run.log_metrics({"loss": 0.5}, step=0)
    assert run._journal is not None
    run._journal.close()
    deliver()
    found = only_run(config)
    (point,) = client_of(config).get_metric_history(found.info.run_id, "loss")
    assert ("KILLED", point.timestamp) == (found.info.status, found.info.end_time)


def test_a_live_runis_delivered_but_never_ended(config: MLflowConfig, deliver: Deliver) -> None:
    """A courier in the writer's own process sees that the writer lives."""
    run = open_run(config)
    run.log_metrics({"loss": 0.5}, step=0)
    deliver()
    assert ("RUNNING", None) == (only_run(config).info.status, only_run(config).info.end_time)
    run.end("FAILED")
    deliver()
    assert "FAILED" == only_run(config).info.status


def test_a_changed_param_keeps_its_first_value_and_is_told(config: MLflowConfig, deliver: Deliver) -> None:
    """First value wins, the later one is a drift tag, and the other params of the batch are stored."""
    run = open_run(config)
    run.log_params({"lr": 0.1})
    deliver()
    run.log_params({"lr": 0.2, "depth": 3})
    run.end()
    deliver()
    found = only_run(config)
    assert {"lr": "0.1", "depth": "3"} == found.data.params
    assert "0.2" == found.data.tags["mlpipeline.drift.lr"]


def test_a_poison_record_is_isolated_and_its_neighbours_are_stored(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """One bad key among a thousand: 999 arrive, one is a dead letter with MLflow's reason."""
    run = open_run(config)
    assert run._journal is not None
    keys = tuple(f"m{index}" if index != 500 else "bad@key" for index in range(1000))
    run._journal.append_metrics(keys, [1.0] * 1000, 0, 1_700_000_000_000)
    run._journal.append(Kind.TAGS, {"tags": {"good": "1", "x" * 300: "2"}, "ms": 1})
    run.end()
    deliver()
    found = only_run(config)
    assert 999 == len(found.data.metrics)
    assert "1" == found.data.tags["good"]
    letters = dead_letters(Home(home), run.uid)
    assert ["metric", "tag"] == sorted(letter["kind"] for letter in letters)
    assert 2 == account_of(Home(home), run.uid).counts.refused
    assert "FINISHED" == found.info.status


def test_a_run_its_owner_deleted_is_not_made_again(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """The rest of its records become dead letters; no new run, no endless retry."""
    run = open_run(config)
    run.log_metrics({"loss": 0.5}, step=0)
    deliver()
    client_of(config).delete_run(only_run(config).info.run_id)
    run.log_metrics({"loss": 0.25}, step=1)
    run.end()
    deliver()
    assert "deleted" == only_run(config).info.lifecycle_stage
    assert [1] == [
        letter["content"]["step"]
        for letter in dead_letters(Home(home), run.uid)
        if letter["kind"] == "metric"
    ]


def test_a_resumed_training_keeps_the_first_value_of_every_step(
    config: MLflowConfig, deliver: Deliver
) -> None:
    """Killed at step 7, resumed from a checkpoint at 5: one run, one value per step, the overlap tagged."""
    first = open_run(config)
    for step in range(8):
        first.log_metrics({"loss": step}, step=step)
    assert first._journal is not None
    first._journal.close()
    second = open_run(config, uid=first.uid)
    for step in range(5, 11):
        second.log_metrics({"loss": 100 + step}, step=step)
    second.end()
    deliver()
    found = only_run(config)
    expected = [(step, float(step)) for step in range(8)] + [(step, 100.0 + step) for step in range(8, 11)]
    assert expected == history(config, found, "loss")
    assert "FINISHED" == found.info.status
    assert "3 points up to step 7" in found.data.tags["mlpipeline.overlap"]


def test_a_resumed_run_that_was_done_long_ago_is_found_again(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """Also without any state of the first attempt, as on another host: the uid tag leads to it."""
    first = open_run(config)
    first.log_metrics({"loss": 1.0}, step=0)
    first.end("FAILED")
    deliver()
    Home(home).done_file(first.uid).unlink()
    second = open_run(config, uid=first.uid)
    second.log_metrics({"loss": 9.0}, step=0)
    second.log_metrics({"loss": 2.0}, step=1)
    second.end()
    deliver()
    assert [(0, 1.0), (1, 2.0)] == history(config, only_run(config), "loss")
    assert "FINISHED" == only_run(config).info.status


def test_a_run_continued_by_id_counts_its_steps_on(config: MLflowConfig, deliver: Deliver) -> None:
    """Metrics without a step go on where the run stood."""
    first = open_run(config)
    first.log_metric("loss", 1.0)
    first.log_metric("loss", 2.0)
    first.end()
    deliver()
    run_id = only_run(config).info.run_id
    second = open_run(config.replace(run_id=run_id))
    second.log_metric("loss", 3.0)
    second.end()
    deliver()
    assert [(0, 1.0), (1, 2.0), (2, 3.0)] == history(config, only_run(config), "loss")


def test_children_hang_under_their_parent(config: MLflowConfig, deliver: Deliver) -> None:
    """A child is made after its parent, whatever the order of their folders."""
    parent = open_run(config.replace(run_name="parent"))
    children = [parent.child(f"child-{number}") for number in range(3)]
    for child in children:
        child.log_metric("loss", 1.0)
        child.end()
    parent.end()
    deliver()
    by_name = {run.info.run_name: run for run in runs_of(config)}
    assert 4 == len(by_name)
    for number in range(3):
        tag = by_name[f"child-{number}"].data.tags["mlflow.parentRunId"]
        assert by_name["parent"].info.run_id == tag


def test_one_of_many_children_is_like_its_parent(
    store_uri: str, experiment: str, deliver: Deliver, home: Path
) -> None:
    """Its place, source and tags; and what is opened again under its name is the same run."""
    config = MLflowConfig(
        tracking_uri=store_uri, experiment_name=experiment, delivery="offline", tags={"team": "a"}
    )
    parent = open_run(config)
    for step in range(2):
        child = open_child(parent, "a-trial", name="7", start_ms=1_000_000, tags={"long": "x" * 6000, "n": 1})
        assert not (home / "runs" / "a-trial" / "spool").exists(), "one more folder for each of thousands"
        child.log_metrics({"loss": 0.5}, step=step)
        child.end("KILLED", end_ms=2_000_000)
        deliver()
    child.resume()
    child.log_text("hello", "hello.txt")
    child.end("KILLED", end_ms=2_000_000)
    parent.end()
    deliver()
    assert not list((home / "runs").iterdir())
    of_parent, of_child = sorted(runs_of(config), key=lambda run: len(run.data.tags))
    assert of_parent.info.run_id == of_child.data.tags["mlflow.parentRunId"]
    source = {
        key: text for key, text in of_parent.data.tags.items() if key.startswith(("mlflow.so", "mlflow.u"))
    }
    assert {**source, "team": "a", "n": "1", "long": "x" * 6000}.items() <= of_child.data.tags.items()
    assert "mlflow.user" in source
    assert ("7", "KILLED") == (of_child.info.run_name, of_child.info.status)
    assert (1_000_000, 2_000_000) == (of_child.info.start_time, of_child.info.end_time)
    assert [(0, 0.5), (1, 0.5)] == history(config, of_child, "loss")


def models_of(config: MLflowConfig) -> dict[str, str]:
    """Per model there is, the name of its run."""
    client = client_of(config)
    experiment = client.get_experiment_by_name(config.experiment_name)
    assert experiment is not None
    names = {run.info.run_id: run.info.run_name for run in runs_of(config)}
    found = client.search_logged_models([experiment.experiment_id])
    return {str(model.model_id): names[model.source_run_id] for model in found}


def test_only_the_child_that_is_taken_keeps_its_models(config: MLflowConfig, deliver: Deliver) -> None:
    """Those of its own children, too. What was kept before is deleted, but not what is registered."""
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    name = f"model-{uuid.uuid4().hex[:8]}"
    parent = open_run(config.replace(register_model=True, model_name=name))
    children = {}
    for number, is_kept in enumerate([True, False, True, True]):
        child = children[number] = open_child(parent, uuid.uuid4().hex, name=str(number), holds_models=True)
        with trainings.inside(child):
            fit = open_run(config.replace(run_name=f"fit {number}"))
        fit.log_model(model)
        fit.end()
        child.log_model(model)
        deliver()
        before = models_of(config)
        child.end(keeps_models=is_kept)
        deliver()
        added = sorted(set(models_of(config).values()) - set(before.values()))
        assert added == ([str(number), f"fit {number}"] if is_kept else []), "not before it is known"
        if number == 2:
            assert child.has_models
            parent.take_models(child)
            parent.register_model(name)
            deliver()
            assert ["2", "fit 2"] == sorted(models_of(config).values())
    parent.take_models(children[3])
    parent.end()
    deliver()
    assert ["2", "3", "fit 3"] == sorted(models_of(config).values()), "one of 2's is registered"
    (version,) = client_of(config).search_model_versions(f"name='{name}'")
    assert ["2"] == [run for model, run in models_of(config).items() if model in version.source]
    assert "3" == models_of(config)[str(parent.model_id)]
    outputs = client_of(config).get_run(str(parent.run_id)).outputs.model_outputs
    assert 4 == len(outputs), "two of each that was taken"
    assert not list((Path(os.environ["MLPIPELINE_HOME"]) / "runs").iterdir()), "nothing waits for ever"
    assert [] == list((Path(os.environ["MLPIPELINE_HOME"]) / "dead").iterdir())


@pytest.mark.process
def test_the_models_of_a_child_that_was_killed_are_dropped(
    store_uri: str, experiment: str, deliver: Deliver, home: Path
) -> None:
    """It did not get to say that it keeps them."""
    code = """
import os, signal, sys
from sklearn.linear_model import LinearRegression
from mlpipeline import MLflowConfig
from mlpipeline.tracking import trainings
from mlpipeline.tracking.opening import open_child, open_run
model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
parent = open_run(MLflowConfig(tracking_uri=sys.argv[1], experiment_name=sys.argv[2], delivery="offline"))
child = open_child(parent, "a-trial", holds_models=True)
with trainings.inside(child):
    fit = open_run(MLflowConfig())
    fit.log_model(model)
    fit.end()
    child.log_model(model)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, store_uri, experiment], check=False, timeout=60)
    deliver()
    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment)
    assert ["FINISHED", "KILLED", "KILLED"] == sorted(run.info.status for run in runs_of(config))
    assert {} == models_of(config)
    assert not list((home / "runs").iterdir())


def test_nonfinite_values_follow_the_policy(config: MLflowConfig, deliver: Deliver) -> None:
    """By default they are stored as MLflow stores them, and the first bad step is tagged."""
    run = open_run(config)
    for step, value in enumerate((1.0, math.nan, math.inf, 2.0)):
        run.log_metrics({"loss": value}, step=step)
    run.end()
    deliver()
    found = only_run(config)
    values = [value for _, value in history(config, found, "loss")]
    assert 4 == len(values)
    assert "nan at step 1" == found.data.tags["mlpipeline.nonfinite.loss"]


def test_equal_values_in_one_millisecond_all_arrive(config: MLflowConfig, deliver: Deliver) -> None:
    """MLflow would merge equal points of one millisecond; ours are told apart."""
    run = open_run(config)
    for _ in range(50):
        run.log_metrics({"loss": 0.5}, step=3)
    run.end()
    deliver()
    assert 50 == len(history(config, only_run(config), "loss"))


def test_what_is_over_already_keeps_its_own_times(config: MLflowConfig, deliver: Deliver) -> None:
    """A trial that a callback hears of when it has ended began and ended earlier."""
    run = open_run(config, start_ms=1_000_000)
    run.log_metrics({"loss": 0.5}, step=3, timestamp_ms=1_500_000)
    run.end(end_ms=2_000_000)
    deliver()
    found = only_run(config)
    (point,) = client_of(config).get_metric_history(found.info.run_id, "loss")
    times = (found.info.start_time, point.timestamp, found.info.end_time)
    assert (1_000_000, 1_500_000, 2_000_000) == times


def test_a_destination_that_is_absent_keeps_everything_until_it_is_back(
    store_uri: str, deliver: Deliver, home: Path, tmp_path: Path
) -> None:
    """A database that cannot be opened now: all pending, told; after healing all is there."""
    hidden = tmp_path / "hidden.db"
    path = Path(store_uri.removeprefix("sqlite:///"))
    os.rename(path, hidden)
    path.mkdir()
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="later", delivery="offline")
    run = open_run(config)
    run.log_metrics({"loss": 0.5}, step=0)
    run.end()
    deliver()
    account = account_of(Home(home), run.uid)
    assert (0, 2) == (account.counts.delivered, account.counts.pending)
    assert account.problem
    path.rmdir()
    os.rename(hidden, path)
    deliver()
    assert [(0, 0.5)] == history(config, only_run(config), "loss")


@pytest.mark.parametrize("moment", ["before it is put away", "while it is read", "after that"])
def test_a_run_taken_up_as_it_is_put_away_loses_nothing(
    store_uri: str, experiment: str, deliver: Deliver, home: Path, moment: str
) -> None:
    """Whenever a second ``fit`` comes: its journal is not deleted with the first one's."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment, delivery="offline")
    run = open_run(config)
    run.end()
    delivery = RunDelivery(Home(home), Home(home).run(run.uid))
    sink = MlflowSink(run.destination)
    while not delivery.is_finished:
        delivery.deliver(sink)
    if moment == "after that":
        assert delivery.finish()
    run.resume()
    run.log_metrics({"loss": 0.5}, step=0)
    if moment == "while it is read":
        delivery.deliver(sink)
        run.log_metrics({"loss": 0.25}, step=1)
    assert delivery.finish() is False
    assert (0 == delivery.deliver(sink)) == (moment == "after that"), "who put it away is through with it"
    run.end("FAILED")
    deliver()
    assert "FAILED" == only_run(config).info.status
    points = [(0, 0.5), (1, 0.25)] if moment == "while it is read" else [(0, 0.5)]
    assert points == history(config, only_run(config), "loss")


def test_an_earlier_attempts_late_end_is_discarded(
    config: MLflowConfig, deliver: Deliver, home: Path
) -> None:
    """Resumed on another host: the newest attempt's status stands."""
    first = open_run(config)
    first.log_metrics({"loss": 1.0}, step=0)
    deliver()
    other_home = home.with_name("other")
    os.environ["MLPIPELINE_HOME"] = str(other_home)
    second = open_run(config, uid=first.uid)
    second.log_metrics({"loss": 2.0}, step=1)
    second.end("FINISHED")
    from mlpipeline.tracking.courier import Courier

    assert Courier(Home(other_home)).run(until_idle=True)
    first.end("FAILED")
    os.environ["MLPIPELINE_HOME"] = str(home)
    deliver()
    assert "FINISHED" == only_run(config).info.status


SHARING = """
import os, signal, sys
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run
config = MLflowConfig(tracking_uri=sys.argv[1], experiment_name=sys.argv[2], delivery="offline")
run = open_run(config, shared_uid="a-study")
run.log_metrics({"loss": 0.5}, step=int(sys.argv[3]))
print("open", flush=True)
sys.stdin.readline()
"""


def share(config: MLflowConfig, step: int) -> subprocess.Popen[str]:
    """Start a process that opens the run, records one step, and leaves when told to."""
    command = [sys.executable, "-c", SHARING, str(config.tracking_uri), config.experiment_name, str(step)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "open" == process.stdout.readline().strip()
    return process


def leave(process: subprocess.Popen[str], *, is_killed: bool = False) -> None:
    if is_killed:
        process.kill()
    process.communicate("\n", timeout=30)


@pytest.mark.process
@pytest.mark.parametrize(
    ("first", "second", "status"),
    [(False, False, "FINISHED"), (True, False, "FINISHED"), (True, True, "KILLED")],
)
def test_a_shared_run_is_made_once_and_ends_with_the_last_process(
    store_uri: str, experiment: str, deliver: Deliver, first: bool, second: bool, status: str
) -> None:
    """Whoever came first and whoever leaves first; a killed one does not speak for the others."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment)
    # The one that came last leaves first.
    processes = [share(config, step) for step in (5, 2)]
    deliver()
    assert "RUNNING" == only_run(config).info.status
    leave(processes[1], is_killed=first)
    deliver()
    assert "RUNNING" == only_run(config).info.status
    leave(processes[0], is_killed=second)
    deliver()
    run = only_run(config)
    assert status == run.info.status
    assert [(2, 0.5), (5, 0.5)] == history(config, run, "loss")


@pytest.mark.process
def test_a_shared_run_goes_on_with_whoever_opens_it_again(
    store_uri: str, experiment: str, deliver: Deliver, home: Path
) -> None:
    """From another home, too; and whoever is killed then is not spoken for by an end from before."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment)
    leave(share(config, 0))
    leave(share(config, 1))
    deliver()
    assert "FINISHED" == only_run(config).info.status
    shutil.rmtree(home)
    leave(share(config, 2))
    leave(share(config, 3), is_killed=True)
    deliver()
    run = only_run(config)
    assert "KILLED" == run.info.status
    assert [(step, 0.5) for step in range(4)] == history(config, run, "loss")


@pytest.mark.parametrize("bad", ["../../escape", "/etc/passwd", "a/../../../b"])
def test_a_hostile_journal_names_nothing_outside_of_the_spool(
    store_uri: str, deliver: Deliver, home: Path, bad: str
) -> None:
    """What a record points to must lie in the spool; else it is refused, and nothing is read."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="hostile", delivery="offline")
    run = open_run(config)
    record: dict[str, Any] = {"spool": bad, "artifact_path": None, "file": "x", "ms": 1}
    assert run._journal is not None
    run._journal.append(Kind.ARTIFACT, record)
    run.end()
    deliver()
    assert not client_of(config).list_artifacts(only_run(config).info.run_id)
    assert ["artifact"] == [letter["kind"] for letter in dead_letters(Home(home), run.uid)]


FULL = """
import resource, signal, sys
from pathlib import Path
from sklearn.ensemble import RandomForestClassifier
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_child, open_run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
forest = RandomForestClassifier(50).fit([[0.0], [1.0]] * 50, [0, 1] * 50)
big = Path("big.txt")
big.write_text("x" * 50_000)
parent = open_run(MLflowConfig(tracking_uri=sys.argv[1], run_name="parent", delivery="offline"))
child = open_child(parent, "child-0", name="child", is_over=True)
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
for run in (parent, child):
    run.log_text("fits", "small.txt")
    run.log_text("x" * 50_000, "text.txt")
    run.log_artifact(big)
parent.log_model(forest)
resource.setrlimit(resource.RLIMIT_FSIZE, limit)
child.end()
parent.end()
print(child.counts().dropped, parent.counts().dropped)
"""


def test_files_that_the_disk_refuses_are_counted_as_dropped(
    store_uri: str, deliver: Deliver, home: Path
) -> None:
    """RLIMIT_FSIZE stands for the full disk: exact numbers, here, in `status` and in the runs' tags."""
    done = subprocess.run([sys.executable, "-c", FULL, store_uri], capture_output=True, text=True, check=True)
    assert "2 3\n" == done.stdout
    (folder,) = [folder for folder in Home(home).runs() if folder.uid != "child-0"]
    deliver()
    assert (2, 3) == tuple(account_of(Home(home), uid).counts.dropped for uid in ("child-0", folder.uid))
    runs = MlflowClient(store_uri).search_runs(["0", "1"])
    found = {run.info.run_name: run.data.tags["mlpipeline.dropped"] for run in runs}
    assert {"child": "2", "parent": "3"} == found


@pytest.mark.parametrize("name", ["it's", 'say "so"', "back`tick"])
def test_a_registered_models_name_may_hold_quotes(store_uri: str, deliver: Deliver, name: str) -> None:
    """Its version is searched for by this name before it is made."""
    from sklearn.linear_model import LinearRegression

    config = MLflowConfig(tracking_uri=store_uri, register_model=True, model_name=name, delivery="offline")
    run = open_run(config)
    run.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    run.end()
    deliver()
    assert [1] == [
        version.version for version in client_of(config).get_registered_model(name).latest_versions
    ]


def test_a_handle_on_another_process_run_knows_its_model(
    store_uri: str, deliver: Deliver, experiment: str
) -> None:
    """As after ddp_spawn: the run was opened and its model logged elsewhere."""
    from sklearn.linear_model import LinearRegression

    options = MLflowConfig(experiment_name=experiment, model_name=experiment, register_model=True)
    config = options.replace(tracking_uri=store_uri, delivery="offline")
    run = open_run(config)
    run.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    run.end()
    deliver()
    handle = attached_run(config, run.uid)
    assert handle is not None
    assert run.model_uri == handle.model_uri
    assert 1 == handle.model_version
    assert 2.0 == pytest.approx(handle.load_model().predict([[2.0]])[0])


def test_the_newest_points_go_ahead_of_their_turn_and_are_stored_once(
    store_uri: str, experiment: str, home: Path
) -> None:
    """A courier that keeps to its share falls behind; the live view is current all the same."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment, delivery="offline")
    run = open_run(config)
    for step in range(5000):
        run.log_metrics({"loss": 1 / (step + 1)}, step=step)
    delivery = RunDelivery(Home(home), Home(home).run(run.uid))
    sink = MlflowSink(Destination(store_uri, store_uri))
    delivery.deliver(sink, 16 * 2**10)
    assert max(step for step, _ in history(config, only_run(config), "loss")) < 4999
    delivery.deliver_latest(sink)
    assert {"loss": 1 / 5000} == only_run(config).data.metrics
    run.end()
    while not delivery.state.is_ended:
        delivery.deliver(sink)
    assert [(step, 1 / (step + 1)) for step in range(5000)] == history(config, only_run(config), "loss")


class Noted(FaultyProxy):
    """A proxy that keeps the points that it was sent."""

    def __init__(self, server_uri: str) -> None:
        super().__init__(server_uri)
        self.points: list[tuple[str, int]] = []
        self.asked = 0
        self.then = faults.passed
        self.fault = self._note

    def _note(self, exchange: faults.Exchange) -> None:
        self.asked += "get-history-bulk-interval" in exchange.path
        if exchange.path.endswith("log-batch"):
            self.points += [(one["key"], one["step"]) for one in json.loads(exchange.body).get("metrics", ())]
            self.then(exchange)
        else:
            faults.passed(exchange)

    def expect_each_once(self, config: MLflowConfig, count: int) -> None:
        """Every point was sent once, and is there once."""
        expected = [(key, step) for key in ("a", "b") for step in range(count)]
        assert expected == sorted(self.points)
        direct = config.replace(tracking_uri=f"http://{self._upstream[0]}:{self._upstream[1]}")
        for key in ("a", "b"):
            found = history(direct, only_run(direct), key)
            assert list(range(count)) == [step for step, _ in found]


def record(config: MLflowConfig, count: int) -> Any:
    run = open_run(config)
    for step in range(count):
        # Not a number and infinite, too: they are told apart by their names.
        run.log_metrics({"a": step / 7, "b": math.nan if step % 2 else step}, step=step)
    return run


@pytest.mark.server
@pytest.mark.parametrize("goes_on", [True, False], ids=["same courier", "another courier"])
def test_a_server_gets_no_point_again_that_went_ahead(
    server: Server, experiment: str, home: Path, monkeypatch: pytest.MonkeyPatch, goes_on: bool
) -> None:
    """On SQLite it would look for every point of the request at every point of the run."""
    monkeypatch.setattr("mlpipeline.tracking.delivery._LARGE_RUN", 100)
    with Noted(server.uri) as proxy:
        config = MLflowConfig(tracking_uri=proxy.uri, experiment_name=experiment, delivery="offline")
        run = record(config, 4000)
        sink = MlflowSink(Destination(proxy.uri, proxy.uri))
        delivery = RunDelivery(Home(home), Home(home).run(run.uid))
        for _ in range(2):
            delivery.deliver(sink, 16 * 2**10)
            delivery.deliver_latest(sink)
        for step in range(4000, 4100):
            run.log_metrics({"a": step / 7, "b": step}, step=step)
        delivery.deliver_latest(sink)
        assert [("a", 4099), ("b", 4099)] == proxy.points[-2:]
        run.end()
        if not goes_on:
            delivery = RunDelivery(Home(home), Home(home).run(run.uid))
        while not delivery.state.is_ended:
            delivery.deliver(sink, 16 * 2**10)
        proxy.expect_each_once(config, 4100)
        assert goes_on == (proxy.asked == 0)


@pytest.mark.server
@pytest.mark.parametrize("trouble", ["a lost answer", "a courier that is killed"])
def test_a_server_gets_no_point_of_a_large_run_again(
    server: Server, experiment: str, home: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """It took a run of 900 000 points longer than its client waits, so that it was asked for ever."""
    monkeypatch.setattr("mlpipeline.tracking.delivery._LARGE_RUN", 100)
    with Noted(server.uri) as proxy:
        config = MLflowConfig(tracking_uri=proxy.uri, experiment_name=experiment, delivery="offline")
        run = record(config, 3000)
        run.end()
        sink = MlflowSink(Destination(proxy.uri, proxy.uri))
        delivery = RunDelivery(Home(home), Home(home).run(run.uid))
        delivery.deliver(sink, 16 * 2**10)
        proxy.then = faults.in_turn(faults.passed, faults.cut)
        with pytest.raises(Unavailable):
            delivery.deliver(sink, 64 * 2**10)
        proxy.then = faults.passed
        assert 0 == proxy.asked
        if trouble != "a lost answer":
            delivery = RunDelivery(Home(home), Home(home).run(run.uid))
        while not delivery.state.is_ended:
            delivery.deliver(sink, 64 * 2**10)
        proxy.expect_each_once(config, 3000)


@pytest.mark.server
def test_of_a_run_that_was_deleted_not_each_record_is_asked_for(
    server: Server, experiment: str, home: Path, mlflow_client: Callable[[str], MlflowClient]
) -> None:
    """An exit waited 3 seconds for a request or two per record; restored, the run takes what comes then."""
    with FaultyProxy(server.uri) as proxy:
        config = MLflowConfig(tracking_uri=proxy.uri, experiment_name=experiment, delivery="offline")
        run = record(config, 10)
        delivery, sink = (
            RunDelivery(Home(home), Home(home).run(run.uid)),
            MlflowSink(Destination(proxy.uri, proxy.uri)),
        )
        delivery.deliver(sink)
        mlflow_client(server.uri).delete_run(str(delivery.state.run_id))
        for step in range(10, 500):
            run.log_metrics({"a": step, "b": step}, step=step)
        run.log_params({f"param-{number}": number for number in range(50)})
        requests, delivered = len(proxy.requests), delivery.state.delivered
        delivery.deliver(sink)
        assert len(proxy.requests) - requests < 10
        assert (980 + 50, delivered) == (delivery.state.refused, delivery.state.delivered)
        assert all("active" in letter["reason"] for letter in dead_letters(Home(home), run.uid))
        mlflow_client(server.uri).restore_run(str(delivery.state.run_id))
        run.log_metrics({"a": 500}, step=500)
        delivery.deliver(sink)
        assert 500 == only_run(config.replace(tracking_uri=server.uri)).data.metrics["a"]


def test_what_was_done_long_ago_is_forgotten(home: Path, deliver: Deliver, config: MLflowConfig) -> None:
    """The record of a finished run keeps its local id resolving for a while, not for ever."""
    runs = [open_run(config) for _ in "ab"]
    for run in runs:
        run.end()
    deliver()
    old, young = (Home(home).done_file(run.uid) for run in runs)
    long_ago_s = old.stat().st_mtime - (DONE_KEPT_DAYS + 1) * 86_400
    os.utime(old, (long_ago_s, long_ago_s))
    open_run(config).end()
    deliver()
    assert (False, True) == (old.exists(), young.exists())


def test_a_model_too_many_for_the_spool_is_recorded_without_its_files(
    store_uri: str, deliver: Deliver, experiment: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Told once, and tagged; the facts about it arrive."""
    from sklearn.linear_model import LinearRegression

    from mlpipeline.tracking import spool

    config = MLflowConfig(tracking_uri=store_uri, experiment_name=experiment, delivery="offline")
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    run = open_run(config)
    run.log_model(model, "first")
    monkeypatch.setattr(spool, "SPOOL_LIMIT_BYTES", 1)
    run.log_model(model, "second")
    run.end()
    assert 1 == sum("is recorded without its files" in message for message in caplog.messages)
    deliver()
    client, found = client_of(config), only_run(config)
    assert "the spool was full" == found.data.tags["mlpipeline.without_files.second"]
    models = {model.name: model for model in client.search_logged_models([found.info.experiment_id])}
    assert {"first", "second"} == set(models)
    files = {name: client.list_logged_model_artifacts(models[name].model_id) for name in models}
    assert (True, False) == (bool(files["first"]), bool(files["second"]))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ann/.local/state/mlpipeline", True),
        ("/home/annex/x", False),
        ("/home/ann/scratch/x", False),
        ("/shared/x", True),
    ],
)
def test_a_home_on_a_network_file_system_is_recognised(tmp_path: Path, path: str, expected: bool) -> None:
    """By the innermost mount above it."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/ann /home/ann nfs4 rw 0 0\n"
        "/dev/sdb1 /home/ann/scratch xfs rw 0 0\nmgs:/lus /shared lustre rw 0 0\n"
    )
    assert expected == is_remote(path, str(mounts))


def test_points_without_a_step_of_a_run_that_is_gone_are_dead_letters_too(
    store_uri: str, home: Path, deliver: Callable[[], None]
) -> None:
    """Their steps, counted on from what MLflow has, can be counted no more; their values are kept."""
    run = open_run(MLflowConfig(tracking_uri=store_uri, run_id="0" * 32, delivery="offline"))
    run.log_metrics({"loss": 0.5})
    run.log_metrics({"loss": 0.25})
    run.end()
    deliver()
    letters = dead_letters(Home(home), run.uid)
    assert [0.5, 0.25] == [letter["content"]["value"] for letter in letters if letter["kind"] == "metric"]
    assert 2 == account_of(Home(home), run.uid).counts.refused


@pytest.mark.parametrize(
    ("content", "is_refused"), [("flavors: [", True), ("flavors: {}\nrun_id: none\n", False)]
)
def test_a_model_whose_description_cannot_be_read_is_refused(store_uri, tmp_path, content, is_refused):
    """It never will be: tried again and again, it would keep its run from its end."""
    sink = MlflowSink(Destination(store_uri, store_uri))
    client = MlflowClient(store_uri)
    run_id = client.create_run("0").info.run_id
    made = client.create_logged_model("0", source_run_id=run_id)
    folder = tmp_path / "staged" / "model"
    folder.mkdir(parents=True)
    (folder / "MLmodel").write_text(content)
    with pytest.raises(Refused, match="no YAML") if is_refused else contextlib.nullcontext():
        sink.fill_model(made.model_id, run_id, folder, 0)
    status = "PENDING" if is_refused else "READY"
    assert status == str(client.get_logged_model(made.model_id).status)
    assert [folder] == list(folder.parent.iterdir())


class Away(MlflowSink):
    """Takes runs, and no params for now."""

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        raise Unavailable("away")


def test_an_end_that_is_read_and_not_kept_yet_is_no_sign_of_a_kill(store_uri: str, home: Path) -> None:
    """The thread that asks for the models' verdict would drop those of a trial that ended well."""
    parent = open_run(MLflowConfig(tracking_uri=store_uri, experiment_name="held", delivery="offline"))
    child = open_child(parent, "held-child", holds_models=True)
    child.log_params({"depth": 3})
    child.end(keeps_models=True)
    sink = Away(Destination(store_uri, store_uri, ""))
    sink.load()
    RunDelivery(Home(home), Home(home).run(parent.uid)).deliver(sink)
    delivery = RunDelivery(Home(home), Home(home).run(child.uid))
    with pytest.raises(Unavailable, match="away"):
        delivery.deliver(sink)
    assert delivery.coming_end() is None
    sink.log_params = lambda *_: None  # type: ignore[method-assign]
    delivery.deliver(sink)
    assert delivery.coming_end()["keeps_models"]  # type: ignore[index]
    parent.end()
