"""`IntegrationContract`: what holds for every integration, as tests that its author inherits.

::

    class TestMine(IntegrationContract):        pytest test_mine.py
        def callback(self, **options): …          ├─ 20 rules, each a test
        def train(self, callback, …): …           └─ the table rule x integration

Every rule trains the real framework and reads the answer back from a real store or server. A rule that
a broken callback does not turn red would say nothing: this package's own tests break one for each.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import logging
import math
import pickle
import sys
import tempfile
import threading
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlpipeline.core.errors import MissingExtraError, UsageError
from mlpipeline.testing import faults, traces
from mlpipeline.testing.faults import FaultyProxy
from mlpipeline.testing.places import Server, copied_store, isolated, migrated_store, serving
from mlpipeline.testing.table import ABSENT, BROKEN, KEPT, ON_PURPOSE, PROPERTY, Table
from mlpipeline.testing.trials import Arrived, Children, Place
from mlpipeline.tracking.dispatch import stop_couriers
from mlpipeline.tracking.run import Run

try:
    import pytest
except ImportError as error:
    raise MissingExtraError("testing", error.name or "pytest") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


STEPS = 4
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Trained:
    """A training that ended, as the framework itself tells of it.

    Attributes:
        reported: Per metric, under the name that it has in MLflow, its values in order, as the
            framework's own history, logger or printout has them.
        model: The weights; equal bytes mean an equal model.
        carry: What a later training resumes from, such as a checkpoint's path; None where there is
            no such thing.
        touched: What became of the user's objects; see `mlpipeline.testing.watched`.
    """

    reported: Mapping[str, Sequence[float]]
    model: bytes
    touched: Mapping[str, Sequence[str]]
    carry: Any = None


class Interruption(Exception):  # noqa: N818 - of the user's own code, in the middle of a training
    """What a training is stopped with."""


def rules() -> dict[str, str]:
    """Return the key of each rule, and its title."""
    return {
        name.removeprefix("test_"): str(rule.__doc__).splitlines()[0].rstrip(".")
        for name, rule in vars(IntegrationContract).items()
        if name.startswith("test_")
    }


# --- what a training is asked in its middle ----------------------------------------------------------


def _eighths(step: int) -> float:
    return step / 8


def _nothing(_: int) -> None:
    pass


@dataclass
class Probe:
    """The user's own code in a training: a metric, and what else happens in the middle of a step.

    Attributes:
        value: What the metric is at a step.
        at: Called with the step before; may raise, wait, or end the process.
        steps: The steps it was called in.
    """

    value: Callable[[int], Any] = _eighths
    at: Callable[[int], Any] = _nothing
    steps: list[int] = field(default_factory=list)

    def __call__(self, step: int) -> Any:
        """Return the metric of a step."""
        self.steps.append(int(step))
        self.at(step)
        return self.value(step)


class IntegrationContract:
    """What a user of an integration may rely on, as tests.

    Derive from it in a test file, say in `callback` and `train` how the framework trains, and run pytest:
    each rule is a test, and the table of rules is printed at the end. The file must be loadable by its
    path alone and must not import MLflow, because some rules load it into a process of their own.

    Attributes:
        name: The integration's column in the table; None takes the name of the class.
        lacks: What the framework has no notion of: the key of a rule (its method's name without
            ``test_``), and the reason, which the table shows.
        probe: Name in MLflow of the metric that the probe's values are.
        writes_per_step: Budget of `test_cost`: writes to the journal in a plain step.
        calls_per_step: Budget of `test_cost`: function calls that tracking adds to a plain step.
        stall_s: How long a training may wait for a server that is away before `test_server_*` call it
            stalled. It only matters where one does.
    """

    name: ClassVar[str | None] = None
    lacks: ClassVar[Mapping[str, str]] = {}
    probe: ClassVar[str] = "probe"
    writes_per_step: ClassVar[int] = 1
    calls_per_step: ClassVar[int] = 500
    stall_s: ClassVar[float] = 60.0

    # --- what the author says -----------------------------------------------------------------------

    def callback(self, **options: Any) -> Any:
        """Return a new callback of the integration.

        Args:
            **options: Options of `MLflowConfig`.
        """
        raise NotImplementedError

    def train(
        self, callback: Any, *, steps: int, probe: Callable[[int], Any], continue_from: Any = None
    ) -> Trained:
        """Train a small model as a user would; with equal seeds, equally.

        Args:
            callback: Of `callback`; None trains without tracking.
            steps: How many steps to train: batches, rounds, epochs, trials.
            probe: To be called once in the middle of every step with the step's number, from where the
                user's own code is, such as a metric or a loss; what it returns is a metric of the step.
            continue_from: The `Trained.carry` of a training that this one goes on from: its steps too.
        """
        raise NotImplementedError

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if unknown := cls.lacks.keys() - rules().keys():
            raise UsageError(
                f"{cls.__name__}.lacks names {sorted(unknown)}, which are no rules; they are {sorted(rules())}"
            )

    # --- what is recorded ---------------------------------------------------------------------------

    def test_values(self, place: Place) -> None:
        """Values are those that the framework itself reports.

        Every one of them, in order, to the last bit.
        """
        uri = place.store()
        trained = self.run_training(self.callback(**place.options(uri)))
        place.deliver()
        self._assert_complete(place.only(uri), trained)

    def test_steps(self, place: Place) -> None:
        """Steps are those of the training, one value each.

        The probe's metric has the steps in which the user's code ran; no metric goes back or repeats one.
        """
        uri, probe = place.store(), Probe()
        self.run_training(self.callback(**place.options(uri)), probe)
        place.deliver()
        found = place.only(uri)
        _assert_equal(probe.steps, found.steps(self.probe), f"steps of {self.probe!r}")
        for name in found.points:
            steps = found.steps(name)
            _assert_equal(sorted(set(steps)), steps, f"steps of {name!r}")

    def test_resume(self, place: Place) -> None:
        """A resumed training continues its steps."""
        uri, probe = place.store(), Probe()
        carry = self.run_training(self.callback(**place.options(uri)), probe, steps=2).carry
        self.run_training(self.callback(**place.options(uri)), probe, steps=2, continue_from=carry)
        _assert_equal(sorted(set(probe.steps)), probe.steps, "steps that train() went on to when resumed")
        place.deliver()
        found = place.arrived(uri)
        recorded = [step for one in found for step in one.steps(self.probe)]
        _assert_equal(probe.steps, recorded, f"steps of {self.probe!r}")
        self._assert_statuses(["FINISHED"] * len(found), found)

    def test_again(self, place: Place) -> None:
        """One callback records several trainings, one run each."""
        uri = place.store()
        callback = self.callback(**place.options(uri))
        trained = [self.run_training(callback) for _ in range(2)]
        place.deliver()
        found = place.arrived(uri)
        self._assert_statuses(["FINISHED", "FINISHED"], found)
        for one, training in zip(found, trained, strict=True):
            self._assert_complete(one, training)

    def test_scalars(self, place: Place) -> None:
        """Numbers of NumPy and torch are recorded as the numbers they are."""
        import numpy as np

        numbers: list[Any] = [np.float32(0.5), np.float64(0.25), np.int64(3), 2, 0.75]
        if importlib.util.find_spec("torch") is not None:
            import torch

            numbers += [torch.tensor(1.5), torch.tensor(4), torch.tensor([0.375])]
        self.assert_recorded(place, numbers)

    def test_nonfinite(self, place: Place) -> None:
        """NaN and infinities are recorded, at their steps.

        MLflow's stores hold an infinity as the largest number there is.
        """
        self.assert_recorded(place, [0.5, math.nan, math.inf, -math.inf, 0.25])

    def assert_recorded(self, place: Place, numbers: Sequence[Any]) -> None:
        """Check that numbers which the user's code reports are recorded, in order, at their steps.

        Override it where they go elsewhere than into the metric `probe` of the training's run.

        Args:
            place: Where to record, and to read the answer.
            numbers: What is reported, one per step.
        """
        uri = place.store()
        probe = Probe(lambda step: numbers[step % len(numbers)])
        self.run_training(self.callback(**place.options(uri)), probe, steps=len(numbers))
        place.deliver()
        found = place.only(uri)
        expected = [stored(numbers[step % len(numbers)]) for step in probe.steps]
        _assert_equal(probe.steps, found.steps(self.probe), f"steps of {self.probe!r}")
        _assert_equal(expected, found.values(self.probe), f"values of {self.probe!r}")

    # --- how it ends --------------------------------------------------------------------------------

    def test_finished(self, place: Place) -> None:
        """A training that ends is FINISHED."""
        uri = place.store()
        self.run_training(self.callback(**place.options(uri)))
        place.deliver()
        self._assert_statuses(["FINISHED"], place.arrived(uri))

    def test_failed(self, place: Place) -> None:
        """An exception goes on as it is, and the run is FAILED.

        The user's own exception, with the causes that it has without tracking, and in MLflow everything
        that was recorded before.
        """
        uri, probe = place.store(), Probe(at=_raise_at(2))
        plain, tracked = self._raised(None, Probe(at=_raise_at(2))), self._raised(place.options(uri), probe)
        _assert_equal(plain, tracked, "exceptions that the training ends with")
        place.deliver()
        found = place.only(uri)
        self._assert_statuses(["FAILED"], [found])
        self._assert_until(found, probe.steps)

    def _raised(self, options: Mapping[str, Any] | None, probe: Probe) -> list[str]:
        """Return what a training raises, the causes last, and forget it, and with it the callback."""
        found: list[str] = []
        try:
            self.run_training(None if options is None else self.callback(**options), probe)
        except Exception as raised:  # noqa: BLE001 - whatever it is, is compared
            error: BaseException | None = raised
            while error is not None:
                found.append(repr(error))
                # A framework without an exception hook lets the run end when its callback is gone.
                traceback.clear_frames(error.__traceback__)
                error = error.__cause__ or error.__context__
        if options is not None:
            gc.collect()
        return found

    def test_interrupted(self, place: Place) -> None:
        """After Ctrl-C the run is KILLED.

        In a process of its own, which the interrupt ends.
        """
        self._assert_killed("interrupt", place)

    def test_killed(self, place: Place) -> None:
        """After kill -9 nothing is lost or doubled, and the run is KILLED.

        Every step that was complete is in MLflow, once.
        """
        self._assert_killed("kill", place)

    def _assert_killed(self, act: str, place: Place) -> None:
        child, there, uri = place.children.outcome(act)
        steps = child.steps(act)
        assert len(steps) == 3, (
            f"the training came to the steps {steps} before it was to end:\n{child.output()}"
        )
        there.deliver(there.folder / act)
        found = there.only(uri)
        self._assert_statuses(["KILLED"], [found])
        self._assert_until(found, steps)

    # --- what becomes of the training ---------------------------------------------------------------

    def test_identical(self, place: Place) -> None:
        """The model is the same to the bit with and without tracking.

        With its model logged, too. Nor is a random number drawn that would not be drawn without.
        """
        plain, chance = self.run_training(None), traces.draws()
        for log_model in (False, True):
            trained = self.run_training(self.callback(**place.options(place.store(), log_model=log_model)))
            assert trained.model == plain.model, f"another model is trained with log_model={log_model}"
            _assert_equal(chance, traces.draws(), f"next random numbers, with log_model={log_model}")

    def test_harmless(self, place: Place) -> None:
        """What fails inside of the callback costs records, and not the training.

        In one training whatever of a `Run` records metrics raises, in another whatever records anything else,
        models too. The model is the same, the run ends as ever, and the package's logger says why something is
        missing.
        """
        plain = self.run_training(None)
        of_metrics = {"log_metrics", "log_metric", "row_logger"}
        others = {name for name in vars(Run) if name.startswith("log_")} - of_metrics
        for broken in (of_metrics, others):
            uri = place.store()
            callback = self.callback(**place.options(uri, log_model=broken is others))
            with _raising(broken), _warnings() as told:
                trained = self.run_training(callback)
            place.deliver()
            assert trained.model == plain.model, f"another model is trained while {sorted(broken)} fail"
            self._assert_statuses(["FINISHED"], place.arrived(uri))
            assert told, f"nothing was said while {sorted(broken)} failed"

    def test_objects(self, place: Place) -> None:
        """No object of the user's is changed.

        What the framework itself changes without tracking aside.
        """
        plain = self.run_training(None).touched
        trained = self.run_training(self.callback(**place.options(place.store(), log_model=True))).touched
        assert trained, "train() watched no object of the user's; see mlpipeline.testing.watched"
        for name, paths in trained.items():
            _assert_equal([], sorted(set(paths) - set(plain.get(name, ()))), f"changes in {name!r}")

    def test_globals(self, place: Place) -> None:
        """No global state is left behind, and nothing is patched.

        Environment, working directory, MLflow's active run and destination, logging, warnings, signals,
        hooks, figures, threads, open files, and the functions and classes of every module.
        """
        child, *_ = place.children.outcome("count")
        _assert_equal([], child.left(), "global state that the first training of a process leaves")
        # Logging a model imports its flavor, which leaves more than we have a say in: not the second time.
        for is_first in (True, False):
            with traces.leaving() as theirs:
                self.run_training(None)
            with traces.leaving() as ours:
                self.run_training(self.callback(**place.options(place.store(), log_model=True)))
            left = [] if is_first else sorted(set(ours) - set(theirs))
            _assert_equal([], left, "global state that a training with a model leaves")

    def test_cost(self, place: Place) -> None:
        """A step costs a write to the journal, and nothing else.

        Counted, not timed, in a process of its own, against a training without tracking: writes, function
        calls, syncs to disk, sleeps, opened files, started processes and connections of the training
        thread. A count is the same on every machine; what it comes to in seconds is for benchmarks. Nor
        is MLflow imported, before there is a model to log.
        """
        child, *_ = place.children.outcome("count")
        counts = child.counts()
        plain, tracked = counts["without"], counts["with"]
        assert not plain.has_mlflow, (
            "mlflow is loaded without tracking: its import is to be seen, so do without"
        )
        assert not tracked.has_mlflow, "a training without a model imported mlflow"
        added = tracked.connects - plain.connects
        assert not added, f"the training thread made {added} network connections"
        budgets = {"write": self.writes_per_step, "call": self.calls_per_step}
        for what in ("write", "call", "sync", "sleep", "open", "process"):
            added, budget = tracked.least(what) - plain.least(what), budgets.get(what, 0)
            assert added <= budget, f"{what}: tracking adds {added} to a step, the budget is {budget}"

    # --- the world's faults -------------------------------------------------------------------------

    def test_server_down(self, place: Place) -> None:
        """A server that is down does not touch the training, and gets everything later."""
        with FaultyProxy(place.server().uri) as proxy:
            proxy.down()
            self._assert_untouched(place, proxy, heal=proxy.up)

    def test_server_slow(self, place: Place) -> None:
        """A server that does not answer does not touch the training, and gets everything later.

        It answers nothing until the training is over: one that waited for it would not end.
        """
        with FaultyProxy(place.server().uri) as proxy:
            gate = threading.Event()
            proxy.fault = faults.held(gate)
            self._assert_untouched(place, proxy, heal=gate.set)

    def test_server_flaky(self, place: Place) -> None:
        """A server that fails now and then does not touch the training, and gets everything once.

        Some requests are refused, some answered with 503, and of some the answer is lost, among them
        that to the creation of the run.
        """
        with FaultyProxy(place.server().uri) as proxy:
            well = [faults.passed] * 3
            now_and_then = faults.in_turn(
                *well, faults.refused, *well, faults.answered(503), *well, faults.cut
            )
            proxy.fault = faults.only(
                "runs/create", faults.first(1, faults.cut, then=now_and_then), then=now_and_then
            )
            self._assert_untouched(place, proxy, heal=lambda: None)

    def _assert_untouched(self, place: Place, proxy: FaultyProxy, heal: Callable[[], None]) -> None:
        """Train while the proxy is at fault and a courier tries, and let all arrive after *heal*."""
        plain = self.run_training(None)
        is_stalled = threading.Event()

        def give_up() -> None:
            is_stalled.set()
            heal()

        watchdog = threading.Timer(self.stall_s, give_up)
        watchdog.start()
        try:
            trained = self.run_training(self.callback(**place.options(proxy.uri, delivery="thread")))
        finally:
            watchdog.cancel()
            heal()
            stop_couriers()
        assert not is_stalled.is_set(), (
            f"the training waited for the server until it was back, {self.stall_s} s"
        )
        assert trained.model == plain.model, "another model is trained while the server is away"
        place.deliver()
        self._assert_complete(place.only(place.server().uri), trained)

    # --- several, and copies ------------------------------------------------------------------------

    def test_threads(self, place: Place) -> None:
        """Two trainings in two threads, to a store and a server, stay apart.

        They take each step together, so that neither is over before the other begins.
        """
        together = threading.Barrier(2, timeout=_PATIENCE_S)
        uris, found = [place.store(), place.server().uri], {}
        errors: list[BaseException] = []

        def train(number: int, uri: str) -> None:
            probe = Probe(lambda step: 100 * number + step, at=lambda _: together.wait())
            try:
                found[uri] = self.train(self.callback(**place.options(uri)), steps=STEPS, probe=probe)
            except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
                errors.append(error)
                together.abort()

        threads = [threading.Thread(target=train, args=item) for item in enumerate(uris, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        place.deliver()
        for uri in uris:
            self._assert_complete(place.only(uri), found[uri])

    def test_copies(self, place: Place) -> None:
        """Pickled, deep-copied and cloned callbacks record runs of their own.

        Copied before, during and after a training, which goes on as if nobody had.
        """
        uri = place.store()
        callback = self.callback(**place.options(uri))
        copies: list[Any] = []

        def take(step: int = 0) -> None:
            if not copies or step == 2:
                copies.extend(copied(callback) for copied in _copiers())

        take()
        trained = [self.run_training(callback, Probe(at=take))]
        copies.append(_pickled(callback))
        trained += [self.run_training(one) for one in copies]
        place.deliver()
        found = place.arrived(uri)
        self._assert_statuses(["FINISHED"] * len(trained), found)
        for one, training in zip(found, trained, strict=True):
            self._assert_complete(one, training)

    # --- inside -------------------------------------------------------------------------------------

    def run_training(
        self,
        callback: Any,
        probe: Probe | None = None,
        *,
        steps: int = STEPS,
        continue_from: Any = None,
    ) -> Trained:
        """Train with the global generators seeded."""
        traces.seed()
        return self.train(callback, steps=steps, probe=probe or Probe(), continue_from=continue_from)

    def _assert_complete(self, found: Arrived, trained: Trained) -> None:
        """Check that a run has what the framework reports, all of it and once."""
        self._assert_statuses(["FINISHED"], [found])
        assert trained.reported, "train() told of no metric that the framework reports"
        for name, values in trained.reported.items():
            assert name in found.points, f"metric {name!r} is not in MLflow, which has {sorted(found.points)}"
            _assert_equal([stored(value) for value in values], found.values(name), f"values of {name!r}")
            _assert_equal(sorted(set(found.steps(name))), found.steps(name), f"steps of {name!r}")

    def _assert_until(self, found: Arrived, steps: Sequence[int]) -> None:
        """Check that a run has the steps before the last, in the middle of which the training ended."""
        if "steps" in self.lacks:
            return
        points = list(found.points.get(self.probe, ()))
        expected = [(step, _eighths(step)) for step in steps]
        assert points in (expected[:-1], expected), f"of {expected} there are {points} in MLflow"

    @staticmethod
    def _assert_statuses(expected: Sequence[str], found: Sequence[Arrived]) -> None:
        _assert_equal(list(expected), [one.run.info.status for one in found], "statuses of the runs")

    # --- what pytest needs ---------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def place(
        self, request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Place]:
        """A place of this test's own; its outcome goes into the table."""
        rule = request.function.__name__.removeprefix("test_")
        if rule in rules():
            enter_in_table(request, rule, self.column())
        if rule in self.lacks:
            pytest.skip(self.lacks[rule])
        with standing(type(self), request, tmp_path, tmp_path_factory) as place:
            yield place

    @classmethod
    def column(cls) -> str:
        """Return the integration's name in the table."""
        return cls.name or cls.__name__.removeprefix("Test")


def table_of(*integrations: type[IntegrationContract], broken: Iterable[tuple[str, str]] = ()) -> str:
    """Return the table that pytest prints when all tests pass, in Markdown.

    Args:
        *integrations: The columns, with what each lacks.
        broken: Rules, and how a callback breaks them on purpose: the last column.
    """
    table = Table(rules())
    for integration in integrations:
        for rule in rules():
            reason = integration.lacks.get(rule, "")
            table.enter(rule, integration.column(), ABSENT if reason else KEPT, reason)
    for rule, how in broken:
        table.enter(rule, ON_PURPOSE, f"{BROKEN} {how}")
    return table.render()


_TABLE = "mlpipeline-contract-table"
_SERVER = pytest.StashKey[Server]()
_CHILDREN = pytest.StashKey[dict[type, Children]]()


def shared_server(config: pytest.Config) -> Server:
    """Return the real MLflow server of this session; the first to ask starts it."""
    if _SERVER not in config.stash:
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = copied_store(_migrated(config), folder / "mlflow.db", "mlflow-artifacts:")
        config.stash[_SERVER] = stack.enter_context(serving(folder, store))
    return config.stash[_SERVER]


def _migrated(config: pytest.Config) -> Path:
    return migrated_store(config.cache.mkdir("mlflow-store"))


def enter_in_table(
    request: pytest.FixtureRequest, rule: str, column: str, passed: str = KEPT, failed: str = BROKEN
) -> None:
    """Enter a test's outcome in the table that pytest prints at the end.

    Args:
        request: The test's.
        rule: The row.
        column: The column.
        passed: What is entered if the test passes.
        failed: What is entered if it fails.
    """
    request.node.user_properties.append((PROPERTY, (rule, column, passed, failed)))
    if not request.config.pluginmanager.has_plugin(_TABLE):
        request.config.pluginmanager.register(Table(rules()), _TABLE)


@contextlib.contextmanager
def standing(
    subject: type[IntegrationContract],
    request: pytest.FixtureRequest,
    folder: Path,
    folders: pytest.TempPathFactory,
) -> Iterator[Place]:
    """Stand where a rule of *subject* can be tried: in an empty directory, with a clean environment.

    Args:
        subject: The class.
        request: The test's.
        folder: An empty folder of the test's own.
        folders: Where the processes of the class have theirs.
    """
    known = request.config.stash.setdefault(_CHILDREN, {})
    if subject not in known:
        known[subject] = Children(subject, _migrated(request.config), folders.mktemp("children"))
        request.config.add_cleanup(known[subject].end)
        # Those that the class's tests will ask for train while its first tests run.
        acts = {
            "test_cost": "count",
            "test_globals": "count",
            "test_killed": "kill",
            "test_interrupted": "interrupt",
        }
        items = [item for item in request.session.items if getattr(item, "cls", None) is subject]
        selected = {item.name for item in items if item.name.removeprefix("test_") not in subject.lacks}
        known[subject].start(*(act for name, act in acts.items() if name in selected))
    with isolated(folder / "place"):
        yield Place(_migrated(request.config), folder, known[subject], lambda: shared_server(request.config))


@contextlib.contextmanager
def _raising(names: Iterable[str]) -> Iterator[None]:
    """Let methods of every `Run` fail as nothing foresees."""
    methods = {name: vars(Run)[name] for name in names}

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken on purpose")

    try:
        for name in methods:
            setattr(Run, name, fail)
        yield
    finally:
        for name, method in methods.items():
            setattr(Run, name, method)


@contextlib.contextmanager
def _warnings() -> Iterator[list[logging.LogRecord]]:
    """Give what the package says meanwhile, from warnings on."""
    told: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record)

    ours, handler = logging.getLogger("mlpipeline"), Handler(logging.WARNING)
    ours.addHandler(handler)
    try:
        yield told
    finally:
        ours.removeHandler(handler)


def _raise_at(at: int) -> Callable[[int], None]:
    count = 0

    def strike(step: int) -> None:
        nonlocal count
        if count == at:
            raise Interruption(f"in step {step}")
        count += 1

    return strike


def _copiers() -> list[Callable[[Any], Any]]:
    """Return the ways to copy a callback: those of Python, and scikit-learn's where it is installed."""
    copiers: list[Callable[[Any], Any]] = [_pickled, copy.deepcopy]
    if importlib.util.find_spec("sklearn") is not None:
        from sklearn.base import clone

        # As it clones an estimator's parameters, of which callbacks may be one.
        copiers.append(lambda callback: clone(callback, safe=False))
    return copiers


def _pickled(callback: Any) -> Any:
    return pickle.loads(pickle.dumps(callback))


def stored(value: Any) -> float:
    """Return a value as MLflow's stores hold it: an infinity as the largest number there is.

    Args:
        value: A number of whatever kind.
    """
    number = float(value)
    return math.copysign(sys.float_info.max, number) if math.isinf(number) else number


def _assert_equal(expected: Any, found: Any, what: str) -> None:
    # By repr where == says no: NaN is what it was recorded as.
    assert expected == found or repr(expected) == repr(found), f"{what}: expected {expected}, found {found}"
