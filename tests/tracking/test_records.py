"""Frames: what is written is read back, whatever happened to the bytes around it."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mlpipeline.tracking import records
from mlpipeline.tracking.records import Kind, Point

GOLDEN = Path(__file__).parent / "golden"


def metrics_frame(sequence: int, names: tuple[str, ...], values: list[float], step: int, ms: int) -> bytes:
    pack = records.metrics_body(len(names)).pack
    return records.framed(pack(sequence, Kind.METRICS, records.key_set_id(names), ms, step, *values))


def frames_of(count: int) -> list[bytes]:
    return [
        records.json_frame(number, Kind.TAGS, {"tags": {"n": str(number)}, "ms": number})
        for number in range(count)
    ]


def test_a_json_record_comes_back_as_it_was() -> None:
    """Whatever text a record holds, also half a surrogate pair, it is read back."""
    content = {"params": {"naïve": "价值", "broken": "\ud800", "nul": "\0"}, "ms": 1}
    found = records.scan(records.json_frame(7, Kind.PARAMS, content), 8, is_final=True)
    assert [7] == [frame.sequence for frame in found.frames]
    assert content["params"]["naïve"] == found.frames[0].json()["params"]["naïve"]


@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**62),
)
def test_metrics_come_back_bit_for_bit(values: list[float], step: int, ms: int) -> None:
    """Any double, any int64 step: the point that is read is the point that was written."""
    names = tuple(f"m{index}" for index in range(len(values)))
    keys = records.KeySets()
    keys.learn(records.scan(records.json_frame(0, Kind.KEYS, {"names": names}), 0, is_final=True).frames[0])
    found = records.scan(metrics_frame(1, names, values, step, ms), 0, is_final=True)
    expected = [Point(name, value, ms, step) for name, value in zip(names, values, strict=True)]
    assert expected == list(keys.points(found.frames[0]))


def test_nan_stays_nan() -> None:
    """NaN has no equal, so it gets a test of its own."""
    keys = records.KeySets()
    keys.learn(records.scan(records.json_frame(0, Kind.KEYS, {"names": ["x"]}), 0, is_final=True).frames[0])
    frame = records.scan(metrics_frame(1, ("x",), [math.nan], 3, 4), 0, is_final=True).frames[0]
    assert math.isnan(next(keys.points(frame)).value)


def test_a_journal_cut_at_every_byte_gives_exactly_its_whole_frames() -> None:
    """No cut invents a record, hides a whole one, or is taken for damage while it may still grow."""
    frames = frames_of(4)
    data = b"".join(frames)
    ends = [sum(map(len, frames[: index + 1])) for index in range(len(frames))]
    for cut in range(len(data) + 1):
        whole = sum(end <= cut for end in ends)
        growing = records.scan(data[:cut], 0, is_final=False)
        assert whole == len(growing.frames)
        assert 0 == growing.damaged
        final = records.scan(data[:cut], 0, is_final=True)
        assert whole == len(final.frames)
        assert cut == final.end


def test_one_flipped_bit_costs_at_most_its_own_frame() -> None:
    """Every bit of a middle frame, flipped: its neighbours are read, and no wrong record is."""
    frames = frames_of(3)
    data = b"".join(frames)
    first, second = len(frames[0]), len(frames[0]) + len(frames[1])
    for bit in range(first * 8, second * 8):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        found = records.scan(bytes(broken), 0, is_final=True)
        assert [0, 2] == [frame.sequence for frame in found.frames]
        assert 1 == found.damaged


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_never_taken_for_a_record(noise: bytes) -> None:
    """Noise before a frame is skipped and counted; the frame is found."""
    frame = frames_of(1)[0]
    found = records.scan(noise + frame, 0, is_final=True)
    assert [0] == [item.sequence for item in found.frames]
    assert len(noise) == found.skipped_bytes


def test_a_huge_length_is_damage_and_no_reason_to_wait() -> None:
    """A length beyond the cap is not waited for."""
    bogus = struct.pack("<2sII", b"\xabJ", 2**31, 0)
    assert [0] == [
        frame.sequence for frame in records.scan(bogus + frames_of(1)[0], 0, is_final=False).frames
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_journals_are_read(version: int) -> None:
    """The segments that each format's first release wrote are read as they were meant."""
    data = (GOLDEN / f"format-{version}.seg").read_bytes()
    assert records.preamble(version) == data[: records.PREAMBLE.size]
    found = records.scan(data[records.PREAMBLE.size :], records.PREAMBLE.size, is_final=True)
    last = {1: Kind.END, 2: Kind.CHILD}[version]
    assert [kind for kind in Kind if kind <= last] == [frame.kind for frame in found.frames]
    keys = records.KeySets()
    keys.learn(found.frames[1])
    assert [Point("loss", 0.5, 1000, 1), Point("acc", 0.25, 1000, 1)] == list(keys.points(found.frames[2]))
    assert [Point("loss", 0.125, 2000, 2), Point("acc", -1.0, 2000, 7)] == list(keys.points(found.frames[3]))
    assert all({"kind": frame.kind.name, "ms": 1} == frame.json() for frame in found.frames[4:12])


def test_the_golden_evaluation_is_read() -> None:
    """The record that came with format 2."""
    data = (GOLDEN / "evaluation.seg").read_bytes()
    assert records.preamble(2) == data[: records.PREAMBLE.size]
    found = records.scan(data[records.PREAMBLE.size :], records.PREAMBLE.size, is_final=True)
    assert [Kind.EVALUATION] == [frame.kind for frame in found.frames]
    assert {
        "model_id": "m-0123456789abcdef0123456789abcdef",
        "metrics": {"accuracy": 0.9375, "f1_score": 0.875},
        "step": 0,
        "timestamp_ms": 1000,
        "dataset": {"name": "test", "digest": "a" * 32},
        "ms": 1001,
    } == found.frames[0].json()


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("ab",), ("a\0b",)])
def test_key_sets_that_differ_have_different_ids(names: tuple[str, ...]) -> None:
    """Order counts, and so does where one name ends."""
    others = {("a", "b"), ("b", "a"), ("ab",), ("a", "b", "")} - {names}
    assert records.key_set_id(names) not in {records.key_set_id(other) for other in others}
