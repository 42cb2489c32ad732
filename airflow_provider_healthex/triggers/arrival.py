"""Waiting on the triggerer, wherever the delivery lands: the sensors' own decision, until the sensor's deadline."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_healthex.delivery import Waiting
from airflow_provider_healthex.exceptions import HealthExConfigurationError

#: What an event's ``status`` can be: the storage refused for good, or this code has a defect, which a retry may pass.
ARRIVED, TIMED_OUT, REFUSED, BROKEN = "arrived", "timed_out", "refused", "broken"


class ArrivalTrigger(BaseTrigger):
    """What the sensors' triggers share: a deadline, one event, and no exception."""

    def __init__(
        self, *, expectation: Mapping[str, Any], waiting_for: str, deadline: float, poke_interval: float
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.expectation = self._read(expectation)
        self.waiting_for = waiting_for
        self.deadline = deadline
        self.poke_interval = poke_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what another triggerer needs to go on."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "expectation": self.expectation.to_dict(),
                "waiting_for": self.waiting_for,
                "deadline": self.deadline,
                "poke_interval": self.poke_interval,
                **self._storage_arguments(),
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until something is decided."""
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
        async with self._open() as storage:
            while True:
                # The worker has just looked. Besides, Airflow fails tasks whose triggers fire at once: its scheduler
                # may read the worker's "done, deferred" after the resumed task has started (apache/airflow#72716).
                left = max(0, self.deadline - time.time())
                await asyncio.sleep(min(self.poke_interval, left))
                last = time.time() >= self.deadline
                verdict = await storage.look(self._look())
                if not isinstance(verdict, Waiting):
                    return self._event(ARRIVED, "")
                self.log.info(waiting_line(self.waiting_for, verdict.reason, self.deadline - time.time()))
                if last:
                    return self._event(TIMED_OUT, verdict.reason)

    @staticmethod
    @abstractmethod
    def _read(expectation: Mapping[str, Any]) -> Any:
        """Read the expectation's JSON form."""

    @abstractmethod
    def _storage_arguments(self) -> dict[str, Any]:
        """Return the arguments that say where to look."""

    @abstractmethod
    def _open(self) -> AbstractAsyncContextManager[Any]:
        """Return where to look: what takes the steps of a look, asynchronously."""

    @abstractmethod
    def _look(self) -> Any:
        """Return the steps of one look."""

    def _begin(self) -> None:
        """Make ready what is kept between looks."""

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "message": message}


def waiting_line(waiting_for: str, reason: str, seconds_left: float | None) -> str:
    """Return a poke's line in the log: what is waited for, why it isn't there, and how long still."""
    line = f"Waiting for {waiting_for}: {reason}"
    if seconds_left is None:
        return line
    minutes, seconds = divmod(max(0, round(seconds_left)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{line}; {hours}:{minutes:02}:{seconds:02} until the timeout"
