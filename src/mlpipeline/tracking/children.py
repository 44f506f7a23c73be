"""Runs that are over when they are recorded: one record in their parent's journal, until the courier comes.

::

    Run.log_* ──► ChildJournal (memory) ── end: one write ──► CHILD frame in the parent's journal
                                                                   │  courier: `segment_of`, `keep`
                                                                   ▼
                                        runs/<uid>/<parent's journal>-<sequence>.000001.seg

A search has runs by the hundred, and a journal for each costs a folder, a lock and a file: several
times what recording it costs. The courier gives a child the journal that it would have had, complete
and without a living writer, and delivers it like every other. The name is derived from where the
record stands, so that a record read again after a crash finds its journal there, or the run done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError
from mlpipeline.tracking import records
from mlpipeline.tracking.home import RunState, is_plain, opened
from mlpipeline.tracking.journal import Axes, child_name, new_name
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.records import Kind, Point
from mlpipeline.tracking.validity import checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.journal import JournalWriter
    from mlpipeline.tracking.records import Frame

logger = logging.getLogger("mlpipeline")

_METRICS = (Kind.METRICS, Kind.METRICS_STEPS)

_journals: weakref.WeakSet[ChildJournal] = weakref.WeakSet()


class ChildJournal:
    """Collects what a run recorded that is over, and appends it to its parent's journal when it is closed.

    Nothing is on the disk before that. What the parent's journal cannot take becomes a journal of its
    own; what the disk refuses is counted in `dropped`, and as the parent's: nothing is left of the
    child that could say so.

    Args:
        home: The journal home.
        uid: Our name of the run.
        header: What the courier must know of it.
        append: Appends a CHILD record to the parent's journal, see `JournalWriter.append_child`.
        above: The parent's journal; None if it has none.
    """

    def __init__(
        self,
        home: Home,
        uid: str,
        header: Mapping[str, Any],
        *,
        append: Callable[[bytes], str | None],
        above: JournalWriter | None,
    ) -> None:
        self.dropped = 0
        self._home = home
        self._uid = uid
        self._header = dict(header)
        self._append = append
        self._above = above
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._axes = Axes()
        self._records: list[tuple[int, Mapping[str, Any]]] = []
        self._count = 0
        self._name: str | None = None
        self._is_closed = False
        _journals.add(self)

    def open(self) -> bool:
        """Do nothing: memory is always ready."""
        return True

    def append(self, kind: Kind, content: Mapping[str, Any], *, is_synced: bool = False) -> bool:  # noqa: ARG002 - a `Journal`
        """Keep one record."""
        with self._lock:
            if not self._is_closed:
                self._records.append((int(kind), content))
            return not self._is_closed

    def append_metrics(
        self, names: tuple[str, ...], values: Sequence[float], step: int | None, timestamp_ms: int
    ) -> bool:
        """Keep one value per name; see `JournalWriter.append_metrics`."""
        with self._lock:
            if step is None:
                steps, timestamp_ms = self._axes.count_on(self._axes.key_set(names), timestamp_ms)
            else:
                key_set = self._axes.key_set(names)
                if not key_set.is_given:
                    self._axes.give(key_set)
                timestamp_ms = key_set.settle(step, timestamp_ms)
                steps = [step] * len(names)
            points = [
                (name, value, timestamp_ms, at) for name, value, at in zip(names, values, steps, strict=True)
            ]
            kind = Kind.METRICS_STEPS if step is None else Kind.METRICS
            return self.append(kind, {"points": points})

    def drop(self) -> None:
        """Count a record that cannot be kept; see `JournalWriter.drop`."""
        with self._lock:
            self.dropped += 1

    def close(self) -> None:
        """Hand the records on; later ones are dropped."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._pid != os.getpid():
                return  # a forked copy: the run is the other process's
            if self.dropped:
                self._records.append((int(Kind.DROPPED), {"count": self.dropped}))
            now_ms = time.time_ns() // 1_000_000
            content = {"uid": self._uid, "header": self._header, "records": self._records, "ms": now_ms}
            self._name = self._append(records.json_payload(content))
            if self._name is None:
                self._become_journal(content)
            self._count, self._records = count_of(content), []

    def _become_journal(self, content: Mapping[str, Any]) -> None:
        segment = segment_of(content, new_name())
        self.dropped += segment.damaged
        try:
            self._home.check()
            keep(self._home, segment)
        except (OSError, ConfigError) as error:
            self.dropped += count_of(content)
            if self._above is not None and self._above.take_over(self.dropped):
                self._above.tell(error)
            else:
                problem = "cannot write the journal of run %s: %s; %d records are lost"
                logger.warning(problem, self._uid, error, self.dropped)

    def waiting(self) -> int:
        """Return how many of its records the parent's journal still holds for it."""
        if self._name is None or is_kept(self._home, self._uid, self._name):
            return 0
        return self._count


@dataclass(frozen=True)
class Segment:
    """The journal of a child, as it is to be.

    Attributes:
        uid: Our name of the run.
        name: The journal's name.
        data: The one segment that it has.
        damaged: How many of the child's records could not be read.
    """

    uid: str
    name: str
    data: bytes
    damaged: int = 0


def segment_of(content: Mapping[str, Any], name: str, writer: Mapping[str, Any] | None = None) -> Segment:
    """Return the journal that a CHILD record is to become.

    Args:
        content: The record.
        name: The journal's name.
        writer: Header of the journal that has the record: whose process wrote it.

    Raises:
        ValueError: The record cannot be read, or names no run, or no place for it.
        RecursionError: The same.
    """
    checked(Kind.CHILD, content)
    checked(Kind.RUN, content["header"])
    uid, header = content["uid"], content["header"]
    if not is_plain(name):
        raise ValueError(f"run {uid} cannot have a journal named {name!r}")
    of = {key: writer[key] for key in ("host", "pid") if key in writer} if writer else {}
    header = {**header, **of, "writer": name}
    # Twice, as in every segment.
    parts, sequence, damaged = [records.preamble(), records.json_frames((0, 1), Kind.RUN, header)], 2, 0
    known: set[tuple[str, ...]] = set()
    for record in content["records"]:
        try:
            frames = _frames(sequence, known, *record)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, struct.error):
            damaged += 1
        else:
            parts += frames
            sequence += len(frames)
    return Segment(uid, name, b"".join(parts), damaged)


def _frames(sequence: int, known: set[tuple[str, ...]], kind: int, content: Mapping[str, Any]) -> list[bytes]:
    """Return the frames that one record becomes; key sets that are not *known* come first."""
    kind = Kind(kind)
    if kind not in _METRICS:
        return [records.payload_frame(sequence, kind, records.json_payload(content))]
    points = [Point(*point) for point in content["points"]]
    names, values = tuple(point.key for point in points), [point.value for point in points]
    steps, (at_ms,) = [point.step for point in points], {point.timestamp_ms for point in points}
    frames = []
    if names not in known:
        frames.append(records.json_frame(sequence, Kind.KEYS, {"names": names}))
    place = sequence + len(frames), kind, records.key_set_id(names), at_ms
    if kind is Kind.METRICS:
        (step,) = set(steps)
        frames.append(records.framed(records.metrics_body(len(names)).pack(*place, step, *values)))
    else:
        frames.append(records.framed(records.steps_body(len(names)).pack(*place, *steps, *values)))
    known.add(names)
    return frames


def count_of(content: Mapping[str, Any]) -> int:
    """Return how many records a CHILD record holds; a point of a metric counts as one, damage as none."""
    count = 0
    for record in content["records"]:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            kind, of = record
            count += len(of["points"]) if kind in _METRICS else kind != Kind.DROPPED
    return count


def is_kept(home: Home, uid: str, name: str) -> bool:
    """Tell whether a child has the journal of that name, or had it before it was put away."""
    # In this order: the done-record comes before the journal goes.
    if home.run(uid).segment(name, 1).exists():
        return True
    done = home.done_state(uid)
    return done is not None and name in done.offsets


def keep(home: Home, segment: Segment) -> None:
    """Write a child's journal, unless it is there or was; it is safe on disk then, and complete or absent.

    Raises:
        OSError: The disk refuses; nothing is left behind.
    """
    if is_kept(home, segment.uid, segment.name):
        return
    folder = home.run(segment.uid)
    path = folder.segment(segment.name, 1)
    # No journal by this ending, and put away with the one that it becomes.
    part = path.with_name(f"{segment.name}.{os.getpid()}.part")
    for is_last_try in (False, True):
        folder.create()
        try:
            _write(part, segment.data)
            os.rename(part, path)
        except FileNotFoundError:
            # An earlier life of the run was put away, with its folder, between two of these lines.
            if is_last_try:
                raise
        except OSError:
            part.unlink(missing_ok=True)
            folder.remove_if_empty()
            raise
        else:
            return


def _write(path: Path, data: bytes) -> None:
    with open(opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def wait_in(home: Home, reader: JournalReader, frame: Frame) -> tuple[str, int] | None:
    """Return which child a CHILD record still holds, and how many of its records; None where it has its journal."""
    try:
        content = frame.json()
        uid, count = checked(Kind.CHILD, content)["uid"], count_of(content)
        return None if is_kept(home, uid, child_name(reader.writer, frame.sequence)) else (uid, count)
    except ValueError:
        return None  # damage, which the courier counts


def bring_out(home: Home, parent: str, uid: str) -> bool:
    """Write the journal of a child that waits in its parent's, ahead of the courier, to add to it.

    Returns:
        Whether it waited there.
    """
    folder = home.run(parent)
    state = home.state(parent) or RunState()
    is_found = False
    for writer in folder.writers():
        reader = JournalReader(folder, writer, *state.offsets.get(writer, (0, 0)))
        with contextlib.suppress(JournalTooNewError):
            while frames := reader.read(is_final=False):
                for frame in frames:
                    # The uid comes first: not every child's whole record is to be parsed.
                    if frame.kind is Kind.CHILD and uid.encode() in frame.payload[: len(uid) + 20]:
                        is_found = True
                        _bring_out(home, reader, frame)
    return is_found


def _bring_out(home: Home, reader: JournalReader, frame: Frame) -> None:
    try:
        keep(home, segment_of(frame.json(), child_name(reader.writer, frame.sequence), reader.header))
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("cannot write the journal of a run that waits in %s: %s", reader.folder.path, error)


def _after_fork_in_child() -> None:
    for journal in list(_journals):
        # Another thread of the parent may have been inside.
        journal._lock = threading.RLock()  # noqa: SLF001 - the fork hook of this very module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
