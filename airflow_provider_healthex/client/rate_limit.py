"""When a request may go out: evenly spaced over all threads, not while the service wants quiet, never after a stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable

#: How much wider than needed the spacing is: requests that go out evenly arrive a little less so, and a second in
#: which one too many arrives would break the limit.
MARGIN = 1.02
#: Seconds between requests after a first one was turned away, doubled by each that follows.
FIRST_SPACING = 0.05
#: What is left of that spacing after each request, so that the pace recovers within about a hundred of them.
RECOVERY = 0.99


class Stopped(Exception):
    """The client was told to stop before this request was sent."""


class Stop(threading.Event):
    """An event that a part of the work can be given a share of: setting it sets the shares, and not the reverse."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: list[Stop] = []

    def share(self) -> Stop:
        """Return an event that is set with this one, or alone. Give it back with `release`."""
        share = Stop()
        self._shares.append(share)
        if self.is_set():
            share.set()
        return share

    def release(self, share: Stop) -> None:
        """Forget a share whose work has ended."""
        self._shares.remove(share)

    def set(self) -> None:
        """End the waits."""
        super().set()
        for share in tuple(self._shares):
            share.set()


class RateLimit:
    """Hands out evenly spaced moments to all threads that share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_free = 0.0
        self._last = float("-inf")
        self._quiet_until = 0.0
        self._spacing = 0.0

    def wait(self, per_second: float | None, stop: threading.Event) -> None:
        """
        Return when the next request may go out.

        :param per_second: requests a second; None: at once, unless the service wants quiet.
        :raises Stopped: ``stop`` was set before or meanwhile.
        """
        interval = 0.0 if per_second is None else MARGIN / per_second
        turn = self._reserve(interval)
        while not stop.is_set():
            remaining = self._take(turn, interval)
            if remaining <= 0:
                return
            stop.wait(remaining)
        raise Stopped

    def hold(self, seconds: float) -> None:
        """
        Send nothing for this long, and then less at once: the service turned a request away.

        Were all threads let go together, most would be turned away again, and some so often that they give up.
        """
        with self._lock:
            now = time.monotonic()
            if now >= self._quiet_until:  # not for each of those that were in flight together
                self._spacing = min(max(2 * self._spacing, FIRST_SPACING), seconds / 2)
            self._quiet_until = max(self._quiet_until, now + seconds)

    def _reserve(self, interval: float) -> float:
        with self._lock:
            turn = max(time.monotonic(), self._next_free)
            self._next_free = turn + interval
        return turn

    def _take(self, turn: float, interval: float) -> float:
        """Return 0 where the turn has come, else the seconds until it may have."""
        with self._lock:
            now = time.monotonic()
            # By when the last one really went: a thread that woke up late must not be followed too soon.
            due = max(turn, self._last + max(interval, self._spacing), self._quiet_until)
            if now < due:
                return due - now
            self._last = now
            self._spacing *= RECOVERY
        return 0.0


_rate_limits: dict[Hashable, RateLimit] = {}
_lock = threading.Lock()


def rate_limit_for(key: Hashable) -> RateLimit:
    """Return the one pacer this process has for a key: a limit is the service's, not a client's."""
    with _lock:
        return _rate_limits.setdefault(key, RateLimit())
