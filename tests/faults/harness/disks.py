"""A small file system of a test's own, in a mount namespace: full when it is told to be, or read-only.

::

    unshare ── tmpfs on <folder> ── seen by commands that begin with `prefix`, and by us at `seen`

Needs no rights but those to make a user namespace, which most Linux systems give.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
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
        descriptor = os.open(self.seen / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with contextlib.suppress(OSError):
            for size in (2**16, 4096, 512, 1):
                with contextlib.suppress(OSError):
                    while os.write(descriptor, bytes(size)):
                        pass
        os.close(descriptor)

    def free(self):
        """Give the space back."""
        (self.seen / "filler").unlink(missing_ok=True)
