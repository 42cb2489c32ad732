"""When a wait pokes, when enough is enough, and when it ends: one rule for worker and triggerer, in every mode."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class PokeSchedule:
    """
    The moments of one wait, in epoch seconds: absolute, so that another process goes on where one ended.

    :param started: when the wait began.
    :param deadline: when it ends; there is one last poke at it.
    :param poke_interval: seconds between two pokes.
    :param exponential_backoff: lengthen the interval as ``BaseSensorOperator`` does.
    :param max_wait: the longest interval then, in seconds.
    :param enough_at: from when on a part of the cohort is enough, or None.
    """

    started: float
    deadline: float
    poke_interval: float
    exponential_backoff: bool = False
    max_wait: float | None = None
    enough_at: float | None = None

    def pause(self, now: float) -> float:
        """Return the seconds until the next poke, which is never later than the deadline."""
        moments = [now + self._interval(now), self.deadline]
        if self.enough_at is not None and self.enough_at > now:
            moments.append(self.enough_at)
        return max(0.0, min(moments) - now)

    def is_enough(self, now: float) -> bool:
        """Whether a part of the cohort is enough by now."""
        return self.enough_at is not None and now >= self.enough_at

    def _interval(self, now: float) -> float:
        if not self.exponential_backoff:
            return self.poke_interval
        # Counting the pokes by the time since the start, as Airflow does for rescheduled sensors, needs no memory.
        elapsed, passed, count, interval = max(0.0, now - self.started), 0.0, 0, 0.0
        while passed <= elapsed:
            count += 1
            least = max(int(self.poke_interval * 2.0 ** (count - 2)), 1)
            if self.max_wait and least >= self.max_wait:
                return self.max_wait
            interval = least + _hash(f"{self.started}#{count}") % least
            interval = min(interval, self.max_wait) if self.max_wait else interval
            passed += interval
        return interval


def _hash(text: str) -> int:
    """Return the jitter's seed: the same for the same wait, so that a restart changes nothing."""
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)
