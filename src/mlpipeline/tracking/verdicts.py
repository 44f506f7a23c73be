"""What went wrong at a destination, as one of two exceptions: nobody else has to know MLflow's.

::

    Unavailable   not now: network, server, lock, credentials; the same call may pass later
    Refused       never: MLflow understood the call and says no; the record is a dead letter
"""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime

from mlpipeline.core.credentials import public_uri

_LASTING = {
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "FEATURE_DISABLED",
    "NOT_IMPLEMENTED",
}
_DENIED = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}

_LONGEST_RETRY_AFTER_S = 600.0
"""A server that asks for more is asked again all the same."""


class Unavailable(Exception):  # noqa: N818 - names a state of the world, not a bug
    """The destination cannot take the call now.

    Args:
        reason: What stands in the way, in words, without credentials.
        retry_after_s: What the server asked for, if it did.
        is_denied: The credentials are missing, wrong or not enough.
        is_unclear: The call may have taken effect although its answer did not arrive.
        status: The HTTP status of the answer, if there was one.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry_after_s: float | None = None,
        is_denied: bool = False,
        is_unclear: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_denied = is_denied
        self.is_unclear = is_unclear
        self.status = status

    @property
    def is_general(self) -> bool:
        """Whether it may be the destination's trouble, and every other call would meet it, too."""
        if self.status is None:
            return self.is_unclear
        return self.is_denied or self.status in {408, 429} or self.status >= 500

    @property
    def is_failure(self) -> bool:
        """Whether a server answered that it failed, which may be this one call's doing."""
        return self.status is not None and self.status >= 500


class Refused(Exception):  # noqa: N818 - names a verdict of the server, not a bug
    """MLflow refuses the call for good.

    Args:
        reason: MLflow's own words.
        code: MLflow's error code.
    """

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code


def judged(error: Exception) -> Unavailable | Refused:
    """Return the verdict on what MLflow raised.

    ``error_code`` alone does not tell: a refused connection and a server's failure both come as
    INTERNAL_ERROR, so the HTTP status and the cause are looked at first.
    """
    reason = words(error)
    code = str(getattr(error, "error_code", "") or "")
    status = _http_status(error)
    if status in {401, 403} or code in _DENIED:
        text = f"the credentials are not accepted ({status or code}): {reason}"
        return Unavailable(text, is_denied=True, status=status or 403)
    if status == 404 and type(error).__name__ != "RestException":
        # A page of a proxy's, or of a server that is too old for this call: another one may take it.
        return Unavailable(f"nobody there knows this call (404): {reason}", status=404)
    if status is not None:
        # 413: as large as this it will never pass; most often the word of a proxy, which knows no error codes.
        if status == 413 or (status in {400, 404, 409, 422} and code in _LASTING):
            return Refused(reason, code)
        after_s = retry_after_s(_header(error, "Retry-After"))
        return Unavailable(reason, retry_after_s=after_s, is_unclear=status >= 500, status=status)
    if code in _LASTING and _is_store_error(error):
        return Refused(reason, code)
    if isinstance(error, (TypeError, ValueError)) and not isinstance(error, (json.JSONDecodeError, OSError)):
        # MLflow's client could not even express the call. An answer cut in the middle is a
        # JSONDecodeError, and says nothing about the call.
        return Refused(f"{type(error).__name__}: {reason}")
    # These two are of a file of ours: the destination was not asked.
    return Unavailable(reason, is_unclear=not isinstance(error, (FileNotFoundError, PermissionError)))


def _http_status(error: Exception) -> int | None:
    if (seen := getattr(error, "status_seen", None)) is not None:
        return int(seen)
    if type(error).__name__ == "HTTPError":  # of requests, which MLflow uploads files with
        return getattr(getattr(error, "response", None), "status_code", None)
    get_status = getattr(error, "get_http_status_code", None)
    if get_status is None or type(error).__name__ != "RestException":
        return None
    return int(get_status())


def _header(error: Exception, name: str) -> str | None:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return headers.get(name) if headers is not None else None


def retry_after_s(value: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = (
            float(value)
            if value.strip().isdigit()
            else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)


def _is_store_error(error: Exception) -> bool:
    cause = error.__cause__ or error.__context__
    return type(error).__module__.startswith("mlflow") and not isinstance(cause, OSError)


def words(error: Exception) -> str:
    """Return what an error says, on one line and without credentials."""
    text = " ".join(str(getattr(error, "message", None) or error).split())
    return public_uri(text[:500])
