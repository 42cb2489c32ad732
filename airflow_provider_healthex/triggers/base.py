"""Waiting on the triggerer, wherever the delivery lands: the sensors' own decision, until the sensor's deadline."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_healthex.delivery import ArrivalWait, Expectation, Waiting
from airflow_provider_healthex.delivery.schedule import PokeSchedule, WaitingLog
from airflow_provider_healthex.exceptions import HealthExConfigurationError, HealthExConnectionError

#: The values of an event's ``status``. ``refused``: a permanent error. ``broken``: a defect of this code, which a retry
#: may get past.
ARRIVED, TIMED_OUT, REFUSED, BROKEN = "arrived", "timed_out", "refused", "broken"


class ArrivalTrigger(BaseTrigger):
    """
    Fires when all have arrived, the deadline has passed, or there is a permanent error. It never raises.

    Another triggerer starts with all patients again, with the same ``requested_at`` and deadline. The event has
    ``missing``, as `missing_to_text` writes it, and ``listing``: what the pokes showed, for the worker's last one.

    :param expectation: who and what is awaited, as `Expectation.to_dict` returns it.
    :param waiting_for: the name of the wait in logs.
    :param deadline: epoch seconds; there is one last poke at it. Absolute, so that another triggerer goes on where
        this one ended.
    :param poke_interval: seconds between two pokes.
    :param started: epoch seconds at which the wait began; by default now.
    :param exponential_backoff: lengthen the interval as Airflow's sensors do; ``max_wait`` seconds at most.
    :param limit: the argument of the sensor that the deadline comes from.
    :param least: patients that are enough from ``enough_at`` on (epoch seconds); None: only all are.
    :param listing: what earlier pokes of this wait showed.
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
        least: int | None = None,
        enough_at: float | None = None,
        listing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expectation = expectation
        self.waiting_for = waiting_for
        self.limit = limit
        self.least = least
        self.listing = listing or {}
        self.schedule = PokeSchedule(
            started=time.time() if started is None else started,
            deadline=deadline,
            poke_interval=poke_interval,
            exponential_backoff=exponential_backoff,
            max_wait=max_wait,
            enough_at=enough_at,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "expectation": self.expectation,
                "waiting_for": self.waiting_for,
                "limit": self.limit,
                "least": self.least,
                "listing": self.listing,
                **asdict(self.schedule),
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
        async with self._open() as storage:
            # Ten thousand targets take a moment, which the event loop must not spend.
            wait = await asyncio.to_thread(self._make_wait, storage)
            lines = WaitingLog(self.log, self.waiting_for, self.schedule, self.limit)
            while True:
                # The worker has just poked. Besides, Airflow fails tasks whose triggers fire at once: its scheduler
                # may read the worker's "done, deferred" after the resumed task has started (apache/airflow#72716).
                await asyncio.sleep(self.schedule.pause(time.time()))
                began = time.time()
                waiting = await self._poke(storage, wait)
                enough = self.least is not None and len(wait.arrived) >= self.least
                if waiting is None or (enough and self.schedule.is_enough(began)):
                    return self._event(ARRIVED, "", wait)
                lines.note(waiting.reason)
                if began >= self.schedule.deadline:
                    return self._event(TIMED_OUT, waiting.reason, wait)

    async def _poke(self, storage: Any, wait: ArrivalWait) -> Waiting | None:
        try:
            waiting: Waiting | None = await storage.run(wait.poke())
        except HealthExConnectionError as error:
            return Waiting(str(error))
        return waiting

    def _make_wait(self, storage: Any) -> ArrivalWait:
        wait = ArrivalWait(Expectation.from_dict(self.expectation), storage.listing)
        if self.listing:
            wait.listing.restore(self.listing)
        return wait

    def _event(self, status: str, message: str, wait: ArrivalWait) -> dict[str, Any]:
        return {
            "status": status,
            "message": message,
            "missing": missing_to_text(wait.missing),
            "listing": wait.listing.to_dict(),
        }

    @abstractmethod
    def _storage_arguments(self) -> dict[str, Any]:
        """Return the arguments that name the storage."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[Any]:
        """Return the storage, whose ``run`` is asynchronous."""


def missing_to_text(missing: Iterable[int]) -> str:
    """Return patients' positions as a hexadecimal number with a bit for each: ten thousand are 2.5 KB."""
    return f"{sum(1 << index for index in missing):x}"


def arrived_from_text(missing: str, count: int) -> list[int]:
    """Return the positions of the patients that `missing_to_text` left out."""
    bits = int(missing or "0", 16)
    return [index for index in range(count) if not bits >> index & 1]
