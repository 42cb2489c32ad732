"""Serve a WSGI application on a port from a thread, and leave neither behind."""

from __future__ import annotations

import io
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server

from airflow_provider_healthex.sandbox.guard import Guard

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


#: The largest body of a request, and the largest mail, in bytes.
LARGEST = 10 * 1024 * 1024


class _BoundedLines(io.BufferedReader):
    """Reads no line without an end, such as a chunk's header."""

    def readline(self, size: int | None = -1, /) -> bytes:
        return super().readline(65537 if size is None or size < 0 else size)


class QuietRequestHandler(WSGIRequestHandler):
    """Writes no line per request, and does not wait forever for one."""

    timeout = 60

    def setup(self) -> None:
        """Prepare to read requests."""
        super().setup()
        self.rfile = _BoundedLines(self.rfile.detach())

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Say nothing: who asks for what is in the sandbox's state."""


class WsgiServer:
    """
    A running server.

    :param app: the application.
    :param host: the address to listen on.
    :param port: 0 for a free one.
    :param name: of the thread.
    :param handler: of the requests.
    :param largest: body of a request, in bytes.
    """

    def __init__(
        self,
        app: WSGIApplication,
        host: str,
        port: int,
        name: str,
        handler: type[WSGIRequestHandler] = QuietRequestHandler,
        largest: int = LARGEST,
    ) -> None:
        guarded = Guard(app, host, largest)
        # Werkzeug ends the process where a port is taken; a socket of our own raises OSError instead.
        with listen(host, port) as listening:
            self._server = make_server(
                host, port, guarded, threaded=True, request_handler=handler, fd=listening.fileno()
            )
        self.host = host
        self.port: int = self._server.port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name=name, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The address to call it at, from this machine."""
        host = reachable(self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def stop(self) -> None:
        """Answer nothing more and free the port."""
        self._server.shutdown()
        self._thread.join()


def reachable(host: str) -> str:
    """Return the address at which this machine reaches what listens on one."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def listen(host: str, port: int) -> socket.socket:
    """
    Return a listening socket.

    :param port: 0 for a free one.
    :raises OSError: naming the port, where it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = f"{os.strerror(error.errno or 0)}: {host} port {port}. Choose another port, or 0 for a free one."
        raise OSError(error.errno, reason) from error
