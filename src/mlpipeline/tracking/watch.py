"""What ends when nobody is at it any more, where no hook says when that is.

::

    attend(item) ──► a thread looks, four times a second: item.is_over()? ──► item.close()
                 └─► exit ─────────────────────────────────────────────────► item.close(is_final=True)

A search is over when its last trial is, and its framework tells nobody which one that was. The thread
is there only as long as there is something to attend to.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Protocol

from mlpipeline.tracking import closing

logger = logging.getLogger("mlpipeline")

LOOK_EVERY_S = 0.25


class Attended(Protocol):
    """What may go on or be over."""

    def is_over(self) -> bool:
        """Tell whether it is over; cheap."""

    def close(self, *, is_final: bool = False) -> None:
        """Do what is to be done then, and call `leave` unless it goes on meanwhile."""


_lock = threading.Lock()
_items: set[Attended] = set()
_threads: list[threading.Thread] = []


def attend(item: Attended) -> None:
    """See that *item* is closed when it is over; again changes nothing."""
    if item in _items:
        return
    with _lock:
        _items.add(item)
        if not _threads:
            thread = threading.Thread(target=_look, name="mlpipeline-watch", daemon=True)
            _threads.append(thread)
            thread.start()


def leave(item: Attended) -> None:
    """Attend to *item* no more."""
    _items.discard(item)


def _look() -> None:
    while True:
        time.sleep(LOOK_EVERY_S)
        for item in list(_items):
            _close(item)
        with _lock:
            if not _items:
                _threads.clear()
                return


def _close(item: Attended, *, is_final: bool = False) -> None:
    try:
        if is_final:
            item.close(is_final=True)
        elif item.is_over():
            item.close()
    # Here is nobody to raise to, and what fails once would fail at every look.
    except Exception:
        leave(item)
        logger.warning("could not record the end of a search", exc_info=True)


def _close_all() -> None:
    for item in list(_items):
        _close(item, is_final=True)


def _after_fork_in_child() -> None:
    # They are the parent's, which closes them; its threads are not here.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _items.clear()
    _threads.clear()


closing.before_exit(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
