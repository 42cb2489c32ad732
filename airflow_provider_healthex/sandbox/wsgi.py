"""Serve a WSGI application on loopback from a thread, closed to other sites' pages and to endless bodies."""

from __future__ import annotations

import io
import os
import re
import socket
import threading
from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: The one address that every server of the sandbox listens on: nothing here is made for a network.
HOST = "127.0.0.1"

#: The largest body of a request, and the largest mail, in bytes.
LARGEST = 10 * 1024 * 1024

_HOST_HEADER = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d+)?", re.IGNORECASE)


def listen(port: int) -> socket.socket:
    """
    Return a listening socket on loopback.

    :param port: 0 for a free one.
    :raises OSError: naming the port, where it is taken.
    """
    try:
        return socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}: {HOST} port {port}. Choose another port, or 0 for a free one."
        raise OSError(error.errno, reason) from error


class WsgiServer:
    """
    A running server.

    :param port: 0 for a free one.
    :param name: of the thread.
    :param largest: body of a request, in bytes.
    """

    def __init__(self, app: WSGIApplication, port: int, name: str, largest: int = LARGEST) -> None:
        guarded = _Guard(app, largest)
        # Werkzeug ends the process where a port is taken; a socket of our own raises OSError instead.
        with listen(port) as listening:
            self._server = make_server(
                HOST, port, guarded, threaded=True, request_handler=_RequestHandler, fd=listening.fileno()
            )
        self.url = f"http://{HOST}:{self._server.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name=name, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing more and free the port."""
        self._server.shutdown()
        self._thread.join()


class _BoundedLines(io.BufferedReader):
    """Reads no line without an end, such as a chunk's header."""

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(65537 if size is None or size < 0 else size)


class _RequestHandler(WSGIRequestHandler):
    """Writes no line per request, and does not wait forever for one."""

    timeout = 60

    def setup(self) -> None:
        super().setup()
        self.rfile = _BoundedLines(self.rfile.detach())

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Write nothing: the requests are in the sandbox's state."""


class _Guard:
    """
    Refuses what a web page could make a browser on this machine send, and bodies that are too large.

    A page of another site can send requests to 127.0.0.1, and by DNS rebinding read the answers under a name of its
    own. Its requests carry its ``Origin``, or that name as ``Host``.
    """

    def __init__(self, app: WSGIApplication, largest: int) -> None:
        self._app = app
        self._largest = largest

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = _refuse_site(environ) or self._refuse_body(environ)
        if refusal is not None:
            return refusal(environ, start_response)

        def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
            # Moto lets every site read its answers.
            kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
            return start_response(status, kept, *error)

        return self._app(environ, start)

    def _refuse_body(self, environ: WSGIEnvironment) -> Response | None:
        if environ.get("wsgi.input_terminated"):
            return self._refuse_chunks(environ)
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit()):
            return _refusal(400, f"Content-Length must be a number (got {length!r})")
        return self._too_large() if int(length) > self._largest else None

    def _refuse_chunks(self, environ: WSGIEnvironment) -> Response | None:
        """Read a chunked body, and hand it on as one whose length is known."""
        try:
            body = io.BufferedReader(environ["wsgi.input"]).read(self._largest + 1)
        except (OSError, ValueError):
            return _refusal(400, "The chunks of the body can't be read")
        if len(body) > self._largest:
            return self._too_large()
        environ["wsgi.input"] = io.BytesIO(body)
        environ["CONTENT_LENGTH"] = str(len(body))
        for name in ("wsgi.input_terminated", "HTTP_TRANSFER_ENCODING"):
            environ.pop(name, None)
        return None

    def _too_large(self) -> Response:
        return _refusal(413, f"The body must be at most {self._largest:,} bytes")


def _refuse_site(environ: WSGIEnvironment) -> Response | None:
    host = environ.get("HTTP_HOST", "")
    if not _is_this_machine(host):
        return _refusal(403, f"Host must be an address of this machine (got {host!r})")
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return _refusal(403, f"The pages of other sites may not call the sandbox (got Origin {origin!r})")
    return None


def _is_this_machine(host: str) -> bool:
    found = _HOST_HEADER.fullmatch(host)
    if found is None:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # a bucket's name may stand before it
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _refusal(status: int, reason: str) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(reason, status=status, headers=headers, content_type="text/plain; charset=utf-8")
