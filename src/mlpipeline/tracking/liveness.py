"""Who is alive: record locks that a process holds as long as it lives.

A writer locks its lock file before its journal exists, the courier locks ``courier.lock``. The
kernel frees a lock when its process ends, however it ends, so there are no heartbeats to tune and
no signal handlers to install.

These are POSIX record locks (``fcntl``), not ``flock``: an ``flock`` is inherited by forked
DataLoader workers and would outlive the trainer with them. Two properties of record locks shape
this module. Any ``close`` of the file by the owning process drops the lock, so a process never
opens a lock file that it holds itself: `is_held` asks an in-memory registry first. That knows a
file by device and inode, because a home has as many spellings as there are links to it. And a
probe must not acquire: it asks with ``F_GETLK``.

Where locks do not reach (a home on a network file system, seen from another host), a lock file's
modification time stands in: the owner touches it now and then.
"""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import struct
import sys
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

if sys.platform != "win32":
    import fcntl

TOUCH_EVERY_S = 30.0
"""How often an owner touches its lock file, for hosts that cannot see the lock."""

SILENT_IS_DEAD_S = 3600.0
"""A lock file of another host untouched for so long has no owner. A writer touches only while it
logs, so this must outlast a long silent stretch of a training; a wrong guess is repaired, because a
record that arrives later reopens the run."""


class _Lock(NamedTuple):
    descriptor: int
    file: tuple[int, int]  # device and inode, which nobody else gets while it is open


_held: dict[Path, _Lock] = {}
"""Lock files that this process holds, by the paths that they were acquired by."""

_files: set[tuple[int, int]] = set()
"""The same, by what they are."""

_opening = threading.RLock()
"""Or one thread acquires what another, which has just seen that it is free, opens and closes."""


@lru_cache(maxsize=1)
def host_id() -> str:
    """Return what tells this boot of this host from any other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = platform.platform()
    return f"{socket.gethostname()}/{boot}"


def acquire(path: Path) -> bool:
    """Take the lock of *path*, made if need be, for the life of this process.

    Returns:
        False when another living process holds it.

    Raises:
        OSError: The file cannot be made or locked at all.
    """
    with _opening:
        if _is_own(path):
            return False
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if sys.platform != "win32":
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(descriptor)
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return False
        except OSError:
            os.close(descriptor)
            raise
        _held[path] = _Lock(descriptor, (about.st_dev, about.st_ino))
        _files.add(_held[path].file)
        return True


def release(path: Path) -> None:
    """Give the lock of *path* back; nothing happens if it is not held."""
    with _opening:
        lock = _held.pop(path, None)
        if lock is not None:
            _files.discard(lock.file)
            os.close(lock.descriptor)


def still_holds(path: Path) -> bool:
    """Tell whether *path* leads to the very file that this process holds: it may have been deleted meanwhile."""
    lock = _held.get(path)
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return lock is not None  # nothing is known then
    return lock is not None and lock.file == (about.st_dev, about.st_ino)


def is_held(path: Path, owner_host: str | None = None) -> bool:
    """Tell whether a living process holds the lock of *path*, without ever taking it.

    Args:
        path: The lock file; absent means not held.
        owner_host: `host_id` of the owner where it is known: on another host the file's age decides.
    """
    if path in _held:
        return True
    if sys.platform == "win32" or (owner_host is not None and owner_host != host_id()):
        return _is_own(path) or _is_touched(path)
    try:
        with _opening:
            if _is_own(path):
                return True
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                return _has_owner(descriptor)
            finally:
                os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # Nothing is known then (no descriptor is left, say), and nobody dies of that.
        return _is_touched(path)


def touch(path: Path) -> None:
    """Show other hosts that the owner of *path* lives."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _is_own(path: Path) -> bool:
    if path in _held:
        return True
    try:
        about = os.stat(path)
    except OSError:
        return False
    return (about.st_dev, about.st_ino) in _files


def _is_touched(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < SILENT_IS_DEAD_S
    except OSError:
        return False


def _has_owner(descriptor: int) -> bool:
    if sys.platform == "darwin":
        asked = struct.pack("qqihh", 0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
        kind = struct.unpack("qqihh", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[3]
    elif sys.platform != "win32":
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = struct.unpack("hhqqi4x", fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[0]
    else:
        return False
    return bool(kind != fcntl.F_UNLCK)


def _forget_in_child() -> None:
    # Record locks are not inherited. Closing here cannot drop the parent's lock: closing drops only
    # the locks of the closing process.
    global _opening  # noqa: PLW0603
    _opening = threading.RLock()
    for lock in _held.values():
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    _held.clear()
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
