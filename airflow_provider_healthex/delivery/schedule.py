"""When a wait pokes, when enough is enough, when it ends, and what its log says in between: alike in every mode."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import Any

#: Seconds between two log lines of a wait in which nothing changes.
HEARTBEAT = 600.0

_SECONDS = re.compile(r"\d[\d,.]* s\b")


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


class WaitingLog:
    """
    The log lines of a wait: one where something has changed, and else one in ten minutes.

    :param log: the logger of the sensor or trigger.
    :param waiting_for: what is waited for.
    :param schedule: the wait's moments.
    :param limit: the argument that the deadline comes from.
    """

    def __init__(self, log: Any, waiting_for: str, schedule: PokeSchedule, limit: str) -> None:
        self._log = log
        self._waiting_for = waiting_for
        self._schedule = schedule
        self._limit = limit
        self._last: tuple[str, bool] | None = None
        self._logged_at = 0.0

    def note(self, reason: str) -> None:
        """Log why the wait goes on, if that is news, as a mere countdown isn't."""
        now = time.time()
        state = (_SECONDS.sub("", reason), self._schedule.is_enough(now))
        if state != self._last or now - self._logged_at >= HEARTBEAT:
            self._last, self._logged_at = state, now
            self._log.info(waiting_line(self._waiting_for, reason, self._schedule, now, self._limit))


def waiting_line(waiting_for: str, reason: str, schedule: PokeSchedule, now: float, limit: str = "timeout") -> str:
    """Return a poke's line in the log: what changes comes first, what is always the same last."""
    enough = ""
    if schedule.is_enough(now):
        enough = ", min_fraction is enough now"
    elif schedule.enough_at is not None:
        enough = f", {_clock(schedule.enough_at - now)} until min_fraction is enough"
    return f"Waiting: {reason}; {waiting_for}{enough}, {_clock(schedule.deadline - now)} until the {limit}"


def _clock(seconds: float) -> str:
    minutes, whole = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}"
