r"""The frames of a journal: how one record becomes bytes, and bytes become records again.

A segment is a preamble and frames, nothing else::

    segment   "MLPJ" | u16 version | u16 zero | frame | frame | ...
    frame     "\\xabJ" | u32 length of body | u32 crc32 of body | body
    body      u64 sequence | u8 kind | payload

Metrics are packed; every other payload is one JSON object::

    METRICS        8-byte key-set id | i64 timestamp in ms | i64 step | n doubles
    METRICS_STEPS  8-byte key-set id | i64 timestamp in ms | n i64 steps | n doubles
                   of steps that were counted here: delivery moves them behind what MLflow has of
                   an earlier opening of the run
    KEYS           {"names": [...]}: the id is a hash of the names, so the same set has the same
                   id in every segment and one damaged frame spoils no other key set
    CHILD          {"uid": ..., "header": {...}, "records": [[kind, content], ...]}: a run under
                   this one, whole, because it was over when it was recorded; its METRICS are
                   {"points": [[key, value, timestamp in ms, step], ...]}. See `children`

All integers are little endian. A frame is found again after damage by its two magic bytes and
its crc; `scan` does that, and tells what it had to skip. A CHILD holds text and no frames, or one
that is damaged would seem to be records of its parent.

Format 2 has CHILD and EVALUATION; format 1, which has not, is read as it was. A reader of format 1
would take them for damage, skip them, and let their segment be deleted: the version in the preamble
makes it leave the whole segment to a newer one.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

FORMAT_VERSION = 2
PREAMBLE = struct.Struct("<4sHH")
_MAGIC = b"\xabJ"
_HEAD = struct.Struct("<2sII")
_BODY_HEAD = struct.Struct("<QB")
_METRICS_HEAD = struct.Struct("<8sqq")
_STEPS_HEAD = struct.Struct("<8sq")

MAX_BODY_BYTES = 32 * 2**20
"""A longer length field is damage, not a frame. Whatever is larger goes to the spool."""

MAX_PAYLOAD_BYTES = MAX_BODY_BYTES - _BODY_HEAD.size


class Kind(IntEnum):
    """What a frame holds."""

    RUN = 1
    KEYS = 2
    METRICS = 3
    METRICS_STEPS = 4
    PARAMS = 5
    TAGS = 6
    DATASET = 7
    ARTIFACT = 8
    MODEL = 9
    VERSION = 10
    DROPPED = 11
    END = 12
    CHILD = 13
    EVALUATION = 14


_KINDS = {int(kind): kind for kind in Kind}
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


@dataclass(frozen=True, slots=True)
class Frame:
    """One record as it stands in a segment.

    Attributes:
        sequence: Position in its journal's order of writing, from 0.
        kind: What the payload holds.
        payload: The bytes after the body's head.
        end: Offset of the first byte behind this frame.
    """

    sequence: int
    kind: Kind
    payload: bytes
    end: int

    def json(self) -> dict[str, Any]:
        """Return the payload of a frame that is neither METRICS nor METRICS_STEPS.

        Raises:
            ValueError: It is no JSON object, or one nested too deep.
        """
        try:
            content = json.loads(self.payload)
        except RecursionError as error:
            raise ValueError(f"a {self.kind.name} frame is nested too deep") from error
        if not isinstance(content, dict):
            raise ValueError(f"a {self.kind.name} frame holds no object")  # noqa: TRY004 - damage, no bug
        return content


class Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    value: float
    timestamp_ms: int
    step: int

    @property
    def identity(self) -> tuple[str, int, int, str]:
        """What MLflow tells a point of a run from others by; NaN itself would equal nothing."""
        return self.key, self.step, self.timestamp_ms, repr(self.value)


def preamble(version: int = FORMAT_VERSION) -> bytes:
    """Return the first bytes of a segment."""
    return PREAMBLE.pack(b"MLPJ", version, 0)


def framed(body: bytes) -> bytes:
    """Return the frame around a packed body."""
    return _HEAD.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def head_packer(body_bytes: int) -> Callable[[int], bytes]:
    """Return ``pack(crc) -> head`` for bodies of one size: with it, `framed` without a call of its own."""
    return partial(_HEAD.pack, _MAGIC, body_bytes)


def json_frame(sequence: int, kind: Kind, content: Mapping[str, Any]) -> bytes:
    """Return the frame of a JSON record."""
    return json_frames((sequence,), kind, content)


def json_frames(sequences: Iterable[int], kind: Kind, content: Mapping[str, Any]) -> bytes:
    """Return one JSON record as several frames, which are to outlive each other."""
    payload = json_payload(content)
    return b"".join(payload_frame(sequence, kind, payload) for sequence in sequences)


def json_payload(content: Mapping[str, Any]) -> bytes:
    """Return the payload of a JSON record."""
    return _to_json(content).encode("utf-8", "backslashreplace")


def payload_frame(sequence: int, kind: Kind, payload: bytes) -> bytes:
    """Return the frame of a payload."""
    return framed(_BODY_HEAD.pack(sequence, kind) + payload)


@lru_cache(maxsize=256)  # each of a search's many runs has the same ones
def key_set_id(names: tuple[str, ...]) -> bytes:
    """Return the 8 bytes that stand for an ordered list of metric names."""
    text = "".join(f"{len(name)}:{name}" for name in names)
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest()


@lru_cache(maxsize=256)
def metrics_body(count: int) -> struct.Struct:
    """Return what packs ``sequence, Kind.METRICS, key_set, timestamp_ms, step, *values`` into a body."""
    return struct.Struct(f"<QB8sqq{count}d")


def steps_body(count: int) -> struct.Struct:
    """Return what packs ``sequence, Kind.METRICS_STEPS, key_set, timestamp_ms, *steps, *values`` into a body."""
    return struct.Struct(f"<QB8sq{count}q{count}d")


@dataclass(slots=True)
class Scan:
    """What `scan` found in a piece of a segment.

    Attributes:
        frames: The valid frames, in the order of the file.
        end: Offset up to which the piece is accounted for: everything before it is either a
            returned frame or counted as skipped. What is behind it may still be growing.
        skipped_bytes: Bytes that belonged to no valid frame.
        damaged: Number of separate damaged places among them.
    """

    frames: list[Frame] = field(default_factory=list)
    end: int = 0
    skipped_bytes: int = 0
    damaged: int = 0


def scan(data: bytes, offset: int, *, is_final: bool) -> Scan:
    """Find the frames in a piece of a segment.

    Args:
        data: Bytes of the segment from *offset* on.
        offset: Where *data* starts in the segment; behind the preamble, at a frame's start unless
            the segment is damaged.
        is_final: Nothing will be added behind *data*: what is no frame at its end is cut, and
            counted. Otherwise the scan stops there and waits for the rest.
    """
    found = Scan(end=offset)
    position, length = 0, len(data)
    while position < length:
        frame = _frame_at(data, position, offset)
        if frame is not None:
            found.frames.append(frame)
            position = frame.end - offset
            continue
        resumed = _next_frame(data, position + 1, offset)
        if resumed is None:
            if is_final:
                found.skipped_bytes += length - position
                found.damaged += 1
                position = length
            break
        found.skipped_bytes += resumed - position
        found.damaged += 1
        position = resumed
    found.end = offset + position
    return found


def _frame_at(data: bytes, position: int, offset: int) -> Frame | None:
    start = position + _HEAD.size
    if len(data) < start + _BODY_HEAD.size:
        return None
    magic, length, crc = _HEAD.unpack_from(data, position)
    if magic != _MAGIC or not _BODY_HEAD.size <= length <= MAX_BODY_BYTES or len(data) < start + length:
        return None
    body = data[start : start + length]
    if zlib.crc32(body) != crc:
        return None
    sequence, number = _BODY_HEAD.unpack_from(body)
    kind = _KINDS.get(number)
    if kind is None:
        return None
    return Frame(sequence, kind, body[_BODY_HEAD.size :], offset + start + length)


def _next_frame(data: bytes, position: int, offset: int) -> int | None:
    while (position := data.find(_MAGIC, position)) >= 0:
        if _frame_at(data, position, offset) is not None:
            return position
        position += 1
    return None


class KeySets:
    """The key sets that a reader has met, by id."""

    def __init__(self) -> None:
        self._names: dict[bytes, tuple[str, ...]] = {}

    def copy(self) -> KeySets:
        """Return key sets that know the same and learn by themselves."""
        twin = KeySets()
        twin._names |= self._names
        return twin

    def learn(self, frame: Frame) -> None:
        """Take in a KEYS frame."""
        names = tuple(frame.json()["names"])
        self._names[key_set_id(names)] = names

    def points(self, frame: Frame) -> Iterator[Point]:
        """Yield the points of a METRICS or METRICS_STEPS frame.

        Raises:
            KeyError: The frame's key set was never met: its KEYS frame was damaged.
            struct.error: The payload is not as long as its key set asks.
        """
        if frame.kind is Kind.METRICS:
            key_set, timestamp_ms, step = _METRICS_HEAD.unpack_from(frame.payload)
            names = self._names[key_set]
            values = struct.unpack_from(f"<{len(names)}d", frame.payload, _METRICS_HEAD.size)
            for name, value in zip(names, values, strict=True):
                yield Point(name, value, timestamp_ms, step)
        else:
            key_set, timestamp_ms = _STEPS_HEAD.unpack_from(frame.payload)
            names = self._names[key_set]
            count = len(names)
            packed = struct.unpack_from(f"<{count}q{count}d", frame.payload, _STEPS_HEAD.size)
            for name, step, value in zip(names, packed[:count], packed[count:], strict=True):
                yield Point(name, value, timestamp_ms, step)
