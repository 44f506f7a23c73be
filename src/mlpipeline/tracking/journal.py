"""The journal: every record of a run, on local disk before anything else happens.

::

    Run.log_* ──► JournalWriter ── one os.write per call ──► <writer>.000001.seg   (kill -9 safe)
                                                                   │
    courier  ◄── frames, from the acknowledged offset on ── JournalReader

One writer belongs to one run and one process: all handles that a process was handed on a run share an
`AttachedJournal`. Its sequence, key-set table and write are one short
critical section; the lock is re-entrant, because a signal handler may log while its own thread is
inside, and is made anew in a forked child, which writes a journal of its own.

What the disk refuses is not kept in memory: it is counted, told once, and the count goes into the
journal as soon as it can be written again, or into that of the run above.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import secrets
import sys
import threading
import time
import weakref
import zlib
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError
from mlpipeline.tracking import durability, liveness, records
from mlpipeline.tracking.records import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlpipeline.tracking.home import Home, RunFolder

logger = logging.getLogger("mlpipeline")

SEGMENT_BYTES = 64 * 2**20
_REOPEN_EVERY_S = 5.0

_writers: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


class _Clock:
    """Keeps (timestamp, step) of the points of connected key sets strictly increasing.

    MLflow stores a point once per (key, ms timestamp, step, value): two equal values of one key at
    one step within a millisecond would become one, so the later one moves on by a millisecond.

    Attributes:
        counted: The key set that was counted on last, while none of its names was given or counted a step by
            another: then one number tells what their counters would.
    """

    __slots__ = ("counted", "key_sets", "last_step", "last_timestamp_ms")

    def __init__(self) -> None:
        self.counted: KeySet | None = None
        self.last_timestamp_ms = 0
        self.last_step = -(2**63)
        self.key_sets: list[KeySet] = []

    def take_in(self, other: _Clock) -> None:
        """Keep time for the key sets of *other*, too."""
        self.last_timestamp_ms = max(self.last_timestamp_ms, other.last_timestamp_ms)
        self.last_step = max(self.last_step, other.last_step)
        for key_set in other.key_sets:
            key_set.clock = self
        self.key_sets += other.key_sets


class KeySet:
    """An ordered list of metric names that one writer has written before.

    Attributes:
        names: The names.
        id: What stands for them in a segment.
        segment: The last segment that has a KEYS frame of them.
        is_given: Its values are given a step: none of the names was counted on since.
        counted_step: The last step of all its names, as long as it is its clock's `counted`.
    """

    __slots__ = ("clock", "counted_step", "highest_step", "id", "is_given", "names", "segment")

    def __init__(self, names: tuple[str, ...], clock: _Clock) -> None:
        self.names = names
        self.id = records.key_set_id(names)
        self.clock = clock
        clock.key_sets.append(self)
        self.highest_step = self.counted_step = -1
        self.segment = -1
        self.is_given = False

    def settle(self, step: int, timestamp_ms: int) -> int:
        """Return when values given at a step count as measured; the clock moves on."""
        if step > self.highest_step:  # noqa: PLR1730 - max() costs a call, here in the hot path
            self.highest_step = step
        clock = self.clock
        if timestamp_ms <= clock.last_timestamp_ms:
            timestamp_ms = clock.last_timestamp_ms
            if step <= clock.last_step:
                timestamp_ms += 1
        clock.last_timestamp_ms, clock.last_step = timestamp_ms, step
        return timestamp_ms


class Axes:
    """The key sets of one journal, and where on its axes of steps and time the next values go."""

    def __init__(self) -> None:
        self._key_sets: dict[tuple[str, ...], KeySet] = {}
        self._given: dict[str, set[KeySet]] = {}  # per name, those given a step since it was counted on
        self._clocks: dict[str, _Clock] = {}
        self._counters: dict[str, int] = {}

    def key_set(self, names: tuple[str, ...]) -> KeySet:
        """Return the key set of these names, made where there is none."""
        return self._key_sets.get(names) or self._new_key_set(names)

    def give(self, key_set: KeySet) -> None:
        """Take note that the values of a key set are given a step from here on."""
        self._write_counters(key_set.clock)
        for name in key_set.names:
            self._given.setdefault(name, set()).add(key_set)
        key_set.is_given = True

    def _new_key_set(self, names: tuple[str, ...]) -> KeySet:
        clocks = list(dict.fromkeys(self._clocks[name] for name in names if name in self._clocks))
        for one in clocks:
            self._write_counters(one)
        # The largest one takes the others in: a name that many key sets share costs each of them once.
        clock = max(clocks, key=lambda one: len(one.key_sets), default=None) or _Clock()
        for other in clocks:
            if other is not clock:
                clock.take_in(other)
                for key_set in other.key_sets:
                    self._clocks.update(dict.fromkeys(key_set.names, clock))
        self._clocks.update(dict.fromkeys(names, clock))
        key_set = self._key_sets[names] = KeySet(names, clock)
        return key_set

    def count_on(self, key_set: KeySet, timestamp_ms: int) -> tuple[list[int], int]:
        """Return a step for each name, the one after its last, and when the values count as measured."""
        clock = key_set.clock
        if clock.counted is key_set:
            step = key_set.counted_step = key_set.counted_step + 1
            steps = [step] * len(key_set.names)
        else:
            self._write_counters(clock)
            steps = self._next_steps(key_set.names)
            step = max(steps)
            if steps.count(step) == len(steps):
                key_set.counted_step, clock.counted = step, key_set
        # Counted steps never repeat for a key, so the timestamp need not move for them.
        timestamp_ms = max(timestamp_ms, clock.last_timestamp_ms)
        clock.last_timestamp_ms, clock.last_step = timestamp_ms, max(clock.last_step, step)
        return steps, timestamp_ms

    def _next_steps(self, names: tuple[str, ...]) -> list[int]:
        steps = []
        for name in names:
            step = self._counters.get(name, 0)
            for given in self._given.pop(name, ()):
                given.is_given = False
                step = max(step, given.highest_step + 1)
            self._counters[name] = step + 1
            steps.append(step)
        return steps

    def _write_counters(self, clock: _Clock) -> None:
        """Write into each name's counter how far the key set that was counted last has come."""
        if (last := clock.counted) is not None:
            self._counters.update(dict.fromkeys(last.names, last.counted_step + 1))
            clock.counted = None


def new_name() -> str:
    """Return a name for a journal that no other of its run will have."""
    return f"{int(time.time()):x}-{os.getpid()}-{secrets.token_hex(4)}"


def child_name(parent: str, sequence: int) -> str:
    """Return the name of the journal that a CHILD record becomes: the same however often it is read.

    Args:
        parent: Name of the journal that has it.
        sequence: Of its frame.
    """
    return f"{parent}-{sequence}"


class JournalWriter:
    """Appends one process's records of one run.

    No method raises for what the disk does: a record that cannot be written is counted in
    `dropped`.

    Args:
        home: The journal home.
        uid: Our name of the run.
        header: What the courier must know of the run; repeated at the start of every segment.
        segment_bytes: Size from which on a new segment is begun.
        is_durable: Start and synced records survive a power cut a moment after they are written.
        above: The journal of the run that this one is under. While it is open it speaks for this one, for a
            search has runs by the hundred: it tells of the disk, once, and counts what this one dropped
            and has no place to say.
    """

    def __init__(
        self,
        home: Home,
        uid: str,
        header: Mapping[str, Any],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        is_durable: bool = True,
        above: JournalWriter | None = None,
    ) -> None:
        self.home = home
        self.folder: RunFolder = home.run(uid)
        self.dropped = 0
        self._header = dict(header)
        self._segment_bytes = segment_bytes
        self._is_durable = is_durable
        self._above = above
        self._told: set[str] = set()
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        self.name = new_name()
        self._lock = threading.RLock()
        self._sequence = itertools.count()
        self._axes = Axes()
        self._descriptor = -1
        self._segment = 0
        self._size = 0
        self._untold_drops = 0
        self._reopen_at_s = 0.0
        self._is_closed = False

    # --- opening ---------------------------------------------------------------------------------

    def open(self) -> bool:
        """Make the journal now rather than at the first record.

        Returns:
            Whether it could be made. If not, the cause has been told, and later records try again.
        """
        with self._lock:
            return self._descriptor >= 0 or self._open()

    def _open(self) -> bool:
        if self._is_closed or time.monotonic() < self._reopen_at_s:
            return False
        try:
            self.home.check()
            for is_last_try in (False, False, True):
                try:
                    self.folder.create()
                    # The lock comes first: a journal whose lock is free belongs to a dead writer.
                    liveness.acquire(self.folder.lock(self.name))
                    self._open_segment()
                    break
                except FileNotFoundError:
                    # The courier put the finished run away between two of these lines, or the home is gone.
                    if is_last_try:
                        raise
                    self.home.create()
        except (OSError, ConfigError) as error:
            self._reopen_at_s = time.monotonic() + _REOPEN_EVERY_S
            self.tell(error)
            return False
        return True

    def _open_segment(self) -> None:
        number = self._segment + 1
        path = self.folder.segment(self.name, number)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags, 0o600)
        # The preamble's version has no checksum; this one has.
        about = {"writer": self.name, "host": liveness.host_id(), "pid": os.getpid()}
        header = {**self._header, **about, "format": records.FORMAT_VERSION}
        # Twice: without a header nothing of a journal can be delivered, so no one damaged place may cost it.
        twice = (next(self._sequence), next(self._sequence))
        start = records.preamble() + records.json_frames(twice, Kind.RUN, header)
        try:
            if os.write(descriptor, start) != len(start):
                raise _full()
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        before, self._descriptor = self._descriptor, descriptor
        self._segment, self._size = number, len(start)
        _close(before)
        # Of an attached journal there is nothing yet that a power cut could take.
        if self._is_durable and self._header.get("role") != "attached":
            durability.soon(path)

    # --- appending -------------------------------------------------------------------------------

    def append(self, kind: Kind, content: Mapping[str, Any], *, is_synced: bool = False) -> bool:
        """Append one JSON record.

        Args:
            kind: What it is.
            content: The record.
            is_synced: It is to survive a power cut, too, a moment later.

        Returns:
            Whether the journal has it now.
        """
        with self._lock:
            is_written = self._write(records.json_frame(next(self._sequence), kind, content), 1)
            if is_written and is_synced and self._is_durable:
                durability.soon(self.folder.segment(self.name, self._segment))
            return is_written

    def append_child(self, payload: bytes) -> str | None:
        """Append a run under this one, which is over, as one CHILD record.

        Args:
            payload: The record, as `records.json_payload` packs it.

        Returns:
            Name of the journal that the courier makes of it; None where this one cannot take it: it is
            closed, or the disk refuses, or the record is too large for a frame.
        """
        if len(payload) > records.MAX_PAYLOAD_BYTES:
            return None
        with self._lock:
            sequence = next(self._sequence)
            # Not a drop yet if it cannot be written: the child sees to itself then, see `take_over`.
            is_written = self._write(records.payload_frame(sequence, Kind.CHILD, payload), 0)
            return child_name(self.name, sequence) if is_written else None

    def append_metrics(
        self, names: tuple[str, ...], values: Sequence[float], step: int | None, timestamp_ms: int
    ) -> bool:
        """Append one value per name as one frame.

        Args:
            names: The keys, as MLflow accepts them.
            values: Their values, finite or not.
            step: Step of all of them; None counts each key on from its last step.
            timestamp_ms: When they were recorded, in ms since 1970.

        Returns:
            Whether the journal has them now.
        """
        return self.row_appender(names)(values, step, timestamp_ms)

    def row_appender(self, names: tuple[str, ...]) -> Callable[[Sequence[float], int | None, int], bool]:
        """Return `append_metrics` of these names.

        It has at hand what it needs, and looks at no name: what a training's own work pushes out of the
        processor's cache between two calls costs more than what is done with it.
        """
        with self._lock:
            axes, sequence = self._axes, self._sequence
            key_set = axes.key_set(names)
        key_set_id, settle, count = key_set.id, key_set.settle, len(names)
        layout = records.metrics_body(count)
        pack, head_of, crc32 = layout.pack, records.head_packer(layout.size), zlib.crc32
        pack_steps, framed = records.steps_body(count).pack, records.framed
        given, counted = int(Kind.METRICS), int(Kind.METRICS_STEPS)  # a Kind takes longer to pack

        def append(values: Sequence[float], step: int | None, timestamp_ms: int) -> bool:
            with self._lock:
                if self._axes is not axes:  # another journal was begun, by `reopen` or in a fork
                    return self.append_metrics(names, values, step, timestamp_ms)
                if step is None:
                    steps, timestamp_ms = axes.count_on(key_set, timestamp_ms)
                    body = pack_steps(next(sequence), counted, key_set_id, timestamp_ms, *steps, *values)
                    frame = framed(body)
                else:
                    if not key_set.is_given:
                        axes.give(key_set)
                    timestamp_ms = settle(step, timestamp_ms)
                    body = pack(next(sequence), given, key_set_id, timestamp_ms, step, *values)
                    frame = head_of(crc32(body)) + body
                if (
                    key_set.segment != self._segment
                    or self._descriptor < 0
                    or self._size + len(frame) > self._segment_bytes
                ):
                    return self._write_with_keys(key_set, frame)
                return self._put(frame, count)

        return append

    def _write_with_keys(self, key_set: KeySet, frame: bytes) -> bool:
        count = len(key_set.names)
        if not self._is_ready(len(frame)):
            return self._drop(count)
        if key_set.segment == self._segment:
            return self._put(frame, count)
        keys = records.json_frame(next(self._sequence), Kind.KEYS, {"names": key_set.names})
        if not self._write(keys + frame, count):
            return False
        # Only now: a signal handler that logged in between has written its own KEYS frame.
        key_set.segment = self._segment
        return True

    def _is_ready(self, size: int) -> bool:
        if self._descriptor < 0:
            return self._open()
        if self._size + size > self._segment_bytes:
            try:
                self._open_segment()
            except OSError as error:
                self.tell(error)
                return False
        return True

    def _write(self, frame: bytes, count: int) -> bool:
        return self._put(frame, count) if self._is_ready(len(frame)) else self._drop(count)

    def _put(self, frame: bytes, count: int) -> bool:
        """Write to the segment that is open and has room."""
        size = len(frame)
        if self._untold_drops:
            note = {"count": self._untold_drops}
            frame = records.json_frame(next(self._sequence), Kind.DROPPED, note) + frame
            size = len(frame)
        try:
            written = os.write(self._descriptor, frame)
        except OSError as error:
            self.tell(error)
            return self._drop(count)
        if written != size:
            # Back to the last whole frame, or the next one would stand behind half a frame.
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                self._size += written  # a reader takes it for damage, and finds what comes behind
            self.tell(_full())
            return self._drop(count)
        self._size += size
        self._untold_drops = 0
        return True

    def drop(self) -> None:
        """Count a record that cannot be kept, such as that of a file for which the disk has no room."""
        with self._lock:
            self._drop(1)

    def _drop(self, count: int) -> bool:
        self.dropped += count
        self._untold_drops += count
        return False

    def take_over(self, count: int) -> bool:
        """Count as this journal's what was dropped of a run under this one, which cannot say so itself.

        Args:
            count: How many records.

        Returns:
            Whether this journal can: it is not closed.
        """
        with self._lock:
            if not self._is_closed:
                self._drop(count)
            return not self._is_closed

    def tell(self, error: Exception) -> bool:
        """Say once per cause that the disk does not take what is recorded.

        Returns:
            Whether this journal speaks: it is not closed.
        """
        if self._above is not None and self._above.tell(error):
            return True
        if self._is_closed:
            return False
        # Without the file: each run has others, and the cause is the same.
        problem = f"cannot write the journal in {self.home.path}: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            is_new = problem not in self._told
            self._told.add(problem)
        if is_new:
            logger.warning("%s. Training goes on; records are dropped and counted meanwhile.", problem)
        return True

    # --- ending ----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        if self._descriptor >= 0:
            try:
                durability.sync(self._descriptor)
            except OSError as error:
                self.tell(error)

    def touch(self) -> None:
        """Show other hosts that this writer lives."""
        liveness.touch(self.folder.lock(self.name))

    def close(self) -> None:
        """End the journal; its lock is freed, and later records are dropped."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
            # In this order: whoever forks or interrupts between the two must not find a closed one here.
            descriptor, self._descriptor = self._descriptor, -1
            _close(descriptor)
            liveness.release(self.folder.lock(self.name))
            if not was_closed and self.dropped:
                self._tell_dropped()
                if not self._segment:
                    self._leave_nothing()

    def _tell_dropped(self) -> None:
        if self._above is not None and self._above.take_over(self._untold_drops):
            self._untold_drops = 0
        else:
            text = "%d records of run %s could not be written to disk"
            logger.warning(text, self.dropped, self.folder.uid)

    def _leave_nothing(self) -> None:
        """Take away the lock of a journal of which the disk took nothing: nobody would, and `status` would list it."""
        with contextlib.suppress(OSError):
            self.folder.lock(self.name).unlink(missing_ok=True)
        self.folder.remove_if_empty()

    def reopen(self, header: Mapping[str, Any]) -> None:
        """Begin another journal of the same run, after `close`; it says what that one dropped and could not say."""
        with self._lock:
            if self._is_closed:
                self._header = dict(header)
                untold = self._untold_drops
                self._begin()
                self._untold_drops = untold

    def ends(self) -> dict[str, list[int]]:
        """Return where the journal ends now, as `RunFolder.ends` does; nothing where it holds nothing."""
        with self._lock:
            return {self.name: [self._segment, self._size]} if self._segment else {}

    def has_company(self) -> bool:
        """Tell whether another process that shares the run has it open, too."""
        return bool(self._header.get("is_shared")) and any(
            liveness.is_held(self.folder.lock(writer))
            for writer in self.folder.writers()
            if writer != self.name
        )

    def _after_fork(self) -> None:
        self.dropped = 0
        if self._is_closed:
            self._lock = threading.RLock()  # a process may have thousands; `reopen` does the rest
        else:
            _close(self._descriptor)
            self._begin()
        if self._header.get("role") == "opener":
            # The child did not open the run: it may add to it but never end it.
            self._header["role"] = "attached"


class AttachedJournal(JournalWriter):
    """The journal of every handle on one run that this process was handed; made by `attached_journal`.

    It is closed when the last handle is ended, or when no handle is left and `_KEPT_OPEN` others were
    handed over since: a worker gets a handle per task, and each journal takes a lock and two files.
    """

    def __init__(self, home: Home, uid: str, header: Mapping[str, Any]) -> None:
        super().__init__(home, uid, header)
        self._holders: weakref.WeakSet[object] = weakref.WeakSet()

    def hold(self, holder: object) -> bool:
        """Take note of a handle; False when the journal has been closed meanwhile."""
        with self._lock:
            if not self._is_closed:
                self._holders.add(holder)
            return not self._is_closed

    def leave(self, holder: object) -> None:
        """Take note that a handle is ended, and close the journal if it was the last."""
        with self._lock:
            self._holders.discard(holder)
            if not self._holders:
                self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


_KEPT_OPEN = 8
_attached: weakref.WeakValueDictionary[tuple[Path, str, Any], AttachedJournal] = weakref.WeakValueDictionary()
_recent: dict[tuple[Path, str, Any], AttachedJournal] = {}
"""The attached journals used last, in that order: they stay open for the next handle."""

_attaching = threading.RLock()


def attached_journal(home: Home, uid: str, header: Mapping[str, Any], holder: object) -> AttachedJournal:
    """Return this process's journal of a run that was opened elsewhere.

    Args:
        home: The journal home.
        uid: Our name of the run.
        header: What the courier must know of the run; its attempt tells one journal from another.
        holder: The handle, whose end it is to `AttachedJournal.leave`.
    """
    key = home.path, uid, header.get("attempt")
    with _attaching:
        journal = _attached.get(key)
        if journal is None or not journal.hold(holder):
            journal = _attached[key] = AttachedJournal(home, uid, header)
            journal.hold(holder)
        _recent.pop(key, None)
        _recent[key] = journal
        while len(_recent) > _KEPT_OPEN:
            del _recent[next(iter(_recent))]
        return journal


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        # It is closed then all the same; what a network file system says so late costs no training.
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _after_fork_in_child() -> None:
    global _attaching  # noqa: PLW0603
    _attaching = threading.RLock()
    for writer in list(_writers):
        writer._after_fork()  # noqa: SLF001 - the fork hook of this very module


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
