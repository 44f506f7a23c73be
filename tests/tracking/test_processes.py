"""Real processes, ended in every way a process can end; a real courier beside them."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

import mlpipeline
from mlpipeline import MLflowConfig
from mlpipeline.testing import faults
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.testing.places import wait_until
from mlpipeline.tracking import liveness
from mlpipeline.tracking.account import account_of, courier_reports
from mlpipeline.tracking.courier import LINGER_S
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.dispatch import Dispatch
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_child, open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlpipeline.tracking.run import Run

pytestmark = pytest.mark.process

NOBODY = "http://127.0.0.1:9"
SEED = int(os.environ.get("MLPIPELINE_TEST_SEED", random.SystemRandom().randrange(2**31)))


def start(code: str, **environ: str) -> subprocess.Popen[str]:
    """Start a training script."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def run_script(code: str, **environ: str) -> tuple[int, str, str]:
    """Run a training script to its end: exit code, standard output, standard error."""
    process = start(code, **environ)
    out, error = process.communicate(timeout=90)
    return process.returncode, out, error


def statuses(uri: str, experiment: str) -> dict[str, str]:
    """Return the status per run name."""
    client = MlflowClient(uri, uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return {run.info.run_name: run.info.status for run in client.search_runs([found.experiment_id])}


def stop_courier(home: Path) -> None:
    """End the courier process of a home, if there is one."""
    for report in courier_reports(Home(home)):
        os.kill(report["pid"], signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Tell whether a process lives; a zombie that nobody has fetched yet does not, and has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def exit_s(run: Run) -> float:
    """End a run, and return how long the exit waits for it."""
    run.end()
    began_s = time.monotonic()
    run.settle()
    return time.monotonic() - began_s


@pytest.fixture
def clean_courier(home: Path) -> Any:
    """End this test's courier process when the test ends."""
    yield
    stop_courier(home)


OPEN = """
    import os, sys, time
    from mlpipeline import MLflowConfig
    from mlpipeline.tracking.opening import open_run
    run = open_run(MLflowConfig(experiment_name="ends", run_name=sys.argv[1] if len(sys.argv) > 1 else "run"))
    run.log_metrics({"loss": 0.5}, step=0)
"""

WAYS = {
    "normal": ("", 0, "FINISHED"),
    "exit-3": ("sys.exit(3)", 3, "FINISHED"),
    "exception": ("raise ZeroDivisionError('mine')", 1, "FAILED"),
    "ctrl-c": ("import signal; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", -signal.SIGINT, "KILLED"),
    # As importing a module at exit does that makes a dataclass; Python then forgets why it ends.
    "ctrl-c-then-exec": (
        (
            "import signal; from mlpipeline.tracking import closing; closing.before_exit(lambda: exec('1')); "
            "os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
        ),
        -signal.SIGINT,
        "KILLED",
    ),
    "sigterm": (
        "import signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)",
        -signal.SIGTERM,
        "KILLED",
    ),
    "os-exit": ("os._exit(0)", 0, "KILLED"),
    "thread-exception": (
        "import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
        0,
        "FINISHED",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_open_run_gets_the_status_of_its_process_end(
    way: str, store_uri: str, deliver: Callable[[], None]
) -> None:
    """The status is true, and the exit code is the one the process would have had without us."""
    ending, expected_code, expected_status = WAYS[way]
    code = f"{OPEN}    run_name = {way!r}\n    {ending}\n"
    exit_code, _, error = run_script(code, MLFLOW_TRACKING_URI=store_uri, MLPIPELINE_DELIVERY="offline")
    assert expected_code == exit_code
    if way == "exception":
        assert "ZeroDivisionError: mine" in error
        assert "During handling" not in error
    deliver()
    assert {"run": expected_status} == statuses(store_uri, "ends")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_ends_its_own_run_and_not_its_parents(
    method: str, store_uri: str, deliver: Callable[[], None], tmp_path: Path
) -> None:
    """Runs opened in children of multiprocessing get true statuses; a run handed over is added to, not ended."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, os, sys
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        CONFIG = MLflowConfig(experiment_name="ends")

        def own(name, bad):
            run = open_run(CONFIG.replace(run_name=name))
            run.log_metrics({{"loss": 1.0}}, step=0)
            if bad:
                raise ZeroDivisionError

        def guest(run):
            run.log_metrics({{"from_child": 2.0}}, step=0)

        def returning(run):
            run.resume()
            run.log_metrics({{"returned": 3.0}}, step=1)
            os._exit(0)

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            parent = open_run(CONFIG.replace(run_name="parent"))
            parent.log_metrics({{"loss": 0.5}}, step=0)
            for target, args in ((own, ("good", False)), (own, ("bad", True)), (guest, (parent,))):
                child = context.Process(target=target, args=args)
                child.start()
                child.join()
            parent.log_metrics({{"loss": 0.25}}, step=1)
            parent.end()
            child = context.Process(target=returning, args=(parent,))
            child.start()
            child.join()
        """)
    )
    environ = {**os.environ, "MLFLOW_TRACKING_URI": store_uri, "MLPIPELINE_DELIVERY": "offline"}
    subprocess.run([sys.executable, script], check=True, env=environ, capture_output=True, timeout=90)
    deliver()
    assert {"good": "FINISHED", "bad": "FAILED", "parent": "FINISHED"} == statuses(store_uri, "ends")
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_experiment_by_name("ends")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'parent'")
    assert 2.0 == parent.data.metrics["from_child"]
    assert 2 == len(client.get_metric_history(parent.info.run_id, "loss"))


def test_twenty_trainings_killed_lose_nothing_and_end_killed_without_help(
    store_uri: str, home: Path, clean_courier: None
) -> None:
    """Kill -9 at 20 random moments: every call that returned is in MLflow once, and the courier ends the runs."""
    print(f"seed {SEED}")  # noqa: T201 - what a failure is repeated with (MLPIPELINE_TEST_SEED)
    moments = random.Random(SEED)
    code = """
        import os, time
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        run = open_run(MLflowConfig(experiment_name="killed", run_name=os.environ["NAME"]))
        run.log_params({"name": os.environ["NAME"]})
        os.write(1, b"p\\n")
        for step in range(10**9):
            run.log_metrics({"loss": step / 7, "acc": -step}, step=step)
            os.write(1, b"%d\\n" % step)
            time.sleep(0.0005)
    """
    returned: dict[str, int] = {}
    for number in range(20):
        process = start(code, NAME=f"run-{number}", MLFLOW_TRACKING_URI=store_uri)
        assert process.stdout is not None
        assert "p\n" == process.stdout.readline()
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        lines = process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()
        # The last line may be cut; the call before it had returned.
        returned[f"run-{number}"] = max((int(line) for line in lines[:-1] if line.isdigit()), default=-1)
    client = MlflowClient(store_uri, store_uri)
    assert Dispatch(Home(home), "process", Destination(store_uri, store_uri)).wait(
        lambda: not list(Home(home).runs()), insist_s=100
    )
    experiment = client.get_experiment_by_name("killed")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(returned) == set(runs)
    for name, last in returned.items():
        run = runs[name]
        assert "KILLED" == run.info.status
        assert name == run.data.params["name"]
        for key, sign in (("loss", 1 / 7), ("acc", -1)):
            points = client.get_metric_history(run.info.run_id, key)
            steps = sorted(point.step for point in points)
            assert list(range(len(steps))) == steps, "lost or doubled"
            assert last < len(steps) <= last + 3 or last == -1
            assert all(point.value == pytest.approx(point.step * sign) for point in points)


@pytest.mark.server
def test_a_server_absent_from_start_to_end_costs_training_nothing_and_sync_delivers_all(
    home: Path, clean_courier: None, late_server: Callable[[int], AbstractContextManager[Any]]
) -> None:
    """Same exit code, no wait to speak of, one line with the next step; when the server is there, all of it is."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = """
        import os, time
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        run = open_run(MLflowConfig(experiment_name="absent", enabled=os.environ["RECORD"] == "yes"))
        for step in range(200):
            run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        run.end()
    """
    uri = f"http://127.0.0.1:{port}"
    seconds = {}
    for record in ("no", "yes"):
        began_s = time.perf_counter()
        exit_code, _, error = run_script(code, MLFLOW_TRACKING_URI=uri, RECORD=record)
        seconds[record] = time.perf_counter() - began_s
        assert 0 == exit_code
    assert seconds["yes"] < seconds["no"] + 2
    (line,) = [line for line in error.splitlines() if line.startswith("mlpipeline: absent")]
    assert "mlpipeline sync" in line
    (folder,) = Home(home).runs()
    account = account_of(Home(home), folder.uid)
    assert (0, 201) == (account.counts.delivered, account.counts.pending)
    assert "does not answer" in (account.problem or "")
    stop_courier(home)
    with late_server(port):
        subprocess.run(
            [sys.executable, "-m", "mlpipeline", "sync"], check=True, timeout=90, capture_output=True
        )
        client = MlflowClient(uri, uri)
        experiment = client.get_experiment_by_name("absent")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id])
        assert "FINISHED" == found.info.status
        points = client.get_metric_history(found.info.run_id, "loss")
        assert [(step, 1 / (step + 1)) for step in range(200)] == sorted((p.step, p.value) for p in points)


def test_eight_threads_on_one_run_are_all_right(store_uri: str, deliver: Callable[[], None]) -> None:
    """Every value of every thread, none of another's."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="threads", delivery="offline")
    run = open_run(config)

    def train(number: int) -> None:
        for step in range(250):
            run.log_metrics(
                {f"loss-{number}": number * 1000 + step, "shared": step}, step=number * 250 + step
            )

    threads = [threading.Thread(target=train, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.end()
    deliver()
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_experiment_by_name("threads")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert 2000 == len(client.get_metric_history(found.info.run_id, "shared"))
    for number in range(8):
        points = client.get_metric_history(found.info.run_id, f"loss-{number}")
        expected = [(number * 250 + step, number * 1000 + step) for step in range(250)]
        assert expected == sorted((point.step, point.value) for point in points)


def test_a_killed_courier_is_replaced_and_nothing_is_lost(
    store_uri: str, home: Path, clean_courier: None
) -> None:
    """OOM-style: the courier dies in the middle; whoever waits next starts another."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="oom")
    run = open_run(config)
    for step in range(3000):
        run.log_metrics({"loss": step}, step=step)
    wait_until(lambda: liveness.is_held(Home(home).post().lock), home=home)
    time.sleep(random.Random(SEED).uniform(0, 3))
    stop_courier(home)
    wait_until(lambda: not liveness.is_held(Home(home).post().lock), home=home)
    run._dispatch()._spawned_s = -1e9
    run.end()
    run.wait(insist_s=60)
    client = MlflowClient(store_uri, store_uri)
    experiment = client.get_experiment_by_name("oom")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert "FINISHED" == found.info.status
    points = client.get_metric_history(found.info.run_id, "loss")
    assert list(range(3000)) == sorted(point.step for point in points)


@pytest.mark.server
def test_an_exit_whose_courier_is_killed_leaves_at_once(
    server, home: Path, clean_courier: None, tmp_path: Path
) -> None:
    """It waits as long as files arrive, one after the other, and not for another courier."""
    go = tmp_path / "go"
    with FaultyProxy(server.uri) as proxy:
        # Many prompt answers: late ones would end the wait after a moment, and so would a courier still to come.
        proxy.fault = faults.delayed(0.05)
        process = start(
            f"{OPEN}    for file in range(300): run.log_text('text', f'{{file}}.txt')\n"
            f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)",
            MLFLOW_TRACKING_URI=proxy.uri,
        )

        def files() -> int:
            return sum("mlflow-artifacts" in path for path in list(proxy.requests))

        wait_until(files, home=home)
        go.touch()
        before = files()
        wait_until(lambda: files() > before + 5, home=home)
        assert process.poll() is None
        stop_courier(home)
        began_s = time.monotonic()
        out, _ = process.communicate(timeout=60)
        assert time.monotonic() - began_s < 1.0
        assert 0 == process.returncode, out


def test_an_exit_whose_courier_was_killed_waits_for_no_other(
    store_uri: str, home: Path, clean_courier: None, tmp_path: Path
) -> None:
    """That takes as long as importing MLflow. A courier that was killed before the training is another matter."""
    go = tmp_path / "go"
    script = f"{OPEN}    while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    process = start(script, MLFLOW_TRACKING_URI=store_uri)
    wait_until(lambda: courier_reports(Home(home)), home=home)
    stop_courier(home)
    go.touch()
    began_s = time.monotonic()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - began_s < 1.0
    assert 0 == process.returncode, told
    assert "mlpipeline sync" in told
    wait_until(lambda: courier_reports(Home(home)), home=home)
    stop_courier(home)
    code, _, told = run_script(script, MLFLOW_TRACKING_URI=store_uri)
    assert 0 == code, told
    assert "mlpipeline sync" not in told


@pytest.mark.parametrize("what", ["home", "run"])
def test_a_courier_leaves_when_what_it_serves_is_deleted(what: str, home: Path, clean_courier: None) -> None:
    """By hand, or with the temporary folder that it lies in; also what waits for a server, while its training lives."""
    run = open_run(MLflowConfig(tracking_uri=NOBODY, experiment_name="deleted"))
    run.log_metrics({"loss": 0.5}, step=0)
    wait_until(lambda: courier_reports(Home(home)), home=home)
    (report,) = courier_reports(Home(home))
    served = home if what == "home" else Home(home).run(run.uid).path
    while served.exists():
        # The courier may rename a report while we go through the folder.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(served)
    wait_until(lambda: not is_running(report["pid"]), home=home, within_s=LINGER_S + 20)
    assert not is_running(report["pid"])


def test_the_courier_is_nice_to_others_once_it_has_delivered(
    store_uri: str, home: Path, clean_courier: None
) -> None:
    """Not before: at a low priority on a busy machine, its imports took 23 seconds instead of 3."""
    run = open_run(MLflowConfig(tracking_uri=store_uri, experiment_name="nice"))
    wait_until(lambda: courier_reports(Home(home)), home=home)
    (report,) = courier_reports(Home(home))
    own = os.getpriority(os.PRIO_PROCESS, 0)

    def niceness() -> set[int]:
        threads = os.listdir(f"/proc/{report['pid']}/task")
        return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in threads}

    assert {own} == niceness()
    run.log_metrics({"loss": 1.0}, step=0)
    run.wait(insist_s=60)
    assert {min(own + 5, 19)} == niceness()


def test_the_courier_imports_nothing_from_the_users_folder(
    store_uri: str, home: Path, clean_courier: None
) -> None:
    """A stray random.py beside the training script is the user's own affair."""
    Path("random.py").write_text("raise SystemExit('imported from the working directory')")
    Path("mlflow.py").write_text("raise SystemExit('imported from the working directory')")
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="stray")
    run = open_run(config)
    run.log_metrics({"loss": 1.0}, step=0)
    run.end()
    assert 0 == run.wait(insist_s=60).pending
    assert "working directory" not in Home(home).courier_log.read_text()


def test_the_courier_runs_nothing_that_pythonpath_brings_in(
    store_uri: str, home: Path, tmp_path: Path, clean_courier: None
) -> None:
    """The trainer's folders are its own affair; packages that lie in such folders as pip makes are found."""
    folder, seen = tmp_path / "mine", tmp_path / "seen"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        f"import os; open({str(seen)!r}, 'a').write(f'{{os.getpid()}} ')"
    )
    code = """
        import os
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        run = open_run(MLflowConfig(experiment_name="isolated"))
        run.end()
        print(os.getpid(), run.wait(insist_s=60).pending)
    """
    paths = os.pathsep.join([str(folder), str(Path(mlpipeline.__file__).parents[1])])
    _, out, _ = run_script(code, MLFLOW_TRACKING_URI=store_uri, PYTHONPATH=paths)
    pid, pending = out.split()
    assert ("0", [pid]) == (pending, seen.read_text().split())


def test_starting_a_courier_leaves_no_child_behind(store_uri: str, home: Path, clean_courier: None) -> None:
    """It is nobody's child: no zombie, and no process group of the trainer's."""
    code = """
        import os, subprocess, time
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        run = open_run(MLflowConfig(experiment_name="children"))
        run.wait()
        try:
            print(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            print("no children")
    """
    _, out, _ = run_script(code, MLFLOW_TRACKING_URI=store_uri)
    assert "no children\n" == out


def test_a_ctrl_c_does_not_reach_a_courier_that_is_being_started(
    store_uri: str, home: Path, clean_courier: None
) -> None:
    """A terminal and a notebook send it to the whole process group, whatever is half started in there."""
    code = """
        import os, signal, threading, time
        from mlpipeline import MLflowConfig
        from mlpipeline.tracking.opening import open_run
        os.setpgrp()
        signal.signal(signal.SIGINT, lambda *_: None)
        opened = threading.Event()
        def interrupt():
            while not opened.is_set():
                os.killpg(0, signal.SIGINT)
                time.sleep(0.005)
        thread = threading.Thread(target=interrupt)
        thread.start()
        run = open_run(MLflowConfig(experiment_name="ctrl-c"))
        opened.set()
        thread.join()
        print("started", flush=True)
        time.sleep(600)
    """
    process = start(code, MLFLOW_TRACKING_URI=store_uri)
    assert process.stdout is not None
    assert "started\n" == process.stdout.readline()
    try:
        wait_until(lambda: courier_reports(Home(home)), within_s=30, home=home)
    finally:
        process.kill()
        process.communicate()


def test_a_model_is_logged_while_the_delivery_thread_imports_mlflow(store_uri: str) -> None:
    """Two threads that import MLflow at once, one of them a part of it first, end in half a package."""
    code, _, error = run_script(
        f"""
        import time
        from mlpipeline import MLflowTracker
        from sklearn.dummy import DummyClassifier
        model = DummyClassifier().fit([[0.0], [1.0]], [0, 1])
        with MLflowTracker(tracking_uri={store_uri!r}, experiment_name="imports", delivery="thread") as tracker:
            run = tracker.active_run
            time.sleep(0.3)  # the thread is in the middle of it
            run.log_model(model, input_example=[[0.0]])
        assert 0 == run.wait().pending, run.counts()
        assert run.model_uri is not None
        """
    )
    assert (0, "") == (code, "" if code == 0 else error)
    assert "ImportError" not in error


def test_no_thread_of_a_courier_imports_a_part_of_mlflow_before_the_whole(store_uri: str) -> None:
    """A run that is known already begins with params: their import met that of the thread for files, and broke it."""
    offline = {"MLFLOW_TRACKING_URI": store_uri, "MLPIPELINE_DELIVERY": "offline"}
    assert 0 == run_script(OPEN, **offline)[0]
    code, out, error = run_script(
        """
        import os, sys
        from pathlib import Path
        from mlpipeline.tracking.delivery import RunDelivery
        from mlpipeline.tracking.home import Home, default_home
        from mlpipeline.tracking.sync import send_all
        for name in ("deliver", "upload"):
            def seen(self, *args, _real=getattr(RunDelivery, name), _name=name):
                whole = hasattr(sys.modules.get("mlflow"), "MlflowClient")
                os.write(1, f"{_name} {whole}\\n".encode())
                return _real(self, *args)
            setattr(RunDelivery, name, seen)
        assert "mlflow" not in sys.modules
        send_all(Home(default_home()))
        """
    )
    assert 0 == code, error
    assert {"deliver True", "upload True"} == set(out.splitlines())


REFUSING = """
    import atexit, threading
    while any(thread.name == "mlpipeline-disk" for thread in threading.enumerate()):
        time.sleep(0.01)
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    atexit.register(lambda: setattr(threading.Thread, "start", refuse))  # called before ours
"""


@pytest.mark.parametrize("refusing", ["", REFUSING], ids=["", "no thread starts"])
@pytest.mark.parametrize("ending", ["", "    run.end()"], ids=["open", "ended"])
@pytest.mark.parametrize("delivery", ["offline", "thread"])
def test_a_training_of_a_moment_ends_finished(
    delivery: str, ending: str, refusing: str, store_uri: str, deliver: Callable[[], None]
) -> None:
    """A courier that is a thread imports MLflow at the exit. Python 3.12.0 to 3.12.2 start no thread there."""
    script = f"{OPEN}{ending}\n{refusing}"
    code, _, told = run_script(script, MLFLOW_TRACKING_URI=store_uri, MLPIPELINE_DELIVERY=delivery)
    assert 0 == code, told
    assert "Traceback" not in told
    if delivery == "offline":
        deliver()
    assert {"run": "FINISHED"} == statuses(store_uri, "ends")


def test_the_exit_waits_once_however_many_runs_wait() -> None:
    """A server that only says 503 is waited for as long with a dozen runs as with one."""

    def exit_s(runs: int) -> float:
        with FaultyProxy(NOBODY) as proxy:
            proxy.fault = faults.answered(503)
            code, out, error = run_script(
                f"""
                import atexit, time
                atexit.register(lambda: print(time.monotonic() - left_s))  # called after ours
                from mlpipeline import MLflowTracker
                for _ in range({runs}):
                    with MLflowTracker(tracking_uri={proxy.uri!r}, delivery="thread") as tracker:
                        tracker.log_metrics({{"loss": 1.0}})
                left_s = time.monotonic()
                """
            )
        assert 0 == code, error
        assert runs == error.count("send them with: mlpipeline sync"), "each still has its line"
        return float(out)

    assert exit_s(12) < exit_s(1) + 2 * 4


@pytest.mark.server
def test_a_server_that_never_answers_holds_no_exit_and_sync_has_the_courier_try_again(
    server, home: Path, clean_courier: None
) -> None:
    """Connections are accepted, requests taken: nothing tells that server from a good one but time.

    The courier, in the middle of a request and then waiting ever longer, sends at once when it is asked to.
    """
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = faults.unanswered
        run = open_run(MLflowConfig(tracking_uri=proxy.uri, experiment_name="black-hole"))
        run.log_metrics({"loss": 0.5}, step=0)
        run.end()
        wait_until(lambda: proxy.requests, home=home)
        began_s = time.monotonic()
        assert 2 == run.wait().pending
        assert time.monotonic() - began_s < 6
        proxy.down()  # and the courier hears of it
        wait_until(lambda: "does not answer" in (run._dispatch().problem() or ""), home=home)
        time.sleep(3)  # it was asked to hurry by `wait`, not any more
        proxy.fault = faults.passed
        proxy.up()
        done = subprocess.run(
            [sys.executable, "-m", "mlpipeline", "sync"],
            check=False,
            timeout=90,
            capture_output=True,
            text=True,
        )
        assert (0, "2 records delivered, 0 pending, 0 refused\n") == (done.returncode, done.stdout)


def test_the_courier_is_a_guest_again_when_nobody_waits_any_more(store_uri: str, home: Path) -> None:
    """Whoever waits has it hurry; a training that goes on afterwards is not to pay for that."""
    run = open_run(MLflowConfig(tracking_uri=store_uri, experiment_name="calm", delivery="thread"))
    run.log_metrics({"loss": 0.5}, step=0)
    assert 0 == run.wait().pending
    assert not Home(home).hurry_file.exists()
    run.end()


@pytest.mark.server
def test_a_server_that_fails_now_and_then_holds_the_exit_for_two_seconds(
    server, home: Path, clean_courier: None
) -> None:
    """Some of it moves all the time; the courier goes on by itself."""
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = faults.in_turn(*[faults.passed] * 4, faults.answered(503))
        run = open_run(MLflowConfig(tracking_uri=proxy.uri, experiment_name="now-and-then"))
        run.log_metrics({"loss": 0.5}, step=0)
        wait_until(lambda: proxy.requests, home=home)
        for number in range(60):
            run.log_text("one request each", f"{number}.txt")
        assert exit_s(run) < 5
        assert run.counts().pending
        assert 0 == run.wait(insist_s=90).pending


@contextlib.contextmanager
def recorded_all_the_time(run: Run, *, in_children: bool) -> Iterator[None]:
    """A thread that records every few milliseconds, faster than anybody delivers what is last."""
    over = threading.Event()

    def record() -> None:
        for number in itertools.count():
            if over.wait(0.1 if in_children else 0.001):
                return
            if in_children:
                with open_child(run, f"{run.uid}-{number}", is_over=True) as child:
                    child.log_metrics({"loss": 0.5})
            run.log_metrics({"loss": 0.5})

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.server
@pytest.mark.parametrize(
    "how", ["sync", "sync of a study", "sync beside one that is stuck", "sync beside a courier", "flush"]
)
def test_who_asks_for_delivery_is_not_held_by_somebody_who_goes_on_recording(
    server, home: Path, deliver: Callable[[], None], clean_courier: None, how: str
) -> None:
    """What was there when it was asked for is sent."""
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = faults.delayed(0.05)
        is_served = how in {"sync beside a courier", "flush"}
        delivery = "process" if is_served else "offline"
        run = open_run(MLflowConfig(tracking_uri=proxy.uri, experiment_name="live", delivery=delivery))
        if is_served:
            wait_until(lambda: proxy.requests, home=home)
        if how == "sync beside one that is stuck":
            open_run(MLflowConfig(tracking_uri=NOBODY, delivery="offline")).end()
        with recorded_all_the_time(run, in_children=how == "sync of a study"):
            wait_until(lambda: run.counts().pending > 10, home=home)
            run.log_metrics({"asked": 1.0}, step=0)
            began_s = time.monotonic()
            run.flush() if how == "flush" else deliver()
            assert time.monotonic() - began_s < 30
            found = MlflowClient(server.uri).get_run(run.run_id)
            assert (1.0, "RUNNING") == (found.data.metrics["asked"], found.info.status)
        run.end()


@pytest.mark.server
@pytest.mark.parametrize(
    "slow",
    [faults.delayed(0.5), faults.in_turn(faults.delayed(0.9), faults.passed)],
    ids=["in everything", "every other time"],
)
def test_a_server_that_is_slow_holds_the_exit_for_two_seconds(
    server, home: Path, clean_courier: None, slow: faults.Fault
) -> None:
    """Its files alone would take half a minute; the courier goes on by itself."""
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = slow
        run = open_run(MLflowConfig(tracking_uri=proxy.uri, experiment_name="slow"))
        for step in range(10):
            run.log_metrics({"loss": 1 / (1 + step)}, step=step)
        wait_until(lambda: len(proxy.requests) > 3, home=home)
        for number in range(60):
            run.log_text("one request each", f"{number}.txt")
        assert exit_s(run) < 4
        assert run.counts().pending
        proxy.fault = faults.passed
        assert 0 == run.wait(insist_s=90).pending
