"""Trainings that go on in this process: what each is nested under, and how it ends if nobody says so.

::

    begin(run, owner) ── the framework's last hook ──► end        the usual way
                      ├─ `inside` block left ────────┐
                      ├─ notebook cell ended ────────┤
                      ├─ owner collected ────────────┼► abandon   FAILED, or KILLED after Ctrl-C
                      ├─ next training of the owner ─┤
                      └─ exit ───────────────────────┘

XGBoost, Keras and Optuna call no callback when a training raises. A training that was begun and not
ended is therefore never FINISHED: whatever shows first that it is over ends its run.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlpipeline.tracking.run import Run

STATUSES = ("FINISHED", "FAILED", "KILLED")

_enclosing: ContextVar[Run | None] = ContextVar("mlpipeline_enclosing_run", default=None)
_begun: set[Training] = set()


def kind_of(error: BaseException | None) -> type[BaseException] | None:
    """Return the class of the exception that ended something; None where none did.

    That of a SystemExit which answers Ctrl-C is KeyboardInterrupt: Lightning makes one of the other.
    """
    if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
        return KeyboardInterrupt
    return type(error) if error is not None else None


def status_of(kind: type[BaseException] | None) -> str:
    """Return the status that an exception, or its absence, means for a run."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


class Training:
    """One training that records into a run of its own.

    Args:
        run: Its run.
        owner: Who began it, such as a callback; held weakly.
    """

    def __init__(self, run: Run, owner: object) -> None:
        self.run = run
        self.thread = threading.current_thread()
        self.enclosing = enclosing()
        self._collected = weakref.finalize(owner, self.abandon)
        self._collected.atexit = False  # then `abandon_all` knows the status better

    def end(self, status: str) -> None:
        """End the run."""
        self._collected.detach()
        _begun.discard(self)
        self.run.end(status)

    def abandon(self, kind: type[BaseException] | None = None) -> None:
        """End the run of a training that nobody ended.

        Args:
            kind: Class of the exception that ended it; None takes the one in flight, if there is one.
        """
        kind = kind or kind_of(sys.exc_info()[1])
        self.end(status_of(kind) if kind is not None else "FAILED")


def begin(run: Run, owner: object) -> Training:
    """Take note of a training; see `Training`."""
    training = Training(run, owner)
    _begun.add(training)
    _watch_cells()
    return training


def abandon_all(kind: type[BaseException] | None = None) -> None:
    """End every training of this process that is still going on; the exit does this."""
    for training in list(_begun):
        training.abandon(kind)


@contextmanager
def inside(run: Run, status_of: Callable[[type[BaseException]], str] = status_of) -> Iterator[Run]:
    """Nest under *run* whatever this thread or task opens in the block.

    Args:
        run: The enclosing run, which is not ended here.
        status_of: Status of the trainings that an exception of the given class leaves unfinished.
    """
    token = _enclosing.set(run)
    kind: type[BaseException] | None = None
    try:
        yield run
    except BaseException as error:
        kind = kind_of(error)
        raise
    finally:
        _enclosing.reset(token)
        for training in list(_begun):
            if training.enclosing is run:
                training.end(status_of(kind) if kind is not None else "FAILED")


def enclosing() -> Run | None:
    """Return the run that this thread or task is inside of."""
    return _enclosing.get()


def _watch_cells() -> None:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None and _after_cell not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", _after_cell)


def _after_cell(result: Any) -> None:
    """End what the cell began: IPython keeps its traceback, and with it the callback, until the next."""
    error = result.error_in_exec
    for training in list(_begun):
        if training.thread is threading.current_thread():
            training.abandon(kind_of(error))
    shell = sys.modules["IPython"].get_ipython()
    if not _begun and shell is not None:
        shell.events.unregister("post_run_cell", _after_cell)


def _after_fork_in_child() -> None:
    # They are the parent's, which ends them.
    for training in _begun:
        training._collected.detach()  # noqa: SLF001 - of the same module
    _begun.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
