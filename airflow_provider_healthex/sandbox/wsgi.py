"""Serve a WSGI application on a port from a thread, and leave neither behind."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class QuietRequestHandler(WSGIRequestHandler):
    """Writes no line per request, and does not wait forever for one."""

    timeout = 60

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
    """

    def __init__(
        self,
        app: WSGIApplication,
        host: str,
        port: int,
        name: str,
        handler: type[WSGIRequestHandler] = QuietRequestHandler,
    ) -> None:
        # Werkzeug ends the process where a port is taken; a socket of our own raises OSError instead.
        with listen(host, port) as listening:
            self._server = make_server(host, port, app, threaded=True, request_handler=handler, fd=listening.fileno())
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
