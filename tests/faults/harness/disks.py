"""A small file system of a test's own: full when it is told to be, read-only, or with a quota.

::

    SmallDisk: unshare ── tmpfs on <folder> ── seen by commands that begin with `prefix`, and by us at `seen`
    Quota:     loop ── btrfs ── a subvolume with a limit, at <folder>

The first needs no rights but those to make a user namespace, which most Linux systems give; the second
is root's, and needs btrfs-progs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


class SmallDisk:
    """A tmpfs; a context manager.

    Args:
        folder: Where it is mounted.
        size: Its size, as mount(8) reads it.
        is_read_only: Nothing can be written to it.

    Attributes:
        prefix: What a command that sees it begins with.
        seen: Where it is seen from outside.
    """

    def __init__(self, folder, size="2m", *, is_read_only=False):
        self._folder = folder
        self._options = f"size={size},mode=700{',ro' if is_read_only else ''}"
        self.prefix = []
        self.seen = folder

    def __enter__(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        mount = f"mount -t tmpfs -o {self._options} none '{self._folder}' && echo there && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "-Urm", "sh", "-c", mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = self._holder.stdout.readline()
        if told != "there\n":
            raise RuntimeError(f"no file system can be mounted in a user namespace here: {told}")
        pid = self._holder.pid
        self.prefix = ["nsenter", "--preserve-credentials", "-U", "-m", "-t", str(pid)]
        self.seen = Path(f"/proc/{pid}/root{self._folder}")
        return self

    def __exit__(self, *_):
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder.wait()

    def fill(self):
        """Leave no byte free."""
        _fill(self.seen / "filler")

    def free(self):
        """Give the space back."""
        (self.seen / "filler").unlink(missing_ok=True)


class Quota:
    """A folder whose owner may keep so much in it and no more: writing past it is EDQUOT; a context manager.

    Args:
        folder: Which.
        size: How much, as btrfs(8) reads it.

    Attributes:
        prefix: What a command that sees it begins with: nothing.
        seen: Where it is seen.
    """

    is_possible = os.geteuid() == 0 and shutil.which("mkfs.btrfs") is not None

    def __init__(self, folder, size="2M"):
        self._folder = folder
        self._size = size
        self.prefix = []
        self.seen = folder

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            image, mounted = base / "image", base / "mounted"
            mounted.mkdir()
            image.touch()
            os.truncate(image, 128 * 2**20)  # the least that mkfs.btrfs takes
            _command("mkfs.btrfs", "-q", "-M", image)
            _command("mount", "-o", "loop", image, mounted)
            stack.callback(_command, "umount", mounted)
            _command("btrfs", "quota", "enable", mounted)
            _command("btrfs", "subvolume", "create", mounted / "home")
            (mounted / "home").chmod(0o700)
            self._limit(self._size, mounted / "home")
            self._folder.mkdir(parents=True)
            _command("mount", "--bind", mounted / "home", self._folder)
            stack.callback(_command, "umount", "-l", self._folder)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def fill(self):
        """Use the quota up."""
        _fill(self.seen / "filler")

    def free(self):
        """Raise it: what is deleted counts until btrfs has cleaned up."""
        self._limit("none", self.seen)

    @staticmethod
    def _limit(size, folder):
        _command("btrfs", "qgroup", "limit", size, folder)


def _fill(file):
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with contextlib.suppress(OSError):
        for size in (2**16, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while os.write(descriptor, bytes(size)):
                    pass
    os.close(descriptor)


def _command(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr}")
