"""What the trainer reads of its surroundings, compared with what MLflow itself would say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.tracking.context import registry

import mlpipeline
from mlpipeline.tracking import surroundings

if TYPE_CHECKING:
    from collections.abc import Callable

SRC = str(Path(mlpipeline.__file__).parents[1])

# Before MLflow is there; and all that MLflow goes by, besides the environment.
STARTED = """
import json, os, sys
from mlpipeline.tracking.surroundings import source_tags
ours = source_tags(os.environ)
assert not any(name.partition(".")[0] == "mlflow" for name in sys.modules)
print(json.dumps([ours, sys.argv, os.getcwd()]))
"""
OURS = """
import json, os
from mlpipeline.tracking.surroundings import source_tags
print(json.dumps(source_tags(os.environ)))
"""
TAGS = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "mlflow.source.git.commit")


def environment(cwd: Path, **environ: str) -> dict[str, str]:
    """The environment of a fresh Python: this one's, without what MLflow and git read there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "GIT_"))}
    return {**clean, "PYTHONPATH": SRC, "MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(cwd), **environ}


def run(*args: str, cwd: Path, stdin: str = "", **environ: str) -> Any:
    """The JSON that a fresh Python prints last."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=environment(cwd, **environ),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """Our tags in a fresh Python that is started like this, and what MLflow says where it stands as that one does."""

    def of(*args: str, cwd: Path, stdin: str = "", **environ: str) -> list[dict[str, str]]:
        ours, argv, folder = run(*args, cwd=cwd, stdin=stdin, **environ)
        with monkeypatch.context() as there:
            for name in os.environ.keys() - (known := environment(cwd, **environ)).keys():
                there.delenv(name)
            for name, value in known.items():
                there.setenv(name, value)
            there.setattr(sys, "argv", argv)
            there.chdir(folder)
            # Anew: it remembers what the first script was. Its import, 3 s, is this process's own.
            return [ours, importlib.reload(registry).resolve_tags()]

    return of


def git(repo: Path, *args: str) -> str:
    """What git answers, asked as somebody who may commit."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    answer = subprocess.run(
        ["git", "-C", str(repo), *identity, *args], env=clean, capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A git repository with one commit and a remote whose URL holds a password."""
    folder = tmp_path / "my repo"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    git(folder, "remote", "add", "origin", "https://bob:hunter2@example.com/x.git")
    return folder


def only(tags: dict[str, str]) -> dict[str, str]:
    """Those of MLflow's tags that we also set; its branch and remote URL are left to it."""
    return {name: tag for name, tag in tags.items() if name in TAGS}


# ── source_tags ──────────────────────────────────────────────────────────────────────────────────


def test_a_script_in_a_repository_has_the_tags_that_mlflow_would_set(
    repo: Path, tmp_path: Path, both: Callable[..., list[dict[str, str]]]
) -> None:
    """User, script and commit agree, also when the script is started from another folder."""
    (repo / "src").mkdir()
    (repo / "src" / "train.py").write_text(STARTED)

    ours, theirs = both(str(repo / "src" / "train.py"), cwd=tmp_path)

    assert only(theirs) == ours
    assert git(repo, "rev-parse", "HEAD") == ours["mlflow.source.git.commit"]


def test_a_script_outside_of_repositories_has_no_commit(
    tmp_path: Path, repo: Path, both: Callable[..., list[dict[str, str]]]
) -> None:
    """The working directory's repository is not where the script comes from."""
    (tmp_path / "train.py").write_text(STARTED)

    ours, theirs = both("../train.py", cwd=repo)

    assert only(theirs) == ours
    assert "mlflow.source.git.commit" not in ours
    assert "../train.py" == ours["mlflow.source.name"]


def test_a_module_run_by_name_has_the_tags_that_mlflow_would_set(
    repo: Path, both: Callable[..., list[dict[str, str]]]
) -> None:
    """``python -m package.train`` is a script too."""
    (repo / "package").mkdir()
    (repo / "package" / "train.py").write_text(STARTED)

    ours, theirs = both("-m", "package.train", cwd=repo)

    assert only(theirs) == ours
    assert git(repo, "rev-parse", "HEAD") == ours["mlflow.source.git.commit"]


@pytest.mark.parametrize("how", ["-c", "interactive"])
def test_code_without_a_script_has_the_commit_of_the_working_directory(
    repo: Path, how: str, both: Callable[..., list[dict[str, str]]]
) -> None:
    """MLflow knows no commit there; the other tags are its own."""
    if how == "-c":
        ours, theirs = both("-c", STARTED, cwd=repo)
    else:
        ours, theirs = both("-i", "-q", cwd=repo, stdin=STARTED)

    commit = {"mlflow.source.git.commit": git(repo, "rev-parse", "HEAD")}
    assert {**only(theirs), **commit} == ours


def test_an_installed_command_has_the_commit_of_the_working_directory(repo: Path, tmp_path: Path) -> None:
    """What a console script trains lies where it was called, not where the script was installed."""
    package = tmp_path / "site-packages" / "tool"
    package.mkdir(parents=True)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "the environment's own")
    (package / "__main__.py").write_text(OURS)

    ours = run(str(package / "__main__.py"), cwd=repo)

    assert git(repo, "rev-parse", "HEAD") == ours["mlflow.source.git.commit"]


def test_a_run_context_wins_as_it_does_in_mlflow(
    tmp_path: Path, both: Callable[..., list[dict[str, str]]]
) -> None:
    """A launcher's MLFLOW_RUN_CONTEXT makes the run a job."""
    context = {"mlflow.source.type": "JOB", "mlflow.source.name": "nightly", "team": "a"}
    (tmp_path / "train.py").write_text(STARTED)

    ours, theirs = both("train.py", cwd=tmp_path, MLFLOW_RUN_CONTEXT=json.dumps(context))

    assert theirs == ours
    assert "JOB" == ours["mlflow.source.type"]


def test_the_tracking_user_name_is_the_user_and_its_password_nowhere(
    tmp_path: Path, both: Callable[..., list[dict[str, str]]]
) -> None:
    """The credentials file names the user as for MLflow, and only the name leaves it."""
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = carol\nmlflow_tracking_password = hunter2\n"
    )
    (tmp_path / "train.py").write_text(STARTED)

    ours, theirs = both("train.py", cwd=tmp_path)

    assert only(theirs) == ours
    assert "carol" == ours["mlflow.user"]
    assert "hunter2" not in json.dumps(ours)


def test_the_environments_tracking_user_name_wins_over_the_file(tmp_path: Path) -> None:
    """As in MLflow."""
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\nmlflow_tracking_username = carol\n")

    ours = surroundings.source_tags({"HOME": str(tmp_path), "MLFLOW_TRACKING_USERNAME": "dave"})

    assert "dave" == ours["mlflow.user"]


def test_a_user_without_a_login_name_in_the_environment_is_looked_up(tmp_path: Path) -> None:
    """Batch jobs often have no USER."""
    import pwd

    ours = surroundings.source_tags({"HOME": str(tmp_path)})

    assert pwd.getpwuid(os.getuid()).pw_name == ours["mlflow.user"]


def test_nothing_of_the_remote_is_told(repo: Path) -> None:
    """A password in the remote's URL stays in the repository."""
    assert "hunter2" not in json.dumps(run("-c", OURS, cwd=repo))


def test_a_git_hook_does_not_lend_its_repository(repo: Path, tmp_path: Path) -> None:
    """GIT_DIR, set while a hook runs, is another repository than the script's."""
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "other")

    ours = run("-c", OURS, cwd=repo, GIT_DIR=str(other / ".git"))

    assert git(repo, "rev-parse", "HEAD") == ours["mlflow.source.git.commit"]


def test_a_repository_without_a_commit_gives_none(tmp_path: Path) -> None:
    """``git init`` alone is no state that could be named."""
    git(tmp_path, "init", "-q")

    assert "mlflow.source.git.commit" not in run("-c", OURS, cwd=tmp_path)


def test_a_git_that_hangs_is_left_after_two_seconds(repo: Path, tmp_path: Path) -> None:
    """A repository on a dead network drive does not stop a training."""
    hanging = tmp_path / "bin" / "git"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    began = time.monotonic()

    ours = run("-c", OURS, cwd=repo, PATH=f"{hanging.parent}:{os.environ['PATH']}")

    assert "mlflow.source.git.commit" not in ours
    assert 30 > time.monotonic() - began


def test_a_machine_without_git_gives_no_commit(repo: Path, tmp_path: Path) -> None:
    """A container's image often has none."""
    ours = run("-c", OURS, cwd=repo, PATH=str(tmp_path))

    assert "mlflow.source.git.commit" not in ours
    assert "-c" == ours["mlflow.source.name"]


def test_a_working_directory_that_is_gone_does_no_harm(tmp_path: Path) -> None:
    """Temporary folders disappear under long jobs."""
    (tmp_path / "gone").mkdir()

    ours = run("-c", f"import os; os.rmdir({str(tmp_path / 'gone')!r})\n{OURS}", cwd=tmp_path / "gone")

    assert "LOCAL" == ours["mlflow.source.type"]


def test_a_run_context_that_is_no_json_object_is_ignored() -> None:
    """A broken variable is not worth a training."""
    for context in ("{", "[1]", ""):
        assert "LOCAL" == surroundings.source_tags({"MLFLOW_RUN_CONTEXT": context})["mlflow.source.type"]


# ── fluent_state ─────────────────────────────────────────────────────────────────────────────────


NOTHING = {
    "tracking_uri": None,
    "registry_uri": None,
    "experiment_id": None,
    "active_run_id": None,
    "active_run_experiment_id": None,
    "active_run_tracking_uri": None,
    "active_run_is_autolog": False,
}


def states(body: str, tmp_path: Path, **environ: str) -> Any:
    """Run *body*, in which ``see(name)`` notes the fluent state; all that was noted, by name."""
    head = """
        import dataclasses, json, sys, threading
        from mlpipeline.tracking.surroundings import fluent_state
        seen = {}
        def see(name):
            seen[name] = dataclasses.asdict(fluent_state())
        """
    program = textwrap.dedent(head) + textwrap.dedent(body) + "\nprint(json.dumps(seen))"
    return run("-c", program, cwd=tmp_path, **environ)


def test_without_mlflow_there_is_no_state_and_mlflow_stays_unimported(tmp_path: Path) -> None:
    """Asking is free: nothing is imported by it."""
    seen = states("see('it'); seen['imported'] = 'mlflow' in sys.modules", tmp_path)

    assert {"it": NOTHING, "imported": False} == seen


def test_the_environment_alone_is_not_a_call_of_set_tracking_uri(tmp_path: Path, store_uri: str) -> None:
    """Environment variables rank below the user's calls, so they are not reported as such."""
    seen = states(
        "import mlflow; assert mlflow.is_tracking_uri_set(); see('it')",
        tmp_path,
        MLFLOW_TRACKING_URI=store_uri,
        MLFLOW_REGISTRY_URI=store_uri,
        MLFLOW_EXPERIMENT_ID="0",
    )

    assert {"it": NOTHING} == seen


def test_what_the_user_set_is_seen(tmp_path: Path, store_uri: str) -> None:
    """Each ``mlflow.set_*`` is told as it was given."""
    seen = states(
        f"""
        import mlflow
        mlflow.set_tracking_uri({store_uri!r}); see('tracking')
        mlflow.set_registry_uri('sqlite:///registry.db'); see('registry')
        seen['id'] = mlflow.set_experiment('mine').experiment_id; see('experiment')
        """,
        tmp_path,
    )

    assert {**NOTHING, "tracking_uri": store_uri} == seen["tracking"]
    assert "sqlite:///registry.db" == seen["registry"]["registry_uri"]
    assert seen["id"] == seen["experiment"]["experiment_id"]


def test_the_active_run_is_the_calling_threads_innermost(tmp_path: Path, store_uri: str) -> None:
    """Other threads have none, a nested run hides its parent, and none is left afterwards."""
    seen = states(
        f"""
        import mlflow
        mlflow.set_tracking_uri({store_uri!r})
        with mlflow.start_run() as outer:
            see('outer')
            thread = threading.Thread(target=see, args=['thread']); thread.start(); thread.join()
            with mlflow.start_run(nested=True) as inner:
                see('inner')
        see('after')
        seen['ids'] = [outer.info.run_id, inner.info.run_id, outer.info.experiment_id]
        """,
        tmp_path,
    )
    outer, inner, experiment = seen["ids"]

    assert outer == seen["outer"]["active_run_id"]
    assert experiment == seen["outer"]["active_run_experiment_id"]
    assert store_uri == seen["outer"]["active_run_tracking_uri"]
    assert seen["outer"]["experiment_id"] is None
    assert seen["outer"]["active_run_is_autolog"] is False
    assert inner == seen["inner"]["active_run_id"]
    assert seen["thread"]["active_run_id"] is None
    assert seen["after"]["active_run_id"] is None


def test_a_run_in_the_environments_store_is_told_with_that_store(tmp_path: Path, store_uri: str) -> None:
    """The run's store is known although the user called no ``set_tracking_uri``."""
    seen = states(
        "import mlflow\nwith mlflow.start_run(): see('it')", tmp_path, MLFLOW_TRACKING_URI=store_uri
    )

    assert seen["it"]["tracking_uri"] is None
    assert store_uri == seen["it"]["active_run_tracking_uri"]


def test_a_run_of_autologging_is_told_apart(tmp_path: Path, store_uri: str) -> None:
    """While scikit-learn trains under autolog, the active run is not the user's own."""
    seen = states(
        f"""
        import mlflow
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import FunctionTransformer
        mlflow.set_tracking_uri({store_uri!r})
        mlflow.sklearn.autolog(log_models=False, log_datasets=False, silent=True)
        def look(X):
            seen.get('it') or see('it')
            return X
        make_pipeline(FunctionTransformer(look), LinearRegression()).fit([[1], [2]], [1, 2])
        """,
        tmp_path,
    )

    assert seen["it"]["active_run_id"] is not None
    assert seen["it"]["active_run_is_autolog"] is True


def test_an_import_of_mlflow_under_way_gives_nothing_and_no_error(tmp_path: Path) -> None:
    """While another thread is in the middle of importing MLflow, asking neither waits for it nor fails."""
    seen = states(
        """
        import importlib, time
        class Gate:
            entered, opened = threading.Event(), threading.Event()
            def find_spec(self, name, path=None, target=None):
                if name == 'mlflow.tracking.fluent':
                    self.entered.set()
                    self.opened.wait(20)
        sys.meta_path.insert(0, Gate())
        thread = threading.Thread(target=importlib.import_module, args=['mlflow']); thread.start()
        assert Gate.entered.wait(60)
        began = time.monotonic()
        see('during')
        seen['waited'] = time.monotonic() - began
        Gate.opened.set(); thread.join()
        see('after')
        """,
        tmp_path,
    )

    assert NOTHING == seen["during"]
    assert NOTHING == seen["after"]
    assert 5 > seen["waited"]


def test_an_mlflow_with_other_internals_gives_nothing_and_no_error(tmp_path: Path) -> None:
    """A later MLflow may keep its state elsewhere or in another shape."""
    seen = states(
        """
        import mlflow, mlflow.tracking.fluent as fluent
        from mlflow.tracking._tracking_service import utils
        del fluent._active_experiment_id, utils._tracking_uri
        see('moved')
        fluent.active_run = lambda: object()
        see('reshaped')
        """,
        tmp_path,
    )

    assert {"moved": NOTHING, "reshaped": NOTHING} == seen


# ── URIs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", ["plain", "my project", "100%25", "what?", "é"])
def test_the_default_store_is_the_file_in_the_working_directory(tmp_path: Path, folder: str) -> None:
    """Whatever the folder is called, SQLAlchemy opens the file in it."""
    from sqlalchemy import make_url

    uri = surroundings.default_tracking_uri(tmp_path / folder)

    assert str(tmp_path / folder / "mlflow.db") == make_url(uri).database


def test_the_default_store_is_mlflows_own(tmp_path: Path) -> None:
    """MLflow's default in that folder is the same file, to the letter where the name is plain."""
    program = "import json, mlflow; print(json.dumps(mlflow.get_tracking_uri()))"

    assert run("-c", program, cwd=tmp_path) == surroundings.default_tracking_uri(tmp_path)


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:////there/mlflow.db"),
        ("sqlite:///./a/../mlflow.db?timeout=5", "sqlite:////there/mlflow.db?timeout=5"),
        ("sqlite:///../mlflow.db", "sqlite:////mlflow.db"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:////there/x.db"),
        ("mlruns", "/there/mlruns"),
        ("./mlruns", "/there/mlruns"),
        ("", "/there/mlruns"),
        (Path("a/b"), "/there/a/b"),
        ("file:mlruns", "file:///there/mlruns"),
        ("file:./mlruns", "file:///there/mlruns"),
    ],
)
def test_a_relative_uri_becomes_absolute(uri: Any, absolute: str) -> None:
    """The courier, in another folder, opens the same store."""
    assert absolute == surroundings.absolute_uri(uri, Path("/there"))


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////data/mlflow.db",
        "sqlite:///:memory:",
        "sqlite://",
        "sqlite:///file:x?mode=memory&uri=true",
        "http://localhost:5000",
        "https://user@host/path/../x",
        "postgresql+psycopg2://u@h/db",
        "databricks",
        "databricks-uc",
        "databricks://profile",
        "uc:http://localhost:8080",
        "file:///data/mlruns",
        "file:/data/mlruns",
        "/data/mlruns",
        "s3://bucket/x",
    ],
)
def test_a_uri_that_means_the_same_everywhere_stays(uri: str) -> None:
    """Nothing but relative files depends on the working directory."""
    assert uri == surroundings.absolute_uri(uri, Path("/there"))


# ── who calls ────────────────────────────────────────────────────────────────────────────────────


def calling(function):
    """Call *function* from inside."""
    return function()


def test_a_call_is_found_on_the_stack_however_deep():
    """By the function's name and its module's, both."""
    found = lambda: surroundings.is_within("calling", __name__)  # noqa: E731
    assert calling(lambda: calling(found))
    assert not found()
    assert not calling(lambda: surroundings.is_within("calling", "elsewhere"))


def test_a_call_in_another_thread_is_not_ours():
    """Every thread has a stack of its own."""
    found = []
    thread = threading.Thread(target=lambda: found.append(surroundings.is_within("calling", __name__)))
    calling(lambda: (thread.start(), thread.join()))
    assert [False] == found
