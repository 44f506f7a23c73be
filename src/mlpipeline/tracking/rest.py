"""MLflow's client for a server, asking once.

MLflow repeats a failed call seven times, which holds its thread for minutes, and when it gives up it
has thrown away what the server said: the status and ``Retry-After``. Its number of repetitions can only be
changed through the environment, which in a user's process is the user's. Here a call is made once, and a
failure tells all of it; when to ask again is the courier's business.

::

    MlflowClient ─ tracking, registry ─► _Tracking, _Registry ─ ask ─► server     200: parsed by MLflow
    points of metrics ─────────────────► post_points ───────────┤       429, 5xx: Unavailable
    files ─────────────────────────────► _Artifacts ────────────┘

Points, of which there are many, skip the entities, messages and dicts that MLflow's client makes of each:
29 us of processor time for one, 3 as JSON.

Imports MLflow, most of which has no types; imported only where somebody connects: `MlflowSink`, `Destination.client`.
"""

# mypy: disallow-untyped-calls = False
from __future__ import annotations

import contextlib
import json
import math
import os
import posixpath
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.service_pb2 import GetMetricHistoryBulkInterval, LogBatch
from mlflow.store.artifact.artifact_repo import verify_artifact_path
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore as TrackingStore
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mime_type_utils import _guess_mime_type
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.request_utils import augmented_raise_for_status
from mlflow.utils.rest_utils import http_request, verify_rest_response

from mlpipeline.tracking.destination import Delay
from mlpipeline.tracking.records import Point
from mlpipeline.tracking.verdicts import Unavailable, retry_after_s

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST_TIMEOUT_S = 30

_SMALL_BYTES = 2**20
"""A larger file takes long anywhere."""

_BUSY = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same call may pass later (mlflow.utils.request_utils has the same list)."""


def client_of(
    tracking_uri: str,
    registry_uri: str,
    *,
    timeout_s: float = REQUEST_TIMEOUT_S,
    delay: Delay | None = None,
) -> MlflowClient:
    """Return a client that asks once what is a server: the tracking store, the registry, or both.

    Args:
        tracking_uri: Whatever MLflow knows; ``http://`` or ``https://`` is a server.
        registry_uri: The same; a server may be the registry of runs in a database.
        timeout_s: How long one answer may take.
        delay: Is told of every call.
    """
    delay = delay or Delay()
    client = MlflowClient(tracking_uri, registry_uri)
    if tracking_uri.startswith(("http://", "https://")):
        client._tracking_client = _TrackingClient(tracking_uri, timeout_s, delay)  # noqa: SLF001 - MlflowClient takes no store
    if registry_uri.startswith(("http://", "https://")):
        client._registry_client_lazy = _RegistryClient(registry_uri, tracking_uri, timeout_s, delay)  # type: ignore[attr-defined]  # noqa: SLF001 - the same
    return client


def _ask(
    creds: Any,
    endpoint: str,
    method: str,
    json_body: str | None,
    answer: Any,
    timeout_s: float,
    delay: Delay,
    headers: Any = None,
) -> Any:
    """Make one call, as mlflow.utils.rest_utils.call_endpoint does, and fill its *answer*."""
    headers = dict(headers or {})
    content: dict[str, Any] = {}
    if json_body is not None and method == "GET":
        content = {"params": json.loads(json_body)}
    elif json_body is not None:
        headers["Content-Type"] = "application/json"
        content = {"data": json_body.encode()}
    with delay:
        response = _once(creds, endpoint, method, headers, timeout_s, **content)
    try:
        text = verify_rest_response(response, endpoint).text
    except MlflowException as error:
        if response.status_code != 200:
            # For `verdicts.judged`: MLflow keeps it only where the body has one of its error codes.
            error.status_seen = response.status_code  # type: ignore[attr-defined]
        raise
    parse_dict(json.loads(text), answer)
    return answer


def _once(
    creds: Any, endpoint: str, method: str, headers: dict[str, str], timeout_s: float, **content: Any
) -> Any:
    """Send one request, once, and return its answer.

    Raises:
        Unavailable: The server is busy, or fails.
    """
    if urlsplit(creds.host).scheme == "http":
        # MLflow's default server holds back the end of an answer on a kept connection until the start of
        # it is acknowledged (Nagle's algorithm), which this side delays by 40 ms. A new one costs 1.
        headers = {**headers, "Connection": "close"}
    response = http_request(
        creds,
        endpoint,
        method,
        max_retries=0,
        raise_on_status=False,
        timeout=timeout_s,
        extra_headers=headers,
        **content,
    )
    if response.status_code in _BUSY:
        raise Unavailable(
            f"the server answers {response.status_code} {response.reason}".strip(),
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
            is_unclear=response.status_code != 429,  # which says that the call was not begun
            status=response.status_code,
        )
    return response


def post_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> None:
    """Store points of metrics through a client that `client_of` made, as its ``log_batch`` would."""
    metrics = [
        {
            "key": point.key,
            "value": _in_json(point.value),
            "timestamp": point.timestamp_ms,
            "step": point.step,
        }
        for point in points
    ]
    store: _Tracking = client._tracking_client.store  # noqa: SLF001 - MLflow has no public way to it
    store._call_endpoint(LogBatch, json.dumps({"run_id": run_id, "metrics": metrics}))  # noqa: SLF001 - the same


def missing_points(client: MlflowClient, run_id: str, points: Sequence[Point]) -> list[Point]:
    """Return those of *points* that a server does not have, asked key by key; in doubt it does not.

    MLflow gives at most 2500 points for an answer, evenly drawn where there are more in the range of steps.
    """
    steps: dict[str, list[int]] = {}
    for point in points:
        steps.setdefault(point.key, []).append(point.step)
    store: _Tracking = client._tracking_client.store  # noqa: SLF001 - MLflow has no public way to it
    there: set[tuple[str, int, int, str]] = set()
    for key, of_key in steps.items():
        content = {"run_ids": [run_id], "metric_key": key, "start_step": min(of_key), "end_step": max(of_key)}
        found = store._call_endpoint(GetMetricHistoryBulkInterval, json.dumps(content))  # noqa: SLF001 - the same
        there |= {Point(key, one.value, one.timestamp, one.step).identity for one in found.metrics}
    return [point for point in points if point.identity not in there]


def _in_json(value: float) -> float | str:
    """Return a value as protobuf's JSON has it: numbers that are not finite by their names."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class _Tracking(TrackingStore):
    timeout_s: float
    delay: Delay

    def _call_endpoint(
        self,
        api: Any,
        json_body: str | None = None,
        endpoint: str | None = None,
        retry_timeout_seconds: float | None = None,  # noqa: ARG002 - MLflow's signature
        response_proto: Any = None,
    ) -> Any:
        infos = self._V3_METHOD_TO_INFO if api in self._V3_APIS else self._METHOD_TO_INFO
        found, method = infos[api]
        self._validate_workspace_support_if_specified()
        return _ask(
            self.get_host_creds(),
            endpoint or found,
            method,
            json_body,
            response_proto or api.Response(),
            self.timeout_s,
            self.delay,
        )


class _Registry(RegistryStore):
    timeout_s: float
    delay: Delay

    def _call_endpoint(
        self, api: Any, json_body: str | None, call_all_endpoints: bool = False, extra_headers: Any = None
    ) -> Any:
        if call_all_endpoints:  # an API with several addresses, none of which is called here
            return super()._call_endpoint(api, json_body, call_all_endpoints, extra_headers)
        endpoint, method = self._get_endpoint_from_method(api)
        self._validate_workspace_support_if_specified()
        answer = self._get_response_from_method(api)
        creds = self.get_host_creds()
        return _ask(creds, endpoint, method, json_body, answer, self.timeout_s, self.delay, extra_headers)


class _Artifacts:
    """A server's artifacts of one run or model; a file that MLflow would send in parts goes its way."""

    def __init__(self, repository: HttpArtifactRepository, timeout_s: float, delay: Delay) -> None:
        self._repository = repository
        self._timeout_s = timeout_s
        self._delay = delay

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if self._repository._should_multipart_upload(local_file):  # noqa: SLF001 - HttpArtifactRepository.log_artifact in short
            self._repository.log_artifact(local_file, artifact_path)
            return
        verify_artifact_path(artifact_path)
        name = os.path.basename(local_file)
        headers = {"Content-Type": _guess_mime_type(name)}
        with open(local_file, "rb") as file:
            creds = self._repository._host_creds  # noqa: SLF001 - the same
            endpoint = posixpath.join("/", artifact_path or "", name)
            is_small = os.fstat(file.fileno()).st_size <= _SMALL_BYTES
            with self._delay if is_small else contextlib.nullcontext():
                response = _once(creds, endpoint, "PUT", headers, self._timeout_s, data=file)
        augmented_raise_for_status(response)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        HttpArtifactRepository.log_artifacts(self, local_dir, artifact_path)  # type: ignore[arg-type]  # it asks for `log_artifact` only

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)


class _TrackingClient(TrackingServiceClient):
    def __init__(self, uri: str, timeout_s: float, delay: Delay) -> None:
        self._store = _Tracking(partial(get_default_host_creds, uri))
        self._store.timeout_s, self._store.delay = timeout_s, delay
        super().__init__(uri)

    def _get_artifact_repo(self, resource_id: str, **options: Any) -> Any:
        repository = super()._get_artifact_repo(resource_id, **options)
        if isinstance(repository, HttpArtifactRepository):
            return _Artifacts(repository, self._store.timeout_s, self._store.delay)
        return repository

    @property
    def store(self) -> Any:
        return self._store


class _RegistryClient(ModelRegistryClient):
    def __init__(self, uri: str, tracking_uri: str, timeout_s: float, delay: Delay) -> None:
        self._store = _Registry(partial(get_default_host_creds, uri))
        self._store.timeout_s, self._store.delay = timeout_s, delay
        super().__init__(uri, tracking_uri)

    @property
    def store(self) -> Any:
        return self._store
