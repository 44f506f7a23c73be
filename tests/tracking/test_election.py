"""Homes that know nothing of each other agree on one run, whatever order their requests come in."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any

import pytest
from mlflow.entities import ViewType

from mlpipeline import MLflowConfig
from mlpipeline.tracking import election
from mlpipeline.tracking.creation import Creation, NotYet
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.election import CLAIM_TAG
from mlpipeline.tracking.home import Home, RunState
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.sink import MlflowSink

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator

    from mlflow import MlflowClient

UID = "0123456789abcdef"

BRANCHING = 6
"""Of so many requests every order is tried; of ten, all that two make before they agree, it takes a minute."""


class Stopped(BaseException):
    """A home was killed."""


class Stepping:
    """A home that looks for its run, one request at a time, when told so.

    Its sink is a real one; each of its requests waits for `step`.
    """

    def __init__(self, sink: MlflowSink, experiment: str) -> None:
        self._sink, self._experiment = sink, experiment
        self._is_saved = threading.Lock()
        self.state = RunState()
        self.run_id: str | None = None
        self.error: BaseException | None = None
        self._start()

    def _start(self) -> None:
        self._go, self._came, self._is_killed = threading.Semaphore(0), threading.Semaphore(0), False
        self._creation = Creation(UID, self.state, self._keeping)
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self._came.acquire()

    def _keeping(self) -> contextlib.AbstractContextManager[Any]:
        return self._is_saved

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._sink, name)

        def stepped(*args: object) -> object:
            self._came.release()
            self._go.acquire()
            if self._is_killed:
                raise Stopped
            return request(*args)

        return stepped

    def _look(self) -> None:
        header = {"experiment": {"id": self._experiment}, "is_elected": True, "attempt": 1}
        try:
            while self.run_id is None:
                try:
                    self.run_id = self._creation.run(self, header, {}).info.run_id  # type: ignore[arg-type]
                except NotYet:
                    continue
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            self.error = error
        finally:
            self._came.release()

    @property
    def goes_on(self) -> bool:
        """Whether it makes further requests."""
        return self._thread.is_alive() and self.run_id is None and self.error is None

    def step(self) -> None:
        """Let one request through."""
        assert self.goes_on
        self._go.release()
        self._came.acquire()

    def kill(self) -> None:
        """Stop it between two requests, for good; what it wrote down stays."""
        self._is_killed = True
        self._go.release()
        self._thread.join()

    def restart(self) -> None:
        """Look again, after `kill`."""
        self._start()


@pytest.fixture
def sink(store_uri: str) -> MlflowSink:
    """The store that all homes deliver to."""
    sink = MlflowSink(Destination(store_uri, store_uri, ""))
    sink.load()
    return sink


@pytest.fixture
def homes(sink: MlflowSink, mlflow_client, store_uri: str) -> Iterator[Callable[[int], list[Stepping]]]:
    """Make so many homes with an experiment of their own; none is left running."""
    made: list[Stepping] = []

    def make(count: int) -> list[Stepping]:
        experiment = mlflow_client(store_uri).create_experiment(f"election {len(made)}")
        made.extend(Stepping(sink, experiment) for _ in range(count))
        return made[-count:]

    yield make
    for home in made:
        if home.goes_on:
            home.kill()


def agreed(homes: list[Stepping], client: MlflowClient) -> str:
    """The run that all of these took, and the only one that stands."""
    assert [None] * len(homes) == [home.error for home in homes]
    (run_id,) = {home.run_id for home in homes}
    experiment = client.get_run(str(run_id)).info.experiment_id
    assert [run_id] == [run.info.run_id for run in client.search_runs([experiment])]
    return str(run_id)


def ran(homes: list[Stepping], choose: Callable[[list[Stepping]], Stepping]) -> None:
    """Step until none goes on."""
    while going := [home for home in homes if home.goes_on]:
        choose(going).step()


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_requests_ends_with_one_run(seed: int, homes, mlflow_client, store_uri: str) -> None:
    three = homes(3)
    ran(three, random.Random(seed).choice)
    agreed(three, mlflow_client(store_uri))


def test_every_order_of_the_requests_of_two_ends_with_one_run(homes, mlflow_client, store_uri: str) -> None:
    """All of them, while both look: who waits for the other's turn gives way."""
    client, pending, orders = mlflow_client(store_uri), [()], 0
    while pending:
        prefix = pending.pop()
        two, order = homes(2), list(prefix)
        for home in two:
            home.step()  # the experiment
        waited = 0
        for number in prefix:
            if two[number].goes_on:  # ids are drawn, and who wins a draw has less to do
                two[number].step()
        while going := [number for number in (0, 1) if two[number].goes_on]:
            if len(going) == 2 and len(order) < BRANCHING:
                pending.append((*order, 1))
            waited += 1
            assert waited < 40, "they wait for each other"
            order.append(going[0] if len(order) < BRANCHING else going[waited % len(going)])
            two[order[-1]].step()
        agreed(two, client)
        orders += 1
    assert orders > 20


def test_who_is_first_keeps_its_run_and_who_comes_later_takes_it(homes, mlflow_client, store_uri) -> None:
    """The candidate of the second stands between the look of the first and the end."""
    first, second = homes(2)
    second.step()  # the experiment
    second.step()  # it looks, and finds nothing
    ran([first], lambda going: going[0])
    ran([second], lambda going: going[0])
    assert first.run_id == agreed([first, second], mlflow_client(store_uri))


def test_who_has_its_turn_waits_for_who_is_choosing(homes, mlflow_client, store_uri) -> None:
    """The other's may be the lower one: both looked before either had one."""
    two = first, second = homes(2)
    for _ in range(3):  # the experiment, a look, a candidate
        for home in two:
            home.step()
    for _ in range(12):
        first.step()
    assert first.goes_on
    ran([second], lambda going: going[0])
    ran([first], lambda going: going[0])
    agreed([first, second], mlflow_client(store_uri))


@pytest.mark.parametrize("requests", range(1, 7))
def test_a_home_that_is_killed_goes_on_from_there(requests: int, homes, mlflow_client, store_uri) -> None:
    """It knows its candidate by its token."""
    (home,) = homes(1)
    for _ in range(requests):
        if home.goes_on:
            home.step()
    if home.goes_on:
        home.kill()
        home.restart()
    ran([home], lambda going: going[0])
    run = mlflow_client(store_uri).get_run(agreed([home], mlflow_client(store_uri)))
    assert f"1 {home.state.token}" == run.data.tags[CLAIM_TAG]


def test_a_candidate_that_nobody_cares_for_gets_its_turn_from_another(
    homes, mlflow_client, store_uri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its maker was killed, and never comes back; until that is likely, it is waited for."""
    gone, other = homes(2)
    for _ in range(3):
        gone.step()  # the experiment, a look, its candidate
    gone.kill()
    for _ in range(20):
        other.step()
    assert other.goes_on
    monkeypatch.setattr(election, "CHOOSING_AT_MOST_S", 0.0)
    ran([other], lambda going: going[0])
    gone.restart()
    ran([gone], lambda going: going[0])
    agreed([gone, other], mlflow_client(store_uri))


def test_a_run_that_its_owner_deleted_is_not_made_again(homes, mlflow_client, store_uri) -> None:
    """Nor is a candidate that lost taken for it."""
    first, second, third = homes(3)
    ran([first, second], random.Random(1).choice)
    mlflow_client(store_uri).delete_run(first.run_id)
    third.step()
    third.step()
    assert "was deleted" in str(third.error)


def test_two_homes_deliver_one_shared_run(store_uri, mlflow_client, tmp_path) -> None:
    """With what both recorded, and with no candidate left."""
    from mlpipeline.tracking.sync import send_all

    for name in ("one", "other"):
        config = MLflowConfig(
            tracking_uri=store_uri,
            experiment_name="shared",
            delivery="offline",
            journal_dir=str(tmp_path / name),
        )
        run = open_run(config, shared_uid=UID)
        run.log_metrics({name: 1.0}, step=0)
        run.end()
    threads = [threading.Thread(target=send_all, args=(Home(tmp_path / name),)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = mlflow_client(store_uri)
    experiment = client.get_experiment_by_name("shared")
    (found,) = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)
    assert {"one": 1.0, "other": 1.0} == found.data.metrics
    assert "FINISHED" == found.info.status
