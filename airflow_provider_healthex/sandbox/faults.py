"""Which of the next calls go wrong, and how."""

from __future__ import annotations

import re
import threading
from dataclasses import asdict, dataclass, replace
from typing import Any

ENDPOINTS = ("token", "update", "consents", "patients", "link", "usage", "metadata", "mail")
KINDS = ("slow", "cut", "cut_after", "garbage")

_STATUS = re.compile(r"[45]\d\d")


@dataclass(frozen=True)
class Fault:
    """
    What goes wrong with the next calls of an endpoint.

    :param endpoint: one of ``ENDPOINTS``; ``mail`` is the mailbox, which refuses a mail with an SMTP status.
    :param kind: ``slow``: the answer comes ``seconds`` later · an HTTP status such as ``429``, ``500``,
        ``503``: that error, nothing is done · ``cut``: the connection is closed once the request was read,
        nothing is done · ``cut_after``: it is done, and half of the answer is sent · ``garbage``: it is
        done, and the answer is no JSON, with the status of a success.
    :param times: how many calls it is for.
    :param seconds: for ``slow``.
    :param retry_after: for a status: the ``Retry-After`` header, seconds or an HTTP date.
    :param body: for a status and ``garbage``: the text of the answer.
    :param patient_id: only calls for this patient; for ``mail``: only mails to this address.
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
            raise ValueError(f"There is no endpoint {self.endpoint!r}: use one of {', '.join(ENDPOINTS)}.")
        if self.kind not in KINDS and not _STATUS.fullmatch(self.kind):
            raise ValueError(f"There is no fault {self.kind!r}: use one of {', '.join(KINDS)} or a status 400 to 599.")
        if self.endpoint == "mail" and self.status is None:
            raise ValueError(f"A mail can't be {self.kind!r}: give an SMTP status such as 451 or 550.")
        if not isinstance(self.times, int) or self.times < 1:
            raise ValueError(f"times is {self.times!r}: give a whole number from 1.")

    @property
    def status(self) -> int | None:
        """The HTTP status to answer with, None for the other kinds."""
        return int(self.kind) if self.kind.isdigit() else None


class Faults:
    """The faults still to come, in the order they were added."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[Fault] = []

    def add(
        self,
        endpoint: str,
        kind: str | int,
        times: int = 1,
        *,
        seconds: float = 0.0,
        retry_after: float | str | None = None,
        body: str | None = None,
        patient_id: str | None = None,
    ) -> Fault:
        """Make the next calls of an endpoint go wrong; see :class:`Fault` for the kinds and arguments."""
        fault = Fault(endpoint, str(kind), times, float(seconds), retry_after, body, patient_id)
        with self._lock:
            self._pending.append(fault)
        return fault

    def take(self, endpoint: str, patient_id: str | None) -> Fault | None:
        """Return the fault of this call, which is one less to come."""
        with self._lock:
            for index, fault in enumerate(self._pending):
                if fault.endpoint == endpoint and fault.patient_id in (None, patient_id):
                    rest = [replace(fault, times=fault.times - 1)] if fault.times > 1 else []
                    self._pending[index : index + 1] = rest
                    return fault
        return None

    def pending(self) -> list[dict[str, Any]]:
        """Return the faults still to come."""
        with self._lock:
            return [asdict(fault) for fault in self._pending]

    def clear(self) -> None:
        """Let all calls succeed again."""
        with self._lock:
            self._pending.clear()
