"""Secrets in params, tags and texts: found by name and by shape, and replaced.

A name tells by whole words (``api_key``, ``db.password``, ``authToken``), so that ``num_tokens`` and
``key_size`` are none; a value tells by its form (user and password in a URL, a bearer token, a key file).
A plain number, a bool or None is never a secret.
"""

from __future__ import annotations

import functools
import itertools
import re
from typing import TYPE_CHECKING

from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking.names import is_matched
from mlpipeline.tracking.params import number_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
_SHORT = 200
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
        name: REDACTED if is_matched(name, globs) else _redacted(name, value)
        for name, value in params.items()
    }


def masked(texts: Mapping[str, str], how: bool | Iterable[str]) -> dict[str, str]:
    """The same texts, redacted as the option ``redact`` says: False nothing, True secrets, globs add names."""
    if how is False:
        return dict(texts)
    return redact(texts, () if how is True else how)


def masked_uri(uri: str, how: bool | Iterable[str]) -> str:
    """The same URI, redacted as the option ``redact`` says."""
    return uri if how is False else public_uri(masked({"uri": uri}, how)["uri"])


def _redacted(name: str, value: str) -> str:
    return _redacted_short(name, value) if len(value) <= _SHORT else _searched(name, value)


@functools.lru_cache(maxsize=4096)
def _redacted_short(name: str, value: str) -> str:
    """The trials of a study have the same tags over and over, and a look at one takes 10 us."""
    return _searched(name, value)


def _searched(name: str, value: str) -> str:
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
    return value.strip().lower() in _NOT_SECRET or number_in(value) is not None


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
