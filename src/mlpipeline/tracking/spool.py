"""Where a run's files wait for the courier: each in a folder of its own, named by a record.

::

    <home>/runs/<uid>/spool/<token>/<file>     place()
    journal: {"spool": "<token>/<file>", …}    keep()
"""

from __future__ import annotations

import logging
import secrets
import shutil
from typing import TYPE_CHECKING, Any

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
