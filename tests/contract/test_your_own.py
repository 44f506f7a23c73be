"""The example of docs/testing.md keeps the contract; one callback per rule, broken on purpose, does not."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import socket
import subprocess
import sys
import threading
import types
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest

import mlpipeline
from mlpipeline.core.errors import UsageError
from mlpipeline.testing.contract import enter_in_table, rules, standing
from mlpipeline.testing.table import ABSENT, BROKEN as BROKE, KEPT, ON_PURPOSE

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def code():
    """Return the code of "Your own integration", which is the test file that the reader writes."""
    text = PAGE.read_text("utf-8").partition("## Your own integration")[2]
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def example():
    """Return it as a module, which pickle finds, also where this file is loaded twice."""
    if "test_descent" not in sys.modules:
        module = sys.modules["test_descent"] = types.ModuleType("test_descent")
        exec(compile(code(), "<docs/testing.md>", "exec"), module.__dict__)
    return sys.modules["test_descent"]


OWN = example()
BROKEN = []


class TestDescent(OWN.TestDescent):
    """The page's example keeps every rule."""

    name = "docs/testing.md"


def breaks(rule, how, message, **members):
    """Mark a callback as broken.

    Args:
        rule: The rule that it breaks.
        how: What it does.
        message: What the rule says to it.
        **members: What else its contract has.
    """

    def mark(callback):
        name = f"With{callback.__name__}"
        own = {"callback": lambda self, **options: callback(**options), "__module__": __name__}
        # A process of its own finds it by its name.
        subject = globals()[name] = type(name, (OWN.TestDescent,), {**own, **members})
        BROKEN.append(pytest.param(rule, how, message, subject, id=f"{rule}-{callback.__name__}"))
        return callback

    return mark


def test_every_rule_has_a_callback_that_breaks_it():
    """A rule that nothing turns red would say nothing."""
    assert rules().keys() == {case.values[0] for case in BROKEN}


Good = OWN.DescentCallback


@breaks("values", "rounds the values", r"values of 'loss': expected \[.*\], found \[")
class Rounding(Good):
    def on_step(self, model, report):
        super().on_step(model, {name: round(float(value), 3) for name, value in report.items()})


@breaks("steps", "counts steps from 1", r"steps of 'probe': expected \[0, 1, 2, 3\], found \[1, 2, 3, 4\]")
class Counting(Good):
    def on_step(self, model, report):
        self._record(report, model.step + 1)


@breaks(
    "resume", "begins again at step 0", r"steps of 'probe': expected \[0, 1, 2, 3\], found \[0, 1, 0, 1\]"
)
class Restarting(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        self.step = 0

    def on_step(self, model, report):
        self._record(report, self.step)
        self.step += 1


@breaks(
    "again",
    "keeps to its first run",
    r"statuses of the runs: expected \['FINISHED', 'FINISHED'\], found \['FINISHED'\]",
)
class Clinging(Good):
    def on_begin(self, model, callbacks):
        self._open(is_continued=True)


@breaks("scalars", "takes Python's own numbers only", "not JSON serializable")
class Picky(Good):
    def on_step(self, model, report):
        super().on_step(model, json.loads(json.dumps(report)))


@breaks("nonfinite", "leaves out NaN", r"steps of 'probe': expected \[0, 1, 2, 3, 4\], found \[0, 2, 3, 4\]")
class Filtering(Good):
    def on_step(self, model, report):
        super().on_step(model, {name: value for name, value in report.items() if not math.isnan(value)})


@breaks("finished", "never ends its run", "still RUNNING")
class Unending(Good):
    def on_end(self, model):
        KEPT_OPEN.append(self)


KEPT_OPEN = []


@breaks(
    "failed",
    "says FINISHED, whatever happened",
    r"statuses of the runs: expected \['FAILED'\], found \['FINISHED'\]",
)
class Optimistic(Good):
    def on_error(self, model, error):
        self._close()


@breaks(
    "failed",
    "raises an exception of its own",
    r"exceptions .*: expected \[.Interruption.*\], found \[.ConnectionError.*, .Interruption",
)
class Noisy(Good):
    def on_error(self, model, error):
        super().on_error(model, error)
        raise ConnectionError("while telling MLflow")


@breaks(
    "interrupted",
    "takes Ctrl-C for a failure",
    r"statuses of the runs: expected \['KILLED'\], found \['FAILED'\]",
)
class Blunt(Good):
    def on_error(self, model, error):
        self._close("FAILED")


@breaks("killed", "keeps values in memory until the end", r"of \[\(0, .*\] there are \[\] in MLflow")
class Buffering(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        self.kept = []

    def on_step(self, model, report):
        self.kept.append((report, model.step))

    def on_end(self, model):
        for report, step in self.kept:
            self._record(report, step)
        super().on_end(model)


@breaks("harmless", "lets a failure of its own end the training", "broken on purpose")
class Fragile(Good):
    def on_step(self, model, report):
        self._record(report, model.step)


@breaks("harmless", "says nothing of a failure", "nothing was said while .'log_metric', 'log_metrics'")
class Silent(Good):
    def on_step(self, model, report):
        with contextlib.suppress(Exception):
            self._record(report, model.step)


@breaks("identical", "draws a random number", "next random numbers")
class Drawing(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        self.token = random.random()


@breaks("identical", "changes the weights", "another model is trained")
class Meddling(Good):
    def on_step(self, model, report):
        super().on_step(model, report)
        model.weights = model.weights.astype(np.float32).astype(np.float64)


@breaks(
    "objects",
    "grows the user's list of callbacks",
    r"changes in 'callbacks': expected \[\], found \['callbacks\[1\]'\]",
)
class Inviting(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        callbacks.append(Good(enabled=False))


@breaks("globals", "sets an environment variable", r"found \['environment variable MLFLOW_RUN_ID'\]")
class Exporting(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        os.environ["MLFLOW_RUN_ID"] = self.run.uid


@breaks("globals", "patches the framework", r"found \['definition of test_descent\.Descent\.fit'\]")
class Patching(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        fit = OWN.Descent.fit
        OWN.Descent.fit = partialmethod(fit)


@breaks("cost", "imports MLflow while it trains", "imported mlflow")
class Heavy(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        import mlflow  # noqa: F401


@breaks("cost", "syncs every step to the disk", "sync: tracking adds 1 to a step, the budget is 0")
class Anxious(Good):
    def on_step(self, model, report):
        super().on_step(model, report)
        self.run._journal.sync()


@breaks("cost", "writes each metric by itself", "write: tracking adds 2 to a step, the budget is 1")
class Piecemeal(Good):
    def on_step(self, model, report):
        for name, value in report.items():
            super().on_step(model, {name: value})


@breaks("cost", "does too much", "call: tracking adds 1[0-9]{3} to a step, the budget is 500")
class Busy(Good):
    def on_step(self, model, report):
        super().on_step(model, report)
        for number in range(1000):
            str.format("{}", number)


@breaks("cost", "asks the network", "the training thread made 1 network connections")
class Curious(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        with socket.socket() as probe:
            probe.connect_ex(("127.0.0.1", 1))


@breaks("server_down", "sends by itself", "Max retries exceeded")
class Direct(Good):
    def on_begin(self, model, callbacks):
        from mlflow import MlflowClient

        self.client = MlflowClient(self.config.tracking_uri)
        found = self.client.get_experiment_by_name(self.config.experiment_name)
        experiment_id = (
            found.experiment_id if found else self.client.create_experiment(self.config.experiment_name)
        )
        self.direct_id = self.retried(lambda: self.client.create_run(experiment_id)).info.run_id

    def retried(self, call):
        return call()

    def on_step(self, model, report):
        for name, value in report.items():
            send = partial(self.client.log_metric, self.direct_id, name, float(value), step=model.step)
            self.retried(send)

    def on_end(self, model):
        self.retried(lambda: self.client.set_terminated(self.direct_id))


@breaks("server_flaky", "sends by itself, and again when it fails", "still RUNNING|one training, one run")
class Retrying(Direct):
    def retried(self, call):
        for _ in range(20):
            with contextlib.suppress(Exception):
                return call()
        return call()

    def on_begin(self, model, callbacks):
        self.retried(lambda: super(Retrying, self).on_begin(model, callbacks))


@breaks("server_slow", "waits for the id of its run", "the training waited for the server", stall_s=1.0)
class Waiting(Good):
    def on_begin(self, model, callbacks):
        super().on_begin(model, callbacks)
        self.seen_id = self.run_id


@breaks(
    "threads",
    "has one run for all threads",
    "values of 'loss'|metric 'loss' is not in MLflow|one training, one run|has ended",
)
class Sharing(Good):
    common = None

    def on_begin(self, model, callbacks):
        with LOCK:
            super().on_begin(model, callbacks)
            Sharing.common = Sharing.common or self.run

    def on_step(self, model, report):
        Sharing.common.log_metrics(report, model.step)


LOCK = threading.Lock()


@breaks("copies", "holds a lock", "cannot pickle")
class Locked(Good):
    def __init__(self, **options):
        super().__init__(**options)
        self.lock = threading.Lock()


@pytest.fixture
def stand(request, tmp_path, tmp_path_factory):
    """Stand where a rule of a class can be tried."""
    fit = OWN.Descent.fit
    yield lambda subject: standing(subject, request, tmp_path, tmp_path_factory)
    OWN.Descent.fit, Sharing.common = fit, None  # what broken ones leave behind


@pytest.mark.parametrize(("rule", "how", "message", "subject"), BROKEN)
def test_a_broken_callback_turns_its_rule_red(rule, how, message, subject, stand, request, monkeypatch):
    """And is told why."""
    enter_in_table(request, rule, ON_PURPOSE, f"{BROKE} {how}", f"{KEPT} {how}")
    with stand(subject) as place:
        # MLflow's own client, which some of them use, would try for four minutes.
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(Exception, match=message):
            getattr(subject(), f"test_{rule}")(place)


@pytest.mark.parametrize(
    "subject", [case.values[3] for case in BROKEN if case.values[0] not in {"values", "finished"}]
)
def test_it_turns_no_other_rule_red(subject, stand):
    """The rules tell apart what is broken: the first of them, for example, says nothing."""
    with stand(subject) as place:
        subject().test_values(place)


def test_a_third_party_runs_it_with_pytest_alone(request, tmp_path):
    """As the page says: a file of theirs, no fixture of ours; the table shows what is broken and what is lacking."""
    broken = """
class TestRounding(TestDescent):
    def train(self, callback, **options):
        trained = super().train(callback, **options)
        return dataclasses.replace(trained, reported={"loss": [0.0]})
"""
    (tmp_path / "test_descent.py").write_text(f"import dataclasses\n{code()}\n{broken}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-k", "values or resume", "-o", f"cache_dir={request.config.cache._cachedir}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])},
    )  # fmt: skip
    assert 1 == done.returncode, done.stderr
    assert "1 failed, 4 passed, 1 skipped" in done.stdout
    assert "AssertionError: values of 'loss': expected [0.0], found [" in done.stdout
    table = [line.split("|")[2:5] for line in done.stdout.splitlines() if line.startswith("|")]
    assert [
        ["Descent", "Stubborn", "Rounding"], ["✓", "✓", "✗"], ["✓", f"{ABSENT} ¹", "✓"]
    ] == [[cell.strip() for cell in row] for row in table if "-" not in row[0]]  # fmt: skip
    assert "¹ Stubborn: a fit always begins with new weights" in done.stdout


def test_what_is_lacking_must_be_a_rule():
    """A slip of the pen would otherwise leave a rule that nobody asked to leave out."""
    with pytest.raises(UsageError, match=r"\['resuming'\].*'resume'"):
        type("Slip", (OWN.TestDescent,), {"lacks": {"resuming": "…"}})
