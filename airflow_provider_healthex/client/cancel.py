"""How work is cancelled: by its caller, and by Airflow's ``on_kill``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Cancelled(Exception):
    """The work was cancelled before this request was sent."""


class CancelEvent(threading.Event):
    """Once it is set, every wait ends and nothing more is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[CancelEvent] = []

    @contextmanager
    def part(self) -> Iterator[CancelEvent]:
        """Yield an event for a part of the work: it is set with this one, or alone, and at the latest at the end."""
        part = CancelEvent()
        self._parts.append(part)
        if self.is_set():
            part.set()
        try:
            yield part
        finally:
            part.set()
            self._parts.remove(part)

    def set(self) -> None:
        """Cancel the work and all its parts."""
        super().set()
        for part in tuple(self._parts):
            part.set()
