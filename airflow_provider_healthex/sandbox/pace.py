"""How fast the sandbox answers: how long each call takes, and how many it takes in a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


class RateLimit:
    """
    A bucket of tokens, one for each call, that refills steadily and holds one second's.

    :param per_second: calls that are answered in a second, on average.
    :param clock: seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        if not per_second > 0:
            raise ValueError(f"A rate limit of {per_second:g} calls a second lets nothing through: give one above 0.")
        self._per_second = per_second
        self._capacity = max(1.0, per_second)
        self._tokens = self._capacity
        self._clock = clock
        self._filled_at = clock()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take a token and return 0; or, where there is none, return the seconds until there is."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._capacity, self._tokens + (now - self._filled_at) * self._per_second)
            self._filled_at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return 0
            return (1 - self._tokens) / self._per_second


@dataclass(frozen=True)
class Pace:
    """
    What every call to HealthEx is subject to.

    :param latency: seconds until it is answered.
    :param limit: above it a call is refused with 429, at once; None: no limit.
    """

    latency: float = 0.0
    limit: RateLimit | None = None
