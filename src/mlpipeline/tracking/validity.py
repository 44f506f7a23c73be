"""What a record must be like: a journal is data, and whoever wrote it may have been damaged, newer, or lying.

::

    frame ─ json ─► checked(kind, content) ─► the fields that are known, each of its type ─► delivered
                          └─ ValueError ─► damage: counted, tagged on the run, shown by `mlpipeline status`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from mlpipeline.tracking.home import is_plain
from mlpipeline.tracking.records import Kind
from mlpipeline.tracking.trainings import STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Convert = Callable[[Any], Any]
    Read = Callable[[Any], dict[str, Any]]


def checked(kind: Kind, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record says, as far as it is known here; a field without a value is left out.

    Args:
        kind: What it is; a record that is JSON.
        content: The record.

    Raises:
        ValueError: A field is missing, or is not what it must be.
    """
    try:
        return _READ[kind](content)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"a {kind.name} record is not one: {error}") from error


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"{value!r:.80} is no text")
    return str(value)


def _integer(value: Any) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{number} takes more than 64 bits")
    return number


def _count(value: Any) -> int:
    if (number := _integer(value)) < 0:
        raise ValueError(f"{number} is no count")
    return number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.80} is neither true nor false")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(item) for name, item in value.items()}


def _list(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is no list")
    return [_text(item) for item in value]


def _numbers(value: Any) -> dict[str, float]:
    return {name: float(item) for name, item in value.items()}


def _name(value: Any) -> str:
    if not is_plain(value):
        raise ValueError(f"{value!r:.80} is no name")
    return str(value)


def _uri(value: Any) -> str:
    parts = urlsplit(value)
    if parts.scheme.startswith("http") or "sql" in parts.scheme:
        _ = parts.port  # whoever knocks there asks for it
    if not value or "\0" in unquote(value):
        raise ValueError(f"{value!r:.80} is no URI")
    value.encode()
    return str(value)


def _status(value: Any) -> str:
    if value not in STATUSES:
        raise ValueError(f"{value!r:.80} is no status")
    return str(value)


def _object(required: Mapping[str, Convert], optional: Mapping[str, Convert], *one_of: str) -> Read:
    """Return what reads an object with these fields, and at least one of those named last."""

    def read(content: Any) -> dict[str, Any]:
        found = {}
        for name, convert in {**required, **optional}.items():
            if (value := content.get(name)) is not None:
                found[name] = convert(value)
            elif name in required:
                raise ValueError(f"it has no {name}")
        if one_of and not found.keys() & set(one_of):
            raise ValueError(f"it has neither {' nor '.join(one_of)}")
        return found

    return read


_DESTINATION = _object({"tracking_uri": _uri, "registry_uri": _uri}, {"user": _text})
_EXPERIMENT = _object(
    {}, {"name": _text, "id": _text, "artifact_location": _text, "artifact_root": _text}, "name", "id"
)
_MS = {"ms": _integer}
_MODEL = _object(
    {"uid": _name, "name": _text},
    {"step": _integer, "spool": _text, "params": _texts, "tags": _texts, "model_type": _text, **_MS},
)
_CHILDS_MODEL = _object({"uid": _name, "name": _text, "keeper": _name, "of": _name, "ms": _integer}, {})


def _model(content: Any) -> dict[str, Any]:
    return (_MODEL if content.get("keeper") is None else _CHILDS_MODEL)(content)


_READ: dict[Kind, Read] = {
    Kind.RUN: _object(
        {"destination": _DESTINATION},
        {
            "role": _text,
            "attempt": _integer,
            "start_ms": _integer,
            "experiment": _EXPERIMENT,
            "run_name": _text,
            "run_id": _text,
            "is_resumed": _flag,
            "is_shared": _flag,
            "is_elected": _flag,
            "parent": _object({}, {"uid": _name, "run_id": _text}, "uid", "run_id"),
            "keeper": _object({"uid": _name, "of": _name}, {}),
            "source": _texts,
            "tags": _texts,
            "writer": _text,
            "host": _text,
            "pid": _integer,
        },
        "experiment",
        "run_id",
    ),
    Kind.PARAMS: _object({"params": _texts}, _MS),
    Kind.TAGS: _object({"tags": _texts}, _MS),
    Kind.DATASET: _object(
        {"name": _text, "digest": _text},
        {"context": _text, "source_type": _text, "source": _text, "schema": _text, "profile": _text, **_MS},
    ),
    Kind.ARTIFACT: _object({"spool": _text}, {"file": _text, "artifact_path": _text, **_MS}),
    Kind.MODEL: _model,
    Kind.VERSION: _object(
        {"uid": _name, "name": _text, "model_uid": _name},
        {"aliases": _list, "stage": _text, "tags": _texts, "description": _text, **_MS},
    ),
    Kind.DROPPED: _object({"count": _count}, _MS),
    Kind.END: _object({"status": _status}, {"end_ms": _integer, "keeps_models": _flag, **_MS}),
    Kind.CHILD: _object({"uid": _name, "header": dict, "records": list}, _MS),
    Kind.EVALUATION: _object(
        {"metrics": _numbers, "timestamp_ms": _integer, "step": _integer},
        {"model_id": _text, "of": _name, "dataset": _object({}, {"name": _text, "digest": _text}), **_MS},
        "model_id",
        "of",
    ),
}
