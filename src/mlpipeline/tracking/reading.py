"""Reading journals: frames and points from an acknowledged position on, whatever the file went through.

A live writer's torn tail is waited for, a dead one's is cut; damage in the middle is skipped up to the
next valid frame, and counted.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from mlpipeline.tracking import liveness, records
from mlpipeline.tracking.home import opened
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.validity import checked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mlpipeline.tracking.home import RunFolder

_READ_BYTES = 2**20
_HEADER_BYTES = 2**20
_TAIL_BYTES = 32 * 2**10


class JournalReader:
    """Reads one writer's journal from an acknowledged position on.

    Args:
        folder: The run's folder.
        writer: The writer's name.
        segment: Number of the segment to begin with; 0 begins with the first one there is.
        offset: Offset in that segment; 0 begins behind its preamble.

    Attributes:
        header: The run's header, as soon as a frame of it was read that is one; see `checked`.
        damaged: Damaged places met so far by `read` and `points`.
    """

    def __init__(self, folder: RunFolder, writer: str, segment: int = 0, offset: int = 0) -> None:
        self.folder = folder
        self.writer = writer
        self.segment = segment
        self.offset = offset
        self.damaged = 0
        self.header: dict[str, Any] | None = None
        self._key_sets = records.KeySets()
        self._is_primed = False

    def look(self) -> bool:
        """Tell whether the run's header is known, reading it where it is not; the position stays."""
        for number in self.folder.writers().get(self.writer, ()) if self.header is None else ():
            try:
                with self._open(number) as file:
                    self._check_version(file.read(records.PREAMBLE.size), number)
                    found = records.scan(file.read(_HEADER_BYTES), 0, is_final=False).frames
                    headers = [frame for frame in found if frame.kind is Kind.RUN]
            except OSError:
                continue
            while headers and self.header is None:
                with contextlib.suppress(ValueError):  # counted when it is read
                    self._learn_one(headers.pop(0))
            if self.header is not None:
                break
        return self.header is not None

    def is_alive(self) -> bool:
        """Tell whether the writing process lives."""
        host = self.header.get("host") if self.header else None
        return liveness.is_held(self.folder.lock(self.writer), host)

    def read(self, *, is_final: bool, limit_bytes: int = _READ_BYTES) -> list[records.Frame]:
        """Return the next frames, about *limit_bytes* of them, and move on behind them.

        Args:
            is_final: The writer is dead: a torn tail is cut rather than waited for.
            limit_bytes: How much to read at a time.
        """
        numbers = self.folder.writers().get(self.writer, [])
        if not numbers:
            return []
        if self.segment not in numbers:
            later = [number for number in numbers if number > self.segment]
            if not later:
                return []
            self.segment, self.offset = later[0], 0
        while True:
            is_last = self.segment == numbers[-1]
            frames = self._read_segment(is_final=is_final or not is_last, limit_bytes=limit_bytes)
            if frames or is_last:
                return frames
            if self.offset < self._size():
                continue
            self.segment, self.offset = numbers[numbers.index(self.segment) + 1], 0

    def has_more(self) -> bool:
        """Tell whether there are bytes behind the position."""
        numbers = self.folder.writers().get(self.writer, [])
        if not numbers or self.segment > numbers[-1]:
            return False
        return self.segment < numbers[-1] or self.offset < self._size()

    def behind_bytes(self) -> int:
        """Return how many bytes stand behind the position, up to the end of the newest segment."""
        numbers = self.folder.writers().get(self.writer, [])
        sizes = [self._size(number) for number in numbers if number >= self.segment]
        return max(0, sum(sizes) - self.offset)

    def latest_points(self, window_bytes: int = _TAIL_BYTES) -> dict[str, records.Point]:
        """Return the newest point per key at the end of the journal; the position stays.

        Keys whose definition stands far from both ends are left out: this is a glance, the points
        themselves come in their turn.
        """
        numbers = self.folder.writers().get(self.writer, [])
        if not numbers:
            return {}
        latest: dict[str, records.Point] = {}
        key_sets = self._key_sets.copy()
        try:
            with self._open(numbers[-1]) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(records.PREAMBLE.size)
                tail = max(records.PREAMBLE.size, size - window_bytes)
                found = records.scan(file.read(window_bytes), 0, is_final=False).frames
                file.seek(tail)
                found += records.scan(file.read(window_bytes), 0, is_final=False).frames
        except OSError:
            return {}
        for frame in found:
            with contextlib.suppress(KeyError, ValueError, TypeError, struct.error):
                if frame.kind is Kind.KEYS:
                    key_sets.learn(frame)
                elif frame.kind in {Kind.METRICS, Kind.METRICS_STEPS}:
                    latest.update({point.key: point for point in key_sets.points(frame)})
        return latest

    def points(self, frame: records.Frame) -> list[records.Point]:
        """Return the points of a metrics frame; none, and damage counted, if its keys are lost."""
        try:
            return list(self._key_sets.points(frame))
        except (KeyError, ValueError, struct.error):
            self.damaged += 1
            return []

    def _open(self, number: int) -> BinaryIO:
        return open(opened(self.folder.segment(self.writer, number)), "rb")

    def _size(self, number: int | None = None) -> int:
        try:
            return self.folder.segment(self.writer, number or self.segment).stat().st_size
        except OSError:
            return 0

    def _read_segment(self, *, is_final: bool, limit_bytes: int) -> list[records.Frame]:
        try:
            with self._open(self.segment) as file:
                size = os.fstat(file.fileno()).st_size
                if self.offset == 0 and not self._pass_preamble(file.read(records.PREAMBLE.size), is_final):
                    return []
                if not self._is_primed:
                    self._prime(file, is_final)
                frames: list[records.Frame] = []
                limit = limit_bytes
                while not frames and self.offset < size:
                    file.seek(self.offset)
                    data = file.read(limit)
                    found = records.scan(
                        data, self.offset, is_final=is_final and self.offset + len(data) >= size
                    )
                    moved = found.end > self.offset
                    self.damaged += found.damaged
                    self.offset = found.end
                    frames = self._learn(found.frames)
                    if len(data) < limit and not moved:
                        break
                    limit = limit if moved else min(2 * limit, 2 * records.MAX_BODY_BYTES)
                    if not moved and limit == 2 * records.MAX_BODY_BYTES and len(data) >= limit:
                        # A whole frame would have fitted: all of this is damage.
                        self.offset += len(data) // 2
                        self.damaged += 1
                return frames
        except FileNotFoundError:
            return []

    def _pass_preamble(self, data: bytes, is_final: bool) -> bool:
        if len(data) < records.PREAMBLE.size:
            if is_final:
                self.offset = len(data)
            return False
        self.damaged += not self._check_version(data, self.segment)
        self.offset = records.PREAMBLE.size
        self._is_primed = True
        return True

    def _check_version(self, data: bytes, number: int) -> bool:
        if len(data) < records.PREAMBLE.size:
            return False
        magic, version, zero = records.PREAMBLE.unpack(data)
        if magic == b"MLPJ" and version > records.FORMAT_VERSION and not self._is_of_ours(number):
            raise JournalTooNewError(self.folder.segment(self.writer, number), version)
        return bool(magic == b"MLPJ" and 0 < version <= records.FORMAT_VERSION and not zero)

    def _is_of_ours(self, number: int) -> bool:
        """Tell whether a segment's header says a version that is known here: its preamble is damaged."""
        with self._open(number) as file:
            file.seek(records.PREAMBLE.size)
            found = records.scan(file.read(_HEADER_BYTES), 0, is_final=False).frames
        for frame in found:
            if frame.kind is Kind.RUN:
                with contextlib.suppress(ValueError, TypeError, OverflowError):
                    if int(frame.json().get("format", 2**31)) <= records.FORMAT_VERSION:
                        return True
        return False

    def _prime(self, file: Any, is_final: bool) -> None:
        # Starting in the middle of a segment: its header and key sets stand before the position. What is
        # damaged there was counted by whoever read it first.
        damaged = self.damaged
        self._is_primed = True
        file.seek(records.PREAMBLE.size)
        data = file.read(self.offset - records.PREAMBLE.size)
        self._learn(records.scan(data, records.PREAMBLE.size, is_final=is_final).frames)
        self.damaged = damaged

    def _learn(self, frames: Iterable[records.Frame]) -> list[records.Frame]:
        frames = list(frames)
        for frame in frames:
            try:
                self._learn_one(frame)
            except (ValueError, KeyError, TypeError):
                self.damaged += 1
        return frames

    def _learn_one(self, frame: records.Frame) -> None:
        if frame.kind is Kind.KEYS:
            self._key_sets.learn(frame)
        elif frame.kind is Kind.RUN:
            self.header = checked(Kind.RUN, frame.json())


class JournalTooNewError(Exception):
    """A segment was written by a newer version of this package.

    Args:
        path: The segment.
        version: Its format version.
    """

    def __init__(self, path: Path, version: int) -> None:
        super().__init__(
            f"{path} has journal format {version}; this mlpipeline reads up to "
            f"{records.FORMAT_VERSION}. Upgrade mlpipeline, then run: mlpipeline sync"
        )
