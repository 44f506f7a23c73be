"""The disk, waited for by a thread: a run's start, params and end survive a power cut a moment after they were written.

::

    JournalWriter ── start, params, end ──► soon(path) ──► thread ── fdatasync
    exit ─────────────────────────────────► finish()  until all of it is on the disk

A process that is killed loses nothing: the kernel has what was written. Only a machine that loses its power does, and
waiting for the disk takes 0.2 to 2.7 ms, or 30 beside others: not on the training's thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("mlpipeline")

FINISH_AT_MOST_S = 2.0

# A signal handler may end a run while its own thread puts something here: SimpleQueue allows for that.
_waiting: queue.SimpleQueue[Path | threading.Event] = queue.SimpleQueue()
_lock = threading.RLock()
_threads: list[threading.Thread] = []
_told: set[str] = set()


def sync(descriptor: int) -> None:
    """Wait until a file's content is on the disk.

    Raises:
        OSError: The disk refuses.
    """
    os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)


def soon(path: Path) -> None:
    """See that a file's content is on the disk in a moment, without waiting for it."""
    _ask(path)


def finish() -> None:
    """Wait until everything asked for is on the disk, two seconds at most."""
    if _threads:
        is_done = threading.Event()
        _ask(is_done)
        is_done.wait(FINISH_AT_MOST_S)


def _ask(item: Path | threading.Event) -> None:
    _waiting.put(item)
    with _lock:
        if not _threads:
            thread = threading.Thread(target=_serve, name="mlpipeline-disk", daemon=True)
            _threads.append(thread)
            try:
                thread.start()
            except RuntimeError:
                # There are no more to be had, or Python is at its exit and starts none: 3.12.0 to 3.12.2
                # (https://github.com/python/cpython/issues/113964).
                _serve()


def _serve() -> None:
    while True:
        items = []
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(_waiting.get_nowait())
        for item in dict.fromkeys(items):  # a file twice is one file
            if isinstance(item, threading.Event):
                item.set()
            else:
                _sync_file(item)
        with _lock:
            if _waiting.empty():
                _threads.clear()  # nothing of ours stays in a process that records no more
                return


def _sync_file(path: Path) -> None:
    try:
        # By its name: the journal may be closed meanwhile, and its descriptor somebody else's.
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        pass  # delivered and put away
    except OSError as error:
        if (reason := f"cannot sync the journal in {path.parent}: {error}") not in _told:
            _told.add(reason)
            logger.warning("%s", reason)


def _after_fork_in_child() -> None:
    # The thread is the parent's, and so is what waits: a queue may have been taken in the middle of a put.
    global _lock, _waiting
    _lock, _waiting = threading.RLock(), queue.SimpleQueue()
    _threads.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
