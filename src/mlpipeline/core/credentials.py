"""Credentials in URIs: taken out where they are found, kept in memory, put back where they are used.

::

    http://ann:pw@host:5000 ─ stripped ─► http://host:5000    in fields, journals, logs, tables
                                └────► memory              ─ with_credentials ─► MLflow's client

Never pickled, shown or written. A courier process gets those of its trainer through its environment
(`environment_for`), and uses them only for the origin (scheme, host, port) they came with. What is
written down is who somebody is to a server (`user_for`), so that nobody's records are sent with
another's credentials.
"""

from __future__ import annotations

import json
import os
import re

VARIABLE = "MLPIPELINE_CREDENTIALS"
"""Environment variable through which a courier gets the credentials of the trainer that starts it."""

_VARIABLES = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
)
"""What MLflow gives to every server it talks to, whomever it was meant for."""

_Origin = tuple[str, str, int]  # scheme, host, port; port 0 is the scheme's own
_credentials: dict[_Origin, tuple[str, str]] = {}
_HTTP_PORTS = {"http": 80, "https": 443}

# Patterns are plain strings: compiling them would cost every import 2 ms, and re keeps them once used.
_AFTER_USER = r"(?s)(//[^:/?#@]*):.*@"  # up to the last @: too much rather than half of one
_USER_ALONE = r"(?i)^((?:uc:)?https?://)[^:/?#@]*@"
_WORD = r"(?:password|passwd|pwd|secret|token|sig|credentials?|(?:api|access|private|account)_?key)"
_SECRET_QUERY = rf"(?i)([?&;]\w*(?:{_WORD}|odbc_connect)=)[^&;]*"
_SECRET_NAME = rf"(?i)(?:^|[\W_]|(?-i:(?<=[a-z0-9])(?=[A-Z]))){_WORD}$"  # also apiToken


def public_uri(uri: str) -> str:
    """Return *uri* fit to be shown: its password, token and secret query values are ``***``."""
    return re.sub(
        _SECRET_QUERY, r"\1***", re.sub(_USER_ALONE, r"\1***@", re.sub(_AFTER_USER, r"\1:***@", uri))
    )


def is_secret_name(name: str) -> bool:
    """Tell whether a name says that its value is secret."""
    return re.search(_SECRET_NAME, name) is not None


def split(uri: str) -> tuple[_Origin, str, tuple[str, str] | None]:
    """Split into origin, the URI without credentials, and these.

    Raises:
        ValueError: It has no host, or a port that is no number.
    """
    from urllib.parse import unquote, urlsplit  # here, because it costs 4 ms

    parts = urlsplit(uri.removeprefix("uc:"))
    if not parts.scheme or not parts.hostname:
        raise ValueError(uri)
    origin = parts.scheme, parts.hostname, parts.port or _HTTP_PORTS.get(parts.scheme, 0)
    userinfo, at, _ = parts.netloc.rpartition("@")
    if not at:
        return origin, uri, None
    secret = unquote(parts.username or ""), unquote(parts.password or "")
    return origin, uri.replace(userinfo + at, "", 1), secret


def stripped(uri: str) -> str:
    """Return *uri* without credentials; those it carried are kept in this process's memory."""
    try:
        origin, bare, secret = split(uri)
    except ValueError:
        return uri
    if secret:
        _credentials[origin] = secret
    return bare


def credentials_for(uri: str) -> tuple[str, str] | None:
    """Return the user name and password that a URI of the same origin carried.

    They stay in the process that met them. Another one, such as a worker that unpickles a
    configuration, needs them in its environment (``MLFLOW_TRACKING_USERNAME``,
    ``MLFLOW_TRACKING_PASSWORD``).

    Args:
        uri: A URI; only its origin (scheme, host, port) counts.

    Returns:
        User name and password, ``""`` for a part that the URI left out. None when none is known.
    """
    try:
        return _credentials.get(split(uri)[0])
    except ValueError:
        return None


def with_credentials(uri: str) -> str:
    """Return *uri* with the credentials that are known for its origin, for a client to connect with."""
    from urllib.parse import quote

    known = credentials_for(uri)
    if known is None or "://" not in uri:
        return uri
    user, password = (quote(part, safe="") for part in known)
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{user}:{password}@{rest}" if password else f"{scheme}://{user}@{rest}"


def user_for(*uris: str) -> str:
    """Return who this process is to the servers of *uris*; ``""`` where it shows no credentials.

    As MLflow and requests decide it: the URI's own, then ``MLFLOW_TRACKING_USERNAME``, then
    ``~/.mlflow/credentials``, then a token, whose subject counts where it tells one (RFC 7519).
    """
    return " ".join(dict.fromkeys(filter(None, (_shown_to(uri)[0] for uri in uris))))


def secret_for(uri: str) -> str:
    """Return the password or token that this process shows to the server of *uri*; ``""`` for none."""
    return _shown_to(uri)[1]


def is_meant_for(*uris: str) -> bool:
    """Tell whether what this process shows to the servers of *uris* was configured for them.

    Credentials in a URI are that origin's alone. MLflow shows those of its variables and its file to every
    server: they are meant for those that ``MLFLOW_TRACKING_URI`` and ``MLFLOW_REGISTRY_URI`` name.
    """
    named = {_origin_of(os.environ.get(name, "")) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    return all(
        credentials_for(uri) or not _shown_to(uri)[2] or _origin_of(uri) in named - {None} for uri in uris
    )


def _origin_of(uri: str) -> _Origin | None:
    try:
        return split(uri)[0]
    except ValueError:
        return None


def source_for(uri: str) -> str:
    """Return where the credentials for the server of *uri* are from, in words; ``""`` where there are none."""
    return _shown_to(uri)[2]


def _shown_to(uri: str) -> tuple[str, str, str]:
    """Return user, password or token, and where they were found."""
    if known := credentials_for(uri):
        return *known, "the URI"
    if not uri.startswith(("http://", "https://")):
        return "", "", ""
    environ = os.environ
    user, password = environ.get("MLFLOW_TRACKING_USERNAME", ""), environ.get("MLFLOW_TRACKING_PASSWORD", "")
    source = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if not (user and password):
        user, password = _from_file()
        source = "~/.mlflow/credentials"
    if user and password:
        return user, password, source
    if token := environ.get("MLFLOW_TRACKING_TOKEN", ""):
        return _subject(token) or "token", token, "MLFLOW_TRACKING_TOKEN"
    plugin = environ.get("MLFLOW_TRACKING_AUTH", "")
    return plugin, "", "MLFLOW_TRACKING_AUTH" if plugin else ""


def _from_file() -> tuple[str, str]:
    """Read what ``mlflow login`` wrote."""
    path = os.path.expanduser("~/.mlflow/credentials")
    if not os.path.exists(path):
        return "", ""
    from configparser import ConfigParser, Error

    found = ConfigParser(interpolation=None)
    try:
        found.read(path)
    except Error:
        return "", ""
    section = found["mlflow"] if found.has_section("mlflow") else {}
    return section.get("mlflow_tracking_username", ""), section.get("mlflow_tracking_password", "")


def _subject(token: str) -> str:
    from base64 import urlsafe_b64decode

    try:
        claims = json.loads(urlsafe_b64decode(token.split(".")[1] + "=="))
        return str(claims.get("sub") or "")
    except (IndexError, ValueError, AttributeError):
        return ""


def environment_for(*uris: str) -> dict[str, str]:
    """Return the environment of a courier that serves these URIs, and no others, as this process would."""
    environ = dict(os.environ)
    if not user_for(*uris):
        for name in _VARIABLES:
            environ.pop(name, None)
    known = {split(uri)[0]: secret for uri in uris if (secret := credentials_for(uri))}
    environ[VARIABLE] = json.dumps([[*origin, *secret] for origin, secret in known.items()])
    return environ


def take_over(text: str) -> None:
    """Take over what `environment_for` put into `VARIABLE`; what cannot be read is left alone."""
    try:
        for scheme, host, port, user, password in json.loads(text):
            _credentials[scheme, host, port] = (user, password)
    except (TypeError, ValueError):
        return
