"""What goes over the wire: only to a server that proves who it is, and credentials only to the one they are for."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient

from mlpipeline import MLflowConfig
from mlpipeline.testing.faults import Answer, FaultyProxy, answered, only
from mlpipeline.tracking.account import account_of
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.opening import open_run
from mlpipeline.tracking.records import Point
from mlpipeline.tracking.sink import MlflowSink
from mlpipeline.tracking.sync import send_all
from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlpipeline.testing.places import Server


class Listener(ThreadingHTTPServer):
    """Notes the Authorization of each request, and answers all of them alike."""

    daemon_threads = True

    def __init__(self, status: int, headers: dict[str, str], tls: ssl.SSLContext | None) -> None:
        self.shown: list[str | None] = []
        shown = self.shown

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                shown.append(self.headers["Authorization"])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_POST = do_PATCH = answer

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that break off."""


@contextlib.contextmanager
def listening(
    status: int = 401, headers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[Listener]:
    """Listen inside the block."""
    with Listener(status, headers or {}, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def self_made(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, encryption_algorithm=serialization.NoEncryption()
    )
    path = tmp_path / "both.pem"
    path.write_bytes(private + made.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.fixture
def ann(monkeypatch: pytest.MonkeyPatch) -> str:
    """Somebody with a password in the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-password")
    return "ann"


def test_a_server_that_nobody_vouches_for_hears_nothing(self_made: ssl.SSLContext, ann: str) -> None:
    """Certificates are checked: it is as if nobody answered there."""
    with listening(tls=self_made) as server:
        sink = MlflowSink(Destination(server.uri, server.uri, ann))
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            sink.experiment("any", None, None, None)
    assert [] == server.shown


def test_a_registry_beside_a_database_is_asked_once(store_uri: str) -> None:
    """As a tracking server is: MLflow's own client would hold the thread for minutes, seven times over."""
    with listening(503) as server:
        sink = MlflowSink(Destination(store_uri, server.uri))
        with pytest.raises(Unavailable, match="503"):
            sink.ensure_registered_model("any")
    assert 1 == len(server.shown)


def test_a_page_that_is_not_there_is_no_refusal() -> None:
    """A proxy that has lost its way answers so for everything: records wait until it has found it."""
    with FaultyProxy("http://127.0.0.1:9") as server:
        server.fault = lambda exchange: exchange.reply(Answer(404, (), b"<html>There is no such page</html>"))
        sink = MlflowSink(Destination(server.uri, server.uri))
        with pytest.raises(Unavailable, match="nobody there knows this call") as caught:
            sink.log_points("run", [Point("loss", 0.5, 1, 0)])
    assert 404 == caught.value.status


@pytest.mark.server
def test_an_artifact_store_says_when_to_come_again(server: Server, tmp_path: Path) -> None:
    """As the tracking server does; MLflow sends files without its retries, and hands the answer on."""
    (tmp_path / "file.txt").write_text("text")
    run_id = MlflowClient(server.uri).create_run("0").info.run_id
    with FaultyProxy(server.uri) as proxy:
        proxy.fault = only("mlflow-artifacts", answered(503, ("Retry-After", "7")))
        with pytest.raises(Unavailable) as caught:
            MlflowSink(Destination(proxy.uri, proxy.uri)).upload(run_id, tmp_path / "file.txt", None)
    assert (503, 7.0) == (caught.value.status, caught.value.retry_after_s)


def test_a_redirect_to_another_server_takes_no_credentials_along(ann: str) -> None:
    """The first one is shown them, because they are for it."""
    with listening(404) as other, listening(302, {"Location": f"{other.uri}/api"}) as first:
        sink = MlflowSink(Destination(first.uri, first.uri, ann))
        with pytest.raises((Unavailable, Refused)):
            sink.experiment("any", None, None, None)
    assert str(first.shown[0]).startswith("Basic ")
    assert [None] == list(set(other.shown))


def test_what_was_recorded_without_credentials_is_not_sent_with_those_for_another_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal may name any server; one that the environment names gets them, and any if somebody says so."""
    with listening() as server:
        run = open_run(MLflowConfig(tracking_uri=server.uri, delivery="offline"))
        run.end()
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
        send_all(Home(home))
        assert [] == server.shown
        assert "without credentials" in str(account_of(Home(home), run.uid).problem)
        send_all(Home(home), is_for_anybody=True)
        assert {"Bearer canary-token"} == set(server.shown)
        server.shown.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        send_all(Home(home))
        assert {"Bearer canary-token"} == set(server.shown)
