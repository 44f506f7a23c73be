"""``mlpipeline sync`` and ``mlpipeline status`` as a user runs them: processes, exit codes, output."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from mlpipeline import MLflowTracker
from mlpipeline.cli import main
from mlpipeline.tracking.account import dead_letters
from mlpipeline.tracking.home import Home

pytestmark = pytest.mark.process

NOBODY = "http://127.0.0.1:9"
UNKNOWN_RUN = "0" * 32


def mlpipeline(*arguments):
    """Run the command line in a process of its own; return exit code, standard output and error."""
    done = subprocess.run(
        [sys.executable, "-m", "mlpipeline", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def train(tracking_uri, **options):
    """Record a run offline: two points, one param and the end."""
    tracker = MLflowTracker(tracking_uri=tracking_uri, experiment_name="cli", delivery="offline", **options)
    with tracker:
        tracker.log_params({"lr": 0.1})
        tracker.log_metrics({"loss": 0.5, "acc": 0.75}, step=0)
        return tracker.active_run.uid


# --- sync ------------------------------------------------------------------------------------------


def test_sync_sends_what_waits_and_says_how_much(store_uri, mlflow_client):
    """Exit code 0, one line on standard output, nothing beside it."""
    train(store_uri, run_name="first")
    assert (0, "4 records delivered, 0 pending, 0 refused\n", "") == mlpipeline("sync")
    client = mlflow_client(store_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("cli").experiment_id])
    assert ("first", "FINISHED") == (run.info.run_name, run.info.status)
    assert ({"lr": "0.1"}, {"loss": 0.5, "acc": 0.75}) == (run.data.params, run.data.metrics)


def test_a_second_sync_has_nothing_to_do(store_uri):
    """And does not double anything."""
    train(store_uri)
    mlpipeline("sync")
    assert (0, "0 records delivered, 0 pending, 0 refused\n", "") == mlpipeline("sync")


def test_sync_of_an_absent_home_is_nothing_to_do(home):
    """No folder is made for it."""
    assert (0, "0 records delivered, 0 pending, 0 refused\n", "") == mlpipeline("sync")
    assert not home.exists()


def test_sync_keeps_what_it_cannot_send(home):
    """Exit code 1; the reason is told on standard output, once, and as a warning."""
    uid = train(NOBODY)
    code, out, error = mlpipeline("sync")
    problem = f"{NOBODY} does not answer: [Errno 111] Connection refused"
    assert (1, f"0 records delivered, 4 pending, 0 refused\n  {problem}\n") == (code, out)
    assert f"mlpipeline: {NOBODY}: {problem}\n" == error
    assert Home(home).run(uid).writers(), "everything is kept"


def test_sync_tells_of_records_refused_for_good(store_uri, home):
    """Exit code 3: the run to continue is not there. All its records are in the dead letters."""
    uid = train(store_uri, run_id=UNKNOWN_RUN)
    code, out, _ = mlpipeline("sync")
    assert (3, "0 records delivered, 0 pending, 3 refused") == (code, out.splitlines()[0])
    assert f"Run with id={UNKNOWN_RUN} not found" in out
    assert {"param", "metric"} == {letter["kind"] for letter in dead_letters(Home(home), uid)}


def test_pending_outranks_refused(store_uri):
    """One destination refuses, another is away: what can still be sent decides the exit code."""
    train(store_uri, run_id=UNKNOWN_RUN)
    train(NOBODY)
    assert 1 == mlpipeline("sync")[0]


def test_one_destination_that_is_away_holds_up_no_other(store_uri, mlflow_client):
    """What can be sent is sent."""
    train(NOBODY)
    train(store_uri)
    code, out, _ = mlpipeline("sync")
    assert (1, "4 records delivered, 4 pending, 0 refused") == (code, out.splitlines()[0])
    assert 1 == len(mlflow_client(store_uri).search_runs(["1"]))


def test_sync_answers_in_json(store_uri):
    """One object on one line, and nothing else on standard output."""
    train(store_uri)
    train(NOBODY)
    code, out, _ = mlpipeline("sync", "--json")
    problem = f"{NOBODY} does not answer: [Errno 111] Connection refused"
    expected = {"delivered": 4, "pending": 4, "refused": 0, "dropped": 0, "damaged": 0, "problems": [problem]}
    assert (1, expected, 1) == (code, json.loads(out), out.count("\n"))


def test_sync_takes_another_home(store_uri, tmp_path, home):
    """--journal-dir names it, as journal_dir does for the training."""
    other = tmp_path / "other"
    train(store_uri, journal_dir=other)
    assert "0 records delivered" in mlpipeline("sync")[1]
    expected = "4 records delivered, 0 pending, 0 refused\n"
    assert (0, expected, "") == mlpipeline("sync", "--journal-dir", str(other))


# --- status ----------------------------------------------------------------------------------------


def test_status_of_an_absent_home_says_so_and_makes_nothing(home):
    """Asking changes nothing."""
    expected = f"journal home: {home}\ncourier: none\nnothing waits\n"
    assert (0, expected, "") == mlpipeline("status")
    assert not home.exists()


def test_status_shows_what_waits_and_where_it_goes(home):
    """One line per run: while it records, and after its end."""
    uid = train(NOBODY)
    tracker = MLflowTracker(tracking_uri=NOBODY, delivery="offline")
    tracker.start_run()
    tracker.log_metrics({"loss": 0.5})
    live = tracker.active_run.uid
    code, out, error = mlpipeline("status")
    lines = out.splitlines()
    assert (0, "", [f"journal home: {home}", "courier: none"]) == (code, error, lines[:2])
    assert {
        f"{uid}  recorded  0 delivered, 4 pending, 0 refused, 0 dropped  -> {NOBODY}",
        f"{live}  recording  0 delivered, 1 pending, 0 refused, 0 dropped  -> {NOBODY}",
    } == set(lines[2:])
    tracker.end_run()


@pytest.mark.parametrize(
    ("age_s", "told"), [(60, ""), (250, "4 minutes"), (7300, "2 hours"), (200_000, "2 days")]
)
def test_status_tells_how_long_the_oldest_record_waits(age_s, told):
    """Once it is more than two minutes."""
    tracker = MLflowTracker(tracking_uri=NOBODY, delivery="offline")
    with tracker:
        tracker.active_run.log_metrics({"loss": 0.5}, step=0, timestamp_ms=int((time.time() - age_s) * 1000))
        tracker.log_metrics({"loss": 0.25}, step=1)
    line = CliRunner().invoke(main, ["status"]).stdout.splitlines()[2]
    assert line.endswith(f"-> {NOBODY}" + (f", the oldest waits for {told}" if told else ""))


def test_status_tells_what_stands_in_the_way():
    """As the last attempt to send found it."""
    train(NOBODY)
    mlpipeline("sync")
    lines = mlpipeline("status")[1].splitlines()
    assert f"  {NOBODY} does not answer: [Errno 111] Connection refused" == lines[-1]


def test_status_lists_what_was_refused(store_uri):
    """Each record with MLflow's reason, long after its run is gone from the journals."""
    train(store_uri, run_id=UNKNOWN_RUN)
    mlpipeline("sync")
    code, out, _ = mlpipeline("status")
    refused = [line.strip() for line in out.splitlines() if line.startswith("  refused ")]
    assert (0, 3) == (code, len(refused))
    assert 'refused param {"lr": "0.1"}: the run cannot be written any more' in refused[-1]
    assert f"Run with id={UNKNOWN_RUN} not found" in refused[-1]


def test_status_forgets_what_was_refused_when_it_is_told_to(store_uri):
    """Then sync, which fails as long as something was refused, is content."""
    train(store_uri, run_id=UNKNOWN_RUN)
    assert 3 == mlpipeline("sync")[0]
    assert "refused param" in mlpipeline("status", "--forget-refused")[1]
    assert "nothing waits" in mlpipeline("status")[1]
    assert 0 == mlpipeline("sync")[0]


def test_status_answers_in_json(home, store_uri):
    """The same, for programs."""
    refused, waiting = train(store_uri, run_id=UNKNOWN_RUN), train(NOBODY)
    mlpipeline("sync")
    code, out, error = mlpipeline("status", "--json")
    content = json.loads(out)
    runs = {run["uid"]: run for run in content["runs"]}
    assert (0, "", 1) == (code, error, out.count("\n"))
    assert (str(home), [], {refused, waiting}) == (content["home"], content["couriers"], set(runs))
    assert {"delivered": 0, "pending": 4, "refused": 0, "dropped": 0, "damaged": 0} == runs[waiting]["counts"]
    assert (NOBODY, False) == (runs[waiting]["tracking_uri"], runs[waiting]["is_live"])
    assert ["metric", "metric", "param"] == sorted(letter["kind"] for letter in runs[refused]["refused"])


def test_status_shows_no_password():
    """A database's URI keeps it in the journal, for the courier alone."""
    train("postgresql://me:hunter2@127.0.0.1:9/mlflow")
    for arguments in (["status"], ["status", "--json"], ["sync"], ["sync", "--json"]):
        _, out, error = mlpipeline(*arguments)
        assert "hunter2" not in out + error
        assert "//127.0.0.1:9/mlflow" in out or "//me:***@127.0.0.1:9/mlflow" in out


def test_an_unknown_command_is_refused():
    """Exit code 2 is click's, and never one of ours."""
    code, out, error = mlpipeline("snyc")
    assert (2, "") == (code, out)
    assert "No such command 'snyc'" in error


def test_the_command_line_imports_no_mlflow_to_show_a_status(store_uri):
    """Looking takes a moment, not MLflow's seconds."""
    train(store_uri)
    code = "import sys; sys.argv[1:] = ['status']; from mlpipeline.cli import main\n"
    code += "try: main()\nexcept SystemExit: print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" == done.stdout.splitlines()[-1]
