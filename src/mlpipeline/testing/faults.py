"""Faults of a server, between a client and a real one: the server itself stays well.

::

    client ──► FaultyProxy ── the fault of the moment ──► MLflow server
                                     │
          passed  answered(503)  refused  cut  late(s)  unanswered  held(gate)  delayed(s)  truncated  dripped(s)
          in_turn(…)  first(n, …)  sometimes(share, …)  only(path, …)

A fault is a function of one `Exchange`: it may forward the request or not, wait, and answer with
what the server said, with something else, or not at all. Write others in the same way::

    def misspelt(exchange):
        answer = exchange.forward()
        exchange.reply(dataclasses.replace(answer, body=answer.body.replace(b"{", b"[")))

Nothing here needs pytest, or anything beyond the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import os
import random
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

    Fault: TypeAlias = "Callable[[Exchange], None]"

_UPSTREAM_S = 60.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass(frozen=True)
class Answer:
    """What a server answers.

    Attributes:
        status: Its status.
        headers: Its headers, without those of the connection. A ``Content-Length`` among them stands
            as it is, also where it is not true; else the body's length is sent.
        body: Its body.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass
class Exchange:
    """One request that reached the proxy, to be forwarded, answered, both or neither.

    Attributes:
        method: GET, POST, …
        path: Its path with its query.
        body: Its body.
    """

    method: str
    path: str
    body: bytes
    _headers: tuple[tuple[str, str], ...] = field(repr=False)
    _upstream: tuple[str, int] = field(repr=False)
    _handler: BaseHTTPRequestHandler = field(repr=False)

    def forward(self) -> Answer:
        """Send the request to the server, which takes it, and return its answer."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=_UPSTREAM_S)
        with contextlib.closing(connection):
            connection.putrequest(self.method, self.path, skip_accept_encoding=True)
            for name, value in (*self._headers, ("Content-Length", str(len(self.body)))):
                connection.putheader(name, value)
            connection.endheaders(self.body)
            answer = connection.getresponse()
            headers = tuple(pair for pair in answer.getheaders() if pair[0].lower() not in _HOP_BY_HOP)
            return Answer(answer.status, headers, answer.read())

    def reply(self, answer: Answer) -> None:
        """Answer the client."""
        handler = self._handler
        # Not send_response: the proxy's own Date before the server's would be the one that clients read.
        handler.send_response_only(answer.status)
        for name, value in answer.headers:
            handler.send_header(name, value)
        length = next((value for name, value in answer.headers if name.lower() == "content-length"), None)
        if length is None:
            handler.send_header("Content-Length", str(len(answer.body)))
        elif int(length) != len(answer.body):
            handler.close_connection = True
        if handler.close_connection:
            # Or the client, which asked for it, still takes the connection for its next request, and finds it closed.
            handler.send_header("Connection", "close")
        handler.end_headers()
        if self.method != "HEAD":
            handler.wfile.write(answer.body)

    def drip(self, answer: Answer, every_s: float) -> None:
        """Answer the client, a byte of the body at a time."""
        stream: Any = _Dripping(self._handler.wfile, every_s)
        self._handler.wfile = stream
        self.reply(answer)

    def await_departure(self) -> None:
        """Wait until the client has broken off, or the proxy is down."""
        with contextlib.suppress(OSError):
            while self._handler.connection.recv(1):
                pass

    def cut(self) -> None:
        """Break the connection: the client sees it reset."""
        handler = self._handler
        handler.close_connection = True
        with contextlib.suppress(OSError):
            # With a linger time of 0 the kernel sends a reset, not an orderly end.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            # Streams of the handler hold the socket: its own close() would wait for them.
            os.close(handler.connection.detach())


def passed(exchange: Exchange) -> None:
    """No fault: forward, and hand the answer back."""
    exchange.reply(exchange.forward())


def cut(exchange: Exchange) -> None:
    """Let the server take the request, and break the connection before its answer."""
    exchange.forward()
    exchange.cut()


def refused(exchange: Exchange) -> None:
    """Break the connection before the server hears of the request."""
    exchange.cut()


def late(after_s: float) -> Fault:
    """Break the connection at once, and let the server take the request *after_s* seconds later.

    The client looks whether it was taken and finds that it was not, which is not true for long.
    """

    def fault(exchange: Exchange) -> None:
        exchange.cut()
        time.sleep(after_s)
        exchange.forward()

    return fault


def unanswered(exchange: Exchange) -> None:
    """Accept the connection and the request, and never answer; the server hears nothing."""
    exchange.await_departure()
    exchange.cut()


def delayed(by_s: float, then: Fault = passed) -> Fault:
    """Wait *by_s* seconds before each request goes on."""

    def fault(exchange: Exchange) -> None:
        time.sleep(by_s)
        then(exchange)

    return fault


def truncated(exchange: Exchange) -> None:
    """Let the server take the request, and break off in the middle of its answer."""
    answer = exchange.forward()
    length = ("Content-Length", str(len(answer.body)))
    exchange.reply(
        replace(answer, headers=(*answer.headers, length), body=answer.body[: len(answer.body) // 2])
    )


def dripped(every_s: float) -> Fault:
    """Let the server take the request, and hand its answer back a byte at a time."""
    return lambda exchange: exchange.drip(exchange.forward(), every_s)


def answered(status: int, *headers: tuple[str, str]) -> Fault:
    """Answer with a status in the server's place, such as 503, or 429 with ``("Retry-After", "1")``."""
    return lambda exchange: exchange.reply(Answer(status, headers, b"{}"))


def held(gate: threading.Event, then: Fault = passed) -> Fault:
    """Keep every request waiting until *gate* is set."""

    def fault(exchange: Exchange) -> None:
        gate.wait()
        then(exchange)

    return fault


def in_turn(*faults: Fault) -> Fault:
    """Meet one request after the other with the next of *faults*, over and over."""
    turns = itertools.cycle(faults)

    def fault(exchange: Exchange) -> None:
        next(turns)(exchange)

    return fault


def first(count: int, fault: Fault, then: Fault = passed) -> Fault:
    """Meet the first *count* requests with *fault*, the others with *then*."""
    turns = itertools.chain(itertools.repeat(fault, count), itertools.repeat(then))

    def met(exchange: Exchange) -> None:
        next(turns)(exchange)

    return met


def sometimes(share: float, fault: Fault, then: Fault = passed, *, seed: int = 0) -> Fault:
    """Meet a random *share* of the requests with *fault*, the others with *then*; the same ones per *seed*."""
    draws = random.Random(seed)  # noqa: S311 - which requests are met is no secret

    def met(exchange: Exchange) -> None:
        (fault if draws.random() < share else then)(exchange)

    return met


def only(path: str, fault: Fault, then: Fault = passed) -> Fault:
    """Meet requests whose path holds *path* with *fault*, the others with *then*."""
    return lambda exchange: (fault if path in exchange.path else then)(exchange)


class FaultyProxy:
    """An HTTP proxy in front of a server, whose fault can be changed at any time.

    Use it as a context manager: it listens inside the block.

    Args:
        server_uri: The server.

    Attributes:
        fault: What becomes of a request; `passed` at first.
        requests: Method and path of the requests that came, in order.
    """

    def __init__(self, server_uri: str) -> None:
        parts = urlsplit(server_uri)
        self.fault: Fault = passed
        self.requests: list[str] = []
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._port = 0
        self._listening: _Listening | None = None

    @property
    def uri(self) -> str:
        """Where clients find it; the same when it is down and up again."""
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listen, again."""
        if self._listening is None:
            self._listening = _Listening(self, self._port)
            self._port = self._listening.server_port
            threading.Thread(
                target=self._listening.serve_forever, args=(0.02,), daemon=True, name="faulty-proxy"
            ).start()

    def down(self) -> None:
        """Stop to listen: new connections are refused, as where no server runs; open ones are cut."""
        if self._listening is not None:
            self._listening.shutdown()
            self._listening.server_close()
            self._listening.cut_all()
            self._listening = None

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Take a request; of the proxy's own handler."""
        length = int(handler.headers.get("Content-Length") or 0)
        exchange = Exchange(
            handler.command,
            handler.path,
            handler.rfile.read(length),
            tuple(pair for pair in handler.headers.items() if pair[0].lower() not in _HOP_BY_HOP),
            self._upstream,
            handler,
        )
        self.requests.append(f"{handler.command} {handler.path}")
        try:
            self.fault(exchange)
        except OSError:
            # The client has gone, or the server: to whoever still waits it is a broken connection.
            exchange.cut()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()


class _Dripping:
    """A stream on which a body's bytes come one by one; the head of an answer comes in one piece."""

    def __init__(self, stream: Any, every_s: float) -> None:
        self._stream = stream
        self._every_s = every_s

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/"):
            self._stream.write(data)
            return
        for byte in data:
            self._stream.write(bytes([byte]))
            time.sleep(self._every_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Listening(ThreadingHTTPServer):
    """The proxy while it listens."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, proxy: FaultyProxy, port: int) -> None:
        self._open: set[socket.socket] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __getattr__(self, name: str) -> Any:
                # do_GET, do_POST, and whatever method else a client uses.
                if name.startswith("do_"):
                    return functools.partial(proxy.handle, self)
                raise AttributeError(name)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that break off are what this is for."""

    def cut_all(self) -> None:
        """Break the connections that are open."""
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
