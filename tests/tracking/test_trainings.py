"""A training whose framework calls nobody when it raises: its run still ends, with the true status."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mlpipeline.core.config import MLflowConfig
from mlpipeline.testing import record
from mlpipeline.tracking import trainings
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.recorded import Recorded


@pytest.fixture
def recorded():
    """What is recorded, in memory."""
    with record() as found:
        yield found


def interrupted(callback, kind):
    """Begin a training and end it as XGBoost would: without a word to its callback."""
    callback._open()
    raise kind


def test_a_training_that_raised_has_failed_when_the_next_one_begins(recorded):
    """And the next one is another run."""
    callback = Recorded()
    with pytest.raises(ValueError):
        interrupted(callback, ValueError)
    assert [] == recorded.statuses
    callback._open()
    assert ["FAILED"] == recorded.statuses
    callback._close()
    assert ["FAILED", "FINISHED"] == recorded.statuses


def test_a_training_that_raised_has_failed_when_its_callback_is_gone(recorded):
    """The usual case: ``callbacks=[MLflowCallback()]`` belongs to nobody else."""
    try:
        interrupted(Recorded(), ValueError)
    except ValueError:
        assert [] == recorded.statuses
    assert ["FAILED"] == recorded.statuses


def test_an_exit_that_answers_ctrl_c_is_no_failure(recorded):
    """Lightning makes one of the other; the callback's block, a run's and the one around a training all know."""

    def leave(callback=None):
        if callback is not None:
            callback._open()
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(SystemExit), Recorded() as callback:
        leave(callback)
    with pytest.raises(SystemExit), open_run(MLflowConfig()) as run:
        leave()
    inner = Recorded()
    with pytest.raises(SystemExit), trainings.inside(run):
        leave(inner)
    assert ["KILLED"] * 3 == recorded.statuses


def test_a_training_that_ended_is_not_ended_again(recorded):
    """Neither by the collector nor by the block around it."""
    with Recorded() as callback:
        callback._open()
        callback._close()
    del callback
    assert ["FINISHED"] == recorded.statuses


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_a_block_knows_the_exception(recorded, error, status):
    """``with callback:`` around a framework without an exception hook."""
    callback = Recorded()
    with pytest.raises(error), callback:
        interrupted(callback, error)
    assert [status] == recorded.statuses


def test_what_is_opened_inside_a_run_is_its_child_in_this_thread_only(recorded):
    """Callbacks, trackers, runs: whatever opens one."""
    outer = open_run(MLflowConfig())
    found = {}

    def elsewhere():
        found["elsewhere"] = open_run(MLflowConfig())._header.get("parent")

    with trainings.inside(outer):
        found["here"] = open_run(MLflowConfig())._header.get("parent")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    found["after"] = open_run(MLflowConfig())._header.get("parent")
    assert {"here": {"uid": outer.uid}, "elsewhere": None, "after": None} == found


def test_a_child_goes_where_its_parent_goes(recorded, tmp_path):
    """Unless its own configuration says where."""
    theirs, ours = (f"sqlite:///{tmp_path}/{name}.db" for name in ("theirs", "ours"))
    outer = open_run(MLflowConfig(tracking_uri=theirs, experiment_name="study"))
    with trainings.inside(outer):
        child, named, apart = (
            open_run(MLflowConfig(**options))
            for options in ({}, {"experiment_name": "fits"}, {"tracking_uri": ours})
        )
    assert (theirs, "study") == (child.destination.tracking_uri, child.config.experiment_name)
    assert (theirs, "fits") == (named.destination.tracking_uri, named.config.experiment_name)
    assert (ours, "ml-pipeline-experiment") == (apart.destination.tracking_uri, apart.config.experiment_name)


def test_a_disabled_parent_has_no_children(recorded):
    """What is recorded beside it is a root run."""
    with trainings.inside(open_run(MLflowConfig(enabled=False))):
        assert "parent" not in open_run(MLflowConfig())._header


def test_leaving_the_enclosing_run_ends_what_was_left_open_in_it(recorded):
    """With the status that the encloser knows the exception to mean."""
    outer, callback = open_run(MLflowConfig()), Recorded()
    with pytest.raises(LookupError), trainings.inside(outer, lambda kind: "KILLED"):
        interrupted(callback, LookupError)
    assert ["KILLED"] == recorded.statuses


EXIT = """
from mlpipeline import MLflowConfig
from mlpipeline.tracking.recorded import Recorded
callback = Recorded(tracking_uri={uri!r}, delivery="offline")
try:
    callback._open()
    raise {error}
except {caught}:
    pass
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("error", "caught", "status"),
    [
        ("ValueError", "ValueError", "FAILED"),
        ("ValueError", "KeyError", "FAILED"),
        ("KeyboardInterrupt", "KeyError", "KILLED"),
    ],
)
def test_a_training_in_the_middle_is_never_finished_by_the_exit(
    error, caught, status, store_uri, deliver, mlflow_client
):
    """Also where the script itself went on and ended well."""
    code = EXIT.format(uri=store_uri, error=error, caught=caught)
    subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    deliver()
    client = mlflow_client(store_uri)
    experiment = client.get_experiment_by_name("ml-pipeline-experiment")
    assert [status] == [run.info.status for run in client.search_runs([experiment.experiment_id])]


CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
from mlpipeline.testing import record
shell = InteractiveShell.instance()
with record() as recorded:
    shell.run_cell("from mlpipeline.tracking.recorded import Recorded")
    shell.run_cell("first = Recorded(); first._open(); first._close()")
    shell.run_cell("second = Recorded(); second._open(); raise ValueError('mine')")
    shell.run_cell("third = Recorded(); third._open(); raise KeyboardInterrupt")
    print(recorded.statuses, len(shell.events.callbacks["post_run_cell"]), file=sys.stderr)
"""


@pytest.mark.process
def test_a_notebook_cell_ends_the_trainings_it_began():
    """IPython keeps the last traceback, so the callback would live on; and no hook is left behind."""
    done = subprocess.run([sys.executable, "-c", CELLS], check=True, capture_output=True, text=True)
    assert "['FINISHED', 'FAILED', 'KILLED'] 0" == done.stderr.strip().splitlines()[-1]
