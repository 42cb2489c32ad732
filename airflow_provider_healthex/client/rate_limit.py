"""When a request may be sent: evenly spaced over all threads, and for no thread while HealthEx throttles."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

from airflow_provider_healthex.client.cancel import Cancelled

#: Requests that leave evenly spaced arrive a little less so: a second with one too many would break the limit.
MARGIN = 1.02
#: Seconds between requests after a first one was throttled, doubled by each that follows.
FIRST_SPACING = 0.05
#: Each request shrinks that spacing to this fraction, so that the rate recovers within about a hundred requests.
RECOVERY = 0.99


class RateLimit:
    """Spaces out the requests of all threads that share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_free = 0.0
        self._last = float("-inf")
        self._backing_off_until = 0.0
        self._spacing = 0.0

    def wait(self, per_second: float | None, cancelled: threading.Event) -> None:
        """
        Return when the next request may be sent.

        :param per_second: None: at once, unless HealthEx throttles.
        :raises Cancelled: before or meanwhile.
        """
        interval = 0.0 if per_second is None else MARGIN / per_second
        with self._lock:
            turn = max(time.monotonic(), self._next_free)
            self._next_free = turn + interval
        while not cancelled.is_set():
            remaining = self._take(turn, interval)
            if remaining <= 0:
                return
            cancelled.wait(remaining)
        raise Cancelled

    def back_off(self, seconds: float) -> None:
        """
        Send nothing for this long, and fewer requests at once afterwards: HealthEx throttled one.

        If all threads went on together, most would be throttled again, and some until their tries are used up.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._backing_off_until:  # once for requests that were in flight together
                self._spacing = min(max(2 * self._spacing, FIRST_SPACING), seconds / 2)
            self._backing_off_until = max(self._backing_off_until, now + seconds)

    def _take(self, turn: float, interval: float) -> float:
        """Return 0 if the turn has come, else the seconds until it may have."""
        with self._lock:
            now = time.monotonic()
            # Measured from when the last one was really sent: a thread may have woken up late.
            due = max(turn, self._last + max(interval, self._spacing), self._backing_off_until)
            if now < due:
                return due - now
            self._last = now
            self._spacing *= RECOVERY
        return 0.0


_rate_limits: dict[Hashable, RateLimit] = {}
_lock = threading.Lock()


def rate_limit_for(key: Hashable) -> RateLimit:
    """Return this process's rate limit for a key: a limit is the service's, not one client's."""
    with _lock:
        return _rate_limits.setdefault(key, RateLimit())
