"""Hyperparameters of any type as the text that MLflow stores, with nothing lost.

::

    {"model": {"lr": 0.1}}  flatten_params ──► {"model.lr": "0.1"}    and what is too long, whole

Nested structures become dotted names; a value over the limit is cut, with its hash, and returned whole
for one JSON artifact. Cyclic, endless and hostile objects are shown as far as they let themselves be.
"""

# ruff: noqa: BLE001 - a foreign object may raise anything when looked at; no training ends for that

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from typing import Any

from mlpipeline.tracking.names import storable, text_digest

MAX_DEPTH = 8
MAX_PARAMS = 1000
_MAX_WHOLE = 10_000  # entries beyond MAX_PARAMS that still go to params_full.json
_MAX_ELEMENTS = 1000  # of one list or array shown as text
_PLAIN = frozenset((str, int, float, bool, type(None)))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def flatten_params(
    params: Mapping[str, Any],
    *,
    max_value_chars: int = 6000,
    mask: Callable[[str, str], str] = lambda _, text: text,
) -> tuple[dict[str, str], dict[str, str]]:
    """Any hyperparameters as flat text, the way MLflow wants them; nothing is dropped.

    Mappings, dataclasses, namespaces, named tuples, attrs and pydantic objects are walked and their
    names joined with dots. Lists, tuples, sets and arrays are JSON; an array of more than 1000
    elements is its type, shape and dtype. Paths, enums, functions and classes have their own short
    forms; any other object is its ``str()`` without memory addresses. It never raises and always
    ends: 8 levels, 1000 params, 1000 elements of a list, and a cycle is named as one.

    Args:
        params: What to flatten. Names need not be strings.
        max_value_chars: Longest value in characters; MLflow's own limit is 6000.
        mask: Takes secrets out of a value, given its name and whole text: of a shortened one it may be too late.

    Returns:
        Two dicts by dotted name (not yet a `metric_key`). The first holds the values to log; one
        that is too long reads ``sha256:<16 hex> (<n> chars, whole in params_full.json): <start>…``.
        The second holds the whole text of those, and the params beyond the first 1000.
    """
    flat: dict[str, str] = {}
    whole: dict[str, str] = {}
    beyond = 0
    for name, text in itertools.islice(_leaves(params, "params", 0, ()), MAX_PARAMS + _MAX_WHOLE):
        text = mask(name, text)  # noqa: PLW2901 - the unmasked one is not to be used
        free = _free_name(name, text, flat, whole)
        if free is None:
            continue
        if len(flat) >= MAX_PARAMS:
            whole[free] = text
            beyond += 1
        elif len(text) > max_value_chars:
            whole[free] = text
            flat[free] = _shortened(text, max_value_chars)
        else:
            flat[free] = text
    if beyond:
        count = f"{beyond}{'' if beyond < _MAX_WHOLE else ' or'} more"
        flat[f"params_beyond_{MAX_PARAMS}"] = f"{count} in params_full.json"
    return flat, whole


def _shortened(text: str, max_chars: int) -> str:
    head = f"sha256:{text_digest(text)} ({len(text)} chars, whole in params_full.json): "
    return (head + text[: max(0, max_chars - len(head) - 1)] + "…")[:max_chars]


def _free_name(name: str, text: str, flat: dict[str, str], whole: dict[str, str]) -> str | None:
    """A name not yet taken; None if the same entry is there already.

    ``{"a.b": 1, "a": {"b": 2}}`` flattens to one name twice: the later one becomes ``a.b.2``.
    """
    free, n = name, 2
    while free in flat or free in whole:
        if whole.get(free, flat.get(free)) == text:
            return None
        free, n = f"{name}.{n}", n + 1
    return free


def _leaves(value: Any, name: str, depth: int, path: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Dotted name and text of everything below *value*."""
    fields = _fields(value) if depth < MAX_DEPTH and id(value) not in path else None
    if fields is None:
        yield name, "<cycle>" if id(value) in path else _text(value)
        return
    is_empty = True
    for key, child in fields:
        is_empty = False
        yield from _leaves(child, f"{name}.{key}" if depth else key, depth + 1, (*path, id(value)))
    if is_empty and depth:
        yield name, "{}"


def _fields(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Names and values of whatever has named parts; None for anything else."""
    kind = type(value)
    if kind in _PLAIN:  # nearly all params, and all that follows is slow
        return None
    try:
        # Looked up on the type: a mock or a proxy has every attribute one asks its instance for.
        if isinstance(value, Mapping) or (
            all(hasattr(kind, name) for name in ("keys", "items", "__getitem__"))
            and not hasattr(kind, "shape")  # a data frame has keys too, but is no mapping
        ):
            return _mapping_items(value)
        if dataclasses.is_dataclass(kind):
            return _attributes(value, [field.name for field in dataclasses.fields(kind)])
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return _attributes(value, list(kind._fields))
        if hasattr(kind, "__attrs_attrs__"):
            return _attributes(value, [field.name for field in kind.__attrs_attrs__])
        if hasattr(kind, "model_fields") and hasattr(kind, "model_dump"):  # pydantic
            return _attributes(value, list(kind.model_fields))
        if kind.__name__ in ("Namespace", "SimpleNamespace"):
            return _mapping_items(vars(value))
    except Exception:  # a foreign object may raise anything from anywhere; it is shown as an object then
        return None
    return None


def _mapping_items(mapping: Any) -> Iterator[tuple[str, Any]]:
    """Key by key, so that one unreadable entry (OmegaConf's ``???``) does not hide the others."""
    try:
        for key in mapping.keys():  # noqa: SIM118 - not every mapping-like object iterates its keys
            try:
                child = mapping[key]
            except Exception as error:
                child = f"<unreadable: {type(error).__name__}>"
            yield key if type(key) is str else _text(key), child
    except Exception as error:
        yield "unreadable", f"<unreadable: {type(error).__name__}>"


def _attributes(value: Any, names: list[str]) -> Iterator[tuple[str, Any]]:
    for name in names:
        try:
            child = getattr(value, name)
        except Exception as error:
            child = f"<unreadable: {type(error).__name__}>"
        yield name, child


def _text(value: Any) -> str:
    """One value as a param's text. Never raises."""
    try:
        plain = _plain(value, 0, (), [_MAX_ELEMENTS])
        text = plain if isinstance(plain, str) else str(plain)
        if isinstance(plain, (list, dict)):
            text = json.dumps(plain, ensure_ascii=False)
    except Exception:  # hostile objects: whatever they raise, the training goes on
        text = f"<{_type_name(value)}>"
    return storable(text)


def _plain(value: Any, depth: int, path: tuple[int, ...], budget: list[int]) -> Any:
    """What JSON can hold of *value*; the budget counts elements down over the whole tree."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        # A StrEnum or IntEnum exists to be used as its value; of any other the name says more.
        is_value = isinstance(value, (str, int)) or value.name is None  # None: a combination of flags
        return _plain(value.value, depth, path, budget) if is_value else value.name
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        # Python refuses to print integers of more than 4300 digits.
        return int.__int__(value) if value.bit_length() < 10_000 else hex(value)
    if callable(value) and isinstance(getattr(value, "__qualname__", None), str):
        return _qualified(value)
    if isinstance(value, functools.partial):
        return _partial(value, depth, path, budget)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    kind = type(value)
    if hasattr(kind, "dtype") and hasattr(kind, "shape"):
        return _array(value, depth, path, budget)
    if isinstance(value, (range, bytes, bytearray, memoryview)):
        return _ADDRESS.sub("", repr(value))
    fields = _fields(value)
    is_sequence = isinstance(value, (Sequence, AbstractSet))
    if fields is None and not is_sequence:
        return _described(value)
    if id(value) in path:
        return "<cycle>"
    if depth >= MAX_DEPTH:
        return f"<deeper than {MAX_DEPTH} levels>"
    path = (*path, id(value))
    if fields is not None:
        shown: dict[str, Any] = {}
        for key, child in fields:
            if budget[0] <= 0:
                shown["…"] = "more"
                break
            budget[0] -= 1
            shown[key] = _plain(child, depth + 1, path, budget)
        return shown
    return _elements(value, depth, path, budget)


def _elements(value: Any, depth: int, path: tuple[int, ...], budget: list[int]) -> list[Any]:
    elements: list[Any] = []
    for element in value:
        if budget[0] <= 0:
            elements.append(f"… ({len(value) - len(elements)} more)")
            break
        budget[0] -= 1
        elements.append(_plain(element, depth + 1, path, budget))
    if isinstance(value, AbstractSet):
        elements.sort(key=lambda plain: (type(plain).__name__, str(plain)))  # one order in every process
    return elements


def _array(value: Any, depth: int, path: tuple[int, ...], budget: list[int]) -> Any:
    """A scalar as it prints, a small array as lists, a large one by its shape."""
    shape = tuple(int(length) for length in value.shape)
    if not shape:
        number = number_in(str(value))  # a float32 prints as 0.1 and converts to 0.10000000149011612
        return number if number is not None else _plain(value.item(), depth, path, budget)
    if math.prod(shape) > _MAX_ELEMENTS:
        return f"{_type_name(value)}(shape={shape}, dtype={value.dtype})"
    try:
        return _plain(value.tolist(), depth, path, budget)
    except Exception:  # sparse, symbolic, on a device that is gone
        return f"{_type_name(value)}(shape={shape}, dtype={value.dtype})"


def number_in(text: str) -> int | float | None:
    """Return the number that a text is; None if it is none."""
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            continue
    return None


def _partial(value: functools.partial[Any], depth: int, path: tuple[int, ...], budget: list[int]) -> str:
    if depth >= MAX_DEPTH or id(value) in path:
        return "partial(…)"
    path = (*path, id(value))
    parts = [str(_plain(value.func, depth + 1, path, budget))]
    parts += [str(_plain(argument, depth + 1, path, budget)) for argument in value.args]
    parts += [f"{name}={_plain(given, depth + 1, path, budget)}" for name, given in value.keywords.items()]
    return f"partial({', '.join(parts)})"


def _described(value: Any) -> str:
    for describe in (str, repr):  # a hostile __str__ may still have a decent __repr__
        with contextlib.suppress(Exception):
            return _ADDRESS.sub("", str.__str__(describe(value)))
    return f"<{_type_name(value)}>"


def _type_name(value: Any) -> str:
    try:
        return _qualified(type(value))
    except Exception:  # even a metaclass may refuse
        return "object"


def _qualified(named: Any) -> str:
    module = getattr(named, "__module__", None)
    name = str.__str__(named.__qualname__)
    return name if module in (None, "builtins") else f"{module}.{name}"
