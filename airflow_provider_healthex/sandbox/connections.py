"""How an answer is cut off on its way: the client reads the end of the connection instead."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from flask import Response, request


def cut() -> Response:
    """Close the connection now. What is returned is never sent."""
    _close()
    return Response(status=500)


def cut_after_half(response: Response) -> Response:
    """Send the first half of the answer under the length of the whole, then close the connection."""
    body = response.get_data()
    connection = _connection()

    def first_half() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        _close(connection)

    half = Response(first_half(), status=response.status, headers=response.headers)
    half.headers["Content-Length"] = str(len(body))
    return half


def _connection() -> socket.socket | None:
    # Werkzeug's server gives it; in-process test clients have none.
    connection: socket.socket | None = request.environ.get("werkzeug.socket")
    return connection


def _close(connection: socket.socket | None = None) -> None:
    connection = connection or _connection()
    if connection is not None:
        connection.shutdown(socket.SHUT_RDWR)
