"""Where runs go: the address of a tracking store and its registry, whether somebody is there, and how quick it is."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from mlpipeline.core.credentials import public_uri, with_credentials
from mlpipeline.tracking.verdicts import Unavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class Destination:
    """Where runs go: one worker of the courier serves each.

    Attributes:
        tracking_uri: Absolute, without credentials unless it is a database's.
        registry_uri: The same for the model registry.
        user: Who the recorder is to the servers; another user's credentials are never used for its
            runs. ``""`` where no credentials are shown.
    """

    tracking_uri: str
    registry_uri: str
    user: str = ""

    @property
    def key(self) -> str:
        """A short name for files and tables."""
        text = f"{self.tracking_uri}\x00{self.registry_uri}\x00{self.user}"
        return blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def identity(self) -> str:
        """Names the courier that serves it: one of its own where credentials are shown, else ``""``."""
        return self.key if self.user else ""

    @property
    def is_http(self) -> bool:
        """Whether the tracking store is an MLflow server."""
        return urlsplit(self.tracking_uri).scheme in {"http", "https"}

    def probe(self, timeout_s: float = 3.0) -> None:
        """Knock at the door, which costs nothing next to ``import mlflow`` and MLflow's own retries.

        (Its database stores alone try ten times, for 100 seconds, before they say that a file cannot
        be opened.)

        Raises:
            Unavailable: Nobody answers there, or the database file cannot be opened.
        """
        shown = public_uri(self.tracking_uri)
        scheme = urlsplit(self.tracking_uri).scheme.partition("+")[0]
        try:
            if self.is_sqlite:
                _probe_file(self.sqlite_file())
            elif scheme in _PORTS:
                parts = urlsplit(self.tracking_uri)
                if parts.hostname:
                    address = (parts.hostname, parts.port or _PORTS[scheme])
                    socket.create_connection(address, timeout=timeout_s).close()
        except OSError as error:
            raise Unavailable(f"{shown} does not answer: {error}") from None

    @property
    def is_here(self) -> bool:
        """Whether the address is this machine's own."""
        return urlsplit(self.tracking_uri).hostname in {None, "localhost", "127.0.0.1", "::1"}

    @property
    def is_sqlite(self) -> bool:
        """Whether the tracking store is a SQLite file."""
        return urlsplit(self.tracking_uri).scheme.partition("+")[0] == "sqlite"

    def client(self, timeout_s: float = 30.0) -> MlflowClient:
        """Return MLflow's client for a store that is there, which asks once and does not repeat.

        Args:
            timeout_s: How long a server may take for one answer.

        Raises:
            Unavailable: Nobody answers there; or there is no such database file, which MLflow's own
                client would make.
        """
        self.probe(min(timeout_s, 3.0))
        if self.is_sqlite and not self.sqlite_file().exists():
            raise Unavailable(f"there is no store at {self.tracking_uri} yet; the first run makes it")
        uris = with_credentials(self.tracking_uri), with_credentials(self.registry_uri)
        from mlpipeline.tracking.rest import client_of

        return client_of(*uris, timeout_s=timeout_s)

    def sqlite_file(self) -> Path:
        """Return the file of a SQLite destination."""
        return Path(unquote(self.tracking_uri.partition(":///")[2].partition("?")[0]))


_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


def _probe_file(path: Path) -> None:
    """Ask whether it could be opened, and never open it.

    Closing any descriptor of a file gives up all of the process's POSIX locks on it, those too that
    SQLite holds for a transaction in another thread; the next process then writes into the middle
    of it, and what had been answered is lost (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        # MLflow makes the file, but not its folder.
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise
        return
    if is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


PROMPT_S = 0.26
"""A server beside us takes 10 to 260 ms for an answer, a busy one more now and then."""


class Delay:
    """How much longer answers took than promptly; one thread asks, another may look. Large files do not count.

    Use it as a context manager around each call.
    """

    def __init__(self) -> None:
        self._lost_s = 0.0
        self._asked_s: float | None = None

    def __enter__(self) -> None:
        self._asked_s = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._lost_s, self._asked_s = self.lost_s, None

    @property
    def lost_s(self) -> float:
        """Seconds so far, with those of a call that waits for its answer."""
        asked_s = self._asked_s
        return self._lost_s + (0.0 if asked_s is None else max(0.0, time.monotonic() - asked_s - PROMPT_S))
