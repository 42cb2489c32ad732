"""Faults: which of the next requests fail, and how."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from flask import Response, request

ENDPOINTS = ("token", "update", "consents", "patients", "link", "usage", "metadata", "mail")
KINDS = ("slow", "cut", "cut_after", "garbage")

_STATUS = re.compile(r"[45]\d\d")


@dataclass(frozen=True)
class Fault:
    """
    How the next requests of an endpoint fail.

    :param endpoint: one of ``ENDPOINTS``; ``mail`` is the mailbox, which refuses a mail with an SMTP status.
    :param kind: ``slow``: the answer comes ``seconds`` later · an HTTP status such as ``429``, ``500``,
        ``503``: that error, nothing is done · ``cut``: the connection is closed once the request was read,
        nothing is done · ``cut_after``: it is done, and half of the answer is sent · ``garbage``: it is
        done, and the answer is no JSON, with the status of a success.
    :param times: how many requests it is for.
    :param seconds: for ``slow``.
    :param retry_after: for a status: the ``Retry-After`` header, seconds or an HTTP date.
    :param body: for a status and ``garbage``: the text of the answer.
    :param patient_id: only requests for this patient; for ``mail``: only mails to this address.
    """

    endpoint: str
    kind: str
    times: int = 1
    seconds: float = 0.0
    retry_after: float | str | None = None
    body: str | None = None
    patient_id: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise ValueError(f"endpoint must be one of {', '.join(ENDPOINTS)} (got {self.endpoint!r})")
        if self.kind not in KINDS and not _STATUS.fullmatch(self.kind):
            raise ValueError(f"kind must be one of {', '.join(KINDS)} or a status 400 to 599 (got {self.kind!r})")
        if self.endpoint == "mail" and self.status is None:
            raise ValueError(f"kind must be an SMTP status such as 451 or 550 for a mail (got {self.kind!r})")
        if not isinstance(self.times, int) or self.times < 1:
            raise ValueError(f"times must be a whole number from 1 (got {self.times!r})")

    @property
    def status(self) -> int | None:
        """The HTTP status of the answer, None for the other kinds."""
        return int(self.kind) if self.kind.isdigit() else None


class Faults:
    """The pending faults, in the order they were added."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[Fault] = []

    def add(
        self, endpoint: str, kind: str | int, times: int = 1, *, seconds: float = 0.0,
        retry_after: float | str | None = None, body: str | None = None, patient_id: str | None = None,
    ) -> Fault:  # fmt: skip
        """Make the next requests of an endpoint fail; see :class:`Fault` for the kinds and arguments."""
        fault = Fault(endpoint, str(kind), times, float(seconds), retry_after, body, patient_id)
        with self._lock:
            self._pending.append(fault)
        return fault

    def take(self, endpoint: str, patient_id: str | None) -> Fault | None:
        """Return this request's fault, and count it."""
        with self._lock:
            for index, fault in enumerate(self._pending):
                if fault.endpoint == endpoint and fault.patient_id in (None, patient_id):
                    rest = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    self._pending[index : index + 1] = rest
                    return fault
        return None

    def pending(self) -> list[dict[str, Any]]:
        """Return the pending faults in JSON form."""
        with self._lock:
            return [asdict(fault) for fault in self._pending]

    def clear(self) -> None:
        """Let all requests succeed again."""
        with self._lock:
            self._pending.clear()


def cut() -> Response:
    """Close the connection now. The returned response is never sent."""
    _close(_connection())
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
    # Set by Werkzeug's server; in-process test clients have none.
    connection: socket.socket | None = request.environ.get("werkzeug.socket")
    return connection


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.shutdown(socket.SHUT_RDWR)
