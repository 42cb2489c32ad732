"""A scripted HealthEx on a loopback socket: it answers, stays silent, cuts off, and records every request."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import jwt

PROJECT, PATIENT = "694d61c2-3f1b", "17d4513f-73e8"
STARTED = {"message": "IN_PROGRESS_NO_ACTION_NEEDED", "retrievalId": "r-1"}
SECRET = "s3cr3t-of-the-api-key"


@dataclass
class Received:
    method: str
    target: str
    headers: Any
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def patient_id(self) -> str:
        """The patient of an update."""
        return unquote(self.target.split("/")[-2])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """The service's answer to one request."""

    status: int = 201
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    date: str | None = "now"
    act: Callable[[BaseHTTPRequestHandler], None] | None = None
    after: float = 0  # seconds


def says(document: Any, status: int = 201, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json", **named})


def status(code: int, text: str = "", **headers: str) -> Reply:
    return Reply(code, text.encode(), {name.replace("_", "-"): value for name, value in headers.items()})


def closes() -> Reply:
    return Reply(act=lambda handler: None)


def resets() -> Reply:
    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return Reply(act=act)


def raw(*pieces: bytes, pause: float = 0) -> Reply:
    """Write bytes as they are, then close."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)

    return Reply(act=act)


def keeps(*pieces: bytes, pause: float = 0) -> Reply:
    """Write bytes as they are, and keep the connection for the next request."""
    written = raw(*pieces, pause=pause)

    def act(handler: BaseHTTPRequestHandler) -> None:
        assert written.act is not None
        written.act(handler)
        handler.close_connection = False

    return Reply(act=act)


def accepted(retrieval_id: str, *headers: bytes) -> bytes:
    """Return the bytes of an accepted update's answer."""
    body = json.dumps({**STARTED, "retrievalId": retrieval_id}).encode()
    lines = (b"HTTP/1.1 201 Created", b"Content-Length: %d" % len(body), *headers, b"", b"")
    return b"\r\n".join(lines) + body


class Service:
    """Answers the n-th request for a path with its n-th reply, and the last one from then on."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.token_requests: list[Received] = []
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        self._by_request: Callable[[Received], Reply | None] = lambda request: None
        self._script: list[Reply] = [says(STARTED)]
        self._token_script: list[Reply] = [status(404)]
        self._released = threading.Event()
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with service._lock:
                    service.connections += 1

            def log_message(self, *args: Any) -> None: ...

            def do_POST(self) -> None:
                service._handle(self)

            do_GET = do_POST

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_port
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answers(self, *replies: Reply) -> None:
        self._script = list(replies)

    def answers_each(self, reply: Callable[[Received], Reply | None]) -> None:
        """Let a function of the request choose the reply; None leaves it to the script."""
        self._by_request = reply

    def asked(self) -> Counter[str]:
        """Return how often each patient was requested."""
        with self._lock:
            return Counter(request.patient_id for request in self.received)

    def answers_token_requests(self, *replies: Reply) -> None:
        self._token_script = list(replies)

    def stays_silent(self) -> Reply:
        def act(handler: BaseHTTPRequestHandler) -> None:
            self._released.wait(10)

        return Reply(act=act)

    def close(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        request = Received(handler.command, handler.requestline.split(" ")[1], handler.headers, body)
        with self._lock:
            for_token = handler.path.endswith("/v1/auth/token")
            script = self._token_script if for_token else self._script
            (self.token_requests if for_token else self.received).append(request)
            reply = None if for_token else self._by_request(request)
            reply = reply or (script.pop(0) if len(script) > 1 else script[0])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if reply.after:
            self._released.wait(reply.after)
        with self._lock:
            self.at_once -= 1
        if reply.act is not None:
            handler.close_connection = True
            reply.act(handler)
            return
        handler.send_response_only(reply.status)
        if reply.date is not None:
            handler.send_header("Date", handler.date_time_string() if reply.date == "now" else reply.date)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.body)))
        handler.end_headers()
        handler.wfile.write(reply.body)


def make_jwt(lifetime: float = 3600, **claims: Any) -> str:
    payload = {"exp": int(time.time() + lifetime), "organizationId": "org-7", **claims}
    return jwt.encode(payload, "x" * 32, algorithm="HS256")


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
