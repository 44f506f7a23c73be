"""One run, from its journals to its destination, exactly once.

::

    journals ─ read ─► parcel ─ params ─ tags ─ points ─ datasets ─► sink ─► acknowledge: state.json
                          ├── artifacts, models, versions, evaluations, the end ► state.json, then sent
                          └── children that are over ─► journals of their own, see `children`

A parcel is what one reading of the journals gave. It is kept until all of it is sent, and only
then are the journals' positions acknowledged; what is read twice after a crash is stored once,
because every record was frozen when it was recorded (value, step, millisecond) and every create
looks up its uid first. Files travel apart from metrics: they are taken over into the state, and
sent by `upload` while `deliver` goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mlpipeline.tracking import children
from mlpipeline.tracking.creation import Creation, NotYet
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home, RunFolder, RunState, append_line
from mlpipeline.tracking.journal import child_name
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.records import Frame, Kind, Point
from mlpipeline.tracking.sieve import Sieve
from mlpipeline.tracking.sink import (
    ATTEMPT_TAG,
    METRICS_PER_REQUEST,
    PARAMS_PER_REQUEST,
    TAGS_PER_REQUEST,
    MlflowSink,
    chunks,
)
from mlpipeline.tracking.uploads import Uploads, remove
from mlpipeline.tracking.validity import checked
from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger("mlpipeline")

READ_BYTES = 256 * 2**10
_FAR_BYTES = 64 * 2**10

_UPLOADS_AWAITED = 5
"""So many failures in a row of an upload, and the run ends without it: a finished training must not
look RUNNING because an artifact store is down. The upload goes on being tried."""

_PARENT_AWAITED_S = 60.0
"""How long a child waits for its parent's run; then it is made with the tag mlpipeline.parent_uid."""

_LAST_STEP = 2**63 - 1

_LARGE_RUN = 20_000
"""A run of so many records or steps: sending what a server has costs it more than being asked; see
`MlflowSink.log_points`."""

_AHEAD_AT_MOST = 20_000
"""So many points stored ahead of their turn are remembered, in 7 MB; then none goes ahead."""


@dataclass
class _Parcel:
    """What one reading of a run's journals gave, less what was sent since."""

    attempt: int = 0
    is_resumed: bool = False
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    drift: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[int, str]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    counted: list[Point] = field(default_factory=list)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    uploads: list[dict[str, Any]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    children: list[children.Segment] = field(default_factory=list)
    dropped: int = 0
    damaged: int = 0
    last_ms: int = 0
    count: int = 0
    refused: int = 0


class RunDelivery:
    """Delivers one run's journals; one thread delivers, another may upload.

    Args:
        home: The journal home.
        folder: The run's folder in it.

    Attributes:
        folder: The run's folder.
        state: What is known of the run; saved whenever it changes.
        creation: Makes what MLflow gives an id to.
        is_gone: The run cannot be written any more; what comes goes to the dead letters.
        upload_failures: How often in a row an upload failed.
        is_finished: Everything was delivered and nobody is left who could add to it, as `deliver` saw.
    """

    def __init__(self, home: Home, folder: RunFolder) -> None:
        self.folder = folder
        self.state = RunState.load(folder.state_file) or _continued(home.done_state(folder.uid)) or RunState()
        self.state.uploads = [item for item in self.state.uploads if _is_upload(item)]
        self._home = home
        self._readers: dict[str, JournalReader] = {}
        self._parcel: _Parcel | None = None
        self._changing = threading.RLock()
        self.creation = Creation(folder.uid, self.state, self.keeping)
        self._sieve = Sieve(self.state)
        self._uploads = Uploads(home, self)
        self._delivering = threading.Lock()
        self._is_away = False
        self._is_read = False
        self._seen_s = time.monotonic()
        self._ahead: set[tuple[Any, ...]] = set()
        # Whoever delivered before may have been killed before it wrote down what it had sent: a parcel in
        # its turn, and what went ahead.
        self._is_in_doubt = True
        self._doubtful_ends = folder.ends() if self.state.is_ahead else {}
        self.is_gone = False
        self.upload_failures = 0
        self.is_finished = False

    # --- what the worker asks --------------------------------------------------------------------

    def look(self) -> bool:
        """Look for journals.

        Returns:
            Whether the run can be delivered: somebody's header of it is readable.

        Raises:
            Unavailable: A journal was written by a newer version of this package, or cannot be read now.
        """
        for writer in self.folder.writers():
            if writer not in self._readers:
                reader = JournalReader(self.folder, writer, *self.state.offsets.get(writer, (0, 0)))
                try:
                    reader.look()
                except JournalTooNewError as error:
                    raise Unavailable(str(error)) from None
                if reader.header is not None:
                    # A new dict: another thread may be going through the old one.
                    self._readers = {**self._readers, writer: reader}
        return self.header() is not None

    def destination(self) -> Destination:
        """Return where the run goes, as its first opener wrote it down."""
        where = (self.header() or {})["destination"]
        return Destination(where["tracking_uri"], where["registry_uri"], where.get("user", ""))

    def has_news(self) -> bool:
        """Tell whether `deliver` has anything to do."""
        is_ending = self._pending_end() is not None and not self._uploads.holds_models()
        if self._parcel is not None or is_ending or self.creation.has_doubt():
            return True
        return any(reader.has_more() for reader in self._readers.values())

    @property
    def is_idle(self) -> bool:
        """Whether everything that can be was delivered, as `deliver` saw; a live writer may add to it."""
        return self._is_read and (not self.state.uploads or self._uploads.holds_models())

    def has_sent(self, ends: Mapping[str, list[int]]) -> bool:
        """Tell whether the journals were delivered up to where they ended once, see `RunFolder.ends`."""
        return self.state.covers(ends) and (not self.state.uploads or self._uploads.holds_models())

    def is_live(self) -> bool:
        """Tell whether a process that writes to this run lives; any thread may ask."""
        return any(reader.is_alive() for reader in self._readers.values())

    # --- delivering ------------------------------------------------------------------------------

    def deliver_latest(self, sink: MlflowSink) -> None:
        """Send the newest point of each metric ahead of its turn, where the journals are far ahead.

        A courier that keeps to its share falls behind a fast training; the live view is current all
        the same. When its turn comes, the point is left out.
        """
        if self.state.run_id is None or self.is_gone or self.state.floor or len(self._ahead) > _AHEAD_AT_MOST:
            return
        for reader in self._readers.values():
            if reader.behind_bytes() > _FAR_BYTES:
                latest = reader.latest_points().values()
                new = [point for point in latest if point.identity not in self._ahead]
                if not self.state.is_ahead:
                    with self.keeping():
                        self.state.is_ahead = True
                try:
                    for piece in chunks(new, METRICS_PER_REQUEST):
                        sink.log_points(str(self.state.run_id), piece)
                        self._ahead.update(point.identity for point in piece)
                except Refused:
                    return
                except Unavailable as error:
                    if error.is_unclear:
                        self._doubtful_ends = self.folder.ends()
                    if not error.is_failure:
                        raise
                    return  # one that a server fails with is found when its turn comes

    def deliver(self, sink: MlflowSink, limit_bytes: int = READ_BYTES) -> int:
        """Look for journals and send the next parcel.

        Args:
            sink: Where to.
            limit_bytes: How much of each journal makes a parcel.

        Returns:
            How many records were delivered, and runs given a journal to be delivered from.

        Raises:
            Unavailable: The destination cannot take it now; the same parcel is sent next time.
            NotYet: Another run has to be made first.
        """
        with self._delivering:
            return 0 if self._is_away else self._deliver(sink, limit_bytes)

    def _deliver(self, sink: MlflowSink, limit_bytes: int) -> int:
        self.look()
        if not self.has_news():
            self.is_finished = self._is_done()
            self._is_read = True
            return 0
        self.is_finished = self._is_read = False
        if self._parcel is None:
            self._parcel = self._read(limit_bytes)
        parcel = self._parcel
        passed_on = self._pass_on(parcel)
        if not self.is_gone:
            try:
                self._ensure_run(sink, parcel.attempt)
            except Refused as refused:
                self._give_up(str(refused))
        if self.is_gone:
            self._bury_all(parcel)
        else:
            self._send(sink, parcel)
        # One call of log_params is one record, and each of its params that is refused a letter.
        count = 0 if self.is_gone else max(0, parcel.count - parcel.refused)
        with self._changing:
            state = self.state
            state.offsets.update({writer: list(position) for writer, position in parcel.positions.items()})
            state.uploads.extend(parcel.uploads)
            for end in parcel.ends:
                rank = "ms" if self._is_shared() else "attempt"
                if state.end is None or end[rank] >= state.end[rank]:
                    state.end = end
                    state.is_ended = state.is_ended or self.is_gone
            state.delivered += count
            state.dropped += parcel.dropped
            state.damaged += parcel.damaged
            state.last_ms = max(state.last_ms, parcel.last_ms)
            state.is_ahead = bool(self._ahead) or not state.covers(self._doubtful_ends)
            self._parcel = None
            if count or parcel.positions:
                self._save()
            self._is_in_doubt = False
        self._remove_acknowledged()
        self._end(sink)
        if self.creation.has_doubt():
            self.creation.settle(sink)
        return count + passed_on

    def _pass_on(self, parcel: _Parcel) -> int:
        """Give the children their journals, before this one is acknowledged; return how many."""
        count = len(parcel.children)
        try:
            while parcel.children:
                children.keep(self._home, parcel.children[0])
                del parcel.children[0]
        except OSError as error:
            raise Unavailable(f"cannot write a journal in {self._home.path}: {error}") from error
        return count

    def _read(self, limit_bytes: int) -> _Parcel:
        parcel, trouble = _Parcel(), None
        # One attempt at a time, the earlier ones first: what they recorded first stands. Those who share
        # a run are at it at the same time, and none of them waits for another.
        by_attempt: dict[int, list[JournalReader]] = {}
        for reader in self._readers.values():
            by_attempt.setdefault(0 if self._is_shared() else _attempt(reader), []).append(reader)
        for attempt in sorted(by_attempt):
            for reader in by_attempt[attempt]:
                try:
                    self._read_one(parcel, reader, limit_bytes)
                except (JournalTooNewError, OSError) as error:
                    trouble = error
            if trouble is not None and not parcel.positions:
                raise Unavailable(f"cannot read a journal: {trouble}") from trouble
            if parcel.positions:
                parcel.attempt = max(_attempt(reader) for reader in by_attempt[attempt])
                parcel.is_resumed = any(
                    (reader.header or {}).get("is_resumed") for reader in by_attempt[attempt]
                )
                break
        return parcel

    def _read_one(self, parcel: _Parcel, reader: JournalReader, limit_bytes: int) -> None:
        # Asked before reading: whoever is dead by now has written all it ever will.
        is_alive = reader.is_alive()
        before, damaged_before = (reader.segment, reader.offset), reader.damaged
        for frame in reader.read(is_final=not is_alive, limit_bytes=limit_bytes):
            try:
                self._take(parcel, reader, frame)
            except (ValueError, RecursionError):
                reader.damaged += 1
        parcel.damaged += reader.damaged - damaged_before
        if (reader.segment, reader.offset) != before:
            parcel.positions[reader.writer] = (reader.segment, reader.offset)

    def _take(self, parcel: _Parcel, reader: JournalReader, frame: Frame) -> None:
        if frame.kind in (Kind.METRICS, Kind.METRICS_STEPS):
            points = reader.points(frame)
            (parcel.points if frame.kind is Kind.METRICS else parcel.counted).extend(points)
            parcel.count += len(points)
            parcel.last_ms = max(parcel.last_ms, *(point.timestamp_ms for point in points), 0)
            return
        if frame.kind is Kind.KEYS:
            return
        if frame.kind is Kind.RUN:
            return  # the reader's
        content = checked(frame.kind, frame.json())
        at_ms = content.get("ms", 0)
        parcel.last_ms = max(parcel.last_ms, at_ms)
        if frame.kind is Kind.CHILD:
            child = children.segment_of(content, child_name(reader.writer, frame.sequence), reader.header)
            parcel.children.append(child)
            reader.damaged += child.damaged
            return
        if frame.kind is Kind.DROPPED:
            parcel.dropped += content["count"]
            return
        is_upload = frame.kind in (Kind.ARTIFACT, Kind.MODEL, Kind.VERSION, Kind.EVALUATION)
        parcel.count += not is_upload  # that counts when it was
        if frame.kind is Kind.PARAMS:
            for key, value in content["params"].items():
                first = self.state.params.get(key)
                if first is None and _hash(parcel.params.setdefault(key, value)) == _hash(value):
                    continue
                if first != _hash(value):
                    parcel.drift[key] = value
        elif frame.kind is Kind.TAGS:
            for key, value in content["tags"].items():
                newest = max(self.state.tag_times_ms.get(key, 0), parcel.tags.get(key, (0, ""))[0])
                if at_ms >= newest:
                    parcel.tags[key] = (at_ms, value)
        elif frame.kind is Kind.DATASET:
            parcel.datasets.append(content)
        elif is_upload:
            parcel.uploads.append({**content, "kind": frame.kind.name})
        elif frame.kind is Kind.END and reader.header and reader.header.get("role") == "opener":
            attempt = _attempt(reader)
            parcel.ends.append({"end_ms": at_ms, **content, "attempt": attempt, "ms": at_ms})

    def _send(self, sink: MlflowSink, parcel: _Parcel) -> None:
        run_id = str(self.state.run_id)
        self._place(parcel)
        self._send_params(sink, run_id, parcel)
        self._send_tags(sink, run_id, parcel)
        self._send_points(sink, run_id, parcel)
        while parcel.datasets:
            try:
                sink.log_dataset(run_id, parcel.datasets[0])
            except Refused as error:
                self.bury("dataset", parcel.datasets[0], str(error))
            del parcel.datasets[0]

    def _send_params(self, sink: MlflowSink, run_id: str, parcel: _Parcel) -> None:
        for piece in chunks(list(parcel.params.items()), PARAMS_PER_REQUEST):
            refused = self._sieve.send(sink, piece, lambda items: sink.log_params(run_id, dict(items)))
            for key, value in piece:
                if key in refused and "chang" in refused[key].lower():
                    parcel.drift[key] = value
                elif key in refused:
                    self.bury("param", {key: value}, refused[key])
                del parcel.params[key]
                self.state.params[key] = _hash(value)
        for key, value in parcel.drift.items():
            parcel.tags[f"mlpipeline.drift.{key}"[:250]] = (parcel.last_ms, value)
        parcel.drift = {}

    def _send_tags(self, sink: MlflowSink, run_id: str, parcel: _Parcel) -> None:
        for piece in chunks(list(parcel.tags.items()), TAGS_PER_REQUEST):
            refused = self._sieve.send(
                sink, piece, lambda items: sink.set_tags(run_id, {key: value for key, (_, value) in items})
            )
            for key, (at_ms, value) in piece:
                if key in refused:
                    self.bury("tag", {key: value}, refused[key])
                del parcel.tags[key]
                self.state.tag_times_ms[key] = at_ms

    def _send_points(self, sink: MlflowSink, run_id: str, parcel: _Parcel) -> None:
        last_steps = self.state.last_steps
        are_in_doubt = self.state.delivered + sum(self.state.floor.values()) >= _LARGE_RUN and (
            self._is_in_doubt or not self.state.covers(self._doubtful_ends)
        )

        def send(items: Sequence[tuple[int, Point]]) -> None:
            points = [point for _, point in items]
            sink.log_points(run_id, points, are_in_doubt=are_in_doubt)

        while parcel.points:
            piece = list(enumerate(parcel.points[:METRICS_PER_REQUEST]))
            new = [item for item in piece if item[1].identity not in self._ahead] if self._ahead else piece
            try:
                refused = self._sieve.send(sink, new, send) if new else {}
            except Unavailable as error:
                self._is_in_doubt |= error.is_unclear
                raise
            if self._ahead:
                self._ahead.difference_update([point.identity for _, point in piece])
            for index, point in piece:
                if index in refused:
                    self.bury("metric", _content(point), refused[index])
                    continue
                self._sieve.stored = point
                if point.step > last_steps.get(point.key, -1):
                    last_steps[point.key] = point.step
            del parcel.points[: len(piece)]

    def _place(self, parcel: _Parcel) -> None:
        """Set the points of a continued run against what the run held before."""
        floor = self.state.floor
        if parcel.counted:
            # Counted steps start at 0 in every process; they go on from where the run stood.
            parcel.points.extend(
                point._replace(step=min(point.step + floor[point.key] + 1, _LAST_STEP))
                if point.key in floor
                else point
                for point in parcel.counted
            )
            parcel.counted = []
        if parcel.is_resumed and floor:
            new = [point for point in parcel.points if point.step > floor.get(point.key, -(2**63))]
            if len(new) < len(parcel.points):
                self.state.overlap += len(parcel.points) - len(new)
                again = max(floor.values())
                text = f"{self.state.overlap} points up to step {again} were recorded before; the first values stand"
                parcel.tags["mlpipeline.overlap"] = (parcel.last_ms, text)
                parcel.points = new

    # --- the run ---------------------------------------------------------------------------------

    def _ensure_run(self, sink: MlflowSink, attempt: int) -> None:
        header = self.header(up_to=attempt)
        if header is None:
            raise Unavailable("the run's header has not been written yet")
        attempt = header.get("attempt", 0)
        state = self.state
        if state.run_id is not None and attempt <= state.attempt:
            return
        was_there = state.run_id is not None
        if state.run_id is None:
            tags = {**header.get("source", {}), **header.get("tags", {}), **self._parent_tags(header)}
            run = self.creation.run(sink, header, tags)
            was_there = run.data.tags.get(ATTEMPT_TAG) != str(attempt)
            with self.keeping():  # before its first use: after a crash the same id is found here
                state.run_id, state.run_name = run.info.run_id, run.info.run_name
                state.experiment_id, state.artifact_uri = run.info.experiment_id, run.info.artifact_uri
                state.params = {key: _hash(value) for key, value in run.data.params.items()}
                state.last_steps = sink.last_steps(run)
        is_opener = header.get("role") == "opener"
        if is_opener and (was_there or header.get("is_resumed")):
            # The run was there before this attempt: it runs again.
            sink.set_tags(str(state.run_id), {ATTEMPT_TAG: str(attempt)})
            sink.set_status(str(state.run_id), "RUNNING")
        with self.keeping():
            state.attempt = attempt
            state.floor = dict(state.last_steps)
            state.is_ended = False
            if state.end is not None and state.end["attempt"] < attempt:
                state.end = None

    def _parent_tags(self, header: dict[str, Any]) -> dict[str, str]:
        parent = header.get("parent")
        if not parent:
            return {}
        if parent.get("run_id"):
            return {"mlflow.parentRunId": parent["run_id"]}
        state = self._home.state(parent["uid"])
        if state is not None and state.run_id is not None:
            return {"mlflow.parentRunId": state.run_id}
        is_coming = self._home.run(parent["uid"]).path.exists()
        if is_coming and time.monotonic() - self._seen_s < _PARENT_AWAITED_S:
            raise NotYet
        return {"mlpipeline.parent_uid": parent["uid"]}

    def _pending_end(self) -> dict[str, Any] | None:
        """Return how the run is to be ended now; None while it goes on, or when that is done."""
        state = self.state
        if state.is_ended or state.run_id is None or self.is_gone:
            return None
        openers = [
            reader for reader in self._readers.values() if (reader.header or {}).get("role") == "opener"
        ]
        if not openers:
            return None
        newest = max(openers, key=_attempt)
        attempt = _attempt(newest)
        if self._is_shared():
            # The last one to leave speaks for all, if that was after the newest came.
            if any(reader.is_alive() or reader.has_more() for reader in openers):
                return None
            if state.end is not None and state.end["ms"] >= attempt:
                return {**state.end, "attempt": attempt}
        elif state.end is not None and state.end["attempt"] >= attempt:
            return state.end
        elif newest.is_alive() or newest.has_more():
            return None
        # Its lock is free and its journal has no end: the process was killed.
        end_ms = state.last_ms or int((newest.header or {}).get("start_ms", 0))
        return {"attempt": attempt, "status": "KILLED", "end_ms": end_ms}

    def _end(self, sink: MlflowSink) -> None:
        end = self._pending_end()
        if end is None or self._parcel is not None:
            return
        if self.state.uploads and self.upload_failures < _UPLOADS_AWAITED:
            return
        if any(reader.has_more() for reader in self._readers.values()):
            return
        run_id = str(self.state.run_id)
        try:
            run = sink.get_run(run_id)
            newest = int(run.data.tags.get(ATTEMPT_TAG, 0) or 0)
            if newest <= int(end["attempt"]):
                missing = {"dropped": self.state.dropped, "damaged": self.state.damaged}
                if told := {f"mlpipeline.{name}": str(count) for name, count in missing.items() if count}:
                    sink.set_tags(run_id, told)
                sink.set_status(run_id, end["status"], int(end["end_ms"]) or None)
        except Refused as refused:
            self._give_up(str(refused))
        self.creation.settle(sink)
        with self.keeping():
            self.state.is_ended = True

    def coming_end(self) -> dict[str, Any] | None:
        """Return the end that is recorded or due; None while the run goes on. Any thread may ask."""
        with self._changing:
            due = self._pending_end()
            # In this order: who has read the END of a dead writer, and not kept it yet, has moved on by now.
            is_read_ahead = any(
                [reader.segment, reader.offset] != list(self.state.offsets.get(name, (0, 0)))
                for name, reader in self._readers.items()
            )
            return self.state.end or (None if is_read_ahead else due)

    def upload(self, sink: MlflowSink) -> bool:
        """Send an artifact, model, version or evaluation that waits; see `Uploads.send_next`."""
        return self._uploads.send_next(sink)

    # --- bookkeeping -----------------------------------------------------------------------------

    def _is_done(self) -> bool:
        # Dead first: whoever is dead by now has written all it ever will.
        if not self._readers or self.is_live() or self.state.uploads or self.state.doubts or self.has_news():
            return False
        return all(
            self.state.offsets.get(writer, [0, 0]) >= [reader.segment, reader.offset]
            for writer, reader in self._readers.items()
        )

    def finish(self) -> bool:
        """Put a finished run away: its last state is kept, its journals and spool are deleted.

        A training may take up the run again at this very moment. So nothing is deleted while `deliver`
        takes in a journal, nor anything but what is known, and the folder goes by ``rmdir``, which the
        kernel refuses when something new is in it.

        Returns:
            Whether it is away; if not, it goes on.
        """
        if not self._delivering.acquire(blocking=False):
            return False
        try:
            spooled = _listed(self.folder.spool)
            self.is_finished = self._is_done() and not set(self.folder.writers()) - set(self._readers)
            if self.is_finished:
                self.is_finished = self._is_away = self._put_away(spooled)
            return self.is_finished
        finally:
            self._delivering.release()

    def _put_away(self, spooled: list[str]) -> bool:
        with self._changing:
            path = self._home.done_file(self.folder.uid)
            try:
                self.state.save(path)
            except OSError as error:
                with contextlib.suppress(Unavailable):
                    self.set_problem(f"cannot write {path}: {error}")
                return False
            with contextlib.suppress(OSError):  # what cannot go, stays: its journals are delivered
                for name in spooled:
                    remove(self.folder.spool / name)
                for name in _listed(self.folder.path):
                    if name.split(".")[0] in self._readers or "state.json" in name:
                        remove(self.folder.path / name)
                with contextlib.suppress(FileNotFoundError):  # no file was ever spooled
                    self.folder.spool.unlink() if self.folder.spool.is_symlink() else self.folder.spool.rmdir()
                self.folder.path.rmdir()
            return True

    def set_problem(self, problem: str | None) -> None:
        """Write down what stands in the way, for those who ask; of a run that is gone that stays."""
        with self._changing:
            if problem is None and self.is_gone:
                return
            if self.state.problem != problem:
                self.state.problem = problem
                self._save()

    def _is_shared(self) -> bool:
        return any((reader.header or {}).get("is_shared") for reader in self._readers.values())

    def header(self, up_to: int | None = None) -> dict[str, Any] | None:
        """Return the header of the newest opener, no newer than *up_to*; without an opener, of anybody."""
        headers = [reader.header for reader in self._readers.values() if reader.header]
        openers = [header for header in headers if header.get("role") == "opener"]
        if up_to:
            openers = [header for header in openers if header.get("attempt", 0) <= up_to] or openers
        return max(openers or headers, key=lambda header: header.get("attempt", 0), default=None)

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Change the state, and write it down."""
        with self._changing:
            yield
            self._save()

    def _save(self) -> None:
        self.state.updated_ms = time.time_ns() // 1_000_000
        if self.header() is not None:
            self.state.destination = self.destination().key
        try:
            self.state.save(self.folder.state_file)
        except OSError as error:
            raise Unavailable(f"cannot write {self.folder.state_file}: {error}") from error

    def _remove_acknowledged(self) -> None:
        for writer, numbers in self.folder.writers().items():
            for number in numbers:
                if number < self.state.offsets.get(writer, [0])[0]:
                    self.folder.segment(writer, number).unlink(missing_ok=True)

    def _give_up(self, reason: str) -> None:
        self.is_gone = True
        self.set_problem(f"the run cannot be written any more: {reason}")
        logger.warning(
            "run %s: %s; its records go to %s", self.folder.uid, reason, self._home.dead_file(self.folder.uid)
        )

    def _bury_all(self, parcel: _Parcel) -> None:
        reason = self.state.problem or "the run is gone"
        for point in [*parcel.points, *parcel.counted]:
            self.bury("metric", _content(point), reason)
        for kind, contents in (
            ("param", parcel.params),
            ("tag", {k: v for k, (_, v) in parcel.tags.items()}),
        ):
            for key, value in contents.items():
                self.bury(kind, {key: value}, reason)
        for dataset in parcel.datasets:
            self.bury("dataset", dataset, reason)
        for item in parcel.uploads:
            self.bury(item["kind"].lower(), item, reason)
        parcel.uploads = []

    def bury(self, kind: str, content: dict[str, Any], reason: str) -> None:
        """Put a record that was refused for good, with the reason, into the dead letters."""
        path = self._home.dead_file(self.folder.uid)
        try:
            append_line(path, json.dumps({"kind": kind, "content": content, "reason": reason}, default=str))
        except OSError as error:
            raise Unavailable(f"cannot keep what was refused in {path}: {error}") from error
        with self._changing:
            self.state.refused += 1
            if self._parcel is not None and kind not in ("artifact", "model", "version", "evaluation"):
                self._parcel.refused += 1


def _content(point: Point) -> dict[str, Any]:
    return {"key": point.key, "value": point.value, "step": point.step, "ms": point.timestamp_ms}


def _attempt(reader: JournalReader) -> int:
    return int((reader.header or {}).get("attempt", 0))  # an integer, as `checked` has seen


def _continued(done: RunState | None) -> RunState | None:
    """Return the state of a run that was done and is added to again.

    Its offsets stay: a child's journal that its parent's brings forth once more was delivered already.
    """
    if done is not None:
        done.uploads = []
    return done


def _hash(value: str) -> str:
    return blake2b(value.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _is_upload(item: dict[str, Any]) -> bool:
    """Tell whether an upload that a state holds is one, whoever wrote the state."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        checked(Kind[item["kind"]], item)
        return True
    return False


def _listed(folder: Path) -> list[str]:
    try:
        return [] if folder.is_symlink() else os.listdir(folder)
    except OSError:
        return []
