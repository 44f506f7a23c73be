"""The trainer's side of delivery: see that a courier serves the home, and wait for it.

Nothing here talks to MLflow. The trainer probes the courier's lock, starts one where there is none,
and reads two kinds of small files: the courier's progress and a run's state.

::

    Dispatch.ensure()   probe courier.lock -> spawn a process, or a thread where that cannot be
    Dispatch.wait()     until a condition holds, as long as the courier makes progress
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import mlpipeline
from mlpipeline.core import credentials
from mlpipeline.core.errors import ConfigError
from mlpipeline.tracking import liveness
from mlpipeline.tracking.home import Home, read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlpipeline.tracking.courier import Courier
    from mlpipeline.tracking.destination import Destination

logger = logging.getLogger("mlpipeline")

Delivery = Literal["auto", "process", "thread", "offline"]

PATIENCE_S = 2.0
"""How long a wait lasts after the courier's last progress."""

EXIT_PATIENCE_S = 1.5
"""The same at exit, and the whole of it where something fails, so that a fault makes a training no more than
2 seconds longer in all.

A training's process takes some tenths longer or shorter by itself: with 1.7 a black hole came to 2.3.
"""

EXIT_LOSS_S = 1.0
"""Where answers have cost an exit so much more than those of a server beside us, something fails, too."""

_POLL_S = 0.02
_FIRST_SIGN_S = 8.0

# Forks once, so that the courier is nobody's child: no zombie.
_LAUNCH = "import os,sys\nif os.fork():os._exit(0)\nos.execv(sys.argv[1],sys.argv[1:])"
_LAUNCHES = 3
# Nothing is imported from the user's folders, where a stray random.py may lie: no PYTHON* variable counts (-E), and
# neither does the working directory (-P, new in Python 3.11; it is the journal home, which is its owner's alone).
_ISOLATED = ("-E", "-P") if sys.version_info >= (3, 11) else ("-E",)
_COURIER = (
    "import os,sys;found=sys.argv[1].split(os.pathsep);"
    "sys.path[:]=[path for path in sys.path if path not in found]+found;"
    "from mlpipeline.tracking.courier import main;main(*sys.argv[2:])"
)

_dispatches: dict[tuple[Path, str], Dispatch] = {}


def dispatch_for(home: Home, delivery: Delivery, destination: Destination) -> Dispatch:
    """Return this process's dispatch for what a home holds for a destination."""
    key = home.path, destination.identity
    dispatch = _dispatches.get(key)
    if dispatch is None or dispatch.delivery != delivery:
        dispatch = _dispatches[key] = Dispatch(home, delivery, destination)
    dispatch.expect(destination)
    return dispatch


def stop_couriers() -> None:
    """End the courier threads of this process, and wait until they are gone."""
    for dispatch in list(_dispatches.values()):
        dispatch.stop()


def chosen(delivery: Delivery) -> Delivery:
    """Return how to deliver: "auto" means a process wherever one can be had."""
    if delivery != "auto":
        return delivery
    is_frozen = getattr(sys, "frozen", False) or not sys.executable
    if is_frozen or sys.platform == "win32" or "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return "thread"
    return "process"


class Dispatch:
    """Sees that a courier serves one home.

    Args:
        home: The journal home.
        delivery: How, as the configuration says.
        destination: Whose courier; only who this process is to its servers counts.
    """

    def __init__(self, home: Home, delivery: Delivery, destination: Destination) -> None:
        self.home = home
        self.delivery: Delivery = delivery
        self._expected: dict[str, Destination] = {}
        self._uris = (destination.tracking_uri, destination.registry_uri)
        self._identity = destination.identity
        self._post = home.post(destination.identity)
        self._mode = chosen(delivery)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._courier: Courier | None = None
        self._spawned_s = -1e9
        self._is_told = False
        # A report that is there already, of a courier that is not, may be of another day.
        self._old_pid = None if liveness.is_held(self._post.lock) else self._last_report().get("pid")

    def ensure(self, *, is_start: bool = False) -> None:
        """Start a courier unless one serves the home; the journal must exist before.

        Args:
            is_start: A training begins: if its password or token is not the one that the courier has,
                it is the newer one, and a courier that has it takes over. Later, in a training that
                goes on, whoever serves is left alone, or two trainings would take turns for ever.
        """
        if self._mode == "offline":
            return
        if liveness.is_held(self._post.lock) and not (is_start and self.make_room()):
            return
        with self._starting:
            try:
                if self._mode == "thread":
                    self._start_thread()
                elif time.monotonic() - self._spawned_s > _FIRST_SIGN_S:
                    self._spawned_s = time.monotonic()
                    self._spawn()
            except (OSError, ConfigError) as error:
                if not self._is_told:
                    self._is_told = True
                    logger.warning(
                        "cannot start the courier: %s. What the disk takes is kept; send it with: mlpipeline sync",
                        error,
                    )

    def expect(self, destination: Destination) -> None:
        """Let a courier that is a thread make ready for a destination."""
        if self._mode != "thread":
            return
        self._expected[destination.key] = destination
        if self._courier is not None:
            with contextlib.suppress(RuntimeError):  # no more threads to be had: it tries again itself
                self._courier.expect(destination)

    def make_room(self) -> bool:
        """Ask the courier that serves to leave, if it has another password or token than this process.

        Returns:
            Whether it was asked.
        """
        if not self._identity or self._report().get("secret") in (None, self.secret()):
            return False
        self._post.successor.touch(mode=0o600)
        self._spawned_s = -1e9
        return True

    def secret(self) -> str:
        """Return the fingerprint of what this process shows to the servers; ``""`` for nothing."""
        if not self._identity:
            return ""
        return self.home.fingerprint(" ".join(map(credentials.secret_for, self._uris)))

    def _start_thread(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        # At the exit of a short training MLflow may still be on its way, which imports this: and that refuses then.
        import concurrent.futures.thread  # noqa: F401

        from mlpipeline.tracking.courier import Courier

        courier = Courier(self.home, self._identity, secret=self.secret(), mode="thread")
        thread = threading.Thread(target=courier.run, name="mlpipeline-courier", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        self._courier, self._thread = courier, thread
        for destination in list(self._expected.values()):
            self.expect(destination)

    def stop(self) -> None:
        """End the courier thread of this process, if there is one, and wait until it is gone."""
        if self._courier is not None and self._thread is not None:
            self._courier.stop()
            self._thread.join()

    def _spawn(self) -> None:
        self.home.check()  # it would run in a folder of somebody else's
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        log = os.open(self.home.courier_log, flags, 0o600)
        try:
            told = [str(self.home.path), self._identity, self.secret()]
            isolated = [*_ISOLATED, "-s"] if sys.flags.no_user_site else _ISOLATED
            courier = [sys.executable, *isolated, "-c", _COURIER, os.pathsep.join(_import_path()), *told]
            # A Ctrl-C goes to the trainer's whole process group, which the launcher leaves before Python
            # starts in it. A moment earlier the signal still ends it; then another is started.
            for _ in range(_LAUNCHES):
                launched = subprocess.run(
                    [sys.executable, "-I", "-S", "-c", _LAUNCH, *courier],
                    cwd=self.home.path,
                    env=credentials.environment_for(*self._uris),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    check=False,
                )
                if launched.returncode == 0:
                    return
        finally:
            os.close(log)

    def problem(self, destination: str | None = None) -> str | None:
        """Return what the courier says stands in the way of a destination, or of any."""
        report = self._report()
        for key, worker in report.get("destinations", {}).items():
            if worker.get("problem") and destination in (None, key):
                return str(worker["problem"])
        return None

    def wait(
        self,
        is_met: Callable[[], bool],
        *,
        destination: str | None = None,
        insist_s: float | None = None,
        patience_s: float = PATIENCE_S,
        has_asked: bool = False,
        is_exit: bool = False,
    ) -> bool:
        """Wait until a condition holds, as long as the courier makes progress.

        Args:
            is_met: The condition.
            destination: Key of the destination whose failure ends the wait at once; None: of all.
            insist_s: Wait at least so long whatever the courier says; None does not insist.
            patience_s: How long to wait after the last progress.
            has_asked: Somebody asks for delivery, now: what failed before is to be tried again.
            is_exit: The interpreter waits to end: *patience_s* in all where a call fails or answers come late,
                also where something moves; at once where the courier was killed. It, or the next one, goes on.

        Returns:
            Whether the condition holds now.
        """
        if is_met():
            return True
        if self._mode == "offline":
            return False
        try:
            return self._wait(is_met, destination, insist_s, patience_s, has_asked=has_asked, is_exit=is_exit)
        finally:
            self._calm()

    def _wait(
        self,
        is_met: Callable[[], bool],
        destination: str | None,
        insist_s: float | None,
        patience_s: float,
        *,
        has_asked: bool,
        is_exit: bool,
    ) -> bool:
        started_s = moved_s = time.monotonic()
        started_ms, is_failing = time.time_ns() // 1_000_000, False
        lost_before_s: float | None = None
        hurried_s, last = -1e9, None
        while True:
            now_s = time.monotonic()
            if now_s - hurried_s > 1.0:
                hurried_s = now_s
                self._hurry()
                self.ensure()
            if is_met():
                return True
            report = self._report()
            must_insist = insist_s is not None and now_s - started_s < insist_s
            if is_exit and not must_insist and not report and self._is_killed():
                # Killed, by whoever is short of memory: everything is on the disk, for the next one.
                self._spawned_s = -1e9
                self.ensure()
                return is_met()
            if report.get("progress") != last and report.get("phase") == "serving":
                last, moved_s = report.get("progress"), now_s
            told_ms = self._told_ms(report, destination)
            if is_exit and report:
                lost_s = self._lost_s(report, destination)
                lost_before_s = lost_s if lost_before_s is None else lost_before_s
                is_failing |= told_ms >= started_ms or lost_s - lost_before_s > EXIT_LOSS_S
            if not must_insist:
                has_sign = last is not None
                if now_s - moved_s > (patience_s if has_sign else _FIRST_SIGN_S):
                    return is_met()
                if is_failing and now_s - started_s > patience_s:
                    return is_met()
                if (
                    has_sign
                    and self._is_all(report, destination, "is_closed")
                    and (told_ms >= started_ms or not has_asked)
                ):
                    return is_met()
            time.sleep(_POLL_S)

    def _is_all(self, report: dict[str, Any], destination: str | None, what: str) -> bool:
        """Tell whether something is said of the destination, or of each."""
        found = self._workers(report, destination)
        return bool(found) and all(worker.get(what) for worker in found)

    def _lost_s(self, report: dict[str, Any], destination: str | None) -> float:
        """Return how much longer answers took so far than promptly, of the destination that lost least."""
        return min(
            (float(worker.get("lost_s", 0)) for worker in self._workers(report, destination)), default=0.0
        )

    def _told_ms(self, report: dict[str, Any], destination: str | None) -> int:
        """Return when a call failed last, of the destination that was heard of least lately."""
        return min(
            (int(worker.get("told_ms", 0)) for worker in self._workers(report, destination)), default=0
        )

    @staticmethod
    def _workers(report: dict[str, Any], destination: str | None) -> list[dict[str, Any]]:
        return [
            worker for key, worker in report.get("destinations", {}).items() if destination in (None, key)
        ]

    def _report(self) -> dict[str, Any]:
        report = self._last_report()
        return report if report and liveness.is_held(self._post.lock) else {}

    def _last_report(self) -> dict[str, Any]:
        """Return what the courier said last, which may be gone by now."""
        return read_file(self._post.report) or {}

    def _is_killed(self) -> bool:
        """Tell whether the courier that is not there was, while this process recorded, and has not gone by itself."""
        last = self._last_report()
        return last.get("phase") not in (None, "gone") and last.get("pid") != self._old_pid

    def _hurry(self) -> None:
        try:
            self.home.hurry_file.touch(mode=0o600)
        except OSError:
            logger.debug("cannot ask the courier to hurry", exc_info=True)

    def _calm(self) -> None:
        """Let the courier be a guest again; whoever else waits asks anew within a second."""
        with contextlib.suppress(OSError):
            self.home.hurry_file.unlink()


def _import_path() -> list[str]:
    """Return where packages are installed, in this process's order, and last where this one and MLflow are.

    Some systems put each installed package on ``PYTHONPATH``, in a folder called as pip calls it.
    """
    installed = [
        path
        for path in sys.path
        if os.path.isabs(path) and os.path.basename(path) in {"site-packages", "dist-packages"}
    ]
    packages = [os.path.dirname(mlpipeline.__file__)]
    with contextlib.suppress(ValueError):  # somebody's stand-in
        found = importlib.util.find_spec("mlflow")
        packages += (found and found.submodule_search_locations) or []
    return list(dict.fromkeys([*installed, *(os.path.dirname(os.path.abspath(each)) for each in packages)]))


def _after_fork_in_child() -> None:
    _dispatches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
