"""A live run is never declared dead, whatever its process does and whoever dies beside it."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.tracking import durability, liveness
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.process


def start(code: str, **environ: str) -> subprocess.Popen[str]:
    """Start a program."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line of a program."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


WRITER = """
    import os, sys
    from pathlib import Path
    from mlpipeline import MLflowConfig
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.opening import open_run
    run = open_run(MLflowConfig(experiment_name="alive", run_name="live", delivery="offline"))
    run.log_metrics({"loss": 0.5}, step=0)
    print(run.uid, flush=True)
    sys.stdin.readline()
"""

DEEDS = {
    "accounts": """
        from mlpipeline.tracking.account import accounts, courier_reports
        for _ in range(3):
            print([account.is_live for account in accounts(Home(spelled))], courier_reports(Home(spelled)))
    """,
    "cli-status": """
        from click.testing import CliRunner
        from mlpipeline.cli.delivery import status
        os.environ["MLPIPELINE_HOME"] = str(spelled)
        assert CliRunner().invoke(status).exit_code == 0
    """,
    "sync": """
        from mlpipeline.tracking.sync import send_all
        send_all(Home(spelled))
    """,
    "a-courier-thread": """
        config = MLflowConfig(
            experiment_name="alive", run_name="other", journal_dir=str(spelled), delivery="thread"
        )
        other = open_run(config)
        other.log_metrics({"loss": 0.5}, step=0)
        other.end()
        other.wait(insist_s=60)
        assert other.is_delivered()
    """,
    "every-file-but-the-lock": """
        for path in spelled.rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                path.open("rb").close()
    """,
}


@pytest.mark.parametrize("deed", DEEDS)
def test_a_writer_keeps_its_lock_whatever_its_process_does_in_its_home(
    deed: str, home: Path, store_uri: str, tmp_path: Path
) -> None:
    """Another process sees the lock held all along, however the writer's own process spells the home."""
    (tmp_path / "link").symlink_to(home)
    spellings = [str(home), str(tmp_path / "link"), str(home / "runs" / "..")]
    code = (
        f"{textwrap.dedent(WRITER)}\nfor spelled in map(Path, {spellings}):"
        f"\n{textwrap.indent(textwrap.dedent(DEEDS[deed]), '    ')}"
        "\nprint('done', flush=True)\nsys.stdin.readline()\n"
    )
    process = start(code, MLFLOW_TRACKING_URI=store_uri)
    folder = Home(home).run(said(process))
    (name,) = folder.writers()
    seen: list[bool] = []
    is_over = threading.Event()

    def probe() -> None:
        while not is_over.wait(0.001):
            seen.append(liveness.is_held(folder.lock(name)))

    probing = threading.Thread(target=probe)
    probing.start()
    try:
        assert process.stdin is not None
        print("go", file=process.stdin, flush=True)
        while (line := said(process)) and line != "done":
            pass
        assert "done" == line
        seen.append(liveness.is_held(folder.lock(name)))
    finally:
        is_over.set()
        probing.join()
        process.kill()
        process.communicate()
    assert {True} == set(seen)
    assert not liveness.is_held(folder.lock(name))


def test_a_process_without_a_descriptor_left_takes_nobody_for_dead(home: Path, tmp_path: Path) -> None:
    """It cannot look at the lock; a courier that guessed would end a live run as KILLED."""
    lock = tmp_path / "writer.lock"
    assert liveness.acquire(lock)
    code = f"""
        import os, resource
        from pathlib import Path
        from mlpipeline.tracking import liveness
        liveness.host_id()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        print(liveness.is_held(Path({str(lock)!r})))
    """
    with start(code) as process:
        assert "True" == said(process)
    liveness.release(lock)


def test_a_probe_leaves_a_lock_alone_that_another_thread_takes_meanwhile(tmp_path: Path) -> None:
    """A courier thread takes its lock while the training thread asks for it: closing the file would drop it."""
    code = f"""
        import threading
        from pathlib import Path
        from mlpipeline.tracking import liveness
        locks = [Path({str(tmp_path)!r}, f"{{number}}.lock") for number in range(300)]
        [lock.touch() for lock in locks]
        def probe():
            while not over.is_set():
                liveness.is_held(lock)
        for lock in locks:
            over = threading.Event()
            threads = [threading.Thread(target=probe) for _ in range(3)]
            [thread.start() for thread in threads]
            assert liveness.acquire(lock)
            over.set()
            [thread.join() for thread in threads]
        print("ready", flush=True)
        input()
    """
    with start(code) as process:
        assert "ready" == said(process)
        lost = [path.name for path in tmp_path.glob("*.lock") if not liveness.is_held(path)]
        process.communicate("\n")
    assert [] == lost


FORKS = """
    import os, signal, sys, threading, time
    from mlpipeline import MLflowConfig
    from mlpipeline.tracking.opening import open_child, open_run
    sys.setswitchinterval(1e-5)
    parent = open_run(MLflowConfig(experiment_name="forks", run_name="parent", delivery="offline"))
    current, is_over = {{}}, threading.Event()

    def append():
        step = 0
        while not is_over.is_set():
            parent.log_metrics({{"loss": 0.5}}, step=step)
            step += 1
            time.sleep(0.0001)

    def open_and_end(is_over_already):
        number = 0
        while not is_over.is_set():
            run = open_child(parent, f"{{is_over_already}}-{{number}}", is_over=is_over_already)
            current[is_over_already] = run
            for step in range(5):
                run.log_metrics({{"loss": 0.5}}, step=step)
            run.end()
            number += 1
            time.sleep(0.001)

    threads = [threading.Thread(target=append)]
    threads += [threading.Thread(target=open_and_end, args=(kind,)) for kind in (True, False)]
    [thread.start() for thread in threads]
    while len(current) < 2:
        pass
    stuck = 0
    for number in range({forks}):
        runs = list(current.values())
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            parent.log_metrics({{"from_child": 0.5}}, step=number)
            for run in runs:
                if not run.is_ended:
                    run.log_metrics({{"from_child": 0.5}}, step=number)
                run.end()
            parent.child("fork").end()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            print("child ended with", status, file=sys.stderr)
            stuck += 1
            break
    print(stuck, flush=True)
    os._exit(0)
"""


def test_a_process_forks_while_its_threads_record_and_no_child_is_stuck(home: Path) -> None:
    """200 forks in the middle of appends, ends and children that are over: each child records and is gone."""
    with start(FORKS.format(forks=200), MLFLOW_TRACKING_URI="http://127.0.0.1:9") as process:
        assert "0" == said(process)


def open_files() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def offline(store_uri: str) -> MLflowConfig:
    return MLflowConfig(tracking_uri=store_uri, experiment_name="handles", delivery="offline")


def test_a_worker_that_is_handed_a_run_a_hundred_times_writes_one_journal(
    store_uri: str, home: Path, deliver: Callable[[], None]
) -> None:
    """One handle per task, as joblib does it: no more files than the first one opened, and each point once."""
    run = open_run(offline(store_uri))
    durability.finish()  # its thread has the journal open for a moment
    handed = pickle.dumps(run)
    descriptors = set()
    for step in range(100):
        pickle.loads(handed).log_metrics({"loss": step / 7}, step=step)
        descriptors.add(open_files())
    assert 2 == len(Home(home).run(run.uid).writers())
    run.end()
    deliver()
    client = MlflowClient(store_uri)
    (found,) = client.search_runs(["1"])
    points = client.get_metric_history(found.info.run_id, "loss")
    assert [(step, step / 7) for step in range(100)] == [(point.step, point.value) for point in points]
    assert ("FINISHED", 1) == (found.info.status, len(descriptors))


def test_a_worker_keeps_few_journals_open_however_many_runs_it_is_handed(store_uri: str) -> None:
    """Those of the runs handed over last; what is closed frees its lock and its descriptors."""
    runs = [open_run(offline(store_uri)) for _ in range(20)]
    before = open_files()
    for run in runs:
        pickle.loads(pickle.dumps(run)).log_metrics({"loss": 0.5}, step=0)
    gc.collect()
    assert 8 * 2 >= open_files() - before
    for run in runs:
        run.end()


def test_the_journal_of_handles_is_closed_with_the_last_one_that_is_ended(store_uri: str, home: Path) -> None:
    """Nobody who could add to the run is left then; until then the others go on."""
    run = open_run(offline(store_uri))
    first, second = (pickle.loads(pickle.dumps(run)) for _ in range(2))
    first.log_metrics({"loss": 0.5}, step=0)
    folder = Home(home).run(run.uid)
    run.end()
    first.end()
    second.log_metrics({"loss": 0.25}, step=1)
    assert [False, True] == sorted(liveness.is_held(folder.lock(name)) for name in folder.writers())
    second.end()
    assert [False, False] == [liveness.is_held(folder.lock(name)) for name in folder.writers()]


def test_a_fork_does_not_write_into_the_journal_of_its_parents_handles(store_uri: str, home: Path) -> None:
    """Two processes in one journal would count its frames twice: the child makes one of its own."""
    run = open_run(offline(store_uri))
    handed = pickle.dumps(run)
    pickle.loads(handed).log_metrics({"loss": 0.5}, step=0)
    child = os.fork()
    if child == 0:
        pickle.loads(handed).log_metrics({"loss": 0.25}, step=1)
        os._exit(0)
    assert 0 == os.waitpid(child, 0)[1]
    pickle.loads(handed).log_metrics({"loss": 0.125}, step=2)
    assert 3 == len(Home(home).run(run.uid).writers())
    run.end()
