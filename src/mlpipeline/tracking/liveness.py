"""Who is alive: record locks that a process holds as long as it lives.

A writer locks its lock file before its journal exists, the courier locks ``courier.lock``. The
kernel frees a lock when its process ends, however it ends, so there are no heartbeats to tune and
no signal handlers to install.

These are POSIX record locks (``fcntl``), not ``flock``: an ``flock`` is inherited by forked
DataLoader workers and would outlive the trainer with them. Two properties of record locks shape
this module. Any ``close`` of the file by the owning process drops the lock, so a process never
opens a lock file that it holds itself: `is_held` asks an in-memory registry first. And a probe
must not acquire: it asks with ``F_GETLK``.

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
import time
from functools import lru_cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

TOUCH_EVERY_S = 30.0
"""How often an owner touches its lock file, for hosts that cannot see the lock."""

SILENT_IS_DEAD_S = 3600.0
"""A lock file of another host untouched for so long has no owner. A writer touches only while it
logs, so this must outlast a long silent stretch of a training; a wrong guess is repaired, because a
record that arrives later reopens the run."""

_held: dict[Path, int] = {}
"""Lock files that this process holds, with their descriptors."""


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
    if path in _held:
        return False
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    if sys.platform == "win32":
        _held[path] = descriptor
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return False
    except OSError:
        os.close(descriptor)
        raise
    _held[path] = descriptor
    return True


def release(path: Path) -> None:
    """Give the lock of *path* back; nothing happens if it is not held."""
    descriptor = _held.pop(path, None)
    if descriptor is not None:
        os.close(descriptor)


def is_held(path: Path, owner_host: str | None = None) -> bool:
    """Tell whether a living process holds the lock of *path*, without ever taking it.

    Args:
        path: The lock file; absent means not held.
        owner_host: `host_id` of the owner where it is known: on another host the file's age decides.
    """
    if path in _held:
        return True
    if sys.platform == "win32" or (owner_host is not None and owner_host != host_id()):
        return _is_touched(path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _has_owner(descriptor)
    finally:
        os.close(descriptor)


def touch(path: Path) -> None:
    """Show other hosts that the owner of *path* lives."""
    with contextlib.suppress(OSError):
        os.utime(path)


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
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
