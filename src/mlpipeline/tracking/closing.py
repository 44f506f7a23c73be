"""What becomes of a process's runs when it ends: a true status, one wait, one line per root run.

A run left open gets the status of the interpreter's exit: FINISHED after a normal one, FAILED after
an unhandled exception, KILLED after Ctrl-C; in IPython, where an exception ends a cell and not the
session, FINISHED. A training in the middle never finished: see `trainings`. A signal that kills the
process ends it before this code: then the freed lock tells the courier, and the run becomes KILLED.

Who must know before the exit whether a run was delivered, as a component's answer does, waits by `insist`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from mlpipeline.tracking import durability, trainings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from mlpipeline.tracking.destination import Destination
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.run import Run

    _Place = tuple[Home | None, Destination]

_runs: dict[str, Run] = {}
_last_words: list[Callable[[], None]] = []
_in_vain: set[_Place] = set()
_SETTLE_EVERY_S = 0.5
_SETTLED_AT_ONCE = 100
_state: dict[str, Any] = {"is_armed": False, "settled_s": 0.0, "lost": None}


def watch(run: Run) -> None:
    """Close *run* at exit if nobody does before, and wait then until it is delivered."""
    if not _state["is_armed"]:
        _state["is_armed"] = True
        _arm()
    _settle_oldest()
    _runs[run.uid] = run


def _settle_oldest() -> None:
    # A process that opens thousands of runs, such as a search, must not keep them all until its exit.
    # A look at one costs some 40 us, so only now and then; few are delivered ahead of older ones.
    if (now_s := time.monotonic()) - _state["settled_s"] < _SETTLE_EVERY_S:
        return
    _state["settled_s"] = now_s
    ended = (run for run in list(_runs.values()) if run.is_ended)
    for run in itertools.takewhile(lambda run: run.is_delivered(), itertools.islice(ended, _SETTLED_AT_ONCE)):
        run.tell()
        forget(run)


def forget(run: Run) -> None:
    """Take a run off the list: its line is printed, or it needs none."""
    _runs.pop(run.uid, None)


def before_exit(speak: Callable[[], None]) -> None:
    """Call *speak* at exit, before the runs that are still open get their end."""
    _last_words.append(speak)


def watched() -> list[Run]:
    """Return the runs that this process opened and that are not settled yet."""
    return list(_runs.values())


def insist(run: Run) -> None:
    """Wait for a run that has ended as the exit would: as long as its ``exit_wait_s`` says.

    Where that was in vain, the exit does not insist once more on what goes to the same place.
    """
    run.wait(insist_s=run.config.exit_wait_s)
    if (place := _place(run)) is None:
        return
    if run.is_delivered():
        _in_vain.discard(place)
    elif run.config.exit_wait_s:
        _in_vain.add(place)


def _place(run: Run) -> _Place | None:
    return (run.home, run.destination) if run.is_enabled else None


def wait_for(destination: Destination, runs: Iterable[Run] = ()) -> None:
    """Wait until what this process recorded for a destination is there, or nothing moves any more.

    Args:
        destination: The store.
        runs: More of them than `watched` knows, in whatever destination.
    """
    for run in dict.fromkeys([*runs, *watched()]):
        if run.is_enabled and run.destination == destination:
            run.wait()


def _arm() -> None:
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # A forked child of multiprocessing ends with os._exit after its finalizers: atexit never
        # runs there, and the exception that ends it is in flight while the finalizers run.
        from multiprocessing.util import Finalize

        Finalize(None, _close_all, exitpriority=100)
        if sys.version_info >= (3, 13):
            # There it is over by then, and nothing is left of it but an exit code, in a frame that ends before the exit.
            # What sees that frame is not public, and refuses while the threads shut down.
            with contextlib.suppress(AttributeError, RuntimeError):
                threading._register_atexit(_note_how_it_ended)  # type: ignore[attr-defined]  # noqa: SLF001
        return
    atexit.register(_close_all)


def exit_status() -> str:
    """Return the MLflow status that the way this interpreter ends means for an open run."""
    kind = _last_exception()
    if _is_interactive() or kind is None:
        return "FINISHED"
    if issubclass(kind, KeyboardInterrupt):
        return "KILLED"
    if issubclass(kind, SystemExit):
        return "FINISHED"
    return "FAILED"


def _last_exception() -> type[BaseException] | None:
    in_flight = sys.exc_info()[0]
    return in_flight if in_flight is not None else getattr(sys, "last_type", _state["lost"])


def _note_how_it_ended() -> None:
    """Look at the exit code of a child of multiprocessing: 1 is an exception, Ctrl-C too, seldom ``sys.exit(1)``."""
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None and frame.f_code.co_name != "_bootstrap":
        frame = frame.f_back
    if frame is not None and frame.f_locals.get("exitcode") == 1:
        _state["lost"] = Exception


def _is_interactive() -> bool:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1")


def _close_all() -> None:
    status = exit_status()
    trainings.abandon_all(_last_exception())
    for speak in _last_words:
        speak()
    runs = list(_runs.values())
    try:
        # Children first: a parent's end is the later one.
        for run in reversed(runs):
            run.end(status)
        durability.finish()
        awaited = [run for run in runs if _place(run) not in _in_vain]
        insist_s = max((run.config.exit_wait_s or 0.0 for run in awaited), default=0.0)
        deadline_s = time.monotonic() + insist_s
        stuck: set[_Place] = set()
        for run in runs:
            place = _place(run)
            if place in stuck and time.monotonic() >= deadline_s:
                run.tell()  # nothing moved there for as long as one waits, and one waits once
                forget(run)
                continue
            run.settle(insist_s=max(0.0, deadline_s - time.monotonic()) or None)
            if place is not None and not run.is_delivered():
                stuck.add(place)
    except KeyboardInterrupt:
        # The second Ctrl-C leaves at once. What was recorded is in the journal.
        for run in runs:
            run.tell()
    finally:
        if _last_exception() is KeyboardInterrupt:
            _interrupted_still()


def _interrupted_still() -> None:
    """Let the process end by SIGINT, as one does that Ctrl-C has ended.

    Python notes that for its end, and forgets it whenever a text is run as code (``run_eval_code_obj`` in
    its pythonrun.c), such as where a module that is imported now makes a dataclass or a named tuple.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")  # noqa: S102 - what Python takes note of


def _after_fork_in_child() -> None:
    # They are the parent's, whose exit ends them and waits for them.
    _runs.clear()
    _in_vain.clear()
    atexit.unregister(_close_all)
    _state.update(is_armed=False, lost=None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
