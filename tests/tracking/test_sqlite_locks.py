"""SQLite's locks are the process's own: whoever opens and closes the file beside it gives them up."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.verdicts import Unavailable

TAKES_LOCK = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
"""

RECORDS = """
import sys
opened = []
path = sys.argv[1]
store = f"sqlite:///{path}"
# Python tells every open of its own, and none of SQLite's library.
sys.addaudithook(lambda event, about: opened.append(about) if event == "open" and str(about[0]) == path else None)
from sklearn.linear_model import LogisticRegression
from mlpipeline import MLflowTracker
from mlpipeline.cli import main
for delivery in ("thread", "offline"):
    tracker = MLflowTracker(tracking_uri=store, delivery=delivery)
    with tracker.run() as run:
        run.log_params({"a": 1})
        run.log_metrics({"loss": 1.0}, step=0)
        run.log_dict({"a": 1}, "a.json")
        run.log_model(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))
    run.flush()
    tracker.search_runs()
    tracker.get_run_info()
for command in (["doctor", "--tracking-uri", store], ["runs", "list", "--tracking-uri", store], ["sync"]):
    main(command, standalone_mode=False)
print("opened:", opened)
"""


def test_looking_whether_a_database_is_there_gives_up_no_lock(store_uri):
    path = store_uri.removeprefix("sqlite:///")
    where = Destination(store_uri, store_uri)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        where.probe()
        where.client()
        other = subprocess.run(
            [sys.executable, "-c", TAKES_LOCK, path], capture_output=True, text=True, check=True
        )
    assert "database is locked\n" == other.stdout


@pytest.mark.process
def test_nothing_opens_the_database_but_sqlite(store_uri):
    """Recording with a model, reading back, the command line: from the first call to the exit."""
    done = subprocess.run(
        [sys.executable, "-c", RECORDS, store_uri.removeprefix("sqlite:///")],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "opened: []" == done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_a_database_that_cannot_be_opened_is_not_there(tmp_path):
    folder = tmp_path / "folder.db"
    folder.mkdir()
    for uri in (f"sqlite:///{folder}", f"sqlite:///{tmp_path}/none/mlflow.db"):
        with pytest.raises(Unavailable, match="does not answer"):
            Destination(uri, uri).probe()
    Destination(new := f"sqlite:///{tmp_path}/mlflow.db", new).probe()
    assert not os.path.exists(tmp_path / "mlflow.db")
