"""What the value of an option may be: one `Kind` each.

A kind says what is accepted, makes it uniform, and reads it from an environment variable's text.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mlpipeline.core import credentials
from mlpipeline.core.errors import nearest


def shown(value: Any, name: str = "") -> str:
    """Return the repr of a value, without credentials."""
    if credentials.is_secret_name(name):
        return "'***'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {shown(item, str(key))}" for key, item in value.items()) + "}"
    return repr(credentials.public_uri(value) if isinstance(value, str) else value)


class Kind(NamedTuple):
    """What one option takes."""

    check: Callable[[Any], Any]
    """Returns the value normalised, or raises ValueError with what is accepted. Never gets None: not given."""
    read: Callable[[str], Any] = str
    """Makes a value of an environment variable's text. ValueError: the text is for `check` to refuse."""


class ReadOnly(Mapping[str, Any]):
    """A mapping that cannot be changed and equals a dict. Unlike ``MappingProxyType`` it pickles."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


NOTHING = ReadOnly()


def _text(pattern: str = r".*\S.*", expected: str = "a string that is not empty") -> Kind:
    def check(value: Any) -> str:
        if isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL):
            return str.__str__(value)  # plain, also if it is a numpy.str_ or an enum's member
        raise ValueError(f'a string: write "{value}"' if type(value) is int else expected)

    return Kind(check)


def _choice(*names: str, flag: bool = False) -> Kind:
    """One of *names* in any letter case; with *flag* also True or False."""
    spelled = {name.lower(): name for name in names}

    def check(value: Any) -> str | bool:
        if flag and isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in spelled:
            return spelled[value.lower()]
        accepted = ["True", "False"] * flag + list(map(repr, names))
        raise ValueError(f"one of {', '.join(accepted)}{nearest(value, spelled)}")

    return Kind(check, _read_flag if flag else str)


def _count(value: Any) -> int:
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool) and (number := operator.index(value)) >= 1:
            return number
    raise ValueError("a whole number of at least 1, or None")


def _finite(value: Any) -> float | None:
    if not isinstance(value, (str, bytes, bool)):
        with contextlib.suppress(TypeError, ValueError):
            if math.isfinite(number := float(value)):
                return number
    return None


def _seconds(value: Any) -> float:
    if (number := _finite(value)) is not None and number >= 0:
        return number
    raise ValueError("a finite number of seconds, 0 or more")


def _rate(value: Any) -> float:
    if (number := _finite(value)) is not None and number > 0:
        return number
    raise ValueError("a finite number above 0, or None")


def _patterns(value: Any) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if isinstance(items, Sequence) and all(isinstance(item, str) and item for item in items):
        return tuple(items)
    raise ValueError('a list of globs, such as ["val_*"]')


def _tags(value: Any) -> ReadOnly:
    if isinstance(value, Mapping) and all(isinstance(key, str) and key.strip() for key in value):
        return ReadOnly(value)
    raise ValueError(
        'a dict with non-empty strings as keys; in the environment JSON or "key=value,key=value"'
    )


def _store(plugin_group: str, *schemes: str) -> Kind:
    """The URI of an MLflow store; credentials in HTTP URIs are taken out and kept for `credentials_for`."""

    def check(value: Any) -> str:
        uri: str = TEXT.check(value).strip()
        scheme = _scheme(uri)
        engine = scheme.partition("+")[0]  # of sqlite+pysqlite, postgresql+psycopg2
        if engine in {"http", "https"} or (scheme == "uc" and "uc" in schemes):
            try:
                uri = _without_credentials(uri)
            except ValueError:
                raise ValueError(
                    "http://host:port; percent-encode special characters of a password"
                ) from None
        elif engine == "sqlite" and (not re.match(r"[\w+]+:///.", uri) or ":memory:" in uri):
            raise ValueError("a database file after three slashes, such as sqlite:///mlflow.db")
        elif engine not in {"", "file", *schemes} and not _is_plugin(scheme, plugin_group):
            if re.fullmatch(r"[\w.\-]+:\d+(/.*)?", uri):
                raise ValueError(f"a scheme before the host: write 'http://{uri}'")
            raise ValueError(f"an MLflow store: {', '.join(schemes)}{nearest(scheme, schemes)}")
        return uri

    return Kind(check)


def _without_credentials(uri: str) -> str:
    credentials.split(uri)  # refuses what is no URI of a host
    return credentials.stripped(uri)


def _scheme(uri: str) -> str:
    if uri in {"databricks", "databricks-uc"}:
        return uri
    found = re.match(r"([A-Za-z][\w+.\-]+):", uri)  # two letters at least: C:\ is a path
    return found[1].lower() if found else ""


def _is_plugin(scheme: str, group: str) -> bool:
    from importlib.metadata import entry_points

    return any(scheme == plugin.name for plugin in entry_points(group=group))


def refuse_file_store(uri: str, environ: Mapping[str, str]) -> None:
    """See that MLflow would take a store.

    Raises:
        ValueError: It is in files, and nobody insists.
    """
    allowed = environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in {"true", "1"}
    if _scheme(uri) in {"", "file"} and not allowed:
        raise ValueError(
            "a database or a server, because MLflow 3.17 refuses file stores: use sqlite:///mlflow.db or "
            "http://host:port (`mlflow migrate-filestore` moves old runs; MLFLOW_ALLOW_FILE_STORE=true insists)"
        )


def _read_flag(text: str) -> bool | str:
    yes, no = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}
    return text.lower() in yes if text.lower() in yes | no else text


def _read_list(text: str) -> Any:
    import json

    with contextlib.suppress(ValueError):  # "[ab]*" is a glob
        if text.startswith("["):
            return json.loads(text)
    return [item.strip() for item in text.split(",") if item.strip()]


def _read_tags(text: str) -> Any:
    import json

    if text.startswith("{"):
        return json.loads(text)
    return {key.strip(): item.strip() for key, item in (pair.split("=", 1) for pair in text.split(","))}


_SERVERS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
TRACKING = _store("mlflow.tracking_store", *_SERVERS)
REGISTRY = _store("mlflow.model_registry_store", *_SERVERS, "databricks-uc", "uc")
TEXT = _text()
EXPERIMENT = _text(r"(?=.*\S).{1,500}", "a string of 1 to 500 characters")
MODEL = _text(
    r"(?=.*\S)(?!\.\.|\.$)(?!.*'.*\"|.*\".*')[^/:]+",
    "a name without '/' and ':', which MLflow keeps for model URIs, and with one kind of quotes at most, "
    "because MLflow cannot search for both",
)
ALIAS = _text(
    r"(?i)(?!latest$|v\d+$)[\w\-]{1,255}",
    "at most 255 letters, digits, '_' and '-', but not 'latest' or 'v<number>', which MLflow reserves",
)
PATH = Kind(lambda value: TEXT.check(os.fspath(value) if isinstance(value, os.PathLike) else value))
STAGE = _choice("None", "Staging", "Production", "Archived")
TAGS = Kind(_tags, _read_tags)
RATE = Kind(_rate, float)
PATTERNS = Kind(_patterns, _read_list)
PATTERNS_OR_FLAG = Kind(
    lambda value: value if isinstance(value, bool) else _patterns(value),
    lambda text: flag if isinstance(flag := _read_flag(text), bool) else _read_list(text),
)


def kind_of(annotation: str) -> Kind:
    """Return what an option takes that says no more than its annotation."""
    if "Literal[" in annotation:
        return _choice(*re.findall(r"'(\w+)'", annotation), flag=annotation.startswith("bool"))
    return {
        "bool": _choice(flag=True),
        "str": TEXT,
        "int": Kind(_count, int),
        "float": Kind(_seconds, float),
        "Sequence[str]": PATTERNS,
        "bool | Sequence[str]": PATTERNS_OR_FLAG,
        "Mapping[str, Any]": TAGS,
    }[annotation.removesuffix(" | None")]
