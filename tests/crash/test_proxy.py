from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from tests.crash.proxy import Proxy


class Behind(ThreadingHTTPServer):
    """Answers a call with what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        calls = self.calls

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                calls.append((self.path, body.decode()))
                self.send_response(201)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Behind", self.headers["X-Before"])
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def behind() -> Iterator[Behind]:
    server = Behind()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(behind) -> Iterator[Proxy]:
    with Proxy(behind.server_address[1]).running() as running:
        yield running


def put(proxy: Proxy, path: str = "/a?b=c") -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.put(f"http://127.0.0.1:{proxy.port}{path}", b"body", headers={"X-Before": "x"}, timeout=30)


def test_calls_and_answers_pass_unchanged(proxy, behind):
    answer = put(proxy)
    assert (answer.status_code, answer.text, answer.headers["X-Behind"]) == (201, "body", "x")
    assert behind.calls == [("/a?b=c", "body")]


def test_a_failing_call_is_not_passed_on_until_the_rule_ends(proxy, behind):
    with proxy.rule(lambda method, path: path == "/fails", "fail") as rule:
        assert [put(proxy, "/fails").status_code for _ in range(2)] == [500, 500]
        assert put(proxy, "/passes").status_code == 201
        assert rule.calls == 2
    assert put(proxy, "/fails").status_code == 201


def test_a_held_call_goes_on_when_it_is_released(proxy, behind):
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(put(proxy).status_code))
    with proxy.rule(lambda method, path: True, "hold") as rule:
        thread.start()
        assert rule.reached.wait(30)
        assert behind.calls == []
    thread.join(30)
    assert answers == [201]


def test_a_held_call_whose_sender_has_died_is_dropped(proxy, behind):
    with proxy.rule(lambda method, path: True, "hold") as rule, socket.socket() as sender:
        sender.connect(("127.0.0.1", proxy.port))
        sender.sendall(b"PUT /held HTTP/1.1\r\nHost: x\r\nX-Before: x\r\nContent-Length: 4\r\n\r\nbody")
        assert rule.reached.wait(30)
    put(proxy, "/later")
    assert behind.calls == [("/later", "body")]


def test_a_held_answer_was_passed_on(proxy, behind):
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(put(proxy).status_code))
    with proxy.rule(lambda method, path: True, "hold answer") as rule:
        thread.start()
        assert rule.reached.wait(30)
        assert behind.calls == [("/a?b=c", "body")]
        assert answers == []
    thread.join(30)
    assert answers == [201]


def test_a_server_that_is_away_is_a_bad_gateway():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy(unused.getsockname()[1]).running() as proxy:
            began = time.monotonic()
            assert put(proxy).status_code == 502
            assert time.monotonic() - began < 20
