"""What only the trainer knows: who runs what, from which commit, and where the user pointed MLflow.

::

    trainer, once at run start                                      written into the journal
    ──────────────────────────                                      ────────────────────────
    sys.argv, user, git, notebook   ── source_tags ──────────────►  mlflow.user, mlflow.source.*
    mlflow.set_tracking_uri(...)    ┐
    mlflow.set_experiment(...)      ├─ fluent_state (sys.modules) ► destination, run to attach to
    with mlflow.start_run():        ┘
    who calls this training         ── is_within (the stack)
    working directory               ── default_tracking_uri ─────►  absolute URIs: the courier runs
                                       absolute_uri                 in another folder

Nothing here imports MLflow (2.9 CPU-seconds): what the user's own MLflow holds is read where it lies,
if it is there. Nothing here raises, waits for a network, or reads a password.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

# ── who, what, from where ────────────────────────────────────────────────────────────────────────

GIT_TIMEOUT_S = 2

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
# Set inside git hooks; they would answer for another repository than the script's.
_GIT_REDIRECTIONS = frozenset(("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"))
_INSTALLED = frozenset(("site-packages", "dist-packages"))


def source_tags(environ: Mapping[str, str]) -> dict[str, str]:
    """The tags by which MLflow's pages say who ran what, from which commit.

    The same values that ``mlflow.start_run()`` would set for a script. Where MLflow knows no commit
    because there is no script (``python -c``, an interactive session, a notebook, an installed command
    such as ``pytest``), it is that of the working directory. Not told apart, as MLflow does: a script in a
    folder that its repository ignores.

    Args:
        environ: The process's environment. ``MLFLOW_TRACKING_USERNAME`` is the user's name if set, and
            the tags in ``MLFLOW_RUN_CONTEXT`` (set by whoever starts jobs) win over ours.

    Returns:
        ``mlflow.user``, ``mlflow.source.name``, ``mlflow.source.type`` (``LOCAL``, ``NOTEBOOK``; ``JOB``
        where the run context says so) and, inside a git repository, ``mlflow.source.git.commit``.
        Costs one ``git`` process of a few milliseconds, at most 2 seconds.
    """
    script = _script()
    tags = {
        "mlflow.user": user_name(environ),
        "mlflow.source.name": script or "<console>",
        "mlflow.source.type": "LOCAL",
    }
    shell = _notebook_shell()
    if shell is not None:
        tags["mlflow.source.type"] = "NOTEBOOK"
        tags["mlflow.source.name"] = _notebook_name(shell, environ) or tags["mlflow.source.name"]
    commit = _git_commit(script if shell is None else "", environ)
    if commit is not None:
        tags["mlflow.source.git.commit"] = commit
    return {**tags, **_run_context(environ)}


def process_rank(environ: Mapping[str, str]) -> int:
    """The rank that a launcher such as ``torchrun`` gave to this process; 0 where nobody gave one.

    Args:
        environ: The process's environment.
    """
    given = (environ.get(name, "") for name in ("RANK", "LOCAL_RANK"))
    return next((int(rank) for rank in given if rank.isdigit()), 0)


def _script() -> str:
    argv = getattr(sys, "argv", None)  # missing in an embedded interpreter
    return str(argv[0]) if argv else ""


def _source_folder(script: str) -> Path:
    """The folder whose repository the code comes from."""
    path = Path(script)
    if not script or not path.is_file():  # `-c`, `-`, interactive
        return Path.cwd()
    folder, home = path.absolute().parent, Path(sys.executable).parent
    is_installed = not _INSTALLED.isdisjoint(folder.parts) or home in (folder, path.resolve().parent)
    return Path.cwd() if is_installed else folder


def _git_commit(script: str, environ: Mapping[str, str]) -> str | None:
    import subprocess  # here: the hot path imports this module too

    try:
        folder = _source_folder(script)
        # Looked for first: outside of repositories no process is started at all.
        if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
            return None
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD"],
            env={name: value for name, value in environ.items() if name not in _GIT_REDIRECTIONS},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # no git, no commit, not our repository, too slow, no cwd
        return None
    commit = answer.stdout.decode("ascii", "replace").strip()
    return commit if _COMMIT.fullmatch(commit) else None


def user_name(environ: Mapping[str, str]) -> str:
    """Who somebody with this environment is: to MLflow's server where they say so, else to the system."""
    candidates = (environ.get("MLFLOW_TRACKING_USERNAME"), _credentials_user(environ), _login(environ))
    return next((name for name in candidates if name), "unknown")


def _credentials_user(environ: Mapping[str, str]) -> str | None:
    """The user name in MLflow's credentials file; the password beside it is not kept."""
    path = Path(environ.get("HOME") or "~").expanduser() / ".mlflow" / "credentials"
    if not path.is_file():
        return None
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
        return parser.get("mlflow", "mlflow_tracking_username", fallback=None)
    except (OSError, ValueError, configparser.Error):
        return None


def _login(environ: Mapping[str, str]) -> str | None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):  # getpass.getuser's order
        if environ.get(name):
            return environ[name]
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # Windows; a container's user without a name
        return None


def _notebook_shell() -> Any | None:
    """IPython's shell if a notebook's kernel runs us; a terminal's IPython is none."""
    get_ipython = _loaded("IPython.core.getipython", "get_ipython")  # the package itself loads it lazily
    shell = get_ipython() if callable(get_ipython) else None
    is_kernel = type(shell).__name__ == "ZMQInteractiveShell" or hasattr(shell, "kernel")
    return shell if is_kernel else None


def _notebook_name(shell: Any, environ: Mapping[str, str]) -> str | None:
    # MLflow asks the Jupyter server over HTTP (0.5 s); the kernel has the answer in JPY_SESSION_NAME.
    path = getattr(shell, "user_ns", {}).get("__vsc_ipynb_file__") or next(
        filter(None, map(environ.get, ("__vsc_ipynb_file__", "IPYNB_FILE", "JPY_SESSION_NAME"))), None
    )
    return Path(str(path)).name if path else None


def _run_context(environ: Mapping[str, str]) -> dict[str, str]:
    try:
        tags = json.loads(environ.get("MLFLOW_RUN_CONTEXT") or "{}")
    except ValueError:
        return {}
    return {str(name): str(tag) for name, tag in tags.items()} if isinstance(tags, dict) else {}


# ── the user's own MLflow ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class FluentState:
    """What the user's own ``mlflow.*`` calls have established; None where there was none.

    Args:
        tracking_uri: Given to ``mlflow.set_tracking_uri``, as given; ``MLFLOW_TRACKING_URI`` alone is
            no such call.
        registry_uri: Given to ``mlflow.set_registry_uri``, as given.
        experiment_id: Established by ``mlflow.set_experiment``.
        active_run_id: Innermost run that is active in the calling thread.
        active_run_experiment_id: Its experiment.
        active_run_tracking_uri: Where MLflow itself would log to it now.
        active_run_is_autolog: Whether one of MLflow's autologging integrations started it.
    """

    tracking_uri: str | None = None
    registry_uri: str | None = None
    experiment_id: str | None = None
    active_run_id: str | None = None
    active_run_experiment_id: str | None = None
    active_run_tracking_uri: str | None = None
    active_run_is_autolog: bool = False


def fluent_state() -> FluentState:
    """Read the state of the user's own MLflow, without importing it and without changing it.

    Everything is None if MLflow is not imported, is being imported by another thread right now, or
    keeps its state elsewhere than it did. Call it in the user's thread: active runs are per thread.
    """
    try:
        return FluentState(
            # The public is_tracking_uri_set and get_tracking_uri cannot tell a call from the environment
            # variable, which ranks lower; neither can get_registry_uri, which may also ask Spark.
            tracking_uri=_text(_loaded("mlflow.tracking._tracking_service.utils", "_tracking_uri")),
            registry_uri=_text(_loaded("mlflow.tracking._model_registry.utils", "_registry_uri")),
            # There is no public function for the experiment that is set; the nearest ones create it.
            experiment_id=_text(_loaded("mlflow.tracking.fluent", "_active_experiment_id")),
            **_active_run(),
        )
    except Exception:  # noqa: BLE001 - another MLflow than those we know: its state is not ours to break on
        return FluentState()


def _active_run() -> dict[str, Any]:
    active_run = _loaded("mlflow.tracking.fluent", "active_run")
    run = active_run() if active_run is not None else None
    if run is None:
        return {}
    # A run does not remember its store: MLflow logs to it through the URI of the moment, and so do we.
    get_tracking_uri = _loaded("mlflow.tracking._tracking_service.utils", "get_tracking_uri")
    return {
        "active_run_id": run.info.run_id,
        "active_run_experiment_id": run.info.experiment_id,
        "active_run_tracking_uri": get_tracking_uri(),
        "active_run_is_autolog": "mlflow.autologging" in run.data.tags,
    }


def _loaded(module: str, name: str) -> Any:
    """A name of a module that somebody has imported; None if it is not there (yet).

    Through the module's own dict: getattr on ``mlflow`` may import half of it.
    """
    return getattr(sys.modules.get(module), "__dict__", {}).get(name)


def _text(value: Any) -> str | None:
    return str(value) if value is not None else None


# ── who calls ────────────────────────────────────────────────────────────────────────────────────


def call_of(function: str, module: str) -> FrameType | None:
    """The innermost call of *function*, as *module* defines it, on this thread's stack; None without one.

    For frameworks that train on behalf of others and tell nobody, such as a search for its candidates:
    the stack is also in their worker processes and threads, where no variable of ours arrives.

    Args:
        function: Its bare name.
        module: ``__name__`` of the module that defines it.
    """
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - inspect.stack() reads source files for the same answer
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return None


def is_within(function: str, module: str) -> bool:
    """Whether this thread is inside of a call of *function* as *module* defines it; see `call_of`."""
    return call_of(function, module) is not None


# ── URIs that mean the same in every folder ──────────────────────────────────────────────────────

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]*)(.*)", re.DOTALL)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")  # two letters at least: C:\ is a drive
_WITHOUT_SCHEME = frozenset(("databricks", "databricks-uc", "uc"))


def default_tracking_uri(cwd: Path) -> str:
    """MLflow's own default store, ``sqlite:///mlflow.db``, as seen from *cwd* and valid everywhere.

    Of the path only ``%`` and ``?`` are quoted. MLflow quotes more and then creates an empty folder of
    the quoted name (``my%20project`` beside ``my project``).
    """
    return absolute_uri("sqlite:///mlflow.db", cwd)


def absolute_uri(uri: str | os.PathLike[str], cwd: Path) -> str:
    """The same store or registry, named independently of the working directory.

    Args:
        uri: A tracking or registry URI, or a local path. SQLite files, paths and ``file:`` URIs may be
            relative; the empty string is MLflow's ``./mlruns``.
        cwd: What they are relative to.

    Returns:
        *uri* itself unless it depends on the working directory.
    """
    text = os.fspath(uri)
    folder = os.path.abspath(cwd)
    sqlite = _SQLITE.fullmatch(text)
    if sqlite is not None:
        prefix, database, query = sqlite.groups()
        if not database or database.startswith(("/", ":memory:", "file:")):
            return text
        return prefix + os.path.normpath(f"{_sqlite_quoted(folder)}/{database}") + query
    if text.startswith("file:"):
        path = text.removeprefix("file:")
        return text if path.startswith("/") else "file://" + os.path.normpath(f"{quote(folder)}/{path}")
    if _SCHEME.match(text) or text in _WITHOUT_SCHEME:
        return text
    return os.path.normpath(os.path.join(folder, text or "mlruns"))


def _sqlite_quoted(path: str) -> str:
    """A path as it stands in a SQLite URI: SQLAlchemy 2.1 unquotes it, and ``?`` begins the options."""
    return path.replace("%", "%25").replace("?", "%3F")
