"""The journal: what a call wrote is there, whatever kills, forks, interrupts or fills the disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlpipeline.tracking import durability, liveness, records
from mlpipeline.tracking.home import Home, RunState, new_uid
from mlpipeline.tracking.journal import JournalWriter
from mlpipeline.tracking.reading import JournalReader, JournalTooNewError
from mlpipeline.tracking.records import Kind, Point

if TYPE_CHECKING:
    from collections.abc import Iterator


HEADER = {
    "role": "opener",
    "run_id": "r",
    "destination": {"tracking_uri": "http://x", "registry_uri": "http://x"},
}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    writer = JournalWriter(Home(tmp_path / "h"), "run", {**HEADER, "attempt": 1})
    assert writer.open()
    yield writer
    writer.close()


def points_of(writer: JournalWriter | JournalReader, *, is_final: bool = True) -> list[Point]:
    """Return all points in the journals of a run, in the order of each journal."""
    found = []
    for name in writer.folder.writers():
        reader = JournalReader(writer.folder, name)
        while frames := reader.read(is_final=is_final):
            for frame in frames:
                if frame.kind in (Kind.METRICS, Kind.METRICS_STEPS):
                    found += reader.points(frame)
        assert 0 == reader.damaged
    return found


def test_metrics_are_on_disk_when_the_call_returns(journal: JournalWriter) -> None:
    """Another reader of the file sees the values at once."""
    assert journal.append_metrics(("loss", "acc"), [0.5, 0.25], 3, 1000)
    assert [Point("loss", 0.5, 1000, 3), Point("acc", 0.25, 1000, 3)] == points_of(journal)


def test_without_a_step_each_key_counts_on_from_its_own_last_one(journal: JournalWriter) -> None:
    """The counter is per key, starts at 0, and goes on behind an explicit step."""
    journal.append_metrics(("a",), [1.0], None, 1)
    journal.append_metrics(("a", "b"), [1.0, 1.0], None, 2)
    journal.append_metrics(("b",), [1.0], 10, 3)
    journal.append_metrics(("a", "b"), [1.0, 1.0], None, 4)
    steps = [(point.key, point.step) for point in points_of(journal)]
    assert [("a", 0), ("a", 1), ("b", 0), ("b", 10), ("a", 2), ("b", 11)] == steps


def test_a_new_name_costs_the_same_however_many_came_before(journal: JournalWriter) -> None:
    """Thousands of names logged one by one, with a step and without, beside one that all calls share."""
    quarters = []
    for quarter in range(4):
        began_s = time.process_time()
        for number in range(500):
            for step in (None, 7):
                journal.append_metrics((f"m{quarter}-{number}-{step}", "shared"), [1.0, 2.0], step, 1)
        quarters.append(time.process_time() - began_s)
    assert quarters[-1] < 2.5 * quarters[0]


def test_equal_points_within_a_millisecond_stay_two(journal: JournalWriter) -> None:
    """MLflow would merge them, so the later one moves on by a millisecond; also across key sets."""
    for names in (("a",), ("a",), ("a", "b"), ("b",)):
        journal.append_metrics(names, [1.0] * len(names), 5, 1000)
    points = points_of(journal)
    assert len(points) == len({(point.key, point.timestamp_ms, point.step, point.value) for point in points})


def test_a_hot_loop_with_growing_steps_keeps_its_true_time(journal: JournalWriter) -> None:
    """Timestamps move on only where two points would become one."""
    for step in range(100):
        journal.append_metrics(("a",), [1.0], step, 1000)
    assert {1000} == {point.timestamp_ms for point in points_of(journal)}


def test_threads_write_every_value_behind_its_key_set(journal: JournalWriter) -> None:
    """Eight threads, each with key sets of its own and shared ones: nothing lost, nothing garbled."""

    def write(number: int) -> None:
        for step in range(300):
            journal.append_metrics((f"own-{number}-{step % 7}",), [step], step, 1000)
            journal.append_metrics(("shared",), [number], step * 8 + number, 1000)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = points_of(journal)
    assert 8 * 300 * 2 == len(points)
    assert set(range(8 * 300)) == {point.step for point in points if point.key == "shared"}


def test_a_signal_handler_may_log_while_its_thread_is_inside(journal: JournalWriter) -> None:
    """A handler that interrupts the writer writes too, without a deadlock and without damage."""
    count = 0

    def handle(*_: object) -> None:
        nonlocal count
        journal.append_metrics((f"signal-{count % 5}",), [1.0], count, 1000)
        count += 1

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for step in range(20_000):
            journal.append_metrics((f"loop-{step % 50}",), [1.0], step, 1000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert count > 10
    assert 20_000 + count == len(points_of(journal))


def test_a_forked_child_writes_a_journal_of_its_own(journal: JournalWriter) -> None:
    """Parent and child add to the same run, in two journals; the child never counts as its opener."""
    journal.append_metrics(("parent",), [1.0], 0, 1)
    child = os.fork()
    if child == 0:
        journal.append_metrics(("child",), [2.0], 0, 1)
        os._exit(0)
    os.waitpid(child, 0)
    journal.append_metrics(("parent",), [1.0], 1, 1)
    assert {"parent": 2, "child": 1} == _counted(points_of(journal))
    roles = []
    for name in journal.folder.writers():
        reader = JournalReader(journal.folder, name)
        reader.look()
        roles.append((reader.header or {})["role"])
    assert ["attached", "opener"] == sorted(roles)


def test_a_segment_is_followed_by_another_that_stands_alone(tmp_path: Path) -> None:
    """Header and key sets repeat, so that each segment is read without the ones before it."""
    writer = JournalWriter(Home(tmp_path / "h"), "run", HEADER, segment_bytes=2000)
    for step in range(200):
        writer.append_metrics(("a", "b"), [step, -step], step, step)
    numbers = next(iter(writer.folder.writers().values()))
    assert len(numbers) > 3
    assert 400 == len(points_of(writer))
    for number in numbers[:-1]:
        writer.folder.segment(writer.name, number).unlink()
    kept = points_of(writer)
    assert kept
    assert 199 == kept[-1].step
    writer.close()


def test_rows_are_written_as_append_metrics_writes_them(tmp_path: Path) -> None:
    """Over segments, after a name was counted on, when two points would be one, after an end, and in a child."""
    found = []
    for way in ("rows", "metrics"):
        writer = JournalWriter(Home(tmp_path / way), "run", HEADER, segment_bytes=900)
        names = ("a", "b")
        rows, step = writer.row_appender(names), 0
        for segment in range(6):
            for step in range(20 * segment, 20 * segment + 20):
                append = partial(writer.append_metrics, names) if way == "metrics" else rows
                assert append([step, -step], step, 1000 + segment)
                assert append([step, -step], step, 1000 + segment)
            if segment == 1:
                writer.append_metrics(("a",), [1.0], None, 1)
            if segment == 3:
                writer.close()
                assert not append([0.0, 0.0], step, 1)
                writer.reopen(HEADER)
        if (child := os.fork()) == 0:
            os._exit(0 if append([7.0, 7.0], 7, 7) else 1)
        assert 0 == os.waitpid(child, 0)[1]
        found.append(sorted(map(str, points_of(writer))))
        assert 2 * 2 * 6 * 20 + 1 + 2 == len(found[-1])
        writer.close()
    assert found[0] == found[1]


def test_a_reader_goes_on_where_it_was_acknowledged(journal: JournalWriter) -> None:
    """A new reader at an acknowledged position knows the key sets that stand before it."""
    journal.append_metrics(("a",), [1.0], 0, 1)
    first = JournalReader(journal.folder, journal.name)
    while first.read(is_final=False):
        pass
    journal.append_metrics(("a",), [2.0], 1, 1)
    second = JournalReader(journal.folder, journal.name, first.segment, first.offset)
    frames = second.read(is_final=False)
    assert [Point("a", 2.0, 1, 1)] == [point for frame in frames for point in second.points(frame)]
    assert {"role": "opener", "attempt": 1} == {
        key: (second.header or {})[key] for key in ("role", "attempt")
    }


def test_a_damaged_header_costs_nothing(journal: JournalWriter) -> None:
    """The run's header stands twice: with its first copy destroyed, the run is known and its points are read."""
    journal.append_metrics(("a",), [1.0], 0, 1)
    path = journal.folder.segment(journal.name, 1)
    data = bytearray(path.read_bytes())
    data[40:60] = bytes(20)
    path.write_bytes(data)
    reader = JournalReader(journal.folder, journal.name)
    assert reader.look()
    points = [point for frame in reader.read(is_final=True) for point in _points(reader, frame)]
    assert [Point("a", 1.0, 1, 0)] == points
    assert 1 == reader.damaged


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    """Folders 0700 and files 0600, also when the umask would allow all."""
    before = os.umask(0)
    try:
        writer = JournalWriter(Home(tmp_path / "h"), "run", HEADER)
        writer.append(Kind.TAGS, {"tags": {"a": "b"}})
    finally:
        os.umask(before)
    for path in [tmp_path / "h", *(tmp_path / "h").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    writer.close()


def test_a_home_that_cannot_be_written_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training goes on: no exception, one warning, the exact number of records dropped."""
    (tmp_path / "file").write_text("")
    writer = JournalWriter(Home(tmp_path / "file" / "h"), "run", HEADER)
    assert not writer.open()
    for step in range(10):
        assert not writer.append_metrics(("a", "b"), [1.0, 2.0], step, 1)
    assert not writer.append(Kind.TAGS, {"tags": {}})
    assert 21 == writer.dropped
    assert 1 == sum("cannot write the journal" in record.message for record in caplog.records)


def test_what_a_journal_could_not_say_the_next_one_of_its_run_says(tmp_path: Path) -> None:
    """The disk was full when the run ended, and has room when it is taken up again."""
    (tmp_path / "file").write_text("")
    home = Home(tmp_path / "file" / "h")
    writer = JournalWriter(home, "run", HEADER)
    assert not writer.append_metrics(("a", "b"), [1.0, 2.0], 0, 1)
    writer.close()
    (tmp_path / "file").unlink()
    (tmp_path / "file").mkdir()
    writer.reopen(HEADER)
    assert writer.append(Kind.TAGS, {"tags": {}})
    writer.close()
    reader = JournalReader(writer.folder, writer.name)
    frames = reader.read(is_final=True)
    assert [{"count": 2}] == [frame.json() for frame in frames if frame.kind is Kind.DROPPED]


def test_a_full_disk_leaves_no_torn_frame_and_the_count_of_what_it_cost(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the full disk: whole frames only, and the drops are told when space is back."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.journal import JournalWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = JournalWriter(Home(Path({str(tmp_path / "h")!r})), "run", {HEADER})
writer.append_metrics(("a",), [0.0], 0, 1)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for step in range(1, 100):
    writer.append_metrics(("a",), [float(step)], step, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.append_metrics(("a",), [100.0], 100, 1)
print(writer.dropped)
"""
    dropped = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert 0 < dropped < 100
    folder = Home(tmp_path / "h").run("run")
    (name,) = folder.writers()
    reader = JournalReader(folder, name)
    frames = reader.read(is_final=True)
    assert 0 == reader.damaged
    told = [frame.json()["count"] for frame in frames if frame.kind is Kind.DROPPED]
    assert [dropped] == told
    steps = [point.step for frame in frames if frame.kind is Kind.METRICS for point in reader.points(frame)]
    assert [*range(101 - dropped - 1), 100] == steps
    assert resource.RLIM_INFINITY == resource.getrlimit(resource.RLIMIT_FSIZE)[0]


def test_a_disk_that_cannot_even_cut_a_torn_frame_costs_that_frame_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is raised into training; a reader passes over the half frame, and meets what came behind it."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    writer = JournalWriter(Home(tmp_path / "h"), "run", HEADER)
    writer.append_metrics(("a",), [0.0], 0, 1)
    size = writer.folder.segment(writer.name, 1).stat().st_size
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(os, "ftruncate", fail)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        assert not writer.append_metrics(("a",), [1.0], 1, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert writer.append_metrics(("a",), [2.0], 2, 1)
    reader = JournalReader(writer.folder, writer.name)
    points = [point for frame in reader.read(is_final=False) for point in _points(reader, frame)]
    assert ([0, 2], 1, 1) == ([point.step for point in points], writer.dropped, reader.damaged)
    assert RunState(offsets={writer.name: [reader.segment, reader.offset]}).covers(writer.ends())
    writer.close()


def test_a_newer_format_is_refused_with_what_to_do(journal: JournalWriter) -> None:
    """A segment of the future is not guessed at."""
    path = journal.folder.segment("future", 1)
    path.write_bytes(records.preamble(records.FORMAT_VERSION + 1) + b"whatever")
    with pytest.raises(JournalTooNewError, match="Upgrade mlpipeline"):
        JournalReader(journal.folder, "future").read(is_final=False)


def test_a_writer_is_alive_until_its_process_is_gone(tmp_path: Path) -> None:
    """The lock frees itself on kill -9, and no probe of ours takes or drops it."""
    code = f"""
import sys, time
from pathlib import Path
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.journal import JournalWriter
writer = JournalWriter(Home(Path({str(tmp_path / "h")!r})), "run", {HEADER})
writer.open()
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"ready\n" == process.stdout.readline()
    folder = Home(tmp_path / "h").run("run")
    (name,) = folder.writers()
    reader = JournalReader(folder, name)
    assert [True] * 3 == [reader.is_alive() for _ in range(3)]
    process.kill()
    process.wait()
    process.stdout.close()
    assert not reader.is_alive()


def test_a_process_sees_its_own_lock_without_opening_the_file(journal: JournalWriter) -> None:
    """Opening and closing the lock file would drop the lock: asking must not."""
    lock = journal.folder.lock(journal.name)
    assert liveness.is_held(lock)
    code = f"from mlpipeline.tracking import liveness; from pathlib import Path; print(liveness.is_held(Path({str(lock)!r})))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert "True\n" == seen


def test_a_forked_child_does_not_keep_a_dead_writer_alive(tmp_path: Path) -> None:
    """A DataLoader worker outlives its trainer; the trainer counts as dead all the same."""
    code = f"""
import os, time
from pathlib import Path
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.journal import JournalWriter
writer = JournalWriter(Home(Path({str(tmp_path / "h")!r})), "run", {HEADER})
writer.open()
child = os.fork()
if child == 0:
    os.close(1)
    os.close(2)
    time.sleep(20)
    os._exit(0)
print(child, flush=True)
os._exit(0)
"""
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    try:
        folder = Home(tmp_path / "h").run("run")
        (name,) = folder.writers()
        assert not JournalReader(folder, name).is_alive()
    finally:
        os.kill(child, signal.SIGKILL)


def test_every_segment_is_read_without_the_ones_before_it(tmp_path: Path) -> None:
    """They may be acknowledged and deleted: the first points of a segment need its own key set, too."""
    writer = JournalWriter(Home(tmp_path / "h"), "run", HEADER, segment_bytes=900)
    for step in range(100):
        assert writer.append_metrics(("loss",), [0.5], step, 1)
    writer.close()
    numbers = writer.folder.writers()[writer.name]
    assert len(numbers) > 3
    steps = []
    for number in numbers:
        known = records.KeySets()
        data = writer.folder.segment(writer.name, number).read_bytes()[records.PREAMBLE.size :]
        for frame in records.scan(data, records.PREAMBLE.size, is_final=True).frames:
            if frame.kind is Kind.KEYS:
                known.learn(frame)
            elif frame.kind is Kind.METRICS:
                steps += [point.step for point in known.points(frame)]
    assert list(range(100)) == steps


class Crashes(RuleBasedStateMachine):
    """Any interleaving of append, full disk, torn write, read, acknowledge, truncate and restart loses nothing."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder_of_test = tempfile.TemporaryDirectory()
        self.home = Home(Path(self.folder_of_test.name))
        self.step = 0
        self.written: list[int] = []
        self.read: list[int] = []
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.count_at_acknowledge = 0
        self.torn = 0
        self.readers: dict[str, JournalReader] = {}
        self.writer = self.begin()

    def begin(self) -> JournalWriter:
        writer = JournalWriter(self.home, "run", HEADER, segment_bytes=900)
        writer.open()
        return writer

    @rule(count=st.integers(1, 12))
    def append(self, count: int) -> None:
        for _ in range(count):
            assert self.writer.append_metrics((f"k{self.step % 3}",), [float(self.step)], self.step, 1)
            self.written.append(self.step)
            self.step += 1

    @rule(room=st.integers(0, 80))
    def meet_a_full_disk(self, room: int) -> None:
        """A record goes in whole or not at all, and what did not is counted."""
        path = self.writer.folder.segment(self.writer.name, self.writer._segment)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        dropped = self.writer.dropped
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
        try:
            is_written = self.writer.append_metrics(("k",), [float(self.step)], self.step, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if is_written:
            self.written.append(self.step)
        assert self.writer.dropped == dropped + (not is_written)
        self.step += 1

    @rule()
    def truncate(self) -> None:
        """Delete the segments that are acknowledged, as the courier does."""
        for name, numbers in self.writer.folder.writers().items():
            for number in numbers:
                if number < self.acknowledged.get(name, (0, 0))[0]:
                    self.writer.folder.segment(name, number).unlink()

    @rule(torn=st.binary(max_size=40))
    def crash(self, torn: bytes) -> None:
        """Die in the middle of a write: a part of a frame is left behind."""
        path = self.writer.folder.segment(self.writer.name, self.writer._segment)
        frame = records.json_frame(0, Kind.TAGS, {"tags": {"x": "y" * 50}})
        self.writer.close()
        with path.open("ab") as file:
            file.write(frame[: len(torn)])
        self.torn += bool(torn)
        self.writer = self.begin()

    @rule()
    def deliver(self) -> None:
        for name in self.writer.folder.writers():
            if name not in self.readers:
                self.readers[name] = JournalReader(
                    self.writer.folder, name, *self.acknowledged.get(name, (0, 0))
                )
            reader = self.readers[name]
            for frame in reader.read(is_final=not reader.is_alive(), limit_bytes=300):
                if frame.kind is Kind.METRICS:
                    self.read += [point.step for point in reader.points(frame)]

    @rule()
    def acknowledge(self) -> None:
        self.acknowledged |= {name: (reader.segment, reader.offset) for name, reader in self.readers.items()}
        self.count_at_acknowledge = len(self.read)

    @rule()
    def kill_the_courier(self) -> None:
        self.readers = {}
        del self.read[self.count_at_acknowledge :]

    @invariant()
    def nothing_is_read_twice_or_invented(self) -> None:
        assert len(self.read) == len(set(self.read))
        assert set(self.read) <= set(self.written)

    def teardown(self) -> None:
        self.writer.close()
        for _ in range(2 + len(self.written) + 3 * len(self.writer.folder.writers())):
            self.deliver()
        assert sorted(self.read) == self.written
        assert sum(reader.damaged for reader in self.readers.values()) <= self.torn
        self.folder_of_test.cleanup()


TestCrashes = Crashes.TestCase
TestCrashes.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def _points(reader: JournalReader, frame: records.Frame) -> list[Point]:
    return reader.points(frame) if frame.kind in {Kind.METRICS, Kind.METRICS_STEPS} else []


def _counted(points: list[Point]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for point in points:
        counted[point.key] = counted.get(point.key, 0) + 1
    return counted


@pytest.mark.parametrize("is_durable", [False, True])
def test_a_journal_of_what_is_past_asks_for_no_disk(is_durable, tmp_path, monkeypatch):
    """A fold or a trial is recorded in one go, and by the hundred."""
    synced = []
    durability.finish()  # what earlier tests asked for
    monkeypatch.setattr(os, "fdatasync", synced.append)
    writer = JournalWriter(Home(tmp_path / "home"), new_uid(), HEADER, is_durable=is_durable)
    writer.open()
    durability.finish()  # or start and end may be one
    writer.append(Kind.END, {"status": "FINISHED"}, is_synced=True)
    writer.close()
    durability.finish()
    assert 2 * is_durable == len(synced)


def test_nobody_waits_for_a_slow_disk(tmp_path, monkeypatch):
    """What matters is on it a moment later, also when the journal is closed by then."""
    is_free, synced = threading.Event(), []

    def slow(descriptor):
        is_free.wait(10)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", slow)
    writer = JournalWriter(Home(tmp_path / "home"), new_uid(), HEADER)
    writer.append(Kind.END, {"status": "FINISHED"}, is_synced=True)
    path = writer.folder.segment(writer.name, 1)
    writer.close()
    assert [] == synced
    is_free.set()
    durability.finish()
    assert path.stat().st_size == synced[-1]


def test_the_exit_leaves_everything_on_the_disk(home):
    """Also what was asked for at the very end."""
    program = """
import os, time
from mlpipeline import MLflowTracker
real = os.fdatasync
def slow(descriptor):
    time.sleep(0.3)
    real(descriptor)
    with open("synced", "a") as file:
        print(os.fstat(descriptor).st_size, file=file)
os.fdatasync = slow
MLflowTracker(delivery="offline").start_run()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    (segment,) = home.glob("runs/*/*.seg")
    assert segment.stat().st_size == int(Path("synced").read_text("utf-8").split()[-1])
