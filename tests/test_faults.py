"""The fault tools: each fault is what a client of a real server would meet."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlpipeline.testing import faults
from mlpipeline.testing.faults import FaultyProxy


@pytest.fixture
def taken():
    """Bodies that the server behind the proxy has taken."""
    return []


@pytest.fixture
def proxy(taken):
    """A proxy in front of a server that answers with what it was sent."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append(body)
            self.send_response(200)
            self.send_header("X-Kind", self.headers["X-Kind"])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with FaultyProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
            yield proxy
        server.shutdown()


def connect(proxy):
    """Open a connection, which the first request makes."""
    return http.client.HTTPConnection(proxy.uri.removeprefix("http://"), timeout=10)


def send(connection, path="/x?y=1"):
    """Send one request: status, header and body of the answer."""
    connection.request("POST", path, b"hello", {"X-Kind": "mine"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("X-Kind"), answer.read()


def post(proxy, path="/x?y=1"):
    """Send one request on a connection of its own."""
    with contextlib.closing(connect(proxy)) as connection:
        return send(connection, path)


def test_without_a_fault_everything_goes_through(proxy, taken):
    """Headers and body there, status, headers and body back."""
    assert (200, "mine", b"hello") == post(proxy)
    assert [b"hello"] == taken
    assert ["POST /x?y=1"] == proxy.requests


def test_a_connection_that_ends_is_said_to_end(proxy):
    """Or a pool of connections takes it for one that lasts, and its next request is cut off now and then."""
    with contextlib.closing(connect(proxy)) as connection:
        connection.request("POST", "/", b"hello", {"Connection": "close", "X-Kind": "mine"})
        answer = connection.getresponse()
        assert (b"hello", "close") == (answer.read(), answer.getheader("Connection"))
        assert (200, "mine", b"hello") == send(connection), "http.client has made a new one"


def test_a_cut_answer_is_of_a_request_that_was_taken(proxy, taken):
    """The client cannot know, and that is the point."""
    proxy.fault = faults.cut
    with pytest.raises(ConnectionError):
        post(proxy)
    assert [b"hello"] == taken


def test_a_refused_request_was_not_taken(proxy, taken):
    """To the client it looks like a cut one."""
    proxy.fault = faults.refused
    with pytest.raises(ConnectionError):
        post(proxy)
    assert [] == taken


def test_an_answer_in_the_servers_place(proxy, taken):
    """With the headers that matter, such as Retry-After."""
    proxy.fault = faults.answered(429, ("X-Kind", "wait"))
    assert (429, "wait", b"{}") == post(proxy)
    assert [] == taken


def test_a_held_request_waits_for_the_gate(proxy, taken):
    """And goes on when it opens."""
    gate, answers = threading.Event(), []
    proxy.fault = faults.held(gate)
    thread = threading.Thread(target=lambda: answers.append(post(proxy)))
    thread.start()
    while not proxy.requests:
        pass
    assert [] == taken
    gate.set()
    thread.join(10)
    assert [(200, "mine", b"hello")] == answers


def test_faults_combine(proxy):
    """In turn, for the first requests, for some paths."""
    proxy.fault = faults.only(
        "/special", faults.first(1, faults.answered(503), faults.in_turn(faults.answered(500), faults.passed))
    )
    found = [post(proxy, path=path)[0] for path in ("/a", "/special", "/special", "/special", "/b")]
    assert [200, 503, 500, 200, 200] == found


def test_down_is_a_port_where_nobody_listens_and_up_is_the_same_port(proxy, taken):
    """Connections that were open are broken."""
    kept_open = connect(proxy)
    send(kept_open)
    proxy.down()
    with pytest.raises(ConnectionRefusedError):
        post(proxy)
    with pytest.raises(ConnectionError):
        send(kept_open)
    proxy.up()
    assert 200 == post(proxy)[0]
    assert [b"hello", b"hello"] == taken


def test_a_truncated_answer_is_shorter_than_it_says(proxy, taken):
    """The server has taken the request."""
    proxy.fault = faults.truncated
    with pytest.raises(http.client.IncompleteRead):
        post(proxy)
    assert [b"hello"] == taken


def test_a_dripped_answer_comes_a_byte_at_a_time(proxy):
    """All of it, in its time."""
    proxy.fault = faults.dripped(0.05)
    began_s = time.monotonic()
    assert (200, "mine", b"hello") == post(proxy)
    assert time.monotonic() - began_s >= 0.2


def test_a_delayed_request_takes_its_time(proxy, taken):
    """And meets another fault then, if there is one."""
    proxy.fault = faults.delayed(0.2, faults.answered(503))
    began_s = time.monotonic()
    assert 503 == post(proxy)[0]
    assert time.monotonic() - began_s >= 0.2
    assert [] == taken


def test_an_unanswered_request_ends_with_its_client_or_with_the_proxy(proxy, taken):
    """The client's own patience, or the connection, breaks first; the server hears nothing."""
    proxy.fault = faults.unanswered
    with (
        contextlib.closing(http.client.HTTPConnection(proxy.uri.removeprefix("http://"), timeout=0.2)) as one,
        pytest.raises(TimeoutError),
    ):
        send(one)
    errors = []

    def wait():
        try:
            post(proxy)
        except OSError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while len(proxy.requests) < 2:
        time.sleep(0.01)
    proxy.down()
    waiting.join(5)
    assert 1 == len(errors)
    assert [] == taken


def test_a_late_request_is_taken_after_its_client_has_gone(proxy, taken):
    """Who looks at once does not find it."""
    proxy.fault = faults.late(0.3)
    with pytest.raises(ConnectionError):
        post(proxy)
    assert [] == taken
    deadline_s = time.monotonic() + 5
    while not taken and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert [b"hello"] == taken


def test_some_requests_are_met_the_same_ones_per_seed(proxy):
    """What fails once fails again in the same way."""
    found = []
    for _ in range(2):
        proxy.fault = faults.sometimes(0.5, faults.answered(503), seed=3)
        found.append([post(proxy)[0] for _ in range(12)])
    assert found[0] == found[1]
    assert {200, 503} == set(found[0])


def test_a_fault_of_ones_own(proxy):
    """As the module's picture shows: an answer that says something else."""

    def misspelt(exchange):
        answer = exchange.forward()
        exchange.reply(dataclasses.replace(answer, body=answer.body.replace(b"h", b"j")))

    proxy.fault = misspelt
    assert (200, "mine", b"jello") == post(proxy)
