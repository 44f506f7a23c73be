"""Where a run's files wait for the courier: each in a folder of its own, named by a record.

::

    <home>/runs/<uid>/spool/<token>/<file>     place()
    journal: {"spool": "<token>/<file>", …}    keep()

A file or folder of the user's is copied there with `copy_into_spool`.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import sys
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.tracking.home import make_folder, make_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.records import Kind

logger = logging.getLogger("mlpipeline")

SPOOL_LIMIT_BYTES = 20 * 10**9
"""Beyond so much waiting in the spools of a home, a model is recorded without its files."""

_FICLONE = 0x40049409


class Spool:
    """The files of one run.

    Args:
        home: The journal home; None keeps no files, and records what they would have been.
        uid: Our name of the run.
        append: Appends a record to the run's journal, and tells whether that was done.
        drop: Counts a record whose file the disk refuses.
    """

    def __init__(
        self,
        home: Home | None,
        uid: str,
        append: Callable[[Kind, dict[str, Any]], bool],
        drop: Callable[[], None],
    ) -> None:
        self._home = home
        self._uid = uid
        self._append = append
        self._drop = drop
        self._is_made = False

    def place(self, name: str) -> SpoolPlace:
        """Return a place for one file or folder; see `SpoolPlace`."""
        spool = self._home.run(self._uid).spool if self._home is not None else None
        return SpoolPlace(spool, name, self._make, self._drop)

    def _make(self, folder: Path) -> None:
        if self._is_made:
            try:
                make_folder(folder)
            except FileNotFoundError:
                pass  # the courier has put the run away meanwhile
            else:
                return
        for one in (folder.parent.parent, folder.parent, folder):
            make_folder(one)
        self._is_made = True

    def keep(self, kind: Kind, place: Path | None, record: dict[str, Any]) -> bool:
        """Record what was written to a place.

        Returns:
            Whether it will be sent.
        """
        if place is not None:
            make_private(place)  # what others write has the mode that the umask leaves
            record = {**record, "spool": f"{place.parent.name}/{place.name}"}
        elif self._home is not None:
            return False  # the spool could not take it, which was told and counted
        return self._append(kind, record)

    def excess_bytes(self) -> int:
        """Return how much waits in the spools of the home, if that is over the limit, else 0."""
        held = self._home.spooled_bytes() if self._home is not None else 0
        return held if held >= SPOOL_LIMIT_BYTES else 0


class SpoolPlace:
    """A place for one file or folder in a spool, taken back if the block that fills it fails.

    As a context manager it gives the path to write to; None where there is no spool or the disk
    refuses, which is told and counted. An ``OSError`` inside the block is the disk's too, and not raised.

    Args:
        spool: The spool's folder; None where nothing is to be kept.
        name: Name of the file or folder.
        make: Makes a folder in the spool.
        drop: Counts a record whose file the disk refuses.
    """

    def __init__(
        self, spool: Path | None, name: str, make: Callable[[Path], None], drop: Callable[[], None]
    ) -> None:
        self._spool = spool
        self._name = name
        self._make = make
        self._drop = drop
        self._folder: Path | None = None

    def __enter__(self) -> Path | None:
        if self._spool is None:
            return None
        folder = self._spool / secrets.token_hex(8)
        try:
            self._make(folder)
        except OSError as error:
            self._lose(error)
            return None
        self._folder = folder
        return folder / self._name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if kind is None or self._folder is None:
            return False
        shutil.rmtree(self._folder, ignore_errors=True)
        if issubclass(kind, OSError):
            self._lose(error)
            return True
        return False

    def _lose(self, error: BaseException | None) -> None:
        self._drop()
        logger.warning("cannot keep %s in the spool: %s", self._name, error)


def copy_into_spool(source: Path, target: Path) -> int:
    """Copy a file or folder so that later changes to the original do not reach the copy.

    Where the file system can share blocks until one side is written (btrfs, xfs), the copy costs
    nothing. A hard link would cost nothing everywhere, but it is the same file: a framework that
    overwrites its checkpoint in place would change what is still to be uploaded.

    Links inside a folder are followed, as an upload would.

    Args:
        source: File or folder to copy.
        target: Where to; must be absent. Files get mode 0600, folders 0700.

    Returns:
        Bytes copied.

    Raises:
        UnloggableError: ``source`` is absent or neither file nor folder, or a link in it leads out
            of the folder, in a circle, or nowhere.
        OSError: The disk failed. Nothing is left at ``target``.
    """
    if not source.exists():
        raise UnloggableError(f"{source} does not exist; give the path of a file or folder.")
    if os.path.lexists(target):
        raise UsageError(f"{target} exists; copy into a new place.")
    try:
        return _copy(source.resolve(), target, source.resolve(), ())
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)
        raise


def _copy(source: Path, target: Path, top: Path, above: tuple[Path, ...]) -> int:
    mode = source.stat().st_mode
    if stat.S_ISREG(mode):
        return _copy_file(source, target)
    if not stat.S_ISDIR(mode):
        raise UnloggableError(f"{source} is neither a file nor a folder, so it cannot be logged.")
    make_folder(target)
    total = 0
    for entry in sorted(source.iterdir()):
        inside = entry
        if entry.is_symlink():
            inside = entry.resolve()
            if not inside.exists() or not inside.is_relative_to(top) or inside in (*above, source):
                raise UnloggableError(
                    f"{entry} is a link to {entry.readlink()}, which is absent, outside of {top} "
                    "or around in a circle; log the file it should stand for, or remove the link."
                )
        total += _copy(inside, target / entry.name, top, (*above, source))
    return total


def _copy_file(source: Path, target: Path) -> int:
    private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(private, "wb") as copy, source.open("rb") as original:
        if not _reflinked(original.fileno(), copy.fileno()):
            shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        return os.fstat(copy.fileno()).st_size


def _reflinked(original: int, copy: int) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:  # another file system, or one that cannot share blocks
        return False
    return True
