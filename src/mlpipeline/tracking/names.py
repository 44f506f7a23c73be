"""What a metric, param or tag may be called: any name, brought under MLflow's rules without loss.

::

    what the user wrote             what MLflow stores              and back
    ───────────────────             ──────────────────              ────────
    val/loss                        val/loss                        the same
    ndcg@3          metric_key ──►  ndcg__at__3      original_name  ndcg@3
    f1 (macro)                      f1 __lpar__macro__rpar__     ──►  f1 (macro)
    /train//loss                    __empty__/train/__empty__/loss  /train//loss
    300 characters                  228 of them + __cut_<16 hex>    from the tag of `name_tags`

**The rule.** MLflow accepts letters, digits and ``_ - . : /`` and the space, in at most 250 characters, in
a name that is its own normalised path. Such a name stays as it is. Any other character becomes
``__word__`` (the words are in `_WORDS`) or ``__u<hex>__``; an empty path segment (leading, trailing or
double slash) becomes ``__empty__``, a dot that would walk the path ``__dot__``. Only letters, digits and
underscores are used, so a key that needed no quotes in an MLflow filter needs none afterwards, and
a Windows client, which refuses the colon, takes it too. A name that already reads like an escape
(``a__at__b``) has its underscores escaped as well (``a__us____us__at__us____us__b``): no two names
share a key. Names too long are cut and end in a hash; those alone need the tag to be read back.
"""

from __future__ import annotations

import functools
import hashlib
import posixpath
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

MAX_KEY_CHARS = 250
"""Longest metric, param or tag name that MLflow takes."""

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
    suffix = f"__cut_{text_digest(name)}"
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
    return {_NAME_TAG + text_digest(name): name for name in names if not is_exact(metric_key(name))}


@functools.lru_cache(maxsize=4096)  # the trials of a search have the same names
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


def storable(text: str) -> str:
    """Return a text without what not every database stores, lone surrogates and NULs, which are escaped."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def text_digest(text: str) -> str:
    """Return 16 hex characters that stand for a text."""
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
        if is_matched(name, self.exclude):
            return False
        return not self.include or is_matched(name, self.include)


def is_matched(name: str, globs: Iterable[str]) -> bool:
    """Tell whether a name is one of those that the globs mean."""
    return any(name == glob or fnmatchcase(name, glob) for glob in globs)
