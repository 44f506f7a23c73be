"""``mlpipeline storage``: what is there is told, what goes is archived first, and nothing else goes."""

from __future__ import annotations

import gzip
import json
import math
import os
import pty
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, ViewType

from mlpipeline import MLflowTracker
from mlpipeline.cli import main
from mlpipeline.testing.faults import Answer, FaultyProxy, answered, only
from mlpipeline.tracking import archive
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.sink import MlflowSink

DAY_MS = 86_400_000


class Filled:
    """A store with one experiment of this test's own."""

    def __init__(self, uri, name, through=None):
        self.uri, self.name = through or uri, name
        self.client = MlflowClient(uri, uri)
        self.experiment_id = self.client.create_experiment(name)

    def run(self, days=100.0, metrics=None, files=None, status="FINISHED", parent=None, **tags):
        """Make a run that ended so many days ago."""
        ended_ms = int(time.time() * 1000 - days * DAY_MS)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        id_ = self.client.create_run(self.experiment_id, start_time=ended_ms - 1000, tags=tags).info.run_id
        for key, value in (metrics or {}).items():
            self.client.log_metric(id_, key, value, timestamp=ended_ms, step=3)
        for path, text in (files or {}).items():
            self.client.log_text(id_, text, path)
        if status != "RUNNING":
            self.client.set_terminated(id_, status, ended_ms)
        return id_

    def model(self, run_id, text, tmp_path):
        """Log a model of one file to a run."""
        model_id = self.client.create_logged_model(self.experiment_id, "model", source_run_id=run_id).model_id
        folder = tmp_path / model_id
        folder.mkdir()
        (folder / "weights.bin").write_text(text)
        self.client.log_model_artifacts(model_id, str(folder))
        self.client.finalize_logged_model(model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
        return model_id

    def register(self, name, run_id, model_id, *aliases):
        sink = MlflowSink(Destination(self.uri, self.uri))
        sink.ensure_registered_model(name)
        version = sink.create_version(model_id, run_id, {"name": name, "uid": model_id})
        sink.mark_version({"name": name, "aliases": list(aliases)}, version, model_id)
        return version

    def active(self):
        return {run.info.run_id for run in self.client.search_runs([self.experiment_id])}

    def deleted(self):
        runs = self.client.search_runs([self.experiment_id], run_view_type=ViewType.DELETED_ONLY)
        return {run.info.run_id for run in runs}

    def models(self):
        return {model.model_id for model in self.client.search_logged_models([self.experiment_id])}

    def clean(self, *arguments, older_than="90d", code=0):
        """Clean this experiment; return what is told."""
        options = ["--tracking-uri", self.uri, "--experiment", self.name, "--older-than", older_than]
        done = CliRunner().invoke(main, ["storage", "clean", "--json", *options, *arguments])
        assert code == done.exit_code, (done.output, done.exception)
        return json.loads(done.stdout) if done.stdout else done.stderr


@pytest.fixture
def filled(either_store, request):
    return Filled(either_store, request.node.name)


@pytest.fixture
def in_file(store_uri, request):
    return Filled(store_uri, request.node.name)


def going(told):
    return [run["run_id"] for run in told["runs"]]


# --- report ------------------------------------------------------------------------------------------


def test_the_report_has_the_bytes_of_experiments_runs_and_versions(filled, tmp_path):
    """Largest first; models count with the run that logged them, and deleted runs still take room."""
    small = filled.run(files={"a.txt": "x" * 10})
    large = filled.run(files={"deep/er/b.txt": "y" * 100, "c.txt": "z" * 50})
    model = filled.model(large, "w" * 1000, tmp_path)
    version = filled.register(filled.name.replace("[", "").replace("]", ""), large, model, "champion")
    filled.client.delete_run(small)
    options = ["--tracking-uri", filled.uri, "--experiment", filled.name]
    done = CliRunner().invoke(main, ["storage", "report", "--json", *options])
    assert 0 == done.exit_code, done.output
    told = json.loads(done.stdout)
    (experiment,) = told["experiments"]
    assert (filled.name, 2, 1, 1160) == (
        experiment["name"], experiment["runs"], experiment["models"], experiment["total_bytes"],
    )  # fmt: skip
    assert [(large, 150, 1000, "FINISHED"), (small, 10, 0, "deleted")] == [
        (run["run_id"], run["artifact_bytes"], run["model_bytes"], run["status"]) for run in told["runs"]
    ]
    (found,) = told["versions"]
    assert (version, ["champion"], 1000, large) == (
        found["version"], found["aliases"], found["bytes"], found["run_id"],
    )  # fmt: skip
    assert 1160 == told["total_bytes"]
    text = CliRunner().invoke(main, ["storage", "report", "--top", "1", *options]).stdout
    assert large in text
    assert small not in text
    assert "1.2 kB in 2 runs" in text


def test_the_report_of_an_experiment_that_is_not_there_says_which_are(in_file):
    """Exit code 2: the user's mistake."""
    done = CliRunner().invoke(
        main, ["storage", "report", "--tracking-uri", in_file.uri, "--experiment", "typo"]
    )
    assert 2 == done.exit_code
    assert "experiment 'typo' is not at" in done.stderr
    assert repr(in_file.name) in done.stderr


@pytest.mark.parametrize("command", [["report"], ["clean", "--older-than", "1d", "--yes"]])
def test_a_store_that_is_away_is_told_in_one_line(command):
    """Exit code 1; and no store is made where none was."""
    for uri, said in (
        ("http://127.0.0.1:9", "Connection refused"),
        ("sqlite:///new.db", "there is no store at"),
    ):
        done = CliRunner().invoke(main, ["storage", *command, "--tracking-uri", uri])
        assert (1, 1) == (done.exit_code, done.stderr.count("\n"))
        assert said in done.stderr
    assert [] == list(Path.cwd().iterdir())


# --- what goes ---------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_would_go_and_why_the_rest_stays(filled, home, tmp_path):
    """And changes nothing: no run, no folder."""
    old = filled.run(files={"a.txt": "x" * 10})
    young = filled.run(days=89)
    running = filled.run(status="RUNNING")
    kept = filled.run(**{"mlpipeline.keep": "because"})
    unkept = filled.run(status="FAILED", **{"mlpipeline.keep": "false"})
    made = filled.run()
    filled.register(f"dry-{filled.uri[:4]}", made, filled.model(made, "w", tmp_path))
    told = filled.clean("--dry-run", "--archive", str(tmp_path / "archive"))
    assert ({old, unkept}, 10, []) == (set(going(told)), told["total_bytes"], told["outcomes"])
    assert {
        young: "it is younger",
        running: "it is RUNNING",
        kept: "it has the tag mlpipeline.keep",
        made: "its model is registered",
    } == told["kept"]
    assert not (tmp_path / "archive").exists()
    assert 6 == len(filled.active())


def test_the_best_of_an_experiment_stay(in_file):
    """By the last value; NaN is never the best; the direction is in the name unless it is given."""
    runs = {score: in_file.run(metrics={"val_f1": score, "val_loss": score}) for score in (0.1, 0.2, 0.3)}
    nan, without = in_file.run(metrics={"val_f1": math.nan}), in_file.run()
    for option, best in [
        ("1:val_f1", {0.3}),
        ("2:val_f1", {0.2, 0.3}),
        ("1:val_f1:min", {0.1}),
        ("1:val_loss", {0.1}),
        ("1:val_loss:max", {0.3}),
    ]:
        told = in_file.clean("--dry-run", "--keep-best", option)
        assert {runs[score] for score in best} == told["kept"].keys(), option
    told = in_file.clean("--dry-run", "--keep-best", "1:val_f1", "--keep-best", "1:val_loss")
    assert {runs[0.2], nan, without} == set(going(told))


def test_an_odd_metric_is_named_as_it_was_logged(in_file):
    """MLflow's key for it is another."""
    best, other = (in_file.run(metrics={"ndcg.at.3": value}) for value in (0.9, 0.1))
    assert [other] == going(in_file.clean("--dry-run", "--keep-best", "1:ndcg.at.3"))
    assert {best, other} == in_file.active()


def test_a_metric_that_no_run_has_is_a_mistake(in_file):
    """A slip of the pen must not delete the best runs."""
    in_file.run(metrics={"val_f1": 0.9})
    assert "no run has the metric 'val_fl'" in in_file.clean("--yes", "--keep-best", "10:val_fl:max", code=2)
    assert "keep-best 'ten:val_f1' cannot be read" in in_file.clean(
        "--yes", "--keep-best", "ten:val_f1", code=2
    )
    assert "'3 months' is no time span" in in_file.clean("--yes", older_than="3 months", code=2)
    assert 1 == len(in_file.active())


def test_an_experiment_that_cannot_be_ranked_stays(in_file):
    """Beside one that can."""
    unranked = in_file.run()
    other = Filled(in_file.uri, "ranked")
    best, worse = (other.run(metrics={"val_f1": value}) for value in (0.9, 0.1))
    done = CliRunner().invoke(
        main,
        ["storage", "clean", "--json", "--dry-run", "--tracking-uri", in_file.uri, "--older-than", "1d",
         "--keep-best", "1:val_f1"],
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert ([worse], {best, unranked}) == (going(told), told["kept"].keys())
    assert "its experiment cannot be ranked by val_f1" == told["kept"][unranked]


def test_a_metric_whose_name_does_not_tell_the_direction_needs_one(in_file):
    """Guessing would keep the worst."""
    best, other = (in_file.run(metrics={"churned": value}) for value in (1.0, 2.0))
    told = in_file.clean("--yes", "--keep-best", "1:churned", code=2)
    assert "write 1:churned:max or 1:churned:min" in told
    assert {best, other} == in_file.active()
    assert [other] == going(in_file.clean("--dry-run", "--keep-best", "1:churned:min"))


# --- families ----------------------------------------------------------------------------------------


def test_children_go_with_their_parent_and_before_it(in_file):
    """So that one that is interrupted leaves the parent."""
    parent = in_file.run(days=100)
    child = in_file.run(days=101, parent=parent)
    grandchild = in_file.run(days=102, parent=child)
    assert [grandchild, child, parent] == going(in_file.clean("--dry-run"))


def test_a_child_that_stays_keeps_its_parents_and_not_its_siblings(in_file):
    """The best trials stay in their study; the others go."""
    parent = in_file.run()
    best, other = (in_file.run(metrics={"val_f1": value}, parent=parent) for value in (0.9, 0.1))
    told = in_file.clean("--dry-run", "--keep-best", "1:val_f1")
    assert [other] == going(told)
    assert f"its child {best} stays: among the best 1 by val_f1" == told["kept"][parent]


def test_a_parent_that_stays_keeps_all_its_children(in_file):
    """Old trials of a study that goes on are part of it."""
    parent = in_file.run(status="RUNNING")
    child = in_file.run(parent=parent)
    grandchild = in_file.run(parent=child)
    told = in_file.clean("--dry-run")
    assert [] == going(told)
    assert f"its parent {parent} stays: it is RUNNING" == told["kept"][grandchild]


def test_runs_that_name_each_other_as_parents_do_not_hang_it(in_file):
    """Tags can say anything."""
    one = in_file.run()
    two = in_file.run(parent=one)
    in_file.client.set_tag(one, "mlflow.parentRunId", two)
    orphan = in_file.run(parent="0" * 32)
    assert {one, two, orphan} == set(going(in_file.clean("--dry-run")))


# --- journals ----------------------------------------------------------------------------------------


def test_a_run_that_is_on_its_way_stays(in_file, deliver):
    """Recorded offline into a run that ended long ago: MLflow has only a part of it."""
    old = in_file.run()
    with MLflowTracker(tracking_uri=in_file.uri, run_id=old, delivery="offline") as tracker:
        tracker.log_metrics({"late": 1.0}, step=0)
    told = in_file.clean("--dry-run")
    assert {old: "its records are on their way: mlpipeline sync"} == told["kept"]
    deliver()
    assert "it is younger" == in_file.clean("--dry-run")["kept"][old]
    assert [old] == going(in_file.clean("--dry-run", older_than="0s"))


# --- cleaning ----------------------------------------------------------------------------------------


def unpacked(path, folder):
    with tarfile.open(path) as tar:
        tar.extractall(folder, filter="data")
    return json.loads((folder / "run.json").read_text())


def test_what_goes_is_archived_whole(filled, tmp_path):
    """Params, tags, every point, datasets, files and models; then run and model are deleted."""
    id_ = filled.run(metrics={"loss": 0.5}, files={"deep/er/a.txt": "text"}, colour="blue")
    client = filled.client
    client.log_batch(
        id_, metrics=[Metric("loss", value, 7, step) for step, value in enumerate([2.0, math.nan])]
    )
    client.log_param(id_, "lr", "0.1")
    data = Dataset("penguins", "d1", "local", "{}", "{}", None)
    client.log_inputs(id_, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
    model = filled.model(id_, "weights", tmp_path)
    told = filled.clean("--yes", "--archive", str(tmp_path / "archive"))
    (outcome,) = told["outcomes"]
    path = tmp_path / "archive" / f"{id_}.tar.gz"
    assert (id_, "deleted", str(path)) == (outcome["run_id"], outcome["state"], outcome["archive"])
    assert (set(), {id_}, set()) == (filled.active(), filled.deleted(), filled.models())
    run = unpacked(path, tmp_path / "out")
    assert ({"lr": "0.1"}, "blue", filled.name) == (run["params"], run["tags"]["colour"], run["experiment"])
    assert [2.0, "nan", 0.5] == [value for _, _, value in run["metrics"]["loss"]]
    assert [0, 1, 3] == [step for step, _, _ in run["metrics"]["loss"]]
    (dataset,) = run["inputs"]["datasets"]
    assert ("penguins", {"mlflow.data.context": "train"}) == (dataset["name"], dataset["tags"])
    assert (
        [model]
        == [output["model_id"] for output in run["outputs"]]
        == [one["model_id"] for one in run["models"]]
    )
    assert "text" == (tmp_path / "out" / "artifacts" / "deep" / "er" / "a.txt").read_text()
    assert "weights" == (tmp_path / "out" / "models" / model / "weights.bin").read_text()
    assert (0o700, 0o600) == (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777)
    assert [path] == list(path.parent.iterdir()), "nothing is left beside it"


def test_a_deleted_run_can_be_restored(in_file):
    """MLflow keeps it until gc."""
    id_ = in_file.run(files={"a.txt": "text"})
    in_file.clean("--yes")
    assert (
        Path(in_file.uri.removeprefix("sqlite:///")).parent / "mlpipeline-archive" / f"{id_}.tar.gz"
    ).exists()
    in_file.client.restore_run(id_)
    assert {id_} == in_file.active()
    assert "a.txt" == in_file.client.list_artifacts(id_)[0].path


def test_a_registered_model_stays_even_where_its_run_goes(in_file, tmp_path):
    """And one that a run which stays has taken over."""
    id_, taker = in_file.run(), in_file.run(days=1)
    registered, taken, plain = (in_file.model(id_, "weights", tmp_path) for _ in range(3))
    in_file.register("served", id_, registered)
    in_file.client.log_outputs(taker, [LoggedModelOutput(taken, step=0)])
    assert [] == going(in_file.clean("--dry-run"))
    told = in_file.clean("--yes", "--no-protect-registered")
    assert ([id_], [plain]) == (going(told), told["runs"][0]["models"])
    assert {registered, taken} == in_file.models()
    in_file.client.restore_run(id_)
    in_file.clean("--yes", "--no-protect-registered", "--purge")
    assert {registered, taken} == in_file.models()
    assert "weights.bin" == in_file.client.list_logged_model_artifacts(registered)[0].path


def test_a_version_made_of_a_runs_own_files_keeps_the_run(in_file):
    """Also without protection: the version would have no files any more."""
    id_ = in_file.run(files={"model/MLmodel": "text"})
    in_file.client.create_registered_model("old style")
    source = f"{in_file.client.get_run(id_).info.artifact_uri}/model"
    in_file.client.create_model_version("old style", source, id_)
    told = in_file.clean("--dry-run", "--no-protect-registered")
    assert ([], {id_: "its model is registered"}) == (going(told), told["kept"])


def test_purge_frees_the_space_also_of_what_was_deleted_before(in_file, tmp_path):
    """Runs, models and files are gone; a run that somebody else deleted, without an archive, is not."""
    before = in_file.run(files={"a.txt": "text"})
    model = in_file.model(before, "weights", tmp_path)
    location = Path(in_file.client.get_logged_model(model).artifact_location.removeprefix("file://"))
    assert (location / "weights.bin").exists()
    in_file.clean("--yes")
    others, later = in_file.run(), in_file.run(files={"b.txt": "text"})
    in_file.client.delete_run(others)
    folders = [
        Path(in_file.client.get_run(id_).info.artifact_uri.removeprefix("file://")) for id_ in (before, later)
    ]
    told = in_file.clean("--yes", "--purge")
    assert {before: "purged", later: "purged"} == {one["run_id"]: one["state"] for one in told["outcomes"]}
    assert (set(), {others}) == (in_file.active(), in_file.deleted())
    assert [False, False, False] == [folder.exists() for folder in (*folders, location)]
    out = unpacked(
        next(one["archive"] for one in told["outcomes"] if one["run_id"] == before), tmp_path / "out"
    )
    assert [model] == [one["model_id"] for one in out["models"]]


@pytest.mark.server
def test_purge_is_not_for_a_server(server):
    """Exit code 2, with what to run on its machine instead."""
    filled = Filled(server.uri, "purge")
    id_ = filled.run()
    assert "mlflow gc --backend-store-uri" in filled.clean("--yes", "--purge", code=2)
    assert {id_} == filled.active()


# --- what goes wrong ---------------------------------------------------------------------------------


def test_nothing_is_deleted_that_could_not_be_archived(in_file, tmp_path):
    """The folder cannot be made: exit code 1, each run with the reason, none of them gone."""
    (tmp_path / "file").write_text("no folder")
    parent = in_file.run()
    child = in_file.run(parent=parent)
    told = in_file.clean("--yes", "--archive", str(tmp_path / "file" / "archive"), code=1)
    details = {one["run_id"]: (one["state"], one["detail"]) for one in told["outcomes"]}
    assert "Not a directory" in details[child][1]
    assert ("failed", "a child of it is still there") == details[parent]
    assert {parent, child} == in_file.active()


def shortened(exchange):
    """Answer with a part of the file, as if it were all."""
    answer = exchange.forward()
    headers = tuple(pair for pair in answer.headers if pair[0].lower() != "content-length")
    exchange.reply(Answer(200, headers, answer.body[:10]))


@pytest.mark.server
@pytest.mark.parametrize("fault", [answered(500), shortened], ids=["fails", "shortened"])
def test_a_file_that_does_not_come_keeps_its_run_and_no_other(server, tmp_path, fault, request):
    """The server fails in the middle of one download, or sends a part of it without a word."""
    with FaultyProxy(server.uri) as proxy:
        filled = Filled(server.uri, request.node.name, proxy.uri)
        bad, good = filled.run(files={"bad.bin": "x" * 100}), filled.run(files={"good.bin": "y" * 100})
        proxy.fault = only("artifacts/bad.bin", fault)
        told = filled.clean("--yes", "--archive", str(tmp_path / "archive"), code=1)
    details = {one["run_id"]: one["detail"] for one in told["outcomes"]}
    assert (
        "failures occurred while downloading" if fault is not shortened else "1 files did not come whole"
    ) in details[bad]
    assert {bad: "failed", good: "deleted"} == {one["run_id"]: one["state"] for one in told["outcomes"]}
    assert ({bad}, {good}) == (filled.active(), filled.deleted())
    assert [f"{good}.tar.gz"] == [path.name for path in (tmp_path / "archive").iterdir()]


@pytest.mark.server
def test_a_clean_that_was_interrupted_goes_on_where_it_was(server, tmp_path):
    """Archived and not deleted: the archive is recognised, not written again."""
    with FaultyProxy(server.uri) as proxy:
        filled = Filled(server.uri, "interrupted", proxy.uri)
        id_ = filled.run(metrics={"loss": 0.5}, files={"a.txt": "text"})
        model = filled.model(id_, "weights", tmp_path)
        folder = tmp_path / "archive"
        proxy.fault = only("runs/delete", answered(503))
        (outcome,) = filled.clean("--yes", "--archive", str(folder), code=1)["outcomes"]
        assert ("failed", {id_}, set()) == (outcome["state"], filled.active(), filled.models())
        proxy.fault = only("nothing", answered(500))
        written_ns = Path(outcome["archive"]).stat().st_mtime_ns
        (outcome,) = filled.clean("--yes", "--archive", str(folder))["outcomes"]
    assert ("deleted", {id_}) == (outcome["state"], filled.deleted())
    (path,) = folder.iterdir()
    assert written_ns == path.stat().st_mtime_ns
    assert [model] == [one["model_id"] for one in archive.read(path).run["models"]], "which is deleted by now"


def test_an_archive_of_another_state_is_not_taken_for_this_one(in_file, tmp_path):
    """Nor is it replaced: the newer one gets a number. A damaged one counts for nothing."""
    id_ = in_file.run(metrics={"loss": 0.5}, files={"a.txt": "text"})
    folder = tmp_path / "archive"
    in_file.clean("--yes", "--archive", str(folder))
    in_file.client.restore_run(id_)
    in_file.client.log_text(id_, "more", "b.txt")
    (outcome,) = in_file.clean("--yes", "--archive", str(folder))["outcomes"]
    assert str(folder / f"{id_}-2.tar.gz") == outcome["archive"]
    in_file.client.restore_run(id_)
    whole = (folder / f"{id_}-2.tar.gz").read_bytes()
    (folder / f"{id_}-2.tar.gz").write_bytes(whole[:-40])
    (outcome,) = in_file.clean("--yes", "--archive", str(folder))["outcomes"]
    assert str(folder / f"{id_}-3.tar.gz") == outcome["archive"]
    assert {"a.txt", "b.txt"} == {Path(name).name for name in archive.read(Path(outcome["archive"])).files}


def test_a_damaged_archive_is_never_taken_for_whole(tmp_path):
    """Cut, flipped, without its manifest, or something else."""
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "a.bin").write_bytes(os.urandom(5000))
    path = archive.write(tmp_path, "run", {"info": {}}, {"artifacts": tmp_path / "place"}).path
    whole = path.read_bytes()
    assert {"artifacts/a.bin": 5000} == archive.read(path).files
    plain = bytearray(gzip.decompress(whole))
    at = plain.index(b"artifacts/a.bin") + 1000
    plain[at] ^= 1
    for damaged in (whole[:2500], whole[:-1], b"", b"no archive", gzip.compress(bytes(plain))):
        path.write_bytes(damaged)
        with pytest.raises(archive.ArchiveError):
            archive.read(path)
    path.unlink()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "place" / "a.bin", "artifacts/a.bin")
    with pytest.raises(archive.ArchiveError):
        archive.read(path)


@pytest.mark.server
def test_a_run_that_changes_while_it_is_archived_stays(server, tmp_path):
    """A point arrives between the archive and the deletion."""
    with FaultyProxy(server.uri) as proxy:
        filled = Filled(server.uri, "changing", proxy.uri)
        id_ = filled.run(metrics={"loss": 0.5}, files={"a.txt": "text"})

        def download(exchange):
            filled.client.log_metric(id_, "loss", 0.25, step=4)
            exchange.reply(exchange.forward())

        proxy.fault = only("artifacts/a.txt", download)
        (outcome,) = filled.clean("--yes", "--archive", str(tmp_path / "archive"), code=1)["outcomes"]
    assert ("failed", "it changed while it was archived") == (outcome["state"], outcome["detail"])
    assert ({id_}, []) == (filled.active(), list((tmp_path / "archive").iterdir()))


# --- asking ------------------------------------------------------------------------------------------


def test_nobody_there_to_confirm_is_a_refusal(in_file):
    """Exit code 2, in a script that forgot --yes; nothing is deleted, nothing archived."""
    id_ = in_file.run()
    assert "add --yes, or --dry-run" in in_file.clean(code=2)
    assert {id_} == in_file.active()
    assert not (Path(in_file.uri.removeprefix("sqlite:///")).parent / "mlpipeline-archive").exists()


@pytest.mark.process
@pytest.mark.needs("click>=8.4")  # an older one asks with a blank on standard output
def test_at_a_terminal_it_asks_and_shows_how_far_it_is(in_file):
    """Anything but yes deletes nothing. What is asked is on standard error; the JSON stays alone."""
    id_ = in_file.run()
    command = [sys.executable, "-m", "mlpipeline", "storage", "clean", "--json", "--older-than", "1d"]
    command += ["--tracking-uri", in_file.uri]
    for answer, code, state in ((b"n\n", 1, None), (b"y\n", 0, "deleted")):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
        os.close(theirs)
        os.write(ours, answer)
        seen: list[bytes] = []
        reading = threading.Thread(target=read_all, args=(ours, seen), daemon=True)
        reading.start()
        out = process.communicate(timeout=60)[0]
        reading.join(10)
        os.close(ours)
        assert code == process.returncode, b"".join(seen)
        assert b"Archive 1 runs, 0 bytes in " in b"".join(seen)
        assert b"measuring" in b"".join(seen), "the progress bar"
        assert state == (json.loads(out)["outcomes"][0]["state"] if out else None)
    assert {id_} == in_file.deleted()


def read_all(descriptor, seen):
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            return
        if not piece:
            return
        seen.append(piece)


def test_the_text_says_what_was_done_and_why_the_rest_stays(in_file):
    """For people."""
    in_file.run(), in_file.run(days=1), in_file.run(days=1)
    options = ["--tracking-uri", in_file.uri, "--older-than", "90d"]
    dry = CliRunner().invoke(main, ["storage", "clean", "--dry-run", *options]).stdout
    assert "1 runs would go, 0 bytes" in dry
    assert "2 stay: it is younger" in dry
    done = CliRunner().invoke(main, ["storage", "clean", "--yes", *options]).stdout
    assert done.startswith("1 runs deleted\narchives: ")
    assert "mlflow gc frees the space" in done
    again = CliRunner().invoke(main, ["storage", "clean", "--yes", *options])
    assert (0, True) == (again.exit_code, "nothing to clean" in again.stdout)
