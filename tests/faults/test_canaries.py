"""Nobody is let in: private files under any umask, planted links, and secrets that are written nowhere."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

from mlpipeline import MLflowConfig
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.execution import recording
from mlpipeline.tracking.account import resolved_run_id
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

UMASKS = (0, 0o077, 0o177)


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_all_in_the_home_is_private_under_any_umask(store_uri, home, umask):
    """Journals, texts, tables, copies of the user's files and models: files 0600, folders 0700."""
    folder = Path("theirs")
    (folder / "below").mkdir(parents=True)
    for path in (folder / "a.csv", folder / "below" / "b.csv"):
        path.write_text("1,2")
        path.chmod(0o644)
    model = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    before = os.umask(umask)
    try:
        run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
        run.log_text("fits", "note.txt")
        run.log_table({"a": [1]}, "table.json")
        run.log_artifact(folder)
        run.log_artifact(folder / "a.csv")
        run.log_model(model)
        run.end()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.rglob("*"))}
    assert 15 < len(modes)
    assert {path: 0o700 if path.is_dir() else 0o600 for path in modes} == modes


@pytest.mark.parametrize("inner", ["", "runs", "dead", "done"], ids=lambda inner: inner or "home")
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_that_somebody_planted_is_refused(store_uri, home, tmp_path, caplog, inner):
    """It costs the records, which is told; nothing is written where it leads, and no courier starts there."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    planted = home / inner if inner else home
    planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(theirs)
    os.chown(planted, 65534, 65534, follow_symlinks=False)
    run = open_run(MLflowConfig(tracking_uri=store_uri))
    run.log_metrics({"loss": 0.5})
    run.end()
    assert [] == list(theirs.iterdir())
    assert 2 == run.counts().dropped
    assert any("belongs to another user (uid 65534)" in message for message in caplog.messages)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_home_of_somebody_else_is_refused(store_uri, home, caplog):
    """Who owns the folder could read the journals, and lay a module where the courier starts."""
    home.mkdir()
    os.chown(home, 65534, 65534)
    run = open_run(MLflowConfig(tracking_uri=store_uri))
    run.end()
    assert [] == list(home.iterdir())
    assert 1 == run.counts().dropped
    assert any("belongs to another user (uid 65534)" in message for message in caplog.messages)


@pytest.mark.parametrize("of_run", [True, False], ids=["run", "spool"])
def test_a_link_in_place_of_a_runs_folders_is_not_followed(store_uri, home, tmp_path, of_run):
    """Neither the run's own nor its spool: nothing arrives where it leads, and the records count as dropped."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    folder = home / "runs" / run.uid
    if of_run:
        run.end()
        folder.rename(tmp_path / "away")
        folder.symlink_to(theirs)
        run.resume()
    else:
        (folder / "spool").symlink_to(theirs)
    run.log_text("fits", "note.txt")
    assert [] == list(theirs.iterdir())
    assert 1 == run.counts().dropped
    run.end()


def test_a_link_of_the_users_own_may_lead_to_a_larger_disk(store_uri, home, tmp_path, deliver):
    """Only those of others are refused."""
    (tmp_path / "large").mkdir()
    home.symlink_to(tmp_path / "large")
    run = open_run(MLflowConfig(tracking_uri=store_uri, delivery="offline"))
    run.end()
    deliver()
    assert (1, 0) == (run.counts().delivered, run.counts().dropped)


CANARY = "canary-7f3a9c"
PROGRAM = """
import os, sys
from pathlib import Path
from mlpipeline import MLflowConfig
from mlpipeline.tracking.opening import open_run

secret = "canary" + "-7f3a9c"
config = MLflowConfig(
    tracking_uri=sys.argv[1].replace("//", f"//ann:{secret}@", 1) if sys.argv[1].startswith("http") else sys.argv[1],
    tags={"apiToken": secret},
    description=f"see http://ann:{secret}@wiki/page",
    delivery="offline",
)
print(config)
params = {
    "db": {"password": secret},
    "dsn": f"postgresql://ann:{secret}@host/db",
    "long": "x" * 7000 + f" password={secret}",
    "cut": "x" * 5900 + " http://ann:" + "y" * 200 + secret + "@host " + "x" * 500,
    **{f"p{number}": number for number in range(1200)},
    "last": {"api_key": secret},
}
rows, target = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]


def add_to(run, model):
    run.log_params(params)
    run.set_tags({"password": secret, "seen": f"at s3://key:{secret}@bucket"})
    run.log_dataset(rows, name="rows", source=f"s3://key:{secret}@bucket/rows?sig={secret}")
    run.log_model(model, "again", params={"secret": secret}, tags={"token": secret})
"""
PROGRAMS = {
    "tracker": """
from sklearn.linear_model import LinearRegression
with open_run(config) as run:
    add_to(run, LinearRegression().fit(rows, target))
""",
    "xgboost": """
import numpy, xgboost
from mlpipeline.xgboost import MLflowCallback
callback = MLflowCallback(config, params={"password": secret})
booster = xgboost.train({}, xgboost.DMatrix(numpy.array(rows), target), 2, callbacks=[callback])
with open_run(config) as run:
    add_to(run, booster)
""",
    "sklearn": """
from sklearn.linear_model import LinearRegression
from mlpipeline.sklearn import MLflowEstimator
wrapped = MLflowEstimator(LinearRegression(), config=config).fit(rows, target)
with open_run(config) as run:
    add_to(run, wrapped.model_ if hasattr(wrapped, "model_") else LinearRegression().fit(rows, target))
""",
}


def holding_the_canary(*folders):
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if CANARY.encode() in path.read_bytes()]


# The engine has the destination's URI, the same for all of them: one stands for the rest where nobody answers.
@pytest.mark.parametrize(
    ("program", "where"), [*((program, "store") for program in PROGRAMS), ("tracker", "nobody")]
)
def test_a_secret_is_written_nowhere(store_uri, home, tmp_path, deliver, program, where):
    """In URIs, params, tags, argv, the environment and git: not in the home, the store, or on the terminal."""
    git = Path(".git")
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "config").write_text(f'[remote "origin"]\n\turl = https://ann:{CANARY}@host/repo\n')
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM + PROGRAMS[program],
            store_uri if where == "store" else "http://127.0.0.1:9",
            f"--password={CANARY}",
        ],
        env={**os.environ, "MY_API_KEY": CANARY, "MLFLOW_TRACKING_PASSWORD": CANARY},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert [] == holding_the_canary(home)
    if where == "store":
        deliver()
        assert [] == holding_the_canary(home, tmp_path)


def test_a_failed_stage_tells_its_reason_without_a_password(store_uri, deliver, mlflow_client):
    """A driver's exception likes to repeat the address that it was given."""
    context = ExecutionContext(
        "e", "training", ComponentType.MODEL_TRAINING, {}, "out", logging.getLogger("x")
    )
    config = MLflowConfig(tracking_uri=store_uri, delivery="offline")
    with pytest.raises(OSError, match="refused"), recording(config, context) as run:
        raise OSError(f"postgresql://ann:{CANARY}@host/db refused")
    deliver()
    tags = mlflow_client(store_uri).get_run(run.run_id and resolved_run_id(Home.at(), run.run_id)).data.tags
    assert "postgresql://[redacted]@host/db refused" == tags["exception_message"]
