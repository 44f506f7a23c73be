"""A run in one file, which can be read back without MLflow.

::

    <run id>.tar.gz
      run.json                   info, params, tags, every point of every metric, inputs, outputs, models
      artifacts/<path>           the run's files
      models/<model id>/<path>   the files of its logged models
      manifest.json              size and sha256 of all above: what `read` holds the archive against

An archive appears under its name only when it is whole: written beside it, synced, read back, renamed,
and the folder synced. One that is there is never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import tarfile
import tempfile
import uuid
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FORMAT = 1

_RUN, _MANIFEST = "run.json", "manifest.json"
_PIECE_BYTES = 2**20


class ArchiveError(Exception):
    """An archive is damaged, incomplete, or not one of ours."""


@dataclass(frozen=True)
class Archive:
    """An archive that was read back and is whole.

    Attributes:
        path: The file.
        run: The content of its ``run.json``.
        files: Size in bytes of each file in it, by its name there.
    """

    path: Path
    run: dict[str, Any]
    files: dict[str, int]


def write(folder: Path, run_id: str, run: Mapping[str, Any], places: Mapping[str, Path]) -> Archive:
    """Write an archive that is on the disk, and known to be readable, when this returns.

    Args:
        folder: Where to; made if missing, for its user alone.
        run_id: Names the file.
        run: What ``run.json`` is to hold.
        places: Folders on this machine, by the folder that they become in the archive; one that is
            missing is an empty one.

    Raises:
        OSError: The folder cannot be written, or a file cannot be read.
        ArchiveError: What was read back is not what was written.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    part = folder / f".{run_id}.{uuid.uuid4().hex[:8]}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            _fill(file, run, places)
            file.flush()
            os.fsync(descriptor)
        found = read(part)
        path = _taken_name(folder, run_id)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(folder)
    return replace(found, path=path)


def archives(folder: Path, run_id: str) -> Iterator[Archive]:
    """Yield the whole archives of a run, newest first; damaged ones are passed over."""
    paths = [folder / f"{run_id}.tar.gz", *folder.glob(f"{run_id}-[0-9]*.tar.gz")]
    for path in sorted(paths, key=_number, reverse=True):
        if path.exists():
            with contextlib.suppress(ArchiveError):
                yield read(path)


def read(path: Path) -> Archive:
    """Read an archive to its end, and hold every file against the manifest.

    Raises:
        ArchiveError: It is damaged, incomplete, or no archive of a run.
        OSError: It cannot be read.
    """
    sums: dict[str, tuple[int, str]] = {}
    kept: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                if member.name in {_RUN, _MANIFEST}:
                    kept[member.name] = file.read()
                    file = io.BytesIO(kept[member.name])
                sums[member.name] = _summed(file)
            while tar.fileobj.read(_PIECE_BYTES):
                pass  # to the end of the stream, where gzip has its own sum
        manifest = json.loads(kept[_MANIFEST])
        run = json.loads(kept[_RUN])
    except (tarfile.TarError, zlib.error, EOFError, ValueError, KeyError) as error:
        raise ArchiveError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise ArchiveError(f"{path} is damaged: {error}") from error  # gzip.BadGzipFile
    del sums[_MANIFEST]
    told = {name: (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
    if told != sums or run.get("format") != FORMAT:
        raise ArchiveError(f"{path} does not hold what its manifest names")
    return Archive(path, run, {name: size for name, (size, _) in sums.items() if name != _RUN})


def plain(value: float) -> float | str:
    """Return a number as strict JSON can hold it: NaN and the infinities by name."""
    return value if math.isfinite(value) else str(value)


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder, with their names relative to it; none where it is missing."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where) / name
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Give a folder for files on their way into an archive, on the same disk."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    place = tempfile.mkdtemp(dir=folder, prefix=".fetched-")
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fill(file: IO[bytes], run: Mapping[str, Any], places: Mapping[str, Path]) -> None:
    sums: dict[str, tuple[int, str]] = {}
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as tar:

        def add(name: str, source: IO[bytes], size: int, modified_s: float = 0) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = size, int(modified_s), 0o600
            summing = _Summing(source)
            tar.addfile(member, summing)
            sums[name] = size, summing.digest.hexdigest()

        text = json.dumps({**run, "format": FORMAT}, allow_nan=False).encode()
        add(_RUN, io.BytesIO(text), len(text))
        for place, folder in places.items():
            for name, path in walk(folder):
                with open(path, "rb") as source:
                    about = os.fstat(source.fileno())
                    add(f"{place}/{name}", source, about.st_size, about.st_mtime)
        manifest = json.dumps({"files": sums}).encode()
        add(_MANIFEST, io.BytesIO(manifest), len(manifest))


class _Summing:
    """A file that sums what is read from it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size)
        self.digest.update(piece)
        return piece


def _summed(file: IO[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _taken_name(folder: Path, run_id: str) -> Path:
    """Take a name that nothing has yet; what a crash leaves under it is empty, and no archive."""
    for number in itertools.count(1):
        path = folder / (f"{run_id}.tar.gz" if number == 1 else f"{run_id}-{number}.tar.gz")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            return path
    raise AssertionError


def _number(path: Path) -> int:
    _, _, number = path.name.removesuffix(".tar.gz").rpartition("-")
    return int(number) if number.isdigit() and len(number) < 6 else 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
