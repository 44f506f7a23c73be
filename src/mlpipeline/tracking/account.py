"""What became of the records of each run in a journal home: delivered, pending, refused, dropped."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import children, liveness, records
from mlpipeline.tracking.home import Home, Post, RunState, is_plain, opened, read_file
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.validity import checked

LOCAL_PREFIX = "local-"


@dataclass(frozen=True)
class DeliveryCounts:
    """What became of records; a point of a metric counts as one.

    Attributes:
        delivered: MLflow has them.
        pending: They are in the journal or the spool.
        refused: MLflow refused them for good; ``mlpipeline status`` lists them.
        dropped: The disk could not take them.
        damaged: Places in the journals that cannot be read, or hold what is no record.
    """

    delivered: int = 0
    pending: int = 0
    refused: int = 0
    dropped: int = 0
    damaged: int = 0

    def __add__(self, other: DeliveryCounts) -> DeliveryCounts:
        return DeliveryCounts(
            self.delivered + other.delivered,
            self.pending + other.pending,
            self.refused + other.refused,
            self.dropped + other.dropped,
            self.damaged + other.damaged,
        )


@dataclass(frozen=True)
class RunAccount:
    """One run of a home.

    Attributes:
        uid: Our name of it.
        run_id: MLflow's id; None until it is there.
        tracking_uri: Where it goes, without credentials.
        is_live: A process that writes to it lives.
        is_ended: Its end is in MLflow.
        counts: What became of its records.
        problem: What stands in the way; None when nothing does.
        dead_letters: File with the refused records and the reasons; None when there are none.
        waiting: Runs under it that are still in its journal, and counted with it.
        is_readable: All of its journals can be read here, or will be.
    """

    uid: str
    run_id: str | None
    tracking_uri: str | None
    is_live: bool
    is_ended: bool
    counts: DeliveryCounts
    problem: str | None
    dead_letters: str | None
    waiting: tuple[str, ...] = ()
    is_readable: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain types."""
        return asdict(self)


def counts_of(home: Home, uid: str) -> DeliveryCounts:
    """Return what became of a run's records so far."""
    return account_of(home, uid).counts


def account_of(home: Home, uid: str) -> RunAccount:
    """Return the account of one run; an empty one where the home does not know it."""
    folder = home.run(uid)
    state = home.state(uid) or RunState()
    pending, is_live, tracking_uri, problem = len(state.uploads), False, None, state.problem
    waiting: list[str] = []
    unreadable = f"{folder.path} is a link, which is not followed" if folder.path.is_symlink() else None
    damaged = state.damaged
    for writer in folder.writers():
        reader = JournalReader(folder, writer, *state.offsets.get(writer, (0, 0)))
        is_writing = False
        try:
            reader.look()
            is_writing = reader.is_alive()  # asked first: who is dead by now has written all it ever will
            pending += _pending(home, reader, waiting)
        except (JournalTooNewError, OSError) as error:
            is_writing = reader.is_alive()
            unreadable = str(error)
        else:
            if reader.header is None and not is_writing and reader.offset > records.PREAMBLE.size:
                unreadable = (
                    f"{folder.segment(writer, reader.segment)} does not say where its run goes, so it cannot be "
                    f"sent; if you do not need it, delete {folder.path}"
                )
        damaged += reader.damaged
        is_live |= is_writing
        if reader.header:
            tracking_uri = public_uri(reader.header["destination"]["tracking_uri"])
    # Taken over from the journal, and counted with it, but sent only after everything else.
    is_end_due = state.end is not None and not state.is_ended and state.end["attempt"] >= state.attempt
    unsent = int(is_end_due and not is_live)
    dead = home.dead_file(uid)
    return RunAccount(
        uid,
        state.run_id,
        tracking_uri,
        is_live,
        state.is_ended,
        DeliveryCounts(state.delivered - unsent, pending + unsent, state.refused, state.dropped, damaged),
        unreadable or problem,
        str(dead) if dead.exists() else None,
        tuple(dict.fromkeys(waiting)),
        unreadable is None,
    )


def accounts(home: Home) -> list[RunAccount]:
    """Return the runs of a home that are not done, or that left dead letters."""
    found: dict[str, RunAccount] = {}
    # Twice: what its parent's journal held at the first look may have one of its own at the second.
    for _ in range(2):
        uids = [folder.uid for folder in home.runs()]
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(home.path / "dead"))
            uids += [uid for name in names if is_plain(uid := name.removesuffix(".jsonl"))]
        found |= {uid: account_of(home, uid) for uid in dict.fromkeys(uids) if uid not in found}
    return list(found.values())


def oldest_pending_ms(home: Home, uid: str) -> int | None:
    """Return when the oldest record of a run that MLflow has not got was recorded.

    Reads the first frames behind the acknowledged position, whatever waits behind them.

    Returns:
        Milliseconds since 1970; None where nothing waits, or nothing that could be read tells.
    """
    state = home.state(uid) or RunState()
    found = [upload.get("ms") for upload in state.uploads]
    folder = home.run(uid)
    for writer in folder.writers():
        reader = JournalReader(folder, writer, *state.offsets.get(writer, (0, 0)))
        with contextlib.suppress(JournalTooNewError, OSError):
            found.append(_first_ms(reader))
    return min((int(ms) for ms in found if ms), default=None)


def lag_s(home: Home) -> float:
    """Return the age of the oldest record in a home that MLflow has not got, 0 where it has all."""
    times = [oldest_pending_ms(home, folder.uid) for folder in home.runs()]
    oldest_ms = min((time_ms for time_ms in times if time_ms is not None), default=None)
    return 0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000)


def courier_reports(home: Home) -> list[dict[str, Any]]:
    """Return what the living couriers of a home say of themselves."""
    posts = [Post(home.path, path.stem) for path in sorted(home.path.glob("courier*.lock"))]
    return [read_file(post.report) or {} for post in posts if liveness.is_held(post.lock)]


def dead_letters(home: Home, uid: str) -> list[dict[str, Any]]:
    """Return a run's refused records, each with the reason; the last one counts those that cannot be read."""
    path = home.dead_file(uid)
    if path.parent.is_symlink():
        return []
    try:
        with open(opened(path), "rb") as file:
            lines = [line for line in file if line.strip()]
    except OSError:
        return []
    letters = [letter for line in lines if (letter := _letter(line)) is not None]
    if count := len(lines) - len(letters):
        letters.append(
            {"kind": "unreadable", "content": {}, "reason": f"{count} lines of {path} are damaged"}
        )
    return letters


def _letter(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        letter = json.loads(line)
        return {name: letter[name] for name in ("kind", "content", "reason")}
    return None


def resolved_run_id(home: Home, run_id: str) -> str:
    """Return MLflow's id for a local one; other ids as they are.

    Raises:
        UsageError: The run has not reached MLflow yet, or was recorded elsewhere.
    """
    if not run_id.startswith(LOCAL_PREFIX):
        return run_id
    state = home.state(run_id.removeprefix(LOCAL_PREFIX))
    if state is None or state.run_id is None:
        raise UsageError(f"run {run_id} has not reached MLflow yet; send it with: mlpipeline sync")
    return state.run_id


def _first_ms(reader: JournalReader) -> int | None:
    while frames := reader.read(is_final=False, limit_bytes=4096):
        for frame in frames:
            if frame.kind in (Kind.METRICS, Kind.METRICS_STEPS):
                for point in reader.points(frame):
                    return point.timestamp_ms
            elif frame.kind not in (Kind.RUN, Kind.KEYS, Kind.DROPPED):
                with contextlib.suppress(ValueError):
                    return checked(frame.kind, frame.json()).get("ms")
    return None


def _pending(home: Home, reader: JournalReader, waiting: list[str]) -> int:
    """Return how many records a journal holds, and add the runs under it that wait in it to *waiting*."""
    count = 0
    while frames := reader.read(is_final=False):
        for frame in frames:
            if frame.kind in (Kind.METRICS, Kind.METRICS_STEPS):
                count += len(reader.points(frame))
            elif frame.kind is Kind.CHILD:
                if (child := children.wait_in(home, reader, frame)) is not None:
                    waiting.append(child[0])
                    count += child[1]
            elif frame.kind not in (Kind.RUN, Kind.KEYS, Kind.DROPPED):
                count += 1
    return count
