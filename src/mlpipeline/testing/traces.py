"""What a training leaves behind: in the objects that the user passed, and in the process.

::

    with watched(callbacks=callbacks, params=params) as touched:     with leaving() as left:
        train(params, callbacks=callbacks)                               train()
    touched == {"callbacks": [], "params": []}                       left == []

A framework leaves traces of its own, so what counts is the difference to a training without us.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from mlpipeline.tracking.recorded import Recorded

_DEPTH = 8
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


# --- objects of the user ---------------------------------------------------------------------------


@contextmanager
def watched(**objects: Any) -> Iterator[dict[str, list[str]]]:
    """Watch what the user passes to a framework: lists, dicts, arrays, models, and what is inside.

    Yields:
        Filled at the end of the block: per object, where in it something was added, removed or replaced.
    """
    before = {name: _picture(value, set(), _DEPTH) for name, value in objects.items()}
    touched: dict[str, list[str]] = {}
    try:
        yield touched
    finally:
        for name, value in objects.items():
            touched[name] = list(_changed(name, before[name], value))


@dataclass
class _Picture:
    """An object as it was: what tells it from another, and the pictures of its parts."""

    mark: Any
    parts: dict[str, _Picture] | None


def _picture(value: Any, seen: set[int], depth: int) -> _Picture:
    mark, parts = _mark(value), None
    # Once is enough, and ends cycles. Pictures hold their objects, so that no id is used again.
    if depth and id(value) not in seen:
        seen.add(id(value))
        parts = {key: _picture(part, seen, depth - 1) for key, part in _parts(value).items()}
    return _Picture(mark, parts)


def _changed(path: str, before: _Picture, value: Any) -> Iterator[str]:
    if before.mark != _mark(value):
        yield path
    elif before.parts is not None:
        parts = _parts(value)
        for key in parts.keys() ^ before.parts.keys():
            yield f"{path}{key}"
        for key in parts.keys() & before.parts.keys():
            yield from _changed(f"{path}{key}", before.parts[key], parts[key])


class _Same:
    """Equal to itself only, whatever the object's own ``==`` says."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


def _mark(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, (Mapping, list, tuple)):
        return type(value)
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, value))
    content = _content(value)
    return (_Same(value), content) if content is None else content


def _content(value: Any) -> Any:
    """Return what stands for the numbers of an array, a tensor or a table; None for anything else."""
    if isinstance(value, type) or "numpy" not in sys.modules or not hasattr(value, "__array__"):
        return None
    import numpy as np

    try:
        array = np.ascontiguousarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception:  # noqa: BLE001 - a device or a type that numpy does not have
        return None
    columns = [str(name) for name in getattr(value, "columns", ())]
    return array.dtype.str, array.shape, columns, blake2b(array.tobytes()).hexdigest()


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {f"[{key!r}]": part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return {f"[{index}]": part for index, part in enumerate(value)}
    if isinstance(value, (type, types.ModuleType, types.FunctionType, Recorded, *_PLAIN)):
        return {}  # a callback of ours, which the user did not make, may change
    return {f".{key}": part for key, part in getattr(value, "__dict__", {}).items()}


# --- the process -----------------------------------------------------------------------------------


_ENDING_S = 1.0


@contextmanager
def leaving() -> Iterator[list[str]]:
    """See what a block leaves in the process.

    Yields:
        Filled at the end of the block: names of the global state that is not what it was.
    """
    left: list[str] = []
    facts, definitions = dict(_facts()), list(_definitions())
    yield left
    gc.collect()
    changed = _changed_facts(facts)
    end_s = time.monotonic() + _ENDING_S
    while "threads" in changed and time.monotonic() < end_s:
        time.sleep(0.05)  # a thread that has heard that it is to end
        changed = _changed_facts(facts)
    left += changed
    # What an import adds is no trace; what takes the place of somebody else's function is.
    left += [
        f"definition of {name}.{key}"
        for name, place, key, value in definitions
        if place.get(key) is not value
    ]
    left.sort()


def _changed_facts(facts: Mapping[str, Any]) -> list[str]:
    now, absent = dict(_facts()), object()
    names = facts.keys() | now.keys()
    return [name for name in names if _differs(facts.get(name, absent), now.get(name, absent))]


def _differs(before: Any, after: Any) -> bool:
    try:
        return bool(before != after)
    except Exception:  # noqa: BLE001 - arrays and the like, which nothing below should hold
        return before is not after


def _facts() -> Iterator[tuple[str, Any]]:
    for name, value in os.environ.items():
        if name != "PYTEST_CURRENT_TEST":
            yield f"environment variable {name}", value
    yield "working directory", os.getcwd()
    yield "umask", _umask()
    for name in ("path", "meta_path", "path_hooks", "argv"):
        yield f"sys.{name}", list(getattr(sys, name))
    for name in ("excepthook", "unraisablehook", "displayhook", "stdout", "stderr"):
        yield f"sys.{name}", _Same(getattr(sys, name))
    yield "sys.settrace", sys.gettrace()
    yield "sys.setprofile", sys.getprofile()
    yield "sys.setrecursionlimit", sys.getrecursionlimit()
    yield "sys.setswitchinterval", sys.getswitchinterval()
    yield "threading.excepthook", _Same(threading.excepthook)
    yield "warnings.filters", list(warnings.filters)
    yield "garbage collector", (gc.isenabled(), gc.get_threshold(), list(gc.callbacks))
    for number in signal.valid_signals():
        yield f"handler of signal {number}", signal.getsignal(number)
    yield from _logging_facts()
    yield "threads", sorted(thread.name for thread in threading.enumerate() if thread.is_alive())
    yield "open files", _open_files()
    yield from _facts_of_packages()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _logging_facts() -> Iterator[tuple[str, Any]]:
    import logging

    yield "logging.disable", logging.root.manager.disable
    for name, logger in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
        # One that nobody has set up is as if it were not there.
        if isinstance(logger, logging.Logger):
            about = (logger.level, logger.propagate, logger.disabled, logger.handlers[:], logger.filters[:])
            if about != (logging.NOTSET, True, False, [], []):
                yield f"logger {name}", about


def _open_files() -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/dev/fd/{name}"))
    return sorted(found)


def _facts_of_packages() -> Iterator[tuple[str, Any]]:
    """Yield the global state of packages that are loaded; none is loaded for it."""
    if (mlflow := sys.modules.get("mlflow")) is not None:
        active = mlflow.active_run()
        yield "mlflow.active_run", active.info.run_id if active else None
        yield "mlflow.get_tracking_uri", mlflow.get_tracking_uri()
        yield "mlflow.get_registry_uri", mlflow.get_registry_uri()
        yield "mlflow.set_experiment", mlflow.tracking.fluent._active_experiment_id  # noqa: SLF001 - no getter
    if (plots := sys.modules.get("matplotlib.pyplot")) is not None:
        yield "matplotlib figures", plots.get_fignums()
        yield "matplotlib backend", dict.__getitem__(plots.rcParams, "backend")  # the other getter picks one
    if (numpy := sys.modules.get("numpy")) is not None:
        yield "numpy.seterr", numpy.geterr()
        yield "numpy.set_printoptions", repr(numpy.get_printoptions())
    if (torch := sys.modules.get("torch")) is not None:
        yield "torch.set_grad_enabled", torch.is_grad_enabled()
        yield "torch.set_default_dtype", torch.get_default_dtype()
        yield "torch.set_num_threads", torch.get_num_threads()
        yield "torch.use_deterministic_algorithms", torch.are_deterministic_algorithms_enabled()


def _definitions() -> Iterator[tuple[str, Mapping[str, Any], str, Any]]:
    """Yield what can be patched, and where: functions and classes of modules, functions of classes."""
    functions = {types.FunctionType, types.BuiltinFunctionType}
    methods = {types.FunctionType, classmethod, staticmethod, property}
    for name, module in list(sys.modules.items()):
        # By type(), because isinstance() asks for __class__, which wakes what is loaded lazily.
        place = getattr(module, "__dict__", {})
        for key, value in list(place.items()):
            kind = type(value)
            if kind in functions:
                yield name, place, key, value
            elif issubclass(kind, type):
                yield name, place, key, value
                if value.__module__ == name:
                    inside = vars(value)
                    for inner, part in list(inside.items()):
                        if type(part) in methods:
                            yield f"{name}.{key}", inside, inner, part


# --- chance ----------------------------------------------------------------------------------------


def seed(number: int = 0) -> None:
    """Seed the global generators of Python, and of NumPy and torch where they are loaded."""
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(number)


def draws() -> dict[str, Any]:
    """Return the next number of each global generator: equal, if and only if as much was drawn before."""
    found: dict[str, Any] = {"random": random.random()}  # noqa: S311 - chance, not a secret
    if (numpy := sys.modules.get("numpy")) is not None:
        found["numpy"] = float(numpy.random.random())
    if (torch := sys.modules.get("torch")) is not None:
        found["torch"] = float(torch.rand(()))
    return found
