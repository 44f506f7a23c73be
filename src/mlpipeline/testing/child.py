"""A training in a process of its own, for the rules that need one: it is counted, killed or interrupted.

::

    Child.start ──► python -c … main(order) ──► subject.train(callback)
                                                   probe ── prints each step, then does what the act says
    Child.outcome ◄── exit code, steps, counts

The process loads the file of the test class by its path, and finds the class in it by its name.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.testing import traces
from mlpipeline.testing.places import clean_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mlpipeline.testing.child import main; main(sys.argv[2])"
_ENDS_AT_MOST_S = 300
_COUNTED = {
    ("posix", "write"): "write",
    ("posix", "fsync"): "sync",
    ("posix", "fdatasync"): "sync",
    ("posix", "open"): "open",
    ("_io", "open"): "open",
    ("posix", "fork"): "process",
    ("_posixsubprocess", "fork_exec"): "process",
    ("time", "sleep"): "sleep",
    (None, "socket.connect"): "connect",
    (None, "socket.connect_ex"): "connect",
}


@dataclass
class Counts:
    """What one training did, counted.

    Attributes:
        steps: Per step, from the user's code in it to the user's code in the next: how many functions
            were called, and how many of them wrote, synced, slept, …
        connects: Sockets that the whole training connected.
        modules: Whether ``mlflow`` was loaded afterwards.
    """

    steps: list[dict[str, int]] = field(default_factory=list)
    connects: int = 0
    has_mlflow: bool = False

    def least(self, what: str) -> int:
        """Return how often something was done in a plain step: where least was to do."""
        return min(step.get(what, 0) for step in self.steps)


class Child:
    """A child process that trains.

    Args:
        subject: The contract's class.
        folder: Where its output is to be, and the homes of its trainings: one per act, of that name.
        acts: What is to be done, one after the other: "count", "kill", "interrupt".
        options: The callback's options, per act.
    """

    def __init__(self, subject: type, folder: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        order = {
            "file": inspect.getfile(subject),
            "class": subject.__qualname__,
            "acts": dict(options),
            "folder": str(folder),
        }
        (folder / "order.json").write_text(json.dumps(order))
        (folder / "cwd").mkdir()
        with (folder / "output.txt").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), str(folder / "order.json")],
                cwd=folder / "cwd",
                env=clean_environ(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        """Wait until it has ended, and return its exit code."""
        return self._process.wait(_ENDS_AT_MOST_S)

    def end(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()

    def steps(self, act: str) -> list[int]:
        """Return the steps that an act's training has come to."""
        path = self._folder / f"{act}.steps"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def counts(self) -> dict[str, Counts]:
        """Return what was counted, without and with tracking."""
        return {name: Counts(**found) for name, found in self._found()["counts"].items()}

    def left(self) -> list[str]:
        """Return the global state that the counted training left, and one without tracking did not."""
        return list(self._found()["left"])

    def _found(self) -> dict[str, Any]:
        path = self._folder / "found.json"
        assert path.exists(), f"the training in a process of its own failed:\n{self.output()}"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def output(self) -> str:
        """Return the end of what it printed."""
        return (self._folder / "output.txt").read_text("utf-8", "replace")[-4000:]


def main(order_file: str) -> None:
    """Train as ordered; what a `Child` runs."""
    from mlpipeline.testing.contract import Probe

    order = json.loads(Path(order_file).read_text())
    folder = Path(order["folder"])
    subject = _loaded(order["file"], order["class"])()
    for act, options in order["acts"].items():
        os.environ["MLPIPELINE_HOME"] = str(folder / act)
        if act == "count":
            (folder / "found.json").write_text(json.dumps(_count(subject, options)))
        else:
            probe = Probe(at=_striking(act, folder / f"{act}.steps"))
            subject.run_training(subject.callback(**options), probe)


def _loaded(file: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location("_contract_subject", file)
    assert spec is not None
    assert spec.loader is not None
    found: Any = importlib.util.module_from_spec(spec)
    # As importlib documents it: what a training pickles is looked up under its module's name.
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _striking(act: str, path: Path, at: int = 2) -> Callable[[int], None]:
    steps = 0

    def strike(step: int) -> None:
        nonlocal steps
        with path.open("a") as file:
            file.write(f"{step}\n")
        if steps == at:
            os.kill(os.getpid(), signal.SIGKILL if act == "kill" else signal.SIGINT)
        steps += 1

    return strike


def _count(subject: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    plain = _counted(subject, None)
    with traces.leaving() as theirs:
        subject.run_training(None)
    with traces.leaving() as ours:
        tracked = _counted(subject, subject.callback(**options))
    return {
        "counts": {"without": asdict(plain), "with": asdict(tracked)},
        "left": sorted(set(ours) - set(theirs)),
    }


def _counted(subject: Any, callback: Any) -> Counts:
    from mlpipeline.testing.contract import Probe

    counts = Counts()
    current: Counter[str] | None = None

    def count(_: Any, event: str, argument: Any) -> None:
        if event == "c_call":
            name = getattr(argument, "__qualname__", "")
            what = _COUNTED.get((getattr(argument, "__module__", None), name))
            if what == "connect":
                counts.connects += 1
            if what and current is not None:
                current[what] += 1
        if current is not None and event in {"call", "c_call"}:
            current["call"] += 1

    def between(_: int) -> None:
        nonlocal current
        if current is not None:
            counts.steps.append(dict(current))
        current = Counter()

    # Of this thread only: the training thread.
    sys.setprofile(count)
    try:
        subject.run_training(callback, Probe(at=between), steps=12)
    finally:
        sys.setprofile(None)
    counts.has_mlflow = "mlflow" in sys.modules
    return counts
