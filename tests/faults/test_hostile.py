"""A journal is data: whatever it holds, it costs nobody else anything, and leads nowhere outside its own folder."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from mlpipeline.cli import main
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import records
from mlpipeline.tracking.account import account_of, dead_letters
from mlpipeline.tracking.courier import Courier
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.home import Home, RunState, append_line
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.verdicts import Unavailable

GOLDEN = Path(__file__).parents[1] / "tracking" / "golden"
NAMES = ("loss", "acc")
SECRET = "what lies outside is nobody's business"
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def outside(tmp_path):
    """A folder outside of the journal home, with a file that no journal may reach."""
    folder = tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "canary.txt", folder / "inner" / "canary.txt", folder / "MLmodel"):
        path.write_text(SECRET)
        os.utime(path, (1, 1))
    return folder


def header(store_uri, name, **others):
    """What an opener writes down."""
    return {
        "role": "opener",
        "attempt": 1,
        "start_ms": 1000,
        "destination": {"tracking_uri": store_uri, "registry_uri": store_uri, "user": ""},
        "experiment": {"name": "hostile", "id": None, "artifact_location": None, "artifact_root": None},
        "run_name": name,
        "run_id": None,
        "source": {"mlflow.user": "ann"},
        "tags": {"early": "1"},
        **others,
    }


def whole():
    """A record of each kind that is JSON, as our writers make it."""
    return {
        Kind.PARAMS: {"params": {"rate": "0.1"}, "ms": 1001},
        Kind.TAGS: {"tags": {"phase": "over"}, "ms": 1002},
        Kind.DATASET: {"name": "d", "digest": "a" * 32, "context": "training", "source": "{}", "ms": 1003},
        Kind.ARTIFACT: {"spool": "token/a.txt", "file": "a.txt", "artifact_path": "plots", "ms": 1004},
        Kind.MODEL: {
            "uid": "m1",
            "name": "model",
            "step": 1,
            "params": {"p": "1"},
            "tags": {"t": "1"},
            "ms": 1,
        },
        Kind.VERSION: {"uid": "v1", "name": "best", "model_uid": "m1", "aliases": ["champion"], "ms": 1},
        Kind.DROPPED: {"count": 2},
        Kind.EVALUATION: {"of": "other", "metrics": {"f1": 0.5}, "step": 0, "timestamp_ms": 1000, "ms": 1},
        Kind.CHILD: {"uid": "child", "header": {"role": "opener"}, "records": [[6, {"tags": {}}]], "ms": 1},
        Kind.END: {"status": "FINISHED", "end_ms": 3000, "ms": 3000},
    }


def frame(sequence, kind, content):
    """A frame with a good checksum; 'DEEP' in it becomes a nesting that no parser follows."""
    payload = records.json_payload(content).replace(b'"DEEP"', DEEP.encode())
    return records.payload_frame(sequence, kind, payload)


def journal(run_header, kinds):
    """A segment: a header, two points, and these records."""
    pack = records.metrics_body(len(NAMES)).pack
    point = pack(3, Kind.METRICS, records.key_set_id(NAMES), 1000, 1, 0.5, 0.25)
    parts = [records.preamble(), frame(0, Kind.RUN, run_header), frame(1, Kind.RUN, run_header)]
    parts += [records.json_frame(2, Kind.KEYS, {"names": NAMES}), records.framed(point)]
    return b"".join(
        [*parts, *(frame(4 + index, kind, content) for index, (kind, content) in enumerate(kinds))]
    )


def plant(home, uid, data):
    """Put a dead writer's journal into a home, with a file in the spool; return the run's folder."""
    Home(home).create()
    folder = Home(home).run(uid)
    folder.create()
    (folder.spool / "token").mkdir(parents=True)
    (folder.spool / "token" / "a.txt").write_text("spooled")
    folder.segment("0-1-a", 1).write_bytes(data)
    return folder


def plant_good(home, store_uri):
    """A journal with which nothing is wrong."""
    kinds = {kind: content for kind, content in whole().items() if kind in (Kind.PARAMS, Kind.TAGS, Kind.END)}
    return plant(home, "good", journal(header(store_uri, "good"), kinds.items()))


def runs_of(client):
    """The runs that arrived, by name."""
    experiment = client.get_experiment_by_name("hostile")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def is_whole(run):
    """Whether the good run is there with all that it recorded."""
    return ("FINISHED", {"loss": 0.5, "acc": 0.25}, "0.1", "over") == (
        run.info.status,
        run.data.metrics,
        run.data.params["rate"],
        run.data.tags["phase"],
    )


def seen(folder):
    """Everything in a folder, with its content and the time of its last change."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def is_told(folder, text):
    """Whether any file in a folder, not behind a link in it, holds a text."""
    found = [Path(above) / name for above, _, names in os.walk(folder) for name in names]
    return any(text.encode() in path.read_bytes() for path in found if not path.is_symlink())


def status():
    """What `mlpipeline status --json` says, which never fails."""
    done = CliRunner().invoke(main, ["status", "--json"], catch_exceptions=False)
    assert 0 == done.exit_code
    assert 0 == CliRunner().invoke(main, ["status"], catch_exceptions=False).exit_code
    return {run["uid"]: run for run in json.loads(done.stdout)["runs"]}


# --- any record, mutated ---------------------------------------------------------------------------

JUNK = [
    None, True, -1, 2**70, 1.5, math.inf, math.nan, "", ".", "..", "../../../outside/canary.txt", "/etc/passwd",
    "token", "token/..", "token/a.txt/b", "..\\outside", "links/file", "links/folder", "links/tree", "a'b", "\0",
    "\ud800", "é" * 200, [], {}, [1], {"a": []}, {"a": None}, "DEEP",
]  # fmt: skip


def places(content, above=()):
    """Every place in a record: its keys, and theirs."""
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


@st.composite
def mutations(draw):
    """A header or a record with a value replaced or taken away."""
    kind = draw(st.sampled_from([Kind.RUN, *whole()]))
    content = header("STORE", "bad") if kind is Kind.RUN else copy.deepcopy(whole()[kind])
    # Where a run goes is its recorder's to say, so only what is no address at all is tried there.
    *above, last = draw(
        st.sampled_from([at for at in places(content) if at[-1] not in ("tracking_uri", "user")])
    )
    inner = content
    for key in above:
        inner = inner[key]
    if draw(st.booleans()):
        inner[last] = draw(st.sampled_from(JUNK))
    else:
        del inner[last]
    return kind, content


def hostile_journal(store_uri, mutated):
    """The journal of a run with one bad record among good ones."""
    kind, content = mutated
    kinds = {other: one for other, one in whole().items() if other is not kind}
    kinds = dict(sorted((kinds | ({} if kind is Kind.RUN else {kind: content})).items()))
    end = kinds.pop(Kind.END)
    run_header = content if kind is Kind.RUN else header(store_uri, "bad")
    if isinstance(run_header.get("destination"), dict) and "tracking_uri" in run_header["destination"]:
        run_header["destination"]["tracking_uri"] = store_uri
    return journal(run_header, [*kinds.items(), (Kind.END, end)])


def add_links(folder, outside):
    """Links in a spool, to a file, to a folder, and inside of a folder."""
    (folder.spool / "links" / "tree").mkdir(parents=True)
    (folder.spool / "links" / "file").symlink_to(outside / "canary.txt")
    (folder.spool / "links" / "folder").symlink_to(outside)
    (folder.spool / "links" / "tree" / "MLmodel").symlink_to(outside / "MLmodel")


def check_mutations(mutated, place, copy_store, mlflow_client, caplog):
    """Deliver them beside a good run: it arrives, nothing is blocked, nothing outside is touched."""
    place.mkdir()
    home, outside = place / "home", place / "outside"
    outside.mkdir()
    for name in ("canary.txt", "MLmodel"):
        (outside / name).write_text(SECRET)
    store_uri = copy_store(place / "mlflow.db", str(place / "mlruns"))
    for index, one in enumerate(mutated):
        add_links(plant(home, f"bad-{index}", hostile_journal(store_uri, one)), outside)
    plant_good(home, store_uri)
    before, beside = seen(outside), {*place.parent.glob("*"), *place.glob("*")}
    caplog.clear()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLPIPELINE_HOME", str(home))
        status()
        Courier(Home(home), mode="sync").run(until_idle=True)
        left = status()
    assert [] == [str(entry.exc_info) for entry in caplog.records if entry.exc_info]
    assert is_whole(runs_of(mlflow_client(store_uri))["good"])
    for run in left.values():  # and says why
        assert run["counts"]["refused"] or run["problem"], run
        assert "unexpectedly" not in str(run["problem"]), run
    assert before == seen(outside)
    assert beside | {place / "mlruns"} == {*place.parent.glob("*"), *place.glob("*"), place / "mlruns"}
    assert not is_told(place / "mlruns", SECRET)
    assert not is_told(home, SECRET)


@pytest.mark.parametrize(
    "examples", [6, pytest.param(150, marks=[pytest.mark.faults, pytest.mark.timeout(900)])]
)
def test_no_mutated_record_stops_anybody(examples, tmp_path, copy_store, mlflow_client, caplog):
    """Nor is anything outside of its own folder read, written or deleted; the bad run ends, or is listed."""

    @settings(
        max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(mutations(), min_size=5, max_size=5))
    def hold(mutated):
        check_mutations(mutated, tmp_path / uuid.uuid4().hex, copy_store, mlflow_client, caplog)

    hold()


# --- one by one ------------------------------------------------------------------------------------

NO_HEADERS = {
    "no destination": {"destination": None},
    "a destination that is none": {"destination": []},
    "no tracking URI": {"destination": {"registry_uri": "http://x"}},
    "no URI": {"destination": {"tracking_uri": "http://[x", "registry_uri": "http://x"}},
    "no port": {"destination": {"tracking_uri": "http://x:y", "registry_uri": "http://x"}},
    "a zero byte": {"destination": {"tracking_uri": "sqlite:////x%00", "registry_uri": "http://x"}},
    "half a character": {"destination": {"tracking_uri": "\ud800", "registry_uri": "http://x"}},
    "an attempt without end": {"attempt": math.inf},
    "an attempt in words": {"attempt": "first"},
    "no experiment": {"experiment": None},
    "a parent elsewhere": {"parent": {"uid": "../../outside"}},
    "a keeper elsewhere": {"keeper": {"uid": "..", "of": "good"}},
    "tags that are none": {"tags": 3},
    "nested deep": {"source": "DEEP"},
}


def test_headers_that_are_none_are_listed_and_stop_nobody(home, store_uri, deliver, mlflow_client):
    """Each of them before the good run, in one home; `sync` ends with 1 and no traceback."""
    for number, (name, content) in enumerate(NO_HEADERS.items()):
        plant(home, f"a-{number}", journal(header(store_uri, name, **content), []))
    plant_good(home, store_uri)
    deliver()
    assert is_whole(runs_of(mlflow_client(store_uri))["good"])
    told = status()
    assert {f"a-{number}" for number in range(len(NO_HEADERS))} == told.keys()
    for run in told.values():
        assert "does not say where its run goes" in run["problem"]
        assert 2 == run["counts"]["damaged"], "each header stands there twice"
    done = CliRunner().invoke(main, ["sync"])
    assert (1, SystemExit) == (done.exit_code, type(done.exception))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_half_a_character_is_shown_escaped(home, store_uri, deliver, encoding):
    """As MLflow's answer repeats it, or as any text where the terminal knows only ASCII."""
    plant(home, "a-half", journal(header(store_uri, "half", experiment={"id": "\ud800é"}), whole().items()))
    deliver()
    shown = CliRunner(charset=encoding).invoke(main, ["status"], catch_exceptions=False).stdout
    assert "\\ud800" in shown
    assert ("é" if encoding == "utf-8" else "\\xe9") in shown


@pytest.mark.parametrize("is_late", [False, True], ids=["from the start", "from its second segment"])
def test_a_journal_of_a_newer_format_waits_and_is_told_once(is_late, home, store_uri, mlflow_client, caplog):
    """The others are sent; its own is neither read nor written, and named by `status` and `sync`."""
    newer = records.FORMAT_VERSION + 1
    future = header(store_uri, "newer", format=newer)
    data = records.preamble(newer) + records.json_frames((0, 1), Kind.RUN, future)
    folder = plant(home, "a-newer", journal(header(store_uri, "newer"), []) if is_late else data)
    if is_late:
        folder.segment("0-1-a", 2).write_bytes(data)
    plant_good(home, store_uri)
    courier = Courier(Home(home), mode="sync")
    courier.run(until_idle=True)
    assert is_whole(runs_of(mlflow_client(store_uri))["good"])
    for _ in range(3):
        courier._look()
    told = [entry.getMessage() for entry in caplog.records if f"journal format {newer}" in entry.getMessage()]
    assert is_late or 1 == len(told)
    assert data == folder.segment("0-1-a", 2 if is_late else 1).read_bytes()
    assert is_late == folder.state_file.exists(), "a newer courier's state is not ours to replace"
    run = status()["a-newer"]
    assert f"has journal format {newer}" in run["problem"]
    assert "Upgrade mlpipeline" in run["problem"]
    done = CliRunner().invoke(main, ["sync"])
    assert (1, SystemExit) == (done.exit_code, type(done.exception))
    assert "Upgrade mlpipeline" in done.output


@pytest.mark.process
def test_sync_as_a_process_has_no_traceback(home, store_uri):
    """Beside a header that is none and a journal of a newer format."""
    plant(home, "a", journal({"role": "opener"}, []))
    newer = records.FORMAT_VERSION + 1
    plant(home, "b", records.preamble(newer) + records.json_frames((0, 1), Kind.RUN, {"format": newer}))
    plant_good(home, store_uri)
    done = subprocess.run(
        [sys.executable, "-m", "mlpipeline", "sync"], capture_output=True, text=True, check=False, timeout=100
    )
    assert 1 == done.returncode
    assert "Traceback" not in done.stderr
    assert "records delivered" in done.stdout


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Kind.TAGS, {"tags": {"a": "b"}, "ms": math.inf}),
        (Kind.TAGS, "DEEP"),
        (Kind.TAGS, {"tags": "DEEP", "ms": 1}),
        (Kind.DATASET, {"digest": "d", "ms": 1}),
        (Kind.ARTIFACT, {"artifact_path": None, "ms": 1}),
        (Kind.PARAMS, {"params": {"a": [1]}, "ms": 1}),
        (Kind.MODEL, {"uid": "m", "step": 2**70, "name": "n", "ms": 1}),
        (Kind.EVALUATION, {"of": "../good", "metrics": {"a": 1}, "step": 0, "timestamp_ms": 1, "ms": 1}),
        (Kind.END, {"status": "WHAT", "ms": 1}),
    ],
    ids=str,
)
def test_a_record_that_is_none_is_counted_and_the_run_goes_on(
    kind, content, home, store_uri, deliver, mlflow_client
):
    """The rest of its journal is delivered, and the run ends, with the damage as a tag."""
    good = whole()
    plant(home, "bad", journal(header(store_uri, "bad"), [(kind, content), (Kind.END, good[Kind.END])]))
    deliver()
    run = runs_of(mlflow_client(store_uri))["bad"]
    assert ("FINISHED", "1", 0.5) == (
        run.info.status,
        run.data.tags["mlpipeline.damaged"],
        run.data.metrics["loss"],
    )
    assert [] == list(Home(home).runs())


@pytest.mark.parametrize(
    "spool", [".", "token", "..", "../..", "token/..", "token/../token/a.txt", "a\\b", "\0"]
)
def test_what_is_no_place_in_the_spool_deletes_nothing(spool, home, store_uri, mlflow_client):
    """It is refused, and the file of another record stays for that one."""
    kinds = [(Kind.ARTIFACT, {"spool": spool, "ms": 1}), (Kind.ARTIFACT, whole()[Kind.ARTIFACT])]
    folder = plant(home, "bad", journal(header(store_uri, "bad"), kinds))
    delivery = RunDelivery(Home(home), folder)
    delivery.look()
    sink = MlflowSink(delivery.destination())
    delivery.deliver(sink)
    assert delivery.upload(sink)
    assert ["artifact"] == [letter["kind"] for letter in dead_letters(Home(home), "bad")]
    assert "spooled" == (folder.spool / "token" / "a.txt").read_text()
    assert delivery.upload(sink)
    client = mlflow_client(store_uri)
    assert ["plots/a.txt"] == [item.path for item in client.list_artifacts(delivery.state.run_id, "plots")]


@pytest.mark.parametrize("path", ["../../outside", "/etc", "a/../../b", "a\\..\\b"])
def test_no_artifact_is_written_outside(path, tmp_path, home, outside, store_uri, deliver):
    """A folder among the artifacts that is none of them."""
    content = {**whole()[Kind.ARTIFACT], "artifact_path": path}
    plant(home, "bad", journal(header(store_uri, "bad"), [(Kind.ARTIFACT, content)]))
    before = seen(outside)
    deliver()
    assert before == seen(outside)
    assert ["artifact"] == [letter["kind"] for letter in dead_letters(Home(home), "bad")]
    assert not is_told(tmp_path, "spooled")


@pytest.mark.parametrize("name", ["file", "folder", "tree", "pipe"])
@pytest.mark.parametrize("kind", [Kind.ARTIFACT, Kind.MODEL])
def test_links_and_pipes_in_the_spool_are_not_followed(
    name, kind, tmp_path, home, outside, store_uri, deliver
):
    """Each is refused with the reason; what they lead to is neither sent, nor changed, nor deleted."""
    content = {**whole()[kind], "spool": f"links/{name}"}
    folder = plant(home, "bad", journal(header(store_uri, "bad"), [(kind, content)]))
    add_links(folder, outside)
    os.mkfifo(folder.spool / "links" / "pipe")
    before = seen(outside)
    deliver()
    assert before == seen(outside)
    assert not is_told(tmp_path / "mlruns", SECRET)
    (letter,) = dead_letters(Home(home), "bad")
    assert "is a link or no file at all, and is not followed" in letter["reason"]
    assert not folder.path.exists()


def test_a_spool_that_is_a_link_is_neither_read_nor_emptied(home, outside, store_uri, deliver):
    """The run ends, and the link goes with its folder."""
    content = {**whole()[Kind.ARTIFACT], "spool": "inner/canary.txt"}
    folder = plant(home, "bad", journal(header(store_uri, "bad"), [(Kind.ARTIFACT, content)]))
    shutil.rmtree(folder.spool)
    folder.spool.symlink_to(outside)
    before = seen(outside)
    deliver()
    assert before == seen(outside)
    assert ["artifact"] == [letter["kind"] for letter in dead_letters(Home(home), "bad")]
    assert not folder.path.exists()


def test_a_file_that_is_gone_from_the_spool_is_refused(home, store_uri, deliver):
    """Nobody will bring it back, so nobody waits for it."""
    content = {**whole()[Kind.ARTIFACT], "spool": "token/b.txt"}
    folder = plant(home, "bad", journal(header(store_uri, "bad"), [(Kind.ARTIFACT, content)]))
    deliver()
    (letter,) = dead_letters(Home(home), "bad")
    assert "is gone from the spool" in letter["reason"]
    assert not folder.path.exists()


# --- links and pipes in the home -------------------------------------------------------------------


def test_a_run_folder_that_is_a_link_is_told_and_not_followed(
    home, outside, store_uri, deliver, mlflow_client
):
    """Not even when it holds a whole journal, or is the name of a child that is to get its own there."""
    plant_good(home, store_uri)
    elsewhere = plant(home, "elsewhere", journal(header(store_uri, "elsewhere"), []))
    elsewhere.path.rename(outside / "elsewhere")
    elsewhere.path.symlink_to(outside / "elsewhere")
    before = seen(outside)
    deliver()
    assert {"good"} == runs_of(mlflow_client(store_uri)).keys()
    assert "is a link, which is not followed" in status()["elsewhere"]["problem"]
    with pytest.raises(OSError, match="not followed"):
        elsewhere.create()
    assert before == seen(outside)
    assert Home(home).state("elsewhere") is None


@pytest.mark.parametrize("name", ["dead", "done"])
def test_a_linked_folder_of_the_home_takes_nothing(name, home, outside, store_uri, deliver, mlflow_client):
    """Neither dead letters nor last states are written behind it, nor old files there deleted."""
    content = {**whole()[Kind.ARTIFACT], "spool": "nowhere"}
    plant(home, "bad", journal(header(store_uri, "bad"), [(Kind.ARTIFACT, content)]))
    (home / name).rmdir()
    (home / name).symlink_to(outside)
    before = seen(outside)
    deliver()
    assert before == seen(outside)
    assert "bad" in runs_of(mlflow_client(store_uri))
    assert "a link, which is not followed" in status()["bad"]["problem"]


@pytest.mark.parametrize("name", ["state.json", "dead", "segment"])
def test_a_linked_file_of_the_home_is_neither_read_nor_written(
    name, home, outside, store_uri, mlflow_client, deliver
):
    """A state, dead letters, a segment."""
    good = whole()
    # A version of a model that is not there is refused.
    kinds = [(Kind.VERSION, good[Kind.VERSION]), (Kind.TAGS, good[Kind.TAGS]), (Kind.END, good[Kind.END])]
    data = journal(header(store_uri, "bad"), kinds)
    folder = plant(home, "bad", data)
    (outside / "state.json").write_text(json.dumps({"run_id": "0" * 32, "problem": SECRET}))
    (outside / "segment").write_bytes(
        journal(header(store_uri, SECRET, attempt=0), [(Kind.TAGS, {"tags": {"phase": SECRET}, "ms": 9000})])
    )
    path = {
        "state.json": folder.state_file,
        "dead": Home(home).dead_file("bad"),
        "segment": folder.segment("0-1-b", 1),
    }[name]
    path.symlink_to(outside / ("canary.txt" if name == "dead" else name))
    os.utime(outside / "canary.txt")  # an old one would be taken for a letter to forget, and the link go
    before = seen(outside)
    deliver()
    assert before == seen(outside)
    assert SECRET not in json.dumps(status())
    run = runs_of(mlflow_client(store_uri))["bad"]
    # What was refused and cannot be kept is not let go of: its run waits.
    assert ("RUNNING" if name == "dead" else "FINISHED", "over") == (run.info.status, run.data.tags["phase"])


def test_what_is_no_file_is_no_segment(home, store_uri, deliver, mlflow_client):
    """A pipe that would be waited at for ever, a folder, a number that is none."""
    folder = plant(home, "bad", journal(header(store_uri, "bad"), [(Kind.END, whole()[Kind.END])]))
    os.mkfifo(folder.segment("0-1-b", 1))
    folder.segment("0-1-c", 1).mkdir()
    (folder.path / "0-1-d.².seg").touch()
    deliver()
    assert "FINISHED" == runs_of(mlflow_client(store_uri))["bad"].info.status
    assert 0 == status()["bad"]["counts"]["pending"]


@pytest.mark.parametrize("uid", ["../x", "..", ".x", "", "a/b", "a\\b", "a\0", "\ud800", "x" * 201, "a\nb"])
def test_a_name_that_could_lead_elsewhere_is_no_runs(uid, home):
    """Wherever it came from."""
    for ask in (Home(home).run, Home(home).state, Home(home).done_file, Home(home).dead_file):
        with pytest.raises(UsageError, match="no name of a run"):
            ask(uid)


@pytest.mark.parametrize("content", ['{"offsets": {"w": 5}}', '{"uploads": 3}', '{"run_id": []}', DEEP, "7"])
def test_a_state_that_is_none_counts_as_absent(content, tmp_path):
    """The journal is read from its start, which stores nothing twice."""
    path = tmp_path / "state.json"
    path.write_text(content)
    assert RunState.load(path) is None


# --- counting --------------------------------------------------------------------------------------


def test_damage_is_counted_once_whoever_reads_on(home, store_uri, mlflow_client):
    """Neither a new courier nor a reader that goes forgets it, and none counts it again."""
    bad, end = (Kind.TAGS, {"tags": 3}), (Kind.END, whole()[Kind.END])
    folder = plant(home, "bad", journal(header(store_uri, "bad"), [bad, bad]))
    for damaged in (2, 3, 3):
        delivery = RunDelivery(Home(home), folder)
        delivery.look()
        while not delivery.is_finished:
            delivery.deliver(MlflowSink(delivery.destination()))
        assert damaged == delivery.state.damaged
        assert damaged == account_of(Home(home), "bad").counts.damaged
        if not folder.segment("0-1-b", 1).exists():
            data = journal(header(store_uri, "bad", attempt=2), [bad, end])
            folder.segment("0-1-b", 1).write_bytes(data)
    assert "3 damaged" in CliRunner().invoke(main, ["status"]).output
    assert "3" == runs_of(mlflow_client(store_uri))["bad"].data.tags["mlpipeline.damaged"]


def test_what_other_journals_hold_is_not_lost_with_one_that_cannot_be_read(home, store_uri, mlflow_client):
    """They are delivered first; then the run says what it waits for."""
    folder = plant(home, "bad", journal(header(store_uri, "bad"), []))
    folder.segment("0-1-b", 1).write_bytes(journal(header(store_uri, "bad"), []))
    delivery = RunDelivery(Home(home), folder)
    delivery.look()
    folder.segment("0-1-b", 1).write_bytes(records.preamble(9) + b"x" * 20)
    sink = MlflowSink(delivery.destination())
    delivery.deliver(sink)
    assert 0.5 == runs_of(mlflow_client(store_uri))["bad"].data.metrics["loss"]
    with pytest.raises(Unavailable, match="journal format 9"):
        delivery.deliver(sink)


def test_half_a_dead_letter_costs_that_one(home):
    """The next stands on a line of its own, and those that cannot be read are counted."""
    Home(home).create()
    letter = json.dumps({"kind": "tag", "content": {}, "reason": "no"})
    path = Home(home).dead_file("run")
    path.write_bytes(letter.encode()[:20])
    append_line(path, letter)
    append_line(path, "[]")
    assert ["tag", "unreadable"] == [one["kind"] for one in dead_letters(Home(home), "run")]
    assert "2 lines" in dead_letters(Home(home), "run")[1]["reason"]
    assert ["tag", "unreadable"] == [one["kind"] for one in status()["run"]["refused"]]


def test_a_full_disk_leaves_no_half_letter(home):
    """RLIMIT_FSIZE stands for the full disk: what is there stays as it was, and the record waits."""
    Home(home).create()
    path = Home(home).dead_file("run")
    append_line(path, "a" * 100)
    code = f"""
import resource, signal
from pathlib import Path
from mlpipeline.tracking.home import append_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))
try:
    append_line(Path({str(path)!r}), "b" * 100)
except OSError:
    print("full")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "full\n" == done.stdout
    assert "a" * 100 + "\n" == path.read_text()


# --- golden ----------------------------------------------------------------------------------------


def history(client, run, key):
    """The points of a metric."""
    return [
        (point.value, point.timestamp, point.step)
        for point in client.get_metric_history(run.info.run_id, key)
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_a_golden_journal_arrives_with_every_kind(number, home, store_uri, mlflow_client, deliver):
    """Its points to the last bit, from behind a header that names this store; then a whole record of each kind.

    The golden records themselves are bare: none of them says anything, and each is counted.
    """
    data = (GOLDEN / f"format-{number}.seg").read_bytes()
    size, good = records.PREAMBLE.size, whole()
    here = header(store_uri, "golden")
    good[Kind.MODEL]["spool"] = "model/files"
    good[Kind.VERSION]["ms"] = 2000
    good[Kind.CHILD] |= {"header": {**here, "run_name": "child", "parent": {"uid": "golden"}}}
    good[Kind.CHILD]["records"] = [[int(Kind.PARAMS), good[Kind.PARAMS]], [int(Kind.END), good[Kind.END]]]
    good[Kind.EVALUATION]["of"] = "golden"
    if number == 1:
        del good[Kind.CHILD], good[Kind.EVALUATION]
    added = b"".join(frame(30 + index, *item) for index, item in enumerate(good.items()))
    bare = records.scan(data[size:], size, is_final=True).frames
    named = records.json_frame(20, Kind.RUN, here)
    folder = plant(home, "golden", data[:size] + named + data[size:] + added)
    (folder.spool / "model" / "files").mkdir(parents=True)
    (folder.spool / "model" / "files" / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: x\n"
    )
    deliver()
    client, runs = mlflow_client(store_uri), runs_of(mlflow_client(store_uri))
    run = runs["golden"]
    assert [(0.5, 1000, 1), (0.125, 2000, 2)] == history(client, run, "loss")
    assert [(0.25, 1000, 1), (-1.0, 2000, 7)] == history(client, run, "acc")
    assert ("FINISHED", "0.1", "over") == (run.info.status, run.data.params["rate"], run.data.tags["phase"])
    assert ["d"] == [one.dataset.name for one in run.inputs.dataset_inputs]
    assert ["plots/a.txt"] == [item.path for item in client.list_artifacts(run.info.run_id, "plots")]
    assert "2" == run.data.tags["mlpipeline.dropped"]
    nothing_to_say = {Kind.KEYS, Kind.METRICS, Kind.METRICS_STEPS, Kind.CHILD}
    damaged = sum(one.kind not in nothing_to_say for one in bare)
    assert str(damaged) == run.data.tags["mlpipeline.damaged"]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert run.info.run_id == model.source_run_id
    version = client.get_model_version_by_alias("best", "champion")
    assert ("1", run.info.run_id) == (str(version.version), version.run_id)
    if number == 2:
        assert ("FINISHED", {"rate": "0.1"}) == (runs["child"].info.status, runs["child"].data.params)
        assert ["f1"] == [metric.key for metric in model.metrics]
