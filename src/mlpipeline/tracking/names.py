"""What a run may hold: names, params and secrets, brought under MLflow's rules without loss.

::

    what the user wrote             what MLflow stores              and back
    ───────────────────             ──────────────────              ────────
    val/loss                        val/loss                        the same
    ndcg@3          metric_key ──►  ndcg__at__3      original_name  ndcg@3
    f1 (macro)                      f1 __lpar__macro__rpar__     ──►  f1 (macro)
    /train//loss                    __empty__/train/__empty__/loss  /train//loss
    300 characters                  228 of them + __cut_<16 hex>    from the tag of `name_tags`

    {"model": {"lr": 0.1}}  flatten_params ──► {"model.lr": "0.1"}  ──► NameFilter, redact, metric_key

**The rule.** MLflow accepts letters, digits and ``_ - . : /`` and the space, in at most 250 characters, in
a name that is its own normalised path. Such a name stays as it is. Any other character becomes
``__word__`` (the words are in `_WORDS`) or ``__u<hex>__``; an empty path segment (leading, trailing or
double slash) becomes ``__empty__``, a dot that would walk the path ``__dot__``. Only letters, digits and
underscores are used, so a key that needed no quotes in an MLflow filter needs none afterwards, and
a Windows client, which refuses the colon, takes it too. A name that already reads like an escape
(``a__at__b``) has its underscores escaped as well (``a__us____us__at__us____us__b``): no two names
share a key. Names too long are cut and end in a hash; those alone need the tag to be read back.
"""

# ruff: noqa: BLE001 - a foreign object may raise anything when looked at; no training ends for that

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import itertools
import json
import math
import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

MAX_KEY_CHARS = 250
"""Longest metric, param or tag name that MLflow takes."""

# ── names ────────────────────────────────────────────────────────────────────────────────────────

_WORDS = {
    "@": "at",
    "%": "percent",
    "(": "lpar",
    ")": "rpar",
    "[": "lbrack",
    "]": "rbrack",
    "{": "lbrace",
    "}": "rbrace",
    "=": "equals",
    ",": "comma",
    "+": "plus",
    "#": "num",
    "<": "less",
    ">": "more",
    "&": "amp",
    "*": "star",
    "|": "bar",
    "$": "dollar",
    "'": "quote",
    '"': "dquote",
    ".": "dot",
    "_": "us",
    "": "empty",
}
_CHARACTERS = {word: character for character, word in _WORDS.items()}
# MLflow's own pattern ends in `$`, which lets a trailing newline through; this one does not.
_REFUSED = re.compile(r"[^/\w.\- :]")
_ESCAPE = re.compile(rf"__({'|'.join(_CHARACTERS)}|u[0-9a-f]{{2,6}})__")
_CUT = re.compile(r"__cut_([0-9a-f]{16})\Z")
_NAME_TAG = "mlpipeline.name."


@functools.lru_cache(maxsize=4096)
def metric_key(name: str) -> str:
    """The key under which MLflow stores a metric, param or tag of this name.

    Args:
        name: Any string, also the empty one.

    Returns:
        *name* itself where MLflow accepts it, else its escaped form (module docstring), in at most
        250 characters. Different names have different keys.
    """
    key = _escaped(name)
    if not is_exact(key) or original_name(key) != name:
        # The name itself reads like one of our escapes. Without a bare underscore left, nothing does.
        key = _escaped(name, underscores=True)
    if len(key) <= MAX_KEY_CHARS:
        return key
    suffix = f"__cut_{_digest(name)}"
    return key[: MAX_KEY_CHARS - len(suffix)] + suffix


def original_name(key: str, tags: Mapping[str, str] | None = None) -> str:
    """The name that was given to `metric_key`.

    Args:
        key: What MLflow stores.
        tags: The run's tags; needed only for names that were too long (see `name_tags`).

    Returns:
        The original name; *key* itself if it was cut and *tags* do not hold the name.
    """
    cut = _CUT.search(key)
    if cut is None:
        return _ESCAPE.sub(_unescaped, key)
    name = (tags or {}).get(_NAME_TAG + cut[1])
    return name if name is not None and metric_key(name) == key else key


def is_exact(key: str) -> bool:
    """Whether `original_name` needs nothing but this key: it was not cut for length."""
    return _CUT.search(key) is None


def name_tags(names: Iterable[str]) -> dict[str, str]:
    """The tags to set on a run, so that names cut for length can be read back.

    Args:
        names: Original names.

    Returns:
        One tag for each name that is too long; nothing for the others.
    """
    return {_NAME_TAG + _digest(name): name for name in names if not is_exact(metric_key(name))}


def is_accepted(name: str) -> bool:
    """Whether MLflow takes this name as a metric, param or tag key."""
    return (
        len(name) <= MAX_KEY_CHARS
        and _REFUSED.search(name) is None
        and posixpath.normpath(name) == name
        and name != "."
        and not name.startswith(("..", "/"))
    )


def _escaped(name: str, *, underscores: bool = False) -> str:
    text = name.replace("_", "__us__") if underscores else name[:]  # [:]: an exact str, whatever its class
    text = _REFUSED.sub(lambda match: _escape(match[0]), text)
    segments = text.split("/")
    for i, segment in enumerate(segments):
        if segment in ("", ".", ".."):
            segments[i] = _escape(".") * len(segment) or _escape("")
    if segments[0].startswith(".."):  # MLflow takes any such name for a path that leaves the folder
        segments[0] = _escape(".") + segments[0][1:]
    return "/".join(segments)


def _escape(character: str) -> str:
    word = _WORDS.get(character)
    return f"__{word}__" if word is not None else f"__u{ord(character):02x}__"


def _unescaped(match: re.Match[str]) -> str:
    character = _CHARACTERS.get(match[1])
    if character is not None:
        return character
    codepoint = int(match[1][1:], 16)
    return chr(codepoint) if codepoint <= 0x10FFFF else match[0]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class NameFilter:
    """Decides by shell globs which names are recorded; call it with a name.

    A pattern also matches the name it equals, so that ``acc[0]`` means itself.

    Args:
        include: Names to record; empty means all.
        exclude: Names not to record; wins over *include*.
    """

    include: Collection[str] = ()
    exclude: Collection[str] = ()

    def __post_init__(self) -> None:
        for field in ("include", "exclude"):
            globs = getattr(self, field)
            object.__setattr__(self, field, (globs,) if isinstance(globs, str) else tuple(globs))

    def __call__(self, name: str) -> bool:
        """Whether *name* is to be recorded."""
        if _matches(name, self.exclude):
            return False
        return not self.include or _matches(name, self.include)


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(name == glob or fnmatchcase(name, glob) for glob in globs)


# ── params ───────────────────────────────────────────────────────────────────────────────────────

MAX_DEPTH = 8
MAX_PARAMS = 1000
_MAX_WHOLE = 10_000  # entries beyond MAX_PARAMS that still go to params_full.json
_MAX_ELEMENTS = 1000  # of one list or array shown as text
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def flatten_params(
    params: Mapping[str, Any], *, max_value_chars: int = 6000
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

    Returns:
        Two dicts by dotted name (not yet a `metric_key`). The first holds the values to log; one
        that is too long reads ``sha256:<16 hex> (<n> chars, whole in params_full.json): <start>…``.
        The second holds the whole text of those, and the params beyond the first 1000.
    """
    flat: dict[str, str] = {}
    whole: dict[str, str] = {}
    beyond = 0
    for name, text in itertools.islice(_leaves(params, "params", 0, ()), MAX_PARAMS + _MAX_WHOLE):
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
    head = f"sha256:{_digest(text)} ({len(text)} chars, whole in params_full.json): "
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
    try:
        kind = type(value)
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
    # Neither a lone surrogate nor a NUL can be stored by every database.
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


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
        number = _number(str(value))  # a float32 prints as 0.1 and converts to 0.10000000149011612
        return number if number is not None else _plain(value.item(), depth, path, budget)
    if math.prod(shape) > _MAX_ELEMENTS:
        return f"{_type_name(value)}(shape={shape}, dtype={value.dtype})"
    try:
        return _plain(value.tolist(), depth, path, budget)
    except Exception:  # sparse, symbolic, on a device that is gone
        return f"{_type_name(value)}(shape={shape}, dtype={value.dtype})"


def _number(text: str) -> int | float | None:
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


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────

REDACTED = "[redacted]"

_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+")
_SECRET_WORDS = frozenset(
    [
        "password",
        "passwords",
        "passwd",
        "pwd",
        "passphrase",
        "secret",
        "secrets",
        "credential",
        "credentials",
        "auth",
        "authorization",
        "apikey",
        "apikeys",
        "accesskey",
        "privatekey",
        "secretkey",
        "authtoken",
        "accesstoken",
        "apitoken",
    ]
)
_SECRET_KEYS = frozenset(("api", "access", "private", "secret", "signing", "encryption", "ssh", "account"))
# What stands before "token" where the token is a symbol of a vocabulary, not a password.
_VOCABULARY = frozenset(
    [
        "pad",
        "eos",
        "bos",
        "unk",
        "mask",
        "sep",
        "cls",
        "bot",
        "eot",
        "boi",
        "eoi",
        "start",
        "end",
        "stop",
        "begin",
        "first",
        "last",
        "next",
        "prev",
        "new",
        "special",
        "additional",
        "extra",
        "image",
        "video",
        "audio",
        "text",
        "prompt",
        "target",
        "source",
        "decoder",
        "forced",
        "suppress",
        "sentinel",
        "blank",
        "class",
        "register",
        "oov",
        "per",
        "max",
        "min",
        "num",
        "n",
        "word",
        "sub",
        "input",
        "output",
        "label",
        "cross",
    ]
)
# The look-behinds below start each word once: without them a long text takes quadratic time.
_URL_USERINFO = re.compile(r"(?P<scheme>(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]*://)[^\s/?#'\"<>]+@")
_SECRET_VALUES = re.compile(
    r"\bBearer\s+[\w.~+/=\-]{8,}"
    r"|\bBasic\s+(?=[A-Za-z0-9+/]*[0-9=])[A-Za-z0-9+/]{12,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w\-]{20,}"
    r"|\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_\-]{20,}|\bxox[abprs]-[\w\-]{10,}"
    r"|(?<![\w\-])eyJ[\w\-]{8,}\.eyJ[\w\-]{8,}\.[\w\-]+"
)
# `"password": "x"` and `password='x'` and `password=x` inside a longer text: JSON, a repr, a DSN, a query.
_PAIR = re.compile(
    r"(?P<name>(?<![\w.\-])[A-Za-z_][\w.\-]*)(?P<between>[\"']?\s*[:=]\s*)"
    r"(?P<value>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^\s\"'&;,(){}\[\]]+)"
)
_NOT_SECRET = frozenset(("", "none", "null", "true", "false"))


def redact(params: Mapping[str, str], extra_globs: Iterable[str] = ()) -> dict[str, str]:
    """The same params with everything that looks like a secret replaced by ``[redacted]``.

    A name is secret if one of its words is (``db.password``, ``hfToken``, ``AWS_SECRET_ACCESS_KEY``),
    not if it merely contains one (``tokenizer``, ``author``). A token is one only as the last word, and
    not a vocabulary's (``eos_token``). A value is secret if it is a bearer or basic authorization, a
    private key or a well-known kind of token; of a URL only the userinfo goes, and of a longer text
    only the value behind a secret name in it. Plain numbers, booleans and None never are.

    Args:
        params: Flat text, as from `flatten_params` (both its results).
        extra_globs: Names that are secret here whatever their value, also a number.

    Returns:
        A new dict with the same names.
    """
    globs = tuple(extra_globs)
    return {
        name: REDACTED if _matches(name, globs) else _redacted(name, value) for name, value in params.items()
    }


def _redacted(name: str, value: str) -> str:
    if _is_plain(value):
        return value
    if _is_secret_name(name) or _SECRET_VALUES.search(value):
        return REDACTED
    value = _URL_USERINFO.sub(rf"\g<scheme>{REDACTED}@", value)
    return _PAIR.sub(_redacted_pair, value)


def _redacted_pair(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    if _is_plain(value.strip("\"'")) or value == REDACTED or not _is_secret_name(match["name"]):
        return match[0]
    return f"{match['name']}{match['between']}{quote}{REDACTED}{quote}"


def _is_plain(value: str) -> bool:
    return value.strip().lower() in _NOT_SECRET or _number(value) is not None


@functools.lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    for segment in re.split(r"[./:\s]", name):
        words = [word.lower() for word in _PARTS.findall(segment)]
        if not _SECRET_WORDS.isdisjoint(words):
            return True
        pairs = itertools.pairwise(words)
        if any(second in ("key", "keys") and first in _SECRET_KEYS for first, second in pairs):
            return True
        if words[-1:] == ["token"] and (len(words) < 2 or words[-2] not in _VOCABULARY):
            return True
    return False
