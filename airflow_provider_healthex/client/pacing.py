"""When a request may go out: evenly spaced, whichever thread asks, and never after a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable


class Stopped(Exception):
    """The client was told to stop before this request was sent."""


class Pacer:
    """Hands out evenly spaced moments to all threads that share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_free = 0.0

    def wait(self, per_second: float | None, stop: threading.Event) -> None:
        """
        Return when the next request may go out.

        :param per_second: requests a second; None: at once.
        :raises Stopped: ``stop`` was set before or meanwhile.
        """
        if stop.is_set() or (per_second is not None and stop.wait(self._turn(1 / per_second))):
            raise Stopped

    def _turn(self, interval: float) -> float:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next_free)
            self._next_free = turn + interval
        return turn - now


_pacers: dict[Hashable, Pacer] = {}
_lock = threading.Lock()


def pacer_for(key: Hashable) -> Pacer:
    """Return the one pacer this process has for a key: a limit is the service's, not a client's."""
    with _lock:
        return _pacers.setdefault(key, Pacer())
