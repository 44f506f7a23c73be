"""What MLflow gives an id to exists once, also where its answer was lost and its create came late."""

from __future__ import annotations

import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from sklearn.linear_model import LinearRegression

from mlpipeline import MLflowConfig
from mlpipeline.testing.faults import FaultyProxy, answered, cut, first, only, passed
from mlpipeline.tracking import creation
from mlpipeline.tracking.account import account_of
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlpipeline.testing.faults import Exchange
    from mlpipeline.tracking.run import Run

pytestmark = pytest.mark.server

CREATES = {
    "run": "/runs/create",
    "model": "/mlflow/logged-models",
    "version": "/model-versions/create",
}


@pytest.fixture
def proxy(server) -> Iterator[FaultyProxy]:
    """A proxy in front of the test's server."""
    with FaultyProxy(server.uri) as proxy:
        yield proxy


def recorded(proxy: FaultyProxy) -> Run:
    """A run with a model that is registered, in the journal only."""
    name = f"twins-{uuid.uuid4().hex[:8]}"
    config = MLflowConfig(
        tracking_uri=proxy.uri, experiment_name=name, register_model=True, model_name=name, delivery="offline"
    )
    run = open_run(config)
    run.log_metrics({"loss": 0.5}, step=0)
    run.log_model(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]))
    run.end()
    return run


def left(server_uri: str, run: Run) -> tuple[list[str], list[str], list[str]]:
    """The statuses of runs and models, and the versions, that are there."""
    client = MlflowClient(server_uri, server_uri)
    name = str(run.config.experiment_name)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    models = client.search_logged_models([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{name}'")
    return (
        [found.info.status for found in runs],
        [str(model.status) for model in models],
        [str(version.version) for version in versions],
    )


@pytest.mark.parametrize("kind", CREATES)
def test_a_create_whose_answer_was_lost_is_found_and_not_made_again(
    kind: str, proxy: FaultyProxy, server, deliver: Callable[[], None]
) -> None:
    """By our uid, which it carries."""
    run = recorded(proxy)
    proxy.fault = only(CREATES[kind], first(1, cut))
    deliver()
    deliver()
    assert (["FINISHED"], ["READY"], ["1"]) == left(server.uri, run)


def test_a_link_whose_answer_was_lost_is_there(
    proxy: FaultyProxy, server, deliver: Callable[[], None]
) -> None:
    """MLflow refuses to link a model to its run once more; that costs neither the model nor its version."""
    run = recorded(proxy)
    proxy.fault = only("/runs/outputs", first(1, cut))
    deliver()
    deliver()
    assert (["FINISHED"], ["READY"], ["1"]) == left(server.uri, run)
    assert 0 == run.counts().refused


class Late:
    """A create that the server commits only after its look-up: the request hangs on the way."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.held: list[threading.Thread] = []
        self.gate = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if (
            self.path in exchange.path
            and exchange.method == "POST"
            and "search" not in exchange.path
            and not self.held
        ):
            self.held.append(threading.Thread(target=self._commit, args=(exchange,)))
            self.held[0].start()
            exchange.cut()
        else:
            exchange.reply(exchange.forward())

    def _commit(self, exchange: Exchange) -> None:
        self.gate.wait()
        exchange.forward()

    def commit(self) -> None:
        """Let it through."""
        self.gate.set()
        self.held[0].join()


@pytest.mark.parametrize("kind", CREATES)
def test_a_twin_that_is_committed_late_is_removed(
    kind: str, proxy: FaultyProxy, server, deliver: Callable[[], None], home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the run was delivered and ended, by the look that is taken once more later."""
    run = recorded(proxy)
    late = proxy.fault = Late(CREATES[kind])
    deliver()
    deliver()
    before = left(server.uri, run)
    assert (["FINISHED"], ["READY"], ["1"]) == before
    late.commit()
    assert before != left(server.uri, run)
    assert Home(home).run(run.uid).path.exists(), "the doubt is kept"
    monkeypatch.setattr(creation, "DOUBT_S", 0.0)
    deliver()
    assert (["FINISHED"], ["READY"]) == left(server.uri, run)[:2]
    assert 1 == len(left(server.uri, run)[2])
    assert not Home(home).run(run.uid).path.exists()


def test_a_server_that_wants_to_rest_is_left_alone_so_long(
    proxy: FaultyProxy, server, deliver: Callable[[], None]
) -> None:
    """Retry-After is meant for whoever calls: no record of no run is tried before."""
    runs = [recorded(proxy) for _ in range(3)]
    asked_s: list[float] = []
    busy = answered(429, ("Retry-After", "2"))

    def fault(exchange: Exchange) -> None:
        asked_s.append(time.monotonic())
        busy(exchange) if len(asked_s) == 1 else exchange.reply(exchange.forward())

    proxy.fault = fault
    deliver()
    assert asked_s[1] - asked_s[0] >= 2.0
    deliver()
    assert all((["FINISHED"], ["READY"], ["1"]) == left(server.uri, run) for run in runs)


def test_an_end_that_has_not_arrived_is_pending(
    proxy: FaultyProxy, home: Path, deliver: Callable[[], None]
) -> None:
    """It is sent after everything else, and what waits for a run waits for it too."""
    run = open_run(MLflowConfig(tracking_uri=proxy.uri, experiment_name="ends", delivery="offline"))
    run.log_metrics({"loss": 0.5}, step=0)
    run.end()
    proxy.fault = only("/runs/update", cut)
    deliver()
    counts = account_of(Home(home), run.uid).counts
    assert (1, 1) == (counts.delivered, counts.pending)
    proxy.fault = passed
    deliver()
    counts = account_of(Home(home), run.uid).counts
    assert (2, 0) == (counts.delivered, counts.pending)
