"""A journal cut at every byte, and with every kind of flipped bit: no wrong record, and all that are whole."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from harness.page import FIGURE, figure

from mlpipeline import MLflowConfig
from mlpipeline.tracking import records
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.journal import JournalWriter
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.sink import MlflowSink

if TYPE_CHECKING:
    from pathlib import Path

SEED = int(os.environ.get("MLPIPELINE_TEST_SEED", random.SystemRandom().randrange(2**31)))


HEADER = {
    "role": "opener",
    "attempt": 1,
    "run_id": "r",
    "destination": {"tracking_uri": "http://x", "registry_uri": "http://x"},
}


@pytest.fixture
def journal(tmp_path):
    """The bytes of a small journal with every kind of record, and its frames."""
    writer = JournalWriter(Home(tmp_path / "written"), "run", HEADER)
    writer.append(Kind.PARAMS, {"params": {"rate": "0.1"}, "ms": 1})
    for kind in (Kind.DATASET, Kind.ARTIFACT, Kind.MODEL, Kind.VERSION, Kind.EVALUATION, Kind.DROPPED):
        writer.append(kind, {"name": kind.name, "count": 1, "ms": 1})
    writer.append_child(records.json_payload({"uid": "child", "records": [], "ms": 1}))
    for step in range(12):
        writer.append_metrics(("loss", "acc"), [step / 7, -step], step, 1000 + step)
        writer.append_metrics(("counted",), [step], None, 1000 + step)
    writer.append(Kind.TAGS, {"tags": {"phase": "over"}, "ms": 2})
    writer.append(Kind.END, {"status": "FINISHED", "ms": 3})
    writer.close()
    data = writer.folder.segment(writer.name, 1).read_bytes()
    size = records.PREAMBLE.size
    frames = records.scan(data[size:], size, is_final=True).frames
    assert frames[-1].end == len(data)
    assert set(Kind) == {frame.kind for frame in frames}
    return data, frames


def read(folder: Path, *segments: bytes):
    """Read a journal of these bytes as a courier does: its records, and the damage counted."""
    home = Home(folder)
    home.create()
    run = home.run("run")
    run.create()
    for number, data in enumerate(segments, 1):
        run.segment("0-1-a", number).write_bytes(data)
    reader = JournalReader(run, "0-1-a")
    reader.look()
    found = []
    while frames := reader.read(is_final=True, limit_bytes=300):
        found += [record for frame in frames for record in decoded(reader, frame)]
    return Counter(found), reader.damaged


def decoded(reader, frame):
    """What a frame comes to."""
    if frame.kind in {Kind.METRICS, Kind.METRICS_STEPS}:
        return reader.points(frame)
    return [(frame.kind, repr(frame.json()))]


def whole(frames, is_whole):
    """What the frames that were not damaged come to, as far as their key sets are known."""
    key_sets = records.KeySets()
    found = Counter()
    for frame in filter(is_whole, frames):
        if frame.kind is Kind.KEYS:
            key_sets.learn(frame)
        if frame.kind in {Kind.METRICS, Kind.METRICS_STEPS}:
            try:
                found.update(key_sets.points(frame))
            except KeyError:
                continue  # its names are lost; counted as damage
        else:
            found[frame.kind, repr(frame.json())] += 1
    return found


def test_cut_at_every_byte_a_journal_has_every_frame_that_is_whole(journal, tmp_path, record_property):
    """And the torn rest is counted as one damaged place."""
    data, frames = journal
    ends = {records.PREAMBLE.size, *(frame.end for frame in frames)}
    for cut in range(len(data) + 1):
        found, damaged = read(tmp_path / "cut", data[:cut])
        assert whole(frames, lambda frame, cut=cut: frame.end <= cut) == found, cut
        assert damaged == (cut > records.PREAMBLE.size and cut not in ends), cut
    title = "A journal cut at every byte"
    text = f"{len(data) + 1} cuts: every whole record is read, none is wrong, the torn one is counted"
    record_property(FIGURE, figure(title, text))


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.faults)])
def test_a_flipped_bit_costs_its_own_frame_and_makes_no_wrong_value(
    count, journal, tmp_path, record_property
):
    """All the others are read, and the damage is counted."""
    print(f"seed {SEED}")  # noqa: T201 - what a failure is repeated with (MLPIPELINE_TEST_SEED)
    data, frames = journal
    draws = random.Random(SEED)
    starts = dict(zip(frames, [records.PREAMBLE.size, *(frame.end for frame in frames)], strict=False))
    bits = [draws.randrange(8 * len(data)) for _ in range(count)]
    for bit in [*range(8 * records.PREAMBLE.size), *bits]:
        at = bit // 8
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit % 8
        found, damaged = read(tmp_path / "flipped", bytes(flipped))
        assert whole(frames, lambda frame, at=at: not starts[frame] <= at < frame.end) == found, bit
        assert damaged >= 1, bit
    title = f"{count} flipped bits in a journal"
    text = "every undamaged record is read, none is wrong, and every flip is counted"
    record_property(FIGURE, figure(title, text))


@pytest.mark.parametrize("count", [200, pytest.param(2_000, marks=pytest.mark.faults)])
def test_a_flipped_bit_in_one_of_several_segments_costs_its_own_frame(count, tmp_path, record_property):
    """Each segment brings its header and its key sets along."""
    print(f"seed {SEED}")  # noqa: T201 - what a failure is repeated with (MLPIPELINE_TEST_SEED)
    writer = JournalWriter(Home(tmp_path / "written"), "run", HEADER, segment_bytes=1200)
    for step in range(40):
        writer.append_metrics(("loss", "acc"), [step / 7, -step], step, 1000 + step)
    writer.append(Kind.END, {"status": "FINISHED", "ms": 3})
    writer.close()
    numbers = writer.folder.writers()[writer.name]
    segments = [writer.folder.segment(writer.name, number).read_bytes() for number in numbers]
    assert len(segments) >= 3
    size = records.PREAMBLE.size
    frames = [records.scan(data[size:], size, is_final=True).frames for data in segments]
    draws = random.Random(SEED)
    for _ in range(count):
        number = draws.randrange(len(segments))
        bit = draws.randrange(8 * len(segments[number]))
        at, flipped = bit // 8, bytearray(segments[number])
        flipped[at] ^= 1 << bit % 8
        kept = [
            frame
            for one, of_segment in enumerate(frames)
            for start, frame in zip([size, *(frame.end for frame in of_segment)], of_segment, strict=False)
            if one != number or not start <= at < frame.end
        ]
        found, damaged = read(
            tmp_path / "flipped", *segments[:number], bytes(flipped), *segments[number + 1 :]
        )
        assert whole(kept, lambda _: True) == found, (number, bit)
        assert damaged >= 1, (number, bit)
    title = f"{count} flipped bits in a journal of {len(segments)} segments"
    text = "the same, and none costs a record of another segment"
    record_property(FIGURE, figure(title, text))


def test_a_journal_of_a_newer_version_is_told_from_one_with_a_damaged_version(journal, tmp_path):
    """Its header, which a checksum protects, says the version too."""
    data, frames = journal
    start = records.PREAMBLE.size
    found, damaged = read(tmp_path / "damaged", records.preamble(3) + data[start:])
    assert (whole(frames, lambda _: True), 1) == (found, damaged)
    header = {**frames[0].json(), "format": records.FORMAT_VERSION + 1}
    newer = records.preamble(records.FORMAT_VERSION + 1) + records.json_frames((0, 1), Kind.RUN, header)
    with pytest.raises(JournalTooNewError):
        read(tmp_path / "newer", newer + data[frames[1].end :])


@pytest.mark.parametrize(
    "every", [150, pytest.param(7, marks=[pytest.mark.faults, pytest.mark.timeout(600)])]
)
def test_what_a_cut_journal_holds_is_what_mlflow_gets(
    every, recorded, sink, home, mlflow_client, record_property
):
    """Delivered to a real store, the run ended KILLED; the damage is tagged."""
    writer, data, frames = recorded
    tried = 0
    for cut in range(frames[1].end, len(data), every):
        stored, points = delivered(Home(home), f"{cut:032x}", writer, data[:cut], sink, mlflow_client)
        assert points_of(frames, lambda frame, cut=cut: frame.end <= cut) == points
        is_torn = cut not in {frame.end for frame in frames}
        assert ("1" if is_torn else None) == stored.data.tags.get("mlpipeline.damaged")
        assert "KILLED" == stored.info.status
        tried += 1
    title = f"The same, delivered, at every {every}th byte"
    text = f"{tried} runs in MLflow: exactly the whole records, KILLED, the damage tagged"
    record_property(FIGURE, figure(title, text))


@pytest.mark.parametrize(
    "count", [6, pytest.param(150, marks=[pytest.mark.faults, pytest.mark.timeout(600)])]
)
def test_what_flipped_bits_leave_of_a_journal_is_what_mlflow_gets(
    count, recorded, sink, home, mlflow_client, record_property
):
    """No wrong value among it, and the damage is tagged."""
    print(f"seed {SEED}")  # noqa: T201 - what a failure is repeated with (MLPIPELINE_TEST_SEED)
    writer, data, frames = recorded
    draws = random.Random(SEED)
    # Behind the first header, which has a copy: the run's own names are those of the one that is left.
    for bit in draws.sample(range(8 * frames[1].end, 8 * len(data)), count):
        at, flipped = bit // 8, bytearray(data)
        flipped[at] ^= 1 << bit % 8
        starts = dict(zip(frames, [0, *(frame.end for frame in frames)], strict=False))
        stored, points = delivered(Home(home), f"{bit:032x}", writer, bytes(flipped), sink, mlflow_client)
        expected = points_of(frames, lambda frame, at=at, starts=starts: not starts[frame] <= at < frame.end)
        assert expected == points, bit
        assert stored.data.params in ({"rate": "0.1"}, {}), bit
        assert int(stored.data.tags["mlpipeline.damaged"]) >= 1, bit
        assert stored.info.status in ("FINISHED", "KILLED"), bit
    title = f"{count} of them, delivered"
    text = "in MLflow there are the undamaged records and no other, the damage tagged"
    record_property(FIGURE, figure(title, text))


@pytest.fixture
def recorded(store_uri, home):
    """A run of a few records: its writer, its journal's bytes, and their frames."""
    config = MLflowConfig(tracking_uri=store_uri, experiment_name="cut", run_name="whole", delivery="offline")
    run = open_run(config)
    run.log_params({"rate": 0.1})
    for step in range(12):
        run.log_metrics({"loss": step / 7, "acc": -step}, step=step)
    run.end()
    folder = Home(home).run(run.uid)
    ((writer, _),) = folder.writers().items()
    data = folder.segment(writer, 1).read_bytes()
    size = records.PREAMBLE.size
    frames = records.scan(data[size:], size, is_final=True).frames
    return writer, data, frames


@pytest.fixture
def sink(recorded, home):
    """What writes to the store of `recorded`."""
    (folder,) = Home(home).runs()
    delivery = RunDelivery(Home(home), folder)
    delivery.look()
    return MlflowSink(delivery.destination())


def delivered(home, uid, writer, data, sink, mlflow_client):
    """Deliver a journal of these bytes: the run in MLflow, and its points."""
    other = home.run(uid)
    other.create()
    other.segment(writer, 1).write_bytes(data)
    delivery = RunDelivery(home, other)
    while not delivery.is_finished:
        delivery.deliver(sink)
    client = mlflow_client(delivery.destination().tracking_uri)
    stored = client.get_run(delivery.state.run_id)
    points = [
        (point.key, point.value, point.step)
        for key in stored.data.metrics
        for point in client.get_metric_history(stored.info.run_id, key)
    ]
    return stored, sorted(points)


def points_of(frames, is_whole):
    """The points in the frames that were not damaged."""
    found = whole(frames, is_whole).elements()
    return sorted((one.key, one.value, one.step) for one in found if isinstance(one, records.Point))
