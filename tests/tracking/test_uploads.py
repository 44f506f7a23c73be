"""In which order a run's files and models are sent, where some fail, wait or have gone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from mlpipeline.tracking.home import Home, RunState
from mlpipeline.tracking.uploads import Uploads
from mlpipeline.tracking.verdicts import Unavailable

if TYPE_CHECKING:
    from pathlib import Path


class Sending:
    """A run, and a sink that fails with what is in `failing`; `sent` is what it took."""

    def __init__(self, home: Path) -> None:
        self.folder = Home(home).run("a-run")
        self.state = RunState(run_id="1", experiment_id="0")
        self.is_gone = False
        self.creation = self
        self.failing: set[str] = set()
        self.sent: list[str] = []
        self.buried: list[tuple[str, str]] = []
        self.verdict: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None
        self.keeper: dict[str, str] | None = None
        self.uploads = Uploads(Home(home), self)  # type: ignore[arg-type]  # what it knows of a run

    # the run

    def keeping(self) -> Any:
        return contextlib.nullcontext()

    def header(self) -> dict[str, Any]:
        return {"keeper": self.keeper}

    def coming_end(self) -> dict[str, Any] | None:
        return self.end

    def bury(self, kind: str, content: dict[str, Any], reason: str) -> None:
        self.buried.append((kind, reason))

    # the sink

    def upload(self, run_id: str, local: Path, artifact_path: str | None) -> None:
        self._take(local.read_text())

    def model(self, sink: Any, record: dict[str, Any]) -> str:
        self._take(record["uid"])
        self.state.models[record["uid"]] = {"model_id": record["uid"]}
        return str(record["uid"])

    def fill_model(self, *_: Any) -> None:
        pass

    def version(self, sink: Any, record: dict[str, Any]) -> None:
        self._take(f"version of {record['model_uid']}")

    def log_evaluation(self, run_id: str, model_id: str, record: dict[str, Any]) -> None:
        self._take(f"evaluation of {model_id}")

    def _take(self, what: str) -> None:
        if what in self.failing:
            raise Unavailable("not now")
        self.sent.append(what)

    # the test

    def file(self, content: str, path: str) -> None:
        """Spool a file."""
        folder, _, name = path.rpartition("/")
        number = len(self.state.uploads)
        place = self.folder.spool / str(number) / name
        place.parent.mkdir(parents=True)
        place.write_text(content)
        about = {"file": name, "artifact_path": folder or None, "spool": f"{number}/{name}"}
        self.state.uploads.append({"kind": "ARTIFACT", **about})

    def record(self, kind: str, **about: Any) -> None:
        """Add what has no file."""
        self.state.uploads.append({"kind": kind, **about})

    def send(self, turns: int = 20) -> list[str]:
        """Give it turns, as the courier does: what was taken in them."""
        self.sent = []
        for _ in range(turns):
            with contextlib.suppress(Unavailable):
                self.uploads.send_next(self)  # type: ignore[arg-type]  # what it asks of a sink
        return self.sent


@pytest.fixture
def sending(home: Path) -> Sending:
    """A run with nothing to send yet."""
    Home(home).create()
    return Sending(home)


def test_a_file_that_fails_goes_after_the_others(sending: Sending) -> None:
    """It is tried again when they are sent, and arrives when it can."""
    for name in "abc":
        sending.file(name, f"{name}.txt")
    sending.failing = {"a"}
    assert ["b", "c"] == sending.send()
    sending.failing = set()
    assert ["a"] == sending.send()


@pytest.mark.parametrize("path", ["plots/a.txt", "plots/a.txt/a.txt"])
def test_a_newer_file_never_goes_before_an_older_one_at_its_place(sending: Sending, path: str) -> None:
    """Or the older content would be there in the end."""
    sending.file("old", "plots/a.txt")
    sending.file("new", path)
    sending.file("other", "plots/b.txt")
    sending.failing = {"old"}
    assert ["other"] == sending.send()
    sending.failing = set()
    assert ["old", "new"] == sending.send()


def test_a_version_waits_for_its_model_and_files_for_neither(sending: Sending) -> None:
    """Another model goes its way, with its version, unless both have one name in the registry."""
    for uid, name in (("first", "one"), ("second", "one"), ("third", "two")):
        sending.record("MODEL", uid=uid, name="model")
        sending.record("VERSION", uid=f"of-{uid}", model_uid=uid, name=name)
    sending.file("a", "a.txt")
    sending.failing = {"first"}
    assert ["second", "third", "version of third", "a"] == sending.send()
    sending.failing = set()
    assert ["first", "version of first", "version of second"] == sending.send()


def test_a_model_that_waits_for_its_verdict_holds_up_no_file(sending: Sending) -> None:
    """And with nothing else left the run is idle."""
    sending.keeper = {"uid": "a-run", "of": "its-parent"}
    sending.record("MODEL", uid="m", name="model")
    sending.file("a", "a.txt")
    assert not sending.uploads.holds_models()
    assert ["a"] == sending.send()
    assert sending.uploads.holds_models()


def test_the_evaluation_of_a_model_that_could_not_be_logged_is_refused(sending: Sending) -> None:
    """When the run ends: until then a model may come."""
    sending.record("EVALUATION", of="a-run", metrics={})
    assert [] == sending.send()
    sending.record("MODEL", uid="m", name="model")
    assert ["m", "evaluation of m"] == sending.send()
    sending.state.models = {}
    sending.end = {"status": "FINISHED"}
    sending.record("EVALUATION", of="a-run", metrics={})
    sending.send()
    assert [] == sending.state.uploads
    assert ["evaluation"] == [kind for kind, _ in sending.buried]


def test_a_file_that_is_not_in_the_spool_any_more_is_a_dead_letter(sending: Sending) -> None:
    """It does not come back; the others go."""
    sending.file("a", "a.txt")
    sending.file("b", "b.txt")
    (sending.folder.spool / "0" / "a.txt").unlink()
    assert ["b"] == sending.send()
    ((kind, reason),) = sending.buried
    assert "artifact" == kind
    assert "is gone from the spool" in reason


def test_thousands_of_files_are_sent_in_order_in_no_time(sending: Sending) -> None:
    """What fails among them does not make each send go through all of them for long."""
    for number in range(300):
        sending.file(str(number), f"{number}.txt")
    sending.failing = {"0"}
    assert [str(number) for number in range(1, 300)] == sending.send(310)
