"""A proxy before Airflow's API server that can hold a call of a task, or answer it with 500."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Matches = Callable[[str, str], bool]

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


class Rule:
    """
    The proxy's treatment of the calls that match.

    :param matches: whether it is for the call with this method and path.
    :param action: ``fail``: answer 500 · ``hold``: keep the first call until released, then pass it on, unless its
        sender is dead · ``hold answer``: pass it on, and keep its answer until released.
    """

    def __init__(self, matches: Matches, action: str) -> None:
        self.matches, self.action = matches, action
        self.reached, self.released = threading.Event(), threading.Event()
        self.calls = 0
        self._lock = threading.Lock()

    def takes(self, method: str, path: str) -> bool:
        """Return whether this call is its, and count it."""
        if self.released.is_set() or not self.matches(method, path):
            return False
        with self._lock:
            self.calls += 1
            return self.action == "fail" or self.calls == 1


class Proxy:
    """
    Pass HTTP calls on to a port of loopback, but for what a rule says.

    :param port: of the server behind.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._rules: list[Rule] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _pass(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass

            def log_message(self, format: str, *args: Any) -> None:
                """Keep silent."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Keep silent: clients are killed here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    @contextlib.contextmanager
    def running(self) -> Iterator[Proxy]:
        """Serve until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            for rule in list(self._rules):
                rule.released.set()
            self._server.shutdown()
            self._server.server_close()

    @contextlib.contextmanager
    def rule(self, matches: Matches, action: str) -> Iterator[Rule]:
        """Follow a rule until the end of the block."""
        rule = Rule(matches, action)
        self._rules.append(rule)
        try:
            yield rule
        finally:
            rule.released.set()
            self._rules.remove(rule)

    def _handle(self, call: BaseHTTPRequestHandler) -> None:
        body = call.rfile.read(int(call.headers.get("Content-Length") or 0))
        rule = next((rule for rule in list(self._rules) if rule.takes(call.command, call.path)), None)
        if rule and rule.action == "fail":
            rule.reached.set()
            _answer(call, 500, [("Content-Type", "application/json")], b'{"detail": "made to fail"}')
            return
        if rule and rule.action == "hold":
            rule.reached.set()
            rule.released.wait()
            if _is_gone(call.connection):  # as if it had never arrived
                call.close_connection = True
                return
        answer = self._forward(call, body)
        if rule and rule.action == "hold answer":
            rule.reached.set()
            rule.released.wait()
        _answer(call, *answer)

    def _forward(self, call: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {name: value for name, value in call.headers.items() if name.lower() not in _OF_ONE_CONNECTION}
        connection = http.client.HTTPConnection("127.0.0.1", self._behind, timeout=120)
        try:
            connection.request(call.command, call.path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        except (OSError, http.client.HTTPException):
            return 502, [], b""
        finally:
            connection.close()


def _answer(call: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    call.send_response_only(status)
    for name, value in headers:
        if name.lower() not in _OF_ONE_CONNECTION:
            call.send_header(name, value)
    if status != 204:
        call.send_header("Content-Length", str(len(body)))
    call.end_headers()
    call.wfile.write(body)


def _is_gone(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
