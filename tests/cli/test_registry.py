"""``mlpipeline register``, ``promote`` and ``models`` as a user runs them: output, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from mlpipeline import MLflowTracker
from mlpipeline.cli import main

X = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["a", "b"])
Y = (X["a"] > 0).astype(int)


@pytest.fixture
def place(either_store, monkeypatch):
    """A store that the environment names, and a model name of this test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", either_store)
    return f"model-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(place, mlflow_client, request):
    return mlflow_client(request.getfixturevalue("either_store"))


@pytest.fixture
def sqlite_place(store_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    return "churn"


def train(experiment, accuracy, model=None):
    """Record a training; return its run's id."""
    with MLflowTracker(experiment_name=experiment, delivery="thread") as tracker:
        tracker.log_model(model or LogisticRegression().fit(X, Y))
        tracker.log_metrics({"accuracy": accuracy})
    return tracker.get_run_info().run_id


def mlpipeline(*arguments):
    """Run the command line here: exit code, standard output, standard error."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def told(*arguments, code=0):
    """Run a command with --json, and return what it prints."""
    exit_code, out, error = mlpipeline(*arguments, "--json")
    assert (code, 1) == (exit_code, out.count("\n")), error
    return json.loads(out)


def test_from_a_run_to_a_champion_and_back(place, client):
    """Register, promote twice, be refused, look at it all, go back."""
    first, second, third = (train(place, accuracy) for accuracy in (0.8, 0.9, 0.85))
    one = told(
        "register", "--run-id", first, "--name", place, "--tag", "team=a", "--description", "the first"
    )
    assert (1, {"team": "a"}, "the first") == (one["version"], one["tags"], one["description"])
    assert 1 == told("register", "--run-id", first, "--name", place)["version"], "the same again"
    promote = ("promote", "--name", place, "--if-better", "accuracy")
    assert told(*promote, "--version", 1)["promoted"]
    verdict = told(*promote, "--run-id", second)
    assert (2, 0.9, 0.8, 1) == tuple(
        verdict[key] for key in ("version", "challenger", "champion", "champion_version")
    )
    verdict = told(*promote, "--run-id", third, code=3)
    assert (False, 3) == (verdict["promoted"], verdict["version"])
    assert "2" == str(client.get_model_version_by_alias(place, "champion").version)
    versions = told("models", "history", place)
    assert [3, 2, 1] == [version["version"] for version in versions]
    assert [{"accuracy": 0.85}, {"accuracy": 0.9}] == [version["metrics"] for version in versions[:2]]
    assert [False, True] == [version["audit"][0]["is_moved"] for version in versions[:2]]
    models = {model["name"]: model for model in told("models", "list", "--max", 1000)}
    assert {"champion": 2} == models[place]["aliases"]
    back = told("models", "rollback", place)
    assert (1, 2, True) == (back["version"], back["champion_version"], back["promoted"])
    assert 2 == mlpipeline("models", "rollback", place)[0]
    assert "Archived" == told("models", "archive", place, "--version", 3)["stage"]


def test_people_read_sentences_and_tables(sqlite_place):
    """The same, in words."""
    first, second = train(sqlite_place, 0.8), train(sqlite_place, 0.7)
    code, out, _ = mlpipeline("register", "--run-id", first, "--name", "churn", "--alias", "champion")
    assert (0, f"churn version 1 · champion · run {first}\n") == (code, out)
    code, out, _ = mlpipeline("promote", "--name", "churn", "--run-id", second, "--if-better", "accuracy")
    expected = "version 2 of churn is not promoted: worse by 0.1: accuracy 0.7, that of the champion (version 1) 0.8\n"
    assert (3, expected) == (code, out)
    _, out, _ = mlpipeline("models", "history", "churn", "--metric", "accuracy")
    assert all(word in out for word in ("champion", "0.7", "0.8", first, second, "promotions"))
    assert "not champion, accuracy 0.7 against 0.8, " in out
    assert "champion → 1" in mlpipeline("models", "list")[1]
    code, out, _ = mlpipeline("promote", "--name", "churn", "--version", 2)
    assert (0, "version 2 of churn is champion: as ordered\n") == (code, out)
    code, out, _ = mlpipeline("models", "rollback", "churn")
    assert (0, "version 1 of churn is champion: back from version 2\n") == (code, out)


def test_both_are_scored_on_a_file(sqlite_place, tmp_path):
    """And not compared by what was recorded."""
    poor = train(sqlite_place, 1.0, DummyClassifier().fit(X, Y))
    good = train(sqlite_place, 0.0)
    X.assign(target=Y).to_csv(tmp_path / "test.csv", index=False)
    mlpipeline("register", "--run-id", poor, "--name", "churn", "--alias", "champion")
    scored = ("--if-better", "accuracy", "--dataset", tmp_path / "test.csv", "--target", "target")
    verdict = told("promote", "--name", "churn", "--run-id", good, *scored)
    assert verdict["challenger"] > 0.9 > verdict["champion"]
    code, _, error = mlpipeline("promote", "--name", "churn", "--version", 1, *scored[:4])
    assert 2 == code
    assert "no target=; name one of its columns: a, b, target" in error


def test_the_direction_may_be_said(sqlite_place):
    """For a metric whose name does not tell it."""
    first, second = train(sqlite_place, 0.8), train(sqlite_place, 0.7)
    mlpipeline("register", "--run-id", first, "--name", "churn", "--alias", "champion")
    promote = ("promote", "--name", "churn", "--run-id", second, "--if-better", "accuracy")
    assert 3 == mlpipeline(*promote, "--direction", "max")[0]
    assert 3 == mlpipeline(*promote, "--direction", "min", "--min-delta", 0.2)[0]
    assert 0 == mlpipeline(*promote, "--direction", "min")[0]


def test_the_name_may_be_known_already(sqlite_place, monkeypatch):
    """By the configuration, or because the model is registered; else the error says so."""
    run_id = train(sqlite_place, 0.5)
    code, _, error = mlpipeline("register", "--run-id", run_id)
    assert 2 == code
    assert "does not say what its model is to be registered as: give a name" in error
    monkeypatch.setenv("MLPIPELINE_MODEL_NAME", "churn")
    assert ("churn", 1) == tuple(told("register", "--run-id", run_id)[key] for key in ("name", "version"))
    monkeypatch.delenv("MLPIPELINE_MODEL_NAME")
    assert ("churn", 1) == tuple(told("register", "--run-id", run_id)[key] for key in ("name", "version"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("register", "--run-id", "0" * 32, "--name", "x"),
            "run '00000000000000000000000000000000' is unknown",
        ),
        (("register", "--run-id", "local-x", "--name", "x"), "mlpipeline sync"),
        (("register", "--run-id", "a", "--name", "x", "--tag", "team"), "'team': write KEY=VALUE"),
        (("promote", "--name", "x"), "give --version or --run-id"),
        (("promote", "--name", "x", "--version", "1", "--run-id", "a"), "give --version or --run-id"),
        (("promote", "--name", "x", "--version", "1"), "no model 'x' is registered at sqlite:///"),
        (("promote", "--name", "x", "--version", "1", "--if-better", "acuracy"), "no model 'x'"),
        (("models", "history", "x"), "no model 'x' is registered"),
        (("models", "rollback", "x", "--alias", "latest"), "no model 'x' is registered"),
        (("models", "archive", "x", "--version", "1"), "no model 'x' is registered"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(sqlite_place, arguments, said):
    """Nothing on standard output, no traceback."""
    code, out, error = mlpipeline(*arguments)
    assert (2, "") == (code, out)
    assert said in error
    assert "Traceback" not in error


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    """A typing error must not leave an empty database behind."""
    code, _, error = mlpipeline("models", "list", "--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    assert 2 == code
    assert "there is no store at sqlite:///" in error
    assert not (tmp_path / "none.db").exists()


def test_a_server_that_is_away_is_exit_code_1():
    """At once, whatever MLflow's client would do."""
    code, _, error = mlpipeline(
        "promote", "--name", "x", "--version", 1, "--tracking-uri", "http://127.0.0.1:9"
    )
    assert (1, True) == (code, "http://127.0.0.1:9 does not answer" in error)


@pytest.mark.process
def test_a_shell_sees_the_exit_codes(sqlite_place, store_uri):
    """In a process of its own: nothing but JSON on standard output, and no warning beside it."""
    first, second = train("churn", 0.8), train("churn", 0.7)
    mlpipeline("register", "--run-id", first, "--name", "churn", "--alias", "champion", "--stage", "Staging")
    arguments = ["promote", "--name", "churn", "--run-id", second, "--if-better", "accuracy", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mlpipeline", *arguments], capture_output=True, text=True, check=False
    )
    assert (3, "", False) == (done.returncode, done.stderr, json.loads(done.stdout)["promoted"])
    assert "1" == str(MlflowClient(store_uri).get_model_version_by_alias("churn", "champion").version)
