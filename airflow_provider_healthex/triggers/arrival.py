"""Waiting on the triggerer, wherever the delivery lands: the sensors' own decision, until the sensor's deadline."""

from __future__ import annotations

import asyncio
import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.delivery.schedule import PokeSchedule
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError

#: What an event's ``status`` can be. ``refused``: a permanent error. ``broken``: a defect of this code, which a retry
#: may get past.
ARRIVED, TIMED_OUT, REFUSED, BROKEN = "arrived", "timed_out", "refused", "broken"

#: Seconds between two log lines of a wait in which nothing changes.
HEARTBEAT = 600.0

_SECONDS = re.compile(r"\d[\d,.]* s\b")


class ArrivalTrigger(BaseTrigger):
    """
    What the sensors' triggers share: a deadline, one event, and no exception.

    :param expectation: what counts as the delivery, in its JSON form.
    :param waiting_for: what logs call the wait.
    :param deadline: epoch seconds; there is one last poke at it. Absolute, so that another triggerer goes on where
        this one ended.
    :param poke_interval: seconds between two pokes.
    :param started: epoch seconds at which the wait began; by default a poke interval ago.
    :param exponential_backoff: lengthen the interval as Airflow's sensors do; ``max_wait`` seconds at most.
    :param limit: the argument of the sensor that the deadline comes from.
    """

    def __init__(
        self,
        *,
        expectation: Mapping[str, Any],
        waiting_for: str,
        deadline: float,
        poke_interval: float,
        started: float | None = None,
        exponential_backoff: bool = False,
        max_wait: float | None = None,
        limit: str = "timeout",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expectation = self._read(expectation)
        self.waiting_for = waiting_for
        self.deadline = deadline
        self.poke_interval = poke_interval
        self.started = time.time() if started is None else started
        self.exponential_backoff = exponential_backoff
        self.max_wait = max_wait
        self.limit = limit

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "expectation": self.expectation.to_dict(),
                "waiting_for": self.waiting_for,
                "deadline": self.deadline,
                "poke_interval": self.poke_interval,
                "started": self.started,
                "exponential_backoff": self.exponential_backoff,
                "max_wait": self.max_wait,
                "limit": self.limit,
                **self._storage_arguments(),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poke until something is decided."""
        # Raising would come back as a TaskDeferralError, which soft_fail turns into a skip.
        try:
            event = await self._wait()
        except HealthExConfigurationError as error:
            event = {"status": REFUSED, "message": str(error)}
        except Exception as error:
            self.log.exception("The wait broke")
            event = {"status": BROKEN, "message": type(error).__name__}
        yield TriggerEvent(event)

    async def _wait(self) -> dict[str, Any]:
        await asyncio.to_thread(self._begin)
        schedule = self._schedule()
        lines = WaitingLog(self.log, self.waiting_for, schedule, self.limit)
        async with self._open() as storage:
            while True:
                # The worker has just poked. Besides, Airflow fails tasks whose triggers fire at once: its scheduler
                # may read the worker's "done, deferred" after the resumed task has started (apache/airflow#72716).
                await asyncio.sleep(schedule.pause(time.time()))
                began = time.time()
                try:
                    verdict = await storage.look(self._look())
                except HealthExConnectionError as error:
                    verdict = Waiting(str(error))
                if not isinstance(verdict, Waiting) or (schedule.is_enough(began) and self._is_enough()):
                    return self._event(ARRIVED, "")
                lines.note(verdict.reason)
                if began >= self.deadline:
                    return self._event(TIMED_OUT, verdict.reason)

    def _schedule(self) -> PokeSchedule:
        return PokeSchedule(
            started=self.started,
            deadline=self.deadline,
            poke_interval=self.poke_interval,
            exponential_backoff=self.exponential_backoff,
            max_wait=self.max_wait,
        )

    @staticmethod
    @abstractmethod
    def _read(expectation: Mapping[str, Any]) -> Any:
        """Read the expectation's JSON form."""

    @abstractmethod
    def _storage_arguments(self) -> dict[str, Any]:
        """Return the arguments that say where to poke."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[Any]:
        """Return the storage, which takes the steps of a poke asynchronously."""

    @abstractmethod
    def _look(self) -> Any:
        """Return the steps of one poke."""

    def _begin(self) -> None:
        """Prepare what is kept between pokes."""

    def _is_enough(self) -> bool:
        """Whether what has arrived is enough, from ``enough_at`` on."""
        return False

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "message": message}


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
        """Log why the wait goes on, if that is news: a countdown of seconds is none."""
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
